"""One picture of a result: the shaded surface with the outlines on it, and the drawn slices.

The surface is rendered by a small depth buffer in numpy: VTK needs graphics libraries that servers
lack, and matplotlib's own 3-D axes neither shade smoothly nor hide what lies behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from model_server.geometry.loops import section_loops
from model_server.observations import Observations, PlanarOutline, Volume
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
PIXELS = 1200  # of the rendering, along its longer side, before it is halved against jaggies
FRAGMENTS = 100_000  # pixels that are looked at in one go
SIZE_STEP = 3  # pixels; triangles whose boxes differ by less are filled together
SLICE_MARGIN_MM = 8.0
SLICE_STEP_MM = 0.2
TISSUE = np.array([0.87, 0.63, 0.52])
DRAWN = "#ffb000"
FOUND = "#22d3ee"
DASHES = (0, (3.0, 2.4))
OUTLINE_COLORS = ("#e11d48", "#15803d", "#1d4ed8", "#a16207", "#7e22ce", "#0f766e")
PAPER = "#ffffff"
INK = "#1f2933"
# Letters at the ends of the RAS axes: negative, positive.
LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))


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
        OSError: the file cannot be written.
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
    for cell, outlines in zip(cells, _chosen_planes(observations), strict=False):
        _draw_slice(figure.add_subplot(cell), outlines, reconstruction, image)
    _draw_facts(figure.add_subplot(grid[1, 2]), reconstruction)
    figure.savefig(path, facecolor=PAPER)


def _title(reconstruction: Reconstruction) -> str:
    organ = reconstruction.provenance.prior.rpartition("-")[0] or "organ"
    kinds = [r.kind for r in reconstruction.residuals]
    outlines = kinds.count("outline")
    parts = [f"{outlines} drawn outline{'s' * (outlines > 1)}"] if outlines else []
    parts += ["boundary points"] if "boundary points" in kinds else []
    return f"{organ.capitalize()} from {' and '.join(parts) or 'a mask'}"


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


@dataclass(frozen=True)
class Camera:
    """An orthographic view.

    Attributes:
        axes: (3, 3) rows: right and up on the picture, and toward the viewer, RAS.
        center: (3,) RAS mm, in the middle of the picture.
        pixel_mm: size of a pixel.
        shape: (rows, columns).
    """

    axes: Array
    center: Array
    pixel_mm: float
    shape: tuple[int, int]

    def project(self, points: Array) -> Array:
        """(N, 3) RAS mm -> column, row and height toward the viewer (mm)."""
        view = (points - self.center) @ self.axes.T
        rows, columns = self.shape
        column = view[:, 0] / self.pixel_mm + 0.5 * (columns - 1)
        row = 0.5 * (rows - 1) - view[:, 1] / self.pixel_mm
        return np.stack([column, row, view[:, 2]], axis=1)


def camera_for(surface: Surface, elevation_deg: float = 24.0) -> Camera:
    """A view from slightly above, from the side that shows most of the surface."""
    corners = surface.corners()
    areas = 0.5 * np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    tilt = np.deg2rad(elevation_deg)
    # From the front half: so that the patient's left is never mistaken.
    angles = np.deg2rad(np.arange(20.0, 161.0, 5.0))
    views = np.stack(
        [
            np.cos(tilt) * np.cos(angles),
            np.cos(tilt) * np.sin(angles),
            np.full_like(angles, np.sin(tilt)),
        ],
        axis=1,
    )
    toward = views[int(np.abs(areas @ views.T).sum(axis=0).argmax())]
    right = np.cross([0.0, 0.0, 1.0], toward)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(toward, right), toward])
    view = surface.points @ axes.T
    low, high = view.min(axis=0), view.max(axis=0)
    extent = (high - low)[:2]
    pixel = float(extent.max()) / (0.9 * PIXELS)
    shape = tuple(int(n) for n in np.ceil(extent[::-1] / pixel) + 0.1 * PIXELS)
    return Camera(axes, 0.5 * (low + high) @ axes, pixel, (shape[0], shape[1]))


def render(surface: Surface, camera: Camera) -> tuple[Array, Array]:
    """Smoothly shaded picture (rows, columns, 4) and heights (rows, columns), -inf where empty.

    Each pixel keeps the highest triangle, with its normal interpolated from the vertices.
    """
    rows, columns = camera.shape
    depth = np.full(rows * columns, -np.inf)
    normal = np.zeros((rows * columns, 3))
    places = camera.project(surface.points)[surface.triangles]
    normals = (surface.vertex_normals() @ camera.axes.T)[surface.triangles]
    for triangle, pixel, weights in _fragments(places, rows, columns):
        height = (weights * places[triangle, :, 2]).sum(axis=1)
        # Of fragments on one pixel the last one stays: the highest.
        order = np.argsort(height)
        order = order[height[order] > depth[pixel[order]]]
        depth[pixel[order]] = height[order]
        found = np.einsum("fk,fkc->fc", weights[order], normals[triangle[order]])
        normal[pixel[order]] = found
    picture = _shade(normal.reshape(rows, columns, 3), np.isfinite(depth).reshape(rows, columns))
    return picture, depth.reshape(rows, columns)


def _fragments(
    places: Array, rows: int, columns: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], Array]]:
    """The pixels that triangles cover, in batches of triangles of like size.

    Args:
        places: (F, 3, 3) column, row and height of each corner.
        rows, columns: of the picture.

    Yields:
        triangle (N,), pixel (N,) counted along the rows, barycentric weights (N, 3).
    """
    limit = np.array([columns, rows]) - 1
    low = np.maximum(np.floor(places[..., :2].min(axis=1)), 0).astype(int)
    high = np.minimum(np.ceil(places[..., :2].max(axis=1)), limit).astype(int)
    (ax, ay), (bx, by), (cx, cy) = places[..., :2].transpose(1, 2, 0)
    doubled = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    sides = (high - low + 1).max(axis=1)
    usable = (high >= low).all(axis=1) & (np.abs(doubled) > 1e-9)
    sizes = np.where(usable, -(-sides // SIZE_STEP) * SIZE_STEP, 0)
    for size in np.unique(sizes[usable]):
        chosen = np.flatnonzero(sizes == size)
        dy, dx = (d.ravel() for d in np.indices((size, size)))
        batch = max(1, FRAGMENTS // len(dx))
        for first in range(0, len(chosen), batch):
            t = chosen[first : first + batch, None]
            x, y = low[t, 0] + dx, low[t, 1] + dy
            b = ((x - ax[t]) * (cy[t] - ay[t]) - (cx[t] - ax[t]) * (y - ay[t])) / doubled[t]
            c = ((bx[t] - ax[t]) * (y - ay[t]) - (x - ax[t]) * (by[t] - ay[t])) / doubled[t]
            weights = np.stack([1.0 - b - c, b, c], axis=-1)
            seen = (weights.min(axis=-1) >= -1e-6) & (x <= high[t, 0]) & (y <= high[t, 1])
            which, _ = np.nonzero(seen)
            yield t[which, 0], (y * columns + x)[seen], weights[seen]


def _shade(normal: Array, covered: NDArray[np.bool_]) -> Array:
    """Lambert's law for a key and a fill light, some ambient light, a soft highlight."""
    unit = normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    # Seen from behind (an open surface, a fold) the other side is lit.
    unit = np.where(unit[..., 2:] < 0, -unit, unit)
    key = np.array([-0.45, 0.65, 0.61]) / np.linalg.norm([-0.45, 0.65, 0.61])
    fill = np.array([0.8, -0.1, 0.6]) / np.linalg.norm([0.8, -0.1, 0.6])
    light = 0.30 + 0.66 * np.clip(unit @ key, 0, 1) + 0.16 * np.clip(unit @ fill, 0, 1)
    half = key + np.array([0.0, 0.0, 1.0])
    glow = 0.16 * np.clip(unit @ (half / np.linalg.norm(half)), 0, 1) ** 24
    color = np.clip(TISSUE * light[..., None] + glow[..., None], 0, 1)
    return np.concatenate([color, covered[..., None].astype(np.float64)], axis=-1)


