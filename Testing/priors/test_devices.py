"""The CPU and a GPU find the same surfaces, by the same source on NumPy's arrays and torch's.

A linearized decoder is not continuous: where rounding switches one of its ReLUs, a node's Jacobian
jumps, and the surface by as much as is allowed here. The annotations below are no such case.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model_server.evaluation.metrics import Truth
from model_server.evaluation.protocols import find_protocol
from model_server.io.volumes import read_volume
from model_server.priors import atlas_field, dals_arrays, dals_decoder, implicit_atlas, pca
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "Resources" / "example"
MOST_MM = 1e-3
TORCH_CPU = "cpu:0"  # torch's own name for it; "cpu" is NumPy's
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA device here")
PRIORS = ["hippocampus-dals", "hippocampus-atlas", "hippocampus-pca"]
SETTINGS = {
    "preview": FitSettings(local=False, remesh=False),
    "final": FitSettings(remesh=False),
}


@pytest.fixture
def stand_in(monkeypatch) -> Callable[[], None]:
    """From its call on, priors for "cuda" compute with torch on the CPU, as they do on a GPU."""

    def begin() -> None:
        for module in (dals_arrays, pca):
            monkeypatch.setattr(module, "computes_on_cpu", lambda device: device == "cpu")
        for module in (dals_decoder, implicit_atlas, pca):
            monkeypatch.setattr(module, "choose_device", lambda device: torch.device(TORCH_CPU))
        for kind in (dals_decoder.DeviceDecoder, atlas_field.AtlasField):
            monkeypatch.setattr(kind, "device", TORCH_CPU)  # tensors there forget the number

    return begin


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth.from_label(read_volume(EXAMPLE / "truth.nii.gz"))


def agree(
    name: str, truth: Truth, kind: str, settings: FitSettings, begin: Callable[[], None]
) -> str:
    """Fit on both, ``begin`` in between; the device of the second."""
    drawn = find_protocol(kind).observations(truth, "bundled")
    *_, cpu = load_prior(name, "cpu").fit(drawn, settings=settings)
    begin()
    *_, other = load_prior(name, "cuda").fit(drawn, settings=settings)
    assert cpu.provenance.device == "cpu"
    assert np.array_equal(cpu.surface.triangles, other.surface.triangles)
    apart = np.linalg.norm(cpu.surface.points - other.surface.points, axis=1)
    assert apart.max() < MOST_MM
    assert np.abs(cpu.uncertainty_mm - other.uncertainty_mm).max() < MOST_MM
    errors = [each.joint_spread.root @ each.joint_spread.root.T for each in (cpu, other)]
    assert np.abs(errors[0] - errors[1]).max() < MOST_MM
    return other.provenance.device


@NO_GPU
@pytest.mark.parametrize("kind", ["outlines", "clicks-40"])
@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("stage", SETTINGS)
def test_a_gpu_finds_the_surface_of_the_cpu(name, stage, kind, truth):
    found = agree(name, truth, kind, SETTINGS[stage], lambda: None)
    assert found.startswith("cuda")


@pytest.mark.parametrize("kind", ["outlines", "clicks-40"])
@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("stage", SETTINGS)
def test_torch_finds_the_surface_of_numpy(name, stage, kind, truth, stand_in):
    assert agree(name, truth, kind, SETTINGS[stage], stand_in) == TORCH_CPU
