"""An atlas in the latent axes that fits use says the same of every shape along them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_server.priors.atlas_files import pack_networks, unpack_networks
from model_server.priors.implicit_atlas import widening
from model_server.priors.implicit_atlas_decoder import AtlasDecoder, AtlasSizes
from model_server.training.atlas_trim import trimmed

SIZES = AtlasSizes(12, 2, (3, 3, 3), (8, 8, 8), 8, template_size=4, controls=(4, 4, 4))
CARD = {
    "latent_size": 12, "templates": 2, "base": [3, 3, 3], "channels": [8, 8, 8], "hidden": 8,
    "controls": [4, 4, 4],
}  # fmt: skip
BOX = [0.8, 0.9, 1.0]
KEPT = 5


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    decoder = AtlasDecoder(SIZES, BOX)
    torch.nn.init.normal_(decoder.spline.modes.weight, std=0.1)
    axes = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    root = axes * np.linspace(1.0, 0.1, 12)
    mean = 0.3 * rng.standard_normal(12)
    return pack_networks(decoder) | {
        "latent_mean": mean.astype(np.float32),
        "latent_root": root.astype(np.float32),
        "latents": (mean + rng.standard_normal((6, 12)) @ root.T).astype(np.float16),
        "from_quick": rng.standard_normal((4, 12)).astype(np.float32),
    }


def said(arrays, whitened):
    """Logits and deformations of a shape of the kept axes."""
    decoder = unpack_networks(arrays, CARD)
    root = arrays["latent_root"].astype(np.float64)[:, : len(whitened)]
    latents = torch.as_tensor(arrays["latent_mean"] + root @ whitened, dtype=torch.float32)[None]
    points = 2.0 * torch.rand((1, 200, 3), generator=torch.Generator().manual_seed(1)) - 1.0
    with torch.no_grad():
        logits, moved = decoder(latents, 0.7 * points)
    return logits.numpy(), moved.numpy(), int(decoder.choice(latents).argmax())


def test_shapes_along_the_kept_axes_stay(arrays):
    few = trimmed(arrays, KEPT)
    assert few["decoder.choice.weight"].shape == (2, KEPT)
    assert few["latents"].shape == (6, KEPT)
    for seed in range(4):
        whitened = np.random.default_rng(seed).standard_normal(KEPT)
        before, after = said(arrays, whitened), said(few, whitened)
        assert after[0] == pytest.approx(before[0], abs=0.02)
        assert after[1] == pytest.approx(before[1], abs=2e-3)
        assert after[2] == before[2]


def test_axes_are_widened_as_before(arrays):
    few = trimmed(arrays, KEPT)
    kept = widening(few["latent_root"].astype(np.float64), few["mean_variance"])
    assert kept == pytest.approx(
        widening(arrays["latent_root"].astype(np.float64))[:KEPT], rel=1e-3
    )
