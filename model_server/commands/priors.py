"""``shape-prior priors``: what can be fitted."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from model_server.commands.terminal import cells, errors, output, print_table


def priors(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the priors that can be fitted; those that cannot are named."""
    from dataclasses import asdict

    from model_server.priors.registry import UNTRAINED, read_zoo

    zoo = read_zoo()
    for name, error in zoo.broken.items():
        errors.print(f"Left out '{name}': {error}")
    if as_json:
        found = {"priors": [asdict(card) for card in zoo.cards], "untrained": list(UNTRAINED)}
        print(json.dumps({**found, "broken": {n: str(e) for n, e in zoo.broken.items()}}))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "organ", "method", "version", "sides", "shapes", "license"):
        table.add_column(column, no_wrap=True)
    for card in zoo.cards:
        shapes = str(len(card.splits.get("training", [])))
        sides = "both" if card.mirrors else ""
        table.add_row(
            *cells(card.name, card.organ, card.method, card.version, sides, shapes, card.licence)
        )
    print_table(table)
    output.print(f"Without training: {', '.join(UNTRAINED)}.")
