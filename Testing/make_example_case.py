"""Makes the bundled example case: a shape drawn from the prior, an image, three outlines.

python Testing/make_example_case.py [--prior hippocampus-dals] [--seed 8]

Nothing of any patient is in it: the shape is a random draw of the prior, the image synthetic.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from model_server.cases.simulate import Plane, draw_outlines
from model_server.geometry.labels import distance_field, oriented, voxelize
from model_server.io.markups import Markup, write_markups
from model_server.io.volumes import image_from_array, write_image
from model_server.observations import Volume
from model_server.pose import Pose
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
FOLDER = Path(__file__).parent.parent / "Resources" / "example"
VOLUME_ML = 3.1  # of a grown-up's hippocampus
CENTER = (-26.4, -20.7, -13.8)  # RAS mm: the left one
TURN_DEG = (9.0, -4.0, 6.0)  # rotation vector
SHAPE = (60, 74, 60)  # (K, J, I) voxels of 1 mm
FINE = 4  # sub-voxels along each axis, for the partial volume
# T1-weighted intensities.
FLUID, GRAY, WHITE = 260.0, 620.0, 860.0
NOISE = 22.0


def example_surface(prior: Any, seed: int) -> Surface:
    """A draw of the prior, placed in a patient, RAS mm."""
    shape = oriented(prior.decode(prior.sample(1, seed)[0]))
    scale = float((VOLUME_ML * 1000.0 / shape.volume()) ** (1.0 / 3.0))
    turn = Rotation.from_rotvec(TURN_DEG, degrees=True).as_matrix()
    pose = Pose(np.array(CENTER), scale, turn)
    return Surface(pose.apply(shape.points), shape.triangles)


def image_geometry() -> Array:
    """(4, 4) voxels of 1 mm, LPS axes, the organ a little off the center."""
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0])
    size = np.array(SHAPE[::-1])
    matrix[:3, 3] = np.round(CENTER) + np.array(
        [size[0] / 2 + 3, size[1] / 2 - 2, -size[2] / 2 + 2]
    )
    return matrix


def coverage(surface: Surface, to_ras: Array) -> Array:
    """(K, J, I) share of every voxel that lies inside."""
    fine = to_ras.copy()
    fine[:3, :3] /= FINE
    fine[:3, 3] += to_ras[:3, :3] @ np.full(3, (1.0 / FINE - 1.0) / 2.0)
    inside = voxelize(surface, fine, tuple(FINE * n for n in SHAPE)).astype(np.float64)
    k, j, i = SHAPE
    return inside.reshape(k, FINE, j, FINE, i, FINE).mean(axis=(1, 3, 5))


def synthetic_image(share: Array, rng: np.random.Generator) -> NDArray[np.int16]:
    """An image as T1-weighted MR shows it: gray in white matter, fluid along one side."""
    smooth = [ndimage.gaussian_filter(rng.standard_normal(SHAPE), s) for s in (4.0, 3.0, 14.0)]
    folds, clefts, bias = (f / f.std() for f in smooth)
    gap = distance_field(share > 0.5, np.ones(3))
    # A ribbon of gray matter in the white, fluid in its clefts.
    image = WHITE - (WHITE - GRAY) / (1.0 + np.exp(-4.0 * (folds - 0.4)))
    image = np.where((clefts > 1.5) & (gap > 5.0), FLUID, image)
    # The temporal horn lies above the hippocampus and to its side; elsewhere white matter does.
    k, _, i = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    centroid = np.array(ndimage.center_of_mass(share))
    above = (k - centroid[0]) / 8.0 + (i - centroid[2]) / 14.0 + 0.3 * folds
    rim = np.where(above > 0.55, FLUID + 90.0, WHITE - 30.0)
    near = 1.0 / (1.0 + np.exp((gap - 2.4) / 0.5))
    image = near * rim + (1.0 - near) * image
    image = ndimage.gaussian_filter(image, 0.6)
    texture = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.2)
    organ = GRAY + 25.0 * texture / texture.std()
    image = share * organ + (1.0 - share) * image
    image = image * (1.0 + 0.04 * bias)
    noisy = np.hypot(image + NOISE * rng.standard_normal(SHAPE), NOISE * rng.standard_normal(SHAPE))
    # Four gray levels at a time: noise below that would only make the file larger.
    return (4 * np.round(noisy / 4)).astype(np.int16)


def slice_planes(surface: Surface, volume: Volume) -> list[Plane]:
    """The axial, coronal and sagittal slice nearest the middle of the organ."""
    middle = 0.5 * (surface.points.min(axis=0) + surface.points.max(axis=0))
    place = volume.to_ras(np.round(volume.to_ijk(middle)))
    names = ("sagittal", "coronal", "axial")
    return [Plane(names[axis], place, np.eye(3)[axis]) for axis in (2, 1, 0)]


def main() -> None:
    """Write the case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", default="hippocampus-dals")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--output", type=Path, default=FOLDER)
    chosen = parser.parse_args()
    rng = np.random.default_rng(chosen.seed)
    surface = example_surface(load_prior(chosen.prior, "cpu"), chosen.seed)
    to_ras = image_geometry()
    share = coverage(surface, to_ras)
    image = synthetic_image(share, rng)
    chosen.output.mkdir(parents=True, exist_ok=True)
    write_image(chosen.output / "image.nii.gz", image_from_array(image, to_ras))
    truth = (share > 0.5).astype(np.uint8)
    write_image(chosen.output / "truth.nii.gz", image_from_array(truth, to_ras))
    planes = slice_planes(surface, Volume(image, to_ras))
    for outline in draw_outlines(surface, planes, rng).outlines:
        # Every tenth point of the drawn spline is a control point.
        curves = [
            Markup(outline.name, "ClosedCurve", np.asarray(loop[::10])) for loop in outline.loops
        ]
        write_markups(chosen.output / f"{outline.name}.mrk.json", curves)
    print(f"{surface.volume() / 1000:.2f} ml in {chosen.output}")


if __name__ == "__main__":
    main()
