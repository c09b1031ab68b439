"""One thread, many sessions: who is next, who is stopped, and that nothing ends the thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import pytest
from fake_priors import reconstruction

from model_server.errors import ShapePriorError
from model_server.fitting.interrupt import check
from model_server.reconstruction import Reconstruction
from model_server.service.compute import ComputeThread, Job

SECONDS = 10.0  # until a test that hangs is given up


@pytest.fixture
def compute() -> Iterator[ComputeThread]:
    thread = ComputeThread("compute under test")
    yield thread
    thread.close()


class Log:
    """What jobs told, in order."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[str, object]] = queue.Queue()

    def job(self, name: str, session: int, begin: Callable[[], Iterator[Reconstruction]]) -> Job:
        return Job(
            session,
            begin,
            lambda found, final: self.told.put((name, "result" if final else found.stage)),
            lambda error: self.told.put((name, error.code)),
        )

    def next(self, count: int) -> list[tuple[str, object]]:
        return [self.told.get(timeout=SECONDS) for _ in range(count)]


def surfaces(count: int = 2) -> Callable[[], Iterator[Reconstruction]]:
    return lambda: iter([reconstruction(i) for i in range(count)])


class Blocker:
    """A job that holds the thread until it is released, so that others queue up behind it."""

    def __init__(self, compute: ComputeThread, log: Log, session: int = 99) -> None:
        self.running, self.release = threading.Event(), threading.Event()
        self.job = log.job("blocker", session, self._begin)
        compute.submit(self.job)
        assert self.running.wait(SECONDS)

    def _begin(self) -> Iterator[Reconstruction]:
        self.running.set()
        self.release.wait(SECONDS)
        yield reconstruction()


def test_surfaces_come_as_progress_and_the_last_as_result(compute: ComputeThread):
    log = Log()
    compute.submit(log.job("a", 1, surfaces(2)))
    assert log.next(3) == [("a", "final"), ("a", "final"), ("a", "result")]
    compute.submit(log.job("b", 1, surfaces(1)))
    assert log.next(2) == [("b", "final"), ("b", "result")]


def fails(error: BaseException) -> Callable[[], Iterator[Reconstruction]]:
    def begin() -> Iterator[Reconstruction]:
        yield reconstruction()
        raise error

    return begin


@pytest.mark.parametrize(
    ("begin", "code"),
    [
        (fails(ShapePriorError("a", "b", "one-plane")), "one-plane"),
        (fails(MemoryError()), "memory"),
        (fails(KeyError("Doe^Jane")), "internal"),
    ],
    ids=["refused", "memory", "fault"],
)
def test_a_failure_is_told_and_the_thread_lives(compute: ComputeThread, begin, code: str):
    log = Log()
    compute.submit(log.job("a", 1, begin))
    assert log.next(2) == [("a", "final"), ("a", code)]
    compute.submit(log.job("b", 1, surfaces(1)))
    assert log.next(2)[-1] == ("b", "result")


def test_a_fit_without_surfaces_is_a_failure(compute: ComputeThread):
    log = Log()
    compute.submit(log.job("a", 1, surfaces(0)))
    assert log.next(1) == [("a", "bad-input")]


def test_a_fault_does_not_tell_what_it_says(compute: ComputeThread, caplog):
    told: queue.Queue[ShapePriorError] = queue.Queue()
    job = Job(1, fails(KeyError("Doe^Jane")), lambda found, final: None, told.put)
    compute.submit(job)
    error = told.get(timeout=SECONDS)
    assert "KeyError" in error.what
    assert "Doe" not in str(error)
    assert "KeyError" in caplog.text
    assert "Doe" not in caplog.text


def test_a_stopped_job_ends_between_two_steps(compute: ComputeThread):
    log, running, stopped = Log(), threading.Event(), threading.Event()

    def begin() -> Iterator[Reconstruction]:
        running.set()
        try:
            while True:
                check()
        finally:
            stopped.set()
        yield reconstruction()

    job = log.job("a", 1, begin)
    compute.submit(job)
    assert running.wait(SECONDS)
    compute.submit(log.job("b", 1, surfaces(1)))  # the session's newer job stops it
    assert stopped.wait(SECONDS)
    assert log.next(2) == [("b", "final"), ("b", "result")]
    assert job.stopped.is_set()


def test_another_sessions_job_stops_nothing(compute: ComputeThread):
    log = Log()
    blocker = Blocker(compute, log)
    compute.submit(log.job("b", 2, surfaces(1)))
    blocker.release.set()
    assert ("blocker", "result") in log.next(4)


def test_a_newer_job_keeps_its_sessions_place(compute: ComputeThread):
    log = Log()
    blocker = Blocker(compute, log)
    old = log.job("1 old", 1, surfaces(1))
    compute.submit(old)
    compute.submit(log.job("2", 2, surfaces(1)))
    compute.submit(log.job("1 new", 1, surfaces(1)))
    assert old.stopped.is_set()
    assert compute.waiting() == 3  # the blocker and two sessions
    blocker.release.set()
    told = log.next(6)
    assert [name for name, what in told if what == "final"] == ["blocker", "1 new", "2"]


