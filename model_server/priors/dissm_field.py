"""The signed distances that DISSM's decoder tells (Raju et al. 2022, Eq. 2), and its mean shape
carried to other shapes by them.

A vertex of the mean shape goes to another shape along the gradient of the distance, in Newton
steps through shapes in between: these are the correspondences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from model_server.fitting.field_form import Reading
from model_server.fitting.interrupt import check
from model_server.fitting.leftover import Kriging, moved_by
from model_server.geometry.grid import Grid
from model_server.geometry.level_set import zero_level
from model_server.geometry.remesh import carry_over, remesh
from model_server.priors.deepsdf_decoder import DeepSdfDecoder
from model_server.priors.latent_gaussian import LatentGaussian
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
REACH, NODES, COARSE = 1.05, 65, 4  # of the grid for a zero level; nodes of it that are read first
CHUNK = 16384  # points read at once
LEAST_SLOPE = 0.2  # of the field; 1 is a distance
FLOW_SHARES = (0.33, 0.67, 1.0, 1.0)  # of the way between two shapes, of the Newton steps of a flow
LONGEST_STEP = 0.1  # canonical units
TEMPLATE_TRIANGLES = 6000  # about, of the mean shape
FLOWN = 0.02  # canonical units: vertices that end farther from the surface did not find it
MOST_FOLDED = 0.002  # share of triangles that may be folded, or did not find the surface
KEPT = 3  # carried surfaces that are remembered


@dataclass(frozen=True)
class Carried:
    """The mean shape's vertices on another shape.

    Attributes:
        surface: the mean shape's triangles, canonical frame.
        error: (V,) how far its vertices are from the zero level, canonical units.
        whole: whether the triangles are sound; else the zero level itself has to do.
    """

    surface: Surface
    error: Array
    whole: bool


class DissmField(LatentGaussian):
    """Signed distances by a whitened latent (``fitting.field_form.Field``).

    Args:
        decoder: trained.
        latent_mean: (d,) of the training latents.
        latent_root: (d, K), z = mean + root @ u with u of unit variance.
        rms_radius: of canonical shapes.
        template: the mean shape; None while it is not known.
        device: that computes.
    """

    def __init__(
        self,
        decoder: DeepSdfDecoder,
        latent_mean: Array,
        latent_root: Array,
        rms_radius: float,
        template: Surface | None = None,
        device: str = "cpu",
    ) -> None:
        self.decoder = decoder.to(device).eval().requires_grad_(False)
        self.latent_mean, self.latent_root = latent_mean, latent_root
        self.rms_radius, self.device = rms_radius, device
        if template is not None:
            self.template = template
        self._carried: dict[bytes, Carried] = {}

    # --- the field ----------------------------------------------------------------------------

    def _tensor(self, array: Array) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.device)

    def distances(self, latent: Array, points: Array) -> Array:
        """(N,) at canonical points (N, 3), outside positive."""
        code = self._tensor(self.latents(latent))
        with torch.no_grad():
            found = []
            for part in self._tensor(points).split(CHUNK):
                check()
                found.append(self.decoder(code.expand(len(part), -1), part))
        return torch.cat(found).double().cpu().numpy()

    def read(self, latent: Array, template: int, points: Array) -> Reading:
        """Distances with their slope by place; ``more`` (N, K) is that by the latent. One pass back
        gives both."""
        code = self._tensor(self.latents(latent))
        values, slopes, changes = [], [], []
        for part in self._tensor(points).split(CHUNK):
            place = part.clone().requires_grad_()
            codes = code.repeat(len(part), 1).requires_grad_()
            value = self.decoder(codes, place)
            by_place, by_code = torch.autograd.grad(value.sum(), (place, codes))
            values.append(value.detach())
            slopes.append(by_place)
            changes.append(by_code)
        distance, slope, change = (
            torch.cat(parts).double().cpu().numpy() for parts in (values, slopes, changes)
        )
        steepness = np.maximum(np.linalg.norm(slope, axis=1), LEAST_SLOPE)
        return Reading(distance, slope, steepness, change @ self.latent_root)

    def renew(self, latent: Array) -> None:
        """Nothing is costly."""

    def by_latent(self, reading: Reading, points: Array) -> Array:
        """(N, K), read along with the distances."""
        return np.asarray(reading.more)

    def motion(self, latent: Array, points: Array) -> Array:
        """(N, 3, K) how points of the surface move by the whitened latent, along the normal: the
        implicit function theorem, -(df/du) grad f / |grad f|^2."""
        reading = self.read(latent, 0, points)
        along = reading.slope / (np.asarray(reading.steepness) ** 2)[:, None]
        return np.asarray(-along[:, :, None] * reading.more[:, None, :])

    # --- surfaces -----------------------------------------------------------------------------

    @cached_property
    def template(self) -> Surface:
        """The mean shape, of even triangles whose corners lie on it."""
        even = remesh(self.zero(np.zeros(self.size)), most_triangles=TEMPLATE_TRIANGLES)
        mean = np.zeros(self.size)
        return Surface(self.flowed(even.points, mean, mean)[0], even.triangles)

    def zero(self, latent: Array) -> Surface:
        """The zero level, by a coarse and a fine grid and one Newton step; around the deepest place
        where the field is nowhere negative."""
        grid = Grid(NODES, REACH)
        points = grid.points().reshape(NODES, NODES, NODES, 3)
        few = points[::COARSE, ::COARSE, ::COARSE]
        rough = self.distances(latent, few.reshape(-1, 3)).reshape(few.shape[:3])
        field = ndimage.zoom(rough, NODES / len(rough), order=1)
        near = np.abs(field) < np.sqrt(3.0) * COARSE * grid.spacing
        field[near] = self.distances(latent, points[near])
        field -= max(0.0, field.min() + 0.5 * grid.spacing)
        surface = zero_level(field, np.full(3, -grid.reach), grid.spacing)
        points = self._stepped(latent, surface.points, 0.5 * grid.spacing)
        return Surface(points, surface.triangles)

    def _stepped(self, latent: Array, points: Array, most: float) -> Array:
        """Points (N, 3) after one Newton step onto the zero level, of such a length at most."""
        check()
        reading = self.read(latent, 0, points)
        step = -(reading.distance / np.asarray(reading.steepness) ** 2)[:, None] * reading.slope
        length = np.linalg.norm(step, axis=1, keepdims=True)
        return np.asarray(points + step * np.minimum(1.0, most / np.maximum(length, 1e-12)))

    def flowed(self, points: Array, start: Array, end: Array) -> tuple[Array, Array]:
        """Points (N, 3) of the shape ``start`` (K,) whitened -> of the shape ``end``, and (N,) how
        far from its surface they still are, canonical units."""
        points, reading = self._flow(points, start, end)
        return points, np.abs(reading.distance) / np.asarray(reading.steepness)

    def _flow(self, points: Array, start: Array, end: Array) -> tuple[Array, Reading]:
        for share in FLOW_SHARES:
            points = self._stepped(start + share * (end - start), points, LONGEST_STEP)
        return points, self.read(end, 0, points)

    def carried(self, latent: Array) -> Carried:
        """The mean shape flowed to a shape; the last few are remembered."""
        key = latent.tobytes()
        if key not in self._carried:
            kept = list(self._carried.items())[1 - KEPT :]
            self._carried = dict([*kept, (key, self._carry(latent))])
        return self._carried[key]

    def _carry(self, latent: Array) -> Carried:
        points, reading = self._flow(self.template.points, np.zeros(self.size), latent)
        surface = Surface(points, self.template.triangles)
        error = np.abs(reading.distance) / np.asarray(reading.steepness)
        corners = surface.corners()
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        outward = reading.slope[surface.triangles].sum(axis=1)
        lost = (error > FLOWN)[surface.triangles].any(axis=1)
        bad = ((across * outward).sum(axis=1) <= 0.0) | lost
        return Carried(surface, error, bool(bad.mean() <= MOST_FOLDED))

    def level(self, latent: Array, template: int, leftover: Kriging | None) -> Surface:
        """The carried mean shape; the zero level where that is folded."""
        carried = self.carried(latent)
        return moved_by(carried.surface if carried.whole else self.zero(latent), leftover)

    def coordinates(self, latent: Array, template: int, points: Array) -> Array:
        """(N, 3) canonical points near the surface -> of the mean shape: back through the carried
        triangles, or by a flow back where they are folded."""
        carried = self.carried(latent)
        if carried.whole:
            return carry_over(carried.surface, self.template.points, points)
        return self.flowed(points, latent, np.zeros(self.size))[0]
