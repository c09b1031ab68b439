"""``shape-prior fit-cohort``: every case of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from model_server.commands.terminal import (
    DEVICES,
    EXIT_SOME_FAILED,
    cells,
    check_device,
    choice,
    errors,
    interrupted,
    print_table,
)

if TYPE_CHECKING:
    from model_server.cohort.table import Outcome


def fit_cohort(
    cases: Annotated[
        Path,
        typer.Argument(
            help="CSV: case, prior, annotations (;), roi, image, mask, label, segment, "
            "reference, side, repair."
        ),
    ],
    output_folder: Annotated[
        Path, typer.Option("--output", help="Folder for the results; made if missing.")
    ] = Path("cohort"),
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="stl (default), ply, obj, vtp, nrrd, seg.nrrd, nii.gz, seg.dcm, dcm; repeatable.",
        ),
    ] = None,
    no_image: Annotated[
        bool, typer.Option("--no-image", help="Images are no evidence; as for 'fit'.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Fit as Ray tasks: local, or a cluster's address.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    again: Annotated[bool, typer.Option("--again", help="Redo finished cases.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Fit every case of a table; started again, it fits what is new, changed or failed."""
    if ray is None:
        check_device(device)
    else:  # the nodes of a cluster have their own
        choice(device, DEVICES, "--device")
    from model_server.cohort.case import Settings
    from model_server.cohort.run import run_cohort
    from model_server.cohort.table import read_cases
    from model_server.io.outputs import ALL_FORMATS

    dotted = dict.fromkeys("." + name.lower().removeprefix(".") for name in formats or ["stl"])
    endings = tuple(choice(name, ALL_FORMATS, "--format") for name in dotted)
    settings = Settings(output_folder, endings, device, again, not no_image)
    try:
        tell = None if quiet else _tell_outcome
        outcomes = run_cohort(read_cases(cases), settings, workers, ray, tell, inputs=[cases])
    except KeyboardInterrupt as error:
        state = "finished cases are kept; the same command goes on from there"
        raise interrupted(error, state) from error
    print_table(_outcome_table(outcomes))
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    if failed:
        errors.print(f"{failed} of {len(outcomes)} cases failed.")
        raise typer.Exit(EXIT_SOME_FAILED)


def _tell_outcome(outcome: Outcome, done: int, total: int) -> None:
    took = "" if outcome.seconds is None else f"{outcome.seconds:.2f} s"
    line = f"{done}/{total}  {outcome.case}  {outcome.status}  {outcome.error or took}"
    errors.print(line, markup=False)


def _outcome_table(outcomes: Sequence[Outcome]) -> Table:
    from model_server.cohort.table import COLUMNS

    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        number = column.endswith(("_ml", "_cm2", "_mm", "seconds"))
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for outcome in outcomes:
        table.add_row(*cells(*(getattr(outcome, column) for column in COLUMNS)))
    return table
