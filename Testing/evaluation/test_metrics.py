"""Each metric against a case that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from analytic_surfaces import box, ellipsoid, sphere

from model_server.errors import ShapePriorError
from model_server.evaluation import metrics
from model_server.evaluation.metrics import Truth
from model_server.geometry.labels import voxelize
from model_server.observations import Volume
from model_server.reconstruction import Surface

ANISOTROPIC = np.array([0.7, 0.9, 3.0])


@pytest.fixture(scope="module")
def ball() -> Truth:
    """A ball of 20 mm radius, voxelized anisotropically."""
    return Truth.from_surface(sphere(20.0), ANISOTROPIC)


def test_concentric_spheres_are_as_far_apart_as_their_radii(ball: Truth) -> None:
    distances = metrics.surface_distances(sphere(22.0), ball)
    assert distances.assd() == pytest.approx(2.0, abs=0.02)
    assert distances.percentile(95) == pytest.approx(2.0, abs=0.02)
    assert distances.largest_mm == pytest.approx(2.0, abs=0.02)
    assert distances.nsd(2.05) == 1.0
    assert distances.nsd(1.9) == 0.0


def test_hausdorff_of_a_shifted_sphere_is_the_shift(ball: Truth) -> None:
    distances = metrics.surface_distances(sphere(20.0, (0, 0, 5.0)), ball)
    assert distances.largest_mm == pytest.approx(5.0, abs=0.02)
    # |distance| is about 5 |cos(polar angle)|, uniform over the sphere: mean 2.5.
    assert distances.assd() == pytest.approx(2.5, abs=0.06)
    # Within 2 mm: |cos| < 0.4, a band of 40 % of the area.
    assert distances.nsd(2.0) == pytest.approx(0.4, abs=0.02)
    # 95th percentile of 5 |cos|: 4.75.
    assert distances.percentile(95) == pytest.approx(4.75, abs=0.1)


def test_hausdorff_sees_a_single_spike(ball: Truth) -> None:
    spiky = sphere(20.0)
    top = int(np.argmax(spiky.points[:, 2]))
    spiky.points[top] *= 1.5
    distances = metrics.surface_distances(spiky, ball)
    assert distances.largest_mm == pytest.approx(10.0, abs=0.02)
    assert distances.percentile(95) < 0.1


def test_nsd_weighs_both_surfaces_by_area() -> None:
    """A far second sphere adds to the found surface alone."""
    truth = Truth.from_surface(sphere(20.0, level=4), np.ones(3))
    extra = sphere(10.0, (100.0, 0, 0), level=4)
    both = Surface(
        np.vstack([truth.surface.points, extra.points]),
        np.vstack([truth.surface.triangles, extra.triangles + len(truth.surface.points)]),
    )
    # Areas 4, 1 (found) and 4 (truth): 8 of 9 parts lie within the tolerance.
    assert metrics.surface_distances(both, truth).nsd(1.0) == pytest.approx(8 / 9, abs=0.005)


def test_dice_of_shifted_cubes_is_their_overlap_in_voxels() -> None:
    array = np.zeros((30, 30, 30), dtype=np.uint8)
    array[10:20, 10:20, 10:20] = 1
    geometry = np.diag([0.5, 1.0, 2.0, 1.0])  # anisotropic: 10 voxels are 5 x 10 x 20 mm
    label = Volume(array, geometry)
    low, high = np.array([9.5, 9.5, 9.5]), np.array([19.5, 19.5, 19.5])
    cube = box(1.0)

    def cuboid(shift_voxels: float) -> Surface:
        ijk = low + (cube.points + 0.5) * (high - low) + [0, shift_voxels, 0]
        return Surface(label.to_ras(ijk), cube.triangles)

    assert metrics.dice(cuboid(0.0), label) == 1.0
    assert metrics.dice(cuboid(4.0), label) == pytest.approx(0.6)
    assert metrics.dice(cuboid(40.0), label) == 0.0


def test_dice_counts_what_lies_outside_the_volume() -> None:
    array = np.zeros((10, 10, 10), dtype=np.uint8)
    array[:, :, 5:] = 1  # i 5..9: the organ reaches the border
    label = Volume(array, np.eye(4))
    cube = box(1.0)
    low, high = np.array([4.5, -0.5, -0.5]), np.array([14.5, 9.5, 9.5])
    twice = Surface(low + (cube.points + 0.5) * (high - low), cube.triangles)
    assert metrics.dice(twice, label) == pytest.approx(2 * 500 / (1000 + 500))


def test_dice_in_an_oblique_geometry() -> None:
    """Turning the world turns surface and voxels alike: nothing changes."""
    angle = np.deg2rad(30)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    truth = Truth.from_surface(ellipsoid((20, 12, 9)), ANISOTROPIC)
    found = ellipsoid((18, 12, 11), (2, 0, 1))
    geometry = truth.label.ijk_to_ras.copy()
    geometry[:3] = turn @ geometry[:3]
    turned = Volume(truth.label.array, geometry)
    straight = metrics.dice(found, truth.label)
    assert 0.5 < straight < 0.95
    oblique = metrics.dice(Surface(found.points @ turn.T, found.triangles), turned)
    assert oblique == pytest.approx(straight, abs=2e-3)


def test_dice_of_concentric_balls_is_that_of_their_volumes(ball: Truth) -> None:
    inner, outer = 18.0**3, 20.0**3
    expected = 2 * inner / (inner + outer)
    assert metrics.dice(sphere(18.0), ball.label) == pytest.approx(expected, abs=0.01)


def test_chamfer_of_concentric_spheres(ball: Truth) -> None:
    """1.1 times the unit sphere: 0.01 each way, and the sampling floor on top."""
    scores = metrics.measure(sphere(22.0), ball, 1.0)
    assert scores["chamfer_exact"] == pytest.approx(0.02, rel=0.02)
    assert scores["chamfer"] == pytest.approx(0.02, rel=0.02)
    assert scores["hausdorff"] == pytest.approx(0.1, rel=0.02)


def test_the_sampling_floor_of_chamfer_is_what_is_documented() -> None:
    truth = Truth.from_surface(sphere(20.0), np.array([2.0, 2.0, 2.0]))
    scores = metrics.measure(truth.surface, truth, 1.0)
    # n samples on 4 pi: the mean squared distance to the nearest is 4 pi / (pi n), twice.
    assert scores["chamfer"] == pytest.approx(2 * 4 / metrics.PAPER_SAMPLES, rel=0.05)
    assert scores["chamfer_exact"] < 1e-9


def test_the_papers_frame_is_centered_and_contained_in_the_unit_sphere() -> None:
    surface = ellipsoid((30, 12, 9), (100, -50, 3))
    center, radius = metrics.paper_frame(surface)
    assert center == pytest.approx([100, -50, 3], abs=0.1)
    assert radius == pytest.approx(30, rel=1e-3)
    assert np.linalg.norm((surface.points - center) / radius, axis=1).max() == pytest.approx(1.0)


def test_f_scores_turn_at_their_thresholds(ball: Truth) -> None:
    """Thresholds are 1 % and 2 % of the diameter: 0.4 and 0.8 mm on a ball of 20 mm radius."""
    close = metrics.paper_scores(sphere(20.2), ball)
    between = metrics.paper_scores(sphere(20.6), ball)
    beyond = metrics.paper_scores(sphere(21.0), ball)
    assert close["f1_percent"] > 99.9
    assert between["f1_percent"] < 0.1
    assert between["f2_percent"] > 99.9
    assert beyond["f2_percent"] < 0.1


def test_f_score_is_the_harmonic_mean() -> None:
    found = np.array([0.0, 0.0, 0.0, 1.0])  # precision 0.75
    truth = np.array([0.0, 1.0])  # recall 0.5
    assert metrics.f_score(found, truth, 0.5) == pytest.approx(60.0)
    assert metrics.f_score(np.ones(3), np.ones(3), 0.5) == 0.0


def test_quality_of_known_triangles() -> None:
    points = np.array(
        [[0, 0, 0], [1, 0, 0], [0.5, np.sqrt(3) / 2, 0], [0, 1, 0], [2, 0, 0]], dtype=float
    )
    triangles = np.array([[0, 1, 2], [0, 1, 3], [0, 1, 4]], dtype=np.int32)
    quality = metrics.triangle_quality(Surface(points, triangles))
    # Equilateral; right isosceles 4 sqrt(3) 0.5 / (1 + 1 + 2); flat.
    assert quality == pytest.approx([1.0, np.sqrt(3) / 2, 0.0])


def test_self_intersections_of_interpenetrating_spheres() -> None:
    first, second = sphere(10.0, level=3), sphere(10.0, (12.0, 0.1, 0.2), level=3)
    both = Surface(
        np.vstack([first.points, second.points]),
        np.vstack([first.triangles, second.triangles + len(first.points)]).astype(np.int32),
    )
    assert metrics.self_intersections(first) == 0.0
    # The circle where they meet has radius 8: both meshes are cut along it, and only there.
    height = np.abs(both.corners()[..., 0] - 6.0).min(axis=1)
    assert 1.0 < metrics.self_intersections(both) <= 100.0 * np.mean(height < 1.6)


def test_self_intersections_of_a_single_fold() -> None:
    """One vertex pushed through the far side: its faces and those they pierce."""
    folded = sphere(10.0, level=2)
    folded.points[0] = -1.3 * folded.points[0]
    share = metrics.self_intersections(folded) * len(folded.triangles) / 100.0
    assert 6 <= share <= 20


def test_metrics_do_not_depend_on_the_mesh(ball: Truth) -> None:
    fine = metrics.measure(sphere(21.0, (1, 0, 0), level=6), ball, 1.0, paper=False)
    coarse = metrics.measure(sphere(21.0, (1, 0, 0), level=4), ball, 1.0, paper=False)
    for name in ("dice", "nsd", "assd_mm", "hd95_mm"):
        assert coarse[name] == pytest.approx(fine[name], rel=0.03), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_reference_library_approaches_ours_as_voxels_shrink() -> None:
    """DeepMind's surface-distance measures between voxel staircases, too close by part of a
    voxel; ours is between the surfaces that the voxels came from."""
    library = pytest.importorskip("surface_distance")
    found = ellipsoid((22, 14, 10), (0, 1.5, 0.5))
    gaps = []
    for spacing in (np.array([0.5, 0.5, 1.0]), np.array([0.2, 0.2, 0.3])):
        truth = Truth.from_surface(ellipsoid((20, 14, 10)), spacing, margin_mm=4.0)
        mask = voxelize(found, truth.label.ijk_to_ras, truth.label.array.shape)
        theirs = library.compute_surface_distances(
            np.asarray(truth.label.array), mask, spacing_mm=tuple(spacing[::-1])
        )
        ours = metrics.surface_distances(found, truth)
        nsd = [library.compute_surface_dice_at_tolerance(theirs, t) - ours.nsd(t) for t in (1.3,)]
        robust = ours.percentile(95) - library.compute_robust_hausdorff(theirs, 95)
        assd = ours.assd() - np.mean(library.compute_average_surface_distance(theirs))
        gaps.append(np.array([*nsd, robust, assd]))
    coarse, fine = gaps
    assert np.all(fine > 0)
    assert np.all(fine < 0.7 * coarse)
    assert np.all(fine < [0.08, 0.15, 0.15])


def test_truth_from_a_label_keeps_the_largest_part() -> None:
    array = np.zeros((30, 30, 40), dtype=np.uint8)
    array[8:20, 8:20, 8:20] = 2
    array[8:12, 8:12, 30:33] = 1
    truth = Truth.from_label(Volume(array, np.eye(4)))
    assert np.count_nonzero(truth.label.array) == 12**3
    assert truth.surface.points[:, 0].max() < 21
    assert metrics.dice(truth.surface, truth.label) > 0.97


@pytest.mark.parametrize("broken", ["empty", "nan"])
def test_a_broken_surface_is_refused(ball: Truth, broken: str) -> None:
    surface = sphere(20.0, level=2)
    if broken == "empty":
        surface = Surface(surface.points, np.empty((0, 3), dtype=np.int32))
    else:
        surface.points[3, 1] = np.nan
    with pytest.raises(ShapePriorError, match="no triangles"):
        metrics.measure(surface, ball, 1.0)


def test_the_same_surfaces_always_score_the_same(ball: Truth) -> None:
    again = Truth(ball.surface, ball.label)
    found = sphere(21.0, (1, 0, 0))
    assert metrics.measure(found, ball, 1.0) == metrics.measure(found, again, 1.0)
