"""Training surfaces in the canonical frame, however their labels are stored."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from analytic_surfaces import ellipsoid
from scipy.spatial import cKDTree

from model_server.cases.canonical import canonical_shapes, load_surfaces
from model_server.cases.splits import Case, split_cases
from model_server.geometry.labels import spline_surface, surface_from_label
from model_server.io.volumes import read_volume
from model_server.reconstruction import Surface


def shape(index: int) -> Surface:
    first, second, third = 1 + 0.1 * np.sin([index, 2.0 * index, 3.0 * index])
    return ellipsoid((7 * first, 20 * second, 8 * third), level=3)


def test_canonical_shapes_lead_back_to_their_patients():
    surfaces = [shape(i) for i in range(5)]
    surfaces[2] = Surface(surfaces[2].points + np.array([40.0, -10.0, 5.0]), surfaces[2].triangles)
    cases = [Case(str(i), None, "right" if i % 2 else "left") for i in range(5)]
    shapes = canonical_shapes(cases, surfaces, mirrors=True)
    for index, surface in enumerate(surfaces):
        assert np.allclose(shapes.patient_surface(index).points, surface.points, atol=1e-9)
        assert np.linalg.norm(shapes.surfaces[index].points, axis=1).max() < 1.0
        assert shapes.poses[index].mirrored == bool(index % 2)


@pytest.mark.parametrize("code", ["RAS", "PIL", "SAR", "flipped", "shifted"])
def test_the_same_label_stored_otherwise_is_the_same_shape(hippocampus, tmp_path, code):
    image = hippocampus(0)
    if code == "flipped":  # a left-handed header
        other = sitk.Flip(image, (True, False, False))
    elif code == "shifted":
        other = sitk.ConstantPad(image, (3, 0, 7), (1, 5, 0))
    else:
        other = sitk.DICOMOrient(image, code)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    sitk.WriteImage(other, str(tmp_path / "b.nrrd"))
    first, second = (read_volume(tmp_path / f"{name}.nrrd") for name in "ab")
    for surface_of in (surface_from_label, spline_surface):
        one, two = surface_of(first), surface_of(second)
        # Marching cubes cut ambiguous cells by the order of the axes.
        assert two.volume() == pytest.approx(one.volume(), rel=2e-3)
        assert cKDTree(one.points).query(two.points)[0].max() < 0.02


def test_canonical_shapes_do_not_depend_on_how_labels_are_stored(shapes, hippocampus, tmp_path):
    for index in range(5):
        sitk.WriteImage(hippocampus(index), str(tmp_path / f"case_{index}.nrrd"))
    mixed, plain = (
        canonical_shapes(cases, load_surfaces(cases), mirrors=False)
        for cases in (
            tuple(sorted(s.training + s.validation, key=lambda c: c.name))
            for s in (split_cases(shapes), split_cases(tmp_path))
        )
    )
    assert mixed.rms_radius == pytest.approx(plain.rms_radius, rel=1e-3)
    for one, two, pose, other in zip(
        mixed.surfaces, plain.surfaces, mixed.poses, plain.poses, strict=True
    ):
        gap = cKDTree(two.points).query(one.points)[0].max()
        assert gap * pose.scale < 0.1  # mm
        np.testing.assert_allclose(pose.translation, other.translation, atol=0.05)
        np.testing.assert_allclose(pose.rotation, other.rotation, atol=5e-3)
