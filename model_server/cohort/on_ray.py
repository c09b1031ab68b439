"""Cases as tasks of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from socket import create_connection
from typing import Any
from urllib.parse import urlsplit

from model_server.cohort.case import Settings, failed, fit_case
from model_server.cohort.table import Case, Outcomes
from model_server.errors import ShapePriorError
from model_server.service.cluster import imported_ray

ANSWER_S = 10.0  # within which a cluster has to answer
CASES_PER_GPU = 8  # a fit is on its GPU for a part of the time


def on_ray(cases: Sequence[Case], settings: Settings, address: str, workers: int) -> Outcomes:
    """Outcomes as they come; a cluster this process has joined already is used and kept."""
    ray = imported_ray()
    mine = not ray.is_initialized()
    if mine:
        _join(ray, address, workers)
    try:
        task = ray.remote(**_task_options(settings))(fit_case)
        running = {task.remote(case, settings): case for case in cases}
        while running:
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            case = running.pop(ready)
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayError as error:
                outcome = failed(case, f"Ray could not fit this case: {error}")
            yield outcome
    finally:
        if mine:
            ray.shutdown()


def _join(ray: Any, address: str, workers: int) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        quiet |= {"num_cpus": workers if workers > 1 else None, "include_dashboard": False}
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        if place.port:
            # Ray itself would try for minutes.
            create_connection((place.hostname or "", place.port), timeout=ANSWER_S).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise ShapePriorError(
            f"No Ray cluster can be used at '{address}' ({' '.join(str(error).split())[:200]}).",
            "Check --ray: 'local', or an address such as 10.0.0.1:6379.",
            "no-ray",
        ) from error


def _task_options(settings: Settings) -> dict[str, Any]:
    """A process that dies is retried once; priors are found where this process finds them."""
    from model_server.priors.registry import ZOO_VARIABLE

    options: dict[str, Any] = {"num_cpus": 1, "max_retries": 1}
    if settings.device == "cuda":
        options["num_gpus"] = 1 / CASES_PER_GPU  # Ray hides the GPUs from tasks that ask for none
    if ZOO_VARIABLE in os.environ:
        zoo = str(Path(os.environ[ZOO_VARIABLE]).absolute())
        options["runtime_env"] = {"env_vars": {ZOO_VARIABLE: zoo}}
    return options
