"""Tables of cases: what is read from them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from cohorts import HEADER, table

from model_server.cohort.table import Case, read_cases
from model_server.errors import ShapePriorError
from model_server.jobs.session import MaskChoice


def test_a_table_is_read_with_paths_relative_to_it(folder, monkeypatch):
    header = "side,case,prior,annotations,mask,reference"
    path = table(folder, "left,A 1,rbf,a.mrk.json;sub/b.mrk.json,,/far/c.nrrd", "", header=header)
    monkeypatch.chdir(folder)
    (case,) = read_cases(Path(path.name))
    files = (folder / "a.mrk.json", folder / "sub/b.mrk.json")
    assert case == Case("A 1", "rbf", files, None, Path("/far/c.nrrd"), "left")


def test_labels_and_segments_of_masks_are_chosen(folder):
    header = "case,prior,annotations,mask,label,segment"
    first, second = read_cases(
        table(folder, "A,rbf,,m.nrrd,5; 2,", "B,rbf,,m.seg.nrrd,,left lobe", header=header)
    )
    assert first.choice == MaskChoice((2, 5))
    assert second.choice == MaskChoice((), "left lobe")


def test_a_table_of_excel_is_read(folder):
    path = table(folder)
    path.write_bytes(f"\ufeff{HEADER}\r\nA,rbf,a.mrk.json\r\n".encode())
    assert [case.name for case in read_cases(path)] == ["A"]


def test_a_prior_may_be_a_folder_beside_the_table(folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "prior.json").write_text("{}")
    (case,) = read_cases(table(folder, "A,mine,a.mrk.json"))
    assert case.prior == str(folder / "mine")


# What stands in the file, and what the sentence has to say.
BAD_TABLES = {
    "nothing": ("", "it is empty"),
    "no rows": (f"{HEADER}\n", "it has no rows"),
    "missing column": ("case,annotations\nA,a\n", "line 1: there is no column 'prior'"),
    "semicolons": ("case;prior;annotations\n", "there is no column 'case', 'prior', 'annot"),
    "unknown column": (f"{HEADER},refrence\n", "line 1: there is an unknown column 'refrence'"),
    "column twice": (f"{HEADER},case\n", "line 1: there is more than one column 'case'"),
    "duplicate": (f"{HEADER}\nA,rbf,a\n\nB,rbf,a\nA,rbf,a\n", "line 5: the case 'A' stands in l"),
    "duplicate but for case": (f"{HEADER}\nA,rbf,a\na,rbf,a\n", "'a' stands in line 2 already"),
    "no name": (f"{HEADER}\n,rbf,a\n", "line 2: the case has no name"),
    "no prior": (f"{HEADER}\nA,,a\n", "line 2: no prior is named"),
    "no annotations": (
        f"{HEADER}\nA,rbf, ; \n",
        "line 2: there are no annotations, no mask and no image",
    ),
    "short row": (f"{HEADER}\nA\n", "line 2: no prior is named; line 2: there are no annot"),
    "long row": (f"{HEADER}\nA,rbf,a,b\n", "line 2: it has 4 cells for 3 columns"),
    "bad side": (f"{HEADER},side\nA,rbf,a,up\n", "line 2: the side 'up' is none of auto, left"),
    "bad label": (f"{HEADER},label\nA,rbf,a,two\n", "line 2: the label 'two' is not a number"),
    "two problems": (f"{HEADER}\n,rbf,a\nA,,a\n", "line 2: the case has no name; line 3: no prior"),
    "many problems": (HEADER + "\n,rbf,a" * 8, "; and 3 more."),
    "open quote": (f'{HEADER}\n"A,rbf,a\n', "is not a text of comma-separated values"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_bad_table_is_refused(folder, kind):
    content, says = BAD_TABLES[kind]
    path = folder / "cases.csv"
    path.write_text(content)
    with pytest.raises(ShapePriorError) as caught:
        read_cases(path)
    assert says in str(caught.value)
    assert caught.value.code == "bad-table"


BAD_NAMES = ["..", ".", "../up", "/etc/x", "a/b", "a\\b", "C:x", ".hidden", "end.", "a\tb", "a|b"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "cohort.csv", "a.seg", "*"])
def test_names_that_cannot_name_a_file_are_refused(folder, name):
    with pytest.raises(ShapePriorError, match=r"line 2: the case name .* cannot name a file"):
        read_cases(table(folder, f"{name},rbf,a"))


@pytest.mark.parametrize("name", ["A", "7", "1.2.840.113", "Jørgen (left)", "a_b-c", "x+y=2"])
def test_names_that_can_are_taken(folder, name):
    assert read_cases(table(folder, f"{name},rbf,a"))[0].name == name


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_what_cannot_be_read_is_refused(folder, content):
    path = folder / "cases.csv"
    if content:
        path.write_bytes(content)
    with pytest.raises(ShapePriorError, match=r"cannot be used: it (cannot be read|is not a text)"):
        read_cases(path)


def test_a_superscript_is_no_label(folder):
    path = table(folder, "A,rbf,,m.nrrd,\u00b2", header="case,prior,annotations,mask,label")
    with pytest.raises(ShapePriorError, match="is not a number"):
        read_cases(path)
