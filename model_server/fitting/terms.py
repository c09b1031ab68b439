"""Evidence terms: what each kind of annotation says of a surface.

A term speaks to both forms of a shape. A field reads it at places of space, which lie on the
boundary, inside or outside; a mesh is attached to it, so that every residual is linear in three
vertices. The solvers see places and attachments and never ask of which kind a term is: a new kind
of evidence is one more class here and one more line in ``evidence_of``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.attachment import (
    Attachment,
    attach_plane,
    attach_points,
    attach_vertices,
)
from model_server.fitting.clicks import distinct_clicks
from model_server.fitting.contour_stack import ContourStack
from model_server.fitting.drawn_planes import without_holes
from model_server.fitting.image_surface import FollowedImage
from model_server.fitting.interrupt import apart
from model_server.fitting.mask import MaskField
from model_server.fitting.mask_repair import RepairedMask
from model_server.fitting.mask_surface import FollowedMask, node_mm
from model_server.fitting.pose_prior import mirror_edge, mirror_points
from model_server.geometry.fewer_voxels import overview
from model_server.geometry.labels import surface_from_label
from model_server.geometry.level_set import zero_level
from model_server.geometry.loops import loop_length
from model_server.geometry.sampling import sample_surface
from model_server.observations import MaskNoise, Observations, Volume
from model_server.reading import ImageReading
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
SAMPLES_PER_EXTENT = 80.0  # outline samples are this fraction of the annotations' extent apart
MOST_SAMPLES = 1500  # of all outlines: linear systems grow with the cube of it
MASK_SAMPLES = 2000
STACKED = np.cos(np.deg2rad(2.0))  # tilted more, planes make no stack
IMAGE_SAMPLES = 300
SHAPE_SPREAD = 0.06  # RMS radii: what fitted shapes leave open without the image
SIDE_TRUST = 20.0  # an inside or outside point is one of few, and placed on purpose


@dataclass(frozen=True)
class Places:
    """Places of space and what is known of them.

    Attributes:
        points: (N, 3) RAS mm.
        sides: (N,) 0 on the boundary, -1 inside, 1 outside.
        trust: (N,) how many measurements each stands for.
        alike: (N,) whether neighbors say much the same, as along a drawn curve.
        own: (N,) standard deviation of its own, in RMS radii.
        drawn: (N,) whether it is an annotation: the surface shall pass there in the end.
        target: (N,) signed distance, mm, that the surface shall have there; outside is positive.
    """

    points: Array
    sides: NDArray[np.int64]
    trust: Array
    alike: NDArray[np.bool_]
    own: Array
    drawn: NDArray[np.bool_]
    target: Array

    @classmethod
    def of(
        cls,
        points: Array,
        side: int = 0,
        trust: float = 1.0,
        alike: bool = False,
        own: float = 0.0,
        drawn: bool = True,
        target: float = 0.0,
    ) -> Places:
        """Places of which the same is known."""
        count = len(points)
        return cls(
            points,
            np.full(count, side),
            np.full(count, trust),
            np.full(count, alike),
            np.full(count, own),
            np.full(count, drawn),
            np.full(count, target),
        )

    @classmethod
    def joined(cls, parts: list[Places]) -> Places:
        """All of them in order."""
        rows = zip(*(part.__dict__.values() for part in parts), strict=True)
        return cls(*(np.concatenate(row) for row in rows))

    def where(self, kept: NDArray[np.bool_]) -> Places:
        """Some of them."""
        return Places(*(row[kept] for row in self.__dict__.values()))


class Dense(Protocol):
    """What tells a surface to the voxel."""

    def followed(self, surface: Surface) -> Surface:
        """A closed surface, RAS mm, moved there."""
        ...


@dataclass(frozen=True)
class InTurn:
    """One after the other."""

    parts: tuple[Dense, ...]

    def followed(self, surface: Surface) -> Surface:
        """See ``Dense``."""
        for part in self.parts:
            surface = part.followed(surface)
        return surface


class Term(Protocol):
    """What one annotation says of a surface."""

    def mirrored(self) -> Term:
        """The same in a world mirrored right-left."""
        ...

    def places(self) -> Places:
        """What a field reads."""
        ...

    def attach(self, surface: Surface, normals: Array) -> Attachment:
        """Residuals, mm, of a mesh in RAS mm with vertex ``normals`` (V, 3)."""
        ...


@dataclass(frozen=True)
class OutlineTerm:
    """What was drawn in one plane.

    Attributes:
        points: (N, 3) samples of it, RAS mm.
        normal: (3,) of the plane.
        loops: (M, 3) as drawn.
    """

    points: Array
    normal: Array
    loops: tuple[Array, ...]

    def mirrored(self) -> OutlineTerm:
        """See ``Term``."""
        loops = tuple(mirror_points(loop) for loop in self.loops)
        return OutlineTerm(mirror_points(self.points), mirror_points(self.normal), loops)

    def places(self) -> Places:
        """See ``Term``."""
        return Places.of(self.points, alike=True)

    def attach(self, surface: Surface, normals: Array) -> Attachment:
        """Within the plane, from the outline to the section and back (DALS, appendix A)."""
        return attach_plane(surface, normals, self.points, self.normal)


@dataclass(frozen=True)
class ClickTerm:
    """``points`` (N, 3) RAS mm clicked on the boundary."""

    points: Array

    def mirrored(self) -> ClickTerm:
        """See ``Term``."""
        return ClickTerm(mirror_points(self.points))

    def places(self) -> Places:
        """See ``Term``."""
        return Places.of(self.points)

    def attach(self, surface: Surface, normals: Array) -> Attachment:
        """Along the normal at the closest point."""
        return attach_points(surface, self.points, normals)


@dataclass(frozen=True)
class LabelMapTerm:
    """A label map to refine: samples of its surface (N, 3) RAS mm, its distance field, and how it
    errs where it is to be repaired."""

    points: Array
    field: MaskField
    noise: MaskNoise | None = None

    def mirrored(self) -> LabelMapTerm:
        """See ``Term``."""
        noise = self.noise and replace(
            self.noise, edges=tuple(mirror_edge(edge) for edge in self.noise.edges)
        )
        return LabelMapTerm(mirror_points(self.points), self.field.mirrored(), noise)

    def places(self) -> Places:
        """See ``Term``."""
        return Places.of(self.points)

    def attach(self, surface: Surface, normals: Array) -> Attachment:
        """From the samples to the mesh, and back: every vertex reads the distance (Eq. 8)."""
        there = attach_points(surface, self.points, normals)
        return Attachment.joined([there, attach_vertices(surface, *self.field.at(surface.points))])


@dataclass(frozen=True)
class SideTerm:
    """Points inside or outside: they count on the wrong side only.

    Attributes:
        points: (N, 3) RAS mm.
        side: -1 inside, 1 outside.
        trust: so many measurements does each count as.
        own: standard deviation, in RMS radii.
    """

    points: Array
    side: int
    trust: float = SIDE_TRUST
    own: float = 0.0

    def mirrored(self) -> SideTerm:
        """See ``Term``."""
        return replace(self, points=mirror_points(self.points))

    def places(self) -> Places:
        """See ``Term``."""
        return Places.of(self.points, self.side, self.trust, own=self.own)

    def attach(self, surface: Surface, normals: Array) -> Attachment:
        """Along the normal at the closest point."""
        found = attach_points(surface, self.points, normals)
        wrong = self.side * found.residuals > 0
        own = np.full(len(self.points), self.own)
        return replace(found, trust=np.asarray(self.trust * wrong, dtype=np.float64), own=own)


@dataclass(frozen=True)
class GuideTerm:
    """``points`` (N, 3) RAS mm of a guessed surface: weak evidence where nothing was drawn.

    Attributes:
        points: see there.
        trust: so many measurements does each count as.
        own: standard deviation, in RMS radii.
    """

    points: Array
    trust: float
    own: float

    def mirrored(self) -> GuideTerm:
        """See ``Term``."""
        return replace(self, points=mirror_points(self.points))

    def places(self) -> Places:
        """See ``Term``."""
        return Places.of(self.points, 0, self.trust, own=self.own, drawn=False)

    def attach(self, surface: Surface, normals: Array) -> Attachment:
        """Along the normal at the closest point."""
        found = attach_points(surface, self.points, normals)
        count = len(self.points)
        return replace(
            found,
            trust=np.full(count, self.trust),
            own=np.full(count, self.own),
            drawn=np.zeros(count, dtype=bool),
        )


@dataclass(frozen=True)
class ImageTerm:
    """What an image reader says.

    Attributes:
        reading: see there.
        points: (N, 3) RAS mm, samples of the surface it says.
        trust: so many measurements does each count as: the reader's errors are alike nearby.
        own: (N,) standard deviation of each, in RMS radii.
        radius: of that surface, mm.
    """

    reading: ImageReading
    points: Array
    trust: float
    own: Array
    radius: float

    @classmethod
    def of(cls, reading: ImageReading) -> ImageTerm | None:
        """Of a reading; None of one that sees no organ."""
        if not (reading.distance < 0).any():
            return None
        surface = zero_level(reading.distance.astype(np.float64), reading.origin, reading.spacing)
        points = sample_surface(surface, IMAGE_SAMPLES, np.random.default_rng(0))
        points = points[reading.known_at(points)]
        if not len(points):
            return None
        radius = float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))
        alone = surface.area() / (np.pi * reading.alike_mm**2)  # places whose errors are not alike
        trust = min(1.0, alone / IMAGE_SAMPLES)
        return cls(reading, points, trust, reading.doubt_at(points) / radius, radius)

    def mirrored(self) -> ImageTerm:
        """See ``Term``."""
        return replace(self, reading=self.reading.mirrored(), points=mirror_points(self.points))

    def places(self) -> Places:
        """See ``Term``."""
        return replace(Places.of(self.points, 0, self.trust, drawn=False), own=self.own)

    def attach(self, surface: Surface, normals: Array) -> Attachment:
        """Along the normal at the closest point."""
        found = attach_points(surface, self.points, normals)
        count = len(self.points)
        return replace(
            found,
            trust=np.full(count, self.trust),
            own=self.own,
            drawn=np.zeros(count, dtype=bool),
        )


@dataclass(frozen=True)
class Evidence:
    """All that a fit has to explain."""

    terms: tuple[Term, ...]

    def mirrored(self) -> Evidence:
        """The same in a world mirrored right-left."""
        return Evidence(tuple(term.mirrored() for term in self.terms))

    def joined(self, term: Term) -> Evidence:
        """With one more."""
        return Evidence((*self.terms, term))

    def places(self) -> Places:
        """Of all terms."""
        return Places.joined([term.places() for term in self.terms])

    def dense(self) -> Dense | None:
        """What tells the surface to the voxel, where something does: a label map, or an image, a
        stack of parallel contours, or both."""
        for term in self.terms:
            if isinstance(term, LabelMapTerm):
                if term.noise is None:
                    return FollowedMask(term.field)
                return RepairedMask(term.field, term.noise, self.drawn())
        found = tuple(dense for dense in (self.image, self.stack()) if dense is not None)
        return InTurn(found) if len(found) > 1 else found[0] if found else None

    @cached_property
    def image(self) -> FollowedImage | None:
        """What an image says, given what was drawn; None without one, or with a label map, which
        says it better."""
        if any(isinstance(term, LabelMapTerm) for term in self.terms):
            return None
        for term in self.terms:
            if isinstance(term, ImageTerm):
                return FollowedImage(term.reading, self.drawn(), SHAPE_SPREAD * term.radius)
        return None

    def drawn(self) -> Array:
        """(N, 3) RAS mm, places on the boundary of outlines and clicks."""
        kinds = (OutlineTerm, ClickTerm)
        parts = [term.points for term in self.terms if isinstance(term, kinds)]
        return np.concatenate(parts) if parts else np.empty((0, 3))

    def whole(self) -> Array | None:
        """(N, 3) RAS mm, places all over the boundary, where an image tells of all of it."""
        for term in self.terms:
            if isinstance(term, ImageTerm):
                return term.points
        return None

    def stack(self) -> ContourStack | None:
        """All outlines, where they are parallel and at least three."""
        drawn = [term for term in self.terms if isinstance(term, OutlineTerm)]
        if any(abs(term.normal @ drawn[0].normal) < STACKED for term in drawn):
            return None
        return ContourStack.of([(term.normal, term.loops) for term in drawn])

    def boundary(self) -> Array:
        """(N, 3) RAS mm, all places on the boundary."""
        places = self.places()
        return places.points[places.sides == 0]

    def plane_gap(self) -> float:
        """Mm between neighbors of a stack of parallel planes, the median; infinite where none was
        drawn."""
        stack = self.stack()
        return float("inf") if stack is None else float(np.median(np.diff(stack.heights)))

    def attach(self, surface: Surface) -> Attachment:
        """The residuals of a mesh, RAS mm."""
        normals = surface.vertex_normals()
        return Attachment.joined([term.attach(surface, normals) for term in self.terms])


def evidence_of(observations: Observations) -> Evidence:
    """The terms of what a user gave: outlines at equal arc length, clicks, a label map, sides."""
    spacing = _spacing(observations)
    terms: list[Term] = []
    for plane in observations.planes():
        drawn = without_holes(plane)
        samples = [loop for outline in drawn for loop in outline.resampled(spacing)]
        loops = tuple(loop for outline in drawn for loop in outline.loops)
        terms.append(OutlineTerm(np.concatenate(samples), plane[0].normal, loops))
    clicks = distinct_clicks(observations.boundary_points())[0]
    if len(clicks):
        terms.append(ClickTerm(clicks))
    if observations.label_map is not None:
        noise = observations.mask_noise
        terms.append(_mask_term(observations.label_map, noise, observations.mask_points))
    for sets, side in ((observations.inside, -1), (observations.outside, 1)):
        if sets:
            terms.append(SideTerm(np.concatenate([s.points for s in sets]), side))
    image = None if observations.reading is None else ImageTerm.of(observations.reading)
    if image is not None:
        terms.append(image)
    return Evidence(tuple(terms))


def _spacing(observations: Observations) -> float:
    """Mm between samples of outlines; wider where very many were drawn."""
    drawn = sum(loop_length(loop) for outline in observations.outlines for loop in outline.loops)
    usual = observations.extent_mm() / SAMPLES_PER_EXTENT
    return float(max(usual, drawn / MOST_SAMPLES, 1e-3))


def _mask_term(label: Volume, noise: MaskNoise | None, believed: Array | None) -> LabelMapTerm:
    """Of a label map; ``believed`` (N, 3) are places of its border, RAS mm, None for all."""
    seen, edges = overview(label), () if noise is None else noise.edges
    sampled = believed
    if sampled is None:
        surface = apart(lambda: surface_from_label(seen, None, True, noise is not None))
        sampled = sample_surface(surface, MASK_SAMPLES, np.random.default_rng(0))
    for edge in edges:  # where the scan ends, the organ does not
        within = edge.beyond(sampled) < -float(seen.spacing.max())
        sampled = sampled[within] if within.any() else sampled
    field = MaskField.of(label, edges, node_mm(label))
    if noise is not None and noise.bias_mm:
        sampled = sampled + noise.bias_mm * MaskField.of(seen, edges).inward(sampled)
        field = field.smaller(noise.bias_mm)
        noise = replace(noise, bias_mm=0.0, spread_mm=noise.spread_mm + max(noise.bias_mm, 0))
    return LabelMapTerm(sampled, field, noise)
