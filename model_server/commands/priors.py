"""``shape-prior priors``: what can be fitted."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from model_server.commands.terminal import output, print_table


def priors(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the priors that can be fitted."""
    from dataclasses import asdict

    from model_server.priors.registry import UNTRAINED, list_priors

    cards = list_priors()
    if as_json:
        print(json.dumps({"priors": [asdict(c) for c in cards], "untrained": list(UNTRAINED)}))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "organ", "method", "version", "sides", "shapes", "license"):
        table.add_column(column, no_wrap=True)
    for card in cards:
        shapes = str(len(card.splits.get("training", [])))
        sides = "both" if card.mirrors else ""
        table.add_row(
            *(card.name, card.organ, card.method, card.version, sides, shapes, card.licence)
        )
    print_table(table)
    output.print(f"Without training: {', '.join(UNTRAINED)}.")
