"""A look into a prior's shape space: its mean, its main modes, random shapes, in-between shapes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.io.outputs import make_folder, write_together
from model_server.io.surfaces import surface_file
from model_server.io.volumes import read_volume
from model_server.pose import Pose
from model_server.priors.protocol import ShapePrior
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
MODES, DEVIATIONS = 4, 2.0  # so many modes are shown, each at so many standard deviations
IN_BETWEEN = 5  # shapes from the first to the second, both included


def explore(
    prior: ShapePrior,
    folder: Path,
    samples: int = 4,
    between: tuple[Path, Path] | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write meshes (PLY, LPS mm, at the mean size of the training shapes) and ``explore.png``.

    Args:
        prior: with latents (``latent_mean``, ``latent_root``), as DALS and ImplicitAtlas have.
        folder: made where it is missing.
        samples: random shapes.
        between: two label volumes to go between; by default two random shapes. Needs a prior
            that encodes volumes.
        seed: of the random shapes.

    Returns:
        The files.

    Raises:
        ShapePriorError: a prior without a latent space.
    """
    rows = {
        "mean": _mean(prior),
        **_modes(prior),
        "sample": [_need(prior, "decode")(z) for z in _need(prior, "sample")(samples, seed)],
        "between": _between(prior, between, seed),
    }
    templates = getattr(getattr(prior, "decoder", None), "template_latents", None)
    if templates is not None:
        rows["template"] = [_need(prior, "template")(k) for k in range(len(templates))]
    pose = Pose(np.zeros(3), _mean_scale(prior))
    placed = {
        name: [Surface(pose.apply(s.points), s.triangles) for s in row]
        for name, row in rows.items()
    }
    make_folder(folder)
    jobs = {
        folder / f"{name}-{index}.ply": partial(_write, surface)
        for name, row in placed.items()
        for index, surface in enumerate(row)
    }
    write_together({**jobs, folder / "explore.png": partial(_draw, prior.card.name, placed)})
    return [*jobs, folder / "explore.png"]


def _need(prior: ShapePrior, name: str) -> Any:
    found = getattr(prior, name, None)
    if found is None:
        raise ShapePriorError(
            f"'{prior.card.name}' has no latent space to explore.",
            "Choose a prior of the method dals or implicit-atlas.",
        )
    return found


def _mean(prior: ShapePrior) -> list[Surface]:
    surface: Surface = _need(prior, "decode")(_need(prior, "latent_mean"))
    return [surface]


def _modes(prior: ShapePrior) -> dict[str, list[Surface]]:
    """Each mode at minus and plus some standard deviations."""
    mean, root = _need(prior, "latent_mean"), _need(prior, "latent_root")
    return {
        f"mode{k + 1}": [
            _need(prior, "decode")(mean + share * DEVIATIONS * root[:, k]) for share in (-1.0, 1.0)
        ]
        for k in range(min(MODES, root.shape[1]))
    }


def _between(prior: ShapePrior, files: tuple[Path, Path] | None, seed: int) -> list[Surface]:
    if files is None:
        first, second = _need(prior, "sample")(2, seed + 1)
    else:
        encode, whole = _need(prior, "encode"), _need(prior, "latents_of")
        first, second = (whole(encode(read_volume(path))) for path in files)
    shares = np.linspace(0.0, 1.0, IN_BETWEEN)
    return [
        _need(prior, "decode")(_need(prior, "interpolate")(first, second, float(s))) for s in shares
    ]


def _mean_scale(prior: ShapePrior) -> float:
    """Mm per canonical unit of a shape of middling size."""
    low, high = prior.card.hyperparameters.get("radius_mm", (1.0, 1.0))
    radius = getattr(prior, "rms_radius", None) or prior.decoder.radius  # type: ignore[attr-defined]
    return 0.5 * float(low + high) / float(radius)


def _write(surface: Surface, path: Path) -> None:
    path.write_bytes(surface_file(surface, ".ply"))


def _draw(title: str, rows: dict[str, list[Surface]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from model_server.picture import camera_for, render

    columns = max(len(row) for row in rows.values())
    figure = Figure(figsize=(2.2 * columns, 1.9 * len(rows)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    camera = camera_for(rows["mean"][0])
    # Room for shapes larger than the mean, in a quarter of the pixels.
    small = tuple(int(1.2 * n / 4.0) for n in camera.shape)
    camera = replace(camera, pixel_mm=4.0 * camera.pixel_mm, shape=(small[0], small[1]))
    for line, (name, row) in zip(grid, rows.items(), strict=True):
        for index, axes in enumerate(line):
            axes.set_axis_off()
            if index < len(row):
                axes.imshow(render(row[index], camera)[0])
                axes.set_title(f"{name} {index}", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, format="png")
