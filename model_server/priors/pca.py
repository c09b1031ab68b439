"""The quick look: principal components of signed distance fields, fitted by Gauss-Newton.

The classical prior (Leventon et al. 2000; Tsai et al. 2003) with a learned pose prior, robust
weights and annealed noise. It gives every other fit its first surface, pose and start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.fitting.arrays import HOST
from model_server.fitting.field_form import FieldSettings, Reading
from model_server.fitting.leftover import Kriging
from model_server.fitting.pose_prior import KINDS, PosePrior
from model_server.geometry.correspondences import surface_to_template
from model_server.geometry.grid import Grid
from model_server.geometry.level_set import inside_box, zero_level
from model_server.priors.base import FieldPrior
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.carried_modes import CarriedModes
from model_server.priors.device import choose_device, computes_on_cpu
from model_server.priors.schema import (
    ONE,
    Entry,
    Schema,
    check_weights,
    pose_schema,
    solver_of,
)
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
MOST_NODES = 512  # along an edge of the grid
MANY = 1000  # places, for which the whole field is mixed sooner than at each of them
LEAST_SLOPE = 0.2  # of the field at its surface; 1 is a distance
SETTINGS = FieldSettings(
    steps=8, noise_start=0.20, noise=0.03, pool_clicks=True, gentle_sides=True, damped=False,
    careful=False, guide_points=0.0, samples=100, spread_points=400,
)  # fmt: skip


@dataclass(frozen=True)
class SdfModes:
    """A Gaussian over signed distance fields on a grid, in canonical units.

    Most nodes are far from every shape and clamped: modes are kept for the others alone.

    Attributes:
        grid: where the fields live.
        mean: (grid points,).
        rows: (grid points,) row of ``modes`` of each grid point.
        modes: (1 + M, K) float32, of unit variance; the first row is zero, for all points that
            do not vary.
        clamp: largest absolute distance.
    """

    grid: Grid
    mean: Array
    rows: NDArray[np.int32]
    modes: NDArray[np.float32]
    clamp: float

    @classmethod
    def of(cls, grid: Grid, fields: NDArray[np.float32], clamp: float) -> SdfModes:
        """From (grid points, 1 + K): the mean, then modes scaled to unit variance."""
        varies = (fields[:, 1:] != 0.0).any(axis=1)
        return cls.varying(grid, fields[:, 0], varies, fields[varies, 1:], clamp)

    @classmethod
    def varying(
        cls,
        grid: Grid,
        mean: NDArray[Any],
        varies: NDArray[np.bool_],
        modes: NDArray[np.float32],
        clamp: float,
    ) -> SdfModes:
        """From the modes (M, K) of those grid points that vary."""
        rows = np.where(varies, np.cumsum(varies), 0).astype(np.int32)
        none = np.zeros((1, modes.shape[1]), dtype=np.float32)
        return cls(grid, mean.astype(np.float64), rows, np.concatenate([none, modes]), clamp)

    @property
    def count(self) -> int:
        """K, the number of modes."""
        return self.modes.shape[1]

    @property
    def fields(self) -> NDArray[np.float32]:
        """(grid points, 1 + K) the mean, then modes, of all nodes."""
        return np.column_stack([self.mean.astype(np.float32), self.modes[self.rows]])

    @cached_property
    def _varying(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.rows)

    def field(self, latents: Array) -> Array:
        """(K,) -> (n, n, n) signed distances."""
        mixed = self.mean.copy()
        mixed[self._varying] += self.modes[1:] @ latents.astype(np.float32)
        return mixed.reshape((self.grid.count,) * 3)

    def at(self, latents: Array, points: Array) -> tuple[Array, Array, Array]:
        """Trilinear value (N,), gradient by place (N, 3) and by latents (N, K)."""
        corners, weight, slopes = self.grid.around(points)
        modes = self.modes[self.rows[corners]]  # (N, 8, K)
        mean = self.mean[corners]
        by_latents = np.matmul(weight[:, None].astype(np.float32), modes)[:, 0]
        total = mean + modes @ latents.astype(np.float32)
        value = (weight * mean).sum(axis=1) + by_latents @ latents
        slope = np.einsum("nca,nc->na", slopes, total)
        return value, slope, by_latents.astype(np.float64)

    def near(self, field: Array, points: Array) -> tuple[Array, Array]:
        """Trilinear values (N,) and gradients (N, 3) of such a field at points (N, 3)."""
        corners, weight, slopes = self.grid.around(points)
        values = field.ravel()[corners]
        return (weight * values).sum(axis=1), np.einsum("nca,nc->na", slopes, values)

    def volume(self, field: Array) -> float:
        """That such a field holds, to a part of a node."""
        return (
            float(np.clip(0.5 - field / self.grid.spacing, 0.0, 1.0).sum()) * self.grid.spacing**3
        )

    def surface(self, latents: Array, zoom: int = 1, leftover: Kriging | None = None) -> Surface:
        """The zero level, canonical frame, moved by what the modes leave over; its largest part."""
        field = self.field(latents)
        if leftover is not None:
            band = np.abs(field) < min(leftover.reach() + self.grid.spacing, 0.999 * self.clamp)
            field[band] -= leftover.at(self.grid.points()[band.ravel()])
        start = np.full(3, -self.grid.reach)
        if zoom > 1:
            box = inside_box(field < 0)
            start = start + self.grid.spacing * np.array([part.start for part in box])
            field = field[box]
            shape = zoom * (np.array(field.shape) - 1) + 1
            field = ndimage.zoom(field, shape / field.shape, order=3)
        return zero_level(field, start, self.grid.spacing / zoom)


class PcaPrior(FieldPrior):
    """Principal components of signed distance fields with a learned pose prior.

    Args:
        card: what it is.
        modes: the Gaussian of fields.
        pose_prior: learned with it.
        rms_radius: RMS radius of the canonical shapes.
        device: that computes with the large matrices of a fit.
    """

    finishes = False

    def __init__(
        self,
        card: PriorCard,
        modes: SdfModes,
        pose_prior: PosePrior,
        rms_radius: float,
        device: str = HOST,
    ) -> None:
        self.card = card
        self.device = device
        self.modes = modes
        self.pose_prior = pose_prior
        self.rms_radius = rms_radius
        self.settings = replace(SETTINGS, **solver_of(card, FieldSettings))
        self.latent_mean, self.latent_root = np.zeros(modes.count), np.eye(modes.count)

    @classmethod
    def load(
        cls, folder: Path, card: PriorCard, device: str = "cpu", quick: PcaPrior | None = None
    ) -> PcaPrior:
        """Read ``weights.safetensors``; the PCA starts itself.

        As the quick look of another prior it computes on the CPU: its matrices have a hundred rows.

        Raises:
            ShapePriorError: CUDA was asked for and there is none.
        """
        del quick
        where = HOST if computes_on_cpu(device) else str(choose_device(device))
        weights = read_weights(folder, card)
        check_weights(card, weights, schema_of(weights))
        pose_prior = PosePrior.from_arrays(weights)
        radius = float(weights["rms_radius"][0])
        found = cls(card, unpack_modes(weights), pose_prior, radius, where)
        found.modes.surface(found.latent_mean)  # fields that are no shape are found here
        return found

    def read(self, latent: Array, template: int, points: Array) -> Reading:
        """The mixed field; not quite a distance where modes are mixed."""
        by_latent = None
        if len(points) > MANY:
            value, slope = self.modes.near(self.modes.field(latent), points)
        else:
            value, slope, by_latent = self.modes.at(latent, points)
        steepness = np.maximum(np.linalg.norm(slope, axis=1), LEAST_SLOPE)
        return Reading(value, slope, steepness, by_latent)

    def by_latent(self, reading: Reading, points: Array) -> Array:
        """(N, K) the modes themselves."""
        if reading.more is None:
            return self.modes.at(np.zeros(self.modes.count), points)[2]
        return np.asarray(reading.more)

    def level(self, latent: Array, template: int, leftover: Kriging | None) -> Surface:
        """Where the field is zero."""
        return self.modes.surface(latent, 1, leftover)

    def carried(
        self, latent: Array, template: int, leftover: Kriging | None
    ) -> tuple[Surface, Array] | None:
        """The remeshed mean on a shape; None where it folds."""
        found = self._carrier.on(self.modes, latent, leftover)
        return None if found is None else (found, self._carrier.template.points)

    @cached_property
    def _carrier(self) -> CarriedModes:
        mean = self.latent_mean
        return CarriedModes.of(
            self.modes.surface(mean, 2), self.modes.volume(self.modes.field(mean))
        )

    def decode(self, latents: Array, resolution: int = 1) -> Surface:
        """(K,) latents -> closed surface in the canonical frame.

        Args:
            latents: of one shape.
            resolution: 1 for the triangles that all shapes share, unless they fold; more for the
                zero level on so many times finer a grid.
        """
        latents = np.asarray(latents, dtype=np.float64)
        found = self.carried(latents, 0, None) if resolution == 1 else None
        return self.modes.surface(latents, resolution) if found is None else found[0]

    def mean(self) -> Surface:
        """The triangles that all shapes share, on the mean."""
        return self._carrier.template

    def to_template(self, reconstruction: Reconstruction, points: Array) -> Array:
        """(N, 3) RAS mm points near the surface -> (N, 3) points of the mean shape."""
        return surface_to_template(reconstruction, points)[0]


# --- files --------------------------------------------------------------------------------------


def pack_modes(modes: SdfModes) -> dict[str, NDArray[Any]]:
    """Compact arrays: eight-bit modes on the voxels where any training shape's field varies."""
    varies = (np.abs(modes.modes).max(axis=1) > 1e-3 * modes.clamp)[modes.rows]
    values = modes.modes[modes.rows[varies]]
    peak = np.abs(values).max(axis=0)
    return {
        "grid": np.array([modes.grid.count, modes.grid.reach, modes.clamp], dtype=np.float32),
        "mean": modes.mean.astype(np.float16),
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
    modes = weights["modes"].T.astype(np.float32) * (weights["peak"] / 127.0).astype(np.float32)
    return SdfModes.varying(grid, weights["mean"], varies, modes, clamp)