def _halved(picture: Array) -> Array:
    """Two by two pixels made one; colors weighted by coverage."""
    rows, columns = (n // 2 * 2 for n in picture.shape[:2])
    parts = picture[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, 4)
    cover = parts[..., 3:]
    total = cover.sum(axis=(1, 3))
    color = (parts[..., :3] * cover).sum(axis=(1, 3)) / np.maximum(total, 1e-9)
    return np.concatenate([color, total / 4.0], axis=-1)


def _draw_surface(axes: Any, surface: Surface, observations: Observations) -> None:
    camera = camera_for(surface)
    picture, depth = render(surface, camera)
    rows, columns = camera.shape
    frame = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(_halved(picture), extent=frame, interpolation="bilinear")
    for number, outline in enumerate(observations.outlines):
        for index, loop in enumerate(outline.loops):
            label = outline.name if index == 0 else None
            _draw_on_surface(axes, loop, depth, camera, _color(number), label)
    for points in observations.boundary:
        at = camera.project(points.points)
        axes.scatter(at[:, 0], at[:, 1], s=22, color=DRAWN, edgecolor=INK, lw=0.6, zorder=5)
    _draw_scale(axes, camera)
    _draw_compass(axes, camera)
    axes.set_axis_off()
    # Room below for the compass.
    axes.set_ylim(rows - 0.5 + 0.15 * max(rows, columns), -0.5)
    if observations.outlines:
        axes.legend(loc="upper left", frameon=False, fontsize=11, labelcolor=INK)


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


def _draw_scale(axes: Any, camera: Camera) -> None:
    rows, columns = camera.shape
    length = _round_length(0.25 * columns * camera.pixel_mm)
    pixels = length / camera.pixel_mm
    x, y = columns - pixels - 0.04 * columns, rows + 0.06 * max(rows, columns)
    axes.plot([x, x + pixels], [y, y], color=INK, lw=3, solid_capstyle="butt", clip_on=False)
    axes.text(
        *(x + pixels / 2, y - 0.015 * rows, f"{length:g} mm"),
        ha="center",
        va="bottom",
        color=INK,
        fontsize=11,
    )


def _round_length(about: float) -> float:
    """The largest of 1, 2, 5, 10, ... mm that is at most ``about``."""
    power = 10.0 ** np.floor(np.log10(max(about, 1e-6)))
    return float(max(step * power for step in (1, 2, 5) if step * power <= about * 1.0001))


def _draw_compass(axes: Any, camera: Camera) -> None:
    """Where right, anterior and superior point."""
    rows, columns = camera.shape
    size = 0.075 * max(rows, columns)
    x, y = 0.9 * size, rows + 0.6 * size
    for axis in range(3):
        # The patient's left is drawn instead of the right where it points toward the viewer.
        direction = camera.axes[:, axis]
        end = 1 if direction[2] > -0.05 else 0
        dx, dy = (direction[:2] if end else -direction[:2]) * size * (1, -1)
        axes.annotate(
            "",
            (x + dx, y + dy),
            (x, y),
            arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.4},
            annotation_clip=False,
        )
        axes.text(
            *(x + 1.4 * dx, y + 1.4 * dy, LETTERS[axis][end]),
            ha="center",
            va="center",
            color=INK,
            fontsize=11,
        )


