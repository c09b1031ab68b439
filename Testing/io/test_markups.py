from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from model_server.errors import ShapePriorError
from model_server.geometry.curves import closed_polygon, closed_spline
from model_server.io.markups import Markup, read_annotations, read_markups, write_markups
from model_server.observations import Volume

SQUARE = [[10.0, 20.0, 5.0], [-10.0, 20.0, 5.0], [-10.0, -20.0, 5.0], [10.0, -20.0, 5.0]]


def markup(points: list[Any] = SQUARE, **fields: Any) -> dict[str, Any]:
    entry = {
        "type": "ClosedCurve",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "controlPoints": [{"position": p, "positionStatus": "defined"} for p in points],
    }
    return entry | fields


def written(folder: Path, *entries: dict[str, Any], name: str = "curve.mrk.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"markups": list(entries)}))
    return path


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ("LPS", [-1.0, -2.0, 3.0]),
        ("lps", [-1.0, -2.0, 3.0]),
        ("1", [-1.0, -2.0, 3.0]),
        (1, [-1.0, -2.0, 3.0]),
        ("RAS", [1.0, 2.0, 3.0]),
        ("0", [1.0, 2.0, 3.0]),
        (0, [1.0, 2.0, 3.0]),
    ],
)
def test_coordinate_system_is_honored(tmp_path, frame, expected):
    entry = markup([[1.0, 2.0, 3.0]], type="Fiducial", coordinateSystem=frame)
    (found,) = read_markups(written(tmp_path, entry))
    assert found.points.tolist() == [expected]


def test_each_markup_has_its_own_coordinate_system(tmp_path):
    lps = markup([[1.0, 2.0, 3.0]], type="Fiducial", coordinateSystem="LPS")
    ras = markup([[1.0, 2.0, 3.0]], type="Fiducial", coordinateSystem="RAS")
    first, second = read_markups(written(tmp_path, lps, ras))
    assert (first.points[0, 0], second.points[0, 0]) == (-1.0, 1.0)


def test_without_a_coordinate_system_slicers_default_lps_is_taken(tmp_path):
    entry = markup([[1.0, 2.0, 3.0]], type="Fiducial")
    del entry["coordinateSystem"]
    assert read_markups(written(tmp_path, entry))[0].points.tolist() == [[-1.0, -2.0, 3.0]]


def test_unknown_coordinate_system_is_refused(tmp_path):
    with pytest.raises(ShapePriorError, match=r"'curve' in 'curve.mrk.json'.*'IJK'"):
        read_markups(written(tmp_path, markup(coordinateSystem="IJK")))


@pytest.mark.parametrize("units", ["mm", ["mm", "UCUM", "millimeter"], "millimeter"])
def test_millimeters_are_taken(tmp_path, units):
    assert len(read_markups(written(tmp_path, markup(coordinateUnits=units)))) == 1


@pytest.mark.parametrize("units", ["m", "cm", ["um", "UCUM", "micrometer"]])
def test_other_units_are_refused(tmp_path, units):
    with pytest.raises(ShapePriorError, match="not in millimeters") as caught:
        read_markups(written(tmp_path, markup(coordinateUnits=units)))
    assert caught.value.code == "wrong-units"


# --- the curve ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 16, 64, 65, 200])
def test_closed_spline_is_scipys_periodic_cubic(count):
    points = np.random.default_rng(count).normal(size=(count, 3))
    spline = CubicSpline(np.arange(count + 1), np.vstack([points, points[:1]]), bc_type="periodic")
    expected = spline(np.arange(10 * count) / 10.0)
    np.testing.assert_allclose(closed_spline(points), expected, atol=1e-12)


def test_closed_spline_passes_through_its_control_points():
    points = np.array(SQUARE)
    np.testing.assert_allclose(closed_spline(points)[::10], points, atol=1e-12)


def test_closed_polygon_runs_straight_between_its_control_points():
    loop = closed_polygon(np.array(SQUARE))
    np.testing.assert_allclose(loop[[0, 5, 10, 35]], [SQUARE[0], [0, 20, 5], SQUARE[1], [10, 0, 5]])


def test_outline_is_the_spline_in_ras(tmp_path):
    (outline,) = read_annotations([written(tmp_path, markup())]).outlines
    expected = closed_spline(np.array(SQUARE) * [-1.0, -1.0, 1.0])
    np.testing.assert_allclose(outline.loops[0], expected, atol=1e-9)
    assert abs(outline.normal[2]) == pytest.approx(1.0)
    assert outline.origin[2] == pytest.approx(5.0)


