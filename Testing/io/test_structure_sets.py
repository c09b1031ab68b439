"""Structures of radiotherapy as outlines: every kind of contour that planning systems write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import scan
from structure_sets import CENTER, OFFSETS, RADII, keyhole, ring, rings, structure_set

from model_server.errors import ShapePriorError
from model_server.geometry.loops import loop_area
from model_server.io.markups import Markup, read_annotations, write_markups
from model_server.io.volumes import read_volume
from model_server.observations import Observations


def read(path: Path, roi: str = "") -> Observations:
    return read_annotations([path], roi=roi)


def areas(seen: Observations) -> list[float]:
    return [sum(loop_area(loop) for loop in outline.loops) for outline in seen.outlines]


@pytest.fixture
def plain(tmp_path):
    return read(structure_set(tmp_path / "plain.dcm", (1, "Hippo_L", rings())))


def refusal(path: Path, roi: str = "") -> ShapePriorError:
    with pytest.raises(ShapePriorError) as caught:
        read(path, roi)
    return caught.value


def test_contours_are_outlines_in_ras(plain):
    assert [o.name for o in plain.outlines] == [
        f"Hippo_L S {CENTER[2] + offset:.1f} mm" for offset in OFFSETS
    ]
    for outline, offset in zip(plain.outlines, OFFSETS, strict=True):
        (loop,) = outline.loops
        off = (loop - CENTER) / RADII
        assert np.linalg.norm(off, axis=1) == pytest.approx(1.0, abs=0.01)
        assert loop[:, 2] == pytest.approx(CENTER[2] + offset)
        assert np.linalg.norm(np.diff(loop, axis=0), axis=1).max() <= 1.0 + 1e-6
    assert plain.notes == ()


@pytest.mark.parametrize("axis", [0, 1])
def test_planes_may_have_any_direction(tmp_path, axis):
    seen = read(structure_set(tmp_path / "a.dcm", (1, "h", rings(axis, (-3.0, 0.0, 3.0)))))
    assert [o.name for o in seen.outlines] == [
        f"h {'RAS'[axis]} {CENTER[axis] + offset:.1f} mm" for offset in (-3.0, 0.0, 3.0)
    ]
    assert all(abs(o.normal[axis]) == pytest.approx(1.0) for o in seen.outlines)


def test_oblique_planes_are_counted(tmp_path):
    turn = np.array([[1.0, 0.0, 0.0], [0.0, 0.8, -0.6], [0.0, 0.6, 0.8]])
    contours = [(kind, points @ turn.T) for kind, points in rings(offsets=(-2.0, 0.0, 2.0))]
    seen = read(structure_set(tmp_path / "a.dcm", (1, "h", contours)))
    assert [o.name for o in seen.outlines] == ["h contour 1", "h contour 2", "h contour 3"]
    assert np.abs([o.normal for o in seen.outlines] @ turn[:, 2]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "inner",
    [
        lambda offset: [keyhole(offset)],
        lambda offset: [keyhole(offset, width=0.05)],
        lambda offset: [ring(2, offset), ring(2, offset, share=0.3)],
        lambda offset: [ring(2, offset, share=0.3), ring(2, offset)],
    ],
    ids=["keyhole", "keyhole with a width", "nested", "nested, the inner first"],
)
def test_a_cavity_is_filled_and_noted(tmp_path, plain, inner):
    contours = [c for o in OFFSETS for c in (inner(o) if abs(o) < 3.0 else [ring(2, o)])]
    seen = read(structure_set(tmp_path / "a.dcm", (1, "Hippo_L", contours)))
    assert areas(seen) == pytest.approx(areas(plain), rel=1e-3)
    assert [len(o.loops) for o in seen.outlines] == [1] * 7
    (note,) = seen.notes
    assert "'Hippo_L' in 'a.dcm' the cavity in 3 slices was left out" in note


def test_parts_of_a_plane_stay_and_a_contour_given_twice_counts_once(tmp_path, plain):
    kind, points = ring()
    contours = [*rings(), (kind, points + np.array([20.0, 0.0, 0.0])), (kind, points)]
    seen = read(structure_set(tmp_path / "a.dcm", (1, "h", contours)))
    assert [len(o.loops) for o in seen.outlines] == [1, 1, 1, 2, 1, 1, 1]
    assert areas(seen)[3] == pytest.approx(2.0 * areas(plain)[3], rel=1e-3)
    assert seen.notes == ()


def test_what_encloses_nothing_is_left_out_and_counted(tmp_path, plain):
    _, points = ring()
    bent = points + np.outer(np.arange(len(points)) % 2, [0.0, 0.0, 3.0])
    contours = [
        ("CLOSED_PLANAR", points[:2]),
        ("POINT", points[:1]),
        *[("OPEN_PLANAR", points[:6])] * 2,
        ("CLOSED_PLANAR", np.linspace(points[0], points[1], 5)),
        ("CLOSED_PLANAR", bent),
        *rings(),
    ]
    seen = read(structure_set(tmp_path / "a.dcm", (1, "Hippo_L", contours)))
    assert areas(seen) == areas(plain)
    (note,) = seen.notes
    for told in (
        *("1 contour of fewer than three points", "1 point", "2 open contours"),
        *("1 contour along a line", "1 contour that leaves its plane", "were left out"),
    ):
        assert told in note


# --- which structure ------------------------------------------------------------------------------


def test_the_number_tells_whose_contours_they_are(tmp_path, plain):
    small = [ring(2, offset, share=0.5) for offset in OFFSETS]
    structures = ((3, "PTV", small), (9, "empty", []), (1, "Hippo_L", rings()))
    path = structure_set(tmp_path / "a.dcm", *structures, shuffled=True)
    for wanted in ("hippo_l", " Hippo_L", "1"):
        assert areas(read(path, wanted)) == areas(plain)
    half = [0.25 * area for area in areas(plain)]
    assert areas(read(path, "PTV")) == pytest.approx(half, rel=1e-4)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("", "holds 2 structures: 1 'Hippo_L', 7 'PTV'"),
        ("liver", "has no structure 'liver'; it holds 1 'Hippo_L', 7 'PTV', 4 'named only'"),
        ("named only", "no closed contour of the structure 4 'named only'; it has contours of 1"),
        ("4", "no closed contour of the structure 4 'named only'"),
    ],
)
def test_a_structure_has_to_be_told(tmp_path, wanted, told):
    structures = ((1, "Hippo_L", rings()), (7, "PTV", rings()), (4, "named only", []))
    error = refusal(structure_set(tmp_path / "a.dcm", *structures), wanted)
    assert told in error.what
    assert "--roi" in error.remedy


def test_of_one_name_the_one_with_contours_is_taken_or_the_number_asked_for(tmp_path, plain):
    path = structure_set(tmp_path / "a.dcm", (1, "Hippo_L", []), (2, "Hippo_L", rings()))
    assert areas(read(path, "Hippo_L")) == areas(plain)
    both = structure_set(tmp_path / "b.dcm", (1, "Hippo_L", rings()), (2, "Hippo_L", rings()))
    assert "1 'Hippo_L', 2 'Hippo_L'" in refusal(both, "Hippo_L").what
    assert areas(read(both, "2")) == areas(plain)


def test_the_only_one_with_contours_is_taken_and_named(tmp_path):
    path = structure_set(tmp_path / "a.dcm", (1, "Hippo_R", []), (2, "Hippo_L", rings()))
    assert read(path).notes == (
        "Of 'a.dcm' the structure 2 'Hippo_L' was taken: no other has contours.",
    )


def test_markups_may_stand_beside_it(tmp_path, draw):
    write_markups(tmp_path / "a.mrk.json", [draw(0), Markup("clicks", "Fiducial", CENTER[None])])
    path = structure_set(tmp_path / "a.dcm", (1, "Hippo_L", rings()))
    seen = read_annotations([path, tmp_path / "a.mrk.json"])
    assert len(seen.outlines) == 8
    assert len(seen.boundary) == 1


# --- what is none ---------------------------------------------------------------------------------


def test_files_that_are_none_are_refused(tmp_path, draw):
    slices = scan(tmp_path / "ct")
    assert "of modality 'CT', not a structure set" in refusal(slices[0]).what
    good = structure_set(tmp_path / "a.dcm", (1, "h", rings()))
    (tmp_path / "cut.dcm").write_bytes(good.read_bytes()[:700])
    assert refusal(tmp_path / "cut.dcm").code in ("unreadable", "wrong-structure")
    with pytest.raises(ShapePriorError, match="structure sets both"):
        read_annotations([good, structure_set(tmp_path / "b.dcm", (1, "h", rings()))])
    write_markups(tmp_path / "a.mrk.json", [draw(0)])
    with pytest.raises(ShapePriorError, match="goes with a structure set only"):
        read(tmp_path / "a.mrk.json", "h")


def test_coordinates_that_are_no_triples_are_refused(tmp_path):
    path = structure_set(tmp_path / "a.dcm", (1, "h", rings()))
    file = pydicom.dcmread(path)
    contour = file.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = list(contour.ContourData)[:-1]
    file.save_as(path)
    assert "coordinates that are not three numbers each" in refusal(path).what


def test_a_structure_set_in_the_place_of_an_image_is_told_as_one(tmp_path):
    path = structure_set(tmp_path / "plan.dcm", (1, "Hippo_L", rings()))
    with pytest.raises(ShapePriorError, match="is a DICOM structure set, not an image") as caught:
        read_volume(path)
    assert "--annotations" in caught.value.remedy
