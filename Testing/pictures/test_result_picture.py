"""The picture of a result: it shows what it should, for any plane, on machines without OpenGL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray

from model_server.cases.simulate import middle_planes, oblique_planes
from model_server.errors import ShapePriorError
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import voxelize
from model_server.geometry.loops import section_loops
from model_server.observations import Observations, PlanarOutline, PointSet, Volume
from model_server.pictures.result import save_picture
from model_server.pictures.slices import Slice, draw_slice, half_width
from model_server.pose import Pose
from model_server.reconstruction import Provenance, Reconstruction, Residual, Surface

Array = NDArray[np.float64]
CENTER = np.array([20.0, -15.0, 30.0])  # RAS mm
RADII = np.array([9.0, 20.0, 12.0])
SIZE = (912, 1632)
VERMILION, GREEN, BLUE = (0.84, 0.37, 0.0), (0.0, 0.62, 0.45), (0.0, 0.45, 0.70)
YELLOW = (0.94, 0.89, 0.26)


@pytest.fixture(scope="module")
def surface() -> Surface:
    unit = icosphere(3)
    return Surface(unit.points * RADII + CENTER, unit.triangles)


def outlined(surface: Surface, planes) -> Observations:
    outlines = []
    for plane in planes:
        loops = section_loops(surface.points, surface.triangles, plane.origin, plane.normal)
        outlines.append(PlanarOutline(plane.name, tuple(loops), plane.origin, plane.normal))
    return Observations(outlines=tuple(outlines))


def result(surface: Surface, observations: Observations) -> Reconstruction:
    return Reconstruction(
        surface=surface,
        template_coordinates=surface.points,
        pose=Pose(CENTER, 20.0),
        latents=np.zeros(3),
        stage="final",
        residuals=tuple(Residual(o.name, "outline", 0.1, 0.4) for o in observations.outlines),
        provenance=Provenance("ellipsoid-pca", "1", "cpu", {"quick look": 0.1}),
        uncertainty_mm=np.full(len(surface.points), 0.5),
    )


@pytest.fixture(scope="module")
def image(surface: Surface) -> Volume:
    to_ras = np.eye(4)
    to_ras[:3, 3] = CENTER - 30.0
    inside = voxelize(surface, to_ras, (61, 61, 61))
    return Volume(np.where(inside, 600, 200).astype(np.int16), to_ras)


def near(picture: Array, color: tuple[float, float, float]) -> int:
    """How many pixels have this color."""
    return int((np.abs(picture[..., :3] - color).max(axis=-1) < 0.12).sum())


def drawn(path: Path, *what) -> Array:
    save_picture(path, *what)
    return imread(path)


def test_size_and_content(surface, image, tmp_path):
    observations = outlined(surface, middle_planes(surface, np.random.default_rng(0)))
    picture = drawn(tmp_path / "a.png", result(surface, observations), observations, image)
    assert picture.shape[:2] == SIZE
    left, right = picture[:, : SIZE[1] // 2], picture[:, SIZE[1] // 2 :]
    assert (left[..., :3].min(axis=-1) < 0.95).mean() > 0.1  # the surface
    for color in (
        VERMILION,
        GREEN,
        BLUE,
    ):  # each outline in its color, on the surface and in its slice
        assert near(left, color) > 400
        assert near(right, color) > 100


def test_what_was_found_is_seen_even_where_it_agrees_with_what_was_drawn(surface, image, tmp_path):
    observations = outlined(surface, middle_planes(surface, np.random.default_rng(0)))
    found = Slice.of(observations.outlines[:1], ["#d55e00"], result(surface, observations))
    alone = replace(found, found=())
    shown = []
    for one in (found, alone):
        axes = Figure().add_subplot()
        draw_slice(axes, one, 40.0, result(surface, observations), image)
        shown.append(axes.get_legend_handles_labels()[1])
    assert shown == [["reconstructed", "drawn"], ["drawn"]]


def test_slices_have_one_scale(surface):
    observations = outlined(surface, middle_planes(surface, np.random.default_rng(0)))
    given = result(surface, observations)
    slices = [Slice.of([outline], ["#d55e00"], given) for outline in observations.outlines]
    half = half_width(slices)
    assert half == pytest.approx(RADII.max(), abs=10.0)
    for one in slices:
        axes = Figure().add_subplot()
        draw_slice(axes, one, half, given, None)
        assert np.ptp(axes.get_xlim()) == pytest.approx(2 * half)
        assert np.ptp(axes.get_ylim()) == pytest.approx(2 * half)
        (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for line in axes.get_lines():
            x, y = np.asarray(line.get_data(), dtype=float)
            assert low < x.min() <= x.max() < high
            assert bottom < y.min() <= y.max() < top


def test_oblique_planes_show_the_image_too(surface, image, tmp_path):
    planes = oblique_planes(surface, np.random.default_rng(3))
    observations = outlined(surface, planes)
    picture = drawn(tmp_path / "a.png", result(surface, observations), observations, image)
    blank = drawn(tmp_path / "b.png", result(surface, observations), observations)
    assert near(picture, VERMILION) > 400
    assert np.abs(picture - blank)[..., :3].max(axis=-1).mean() > 0.05


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_planes(surface, tmp_path, count):
    planes = oblique_planes(surface, np.random.default_rng(1), count)
    observations = outlined(surface, planes)
    picture = drawn(tmp_path / "a.png", result(surface, observations), observations)
    assert picture.shape[:2] == SIZE
    assert near(picture, VERMILION) > 100


def test_points_alone(surface, tmp_path):
    observations = Observations(boundary=(PointSet(surface.points[::40], "clicks"),))
    picture = drawn(tmp_path / "a.png", result(surface, observations), observations)
    assert near(picture[:, : SIZE[1] // 2], YELLOW) > 100


def test_a_plane_that_misses_the_surface(surface, image, tmp_path):
    observations = outlined(surface, middle_planes(surface, np.random.default_rng(0)))
    moved = Surface(surface.points + np.array([0.0, 100.0, 0.0]), surface.triangles)
    picture = drawn(tmp_path / "a.png", result(moved, observations), observations, image)
    assert near(picture, VERMILION) > 50


def test_an_unwritable_place_is_a_sentence(surface, tmp_path):
    observations = Observations()
    with pytest.raises(ShapePriorError, match="cannot be written"):
        save_picture(tmp_path / "no" / "a.png", result(surface, observations), observations)
