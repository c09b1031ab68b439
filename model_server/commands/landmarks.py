"""``shape-prior landmarks``: between a patient and the template."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from model_server.commands.terminal import (
    Label,
    Roi,
    SegmentName,
    check_device,
    choice,
    errors,
    fit_progress,
    label_numbers,
)
from model_server.errors import ShapePriorError
from model_server.jobs.session import SIDES, MaskChoice, Session


def landmarks(
    prior: Annotated[str, typer.Option(help="Name of a prior (see 'priors'), or its folder.")],
    output_file: Annotated[Path, typer.Option("--output", help="CSV that is written.")],
    annotations: Annotated[
        list[Path] | None, typer.Option(help="Of the patient, as for 'fit'.")
    ] = None,
    roi: Roi = "",
    mask: Annotated[Path | None, typer.Option(help="Label volume of the patient.")] = None,
    label: Label = "",
    segment: SegmentName = "",
    patient: Annotated[
        Path | None,
        typer.Option(help="Points in the patient (.mrk.json, .fcsv, .csv): to the template."),
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="Places on the template (.csv): to the patient.")
    ] = None,
    side: Annotated[str, typer.Option(help="auto, left or right (paired organs).")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Carry landmarks from a patient to the template, or back, with their errors in mm."""
    choice(side, SIDES, "--side")
    chosen = MaskChoice(label_numbers(label), segment)
    check_device(device)
    if (patient is None) == (template is None):
        raise ShapePriorError(
            "It is not clear which landmarks to carry over.", "Give either --patient or --template."
        )
    from model_server.io.writing import check_writable, write_text
    from model_server.jobs import landmarks as carried
    from model_server.priors.registry import files_of

    read = (*(annotations or []), mask, patient, template, *files_of(prior))
    check_writable(output_file, [path for path in read if path is not None])
    if patient is not None:
        points = carried.read_landmarks(patient)
    elif template is not None:
        points = carried.read_landmarks(template, carried.PLACE)
    session = Session.opened(prior, annotations or [], mask, None, device, chosen, roi=roi)
    carried.require_correspondences(session.prior)
    with fit_progress(session.prior.card.name, quiet) as progress:
        result = session.fit(side, progress)
    table = carried.to_template_table if patient is not None else carried.from_template_table
    write_text(output_file, table(session.prior, result, points))
    for warning in result.warnings:
        errors.print(f"Warning: {warning}", markup=False)
