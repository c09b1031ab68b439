"""Latents to start fits at: what the quick look's modes say of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.cases.canonical import CanonicalShapes
from model_server.training.pca import train_modes

RIDGE = 3.0


def regress_on_quick_look(
    shapes: CanonicalShapes,
    mean: NDArray[np.floating],
    root: NDArray[np.floating],
    latents: NDArray[np.floating],
) -> NDArray[np.float32]:
    """(Q + 1, K) whitened latents from the PCA's modes of the same shape, the last row constant.

    The quick look is a PCA of the same training shapes; a ridge regression starts every fit.

    Args:
        shapes: of the training.
        mean: (d,) of the latents.
        root: (d, K), latents = mean + root @ whitened.
        latents: (N, d) of the shapes.
    """
    modes = train_modes(shapes.surfaces, shapes.rms_radius)
    fields = np.stack([modes.grid.signed_distance(s, modes.clamp).ravel() for s in shapes.surfaces])
    basis = modes.fields.astype(np.float64)
    seen = np.linalg.lstsq(basis[:, 1:], (fields - basis[:, 0]).T, rcond=None)[0].T
    whitened = (latents - mean) @ np.linalg.pinv(root).T
    rows = np.column_stack([seen, np.ones(len(seen))])
    ridge = RIDGE * np.diag([*np.ones(seen.shape[1]), 0.0])
    found = np.linalg.solve(rows.T @ rows + ridge, rows.T @ whitened)
    return np.asarray(found, dtype=np.float32)
