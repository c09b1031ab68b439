"""Processes and Ray that fit a cohort, and cases that end them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cohorts import ELLIPSOID_ML, REPOSITORY, by_name, cases, rows_of

from model_server.cohort import on_ray, processes
from model_server.cohort.case import Settings, fit_case
from model_server.cohort.run import run_cohort
from model_server.cohort.table import Case, Outcome
from model_server.errors import ShapePriorError

# --- processes ------------------------------------------------------------------------------------


def dying(case: Case, settings: Settings) -> Outcome:
    """Ends its process for some cases, as the kernel does where memory runs out."""
    if case.name.startswith("deadly"):
        os.kill(os.getpid(), signal.SIGKILL)
    if case.name == "unlucky" and not (settings.output / "died").exists():
        (settings.output / "died").write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return fit_case(case, settings)


def test_a_process_that_dies_fails_only_its_case(folder, monkeypatch):
    monkeypatch.setattr(processes, "fit_case", dying)
    given = cases(folder, "A", "deadly", "unlucky", "B")
    outcomes = by_name(run_cohort(given, Settings(folder / "out"), workers=2))
    assert {name: o.status for name, o in outcomes.items()} == {
        **{"A": "fitted", "deadly": "failed", "unlucky": "fitted", "B": "fitted"}
    }
    assert "died twice" in outcomes["deadly"].error
    assert [row["case"] for row in rows_of(folder / "out")] == ["A", "deadly", "unlucky", "B"]


# --- Ray ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """A local cluster of two workers."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install '.[cluster]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Where the tests are not installed, the workers find this file here.
    paths = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield ray
    ray.shutdown()


def test_ray_fits_a_cohort_and_survives_a_death(ray_cluster, folder, monkeypatch):
    output = folder / "out"
    given = cases(folder, "A", "B", "C")
    outcomes = run_cohort(given, Settings(output), ray_address="local")
    assert [o.status for o in outcomes] == ["fitted"] * 3
    assert outcomes[0].volume_ml == pytest.approx(ELLIPSOID_ML, rel=0.1)
    assert ray_cluster.is_initialized()  # the cluster was not ours to shut down
    monkeypatch.setattr(on_ray, "fit_case", dying)
    given = cases(folder, "A", "deadly", "unlucky")
    outcomes = run_cohort(given, Settings(output), ray_address="local")
    assert [o.status for o in outcomes] == ["skipped", "failed", "fitted"]
    assert "Ray could not fit this case" in outcomes[1].error


def test_many_cases_of_a_cluster_share_a_gpu(folder):
    on_cpu, on_gpu = (on_ray._task_options(Settings(folder, device=d)) for d in ("cpu", "cuda"))
    assert "num_gpus" not in on_cpu
    assert on_gpu["num_gpus"] * on_ray.CASES_PER_GPU == 1.0


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nowhere.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_refused_soon(folder, monkeypatch, address):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install '.[cluster]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    began = time.perf_counter()
    with pytest.raises(ShapePriorError, match=f"No Ray cluster can be used at '{address}'"):
        run_cohort(cases(folder, "A"), Settings(folder / "out"), ray_address=address)
    assert time.perf_counter() - began < 30.0
