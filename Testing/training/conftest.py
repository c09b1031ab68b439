"""The label volumes of these tests, and trainings that take seconds."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from label_volumes import hippocampus, shapes

from model_server.training import atlas_shapes, few_shot, own

__all__ = ["hippocampus", "shapes"]


@pytest.fixture(scope="module", autouse=True)
def modest_trainings() -> Iterator[None]:
    """One kind of smoothness is tried, two cases are measured, and no process is started.

    A test of one of these sets it anew; the commands that run in processes of their own have all.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_shot, "PROCESSES", few_shot.PROCESSES[:1])
        patch.setattr(few_shot, "NOISES", ())
        patch.setattr(few_shot, "WEIGHTS", ())
        patch.setattr(own, "MEASURED", 2)
        patch.setattr(atlas_shapes, "ProcessPoolExecutor", _here)
        yield


def _here(*_: object, **__: object) -> ThreadPoolExecutor:
    """A pool whose worker has imported everything already."""
    return ThreadPoolExecutor(1)
