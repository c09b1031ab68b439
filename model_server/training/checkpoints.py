"""The state of a training on the disk: every minute, and when it is interrupted."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_server.interrupts import held
from model_server.io.writing import make_folder, write_bytes

EVERY_S = 60.0
CHECKPOINT_FILE = "checkpoint.pt"
State = dict[str, Any]


class Checkpoint:
    """Keeps the state of a training.

    Args:
        file: where; None keeps nothing.
        state: of the training: what ``torch.load`` reads as weights only, with "step".
    """

    def __init__(self, file: Path | None, state: Callable[[], State]) -> None:
        self.file, self._state = file, state
        self._written = time.monotonic()

    def save(self) -> None:
        """Write the state, whole or not at all.

        Raises:
            ShapePriorError: it cannot be written.
        """
        if self.file is None:
            return
        import torch

        content = io.BytesIO()  # torch tells of a full disk by errors of its own
        torch.save(self._state(), content)
        make_folder(self.file.parent)
        write_bytes(self.file, content.getvalue())
        self._written = time.monotonic()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Around all steps: keeps the last one when the training is interrupted between two."""
        try:
            yield
        except KeyboardInterrupt:
            with held():
                self.save()
            raise

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step: it is made whole before an interruption, and kept once a minute."""
        with held():
            yield
        if time.monotonic() - self._written >= EVERY_S:
            self.save()


def load_state(file: Path | None, device: Any = "cpu") -> State | None:
    """The state in a checkpoint; None where there is none."""
    if file is None or not file.exists():
        return None
    import torch

    state: State = torch.load(file, map_location=device, weights_only=True)
    return state


def told_state(work: Path) -> str:
    """One sentence on what of an interrupted training is kept in its folder."""
    state = load_state(work / CHECKPOINT_FILE)
    kept = [f"'{card.parent.name}' whole" for card in sorted(work.glob("priors/*/prior.json"))]
    if state is not None:
        kept.append(f"{state['step']} steps of the training")
    if not kept:
        return "Nothing was kept: the training had not come to its first step."
    return f"Kept in '{work}': {' and '.join(kept)}."
