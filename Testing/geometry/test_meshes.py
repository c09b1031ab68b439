"""Closest points, sections, icospheres, remeshing and triangle quality."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.geometry.closest import closest_on_mesh, closest_on_triangles
from model_server.geometry.icosphere import icosphere, uniform_laplacian
from model_server.geometry.quality import quality_gradient
from model_server.geometry.remesh import carry_over, remesh
from model_server.geometry.sections import nearest_on_segments, plane_section
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
OBLIQUE = np.array([0.36, -0.48, 0.8])


def ellipsoid(radii: tuple[float, float, float] = (7.0, 20.0, 8.0), level: int = 3) -> Surface:
    """An ellipsoid around the origin, mm."""
    sphere = icosphere(level)
    return Surface(sphere.points * np.array(radii), sphere.triangles)


def mean_quality(surface: Surface) -> float:
    """Mean of 4 sqrt(3) A / (a^2 + b^2 + c^2)."""
    a, b, c = surface.corners().transpose(1, 0, 2)
    area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
    edges = ((b - a) ** 2 + (c - b) ** 2 + (a - c) ** 2).sum(axis=1)
    return float((4.0 * np.sqrt(3.0) * area / edges).mean())


def as_trimesh(surface: Surface) -> trimesh.Trimesh:
    """The same mesh, for its checks."""
    return trimesh.Trimesh(surface.points, surface.triangles, process=False)


# --- closest points -------------------------------------------------------------------------


def test_closest_points_of_a_mesh_are_those_of_trimesh() -> None:
    surface = ellipsoid()
    points = np.random.default_rng(0).uniform(-25.0, 25.0, (300, 3))
    triangle, weights, distance = closest_on_mesh(surface, points)
    _, expected, _ = trimesh.proximity.closest_point(as_trimesh(surface), points)
    # Deep inside, near the medial axis, a farther triangle may win; the distance is what counts.
    assert distance == pytest.approx(expected, abs=0.05)
    place = (weights[..., None] * surface.corners()[triangle]).sum(axis=1)
    assert np.linalg.norm(place - points, axis=1) == pytest.approx(distance)


def test_closest_points_of_points_near_a_mesh_are_exact() -> None:
    surface = ellipsoid()
    rng = np.random.default_rng(1)
    points = surface.corners().mean(axis=1) + rng.normal(0.0, 0.3, (len(surface.triangles), 3))
    _, expected, _ = trimesh.proximity.closest_point(as_trimesh(surface), points)
    assert closest_on_mesh(surface, points)[2] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "corners", [[[0, 0, 0], [0, 0, 0], [6, 0, 0]], [[0, 0, 0], [2, 0, 0], [6, 0, 0]]]
)
def test_of_a_flat_triangle_an_edge_is_closest(corners: list[list[float]]) -> None:
    points = np.random.default_rng(5).uniform(-2.0, 8.0, (200, 3))
    flat = np.broadcast_to(np.array(corners, dtype=float), (200, 3, 3))
    weights = closest_on_triangles(points, flat)
    found = np.einsum("nc,nci->ni", weights, flat)
    assert found[:, 0] == pytest.approx(np.clip(points[:, 0], 0.0, 6.0))
    assert np.abs(found[:, 1:]).max() < 1e-12


def test_no_point_of_a_triangle_is_closer_than_the_closest() -> None:
    rng = np.random.default_rng(2)
    corners, points = rng.normal(size=(200, 3, 3)), rng.normal(0.0, 2.0, (200, 3))
    weights = closest_on_triangles(points, corners)
    assert weights.sum(axis=1) == pytest.approx(1.0)
    assert weights.min() > -1e-9
    found = np.linalg.norm((weights[..., None] * corners).sum(axis=1) - points, axis=1)
    tried = rng.dirichlet(np.full(3, 0.5), 4000)
    brute = np.linalg.norm(np.einsum("tk,nkc->ntc", tried, corners) - points[:, None], axis=2).min(
        axis=1
    )
    assert (found <= brute + 1e-9).all()
    assert (brute - found).max() < 0.2


# --- sections -------------------------------------------------------------------------------


@pytest.mark.parametrize("normal", [np.array([0.0, 0.0, 1.0]), OBLIQUE])
def test_section_ends_lie_in_the_plane_and_on_the_edges(normal: Array) -> None:
    surface = ellipsoid()
    origin = np.array([0.5, 1.5, -0.7])
    section = plane_section(surface.points, surface.triangles, origin, normal)
    assert len(section.triangles) > 20
    assert np.abs((section.ends - origin) @ normal).max() < 1e-9
    assert section.weights.min() >= 0
    assert section.weights.max() <= 1
    a, b = surface.points[section.edges[..., 0]], surface.points[section.edges[..., 1]]
    share = section.weights[..., None]
    assert section.ends == pytest.approx((1 - share) * a + share * b)
    for triangle, edges in zip(section.triangles, section.edges, strict=True):
        assert set(edges.ravel()) == set(surface.triangles[triangle])


def test_an_oblique_section_is_as_long_as_that_of_trimesh() -> None:
    surface = ellipsoid()
    section = plane_section(surface.points, surface.triangles, np.zeros(3), OBLIQUE)
    length = np.linalg.norm(section.ends[:, 1] - section.ends[:, 0], axis=1).sum()
    path = as_trimesh(surface).section(plane_origin=np.zeros(3), plane_normal=OBLIQUE)
    assert length == pytest.approx(path.length, rel=1e-6)


def test_a_section_through_vertices_has_no_lone_ends() -> None:
    surface = ellipsoid((10.0, 10.0, 10.0), level=2)  # its equator runs through vertices
    section = plane_section(
        surface.points, surface.triangles, np.zeros(3), np.array([0.0, 0.0, 1.0])
    )
    edges = np.sort(section.edges.reshape(-1, 2), axis=1)
    _, count = np.unique(edges, axis=0, return_counts=True)
    assert (count == 2).all()


def test_a_plane_that_misses_the_mesh_cuts_nothing() -> None:
    surface = ellipsoid()
    section = plane_section(surface.points, surface.triangles, np.array([0, 0, 50.0]), OBLIQUE)
    assert section.ends.shape == (0, 2, 3)


def test_the_nearest_point_on_segments_is_the_densely_sampled_one() -> None:
    rng = np.random.default_rng(3)
    ends, queries = rng.normal(size=(30, 2, 3)), rng.normal(0.0, 2.0, (50, 3))
    segment, share, distance = nearest_on_segments(queries, ends)
    at = np.linspace(0.0, 1.0, 2001)[:, None]
    dense = ends[:, None, 0] * (1 - at) + ends[:, None, 1] * at
    gap = np.linalg.norm(queries[:, None, None] - dense[None], axis=3)
    assert distance == pytest.approx(gap.min(axis=(1, 2)), abs=1e-3)
    place = ends[segment, 0] * (1 - share)[:, None] + ends[segment, 1] * share[:, None]
    assert np.linalg.norm(place - queries, axis=1) == pytest.approx(distance)


# --- remeshing ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remeshed() -> tuple[Surface, Surface]:
    """A stretched ellipsoid before and after."""
    before = ellipsoid(level=4)
    return before, remesh(before)


def test_remeshing_keeps_the_volume(remeshed: tuple[Surface, Surface]) -> None:
    before, after = remeshed
    assert after.volume() == pytest.approx(before.volume(), rel=0.01)


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_a_degenerate_surface_is_refused(bad: float) -> None:
    before = ellipsoid()
    with pytest.raises(ShapePriorError, match="degenerate"):
        remesh(Surface(before.points * bad, before.triangles))


def test_a_remeshed_surface_is_closed_and_of_even_triangles(
    remeshed: tuple[Surface, Surface],
) -> None:
    before, after = remeshed
    mesh = as_trimesh(after)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2
    assert mean_quality(after) >= 0.97
    assert mean_quality(after) > mean_quality(before)


def test_linear_values_are_carried_over(remeshed: tuple[Surface, Surface]) -> None:
    before, after = remeshed
    slope = np.array([[0.5, 2.0], [-1.0, 0.3], [0.7, 0.1]])
    carried = carry_over(before, before.points @ slope + 3.0, after.points)
    # Closest points differ from the new vertices by the facets' height.
    assert carried == pytest.approx(after.points @ slope + 3.0, abs=0.1)
    same = carry_over(before, before.points @ slope, before.points)
    assert same == pytest.approx(before.points @ slope, abs=1e-9)


# --- icosphere ------------------------------------------------------------------------------


def test_the_icosphere_is_a_unit_sphere_turned_outward() -> None:
    for level in (0, 2, 4):
        sphere = icosphere(level)
        assert len(sphere.points) == 10 * 4**level + 2
        assert np.linalg.norm(sphere.points, axis=1) == pytest.approx(1.0)
        assert sphere.volume() > 0
    assert icosphere(4).volume() == pytest.approx(4 / 3 * np.pi, rel=0.01)


@pytest.mark.parametrize("level", [0, 1, 4])
def test_the_icosphere_is_numbered_as_that_of_trimesh(level: int) -> None:
    """The vertices of trained priors are: their parts and templates go by these numbers."""
    ours, theirs = icosphere(level), trimesh.creation.icosphere(subdivisions=level)
    assert np.array_equal(ours.triangles, theirs.faces)
    assert ours.points == pytest.approx(np.array(theirs.vertices), abs=1e-12)


def test_the_laplacian_is_symmetric_and_positive_semidefinite() -> None:
    laplacian = uniform_laplacian(2).toarray()
    assert np.abs(laplacian - laplacian.T).max() < 1e-12
    values = np.linalg.eigvalsh(laplacian)
    assert values[0] == pytest.approx(0.0, abs=1e-9)
    assert values[1] > 1e-3  # connected: one null vector only
    assert np.abs(laplacian @ np.ones(len(laplacian))).max() < 1e-9


# --- quality --------------------------------------------------------------------------------


def test_the_quality_gradient_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(4)
    surface = ellipsoid(level=1)
    surface = Surface(surface.points + rng.normal(0.0, 0.5, surface.points.shape),
                      surface.triangles)  # fmt: skip
    gradient = quality_gradient(surface)
    step = 1e-5
    for vertex in (0, 7, 23):
        for axis in range(3):
            losses = []
            for sign in (1.0, -1.0):
                points = surface.points.copy()
                points[vertex, axis] += sign * step
                losses.append(1.0 - mean_quality(Surface(points, surface.triangles)))
            slope = (losses[0] - losses[1]) / (2 * step)
            assert gradient[vertex, axis] == pytest.approx(slope, abs=1e-7)
    assert np.abs(gradient).max() > 1e-4
