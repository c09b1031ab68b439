"""What the benchmark of GPUs measures and tells, run on the CPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PRIOR, READER = "hippocampus-pca", "hippocampus-meshnet"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """Importable as long as it is used: its worker processes import it, too."""
    folder = Path(__file__).resolve().parent.parent / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        import gpu

        yield gpu


@pytest.fixture(scope="module")
def cpu(benchmark):
    return benchmark.measured("cpu", [PRIOR], READER, batch=3, workers=2, repeats=1)


def test_everything_is_measured(cpu):
    assert list(cpu.seconds) == [
        f"{PRIOR}: first surface",
        f"{PRIOR}: final surface",
        f"{PRIOR}: preview while dragging",
        f"{PRIOR}: 3 cases, one after another",
        f"{PRIOR}: 3 cases at once",
        f"{READER}: reading of an image",
    ]
    assert all(seconds > 0.0 for seconds in cpu.seconds.values())
    assert cpu.memory_mb > 50.0
    assert cpu.device_mb == 0.0
    assert np.array(cpu.surfaces[PRIOR]).shape[1] == 3


def test_ratios_bars_and_distances_are_told(benchmark, cpu):
    halved = {what: 0.5 * seconds for what, seconds in cpu.seconds.items()}
    moved = [[x, y, z + 0.25] for x, y, z in cpu.surfaces[PRIOR]]
    gpu = replace(cpu, name="a card", seconds=halved, device_mb=12.0, surfaces={PRIOR: moved})
    rows = benchmark.rows_of(cpu, gpu)
    assert [row[-1] for row in rows] == ["2.0"] * len(cpu.seconds) + ["", ""]
    assert rows[-1][1:] == ["-", "12", ""]
    *bars, apart = benchmark.bars_of(cpu, gpu, [PRIOR])
    assert len(bars) == len(benchmark.BARS)
    assert apart == [f"{PRIOR}: CPU and GPU apart, mm", "2.5e-01", "≤ 0.001", "missed"]
    assert np.isnan(benchmark.apart_mm(cpu, replace(gpu, surfaces={}), PRIOR))


def test_the_cpu_alone_is_a_table_too(benchmark, cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "in_process", lambda device, chosen: cpu)
    words = ["gpu.py", "--device", "cpu", "--priors", PRIOR, "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    assert benchmark.main() == 0
    assert f"| {PRIOR}: final surface, s |" in (tmp_path / "gpu.md").read_text()
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert kept["gpu"] is None
    assert kept["cpu"]["seconds"] == cpu.seconds


def test_of_the_cpu_a_profile_counts_what_a_gpu_would_have_to_do(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "PROFILED", ["outlines"])
    words = ["gpu.py", "--device", "cpu", "--profile", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    assert benchmark.main() == 0
    lines = (tmp_path / "array_operations.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    decoder, matrices, points = (dict(zip(rows[0], row, strict=True)) for row in rows[2:])
    assert [part["part"] for part in (decoder, matrices, points)] == [
        "decoder",
        "large matrices",
        "points",
    ]
    # Few operations on many numbers, and many on few.
    assert int(decoder["operations"]) < int(matrices["operations"]) < int(points["operations"])
    assert int(points["numbers (median)"]) < int(decoder["numbers (median)"])
    assert int(points["waits for a number"]) > 0
    assert sum(int(part["share"].strip(" %")) for part in (decoder, matrices, points)) in range(
        98, 103
    )


def test_without_a_gpu_it_says_so(benchmark, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert benchmark.main() == benchmark.NO_GPU
    assert "no CUDA device" in capsys.readouterr().out