# --- the slices ---------------------------------------------------------------------------------


def viewing_axes(normal: Array) -> Array:
    """(2, 3) right and up on the screen for a slice, as radiologists view it.

    Axial and coronal slices show the patient's left on the right, sagittal ones the back.
    """
    main = int(np.argmax(np.abs(normal)))
    right = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]][main])
    up = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]][main])
    up = up - (up @ normal) * normal
    up /= np.linalg.norm(up)
    across = np.cross(up, normal)
    return np.stack([across if across @ right > 0 else -across, up])


def _draw_slice(
    axes: Any,
    outlines: Sequence[PlanarOutline],
    reconstruction: Reconstruction,
    image: Volume | None,
) -> None:
    first = outlines[0]
    screen = viewing_axes(first.normal)
    surface = reconstruction.surface
    loops = section_loops(surface.points, surface.triangles, first.origin, first.normal)
    drawn = [loop for outline in outlines for loop in outline.loops]
    flat = np.concatenate([(loop - first.origin) @ screen.T for loop in [*drawn, *loops]])
    center = 0.5 * (flat.min(axis=0) + flat.max(axis=0))
    # Square, so that all slices have the same height on the page.
    half = 0.5 * float(np.ptp(flat, axis=0).max()) + SLICE_MARGIN_MM
    frame = (center[0] - half, center[0] + half, center[1] - half, center[1] + half)
    axes.set_facecolor("#10161d" if image is not None else "#f3f4f6")
    if image is not None:
        _show_image(axes, image, first.origin, screen, frame)
    # Dashes on top: where both agree, both are seen.
    _plot_loops(axes, loops, first.origin, screen, FOUND, "reconstructed", "solid")
    _plot_loops(axes, drawn, first.origin, screen, DRAWN, "drawn", DASHES)
    axes.set_xlim(frame[0], frame[1])
    axes.set_ylim(frame[2], frame[3])
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#9aa5b1")
    ink = "white" if image is not None else INK
    _letters(axes, screen, ink, image is not None)
    length = _round_length(0.35 * half)
    x, y = frame[1] - 0.07 * half - length, frame[2] + 0.07 * half
    axes.plot(
        *([x, x + length], [y, y]),
        color=ink,
        lw=2.5,
        solid_capstyle="butt",
        path_effects=_halo(image is not None, 4.5),
    )
    label = f"{length:g} mm"
    axes.text(
        *(x + length / 2, y + 0.04 * half, label),
        color=ink,
        ha="center",
        fontsize=9,
        path_effects=_halo(image is not None),
    )
    axes.set_title(_slice_title(outlines, reconstruction), fontsize=11.5, color=INK)
    axes.legend(
        loc="upper left",
        fontsize=8.5,
        framealpha=0.55,
        facecolor="#10161d" if image is not None else PAPER,
        edgecolor="none",
        labelcolor=ink,
        handlelength=2.2,
        borderpad=0.35,
    )


