"""``shape-prior evaluate``: methods compared through the same annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from model_server.commands.terminal import check_device, errors, print_table
from model_server.threads import begin_with_few


def evaluate(
    organ: Annotated[str, typer.Option(help="hippocampus, liver, kidney, ...")],
    data: Annotated[Path, typer.Option(help="Root of the label volumes, or the organ's folder.")],
    methods: Annotated[
        list[str] | None,
        typer.Option(help="The first is compared with the others, e.g. dals pca rbf poisson."),
    ] = None,
    protocol: Annotated[str, typer.Option(help="outlines, mixture, points-2500, ...")] = "outlines",
    split: Annotated[str, typer.Option(help="validation, training or all.")] = "validation",
    limit: Annotated[int | None, typer.Option(help="Only the first so many cases.")] = None,
    only: Annotated[str | None, typer.Option(help="Keep cases whose name contains this.")] = None,
    output_file: Annotated[Path | None, typer.Option("--output", help="JSON of results.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
    stages: Annotated[bool, typer.Option("--stages", help="Measure every stage.")] = False,
    repeats: Annotated[int, typer.Option(help="Annotations of each case.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Compare methods on label volumes through the same annotations."""
    if threads is not None:
        begin_with_few(threads)
    check_device(device)
    if output_file:
        from model_server.io.writing import check_writable

        check_writable(output_file)
    from model_server.evaluation.harness import Method
    from model_server.evaluation.harness import evaluate as run_evaluation
    from model_server.priors.registry import prior_card

    for method in methods or []:
        prior_card(Method.named(method, organ).prior)  # one that is missing is no bad one

    def tell(case: str, method: str, done: int, total: int) -> None:
        if not quiet:
            errors.print(f"{done}/{total}  {case}  {method}", markup=False)

    result = run_evaluation(
        organ,
        data,
        methods or [],
        protocol,
        split,
        limit,
        output_file,
        device,
        threads,
        only=only,
        every_stage=stages,
        repeats=repeats,
        progress=tell,
    )
    for table in result.tables():
        print_table(table)
