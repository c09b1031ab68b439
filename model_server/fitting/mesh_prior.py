"""What the fits of a mesh prior assume, and what such a prior says of its decoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.mesh_template import MeshTemplate

Array = NDArray[np.float64]
TRUSTED = 1.2  # standard deviations of a latent within which a linearized decoder holds


@dataclass(frozen=True)
class MeshSettings:
    """What the fits of a mesh prior assume, chosen on validation cases.

    Attributes:
        global_steps, local_steps: linearizations.
        noise_start, noise: standard deviation of the annotations in RMS radii, annealed.
        effective_points: so many independent points do sparse annotations count as in the global
            stage (neighboring samples of a curve say the same); dense ones count one in ten.
        local_noise: standard deviation of one residual in the local stage, in RMS radii.
        local_spread: prior standard deviation of the local latents, in units of the global one.
        smoothness: epsilon of (L^p + epsilon)^-1; smaller couples wider.
        power: p of the Dirichlet energy.
        quality_weight: lambda_reg, the weight of the triangle quality term.
        latent_weight: weight of the latents' Gaussian.
        guide_noise: standard deviation of the quick look's surface as evidence, in RMS radii.
        guide_points: so many independent points does the quick look count as.
        guided_globally: whether the quick look is evidence in the global stage, too. It is where
            the principal components are good; where they are not it would hold DALS back.
    """

    global_steps: int = 4
    local_steps: int = 1
    noise_start: float = 0.06
    noise: float = 0.04
    effective_points: float = 100.0
    local_noise: float = 0.02
    local_spread: float = 0.5
    smoothness: float = 0.1
    power: int = 2
    quality_weight: float = 300.0
    latent_weight: float = 1.0
    guide_noise: float = 0.05
    guide_points: float = 100.0
    guided_globally: bool = False


@dataclass(frozen=True)
class Linear:
    """A decoder near one latent.

    Attributes:
        latent: (K,) whitened.
        points: (nodes, 3) canonical.
        jacobian: (nodes, 3, K) motion of the nodes by the whitened latent.
    """

    latent: Array
    points: Array
    jacobian: Array

    def holds(self, latent: Array) -> bool:
        """Whether it is near enough."""
        return bool(np.abs(latent - self.latent).max(initial=0.0) <= TRUSTED)

    def at(self, latent: Array) -> Array:
        """(nodes, 3) canonical points."""
        return np.asarray(self.points + self.jacobian @ (latent - self.latent))

    @cached_property
    def by_axis(self) -> tuple[NDArray[np.float32], ...]:
        """Three (nodes, K): the Jacobian along each axis."""
        return tuple(np.ascontiguousarray(self.jacobian[:, axis], np.float32) for axis in range(3))

    def first(self, count: int) -> Linear:
        """The same of fewer nodes."""
        return Linear(self.latent, self.points[:count], self.jacobian[:count])


class MeshPrior(Protocol):
    """What a mesh prior says of its decoder.

    Attributes:
        rms_radius: of canonical shapes.
        latent_mean: (d,) of the training latents.
        latent_root: (d, K) with z = mean + root @ u, u of unit variance.
    """

    rms_radius: float
    latent_mean: Array
    latent_root: Array

    @property
    def device(self) -> str:
        """That decodes."""
        ...

    @property
    def mesh_template(self) -> MeshTemplate:
        """Whose triangles all surfaces have."""
        ...

    @property
    def mean_linear(self) -> Linear:
        """The decoder at the mean shape."""
        ...

    def vertices(self, latents: Array, sphere: Array) -> Array:
        """(N, 3) canonical vertices, of latents (1, d) or (N, d) at points (N, 3) of the sphere."""
        ...

    def linear(self, latent: Array) -> Linear:
        """The decoder near a whitened latent (K,)."""
        ...

    def whiten(self, latents: Array) -> Array:
        """(..., d) latents -> (..., K) in units of their standard deviations."""
        ...

    def from_modes(self, modes: Array | None) -> Array:
        """(K,) the whitened latent whose shape is nearest to that of the quick look's latents,
        if any."""
        ...
