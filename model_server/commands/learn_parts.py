"""``shape-prior learn-parts``: parts of an organ for a trained prior."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from model_server.commands.terminal import check_device, output
from model_server.commands.training_progress import TrainingProgress
from model_server.errors import ShapePriorError


def learn_parts(
    prior: Annotated[
        Path, typer.Argument(help="Folder of a trained prior, dals, atlas, dissm or reshapeit.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of the label volumes it was trained on.")],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Learn an organ's parts from labels in which they have values; the prior keeps them."""
    check_device(device)
    if not data.is_dir():
        raise ShapePriorError(f"There is no folder '{data}'.", "Check --data.", "no-data")
    from model_server.training.parts import add_parts

    with TrainingProgress(quiet) as progress:
        card = add_parts(prior, data, device, progress)
    names = ", ".join(card.hyperparameters["part_names"].values())
    output.print(f"{card.name} knows the parts {names}.", markup=False)
