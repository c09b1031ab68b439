"""``shape-prior landmarks``: from one patient to the template and from there to another."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from model_server.commands.main import app, split_several
from model_server.io.markups import Markup, write_markups
from model_server.io.volumes import read_volume
from model_server.jobs.example import example_case

OUTLINES = example_case().outlines


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        app(split_several(["landmarks", *(str(w) for w in words), "--quiet"]))
    return int(end.value.code or 0), capsys.readouterr().err


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def ends() -> np.ndarray:
    """(2, 3) RAS mm of the example's most anterior and most posterior voxel."""
    label = read_volume(example_case().truth)
    ras = label.to_ras(np.argwhere(label.array > 0)[:, ::-1].astype(float))
    return ras[[ras[:, 1].argmax(), ras[:, 1].argmin()]]


@pytest.mark.parametrize("prior", ["hippocampus-dals", "hippocampus-atlas", "hippocampus-dissm"])
def test_landmarks_go_to_the_template_and_come_back(prior, tmp_path, capsys):
    points, places, back = (tmp_path / n for n in ("a.mrk.json", "b.csv", "c.csv"))
    write_markups(points, [Markup("end", "Fiducial", ends(), labels=("head of it", ""))])
    given = ("--prior", prior, "--annotations", *OUTLINES)
    assert run(capsys, *given, "--patient", points, "--output", places) == (0, "")
    found = rows(places)
    assert [row["label"] for row in found] == ["head of it", "end-2"]
    assert [row["part_name"] or row["part"] for row in found] in (
        ["anterior", "posterior"],
        ["1", "2"],
    )
    assert run(capsys, *given, "--template", places, "--output", back) == (0, "")
    there = np.array([[float(r[k]) for k in ("R_mm", "A_mm", "S_mm")] for r in rows(back)])
    gap = np.linalg.norm(there - ends(), axis=1)
    told = np.array([float(row["error_mm"]) for row in found])
    assert gap == pytest.approx(told, abs=1e-2)
    assert gap.max() < 4.0
    assert max(float(row["error_mm"]) for row in rows(back)) < 0.3


def test_bad_landmarks_are_refused_in_a_sentence(tmp_path, capsys):
    table, out = tmp_path / "a.csv", tmp_path / "b.csv"
    given = ("--prior", "hippocampus-dals", "--annotations", *OUTLINES, "--output", out)
    code, said = run(capsys, *given)
    assert (code, "either --patient or --template" in said) == (2, True)
    for content in ("", "label,R_mm,A_mm\nx,1,2\n", "label,R_mm,A_mm,S_mm\nx,1,nan,2\n"):
        table.write_text(content)
        code, said = run(capsys, *given, "--patient", table)
        assert code == 2
        assert "a.csv' holds no landmark" in said or "not a table of landmarks" in said
    table.write_text("label,R_mm,A_mm,S_mm\nx,1,2,3\n")
    pca = ("--prior", "hippocampus-pca", *given[2:])
    code, said = run(capsys, *pca, "--patient", table)
    assert (code, "has no correspondences" in said) == (2, True)
    assert not out.exists()
