"""The paper's protocol: shapes in a box, latents of unknown ones by optimization."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model_server.training.atlas_config import AtlasTraining
from model_server.training.atlas_protocol import (
    NOMINAL_RADIUS,
    Encoded,
    VolumeEncoder,
    scores,
    volume_shapes,
)
from model_server.training.implicit_atlas import AtlasTrainer

TINY = AtlasTraining(
    latent_size=8, templates=2, base=(3, 3, 3), channels=(16, 16, 8), hidden=16,
    steps=150, batch=4, near_points=512,
)  # fmt: skip


def ellipsoid(index: int) -> np.ndarray:
    """A mask that fills its box but for one dented side."""
    axis = (np.arange(128) + 0.5) / 64 - 1
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    dent = (x - 1.0) ** 2 + y**2 + z**2 < (0.3 + 0.08 * index) ** 2
    return (x**2 + y**2 + z**2 < 1) & ~dent


@pytest.mark.slow
def test_shapes_are_described_in_places():
    shapes = volume_shapes([ellipsoid(i) for i in range(2)], TINY)
    assert len(shapes.grid) == len(shapes.near) == len(shapes.wrapped) == 2
    near = shapes.near[0]
    radius = np.linalg.norm(near[:, :3], axis=1)
    clear = near[:, 2] < 0.3  # away from the dent
    assert np.abs((radius - 1.0) - near[:, 3])[clear].mean() < 0.01
    assert np.linalg.norm(shapes.wrapped[0], axis=1).max() < 1.05


@pytest.mark.slow
def test_copies_fill_their_box_too():
    found = volume_shapes([ellipsoid(1)], replace(TINY, augmentations=2))
    on = np.abs(found.near[:, :, 3]) < 0.01
    for cloud, chosen in zip(found.near, on, strict=True):
        assert np.abs(cloud[chosen, :3]).max(axis=0) == pytest.approx(np.ones(3), abs=0.03)


@pytest.mark.slow
def test_known_and_unknown_shapes_are_reconstructed():
    shapes = volume_shapes([ellipsoid(i) for i in range(6)], TINY)
    trainer = AtlasTrainer(shapes, 6, NOMINAL_RADIUS, TINY)
    trained = trainer.run()
    encoder = VolumeEncoder(shapes, trained, TINY, steps=60)
    unknown = ellipsoid(2)
    new = volume_shapes([unknown], TINY)
    encoded = encoder.encode(new)
    found = scores(trained.decoder, encoded, [unknown])
    assert found["dsc"] > 95
    assert found["nsd"] > 50
    assert scores(trained.decoder, encoded, [~unknown])["dsc"] < 50
    # The template that was held is the best one, at least by what is seen.
    assert encoded.templates is not None
    other = Encoded(encoded.latents, 1 - encoded.templates)
    assert scores(trained.decoder, other, [unknown])["dsc"] < found["dsc"]
