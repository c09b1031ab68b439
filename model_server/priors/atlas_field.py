"""The field of an ImplicitAtlas decoder.

The signed distance of a point is its occupancy logit over the logit's slope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_server.fitting.field_form import FieldSettings, Reading
from model_server.fitting.interrupt import check
from model_server.fitting.leftover import Kriging
from model_server.geometry.even_template import EvenTemplate
from model_server.geometry.level_set import zero_level
from model_server.priors.atlas_features import Decoded, FeatureChanges, features_at, finest_map
from model_server.priors.displacement import undisplaced
from model_server.priors.implicit_atlas_decoder import AtlasDecoder, sample
from model_server.priors.latent_gaussian import LatentGaussian
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
MOST_LOGIT = 10.0
LEAST_SLOPE = 0.3  # of a logit, in units of the slope a soft occupancy has at its surface
POINTS_AT_ONCE = 60_000
FEW_POINTS = 1_000  # read at every scale; for more, one map on the finest nodes is faster
KEPT = 3  # decoded latents that a field remembers
GRID = 40  # nodes along the shortest edge of the box for a surface
PREVIEW_MODES = 12
PREVIEW_GRID = 28
EVEN_GRID = 32  # nodes along the shortest edge of the box, for them
TRIANGLES = 8000  # about, of a template that is carried to shapes
CARRY_STEPS, CARRY_LEFT = 3, 2e-3  # of the fixed point that carries it, and what may be left
CARRY_ROUNDS = 4  # of unfolding and finding the zero level again
FAR = 0.06  # canonical units: vertices that are farther before the last step do not find it


@dataclass(frozen=True)
class AtlasSettings(FieldSettings):
    """What the fits of this prior assume, chosen on validation cases.

    Attributes:
        many: so many independent points determine all ``modes``; below,
            ``few_modes`` count.
        modes, few_modes: latent axes that are fitted, the widest first.
        templates_tried: the likeliest templates, which take the first step side by side.
        grid: nodes along the shortest edge of the box for the final surface.
        at_mean: whether the deformation is linearized around the mean alone, once for all fits.
    """

    steps: int = 4
    renew: int = 2
    held: bool = True
    many: float = 200.0
    modes: int = 200
    few_modes: int = 150
    templates_tried: int = 1
    grid: int = GRID
    at_mean: bool = True

    def given(self, points: float) -> AtlasSettings:
        """Of a fit to so many independent points."""
        if points >= self.many:
            return replace(self, guide_points=0.0)
        return replace(self, modes=self.few_modes)

    def preview(self) -> AtlasSettings:
        """Of one step while somebody drags a point: the next preview goes on from there."""
        return replace(
            self, steps=1, renew=1, modes=PREVIEW_MODES, guide_points=0.0, grid=PREVIEW_GRID
        )


class AtlasField(LatentGaussian):
    """The shapes of an ImplicitAtlas decoder as a field (``fitting.field_form.Field``).

    Args:
        decoder: trained; stays on its device.
        latent_mean: (c,) of the training latents.
        latent_root: (c, K), h = mean + root @ u with u of unit variance.
        rms_radius: of canonical shapes.
        softness: of the occupancy, in RMS radii.
        templates: (m, nodes, hidden) ``decoder.template_maps()``.
        grid: nodes along the shortest edge of the box for surfaces.
        evens: the templates, remeshed, by number.
        at_mean: the changes of the features around the mean by so many latents, where that will do
            for all shapes.
    """

    def __init__(
        self,
        decoder: AtlasDecoder,
        latent_mean: Array,
        latent_root: Array,
        rms_radius: float,
        softness: float,
        templates: Tensor,
        grid: int = GRID,
        evens: Callable[[int], EvenTemplate] | None = None,
        at_mean: Callable[[int], FeatureChanges] | None = None,
    ) -> None:
        self.decoder = decoder
        self.latent_mean, self.latent_root = latent_mean, latent_root
        self.rms_radius = rms_radius
        self.least_slope = LEAST_SLOPE / (softness * rms_radius)
        self.templates, self.grid = templates, grid
        self.evens = lru_cache(self.even) if evens is None else evens
        self._at_mean = at_mean
        self._nodes: tuple[bytes, Tensor] | None = None
        self._vertices: tuple[bytes, tuple[Array, Array, Array] | None] | None = None
        self._decoded: dict[bytes, Decoded] = {}
        self._changes: FeatureChanges | None = None

    @property
    def device(self) -> str:
        """That decodes."""
        return str(self.decoder.template_latents.device)

    # --- decoding -----------------------------------------------------------------------------

    def _tensor(self, array: Array) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.device)

    def _latents(self, whitened: Array) -> Tensor:
        """(B, K) or (K,) whitened -> (B, c)."""
        return self._tensor(np.atleast_2d(self.latent_mean + whitened @ self.latent_root.T))

    def likely_templates(self, whitened: Array) -> list[int]:
        """Templates, the one that h chooses first."""
        with torch.no_grad():
            logits = self.decoder.choice(self._latents(whitened))[0]
        return [int(i) for i in torch.argsort(logits, descending=True)]

    def _decode(self, latent: Array) -> Decoded:
        """The deformation network's feature maps; those of the last few latents are remembered."""
        key = latent.tobytes()
        if key not in self._decoded:
            with torch.no_grad():
                found = Decoded.of(self.decoder.deformation_net, self._latents(latent))
            kept = list(self._decoded.items())[1 - KEPT :]
            self._decoded = dict([*kept, (key, found)])
        return self._decoded[key]

    def _features(self, latent: Array, template: int, places: Tensor) -> Callable[[Tensor], Tensor]:
        """Reader of D's features (n, hidden or hidden + 3) at parts (n, 3) of so many ``places``,
        -1 to 1."""
        net, scales = self.decoder.deformation_net, self._decode(latent).scales
        spline, latents = self.decoder.spline, self._latents(latent)
        chosen = self._tensor(np.eye(self.decoder.sizes.templates)[[template]])
        if len(places) > FEW_POINTS:
            key = latent.tobytes() + bytes([template])
            if self._nodes is None or self._nodes[0] != key:
                with torch.no_grad():
                    nodes = finest_map(net, scales)
                    if spline is not None:
                        nodes = torch.cat([nodes, spline.maps(latents, chosen)], dim=-1)
                self._nodes = key, nodes
            nodes = self._nodes[1]
            return lambda part: sample(nodes, part[None], net.sizes.nodes())[0]
        if spline is None:
            return lambda part: features_at(net, scales, part)
        with torch.no_grad():
            points = spline.points(latents, chosen)[0]

        def read(part: Tensor) -> Tensor:
            return torch.cat([features_at(net, scales, part), spline.at(points, part)], dim=-1)

        return read

    def changes(self, latent: Array) -> FeatureChanges:
        """How the features change by the whitened latent."""
        root = self._tensor(self.latent_root.T)
        net, spline = self.decoder.deformation_net, self.decoder.spline
        return FeatureChanges(net, self._decode(latent), self._latents(latent), root, spline)

    def deform(self, latent: Array, template: int, points: Array) -> Array:
        """(N, 3) canonical points -> p + D(p), where they lie on the template."""
        place = self._tensor(points)
        read = self._features(latent, template, place)
        with torch.no_grad():
            parts = [self._moved(part, read) for part in place.split(POINTS_AT_ONCE)]
        return torch.cat(parts).double().cpu().numpy()

    def _moved(self, points: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """(n, 3) canonical points -> p + D(p)."""
        features = read(points / self.decoder.box)
        return points + self.decoder.finish(features)

    def logits(self, latent: Array, template: int, points: Array) -> Array:
        """(N,) occupancy logits at canonical points (N, 3)."""
        maps = self.templates[template][None]
        place = self._tensor(points)
        read = self._features(latent, template, place)
        parts = []
        with torch.no_grad():
            for part in place.split(POINTS_AT_ONCE):
                check()
                moved = self._moved(part, read)
                parts.append(self.decoder.template_logit(maps, moved[None])[0])
        return torch.cat(parts).double().cpu().numpy()

    def slopes(self, latent: Array, template: int, points: Array) -> tuple[Array, Array, Tensor]:
        """Logits (N,), their gradient (N, 3) by place, and by features: (N, hidden), or three more
        with D's linear part."""
        return self._slopes(latent, template, points)[:3]

    def _slopes(
        self, latent: Array, template: int, points: Array
    ) -> tuple[Array, Array, Tensor, Array]:
        """With (N, 3) p + D(p)."""
        place = self._tensor(points).requires_grad_()
        features = self._features(latent, template, place)(place / self.decoder.box)
        moved = place + self.decoder.finish(features)
        maps = self.templates[template][None]
        logit = self.decoder.template_logit(maps, moved[None])[0]
        by_place, by_features = torch.autograd.grad(logit.sum(), [place, features])
        return (
            logit.detach().double().cpu().numpy(),
            by_place.double().cpu().numpy(),
            by_features,
            moved.detach().double().cpu().numpy(),
        )

    # --- as a field ---------------------------------------------------------------------------

    def renew(self, latent: Array) -> None:
        """The changes of the features are kept from here on: those at the mean, where they are
        known, else of this latent."""
        self._changes = self.changes(latent) if self._at_mean is None else self._at_mean(self.size)

    def read(self, latent: Array, template: int, points: Array) -> Reading:
        """Signed distances at canonical points (N, 3)."""
        return self._read(latent, template, points)[0]

    def _read(self, latent: Array, template: int, points: Array) -> tuple[Reading, Array]:
        """With (N, 3) p + D(p)."""
        logit, slope, by_features, moved = self._slopes(latent, template, points)
        length = np.maximum(np.linalg.norm(slope, axis=1), self.least_slope)
        found = Reading(-logit / length, -slope / length[:, None], 1.0, (length, by_features))
        return found, moved

    def by_latent(self, reading: Reading, points: Array) -> Array:
        """(N, K) their change by the latent, as last renewed."""
        assert self._changes is not None
        length, by_features = reading.more
        places = self._tensor(points) / self.decoder.box
        found = self._changes.at(places, by_features).double().cpu().numpy()
        return np.asarray(-found / length[:, None])

    def coordinates(self, latent: Array, template: int, points: Array) -> Array:
        """(N, 3) p + D(p)."""
        return self.deform(latent, template, points)

    def carried(
        self, latent: Array, template: int, leftover: Kriging | None
    ) -> tuple[Surface, Array] | None:
        """The template where the deformation carries it: the inverse of p + D(p), and the rest of
        the way to the zero level. None where triangles fold or vertices do not find it."""
        found = self._carry(latent, template)
        if found is None:
            return None
        points, normals, places = found
        if leftover is not None:
            points = points + leftover.at(points)[:, None] * normals
            reading, _ = self._read(latent, template, points)
            normals = reading.slope
            points = points + (leftover.at(points) - reading.distance)[:, None] * normals
        even = self.evens(template)
        surface = even.unfolded(even.lifted(points, normals), normals)
        return None if surface is None else (surface, places)

    def _carry(self, latent: Array, template: int) -> tuple[Array, Array, Array] | None:
        """Vertices (V, 3) on the zero level, normals (V, 3), and where the vertices lie on the
        template (V, 3); None where some do not find it. Those of the last shape are remembered."""
        key = latent.tobytes() + bytes([template])
        if self._vertices is None or self._vertices[0] != key:
            self._vertices = key, self._carried_anew(latent, template)
        return self._vertices[1]

    def _carried_anew(self, latent: Array, template: int) -> tuple[Array, Array, Array] | None:
        """Where the deformation folds, vertices are drawn to their neighbors and sent to the zero
        level again."""
        even = self.evens(template)
        points, _ = self.undeform(latent, template, even.surface.points, CARRY_STEPS, CARRY_LEFT)
        normals = Surface(points, even.surface.triangles).vertex_normals()
        for _ in range(CARRY_ROUNDS):
            points = even.evened(points, normals)
            reading, places = self._read(latent, template, points)
            step, normals = np.clip(reading.distance, -FAR, FAR)[:, None], reading.slope
            points = points - step * normals
            surface = even.unfolded(points, normals)
            if surface is None:
                return None
            if surface.points is points and np.abs(reading.distance).max() <= FAR:
                return points, normals, places
            points = surface.points
        return None

    def undeform(
        self, latent: Array, template: int, places: Array, steps: int, tolerance: float
    ) -> tuple[Array, Array]:
        """Where p + D(p) is (N, 3) ``places``.

        Returns:
            (N, 3) canonical points, (N,) the distance that is left, canonical units.
        """
        return undisplaced(
            lambda points: self.deform(latent, template, points), places, steps, tolerance
        )

    def level(
        self,
        latent: Array,
        template: int,
        leftover: Kriging | None = None,
        count: int | None = None,
    ) -> Surface:
        """The zero level, by a coarse and a fine grid.

        Args:
            latent: whitened.
            template: its number.
            leftover: what is left over of the distances there.
            count: nodes along the shortest edge of the box.
        """
        box = self.decoder.box.double().cpu().numpy()
        step = 2.0 * box.min() / ((count or self.grid) - 1)
        cells = 4 * np.ceil(box / (2.0 * step)).astype(int)
        axes = [np.linspace(-b, b, n + 1) for b, n in zip(box, cells, strict=True)]
        coarse = [a[::4] for a in axes]
        rough = self.logits(latent, template, _mesh(coarse)).reshape([len(a) for a in coarse])
        field = _zoomed(rough, [len(a) for a in axes])
        reach = 4.0 * float(np.linalg.norm([a[1] - a[0] for a in axes]))
        most = 0.0 if leftover is None else leftover.reach()
        near = np.abs(field) < (reach + most) * self.least_slope / LEAST_SLOPE
        field[near] = self.logits(latent, template, _mesh(axes)[near.ravel()])
        if leftover is not None:
            slope = np.linalg.norm(np.gradient(field, *axes), axis=0)
            slope = np.maximum(slope, self.least_slope)
            close = near & (np.abs(field) < (most + 2.0 * step) * slope)
            field[close] += slope[close] * leftover.at(_mesh(axes)[close.ravel()])
        surface = level_set(field, axes)
        # Marching cubes is linear between nodes, logits are not: one Newton step.
        logit, slope, _ = self.slopes(latent, template, surface.points)
        length = np.maximum(np.linalg.norm(slope, axis=1), self.least_slope)
        distance = -logit / length
        if leftover is not None:
            distance -= leftover.at(surface.points)
        distance = np.clip(distance, -0.5 * step, 0.5 * step)
        moved = surface.points + distance[:, None] * slope / length[:, None]
        return Surface(moved, surface.triangles)

    def even(self, template: int) -> EvenTemplate:
        """The zero level of a template, remeshed."""
        return EvenTemplate.of(level_set(*self.template_field(template, EVEN_GRID)), TRIANGLES)

    def template_field(self, number: int, count: int | None = None) -> tuple[Array, list[Array]]:
        """Logits (X, Y, Z) of a template, undeformed, and the axes of their grid, of which
        ``count`` nodes lie along the shortest edge of the box."""
        box = self.decoder.box.double().cpu().numpy()
        step = 2.0 * box.min() / ((count or self.grid) - 1)
        axes = [np.linspace(-b, b, 1 + round(2.0 * b / step)) for b in box]
        with torch.no_grad():
            points = self._tensor(_mesh(axes))[None]
            logits = self.decoder.template_logit(self.templates[number][None], points)[0]
        return logits.double().cpu().numpy().reshape([len(a) for a in axes]), axes


def _mesh(axes: list[Array]) -> Array:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _zoomed(values: Array, shape: list[int]) -> Array:
    grown = torch.nn.functional.interpolate(
        torch.as_tensor(values)[None, None], shape, mode="trilinear", align_corners=True
    )
    return np.asarray(grown[0, 0].numpy())


def level_set(field: Array, axes: list[Array]) -> Surface:
    """One closed surface where logits on a grid are zero; a small one where they are nowhere
    positive."""
    if not (field > 0).any():
        field = np.full_like(field, -MOST_LOGIT)
        field[tuple(n // 2 for n in field.shape)] = MOST_LOGIT
    start, step = np.array([a[0] for a in axes]), np.array([a[1] - a[0] for a in axes])
    return zero_level(np.clip(-field, -MOST_LOGIT, MOST_LOGIT), start, step)
