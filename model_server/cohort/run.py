"""All cases of a cohort, wherever they are fitted, and the table of what became of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from model_server.cohort.case import Settings, fit_case
from model_server.cohort.on_ray import on_ray
from model_server.cohort.processes import in_processes
from model_server.cohort.table import TABLE_FILE, Case, Outcome, Outcomes, write_outcomes

# Told each outcome, how many there are by now, and how many there will be.
Tell = Callable[[Outcome, int, int], None]


def run_cohort(
    cases: Sequence[Case],
    settings: Settings,
    workers: int = 1,
    ray_address: str | None = None,
    tell: Tell | None = None,
) -> list[Outcome]:
    """Fit all cases; write ``cohort.csv``, also when interrupted: then of the cases done so far.

    Args:
        cases: with distinct names.
        settings: shared by all.
        workers: processes; 1 fits in this one. With a local Ray cluster: its CPUs (1: all).
        ray_address: fit as Ray tasks instead: "local", or the address of a cluster whose nodes
            have this package and see the files under the same paths.
        tell: told each outcome as it comes.

    Returns:
        Outcomes in the order of the cases.

    Raises:
        ShapePriorError: the output folder cannot be written, or there is no Ray.
    """
    from model_server.io.outputs import check_writable, make_folder

    settings = replace(settings, output=settings.output.absolute())
    make_folder(settings.output)
    table = settings.output / TABLE_FILE
    check_writable(table)
    outcomes: Outcomes
    if ray_address is not None:
        outcomes = on_ray(cases, settings, ray_address, workers)
    elif workers > 1:
        outcomes = in_processes(cases, settings, workers)
    else:
        outcomes = (fit_case(case, settings) for case in cases)
    done: dict[str, Outcome] = {}
    try:
        with closing(outcomes):
            for outcome in outcomes:
                done[outcome.case] = outcome
                if tell:
                    tell(outcome, len(done), len(cases))
    finally:
        ordered = [done[case.name] for case in cases if case.name in done]
        if ordered:
            write_outcomes(table, ordered)
    return ordered