def test_linear_curve_is_a_polygon(tmp_path):
    (outline,) = read_annotations([written(tmp_path, markup(curveType="linear"))]).outlines
    assert np.abs(outline.loops[0][:, 0]).max() == pytest.approx(10.0)


def test_unsupported_curve_type_is_refused(tmp_path):
    with pytest.raises(ShapePriorError, match="'curve' has the curve type 'kochanek'"):
        read_markups(written(tmp_path, markup(curveType="kochanek")))


def test_only_defined_control_points_count(tmp_path):
    entry = markup()
    preview = {"position": [500.0, 500.0, 500.0], "positionStatus": "preview"}
    undefined = {"positionStatus": "undefined"}
    entry["controlPoints"] += [preview, undefined]
    entry["controlPoints"][0].pop("positionStatus")
    (found,) = read_markups(written(tmp_path, entry))
    np.testing.assert_allclose(found.points, np.array(SQUARE) * [-1.0, -1.0, 1.0])


@pytest.mark.parametrize("status", ["preview", "defined"])
def test_points_that_are_placed_count_whatever_their_status(tmp_path, status):
    entry = markup()
    for point in entry["controlPoints"]:
        point["positionStatus"] = status
    entry["controlPoints"] += [{"positionStatus": s} for s in ("undefined", "missing")]
    (found,) = read_markups(written(tmp_path, entry))
    np.testing.assert_allclose(found.points, np.array(SQUARE) * [-1.0, -1.0, 1.0])


def test_markups_of_other_kinds_and_empty_ones_are_left_out_and_told(tmp_path):
    entries = [
        markup(name="axial"),
        *(markup(type=kind, name=kind[0]) for kind in ("ROI", "Plane", "Line")),
        markup([], name="blank"),
        markup([], name="none", type="Fiducial"),
    ]
    seen = read_annotations([written(tmp_path, *entries, name="all.mrk.json")])
    assert [o.name for o in seen.outlines] == ["axial"]
    assert seen.boundary == ()
    assert seen.notes == (
        "The curve 'blank' has no placed point, and was left out.",
        "The point list 'none' has no placed point, and was left out.",
        "'R' (ROI), 'P' (Plane), 'L' (Line) in 'all.mrk.json' left out: closed curves and point "
        "lists count.",
    )


def test_names_of_points_are_kept(tmp_path):
    entry = markup(type="Fiducial", name="lm")
    for point, name in zip(entry["controlPoints"], ("upper pole", "", "hilum"), strict=False):
        point["label"] = name
    (found,) = read_markups(written(tmp_path, entry))
    assert [found.label(k) for k in range(4)] == ["upper pole", "lm-2", "hilum", "lm-4"]
    write_markups(tmp_path / "again.mrk.json", [found])
    (again,) = read_markups(tmp_path / "again.mrk.json")
    assert again.labels == ("upper pole", "lm-2", "hilum", "lm-4")


# --- names and kinds ------------------------------------------------------------------------------


def test_name_is_the_markups_own_else_the_files(tmp_path):
    named, bare = markup(name="axial"), markup()
    path = written(tmp_path, named, bare, name="left kidney.mrk.json")
    assert [m.name for m in read_markups(path)] == ["axial", "left kidney"]


def test_equal_names_are_told_apart(tmp_path):
    (tmp_path / "b").mkdir()
    paths = [written(tmp_path, markup(), markup()), written(tmp_path / "b", markup())]
    names = [o.name for o in read_annotations(paths).outlines]
    assert names == ["curve", "curve (2)", "curve (3)"]


def test_file_named_twice_counts_once(tmp_path):
    path = written(tmp_path, markup())
    assert len(read_annotations([path, path]).outlines) == 1


def test_point_lists_go_where_their_name_says(tmp_path):
    names = ["edge", "Inside", "points outside 2", "inside_1", "insidious"]
    entries = [markup([[0.0, 0.0, float(k)]], type="Fiducial", name=n) for k, n in enumerate(names)]
    seen = read_annotations([written(tmp_path, *entries)])
    assert [s.name for s in seen.boundary] == ["edge", "insidious"]
    assert [s.name for s in seen.inside] == ["Inside", "inside_1"]
    assert [s.name for s in seen.outside] == ["points outside 2"]


