"""``shape-prior explore``: a look into a shape space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from model_server.commands.terminal import check_device, errors, output
from model_server.errors import ShapePriorError


def explore(
    prior: Annotated[str, typer.Option(help="Name of a prior (see 'priors'), or its folder.")],
    output_folder: Annotated[
        Path, typer.Option("--output", help="Folder for meshes and picture; made if missing.")
    ] = Path("explore"),
    samples: Annotated[int, typer.Option(min=1, max=12, help="Random shapes.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the random shapes.")] = 0,
    first: Annotated[
        Path | None, typer.Option(help="Label volume to go from (to, where it is the only one) ...")
    ] = None,
    second: Annotated[Path | None, typer.Option(help="... and to.")] = None,
    templates: Annotated[
        bool, typer.Option("--templates", help="Only the learned templates.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
) -> None:
    """Write a prior's mean, main modes, templates, random and in-between shapes, and a picture."""
    check_device(device)
    if first is None and second is not None:
        raise ShapePriorError("--second was given alone.", "Give --first, or both.")
    if templates and first is not None:
        raise ShapePriorError(
            "--templates shows no label volumes.", "Leave out --templates, or --first."
        )
    from model_server.jobs import explore as explorer
    from model_server.priors.registry import load_prior

    loaded = load_prior(prior, device)
    with errors.status(f"Exploring {loaded.card.name} ..."):
        if templates:
            found = explorer.explore_templates(loaded, output_folder)
        else:
            found = explorer.explore(loaded, output_folder, samples, first, second, seed)
    for sentence in found.sentences:
        output.print(sentence, markup=False)
    count = len(found.files) - 1
    output.print(f"Wrote {count} meshes and {found.files[-1]}.", markup=False)
