"""What each method is given: named ways of annotating a case."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model_server.cases import hands, simulate
from model_server.cases.stacks import Stack
from model_server.errors import ShapePriorError
from model_server.evaluation.degraded_masks import network_mask
from model_server.evaluation.metrics import Truth
from model_server.observations import MaskNoise, Observations

Annotate = Callable[[Truth, np.random.Generator], Observations]


@dataclass(frozen=True)
class Protocol:
    """A way of annotating a case.

    Attributes:
        name: as the user writes it.
        description: one sentence for tables.
        annotate: truth and generator -> what the methods are given.
        known_pose: whether the true center and scale are given too, as some papers do.
    """

    name: str
    description: str
    annotate: Annotate
    known_pose: bool = False

    def observations(self, truth: Truth, case: str, repeat: int = 0) -> Observations:
        """The annotations of one case: the same for every method and in every run.

        Args:
            truth: of the case.
            case: its name, which seeds the randomness.
            repeat: another draw for the same case.
        """
        seed = [zlib.crc32(case.encode()), repeat]
        return self.annotate(truth, np.random.default_rng(seed))


def _outlines(truth: Truth, rng: np.random.Generator) -> Observations:
    return simulate.three_outlines(truth.surface, rng)


def _two(truth: Truth, rng: np.random.Generator) -> Observations:
    planes = simulate.middle_planes(truth.surface, rng)[:2]
    return simulate.draw_outlines(truth.surface, planes, rng)


def _contradicting(truth: Truth, rng: np.random.Generator) -> Observations:
    return hands.contradicting(simulate.three_outlines(truth.surface, rng), rng)


def _one(truth: Truth, rng: np.random.Generator) -> Observations:
    planes = simulate.middle_planes(truth.surface, rng)
    return simulate.draw_outlines(truth.surface, [planes[int(rng.integers(3))]], rng)


def _exact(truth: Truth, rng: np.random.Generator) -> Observations:
    return simulate.exact_outlines(
        truth.surface, simulate.middle_planes(truth.surface, rng), samples=1000
    )


def _paper(truth: Truth, rng: np.random.Generator) -> Observations:
    planes = simulate.center_planes(truth.surface)
    return simulate.exact_outlines(truth.surface, planes, rng=rng)


def _oblique(truth: Truth, rng: np.random.Generator) -> Observations:
    planes = simulate.oblique_planes(truth.surface, rng)
    return simulate.draw_outlines(truth.surface, planes, rng)


def _mixture(truth: Truth, rng: np.random.Generator) -> Observations:
    return simulate.mixture(truth.surface, rng)


def _network_mask(truth: Truth, rng: np.random.Generator) -> Observations:
    return Observations(label_map=network_mask(truth.label, rng), mask_noise=MaskNoise())


def _mask(truth: Truth, rng: np.random.Generator) -> Observations:
    return Observations(label_map=simulate.degraded_mask(truth.label, rng))


FIXED = {
    p.name: p
    for p in (
        Protocol(
            "outlines",
            "axial, coronal and sagittal outline near the middle, 16 control points each, 0.25 mm "
            "jitter, pose unknown",
            _outlines,
        ),
        Protocol("two-outlines", "the first two of them", _two),
        Protocol("one-outline", "one of them", _one),
        Protocol("none", "no annotation: the image alone", lambda truth, rng: Observations()),
        Protocol(
            "outlines-contradicting",
            "as outlines, each shifted within its plane by 2 to 5 mm",
            _contradicting,
        ),
        Protocol(
            "outlines-exact",
            "the exact sections of three planes near the middle, pose unknown",
            _exact,
        ),
        Protocol(
            "outlines-paper",
            "5,000 samples on each exact section of three planes through the centroid, true "
            "center and scale given (DALS, Table 3)",
            _paper,
            known_pose=True,
        ),
        Protocol(
            "outlines-paper-unknown",
            "as outlines-paper, pose unknown",
            _paper,
        ),
        Protocol("oblique", "three drawn outlines, tilted up to 30 degrees", _oblique),
        Protocol(
            "hands",
            "three outlines by hands that vary: 8 to 40 control points a curve, uneven, 0.25 to "
            "1 mm jitter, small crossings, off center by up to 25 %, tilted up to 30 degrees; pose "
            "unknown",
            lambda truth, rng: hands.varied_outlines(truth.surface, rng),
        ),
        Protocol("mixture", "two drawn outlines and ten clicks, pose unknown", _mixture),
        Protocol("mask", "a degraded label map to refine, pose unknown", _mask),
        Protocol(
            "network-mask",
            "a mask to repair: leaks, a missing end, missing slices, islands, slices of 2.5 to 5 "
            "mm; pose unknown",
            _network_mask,
        ),
    )
}


def _points(count: int) -> Protocol:
    return Protocol(
        f"points-{count}",
        f"{count} exact points all over the surface, pose unknown",
        lambda truth, rng: simulate.surface_points(truth.surface, rng, count),
    )


def _clicks(count: int) -> Protocol:
    return Protocol(
        f"clicks-{count}",
        f"{count} clicks on the boundary, 0.25 mm jitter, pose unknown",
        lambda truth, rng: simulate.clicks(truth.surface, count, rng),
    )


def _planes(count: int) -> Protocol:
    return Protocol(
        f"planes-{count}",
        f"exact sections of {count} planes, orientations in turn, pose unknown",
        lambda truth, rng: simulate.exact_outlines(
            truth.surface, simulate.n_planes(truth.surface, count), rng=rng
        ),
    )


def _drawn(count: int) -> Protocol:
    return Protocol(
        f"drawn-{count}",
        f"{count} drawn outlines, orientations in turn, 16 control points each, 0.25 mm jitter, "
        "pose unknown",
        lambda truth, rng: simulate.draw_outlines(
            truth.surface, simulate.n_planes(truth.surface, count), rng
        ),
    )


def _stack(every: int) -> Protocol:
    return Protocol(
        f"stack-{every}",
        f"every {every}th axial contour of the label, first and last included, pose unknown",
        lambda truth, rng: Stack.of(truth.label, every).observations(),
    )


def _fallen(kind: str, where: str) -> Callable[[int], Protocol]:
    draw = hands.CLICKS[kind]
    return lambda count: Protocol(
        f"clicks-{kind}-{count}",
        f"{count} clicks {where}, 0.25 mm jitter, pose unknown",
        lambda truth, rng: draw(truth.surface, count, rng),
    )


COUNTED: dict[str, Callable[[int], Protocol]] = {
    "points": _points,
    "clicks": _clicks,
    "clicks-random": _fallen("random", "independent and uniform over the boundary"),
    "clicks-clustered": _fallen("clustered", "around four places of the boundary"),
    "clicks-slices": _fallen("slices", "in three parallel slices only"),
    "clicks-half": _fallen("half", "on one half of the organ only"),
    "planes": _planes,
    "drawn": _drawn,
    "stack": _stack,
}


def find_protocol(name: str) -> Protocol:
    """A protocol by name: one of ``FIXED``, or one of ``COUNTED`` with its number: "clicks-20".

    Raises:
        ShapePriorError: no such protocol.
    """
    if name in FIXED:
        return FIXED[name]
    kind, _, count = name.rpartition("-")
    if kind in COUNTED and count.isdecimal() and int(count) > 0:
        return COUNTED[kind](int(count))
    known = ", ".join([*FIXED, *(f"{kind}-N" for kind in COUNTED)])
    raise ShapePriorError(
        f"There is no protocol called '{name}'.", f"Choose one of: {known}.", "unknown-protocol"
    )