def test_list_that_is_both_inside_and_outside_is_refused(tmp_path):
    entry = markup(type="Fiducial", name="inside outside")
    with pytest.raises(ShapePriorError, match="both inside and outside"):
        read_markups(written(tmp_path, entry))


def test_empty_point_list_is_nothing(tmp_path):
    assert read_annotations([written(tmp_path, markup([], type="Fiducial"))]).boundary == ()


def test_several_files_and_kinds_come_together(tmp_path):
    first = written(tmp_path, markup(name="a"), name="a.mrk.json")
    points = markup([[1.0, 2.0, 3.0]], type="Fiducial", name="clicks")
    second = written(tmp_path, points, markup(name="b"), name="b.mrk.json")
    seen = read_annotations([first, second])
    assert [o.name for o in seen.outlines] == ["a", "b"]
    assert seen.boundary_points().tolist() == [[-1.0, -2.0, 3.0]]


# --- bad input ------------------------------------------------------------------------------------


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ShapePriorError, match=r"nowhere.mrk.json' does not exist"):
        read_markups(tmp_path / "nowhere.mrk.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"solid stl",
        b"\xff\xfe\x00\x01",
        b"[]",
        b"{}",
        b'{"markups": 3}',
        b'{"markups": [3]}',
        b"[" * 100_000,
    ],
    ids=["empty", "text", "binary", "list", "object", "number", "entries", "deep"],
)
def test_what_is_no_markups_file_is_refused(tmp_path, content):
    path = tmp_path / "no.mrk.json"
    path.write_bytes(content)
    with pytest.raises(ShapePriorError, match=r"no.mrk.json' is not a markups file"):
        read_markups(path)


def test_folder_is_no_markups_file(tmp_path):
    with pytest.raises(ShapePriorError, match="cannot be read"):
        read_markups(tmp_path)


@pytest.mark.parametrize("kind", ["Line", "Plane", "ROI", "Angle", "Curve", "Elephant"])
def test_other_markups_are_refused_by_name(tmp_path, kind):
    said = "an open curve" if kind == "Curve" else f"'{kind}'"
    with pytest.raises(ShapePriorError, match=f"'mine' in 'curve.mrk.json' is .*{said}"):
        read_annotations([written(tmp_path, markup(type=kind, name="mine"))])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_curve_of_too_few_points_is_named(tmp_path, count):
    path = written(tmp_path, markup(SQUARE[:count], name="axial"))
    with pytest.raises(ShapePriorError, match=f"'axial' has {count} control point"):
        read_annotations([path])


@pytest.mark.parametrize(
    "position", [[0.0, float("nan"), 0.0], [0.0, 1.0], ["a", "b", "c"], None, [1e999, 0.0, 0.0]]
)
def test_point_without_three_numbers_is_named(tmp_path, position):
    path = written(tmp_path, markup([*SQUARE, position], name="axial"))
    with pytest.raises(ShapePriorError, match="Point 5 of 'axial'"):
        read_annotations([path])


@pytest.mark.parametrize("points", [3, [3], {"position": [0, 0, 0]}, "abc"])
def test_control_points_that_are_no_list_of_points_are_refused(tmp_path, points):
    with pytest.raises(ShapePriorError, match="'axial'"):
        read_annotations([written(tmp_path, markup(name="axial", controlPoints=points))])


def test_coincident_points_are_refused(tmp_path):
    with pytest.raises(ShapePriorError, match="'curve' all lie in one spot"):
        read_annotations([written(tmp_path, markup([SQUARE[0]] * 5))])


def test_curve_out_of_plane_is_named(tmp_path):
    bent = [[x, y, z + (4.0 if i % 2 else -4.0)] for i, (x, y, z) in enumerate(SQUARE)]
    with pytest.raises(ShapePriorError, match="'bent' leaves its plane by"):
        read_annotations([written(tmp_path, markup(bent, name="bent"))])


def test_self_crossing_curve_is_named(tmp_path):
    eight = [SQUARE[0], SQUARE[2], SQUARE[1], SQUARE[3]]
    with pytest.raises(ShapePriorError, match="'eight' crosses itself"):
        read_annotations([written(tmp_path, markup(eight, name="eight"))])


def test_empty_mask_is_refused():
    mask = Volume(np.zeros((3, 3, 3), dtype=np.uint8), np.eye(4), "mask.nii.gz")
    with pytest.raises(ShapePriorError, match=r"'mask.nii.gz' is empty"):
        read_annotations([], mask)


