"""The picture of Resources/Documentation/correspondences.md, from the bundled example.

python Testing/make_correspondence_picture.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model_server.io.markups import read_annotations  # noqa: E402
from model_server.io.volumes import PART_COLORS  # noqa: E402
from model_server.jobs.example import example_case  # noqa: E402
from model_server.priors.protocol import FitSettings  # noqa: E402
from model_server.priors.registry import load_prior  # noqa: E402
from model_server.reconstruction import Surface  # noqa: E402

PICTURE = ROOT / "Resources" / "Documentation" / "correspondences.webp"
PRIORS = ("hippocampus-dals", "hippocampus-atlas")
LANDMARKS = 8
# The patient is seen from the left: anterior to the left, superior up.
ACROSS, UP, DEPTH = np.array([0.0, -1.0, 0.0]), np.array([0.0, 0.0, 1.0]), np.array([-1.0, 0, 0])

Array = NDArray[np.float64]


def paint(axes: object, surface: Surface, colors: Array, marks: Array) -> None:
    """A shaded surface from the left, (V, 3) colors, and (L, 3) points that are numbered."""
    corners = surface.corners()
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    facing = normal @ DEPTH
    order = np.argsort((corners.mean(axis=1) @ DEPTH)[facing > 0])
    flat = np.stack([corners @ ACROSS, corners @ UP], axis=-1)[facing > 0][order]
    light = (0.35 + 0.65 * facing[facing > 0][order])[:, None]
    shown = colors[surface.triangles].mean(axis=1)[facing > 0][order] * light
    axes.add_collection(PolyCollection(flat, facecolors=shown, edgecolors=shown, linewidths=0.2))
    for number, mark in enumerate(marks, start=1):
        place = (float(mark @ ACROSS), float(mark @ UP))
        axes.plot(*place, "o", color="black", markersize=3)
        axes.annotate(str(number), place, textcoords="offset points", xytext=(3, 3), fontsize=7)
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.set_axis_off()


def part_colors(parts: NDArray[np.uint8]) -> Array:
    """(V, 3) as the segments of a labelmap have them."""
    return np.array(PART_COLORS)[(parts.astype(int) - 1) % len(PART_COLORS)]


def main() -> None:
    """Templates above, the example's fits below, landmarks carried over."""
    case = example_case()
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    grid = figure.subplots(2, len(PRIORS))
    for column, name in zip(grid.T, PRIORS, strict=True):
        prior = load_prior(name, "cpu")
        fit = list(
            prior.fit(read_annotations(case.outlines), settings=FitSettings(uncertainty=False))
        )[-1]
        many = prior.card.method == "atlas"
        template = prior.template(fit.template) if many else prior.template()
        places = template.points if many else prior.template_coordinates()
        seen = np.flatnonzero(template.points @ DEPTH > np.quantile(template.points @ DEPTH, 0.6))
        along = np.argsort(template.points[seen, 1])
        chosen = seen[along[np.linspace(0, len(along) - 1, LANDMARKS).astype(int)]]
        moved, _ = prior.from_template(fit, places[chosen])
        colors = part_colors(prior.part_of(fit.template, places))
        paint(column[0], template, colors, template.points[chosen])
        paint(column[1], fit.surface, part_colors(fit.parts), moved)
        column[0].set_title(f"{name}: template", fontsize=9)
        column[1].set_title("fit of three outlines", fontsize=9)
    figure.savefig(PICTURE, dpi=100, pil_kwargs={"quality": 60, "method": 6})


if __name__ == "__main__":
    main()
