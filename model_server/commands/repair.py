"""``shape-prior repair`` and ``repair-source``: a mask mended by a prior; how its source errs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from model_server.commands.fit import tell_fitted
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


def repair(
    prior: Annotated[str, typer.Option(help="Name of a prior (see 'priors'), or its folder.")],
    mask: Annotated[Path, typer.Option(help="Label volume, .seg.nrrd or DICOM SEG to repair.")],
    label: Label = "",
    segment: SegmentName = "",
    annotations: Annotated[
        list[Path] | None,
        typer.Option(
            help="Markups or RTSTRUCT where the mask is wrong; they count more than the mask."
        ),
    ] = None,
    roi: Roi = "",
    image: Annotated[
        Path | None, typer.Option(help="Volume, or DICOM folder, in which the organ is seen.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="How the mask's source errs, by 'repair-source' (JSON).")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Volume whose geometry labelmaps take; by default image, then mask."),
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
    strength: Annotated[float, typer.Option(help="Of the prior, 0.01 to 100.")] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of the fit.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    version: Version = False,
) -> None:
    """Mend a mask of a network: islands, gaps, missing ends; one closed surface comes out."""
    choice(side, SIDES, "--side")
    chosen = MaskChoice(label_numbers(label), segment)
    if threads is not None:
        begin_with_few(threads)
    check_device(device)
    from model_server.io.dicom_outputs import DicomSources
    from model_server.io.outputs import check_outputs
    from model_server.jobs.repair import read_source
    from model_server.jobs.repair import repair as repaired
    from model_server.priors.protocol import checked_strength
    from model_server.priors.registry import files_of

    strength = checked_strength(strength)
    paths = output_files or []
    inputs = (*(annotations or []), mask, image, reference, source, *files_of(prior))
    dicom = DicomSources.of(annotations or [], roi, reference or image)
    check_outputs(paths, [report] if report else [], inputs, dicom)
    noise = read_source(source) if source else None
    session = Session.opened(
        prior, annotations or [], mask, reference, device, chosen, image, image is not None, roi
    )
    with search_progress(image.name if image else "", quiet or session.image is None) as searching:
        session.look_at_image(searching)
    with fit_progress(session.prior.card.name, quiet) as progress:
        result, told = repaired(session, noise, side, progress, strength)
    session.write(result, paths, report, told)
    if not quiet:
        did = told["repair"]
        errors.print(
            f"{did['volume_before_ml']:.4g} ml became {did['volume_after_ml']:.4g} ml: "
            f"{did['added_ml']:.3g} ml added, {did['removed_ml']:.3g} ml removed; the border moved "
            f"by {did['mean_distance_mm']:.1f} mm on average, 95 % of it by up to "
            f"{did['percentile_95_mm']:.1f} mm, at most by {did['largest_distance_mm']:.1f} mm."
        )
    tell_fitted(result, paths, quiet)


def repair_source(
    masks: Annotated[Path, typer.Option(help="Folder of masks of one source.")],
    truths: Annotated[Path, typer.Option(help="Folder of the true ones, by the same file names.")],
    output: Annotated[Path, typer.Option(help="What is learned (JSON), for 'repair --source'.")],
    label: Label = "",
    name: Annotated[str, typer.Option(help="Of the source, for reports.")] = "",
) -> None:
    """Learn from a few pairs of mask and truth how a source of masks errs."""
    from model_server.jobs.repair import learn_from, write_source

    noise, count = learn_from(masks, truths, label_numbers(label), name or masks.name)
    write_source(output, noise, count)
    errors.print(
        f"From {count} pairs: the border lies {noise.bias_mm:+.2f} mm outside, give or take "
        f"{noise.spread_mm:.2f} mm. Wrote {output}."
    )
