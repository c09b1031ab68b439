"""The label volumes of these tests, and trainings that take seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from label_volumes import hippocampus, shapes

from model_server.reconstruction import Surface
from model_server.training import atlas_shapes, few_shot, own, run, wrapping

__all__ = ["hippocampus", "shapes"]

Wrapped = np.ndarray


@pytest.fixture(scope="module", autouse=True)
def modest_trainings() -> Iterator[None]:
    """Trainings that choose among nothing, measure two cases, and do nothing twice.

    A test of one of these sets it anew; commands in processes of their own have all of it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_shot, "PROCESSES", few_shot.PROCESSES[:1])
        patch.setattr(few_shot, "NOISES", ())
        patch.setattr(few_shot, "WEIGHTS", ())
        patch.setattr(few_shot, "DRAWS", 2)
        patch.setattr(run, "learn_pose_prior", partial(run.learn_pose_prior, draws=2))
        patch.setattr(own, "MEASURED", 2)
        wrap = remembered(wrapping.wrap)
        patch.setattr(wrapping, "wrap", wrap)
        patch.setattr(atlas_shapes, "wrap", wrap)
        patch.setattr(atlas_shapes, "cover", remembered(wrapping.cover))
        patch.setattr(atlas_shapes, "worker_pool", lambda *_, **__: ThreadPoolExecutor(1))
        yield


def remembered(function: Callable[..., Wrapped]) -> Callable[..., Wrapped]:
    """The same, but what was asked before is answered at once: tests train on the same shapes."""
    known: dict[bytes, Wrapped] = {}

    def answer(*given: Wrapped | Surface | int) -> Wrapped:
        parts = [(g.points, g.triangles) if isinstance(g, Surface) else (g,) for g in given]
        key = b"|".join(np.asarray(each).tobytes() for part in parts for each in part)
        if key not in known:
            known[key] = function(*given)
        return known[key].copy()

    return answer
