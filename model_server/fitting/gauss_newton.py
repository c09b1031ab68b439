"""Gauss-Newton on pose and latent: the global stage of every fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.arrays import Matrix, factor_of, fetched, sent, single, solved_apart
from model_server.fitting.interrupt import check
from model_server.fitting.leftover import Kriging, Leftover, covariance_of
from model_server.fitting.model import ROBUST, FitState, Form, Seen
from model_server.fitting.terms import Evidence

Array = NDArray[np.float64]
LEAST_WEIGHT = 1e-6  # of the largest, to be heard
MOST_SHARED = 500  # residuals of annotations that are heard; their factor grows with their cube
MOST_SETTLED = 2500
CONTRADICTED = 2  # rounds in which annotations that contradict their neighbors lose trust
CONVERGED = 10.0  # of the energy: a step that promises less is taken as it is
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


@dataclass(frozen=True)
class _Scale:
    """What makes residuals independent and of unit variance.

    Residuals of annotations are alike where they are near: what shapes leave over joins the noise.
    Of very many, as a dense stack of contours has, every n-th is heard for its neighbors.

    Attributes:
        heard: (N,) those that count at all.
        root: (H,) of the weights of those heard.
        shared: (H,) which of them have a covariance.
        factor: (S, S) lower Cholesky factor of it, noise included, on the form's device: in single
            precision, as noise is no small part of it.
    """

    heard: NDArray[np.bool_]
    root: Array
    shared: NDArray[np.bool_]
    factor: Matrix

    @classmethod
    def of(cls, form: Form, state: FitState, seen: Seen, noise: float) -> _Scale:
        """At a state."""
        check()
        unit, left = form.unit(state), form.leftover
        weight = seen.weights(noise, left.spread * unit)
        heard = weight > LEAST_WEIGHT * weight.max(initial=0.0)
        if left.spread > 0.0:
            weight, heard = _thinned(weight, heard, seen.drawn)
        root = np.sqrt(weight[heard])
        shared = seen.drawn[heard] & (left.spread > 0.0)
        places = sent(form.device, seen.canonical[heard][shared])
        covariance = left.alike(places, places, form.rms_radius)
        covariance *= float((left.spread * unit) ** 2)
        factor = factor_of(covariance, 1.0 / weight[heard][shared])
        return cls(heard, root, shared, factor)

    def __call__(self, values: Array) -> Array:
        """(N, ...) residuals or their changes -> (H, ...) scaled."""
        values = values[self.heard]
        scaled = values * self.root.reshape(-1, *[1] * (values.ndim - 1))
        scaled[self.shared] = fetched(solved_apart(self.factor, values[self.shared]))
        return np.asarray(scaled)

    def energy(self, residuals: Array) -> float:
        """Twice their negative log likelihood, up to what depends on their covariance alone: a mesh
        is attached in more or fewer places after a step, which says nothing of the step."""
        return float(np.square(self(residuals)).sum())

    def volume(self) -> float:
        """Log determinant of the covariance: what ``energy`` leaves out."""
        alone = np.log(self.root[~self.shared]).sum()
        return float(2.0 * (np.log(fetched(self.factor.diagonal())).sum() - alone))


def _thinned(
    weight: Array, heard: NDArray[np.bool_], drawn: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    """(N,) weights and who is heard: of what was ``drawn`` no more than ``MOST_SHARED``."""
    every = np.flatnonzero(heard & drawn)
    step = -(-len(every) // MOST_SHARED)
    if step <= 1:
        return weight, heard
    kept = heard & ~drawn
    kept[every[::step]] = True
    return np.where(drawn, step * weight, weight), kept


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
    levels = noises * form.unit(starts[0])
    form.renew(starts[0], 0)
    tried = [_step(form, s, form.look(s, evidence), evidence, prior, levels[0]) for s in starts]
    state, seen = min(tried, key=lambda found: found[0].energy)
    for index, noise in enumerate(levels[1:], start=1):
        form.renew(state, index)
        state, seen = _step(form, state, seen, evidence, prior, noise)
    scale = _Scale.of(form, state, seen, levels[-1])
    energy = scale.energy(seen.residuals) + scale.volume() + prior.energy(state)
    return replace(state, energy=energy, misfit=_misfit(seen) / form.unit(state))


def _misfit(seen: Seen) -> float:
    """Root mean square residual of annotations that say something."""
    told = seen.residuals[seen.drawn & (seen.counts > 0.0)]
    return float(np.sqrt(np.square(told).mean())) if len(told) else 0.0


def _step(
    form: Form, state: FitState, seen: Seen, evidence: Evidence, prior: Prior, noise: float
) -> tuple[FitState, Seen]:
    """A step and the residuals after it; of damped forms shortened until the energy falls."""
    check()
    scale = _Scale.of(form, state, seen, noise)
    jacobian, residuals = scale(form.jacobian(state, seen)), scale(seen.residuals)
    normal = jacobian.T @ jacobian + prior.precision(len(state.latent))
    gradient = jacobian.T @ residuals
    gradient[:7] += prior.pose @ state.moved
    gradient[7:] += prior.latent * state.latent
    covariance = np.linalg.inv(normal)
    step = _within_reach(-covariance @ gradient, prior)
    before = scale.energy(seen.residuals) + prior.energy(state)
    promised = -float(gradient @ step)
    if not form.damped or promised < CONVERGED:
        moved = replace(state.after(step), covariance=covariance, energy=before - promised)
        return moved, form.look(moved, evidence)
    for share in STEP_SHARES:
        moved = state.after(share * step)
        after = form.look(moved, evidence)
        there = _Scale.of(form, moved, after, noise).energy(after.residuals)
        energy = there + prior.energy(moved)
        if energy <= before:
            return replace(moved, covariance=covariance, energy=energy), after
    return replace(state, covariance=covariance, energy=before), seen


def _within_reach(step: Array, prior: Prior) -> Array:
    """The step, shortened where its pose leaves the linearization."""
    return np.asarray(step * min(1.0, 2.0 / max(float(np.abs(step[:7] / prior.reach).max()), 1e-9)))


def settle(
    form: Form,
    state: FitState,
    evidence: Evidence,
    variance: bool = True,
    most: int = MOST_SETTLED,
) -> FitState:
    """With what shapes leave over of the annotations: the surface then passes through them.

    Args:
        form: of the prior.
        state: where pose and latent are.
        evidence: RAS mm.
        variance: whether it will be asked how sure the surface is.
        most: residuals that are looked at; of more, some are left out.
    """
    left = form.leftover.between(evidence.plane_gap() / (form.rms_radius * state.pose.scale))
    for turn in range(form.settlings):
        check()
        seen = form.apart(state, evidence)
        last = turn == form.settlings - 1 or seen.normals is None  # a distance is one at once
        found = _left_over(form, state, seen, left, variance and last, most)
        if found is None:
            return state
        state = replace(state, leftover=found)
        if last:
            break
    return state


def _left_over(
    form: Form, state: FitState, seen: Seen, left: Leftover, variance: bool, most: int
) -> Kriging | None:
    """What is left over of the residuals of annotations; None of none. Arguments as above."""
    radius, unit = form.rms_radius, form.unit(state)
    weight = seen.weights(left.noise * unit, left.spread * unit)
    heard = (weight > LEAST_WEIGHT * weight.max(initial=0.0)) & seen.drawn
    if left.spread == 0.0 or not heard.any():
        return None
    every = np.flatnonzero(heard)
    chosen = every[:: -(-len(every) // most)]
    share = radius / unit  # canonical units
    given = [seen.canonical, share * seen.residuals, share**2 / weight, seen.normals,
             share * form.jacobian(state, seen) if variance else None]  # fmt: skip
    places, values, doubt, normals, by_shape = (
        None if rows is None else sent(form.device, rows[chosen]) for rows in given
    )
    spread, length = left.spread * radius, left.length * radius
    among = covariance_of(places, spread, length, normals)
    roughly = single(among)  # enough to tell who contradicts whom
    for _ in range(CONTRADICTED):
        check()
        found = Kriging.of(places, values, doubt, spread, length, None, normals, roughly)
        doubt = doubt * (1.0 + (found.missed(doubt) / ROBUST) ** 2 / doubt)
    check()
    return Kriging.of(places, values, doubt, spread, length, by_shape, normals, among)
