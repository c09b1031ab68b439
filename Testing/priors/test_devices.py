"""The CPU and a GPU find the same surfaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model_server.io.markups import read_annotations
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "Resources" / "example"
MOST_MM = 1e-3
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA device here")


@NO_GPU
@pytest.mark.parametrize("name", ["hippocampus-dals", "hippocampus-atlas", "hippocampus-pca"])
@pytest.mark.parametrize("local", [False, True], ids=["preview", "final"])
def test_a_gpu_finds_the_surface_of_the_cpu(name, local):
    drawn = read_annotations([EXAMPLE / f"{n}.mrk.json" for n in ("axial", "coronal", "sagittal")])
    settings = FitSettings(local=local, remesh=False)
    found = []
    for device in ("cpu", "cuda"):
        *_, last = load_prior(name, device).fit(drawn, settings=settings)
        found.append(last)
    cpu, gpu = found
    assert np.array_equal(cpu.surface.triangles, gpu.surface.triangles)
    apart = np.linalg.norm(cpu.surface.points - gpu.surface.points, axis=1)
    assert apart.max() < MOST_MM
    assert np.abs(cpu.uncertainty_mm - gpu.uncertainty_mm).max() < MOST_MM
