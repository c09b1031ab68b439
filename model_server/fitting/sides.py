"""Which side of a paired organ was drawn, left or right: that which explains it better."""

from __future__ import annotations

import numpy as np

from model_server.fitting.model import FitState, Form
from model_server.fitting.terms import Evidence
from model_server.reconstruction import Surface

INDEPENDENT = 120.0  # residuals that a stack of contours counts as, chosen on validation kidneys


def stack_energy(form: Form, state: FitState, evidence: Evidence, prior: float) -> float:
    """Twice the negative log posterior of a side, the noise unknown, given parallel contours.

    A field is asked to vanish on contours, and a wrong side does so about as well where it passes
    elsewhere in their planes, too, which nothing between parallel planes contradicts. So residuals
    are measured on its surface, both ways. Gaussians of unknown variance under the prior 1 / sigma
    (Gelman et al., Bayesian Data Analysis, section 3.2) leave n log(sum of squares).

    Args:
        form: of the prior.
        state: where this side's fit ended.
        evidence: RAS mm, of this side's world.
        prior: energy of the state without any annotation.
    """
    canonical = form.shape(state)
    placed = Surface(state.pose.apply(canonical.points), canonical.triangles)
    attached = evidence.attach(placed)
    radius = form.rms_radius * state.pose.scale
    square = float(np.average(attached.residuals**2, weights=attached.trust)) / radius**2
    return prior + INDEPENDENT * float(np.log(max(square, 1e-12)))
