"""Which places of a mask a prior's template confirms (ReShapeIT, section 3.2: the template
interaction module).

The template is registered to the mask's surface by coherent point drift (Myronenko and Song 2010;
rigid with a scale), in which places that no place of the template explains are outliers. Those that
match best are what codes and deformation are fitted to; the template itself stays.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from model_server.fitting.checks import check_mask_size
from model_server.fitting.interrupt import apart
from model_server.fitting.mask_parts import parts_of_organ
from model_server.fitting.pose_prior import PosePrior, mirror_points
from model_server.geometry.fewer_voxels import overview
from model_server.geometry.labels import surface_from_label
from model_server.geometry.mask_border import cut_to_labels
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations, Volume
from model_server.priors.card import PriorCard
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
TEMPLATE_POINTS, MASK_POINTS = 250, 800  # that are registered
OUTLIERS = 0.1  # share of the mask's places that are expected to be none of the organ's
MOST_ITERATIONS = 60
MATCHED = 0.5  # share of a mask's places that are fitted, chosen on validation cases; paper: 0.25


class HasShape(Protocol):
    """A prior whose template can be registered to a mask.

    Attributes:
        card, pose_prior: of the prior.
        confirmed: digest of the last mask, and the places of it that were confirmed: edits beside
            a mask need no registration anew.
    """

    card: PriorCard
    pose_prior: PosePrior
    confirmed: tuple[bytes, Array] | None

    def registered(self) -> Surface:
        """The shape that is, canonical frame."""
        ...


@dataclass(frozen=True)
class Interaction:
    """Places of a mask's surface, and how surely the template explains each.

    Attributes:
        points: (N, 3) RAS mm.
        confidence: (N,) posterior probability of a place to be one of the template's, 0 to 1.
        spread_mm: standard deviation of the match.
    """

    points: Array
    confidence: Array
    spread_mm: float

    def best(self, share: float) -> Array:
        """The points (K, 3) of the largest confidence.

        Args:
            share: of all; the paper's is 0.25.
        """
        count = max(1, round(share * len(self.points)))
        return np.asarray(self.points[np.argsort(-self.confidence, kind="stable")[:count]])


def interacted(prior: HasShape, observations: Observations) -> Observations:
    """With those places alone of a mask to repair that the prior's shape explains best.

    Raises:
        ShapePriorError: see ``check_mask_size``.
    """
    if observations.mask_noise is None or observations.label_map is None:
        return observations
    observations = replace(observations, label_map=cut_to_labels(observations.label_map))
    check_mask_size(observations.label_map, prior.card)
    observations = parts_of_organ(observations, prior.card)
    label = observations.label_map
    assert label is not None
    key = _digest(label)
    if prior.confirmed is None or prior.confirmed[0] != key:
        prior.confirmed = key, _confirmed(prior, observations, label)
    return replace(observations, mask_points=prior.confirmed[1])


def _digest(label: Volume) -> bytes:
    found = hashlib.blake2b(np.packbits(np.asarray(label.array) > 0).data, digest_size=16)
    found.update(str(label.array.shape).encode())
    found.update(np.ascontiguousarray(label.ijk_to_ras).tobytes())
    return found.digest()


def _confirmed(prior: HasShape, observations: Observations, label: Volume) -> Array:
    """(K, 3) RAS mm, the best places; of paired organs by the side that fits better."""
    initial = apart(lambda: surface_from_label(overview(label), whole=True, keep_volume=True))
    shape, found = prior.registered(), []
    for mirrored in (False, True) if prior.card.mirrors else (False,):
        points = mirror_points(initial.points) if mirrored else initial.points
        pose, _ = prior.pose_prior(observations, points, True)
        there = pose.apply(shape.points)
        if mirrored:
            surface = Surface(mirror_points(there), shape.triangles[:, ::-1])
        else:
            surface = Surface(there, shape.triangles)
        found.append(interact(surface, initial))
    return min(found, key=lambda each: each.spread_mm).best(MATCHED)


def interact(template: Surface, initial: Surface, seed: int = 0) -> Interaction:
    """Register a template to a mask's surface.

    Args:
        template: RAS mm, about where the organ is.
        initial: of the mask, RAS mm.
        seed: of the samples.
    """
    rng = np.random.default_rng(seed)
    ours = sample_surface(template, TEMPLATE_POINTS, rng)
    theirs = sample_surface(initial, MASK_POINTS, rng)
    middle = theirs.mean(axis=0)
    size = float(np.sqrt(((theirs - middle) ** 2).sum(axis=1).mean()))
    found = apart(lambda: _registered((theirs - middle) / size, (ours - middle) / size))
    return Interaction(theirs, found[0], found[1] * size)


def _registered(target: Array, source: Array) -> tuple[Array, float]:
    """Confidence of each target, and the standard deviation of the match; both of size one."""
    with warnings.catch_warnings():  # the library's own, of its spelling, where it is compiled
        warnings.simplefilter("ignore", SyntaxWarning)
        from pycpd import RigidRegistration

    class Registration(RigidRegistration):  # type: ignore[misc]
        """The library's, its distances by another library, in a fourth of the time."""

        def expectation(self) -> None:
            """Which place of the template explains which of the mask."""
            near = np.exp(cdist(self.TY, self.X, "sqeuclidean") / (-2.0 * self.sigma2))
            c = (2.0 * np.pi * self.sigma2) ** (self.D / 2)
            c *= self.w / (1.0 - self.w) * self.M / self.N
            near /= np.maximum(near.sum(axis=0), np.finfo(float).eps) + c
            self.P, self.Pt1, self.P1 = near, near.sum(axis=0), near.sum(axis=1)
            self.Np = self.P1.sum()

    registration = Registration(X=target, Y=source, w=OUTLIERS, max_iterations=MOST_ITERATIONS)
    registration.register()
    registration.expectation()
    return np.asarray(registration.Pt1), float(np.sqrt(registration.sigma2))
