"""All cases of a cohort, wherever they are fitted, and the table of what became of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from model_server.cohort.case import Settings, files_read, fit_case, outputs_of
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
    inputs: Sequence[Path] = (),
) -> list[Outcome]:
    """Fit all cases; write ``cohort.csv``, also when interrupted: then of the cases done so far.

    Args:
        cases: with distinct names.
        settings: shared by all.
        workers: processes; 1 fits in this one. With a local Ray cluster: its CPUs (1: all).
        ray_address: fit as Ray tasks instead: "local", or the address of a cluster whose nodes
            have this package and see the files under the same paths.
        tell: told each outcome as it comes.
        inputs: further files that are not to be written over, e.g. the table of the cases.

    Returns:
        Outcomes in the order of the cases.

    Raises:
        ShapePriorError: the output folder cannot be written, a result would be written over a
            file that a case is fitted from, or there is no Ray.
    """
    from model_server.io.writing import check_writable, make_folder, refuse_inputs

    settings = replace(settings, output=settings.output.absolute())
    make_folder(settings.output)
    table = settings.output / TABLE_FILE
    check_writable(table)
    # Of all cases before the first: a result may be what another case is fitted from.
    files = [table, *(path for case in cases for path in outputs_of(case, settings))]
    refuse_inputs(files, [*inputs, *(path for case in cases for path in files_read(case))])
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
