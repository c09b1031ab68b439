"""``shape-prior train``: a prior from label volumes."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from model_server.commands.terminal import (
    cells,
    check_device,
    interrupted,
    label_numbers,
    output,
    print_table,
)
from model_server.commands.training_progress import TrainingProgress
from model_server.errors import ShapePriorError

if TYPE_CHECKING:
    from model_server.priors.card import PriorCard


def train(
    method: Annotated[
        str,
        typer.Argument(
            help="dals, atlas, dissm, reshapeit, pca, deepsdf; with images: meshnet, agent."
        ),
    ] = "",
    organ: Annotated[str, typer.Option(help="Names the prior, e.g. liver.")] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of label volumes; every tenth validates.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Your own label volumes, five or more: checked, trained, measured."),
    ] = None,
    method_option: Annotated[str, typer.Option("--method", help="The same as METHOD.")] = "",
    label: Annotated[str, typer.Option(help="Values that are the organ, e.g. 1 or 1,2.")] = "",
    output_folder: Annotated[
        Path, typer.Option("--output", help="Folder of priors; the prior gets one in it.")
    ] = Path("runs"),
    only: Annotated[str, typer.Option(help="Keep cases whose name contains this.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Hyperparameter as name=value; repeatable.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train a prior from label volumes; started again, it goes on from its checkpoint."""
    check_device(device)
    method = _training_choices(method or method_option, organ, data, labels)
    values = label_numbers(label)
    options = dict(_parsed_option(text) for text in option or [])
    common: dict[str, Any] = {"device": device, "steps": steps, "options": options}
    common["values"] = values
    with _resumable(), TrainingProgress(quiet) as progress:
        common |= {"progress": progress, "told": progress.tell}
        if labels is not None:
            from model_server.training.own import train_own

            card = train_own(method, organ, labels, output_folder, **common)
        else:
            from model_server.training.run import train as run_training

            assert data is not None
            card = run_training(method, organ, data, output_folder, only=only, **common)
    if labels is not None:
        print_table(_score_table(card))
        if any(score["seen_in_training"] for score in card.scores.values()):
            output.print("The prior was trained on these very cases: on new ones it does worse.")
    output.print(f"Trained {card.name} in {output_folder / card.name}.", markup=False)


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        words = shlex.join(["shape-prior", *sys.argv[1:]])
        raise interrupted(error, f"the same command goes on from there: {words}") from error


def _score_table(card: PriorCard) -> Table:
    """What a prior of one's own reaches from simulated annotations."""
    table = Table(box=None, pad_edge=False)
    for column in ("annotations", "cases", "quick look Dice", "Dice", "mean distance mm", "failed"):
        table.add_column(column, justify="left" if column == "annotations" else "right")
    for name, score in card.scores.items():
        figures = (score["quick_look_dice"], score["dice"], score["mean_distance_mm"])
        told = ["-" if f is None else f"{f:.3f}" for f in figures]
        table.add_row(*cells(name, score["cases"], *told, score["failed"]))
    return table


def _training_choices(method: str, organ: str, data: Path | None, labels: Path | None) -> str:
    """The method, if what is needed to train was given."""
    if not method:
        raise ShapePriorError(
            "No method was named.", "Give --method dals, atlas, dissm, reshapeit or pca."
        )
    if not organ:
        raise ShapePriorError("The organ has no name.", "Give --organ, e.g. --organ liver.")
    if (data is None) == (labels is None):
        raise ShapePriorError("Label volumes are needed.", "Give either --labels or --data.")
    if data is not None and not data.is_dir():
        raise ShapePriorError(f"There is no folder '{data}'.", "Check --data.", "no-data")
    return method


def _parsed_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ShapePriorError(f"--option '{text}' is not name=value.", "Write e.g. modes=40.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
