"""A reader that takes no training: what is bright is the organ. Its card and weights are those of a
tiny network; tests of everything around networks let it be read by brightness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from model_server.errors import ShapePriorError
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import distance_field
from model_server.imaging.familiar import FIGURES, figures_of
from model_server.imaging.files import pack_network
from model_server.imaging.intensities import Intensities
from model_server.imaging.meshnet import LEVEL, MeshNet, MeshNetShape
from model_server.imaging.reader import ImageReader
from model_server.imaging.region import Frame, Region, read_region
from model_server.observations import Observations, Volume
from model_server.priors.card import PriorCard, save_prior
from model_server.reading import ImageReading, Structure
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
NAME = "hippocampus-meshnet"
MODALITY = "T1-weighted MR"
PARTS = ("anterior", "posterior")
FRAME = Frame((24, 40, 24), 1.5)
NETWORK = MeshNetShape(FRAME, ("hippocampus", *PARTS), (4, 4, 4, 4), (8, 8, 8), 1)
BRIGHT, DARK, NOISE = 300.0, 100.0, 10.0
DOUBT_MM = 0.6
VARIANCES = (0.01, 0.1, 0.3, 0.3, 0.5, 0.1, 0.1)  # of the figures of images that are known
MARGIN_MM = 12.0


def ellipsoid_image(
    center: Array,
    radii: Array,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    axes: Array | None = None,
    dtype: str = "<i2",
) -> Volume:
    """A bright ellipsoid on dark ground, with noise.

    Args:
        center, radii: (3,) mm along R, A, S.
        spacing: mm along i, j, k.
        axes: (3, 3) directions of i, j, k as columns; by default R, A, S.
        dtype: of the voxels.
    """
    axes = np.eye(3) if axes is None else axes
    half = np.linalg.norm(np.abs(axes).T @ np.diag(radii), axis=1) + MARGIN_MM
    count = np.maximum(np.ceil(2.0 * half / spacing).astype(int), 2)
    matrix = np.eye(4)
    matrix[:3, :3] = axes * np.array(spacing)
    matrix[:3, 3] = center - matrix[:3, :3] @ (0.5 * (count - 1.0))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in count], indexing="ij"), axis=-1)
    places = index @ matrix[:3, :3].T + matrix[:3, 3]
    level = np.linalg.norm((places - center) / radii, axis=-1)
    share = (level <= 1.0).astype(np.float64)
    noise = NOISE * np.random.default_rng(0).standard_normal(share.shape)
    values = DARK + (BRIGHT - DARK) * share + noise
    return Volume(values.T.astype(dtype), matrix, "ellipsoid.nii.gz")


def read_by_brightness(
    self: ImageReader,
    image: Volume,
    center: Array,
    observations: Observations | None = None,
    meshes: bool = False,
) -> ImageReading:
    """Stands for ``ImageReader.read``."""
    region = self.frame.at(center)
    values, known = read_region(image, region)
    if not known.any():
        raise ShapePriorError("It does not reach there.", "Choose another.", "no-overlap")
    inside = (values > 0.5 * (BRIGHT + DARK)) & (known > 0)
    distance = np.full(values.shape, 20.0)
    if inside.any():
        distance = distance_field(inside, np.full(3, self.frame.spacing))
        distance = ndimage.gaussian_filter(distance, 0.7)
    structures: tuple[Structure, ...] = ()
    if meshes and inside.any():
        structures = _structures(distance, region, inside)
    return ImageReading(
        reader=self.card.name,
        origin=region.origin,
        spacing=self.frame.spacing,
        distance=distance.astype(np.float32),
        doubt=np.where(known > 0, DOUBT_MM, 20.0).astype(np.float32),
        inside=inside.astype(np.float32),
        image=Intensities().normalized(values, known),
        known=known > 0,
        alike_mm=4.0,
        structures=structures,
        prompted=observations is not None,
    )


def _structures(distance: Array, region: Region, inside: Array) -> tuple[Structure, ...]:
    """The whole, along rays from its middle, and two parts of it that overlap a little."""
    sphere = icosphere(LEVEL)
    middle = np.argwhere(inside).mean(axis=0)
    steps = np.linspace(0.0, max(inside.shape), 200)
    rays = middle + steps[:, None, None] * sphere.points
    seen = ndimage.map_coordinates(distance, rays.reshape(-1, 3).T, order=1, cval=20.0)
    first = np.argmax(seen.reshape(rays.shape[:2]) >= 0, axis=0)
    points = region.to_ras(middle + steps[first][:, None] * sphere.points)
    at = region.to_ras(middle)[1]
    front = points.copy()
    front[:, 1] = np.maximum(points[:, 1], at - 1.0)
    back = points.copy()
    back[:, 1] = np.minimum(points[:, 1], at + 1.0)
    return tuple(
        Structure(name, Surface(p, sphere.triangles))
        for name, p in zip(NETWORK.structures, (points, front, back), strict=True)
    )


def write_reader(zoo: Path, image: Volume, center: Array) -> Path:
    """The reader's folder in a zoo.

    Args:
        zoo: made where it is missing.
        image: of the kind that it knows.
        center: (3,) RAS mm, of the organ in it.
    """
    torch.manual_seed(0)
    card = PriorCard(NAME, "hippocampus", "meshnet", licence="none: a test's")
    network = MeshNet(NETWORK)
    told = {
        "network": NETWORK.told(),
        "modality": MODALITY,
        "doubt": {"scale": 1.0, "floor": 0.2, "alike_mm": 4.0},
        "part_names": {str(n): name for n, name in enumerate(PARTS, start=1)},
        "radius_mm": [8.0, 14.0],
        "annotation_extent_mm": [15.0, 60.0],
    }
    card = PriorCard(**{**card.__dict__, "hyperparameters": told})
    figures = figures_of(read_by_brightness(ImageReader(card, network), image, center))
    assert figures is not None
    assert len(figures) == len(FIGURES)
    told["familiar"] = {
        "mean": figures.tolist(),
        "covariance": np.diag(VARIANCES).tolist(),
        "limit": 6.0,
        "misfit": 4.0,
        "misfit_mm": 2.0,
    }
    save_prior(zoo / NAME, card, pack_network(network))
    return zoo / NAME
