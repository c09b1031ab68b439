"""The quick look: principal components of signed distance fields, fitted by Gauss-Newton.

The classical prior (Leventon et al. 2000; Tsai et al. 2003) with a learned pose prior, robust
weights and annealed noise. It gives every other fit its first surface, pose and start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.fitting.field_form import FieldSettings, Reading
from model_server.fitting.leftover import Kriging
from model_server.fitting.pose_prior import KINDS, PosePrior
from model_server.geometry.grid import Grid
from model_server.geometry.level_set import zero_level
from model_server.priors.base import FieldPrior
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.schema import (
    ONE,
    Entry,
    Schema,
    check_weights,
    pose_schema,
    solver_of,
)
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
MOST_NODES = 512  # along an edge of the grid
LEAST_SLOPE = 0.2  # of the field at its surface; 1 is a distance
SETTINGS = FieldSettings(
    steps=12, noise_start=0.20, noise=0.03, pool_clicks=True, gentle_sides=True, damped=False,
    careful=False, guide_points=0.0, spread_points=100_000,
)  # fmt: skip


@dataclass(frozen=True)
class SdfModes:
    """A Gaussian over signed distance fields on a grid, in canonical units.

    Attributes:
        grid: where the fields live.
        fields: (grid points, 1 + K) float32: the mean, then modes scaled to unit variance.
        clamp: largest absolute distance.
    """

    grid: Grid
    fields: NDArray[np.float32]
    clamp: float

    @property
    def count(self) -> int:
        """K, the number of modes."""
        return self.fields.shape[1] - 1

    def field(self, latents: Array) -> Array:
        """(K,) -> (n, n, n) signed distances."""
        n = self.grid.count
        mixed = self.fields @ np.concatenate([[1.0], latents]).astype(np.float32)
        return mixed.reshape(n, n, n).astype(np.float64)

    def at(self, latents: Array, points: Array) -> tuple[Array, Array, Array]:
        """Trilinear value (N,), gradient by place (N, 3) and by latents (N, K)."""
        n = self.grid.count
        index = np.clip(self.grid.to_index(points), 0.0, n - 1.000001)
        base = index.astype(np.int64)
        share = index - base
        step = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        flat = (base[:, None] + step) @ np.array([n * n, n, 1])
        corners = self.fields[flat]  # (N, 8, 1 + K)
        factor = np.where(step[None] == 1, share[:, None], 1.0 - share[:, None])  # (N, 8, 3)
        weight = factor.prod(axis=2)
        by_field = np.einsum("nc,nck->nk", weight.astype(np.float32), corners).astype(np.float64)
        total = (corners @ np.concatenate([[1.0], latents]).astype(np.float32)).astype(np.float64)
        sign = np.where(step == 1, 1.0, -1.0)
        slope = np.stack(
            [
                (total * sign[:, a] * factor[:, :, (a + 1) % 3] * factor[:, :, (a + 2) % 3]).sum(1)
                for a in range(3)
            ],
            axis=1,
        )
        value = by_field[:, 0] + by_field[:, 1:] @ latents
        return value, slope / self.grid.spacing, by_field[:, 1:]

    def surface(self, latents: Array, zoom: int = 1, leftover: Kriging | None = None) -> Surface:
        """The zero level, canonical frame, moved by what the modes leave over; its largest part."""
        field = self.field(latents)
        if leftover is not None:
            band = np.abs(field) < min(leftover.reach() + self.grid.spacing, 0.999 * self.clamp)
            field[band] -= leftover.at(self.grid.points()[band.ravel()])
        if zoom > 1:
            field = ndimage.zoom(field, zoom, order=3, grid_mode=False)
        spacing = 2.0 * self.grid.reach / (len(field) - 1)
        return zero_level(field, np.full(3, -self.grid.reach), spacing)


class PcaPrior(FieldPrior):
    """Principal components of signed distance fields with a learned pose prior.

    Args:
        card: what it is.
        modes: the Gaussian of fields.
        pose_prior: learned with it.
        rms_radius: RMS radius of the canonical shapes.
    """

    finishes = False

    def __init__(
        self, card: PriorCard, modes: SdfModes, pose_prior: PosePrior, rms_radius: float
    ) -> None:
        self.card = card
        self.modes = modes
        self.pose_prior = pose_prior
        self.rms_radius = rms_radius
        self.settings = replace(SETTINGS, **solver_of(card, FieldSettings))
        self.latent_mean, self.latent_root = np.zeros(modes.count), np.eye(modes.count)

    @classmethod
    def load(
        cls, folder: Path, card: PriorCard, device: str = "cpu", quick: PcaPrior | None = None
    ) -> PcaPrior:
        """Read ``weights.safetensors``; the PCA always runs on the CPU and starts itself."""
        del device, quick
        weights = read_weights(folder, card)
        check_weights(card, weights, schema_of(weights))
        pose_prior = PosePrior.from_arrays(weights)
        found = cls(card, unpack_modes(weights), pose_prior, float(weights["rms_radius"][0]))
        found.template()  # fields that are no shape are found here
        return found

    def read(self, latent: Array, template: int, points: Array) -> Reading:
        """The mixed field; not quite a distance where modes are mixed."""
        value, slope, by_latent = self.modes.at(latent, points)
        steepness = np.maximum(np.linalg.norm(slope, axis=1), LEAST_SLOPE)
        return Reading(value, slope, steepness, by_latent)

    def by_latent(self, reading: Reading, points: Array) -> Array:
        """(N, K) the modes themselves."""
        return np.asarray(reading.more)

    def level(self, latent: Array, template: int, leftover: Kriging | None) -> Surface:
        """Where the field is zero."""
        return self.modes.surface(latent, 1, leftover)

    def decode(self, latents: Array, resolution: int = 1) -> Surface:
        """(K,) latents -> closed surface in the canonical frame."""
        return self.modes.surface(np.asarray(latents, dtype=np.float64), resolution)


# --- files --------------------------------------------------------------------------------------


def pack_modes(modes: SdfModes) -> dict[str, NDArray[Any]]:
    """Compact arrays: eight-bit modes on the voxels where any training shape's field varies."""
    varies = np.abs(modes.fields[:, 1:]).max(axis=1) > 1e-3 * modes.clamp
    values = modes.fields[varies, 1:]
    peak = np.abs(values).max(axis=0)
    return {
        "grid": np.array([modes.grid.count, modes.grid.reach, modes.clamp], dtype=np.float32),
        "mean": modes.fields[:, 0].astype(np.float16),
        "varies": np.packbits(varies),
        "peak": peak.astype(np.float32),
        "modes": np.round(values / peak * 127.0).astype(np.int8).T,
    }


