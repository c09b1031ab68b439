"""How a training shows how far it is: bars in a terminal, a line a minute in a log."""

from __future__ import annotations

import threading
import time
from typing import Any

from model_server.commands.terminal import errors
from model_server.errors import shown

LINE_EVERY_S = 60.0


class TrainingProgress:
    """A bar on standard error for each stage: share done, latest figures, time.

    Where standard error is no terminal, a line when a stage begins, and one a minute.

    Args:
        quiet: shows neither.
    """

    def __init__(self, quiet: bool) -> None:
        kind = _Bars if errors.is_terminal else _Lines
        self._shown: _Bars | _Lines | None = None if quiet else kind()

    def __enter__(self) -> TrainingProgress:
        if self._shown:
            self._shown.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._shown:
            self._shown.stop(kind is None)

    def __call__(self, stage: str, share: float, figures: dict[str, Any]) -> None:
        """Show where a training stands."""
        if self._shown:
            told = "  ".join(f"{name} {_short(value)}" for name, value in figures.items())
            self._shown.show(shown(stage), share, shown(told))

    def tell(self, sentence: str) -> None:
        """Print a sentence above the bars, also when quiet."""
        errors.print(sentence)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Bars:
    """For terminals."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        self._bar = Progress(*columns, console=errors)
        self._stage = ""
        self._task: Any = None

    def start(self) -> None:
        self._bar.start()

    def stop(self, done: bool) -> None:
        if done:
            self._finish()
        self._bar.stop()

    def show(self, stage: str, share: float, figures: str) -> None:
        if stage != self._stage:
            self._finish()
            self._stage = stage
            # It pulses until a share is known.
            self._task = self._bar.add_task(stage, total=None, figures="")
        total = 1.0 if share > 0.0 else None
        self._bar.update(self._task, completed=share, total=total, figures=figures)

    def _finish(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=1.0, total=1.0)


class _Lines:
    """For logs. A thread of its own, as a stage may have nothing to tell for minutes."""

    def __init__(self) -> None:
        self._now = ("starting", 0.0, "")
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._every_minute, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, done: bool) -> None:
        del done
        self._over.set()
        self._thread.join()

    def show(self, stage: str, share: float, figures: str) -> None:
        new = stage != self._now[0]
        self._now = (stage, share, figures)
        if new:
            self._print()

    def _every_minute(self) -> None:
        while not self._over.wait(LINE_EVERY_S):
            self._print()

    def _print(self) -> None:
        stage, share, figures = self._now
        now = time.monotonic()
        minutes, seconds = divmod(int(now - self._began), 60)
        done = f"  {share:4.0%}" if share else ""
        errors.print(f"{minutes:4d}:{seconds:02d}  {stage}{done}  {figures}".rstrip())
