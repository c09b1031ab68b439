"""How the errors of a fitted surface go together, in few numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from model_server.fitting.image_surface import FollowedImage
from model_server.fitting.interrupt import check
from model_server.fitting.model import FitState, Form
from model_server.reconstruction import JointSpread, Surface

Array = NDArray[np.float64]
MOST_POINTS = 256
MOST_PARTS = 40  # columns of the root
HAND_MM = 0.25  # by which a drawn outline is off


def joint_spread(
    form: Form,
    state: FitState,
    surface: Surface,
    canonical: Array,
    scale: float,
    image: FollowedImage | None = None,
) -> JointSpread:
    """Of the surface of a fit.

    The covariance's largest principal parts are kept: what is left of it is alike over distances
    that no outline bridges.

    Args:
        form: that found it.
        state: of the fit.
        surface: V vertices, RAS mm.
        canonical: (V, 3) the same vertices in the canonical frame.
        scale: true standard deviation for each computed one (``Calibration.factor``).
        image: that the surface follows.
    """
    vertices = form.witnesses(state, canonical, MOST_POINTS)
    check()
    covariance = form.covariance(state, canonical[vertices])
    if image is not None:
        covariance = image.covariance(surface.points[vertices], covariance)
    check()
    count = len(vertices)
    largest = (max(0, count - MOST_PARTS), count - 1)
    # Of the largest parts, single precision tells enough.
    values, parts = linalg.eigh(covariance.astype(np.float32), subset_by_index=largest)
    root = scale * parts * np.sqrt(np.maximum(values, 0.0))
    left = form.leftover.noise * form.rms_radius * state.pose.scale
    return JointSpread(vertices.astype(np.int32), root, float(np.hypot(HAND_MM, left)))
