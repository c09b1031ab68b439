"""One picture of a result: the shaded surface with the outlines on it, and the drawn slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.io.writing import write_together
from model_server.observations import Observations, PlanarOutline, Volume
from model_server.pictures.marks import INK, PAPER, draw_compass, draw_scale
from model_server.pictures.rendering import PIXELS, Camera, camera_for, halved, render
from model_server.pictures.slices import Slice, draw_slice, half_width
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
# Okabe and Ito's: told apart by color-blind readers, too.
OUTLINE_COLORS = ("#d55e00", "#009e73", "#0072b2", "#cc79a7", "#e69f00", "#56b4e9")
CLICKED = "#f0e442"


def save_picture(
    path: Path,
    reconstruction: Reconstruction,
    observations: Observations,
    image: Volume | None = None,
    title: str = "",
) -> None:
    """Draw a result into a PNG.

    Args:
        path: of the PNG.
        reconstruction: RAS mm.
        observations: what was drawn, RAS mm.
        image: shown in the slices; without it they stay blank.
        title: above all.

    Raises:
        ShapePriorError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.6, 7.6), dpi=120, facecolor=PAPER)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        *(2, 3),
        width_ratios=(1.75, 1, 1),
        left=0.015,
        right=0.985,
        top=0.885,
        bottom=0.03,
        wspace=0.06,
        hspace=0.17,
    )
    figure.text(0.02, 0.945, title or _title(reconstruction), fontsize=17, color=INK, weight="bold")
    _draw_surface(figure.add_subplot(grid[:, 0]), reconstruction.surface, observations)
    cells = [grid[0, 1], grid[0, 2], grid[1, 1]]
    slices = _slices(observations, reconstruction)
    half = half_width(slices)
    for cell, shown in zip(cells, slices, strict=False):
        draw_slice(figure.add_subplot(cell), shown, half, reconstruction, image)
    _draw_facts(figure.add_subplot(grid[1, 2]), reconstruction)
    write_together({path: lambda part: figure.savefig(part, facecolor=PAPER)})


def _title(reconstruction: Reconstruction) -> str:
    organ = reconstruction.provenance.prior.rpartition("-")[0] or "organ"
    kinds = [r.kind for r in reconstruction.residuals]
    outlines = kinds.count("outline")
    parts = [f"{outlines} drawn outline{'s' * (outlines > 1)}"] if outlines else []
    parts += ["boundary points"] if "boundary points" in kinds else []
    return f"{organ.replace('-', ' ').capitalize()} from {' and '.join(parts) or 'a mask'}"


def _slices(observations: Observations, reconstruction: Reconstruction) -> list[Slice]:
    """The planes that are shown; each outline in the color that it has on the surface."""
    color = {id(outline): _color(k) for k, outline in enumerate(observations.outlines)}
    return [
        Slice.of(outlines, [color[id(outline)] for outline in outlines], reconstruction)
        for outlines in _chosen_planes(observations)
    ]


def _chosen_planes(observations: Observations) -> list[list[PlanarOutline]]:
    """At most three planes, as different in orientation as can be had, in the order drawn."""
    planes = observations.planes()
    normals = np.array([p[0].normal for p in planes]).reshape(-1, 3)
    chosen: list[int] = []
    while len(chosen) < min(3, len(planes)):
        alike = np.abs(normals @ normals[chosen].T).max(axis=1) if chosen else np.zeros(len(planes))
        alike[chosen] = np.inf
        chosen.append(int(np.argmin(alike)))
    return [planes[i] for i in sorted(chosen)]


# --- the surface --------------------------------------------------------------------------------


