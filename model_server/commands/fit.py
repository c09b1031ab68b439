"""``shape-prior fit``: from annotations to a surface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model_server.commands.terminal import (
    Label,
    Roi,
    SegmentName,
    Version,
    check_device,
    choice,
    errors,
    fit_progress,
    label_numbers,
    search_progress,
)
from model_server.jobs.session import SIDES, MaskChoice, Session
from model_server.threads import begin_with_few

if TYPE_CHECKING:
    from model_server.reconstruction import Reconstruction


def fit(
    prior: Annotated[str, typer.Option(help="Name of a prior (see 'priors'), or its folder.")],
    annotations: Annotated[
        list[Path] | None,
        typer.Option(
            help="3D Slicer markups (.mrk.json, .fcsv): closed curves, point lists; DICOM RTSTRUCT."
        ),
    ] = None,
    roi: Roi = "",
    mask: Annotated[
        Path | None, typer.Option(help="Label volume, .seg.nrrd or DICOM SEG to refine.")
    ] = None,
    label: Label = "",
    segment: SegmentName = "",
    image: Annotated[
        Path | None,
        typer.Option(
            help="Volume, or DICOM folder, in which the organ is seen; annotations may be left out."
        ),
    ] = None,
    no_image: Annotated[
        bool,
        typer.Option("--no-image", help="The image is no evidence, its geometry alone is taken."),
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Volume, or DICOM folder, whose geometry labelmaps take; by default the image."
        ),
    ] = None,
    output_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            help=".stl, .ply, .obj, .vtp, .nrrd, .seg.nrrd, .nii.gz, .seg.dcm or .dcm; repeatable.",
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where the report goes (JSON).")] = None,
    side: Annotated[str, typer.Option(help="auto, left or right (paired organs).")] = "auto",
    strength: Annotated[
        float, typer.Option(help="Of the prior against the annotations, 0.01 to 100.")
    ] = 1.0,
    remesh: Annotated[
        int | None,
        typer.Option(
            min=200,
            help="Even triangles, about so many at most; by default those of the prior's template, "
            "the same in every patient.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of the fit.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    version: Version = False,
) -> None:
    """Fit a prior to outlines, points, a mask or an image, and write the surface."""
    choice(side, SIDES, "--side")
    chosen = MaskChoice(label_numbers(label), segment)
    if threads is not None:
        begin_with_few(threads)
    check_device(device)
    from model_server.io.dicom_outputs import DicomSources
    from model_server.io.outputs import check_outputs
    from model_server.priors.protocol import checked_strength
    from model_server.priors.registry import files_of

    strength = checked_strength(strength)
    paths = output_files or []
    inputs = (*(annotations or []), mask, image, reference, *files_of(prior))
    dicom = DicomSources.of(annotations or [], roi, reference or image)
    check_outputs(paths, [report] if report else [], inputs, dicom)
    session = Session.opened(
        prior, annotations or [], mask, reference, device, chosen, image, not no_image, roi
    )
    with search_progress(image.name if image else "", quiet or session.image is None) as searching:
        session.look_at_image(searching)
    with fit_progress(session.prior.card.name, quiet) as progress:
        result = session.fit(side, progress, strength)
    if remesh is not None:
        from model_server.jobs.remeshed import remeshed

        result = remeshed(result, remesh)
    session.write(result, paths, report)
    tell_fitted(result, paths, quiet)


def tell_fitted(result: Reconstruction, paths: Sequence[Path], quiet: bool) -> None:
    """Warnings, and where the surface is."""
    from model_server.jobs.report import plausibility

    for warning in result.warnings:
        errors.print(f"Warning: {warning}", markup=False)
    if not quiet:
        for sentence in plausibility(result):
            errors.print(sentence, markup=False)
        errors.print(f"Wrote {', '.join(str(p) for p in paths)}.", markup=False)