# --- what is mended -------------------------------------------------------------------------------


def oval(count: int = 16) -> np.ndarray:
    turn = np.arange(count) * (2.0 * np.pi / count)
    return np.stack([30.0 * np.cos(turn), 20.0 * np.sin(turn), 5.0 + 0.0 * turn], axis=1)


@pytest.mark.parametrize("kind", ["spline", "linear"])
@pytest.mark.parametrize("beside", [0.0, 0.4])
@pytest.mark.parametrize("at", [0, 7, 16])
def test_repeated_control_points_make_no_difference(tmp_path, kind, beside, at):
    right = oval()
    again = np.insert(right, at, right[max(at - 1, 0)] + [beside, 0.0, 0.0], axis=0)
    if at == 16:
        again[-1] = right[0] + [beside, 0.0, 0.0]  # the first given again as last
    if at == 0:
        right = np.vstack([again[:1], right[1:]])  # of each place the first is kept
    read = [
        read_annotations([written(tmp_path, markup(p.tolist(), curveType=kind, name="axial"))])
        for p in (right, again)
    ]
    assert np.array_equal(read[0].outlines[0].loops[0], read[1].outlines[0].loops[0])
    assert read[0].notes == ()
    assert read[1].notes == ("1 repeated point of 'axial' was left out.",)


def test_a_linear_curve_with_collinear_points_is_the_polygon_it_is(tmp_path):
    corners = np.array(SQUARE)
    points = np.concatenate([corners, 0.5 * (corners + np.roll(corners, -1, axis=0))])
    points = points[[0, 4, 1, 5, 2, 6, 3, 7]]
    seen = read_annotations([written(tmp_path, markup(points.tolist(), curveType="linear"))])
    (loop,) = seen.outlines[0].loops
    np.testing.assert_allclose(loop[::10], points * [-1.0, -1.0, 1.0], atol=1e-6)
    assert seen.notes == ()


def test_a_small_crossing_is_mended_and_noted(tmp_path):
    points = oval()
    points[[2, 3]] = points[[3, 2]]
    seen = read_annotations([written(tmp_path, markup(points.tolist(), name="axial"))])
    assert len(seen.outlines[0].loops) == 1
    (note,) = seen.notes
    assert note.startswith("'axial' crosses itself near (")


@pytest.mark.parametrize("spacing", [None, 1.0, 5.0])
def test_half_the_slice_spacing_of_the_reference_is_allowed(tmp_path, spacing):
    points = oval()
    points[3, 2] += 1.6
    path = written(tmp_path, markup(points.tolist(), name="axial"))
    if spacing != 5.0:
        image = spacing and Volume(np.zeros((2, 2, 2)), np.diag([1.0, 1.0, spacing, 1.0]))
        with pytest.raises(ShapePriorError, match="'axial' leaves its plane by"):
            read_annotations([path], None, image)
        return
    image = Volume(np.zeros((2, 2, 2)), np.diag([0.8, 0.8, spacing, 1.0]))
    seen = read_annotations([path], None, image)
    right = read_annotations([written(tmp_path, markup(oval().tolist()))])
    np.testing.assert_allclose(seen.outlines[0].loops[0], right.outlines[0].loops[0], atol=1e-6)


# --- writing --------------------------------------------------------------------------------------


def test_written_markups_are_lps_with_slicers_schema(tmp_path):
    path = tmp_path / "a.mrk.json"
    write_markups(path, [Markup("axial", "ClosedCurve", np.array([[1.0, 2.0, 3.0]]))])
    content = json.loads(path.read_text())
    assert content["@schema"].endswith("markups-schema-v1.0.3.json#")
    (entry,) = content["markups"]
    assert (entry["type"], entry["coordinateSystem"]) == ("ClosedCurve", "LPS")
    assert entry["controlPoints"][0]["position"] == [-1.0, -2.0, 3.0]


def test_markups_come_back_as_written(tmp_path):
    path = tmp_path / "a.mrk.json"
    points = np.random.default_rng(0).normal(size=(7, 3)) * 100.0
    kinds = [("axial", "ClosedCurve"), ("inside points", "Fiducial")]
    write_markups(path, [Markup(name, kind, points) for name, kind in kinds])
    found = read_markups(path)
    assert [(m.name, m.kind) for m in found] == kinds
    assert found[1].side == "inside"
    for one in found:
        np.testing.assert_allclose(one.points, points, atol=1e-4)