def test_first_surfaces_go_before_later_ones_and_the_rest_job_by_job(compute: ComputeThread):
    log = Log()
    blocker = Blocker(compute, log)
    compute.submit(log.job("a", 1, surfaces(3)))
    compute.submit(log.job("b", 2, surfaces(3)))
    blocker.release.set()
    names = "".join(name for name, _ in log.next(10) if name != "blocker")
    assert names.index("b") < 3, "b's first surface waits for a's later ones"
    assert names.rindex("a") < names.rindex("b")
    assert names.endswith("bbb"), "a is finished before b goes on"


def test_a_session_that_asks_all_the_time_starves_nobody(compute: ComputeThread):
    log = Log()
    asking = True

    def again() -> Iterator[Reconstruction]:
        if asking:
            compute.submit(log.job("greedy", 1, again))
        yield reconstruction()

    compute.submit(log.job("greedy", 1, again))
    compute.submit(log.job("patient", 2, surfaces(5)))
    told = []
    for _ in range(200):
        told += log.next(1)
        if told[-1] == ("patient", "result"):
            break
    asking = False
    assert told[-1] == ("patient", "result")


def slices(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for name in ("SLICE_SECONDS", "FIRST_SECONDS"):
        monkeypatch.setattr(f"model_server.service.compute.{name}", seconds)


class Stepping:
    """A job of many steps that goes on until it is released."""

    def __init__(self, surfaces_before: int = 1) -> None:
        self.running, self.release = threading.Event(), threading.Event()
        self.before = surfaces_before

    def begin(self) -> Iterator[Reconstruction]:
        for index in range(self.before):
            yield reconstruction(index)
        self.running.set()
        while not self.release.is_set():
            check()
        yield reconstruction(9)


@pytest.mark.parametrize("before", [0, 1], ids=["in the first", "in a later one"])
def test_a_first_surface_is_made_in_the_midst_of_anothers_step(
    compute: ComputeThread, monkeypatch, before: int
):
    slices(monkeypatch, 0.0)
    log, long = Log(), Stepping(before)
    compute.submit(log.job("long", 1, long.begin))
    assert long.running.wait(SECONDS)
    log.next(before)
    compute.submit(log.job("light", 2, surfaces(2)))
    assert log.next(1) == [("light", "final")]
    long.release.set()
    assert ("long", "result") in log.next(4)


def test_a_job_that_is_stopped_in_the_midst_of_another_leaves_that_alone(
    compute: ComputeThread, monkeypatch
):
    slices(monkeypatch, 0.0)
    log, long, inner = Log(), Stepping(), Stepping(0)
    compute.submit(log.job("long", 1, long.begin))
    assert long.running.wait(SECONDS)
    log.next(1)
    compute.submit(log.job("inner", 2, inner.begin))
    assert inner.running.wait(SECONDS)
    compute.submit(log.job("newer", 2, surfaces(1)))
    assert log.next(1) == [("newer", "final")]
    long.release.set()
    assert ("long", "result") in log.next(3)


def test_a_fault_in_the_midst_of_another_job_is_its_own(compute: ComputeThread, monkeypatch):
    slices(monkeypatch, 0.0)
    log, long = Log(), Stepping()

    def broken() -> Iterator[Reconstruction]:
        raise KeyError("Doe^Jane")
        yield reconstruction()

    compute.submit(log.job("long", 1, long.begin))
    assert long.running.wait(SECONDS)
    log.next(1)
    compute.submit(log.job("broken", 2, broken))
    assert log.next(1) == [("broken", "internal")]
    long.release.set()
    assert log.next(2)[-1] == ("long", "result")


def test_jobs_are_forgotten_when_they_end(compute: ComputeThread):
    log = Log()
    blocker = Blocker(compute, log)
    assert compute.waiting() == 1
    blocker.release.set()
    log.next(2)
    compute.submit(log.job("b", 2, surfaces(1)))
    log.next(2)
    done = threading.Event()
    for _ in range(1000):
        if compute.waiting() == 0:
            break
        done.wait(0.01)
    assert compute.waiting() == 0


def test_jobs_wait_until_the_thread_is_warm():
    warm, log = threading.Event(), Log()

    def warming() -> None:
        assert warm.wait(SECONDS)
        log.told.put(("thread", "warm"))

    thread = ComputeThread("warming up", warming)
    try:
        thread.submit(log.job("a", 1, surfaces(1)))
        assert thread.waiting() == 1
        warm.set()
        assert log.next(3) == [("thread", "warm"), ("a", "final"), ("a", "result")]
    finally:
        thread.close()


def test_a_warm_up_that_fails_stops_no_job():
    log, thread = Log(), ComputeThread("not to be warmed", lambda: 1 // 0)
    try:
        thread.submit(log.job("a", 1, surfaces(1)))
        assert log.next(2)[-1] == ("a", "result")
    finally:
        thread.close()


def test_closing_ends_the_thread():
    log, thread = Log(), ComputeThread("to be closed")
    blocker = Blocker(thread, log)
    thread.close()
    assert blocker.job.stopped.is_set()
    blocker.release.set()
    thread._thread.join(SECONDS)
    assert not thread._thread.is_alive()