def schema_of(weights: dict[str, NDArray[Any]]) -> Schema:
    """What has to be in the weights; the number of nodes is the cube of what their grid says."""
    grid = weights.get("grid", np.zeros(1)).ravel()
    nodes = int(grid[0]) ** 3 if np.isfinite(grid[0]) and 2 <= grid[0] <= MOST_NODES else 0
    bits = weights.get("varies", np.zeros(1, dtype=np.uint8))
    varies = int(np.unpackbits(bits, count=nodes).sum()) if bits.dtype == np.uint8 else 0
    return {
        "grid": Entry((3,), positive=True),
        "mean": Entry((nodes,)),
        "varies": Entry((-(-nodes // 8),), "u"),
        "peak": Entry(("modes",)),
        "modes": Entry(("modes", varies), "i"),
        "rms_radius": ONE,
        **pose_schema(KINDS),
    }


def unpack_modes(weights: dict[str, NDArray[Any]]) -> SdfModes:
    """The inverse of ``pack_modes``."""
    count, reach, clamp = weights["grid"].tolist()
    grid = Grid(int(count), reach)
    size = grid.count**3
    varies = np.unpackbits(weights["varies"], count=size).astype(bool)
    fields = np.zeros((size, 1 + len(weights["peak"])), dtype=np.float32)
    fields[:, 0] = weights["mean"]
    fields[varies, 1:] = weights["modes"].T.astype(np.float32) * (weights["peak"] / 127.0)
    return SdfModes(grid, fields, clamp)
