"""``shape-prior demo``: the bundled example, fitted from its three outlines."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from model_server.commands.terminal import check_device, fit_progress, output
from model_server.jobs.session import Session


def demo(
    output_folder: Annotated[
        Path, typer.Option("--output", help="Folder for the results; made if missing.")
    ] = Path("demo-output"),
    prior: Annotated[str, typer.Option(help="Prior to fit.")] = "hippocampus-dals",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Fit the bundled example from its three outlines; write surface, labelmap and picture."""
    check_device(device)
    for sentence in told(run_demo(output_folder, prior, device, quiet), output_folder):
        output.print(sentence, markup=False, soft_wrap=True)


def run_demo(folder: Path, prior: str, device: str, quiet: bool) -> dict[str, Any]:
    """Fit the example; write surface, labelmaps, picture and report; its content.

    Args:
        folder: made if missing.
        prior: a prior of the hippocampus.
        device: "auto", "cpu" or "cuda".
        quiet: no progress on standard error.

    Raises:
        ShapePriorError: the case is missing, or the folder cannot be written.
    """
    from model_server.io.outputs import check_outputs
    from model_server.io.volumes import read_volume
    from model_server.io.writing import make_folder
    from model_server.jobs.example import ORGAN, dice_against, example_case
    from model_server.pictures.result import save_picture

    case = example_case()
    make_folder(folder)
    outputs = [folder / f"{ORGAN}{suffix}" for suffix in (".stl", ".vtp", ".nrrd", ".seg.nrrd")]
    report_file, picture_file = folder / "report.json", folder / "picture.png"
    inputs = (*case.outlines, case.image, case.truth)
    check_outputs(outputs, [report_file, picture_file], inputs)
    session = Session.opened(prior, case.outlines, None, case.image, device)
    with fit_progress(session.prior.card.name, quiet) as progress:
        result = session.fit(progress=progress)
    dice = round(dice_against(result, read_volume(case.truth)), 4)
    content = session.write(result, outputs, report_file, {"dice_of_the_example": dice})
    image, observations = read_volume(case.image), session.observations
    save_picture(picture_file, result, observations, image)
    return content


def told(content: dict[str, Any], folder: Path) -> list[str]:
    """What a newcomer wants to know at the end: how it went, where it is, what is next."""
    from model_server.jobs.example import ORGAN

    gaps = [residual["mean_mm"] for residual in content["residuals"]]
    command = command_line()
    return [
        f"A hippocampus of {content['volume_ml']:.2f} ml, {sum(gaps) / len(gaps):.2f} mm from its "
        f"{len(gaps)} outlines; Dice {content['dice_of_the_example']:.3f} with the shape they were "
        "drawn on.",
        f"The picture: {folder / 'picture.png'}",
        f"Beside it: {ORGAN}.stl and .vtp (surface), .nrrd and .seg.nrrd (voxels), report.json.",
        f"Next, outlines of your own: {command} fit --help",
    ]


def command_line() -> str:
    """How the command line is called from here: by name if it is on the path, else by file."""
    script = Path(sys.executable).with_name("shape-prior.exe" if os.name == "nt" else "shape-prior")
    found = shutil.which("shape-prior")
    if found and Path(found).resolve() == script.resolve():
        return "shape-prior"
    if not script.is_file():
        return f"{Path(sys.executable).name} -m model_server"
    return str(script.relative_to(Path.cwd()) if Path.cwd() in script.parents else script)
