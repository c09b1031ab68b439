"""Every writer of the backend, on small contents of two versions, for tests of faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_server.cohort.table import Outcome, write_outcomes
from model_server.evaluation.plots import plot_curves
from model_server.evaluation.results import EvaluationResult
from model_server.geometry.icosphere import icosphere
from model_server.io.markups import Markup, write_markups
from model_server.io.outputs import FORMATS, write_outputs
from model_server.io.writing import write_text
from model_server.observations import Observations
from model_server.pictures.result import save_picture
from model_server.pose import Pose
from model_server.priors.card import PriorCard, save_prior
from model_server.reconstruction import Provenance, Reconstruction, Surface
from model_server.training.checkpoints import Checkpoint
from model_server.training.own import LossCurve

# Told the folder and the version, 0 or 1; a version is the same bytes every time.
Writer = Callable[[Path, int], object]


def organ(version: int) -> Reconstruction:
    """A ball of 20 or 24 mm across, RAS mm, with 642 vertices."""
    sphere = icosphere(3)
    points = (10.0 + 2.0 * version) * sphere.points
    return Reconstruction(
        surface=Surface(points, sphere.triangles),
        template_coordinates=sphere.points,
        pose=Pose(np.zeros(3), 10.0),
        latents=np.zeros(2),
        stage="final",
        residuals=(),
        provenance=Provenance("ball-pca", "1.2", "cpu", {}, {}),
        uncertainty_mm=np.linspace(0.0, 1.0, len(points)),
    )


BALLS = (organ(0), organ(1))
NOISE = np.random.default_rng(0).standard_normal((2, 20_000))


def _result(suffix: str) -> Writer:
    return lambda folder, version: write_outputs(BALLS[version], [folder / f"a{suffix}"])


def _prior(folder: Path, version: int) -> None:
    card = PriorCard("ball-pca", "ball", "pca", version=str(version))
    save_prior(folder, card, {"latents": NOISE[version]})


def _checkpoint(folder: Path, version: int) -> None:
    values = torch.from_numpy(NOISE[version])
    Checkpoint(folder / "checkpoint.pt", lambda: {"step": version, "values": values}).save()


def _evaluation(folder: Path, version: int) -> None:
    result = EvaluationResult("ball", "outlines", "three", "all", 1.0 + version, ("pca",), ())
    result.save(folder / "evaluation.json")


def _curve(folder: Path, version: int) -> None:
    curve = LossCurve()
    for share in (0.1, 0.5, 1.0):
        curve("training", share, {"chamfer": share + version})
    curve.draw(folder / "loss.png", "ball")


def _plot(folder: Path, version: int) -> None:
    values: Any = {"dice": {"pca": {3: [0.8, 0.9], 5: [0.85 + 0.1 * version]}}}
    plot_curves(values, ["dice"], folder / "curves.png")


def _picture(folder: Path, version: int) -> None:
    save_picture(folder / "picture.png", BALLS[version], Observations(), title=str(version))


def _markups(folder: Path, version: int) -> None:
    points = BALLS[version].surface.points[:200]
    write_markups(folder / "a.mrk.json", [Markup("edge", "Fiducial", points)])


def _table(folder: Path, version: int) -> None:
    rows = [Outcome(f"case {n}", "fitted", volume_ml=float(version)) for n in range(300)]
    write_outcomes(folder / "cohort.csv", rows)


WRITERS: dict[str, Writer] = {
    **{f"surface or labelmap {suffix}": _result(suffix) for suffix in FORMATS},
    "report, landmarks": lambda f, version: write_text(f / "report.json", str(version) * 9000),
    "annotations": _markups,
    "cohort's table": _table,
    "evaluation": _evaluation,
    "plot": _plot,
    "picture": _picture,
    "loss curve": _curve,
    "checkpoint": _checkpoint,
    "prior": _prior,
}
