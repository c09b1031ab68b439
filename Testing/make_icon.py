"""Makes the icon of extension and module: the bundled example's surface with its outlines.

python Testing/make_icon.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from model_server.geometry.labels import surface_from_label
from model_server.io.markups import read_annotations
from model_server.io.volumes import read_volume
from model_server.jobs.example import example_case
from model_server.pictures.rendering import Camera, camera_for, render
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
MODULE = Path(__file__).parent.parent / "ShapePriorSlicer"
ICON = MODULE / "Resources" / "Icons" / "ShapePriorSlicer.png"
SIZE = 128  # pixels, as the extensions index asks
COLORS = ("#ffd166", "#06d6a0", "#4cc9f0")
BACKGROUND = "#16324f"
MARGIN = 0.04  # of the icon, around the organ
BEHIND_MM = 1.0  # lines deeper than this below the surface are hidden


def smoothed(surface: Surface, rounds: int = 6) -> Surface:
    """The surface with the staircase of its voxels worn off."""
    edges = np.concatenate([surface.triangles[:, p] for p in ([0, 1], [1, 2], [2, 0])])
    points, count = surface.points, np.bincount(edges[:, 0], minlength=len(surface.points))
    for _ in range(rounds):
        total = np.zeros_like(points)
        np.add.at(total, edges[:, 0], points[edges[:, 1]])
        points = 0.5 * points + 0.5 * total / np.maximum(count, 1)[:, None]
    return Surface(points, surface.triangles)


def draw_outline(axes: Any, loop: Array, depth: Array, camera: Camera, color: str) -> None:
    """The part of a closed loop that the surface does not hide."""
    at = camera.project(np.vstack([loop, loop[:1]]))
    column, row = np.round(at[:, :2]).astype(int).T
    rows, columns = camera.shape
    row, column = np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)
    seen = at[:, 2] > depth[row, column] - BEHIND_MM
    halo = [Stroke(linewidth=2.7, foreground=BACKGROUND, alpha=0.8), Normal()]
    front = np.where(seen[:, None], at[:, :2], np.nan)
    axes.plot(*front.T, color=color, lw=1.7, zorder=3, solid_capstyle="round", path_effects=halo)


def main() -> None:
    """Write the icon."""
    case = example_case()
    surface = smoothed(surface_from_label(read_volume(case.truth)))
    fitted = camera_for(surface)
    side = int(max(fitted.shape))
    camera = replace(fitted, shape=(side, side))
    picture, depth = render(surface, camera)
    figure = Figure(figsize=(1, 1), dpi=SIZE)
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    low, high = -MARGIN * side, (1.0 + MARGIN) * side
    box = FancyBboxPatch(
        (low, low),
        high - low,
        high - low,
        boxstyle="round,pad=0,rounding_size=180",
        color=BACKGROUND,
        lw=0,
    )
    axes.add_patch(box)
    axes.imshow(picture, extent=(-0.5, side - 0.5, side - 0.5, -0.5), zorder=2)
    for color, outline in zip(COLORS, read_annotations(case.outlines).outlines, strict=False):
        for loop in outline.loops:
            draw_outline(axes, loop, depth, camera, color)
    axes.set_xlim(low, high)
    axes.set_ylim(high, low)
    ICON.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(ICON, dpi=SIZE, transparent=True)


if __name__ == "__main__":
    main()