def _slice_title(outlines: Sequence[PlanarOutline], reconstruction: Reconstruction) -> str:
    first = outlines[0]
    main = int(np.argmax(np.abs(first.normal)))
    place = float(first.origin[main])
    letter = LETTERS[main][int(place >= 0)]
    names = {outline.name for outline in outlines}
    gaps = [r.mean_mm for r in reconstruction.residuals if r.name in names]
    off = f", residual {np.mean(gaps):.2f} mm" if gaps else ""
    return f"{', '.join(o.name for o in outlines)} ({letter} {abs(place):.1f} mm){off}"


def _show_image(
    axes: Any,
    image: Volume,
    origin: Array,
    screen: Array,
    frame: tuple[float, float, float, float],
) -> None:
    """The image resampled in the plane of the outline, whatever its orientation."""
    u = np.arange(frame[0], frame[1], SLICE_STEP_MM)
    v = np.arange(frame[2], frame[3], SLICE_STEP_MM)
    ras = origin + u[None, :, None] * screen[0] + v[:, None, None] * screen[1]
    kji = image.to_ijk(ras)[..., ::-1].transpose(2, 0, 1)
    values = np.asarray(image.array, dtype=np.float64)
    shown = map_coordinates(values, kji, order=1, mode="constant", cval=np.nan)
    low, high = np.percentile(values, [1.0, 99.5])
    axes.imshow(
        *(shown,),
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-9),
        extent=frame,
        origin="lower",
        interpolation="bilinear",
    )


def _plot_loops(
    axes: Any,
    loops: Sequence[Array],
    origin: Array,
    screen: Array,
    color: str,
    label: str,
    style: Any,
) -> None:
    for index, loop in enumerate(loops):
        at = (np.vstack([loop, loop[:1]]) - origin) @ screen.T
        axes.plot(*at.T, color=color, lw=1.8, ls=style, label=label if index == 0 else None)


def _halo(dark: bool, width: float = 2.5) -> list[Any]:
    """What keeps light letters and bars readable on bright tissue."""
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=width, foreground="#10161d"), Normal()] if dark else []


def _letters(axes: Any, screen: Array, ink: str, dark: bool) -> None:
    """The directions of the patient at the right and the upper edge of a slice."""
    for direction, x, y in ((screen[0], 0.965, 0.5), (screen[1], 0.5, 0.955)):
        main = int(np.argmax(np.abs(direction)))
        letter = LETTERS[main][int(direction[main] > 0)]
        axes.text(
            *(x, y, letter),
            transform=axes.transAxes,
            color=ink,
            ha="center",
            va="center",
            fontsize=11,
            weight="bold",
            path_effects=_halo(dark),
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
