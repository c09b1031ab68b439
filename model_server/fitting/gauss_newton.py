"""Gauss-Newton on pose and latent: the global stage of every fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.interrupt import check
from model_server.fitting.model import FitState, Form, Seen
from model_server.fitting.terms import Evidence

Array = NDArray[np.float64]
STEP_SHARES = (1.0, 0.5, 0.2)  # of a step, tried in turn until the energy falls


@dataclass(frozen=True)
class Prior:
    """What is known of pose and latent before anything was drawn.

    Attributes:
        pose: (7, 7) precision of the pose step from the expected pose.
        latent: precision of a whitened latent.
        reach: (7,) units of a pose step: beyond two of them the linearization does not hold.
    """

    pose: Array
    latent: float
    reach: Array

    @classmethod
    def of(cls, form: Form, spread: Array, strength: float) -> Prior:
        """From the covariance of the pose prior (7, 7) and the user's strength."""
        return cls(np.asarray(np.linalg.inv(spread)), form.precision(strength), form.reach(spread))

    def precision(self, count: int) -> Array:
        """(7 + K, 7 + K) of pose step and ``count`` latents."""
        whole = np.zeros((7 + count,) * 2)
        whole[:7, :7] = self.pose
        whole[7:, 7:] = self.latent * np.eye(count)
        return whole

    def energy(self, state: FitState) -> float:
        """Twice the negative log density of a state, up to a constant."""
        moved = state.moved @ self.pose @ state.moved
        return float(moved + self.latent * (state.latent @ state.latent))


def solve(
    form: Form, starts: Sequence[FitState], evidence: Evidence, prior: Prior, noises: Array
) -> FitState:
    """One step for each of ``noises`` (of the annotations, RMS radii), which are annealed.

    Args:
        form: of the prior.
        starts: take the first step side by side; the best goes on.
        evidence: RAS mm.
        prior: of pose and latent.
        noises: (steps,).
    """
    step = _damped if form.damped else _undamped
    levels = noises * form.unit(starts[0])
    form.renew(starts[0], 0)
    tried = [step(form, s, form.look(s, evidence), evidence, prior, levels[0]) for s in starts]
    state, seen = min(tried, key=lambda found: found[0].energy)
    for index, noise in enumerate(levels[1:], start=1):
        form.renew(state, index)
        state, seen = step(form, state, seen, evidence, prior, noise)
    return state


def _damped(
    form: Form, state: FitState, seen: Seen, evidence: Evidence, prior: Prior, noise: float
) -> tuple[FitState, Seen]:
    """A step, shortened until the energy falls, and the residuals after it."""
    check()
    jacobian, weight = form.jacobian(state, seen), seen.weights(noise)
    precision = prior.precision(len(state.latent))
    normal = (jacobian * weight[:, None]).T @ jacobian + precision
    gradient = jacobian.T @ (weight * seen.residuals) + precision @ state.at()
    step = _within_reach(-np.linalg.solve(normal, gradient), prior)
    covariance = np.linalg.inv(normal)
    before = seen.energy(noise) + prior.energy(state)
    for share in STEP_SHARES:
        moved = state.after(share * step)
        after = form.look(moved, evidence)
        energy = after.energy(noise) + prior.energy(moved)
        if energy <= before:
            return replace(moved, covariance=covariance, energy=energy), after
    return replace(state, covariance=covariance, energy=before), seen


def _undamped(
    form: Form, state: FitState, seen: Seen, evidence: Evidence, prior: Prior, noise: float
) -> tuple[FitState, Seen]:
    """A whole step, for fields that are linear in their latents: the annealing alone is enough."""
    check()
    jacobian = form.jacobian(state, seen)
    weighted = jacobian * seen.weights(noise)[:, None]
    normal = weighted.T @ jacobian + prior.precision(len(state.latent))
    gradient = weighted.T @ seen.residuals
    gradient[:7] += prior.pose @ state.moved
    gradient[7:] += prior.latent * state.latent
    moved = state.after(_within_reach(-np.linalg.solve(normal, gradient), prior))
    after = form.look(moved, evidence)
    energy = after.energy(noise) + prior.energy(moved)
    return replace(moved, covariance=np.linalg.inv(normal), energy=energy), after


def _within_reach(step: Array, prior: Prior) -> Array:
    """The step, shortened where its pose leaves the linearization."""
    return np.asarray(step * min(1.0, 2.0 / max(float(np.abs(step[:7] / prior.reach).max()), 1e-9)))
