"""Point lists of older Slicers; what is right was read by Slicer's own storage node."""

from __future__ import annotations

import pytest

from model_server.errors import ShapePriorError
from model_server.io.markups import read_annotations, read_markups

COLUMNS = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
VERSION = "# Markups fiducial file version = {}\n"
SYSTEM = "# CoordinateSystem = {}\n"
ROWS = "n_0,1,2,3,0,0,0,1,1,1,0,upper pole,,\nn_1,4,5,6,0,0,0,1,1,1,0,F-2,,\n"
RAS, LPS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[-1.0, -2.0, 3.0], [-4.0, -5.0, 6.0]]


def read(folder, text, name="clicks.fcsv"):
    path = folder / name
    path.write_text(text)
    (markup,) = read_markups(path)
    return markup


@pytest.mark.parametrize(
    ("version", "system", "expected"),
    [
        ("4.10", "0", RAS),
        ("4.6", "1", LPS),
        ("4.11", "LPS", LPS),
        ("4.13", "RAS", RAS),
        ("5.4", "LPS", LPS),
        ("5.4", None, LPS),
        ("4.11", "lps", LPS),
    ],
)
def test_every_coordinate_system_is_honored(tmp_path, version, system, expected):
    header = VERSION.format(version) + (SYSTEM.format(system) if system else "")
    found = read(tmp_path, header + COLUMNS + ROWS)
    assert found.points.tolist() == expected
    assert (found.kind, found.name, found.labels) == ("Fiducial", "clicks", ("upper pole", "F-2"))


@pytest.mark.parametrize(
    "text",
    [
        "# Fiducial List file a\n# name = F\n# columns = label,x,y,z,sel,vis\n"
        "A,1,2,3,1,1\nB,4,5,6,1,1\n",
        "# Fiducial List file a\n# name = F\nA,1,2,3,1,1\nB,4,5,6,1,1\n",
    ],
)
def test_lists_of_slicer_3_are_ras(tmp_path, text):
    found = read(tmp_path, text)
    assert found.points.tolist() == RAS
    assert (found.name, found.labels) == ("F", ("A", "B"))


def test_fewer_columns_will_do(tmp_path):
    short = SYSTEM.format("RAS") + "# columns = id,x,y,z\nn_0,1,2,3\nn_1,4,5,6\n"
    assert read(tmp_path, short).points.tolist() == RAS
    assert read(tmp_path, "1,2,3\n4,5,6\n").points.tolist() == RAS


def test_quoted_names_and_points_that_nobody_placed(tmp_path):
    # As Slicer 5.11 writes them.
    rows = (
        '1,-1,-2,3,0,0,0,1,1,1,0,"first, ""q""","d,e",,2,0\n'
        "2,-4,-5,6,0,0,0,1,1,1,0,b,,,2,0\n"
        "3,-4,-5,7,0,0,0,1,1,1,0,u,,,0,0\n"
    )
    found = read(tmp_path, VERSION.format("5.11") + SYSTEM.format("LPS") + COLUMNS + rows)
    assert found.points.tolist() == RAS
    assert found.labels == ('first, "q"', "b")


def test_the_name_of_the_file_says_the_side(tmp_path):
    path = tmp_path / "inside.fcsv"
    path.write_text(VERSION.format("4.10") + SYSTEM.format("0") + COLUMNS + ROWS)
    assert read_annotations([path]).inside[0].points.tolist() == RAS


@pytest.mark.parametrize("row", ["n_0,a,2,3", "n_0,1,2", "n_0,1,nan,3", "solid stl"])
def test_a_row_without_three_numbers_is_named(tmp_path, row):
    with pytest.raises(ShapePriorError, match=r"Line 2 of .*clicks.fcsv"):
        read(tmp_path, f"{COLUMNS}{row}\n")


@pytest.mark.parametrize("system", ["2", "IJK"])
def test_other_systems_are_refused(tmp_path, system):
    with pytest.raises(ShapePriorError, match="unknown coordinate system"):
        read(tmp_path, VERSION.format("4.10") + SYSTEM.format(system) + COLUMNS + ROWS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ShapePriorError, match="does not exist"):
        read_markups(tmp_path / "a.fcsv")
