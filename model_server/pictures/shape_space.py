"""The picture of a shape space: rows of shaded shapes, colored by their distance to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.pictures.marks import INK, PAPER, draw_compass, draw_scale
from model_server.pictures.rendering import TISSUE, Camera, camera_for, render
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
TILE_INCHES = (2.1, 2.1)
TILE_PIXELS = 420  # along the longer side; more than the page shows, against jaggies
ROOM = 1.06
COLORS = "coolwarm"
PERCENTILE = 98.0  # of the distances, at the ends of the colors


@dataclass(frozen=True)
class Tile:
    """One shape.

    Attributes:
        title: above it.
        surface: RAS mm, about the origin.
        gaps: (V,) mm to the shape it is compared with; None leaves it in the color of tissue.
    """

    title: str
    surface: Surface
    gaps: Array | None = None


@dataclass(frozen=True)
class Row:
    """Shapes side by side.

    Attributes:
        key: begins the names of their files.
        label: at the left.
        tiles: the shapes.
        compared: what the distances are to; rows of one meaning share their colors.
    """

    key: str
    label: str
    tiles: tuple[Tile, ...]
    compared: str = ""


def draw(title: str, rows: Sequence[Row], part: Path) -> None:
    """Draw rows into a PNG, all shapes from one side and in one scale; for ``write_together``.

    Args:
        title: above all.
        rows: at least one.
        part: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    camera = _camera([tile.surface for row in rows for tile in row.tiles])
    columns = max(len(row.tiles) for row in rows)
    width, height = TILE_INCHES
    ratio = camera.shape[0] / camera.shape[1]
    height = width * min(max(ratio, 0.55), 1.2) + 0.45
    size = (width * columns + 2.2, height * len(rows) + 1.15)
    figure = Figure(figsize=size, dpi=110, facecolor=PAPER)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(rows), columns + 2, width_ratios=(0.55, *[1.0] * columns, 0.06), left=0.01,
        right=1.0 - 0.75 / size[0], top=1.0 - 0.85 / size[1], bottom=0.35 / size[1],
        wspace=0.04, hspace=0.42 / height,
    )  # fmt: skip
    figure.text(0.02, 1.0 - 0.38 / size[1], title, fontsize=14, color=INK, weight="bold")
    limits = _limits(rows)
    for index, row in enumerate(rows):
        _label(figure.add_subplot(grid[index, 0]), row.label)
        for column, tile in enumerate(row.tiles):
            axes = figure.add_subplot(grid[index, column + 1])
            _show(axes, tile, camera, limits.get(row.compared, 1.0))
            if index == column == 0:
                _draw_marks(axes, camera)
    _draw_bars(figure, grid, rows, limits)
    figure.savefig(part, format="png", facecolor=PAPER)


def _camera(surfaces: Sequence[Surface]) -> Camera:
    """The view that suits the first shape, with room for all."""
    camera = camera_for(surfaces[0])
    views = [s.points @ camera.axes[:2].T for s in surfaces]
    low = np.min([v.min(axis=0) for v in views], axis=0)
    high = np.max([v.max(axis=0) for v in views], axis=0)
    extent = ROOM * (high - low)
    pixel = float(extent.max()) / TILE_PIXELS
    columns, rows = (int(n) for n in np.ceil(extent / pixel))
    center = 0.5 * (low + high) @ camera.axes[:2]
    return replace(camera, center=center, pixel_mm=pixel, shape=(rows, columns))


def _limits(rows: Sequence[Row]) -> dict[str, float]:
    """Distance in mm at the ends of the colors, by what it is to."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for tile in row.tiles:
            if tile.gaps is not None:
                found.setdefault(row.compared, []).append(
                    float(np.percentile(np.abs(tile.gaps), PERCENTILE))
                )
    return {name: max(*values, 1e-3) for name, values in found.items()}


def colored(tile: Tile, camera: Camera, limit: float) -> Array:
    """(rows, columns, 4) picture of a shape, colored by its distances.

    Args:
        tile: the shape.
        camera: from where.
        limit: mm at the ends of the colors.
    """
    from matplotlib import colormaps

    picture, depth = render(tile.surface, camera)
    if tile.gaps is None:
        return picture
    row, column = np.nonzero(np.isfinite(depth))
    view = np.stack(
        [
            (column - 0.5 * (camera.shape[1] - 1)) * camera.pixel_mm,
            (0.5 * (camera.shape[0] - 1) - row) * camera.pixel_mm,
            depth[row, column],
        ],
        axis=1,
    )
    seen = cKDTree(tile.surface.points).query(view @ camera.axes + camera.center)[1]
    values = np.asarray(tile.gaps)[seen]
    color = np.asarray(colormaps[COLORS](0.5 + 0.5 * np.clip(values / limit, -1.0, 1.0)))[:, :3]
    # The light on the tissue, on another color.
    light = (picture[row, column, :3] / TISSUE).mean(axis=1, keepdims=True)
    picture[row, column, :3] = np.clip(color * light, 0.0, 1.0)
    return picture


def _show(axes: Any, tile: Tile, camera: Camera, limit: float) -> None:
    axes.set_axis_off()
    axes.imshow(colored(tile, camera, limit), interpolation="antialiased")
    axes.set_title(tile.title, fontsize=9, color=INK, pad=3)


def _draw_marks(axes: Any, camera: Camera) -> None:
    """The scale, and those of the patient's axes that are seen long enough."""
    rows, columns = camera.shape
    place, about = (0.02 * columns, 0.97 * rows), 0.3 * columns * camera.pixel_mm
    draw_scale(axes, place, about, camera.pixel_mm, -0.02 * rows, width=2.0, size=8)
    place, length = (0.12 * columns, 0.14 * rows), 0.09 * max(rows, columns)
    draw_compass(
        axes, camera, place, length, width=1.0, size=8, head=7, reach=1.45, shortest=0.3
    )  # fmt: skip


def _label(axes: Any, text: str) -> None:
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, text, fontsize=10.5, color=INK, ha="center", va="center",
        transform=axes.transAxes,
    )  # fmt: skip


def _draw_bars(figure: Any, grid: Any, rows: Sequence[Row], limits: dict[str, float]) -> None:
    """A bar of colors beside the rows that share it."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    for compared, limit in limits.items():
        lines = [i for i, row in enumerate(rows) if row.compared == compared]
        axes = figure.add_subplot(grid[lines[0] : lines[-1] + 1, -1])
        scale = ScalarMappable(Normalize(-limit, limit), colormaps[COLORS])
        bar = figure.colorbar(scale, cax=axes)
        bar.set_label(f"mm {compared}", fontsize=9, color=INK)
        bar.ax.tick_params(labelsize=8)
