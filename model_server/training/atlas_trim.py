"""ImplicitAtlas' latents in the axes that fits use, the others left away: files a third as large.

Networks take latents in by linear layers; turned into these axes, they say the same of every shape
that a fit can reach.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.priors.atlas_field import AtlasSettings

Arrays = dict[str, NDArray[Any]]
TAKE_LATENTS = ("decoder.deformation_net.first", "decoder.choice", "decoder.spline.modes")


def trimmed(arrays: Arrays, axes: int = AtlasSettings.modes) -> Arrays:
    """The arrays of a trained atlas with latents z' = axes' (z - mean), the widest ones alone.

    Args:
        arrays: "latent_mean" (c,), "latent_root" (c, c) with orthogonal columns, the widest first,
            "latents", "from_quick" and those of the networks.
        axes: so many at most.
    """
    mean = arrays["latent_mean"].astype(np.float64)
    root = arrays["latent_root"].astype(np.float64)
    spread = np.linalg.norm(root, axis=0)
    count = min(axes, len(spread))
    turned = root[:, :count] / spread[:count]
    found = dict(arrays)
    found["latents"] = ((arrays["latents"].astype(np.float64) - mean) @ turned).astype(np.float16)
    found["latent_mean"] = np.zeros(count, dtype=np.float32)
    found["latent_root"] = np.diag(spread[:count]).astype(np.float16)
    found["mean_variance"] = np.array([np.mean(spread**2)], dtype=np.float32)
    found["from_quick"] = arrays["from_quick"][:, :count].astype(np.float16)
    for name in TAKE_LATENTS:
        weights = arrays.get(f"{name}.weight")
        if weights is None:
            continue
        wide = weights.astype(np.float64)
        biases = arrays[f"{name}.bias"].astype(np.float64)
        found[f"{name}.weight"] = (wide @ turned).astype(np.float16)
        found[f"{name}.bias"] = (biases + wide @ mean).astype(np.float16)
    return found