def _draw_surface(axes: Any, surface: Surface, observations: Observations) -> None:
    camera = camera_for(surface)
    picture, depth = render(surface, camera)
    rows, columns = camera.shape
    frame = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(halved(picture), extent=frame, interpolation="bilinear")
    for number, outline in enumerate(observations.outlines):
        for index, loop in enumerate(outline.loops):
            label = outline.name if index == 0 else None
            _draw_on_surface(axes, loop, depth, camera, _color(number), label)
    for points in observations.boundary:
        at = camera.project(points.points)
        axes.scatter(at[:, 0], at[:, 1], s=22, color=CLICKED, edgecolor=INK, lw=0.6, zorder=5)
    _draw_marks(axes, camera)
    axes.set_axis_off()
    # Room below for the compass.
    axes.set_ylim(rows - 0.5 + 0.15 * max(rows, columns), -0.5)
    if observations.outlines:
        axes.legend(loc="upper left", frameon=False, fontsize=11, labelcolor=INK)


def _draw_marks(axes: Any, camera: Camera) -> None:
    """The scale and the patient's directions, below the surface."""
    rows, columns = camera.shape
    longer, about = max(rows, columns), 0.25 * columns * camera.pixel_mm
    place = (0.96 * columns, rows + 0.06 * longer)
    draw_scale(
        axes, place, about, camera.pixel_mm, -0.015 * rows, width=3, size=11, leftward=True
    )  # fmt: skip
    length = 0.075 * longer
    draw_compass(axes, camera, (0.9 * length, rows + 0.6 * length), length, width=1.4, size=11)


def _color(number: int) -> str:
    return OUTLINE_COLORS[number % len(OUTLINE_COLORS)]


def _draw_on_surface(
    axes: Any, loop: Array, depth: Array, camera: Camera, color: str, label: str | None
) -> None:
    """A loop, solid where it lies in front of the surface, faint where the surface hides it."""
    from matplotlib.patheffects import Normal, Stroke

    at = camera.project(np.vstack([loop, loop[:1]]))
    column = np.clip(np.round(at[:, 0]).astype(int), 0, camera.shape[1] - 1)
    row = np.clip(np.round(at[:, 1]).astype(int), 0, camera.shape[0] - 1)
    # Drawn lines lie a little above or below the fitted surface.
    hidden = at[:, 2] < depth[row, column] - 0.03 * camera.pixel_mm * PIXELS
    front = np.where(hidden[:, None], np.nan, at[:, :2])
    axes.plot(at[:, 0], at[:, 1], color=color, lw=1.3, alpha=0.30, ls=(0, (3, 2)), zorder=2)
    axes.plot(
        *front.T,
        color=color,
        lw=2.4,
        label=label,
        zorder=3,
        solid_capstyle="round",
        path_effects=[Stroke(linewidth=4.0, foreground="white", alpha=0.75), Normal()],
    )


# --- the figures --------------------------------------------------------------------------------


def _draw_facts(axes: Any, reconstruction: Reconstruction) -> None:
    axes.set_axis_off()
    facts = _facts(reconstruction)
    for row, (name, value) in enumerate(facts):
        y = 0.95 - row * min(0.085, 0.95 / len(facts))
        axes.text(0.04, y, name, fontsize=11, color="#52606d", transform=axes.transAxes, va="top")
        axes.text(
            *(1.0, y, value),
            fontsize=11,
            color=INK,
            transform=axes.transAxes,
            ha="right",
            va="top",
        )


def _facts(reconstruction: Reconstruction) -> list[tuple[str, str]]:
    surface, made = reconstruction.surface, reconstruction.provenance
    facts = [
        ("prior", made.prior),
        ("volume", f"{surface.volume() / 1000:.2f} ml"),
        ("surface area", f"{surface.area() / 100:.2f} cm²"),
    ]
    spread = reconstruction.uncertainty_mm
    if spread is not None:
        facts.append(("uncertainty, median", f"{np.median(spread):.2f} mm"))
        facts.append(("uncertainty, largest", f"{spread.max():.2f} mm"))
    facts += [
        (f"residual, {r.name}", f"{r.mean_mm:.2f} mm (max {r.max_mm:.2f})")
        for r in reconstruction.residuals[:4]
    ]
    total = sum(made.seconds.values())
    if total:
        facts.append((f"fit on {made.device}", f"{total:.2f} s"))
    return facts
