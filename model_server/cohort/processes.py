"""Cases in processes of this machine; one that dies fails only its case."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from queue import SimpleQueue

from model_server.cohort.case import Settings, failed, fit_case
from model_server.cohort.table import Case, Outcome, Outcomes
from model_server.interrupts import held, worker_pool

DIED = "The process that fitted this case died twice (killed, or out of memory)."


def in_processes(cases: Sequence[Case], settings: Settings, workers: int) -> Outcomes:
    """Outcomes as they come.

    A process that dies breaks its whole pool and does not say whose fault it was. So no more
    cases are handed out than there are processes, and those that were under way are fitted again,
    each alone: the one that breaks its pool once more has failed.
    """
    waiting = deque(cases)
    while waiting:
        suspects: list[Case] = []
        # Ctrl-C strikes while this waits for the queue: inside the futures' own code it could
        # leave one of their locks closed, and nothing would ever end.
        done: SimpleQueue[Future[Outcome]] = SimpleQueue()
        with worker_pool(min(workers, len(waiting))) as pool:
            running: dict[Future[Outcome], Case] = {}
            while running or (waiting and not suspects):
                while waiting and not suspects and len(running) < workers:
                    case = waiting.popleft()
                    try:
                        with held():
                            future = pool.submit(fit_case, case, settings)
                            future.add_done_callback(done.put)
                        running[future] = case
                    except BrokenProcessPool:
                        suspects.append(case)
                if not running:
                    continue
                future = done.get()
                case = running.pop(future)
                try:
                    with held():
                        outcome = future.result()
                except BrokenProcessPool:
                    suspects.append(case)
                else:
                    yield outcome
        for case in suspects:
            yield _alone(case, settings)


def _alone(case: Case, settings: Settings) -> Outcome:
    """In a process of its own, twice if need be: among others it may have been the innocent one."""
    for _ in range(2):
        with worker_pool(1) as pool:
            try:
                return pool.submit(fit_case, case, settings).result()
            except BrokenProcessPool:
                continue
    return failed(case, f"{DIED} Use fewer --workers, or see to its input.")
