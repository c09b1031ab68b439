"""Label volumes to train on: shapes drawn from the bundled quick look of the hippocampus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model_server.geometry.labels import voxelize
from model_server.io.volumes import geometry_around, image_from_array
from model_server.pose import Pose
from model_server.priors.registry import BUNDLED_ZOO, load_prior
from model_server.reconstruction import Surface

QUICK = "hippocampus-pca"
Draw = Callable[[int], sitk.Image]


@pytest.fixture(scope="session")
def hippocampus() -> Draw:
    """``hippocampus(k)``: the label image of the k-th random shape; 1 in front, 2 behind."""
    if not (BUNDLED_ZOO / QUICK / "prior.json").is_file():
        pytest.skip(f"'{QUICK}' is not in the zoo")
    prior = load_prior(QUICK, "cpu")
    latents = 0.7 * prior.sample(8, seed=3)

    def draw(index: int) -> sitk.Image:
        shape = prior.decode(latents[index])
        pose = Pose(np.array([20.0 + index, -15.0, 5.0]), 28.0 + index)
        surface = Surface(pose.apply(shape.points), shape.triangles)
        geometry = geometry_around(surface, 1.0, 4.0)
        inside = voxelize(surface, geometry.ijk_to_ras, geometry.shape)
        kji = np.stack(np.indices(inside.shape)[::-1], axis=-1).astype(np.float64)
        ahead = (kji @ geometry.ijk_to_ras[:3, :3].T + geometry.ijk_to_ras[:3, 3])[..., 1] > -15.0
        parts = np.where(ahead, 1, 2) * inside
        return image_from_array(parts.astype(np.uint8), geometry.ijk_to_ras)

    return draw


@pytest.fixture(scope="session")
def shapes(hippocampus: Draw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five label volumes, as hospitals have them: formats and orientations mixed."""
    folder = tmp_path_factory.mktemp("shapes")
    endings = (".nii", ".nii.gz", ".nrrd", ".mha", ".seg.nrrd")
    axes = ("LPS", "RAS", "PIL", "ASR", "LAI")
    for index, (ending, code) in enumerate(zip(endings, axes, strict=True)):
        image = sitk.DICOMOrient(hippocampus(index), code)
        sitk.WriteImage(image, str(folder / f"case_{index}{ending}"))
    return folder
