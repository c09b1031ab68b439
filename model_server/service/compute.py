"""One thread that does all fitting on one device, for all sessions in turn.

A session has at most one job; its newer job takes the place of the older in the queue. Jobs
advance one surface at a time: a job's first surface goes before everyone's later ones, since it
costs a few hundredths of a second and somebody is waiting for it. The later ones are finished job
by job, in the order they came; one of them has its turn between two first surfaces, so that a
session that asks all the time starves nobody.

A step that takes long is parted in slices: where its solvers ask whether to stop, first surfaces
that wait are made meanwhile, then it goes on. What a fit computes is its own, so that another may
run in the midst of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from model_server.errors import ShapePriorError
from model_server.fitting.interrupt import Interrupted, stop_when
from model_server.reconstruction import Reconstruction

log = logging.getLogger(__name__)
SLICE_SECONDS = 0.1  # of a job, before a first surface may be made in the midst of it ...
FIRST_SECONDS = 0.5  # ... and of one that makes its own: usually it has it by then
MOST_NESTED = 4  # jobs in the midst of each other: each takes some of Python's stack


@dataclass(eq=False)
class Job:
    """A request being worked on.

    Attributes:
        session: whose it is.
        begin: makes the iterator of surfaces, in the compute thread.
        surface: told each reconstruction and whether it is the last.
        failed: told the error that ended the job.
    """

    session: int
    begin: Callable[[], Iterator[Reconstruction]]
    surface: Callable[[Reconstruction, bool], None]
    failed: Callable[[ShapePriorError], None]
    stopped: threading.Event = field(default_factory=threading.Event)
    _surfaces: Iterator[Reconstruction] | None = None
    _held: Reconstruction | None = None

    @property
    def slice_seconds(self) -> float:
        """For how long it is not interrupted."""
        return FIRST_SECONDS if self._held is None else SLICE_SECONDS

    def advance(self, between: Callable[[Job], None]) -> bool:
        """Compute one surface; False when there is nothing left to do.

        Args:
            between: called with it between two steps of its linear algebra.
        """

        def stopped() -> bool:
            if not self.stopped.is_set():
                between(self)
            return self.stopped.is_set()

        if self.stopped.is_set():
            return False
        try:
            with stop_when(stopped):
                return self._advance()
        except Interrupted:
            return False
        except ShapePriorError as error:
            self.failed(error)
        except MemoryError:
            self.failed(
                ShapePriorError("The fit ran out of memory.", "Send smaller volumes.", "memory")
            )
        except Exception as error:
            # No message: it may name the patient's files.
            log.error("a fit failed: %s", type(error).__name__, exc_info=log.isEnabledFor(10))
            self.failed(
                ShapePriorError(
                    f"The fit failed inside the server ({type(error).__name__}).",
                    "Change the annotations, or send the server's log to the developers.",
                    "internal",
                )
            )
        return False

    def _advance(self) -> bool:
        if self._surfaces is None:
            self._surfaces = self.begin()
        # A fit does not say which surface is its last: it is told one surface late, except that
        # every surface goes out at once as progress.
        found = next(self._surfaces, None)
        if found is not None:
            self._held = found
            self.surface(found, False)
            return True
        if self._held is None:
            raise ShapePriorError("The fit yielded no surface.", "Try another prior.")
        self.surface(self._held, True)
        return False


class ComputeThread:
    """Runs jobs until ``close``.

    Args:
        name: of the thread.
        warm_up: done in it before the first job, while nobody waits for one yet.
    """

    def __init__(self, name: str = "compute", warm_up: Callable[[], None] = lambda: None) -> None:
        self._warm_up = warm_up
        self._fresh: deque[Job] = deque()
        self._begun: deque[Job] = deque()
        self._wake = threading.Condition()
        self._open = True
        self._favored = False  # whether a first surface has just gone before later ones
        self._nested = 0  # jobs that others are in the midst of
        self._slice_began = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job, at the place of the session's older one if that is still waiting."""
        with self._wake:
            for index, other in enumerate(self._fresh):
                if other.session == job.session:
                    other.stopped.set()
                    self._fresh[index] = job
                    break
            else:
                self._fresh.append(job)
            for other in self._begun:
                if other.session == job.session:
                    other.stopped.set()
            self._wake.notify()

    def waiting(self) -> int:
        """Jobs that are not finished."""
        with self._wake:
            return len(self._fresh) + len(self._begun)

    def close(self) -> None:
        """Stop after the present step."""
        with self._wake:
            self._open = False
            for job in (*self._fresh, *self._begun):
                job.stopped.set()
            self._wake.notify()

    def _next(self) -> Job | None:
        with self._wake:
            while self._open and not self._fresh and not self._begun:
                self._wake.wait()
            if not self._open:
                return None
            first = bool(self._fresh) and not (self._begun and self._favored)
            self._favored = first
            return self._begin() if first else self._begun[0]

    def _begin(self) -> Job:
        """The first of those that wait; in sight while it runs, so that a newer job can stop it."""
        job = self._fresh.popleft()
        self._begun.append(job)
        return job

    def _run(self) -> None:
        try:
            self._warm_up()
        except Exception as error:  # the job that needs it will say what is wrong
            log.error("nothing is warm: %s", type(error).__name__, exc_info=True)
        while (job := self._next()) is not None:
            self._advance(job)

    def _advance(self, job: Job) -> None:
        self._slice_began = time.monotonic()
        if not job.advance(self._let_others):
            with self._wake:
                self._begun.remove(job)

    def _let_others(self, job: Job) -> None:
        """Between two steps of a job: when its slice is over, make a first surface that waits."""
        if self._nested == MOST_NESTED or time.monotonic() < self._slice_began + job.slice_seconds:
            return
        with self._wake:
            if not self._fresh or not self._open:
                return
            first = self._begin()
        self._nested += 1
        try:
            self._advance(first)
        finally:
            self._nested -= 1
            self._slice_began = time.monotonic()
