"""``shape-prior find``: an organ in an image, without annotations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from model_server.commands.fit import tell_fitted
from model_server.commands.terminal import (
    Version,
    check_device,
    choice,
    errors,
    fit_progress,
    search_progress,
)
from model_server.jobs.session import SIDES, Session
from model_server.threads import begin_with_few


def find(
    prior: Annotated[str, typer.Option(help="Name of a prior (see 'priors'), or its folder.")],
    image: Annotated[Path, typer.Option(help="Volume, or DICOM folder, that shows the organ.")],
    output_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            help=".stl, .ply, .obj, .vtp, .nrrd, .seg.nrrd, .nii.gz or .seg.dcm; repeatable.",
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where the report goes (JSON).")] = None,
    trajectory: Annotated[
        Path | None,
        typer.Option(help="Where the steps of a prior that searches step by step go (JSON)."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Where to start (JSON): a ROI of 3D Slicer around the organ, a trajectory, one of "
            "its steps, or a 4 by 4 matrix."
        ),
    ] = None,
    parts: Annotated[
        bool,
        typer.Option(
            "--parts",
            help="Each part of the organ, too: organ.stl brings organ-anterior.stl and others.",
        ),
    ] = False,
    side: Annotated[str, typer.Option(help="auto, left or right (paired organs).")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    version: Version = False,
) -> None:
    """Find an organ in an image and write its surface; nothing has to be annotated."""
    choice(side, SIDES, "--side")
    if threads is not None:
        begin_with_few(threads)
    check_device(device)
    from model_server.imaging.readers import require_steps
    from model_server.io.dicom_outputs import DicomSources
    from model_server.io.outputs import check_outputs
    from model_server.jobs.found_parts import part_files, part_surfaces
    from model_server.jobs.landmarks import require_correspondences
    from model_server.jobs.start import Box, read_start
    from model_server.priors.registry import files_of, prior_card

    paths = output_files or []
    files = part_files(prior_card(prior), paths) if parts else {}
    if trajectory is not None:
        require_steps(prior_card(prior))
    begin = None
    if start is not None:
        require_steps(prior_card(prior), "leave out --start")
        begin = read_start(start, prior_card(prior).name)
    others = [*([report] if report else []), *([trajectory] if trajectory else []), *files]
    check_outputs(paths, others, (image, start, *files_of(prior)), DicomSources(image=image))
    session = Session.opened(prior, [], None, None, device, image=image)
    if isinstance(begin, Box):
        begin = begin.place(require_correspondences(session.prior).template())
    session.observations = replace(session.observations, start=begin)
    with search_progress(image.name, quiet) as searching:
        session.look_at_image(searching)
    with fit_progress(session.prior.card.name, quiet) as progress:
        result = session.fit(side, progress)
    surfaces, missing = part_surfaces(session.observations.reading, files)
    session.write(result, paths, report, surfaces=surfaces, trajectory=trajectory)
    for name in missing:
        errors.print(f"Warning: the image shows no {name} part.", markup=False)
    tell_fitted(result, [*paths, *surfaces], quiet)
