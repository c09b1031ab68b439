"""An image reader: a volume of any kind in, signed distances with their doubt out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_server.errors import ShapePriorError
from model_server.fitting.interrupt import apart, check
from model_server.geometry.icosphere import icosphere
from model_server.imaging.files import unpack_network
from model_server.imaging.intensities import Intensities
from model_server.imaging.meshnet import LEVEL, MeshNet, MeshNetShape, Voxels
from model_server.imaging.prompts import PROMPTS, prompt_channels
from model_server.imaging.region import Frame, Region, on_voxels, read_image
from model_server.observations import Observations, Volume
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.device import choose_device
from model_server.reading import ImageReading, Structure
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
UNKNOWN_MM = 20.0  # doubt where there is no image


@dataclass(frozen=True)
class Doubt:
    """What a doubt that a network tells is worth, learned on cases it was not trained on.

    Attributes:
        scale: of the computed one.
        floor: mm that no voxel goes below.
        alike_mm: over which errors are alike.
    """

    scale: float = 1.0
    floor: float = 0.1
    alike_mm: float = 4.0

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Doubt:
        """As a reader's hyperparameters tell."""
        return cls(**{name: float(value) for name, value in told.get("doubt", {}).items()})

    def true(self, computed: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standard deviations, mm."""
        return np.hypot(self.scale * computed, self.floor).astype(np.float32)


class Reader(Protocol):
    """Who tells an organ's surface from an image.

    Attributes:
        card: what it is; of its hyperparameters "familiar" and "modality" are read by others.
        frame: the part of the world it reads at a time.
    """

    card: PriorCard
    frame: Frame

    @property
    def organ(self) -> str:
        """That it reads."""
        ...

    def read(
        self,
        image: Volume,
        center: Array,
        observations: Observations | None = None,
        meshes: bool = False,
    ) -> ImageReading:
        """Read the region around a place; see ``ImageReader``."""
        ...


class ImageReader:
    """A network of one organ and modality.

    Args:
        card: what it is.
        network: ready to read.
        device: that computes.
    """

    def __init__(self, card: PriorCard, network: MeshNet, device: str = "cpu") -> None:
        self.card, self.network, self.device = card, network, device
        self.frame = network.shape.frame
        told = card.hyperparameters
        self.intensities, self.doubt = Intensities.of(told), Doubt.of(told)

    @classmethod
    def load(cls, folder: Path, card: PriorCard, device: str = "cpu") -> ImageReader:
        """Read ``weights.safetensors``.

        Raises:
            ShapePriorError: (bad-prior) the files are damaged.
        """
        shape = MeshNetShape.of(card.hyperparameters["network"])
        chosen = str(choose_device(device))
        network = unpack_network(card, shape, read_weights(folder, card)).to(chosen)
        return cls(card, network, chosen)

    @property
    def organ(self) -> str:
        """That it reads."""
        return self.card.organ

    def read(
        self,
        image: Volume,
        center: Array,
        observations: Observations | None = None,
        meshes: bool = False,
    ) -> ImageReading:
        """Read the region around a place.

        Args:
            image: any orientation, spacing and type.
            center: (3,) RAS mm, about the organ's.
            observations: prompts; None or empty for none.
            meshes: whether the network's meshes are made, too.

        Raises:
            ShapePriorError: (no-overlap) the image does not reach there.
        """
        region = on_voxels(self.frame.at(center), image)
        values, known = read_image(image, region)
        if not known.any():
            raise no_overlap(image)
        check()
        inputs = self._inputs(values, known, region, observations)
        check()
        return self._reading(inputs, known > 0, region, observations, meshes)

    def _inputs(
        self,
        values: NDArray[np.float32],
        known: NDArray[np.float32],
        region: Region,
        observations: Observations | None,
    ) -> Tensor:
        normal = self.intensities.normalized(values, known)
        prompts = np.zeros((PROMPTS, *values.shape), dtype=np.float32)
        if observations is not None:
            prompts = prompt_channels(observations, region)
        return torch.from_numpy(np.concatenate([np.stack([normal, known]), prompts])[None])

    def _reading(
        self,
        inputs: Tensor,
        known: NDArray[np.bool_],
        region: Region,
        observations: Observations | None,
        meshes: bool,
    ) -> ImageReading:
        # A pass takes long: the fits of others need not wait for it.
        voxels, encoded = apart(lambda: self._voxels(inputs))
        spacing = self.frame.spacing
        # Laplace's scale is a standard deviation divided by the square root of two.
        doubt = np.sqrt(2.0) * spacing * voxels.log_doubt[0].exp().cpu().numpy()
        structures: tuple[Structure, ...] = ()
        if meshes:
            moved = apart(lambda: self._moved(encoded, voxels))
            structures = self._structures(moved, region)
        return ImageReading(
            reader=self.card.name,
            origin=region.origin,
            spacing=spacing,
            distance=(spacing * voxels.distance[0]).cpu().numpy(),
            doubt=np.where(known, self.doubt.true(doubt), UNKNOWN_MM).astype(np.float32),
            inside=(1.0 - voxels.logits[0].softmax(dim=0)[0]).cpu().numpy(),
            image=inputs[0, 0].cpu().numpy(),
            known=known,
            alike_mm=self.doubt.alike_mm,
            structures=structures,
            prompted=observations is not None,
            calibration=self.card.hyperparameters.get("calibration", {}),
        )

    @torch.inference_mode()
    def _voxels(self, inputs: Tensor) -> tuple[Voxels, list[Tensor]]:
        return self.network.voxels(inputs.to(self.device))

    @torch.inference_mode()
    def _moved(self, encoded: list[Tensor], voxels: Voxels) -> NDArray[Any]:
        """(S, V, 3) vertices, in half regions."""
        moved: NDArray[Any] = self.network.mesh(encoded, voxels)[-1][0].cpu().numpy()
        return moved

    def _structures(self, moved: NDArray[Any], region: Region) -> tuple[Structure, ...]:
        size = np.array(self.frame.shape)
        triangles = icosphere(LEVEL).triangles
        names = self.network.shape.structures
        return tuple(
            Structure(name, Surface(region.to_ras((p + 1.0) * 0.5 * size - 0.5), triangles))
            for name, p in zip(names, moved.astype(np.float64), strict=True)
        )


def no_overlap(image: Volume) -> ShapePriorError:
    """The error where an image does not reach a place."""
    return ShapePriorError(
        f"The image '{image.name}' does not reach the place that was annotated.",
        "Choose the image in which you drew, or fit without one.",
        "no-overlap",
    )
