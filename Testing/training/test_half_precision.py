"""Which CPUs train in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_server.training import half_precision as module


@pytest.mark.parametrize(("flags", "half"), [("avx512_bf16 avx2", False), ("amx_bf16 avx2", True)])
def test_cpus_with_matrix_units_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, half: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(module, "CPU_INFO", tmp_path / "cpuinfo")
    module._has_units.cache_clear()
    with module.half_precision("cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    module._has_units.cache_clear()
    assert product.dtype == (torch.bfloat16 if half else torch.float32)
