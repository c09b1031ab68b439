"""Images with their labels, on the grid of a network's region: what image readers learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.cases.splits import Case
from model_server.errors import ShapePriorError
from model_server.geometry.labels import distance_field, largest_component
from model_server.imaging.region import Frame, Region, on_voxels, read_region
from model_server.io.volumes import read_volume
from model_server.observations import Volume
from model_server.training.progress import Progress

Half = NDArray[np.float16]
FAR_MM = 12.0  # distances are told no farther, if not asked for


@dataclass(frozen=True)
class ImageCase:
    """One image with its label.

    Attributes:
        name: of the case.
        image: (X, Y, Z) as it is, on the grid of the region around the volume's center.
        known: the same shape, where the volume is.
        distances: (S, X, Y, Z) mm to the surface of every structure, negative inside.
    """

    name: str
    image: NDArray[np.float32]
    known: NDArray[np.bool_]
    distances: Half


@dataclass(frozen=True)
class Structure:
    """What a network tells: its name, and the label values that are it."""

    name: str
    values: tuple[int, ...]


def image_of(case: Case) -> Volume:
    """The image of a case.

    Raises:
        ShapePriorError: there is none, or it is unreadable.
    """
    found = case.image()
    if found is None:
        raise ShapePriorError(
            f"There is no image of '{case.name}'.",
            f"Put '{case.path.name}' into a folder 'images' beside 'labels'.",
            "no-image",
        )
    return found


def load_cases(
    cases: Sequence[Case],
    frame: Frame,
    structures: Sequence[Structure],
    progress: Progress | None = None,
    far_mm: float = FAR_MM,
) -> list[ImageCase]:
    """Images and labels of a split; distances are told as far as ``far_mm``.

    Raises:
        ShapePriorError: an image is missing or unreadable.
    """
    found = []
    for number, case in enumerate(cases):
        found.append(load_case(case, frame, structures, far_mm))
        if progress:
            progress("reading images", (number + 1) / len(cases), {})
    return found


def load_case(
    case: Case, frame: Frame, structures: Sequence[Structure], far_mm: float = FAR_MM
) -> ImageCase:
    """One image and its label.

    Raises:
        ShapePriorError: it is missing or unreadable.
    """
    image, label = image_of(case), read_volume(case.path)
    middle = image.to_ras(0.5 * (np.array(image.shape[::-1]) - 1.0))
    region = on_voxels(frame.at(middle), image)
    values, known = read_region(image, region)
    distances = np.stack([signed_distance(label, s.values, region, far_mm) for s in structures])
    return ImageCase(case.name, values, known > 0, distances.astype(np.float16))


def signed_distance(
    label: Volume, values: Sequence[int], region: Region, far_mm: float = FAR_MM
) -> NDArray[np.float64]:
    """(X, Y, Z) mm to the surface of a label's largest part, negative inside, as far as told."""
    array = np.asarray(label.array)
    mask = largest_component(np.isin(array, values) if values else array > 0)
    pad = 3  # so that a label which the scan cuts has a border there
    field = distance_field(np.pad(mask, pad), label.spacing)
    # To the border, not to the centers of the voxels beyond it: else the slope would be two there.
    field = field - 0.5 * float(label.spacing.min()) * np.sign(field)
    field = np.clip(field, -far_mm, far_mm)
    at = label.to_ijk(region.points().reshape(-1, 3)).T[::-1] + pad
    inside = ndimage.map_coordinates(field, at, order=1, mode="constant", cval=far_mm)
    return np.asarray(inside.reshape(region.frame.shape))
