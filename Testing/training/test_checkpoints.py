"""What is kept of a training that is interrupted, killed, or goes on for minutes."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from model_server.geometry.icosphere import icosphere
from model_server.reconstruction import Surface
from model_server.training import checkpoints
from model_server.training.checkpoints import CHECKPOINT_FILE, Checkpoint, load_state, told_state
from model_server.training.deepsdf import SdfTraining, train_deepsdf


class Counting:
    """A training that counts its steps."""

    def __init__(self, file: Path) -> None:
        self.done = 0
        self.checkpoint = Checkpoint(file, lambda: {"step": self.done})

    def run(self, steps: int, struck: int) -> None:
        with self.checkpoint.kept():
            while self.done < steps:
                with self.checkpoint.step():
                    if self.done == struck:
                        signal.raise_signal(signal.SIGINT)
                    self.done += 1


def test_a_step_is_whole_and_kept_when_it_is_interrupted(tmp_path):
    training = Counting(tmp_path / CHECKPOINT_FILE)
    with pytest.raises(KeyboardInterrupt):
        training.run(10, 4)
    assert load_state(tmp_path / CHECKPOINT_FILE) == {"step": 5}
    assert told_state(tmp_path) == f"Kept in '{tmp_path}': 5 steps of the training."


def test_a_state_is_written_by_time(tmp_path, monkeypatch):
    training = Counting(tmp_path / CHECKPOINT_FILE)
    training.run(3, -1)
    assert load_state(tmp_path / CHECKPOINT_FILE) is None  # within the first minute
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    training.run(6, -1)
    assert load_state(tmp_path / CHECKPOINT_FILE) == {"step": 6}


def test_nothing_kept_is_said(tmp_path):
    assert told_state(tmp_path).startswith("Nothing was kept")


def test_deepsdf_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    sphere = icosphere(3)
    shapes = [Surface(s * sphere.points, sphere.triangles) for s in (0.4, 0.5)]
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    file = tmp_path / CHECKPOINT_FILE
    config = SdfTraining(steps=2, near=200, far=100)
    train_deepsdf(shapes, config, checkpoint=file)
    kept = torch.load(file, weights_only=True)
    assert kept["step"] == 2
    weights = train_deepsdf(shapes, config, checkpoint=file)  # no step is left
    np.testing.assert_allclose(
        weights["latent_mean"], kept["latents"]["weight"].numpy().mean(axis=0), atol=1e-6
    )
