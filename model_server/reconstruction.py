"""The answer of a fit: a surface in patient space and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.pose import Pose

Array = NDArray[np.float64]
Triangles = NDArray[np.int32]


@dataclass(frozen=True)
class Surface:
    """A triangle mesh: ``points`` (V, 3), ``triangles`` (F, 3), outward oriented."""

    points: Array
    triangles: Triangles

    def corners(self) -> Array:
        """(F, 3, 3) corner points of every triangle."""
        return self.points[self.triangles]

    def vertex_normals(self) -> Array:
        """(V, 3) unit normals, area weighted."""
        where, count = self.triangles.ravel(), len(self.points)
        summed = np.repeat(self.across(), 3, axis=0).T
        normals = np.stack([np.bincount(where, part, count) for part in summed], axis=1)
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)

    def across(self) -> Array:
        """(F, 3) normals of the triangles, twice as long as their area."""
        a, b, c = (self.points[corner] for corner in self.triangles.T)
        return np.cross(b - a, c - a)

    def rms_radius(self) -> float:
        """Of the vertices about their mean."""
        away = self.points - self.points.mean(axis=0)
        return float(np.sqrt((away**2).sum(axis=1).mean()))

    def area(self) -> float:
        """Surface area, in squared units of ``points``."""
        a, b, c = self.corners().transpose(1, 0, 2)
        return float(0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1).sum())

    def volume(self) -> float:
        """Enclosed volume by the divergence theorem, in cubed units of ``points``."""
        a, b, c = (self.corners() - self.points.mean(axis=0)).transpose(1, 0, 2)
        return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6.0)


IMAGE = "image"  # kind of the residual of what an image shows


@dataclass(frozen=True)
class Residual:
    """Distance between one annotation, or what an image shows, and the surface, mm (in plane for
    outlines)."""

    name: str
    kind: str
    mean_mm: float
    max_mm: float


@dataclass(frozen=True)
class Provenance:
    """Where a reconstruction comes from."""

    prior: str
    version: str
    device: str
    seconds: dict[str, float] = field(default_factory=dict)
    iterations: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Likeness:
    """How far a training shape is from a reconstruction.

    Attributes:
        name: of the training case; empty where it is withheld.
        distance: between the shapes' latents, in those of a typical pair of training shapes.
    """

    name: str
    distance: float


@dataclass(frozen=True)
class Template:
    """A shape that a prior's instances correspond to, canonical frame.

    Attributes:
        surface: V vertices.
        coordinates: (V, 3) template coordinate of each vertex.
        number: of the template, from 0.
        count: so many templates the prior has.
        parts: (V,) number of the part each vertex belongs to, or None.
        part_names: by number, where the prior names its parts.
    """

    surface: Surface
    coordinates: Array
    number: int = 0
    count: int = 1
    parts: NDArray[np.uint8] | None = None
    part_names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JointSpread:
    """How the errors of a surface along its normals go together.

    Attributes:
        vertices: (M,) of the surface, spread evenly over it.
        root: (M, R) mm; root @ root.T is the covariance of the errors there, but for what is
            alike over very short distances only.
        noise_mm: standard deviation of what one more outline would say at such a vertex.
    """

    vertices: NDArray[np.int32]
    root: Array
    noise_mm: float


@dataclass(frozen=True)
class Reconstruction:
    """A closed surface in RAS mm with its correspondences.

    Attributes:
        surface: V vertices, RAS mm.
        template_coordinates: (V, 3) where each vertex lies on the prior's template.
        pose: canonical frame -> RAS mm.
        latents: (d,) one latent, or (N, d) one for each node of the prior's own mesh.
        stage: what produced it, e.g. "quick look", "global", "local", "final".
        residuals: one for each outline and point set.
        provenance: prior, device, seconds and iterations for each stage.
        uncertainty_mm: (V,) standard deviation along the normal, mm (Laplace), or None.
        warnings: sentences for the user.
        template: number of the template, of priors that have several.
        parts: (V,) number of the part each vertex belongs to, or None.
        part_names: by number, where the prior names its parts.
        nearest_training: the training shapes most like it, the nearest first; empty where the
            prior does not know them.
        joint_spread: of the last surface of a fit with uncertainty, or None.
        path: states on the way of an agent that found it in an image, in plain numbers; else empty.
        change_mm: (V,) mm from the border of the mask that was repaired, outside it above zero;
            None of other fits.
        misfit: root mean square distance of the annotations from the nearest shape that the quick
            look's principal components know, in RMS radii: how unusual the organ is.
    """

    surface: Surface
    template_coordinates: Array
    pose: Pose
    latents: Array
    stage: str
    residuals: tuple[Residual, ...]
    provenance: Provenance
    uncertainty_mm: Array | None = None
    warnings: tuple[str, ...] = ()
    template: int = 0
    parts: NDArray[np.uint8] | None = None
    part_names: Mapping[int, str] = field(default_factory=dict)
    nearest_training: tuple[Likeness, ...] = ()
    joint_spread: JointSpread | None = None
    misfit: float = 0.0
    change_mm: Array | None = None
    path: tuple[Mapping[str, Any], ...] = ()
