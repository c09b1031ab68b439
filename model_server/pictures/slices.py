"""Slices of a result: what was drawn and what was found, on the image, in any plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from model_server.geometry.loops import section_loops
from model_server.observations import PlanarOutline, Volume
from model_server.pictures.marks import INK, LETTERS, NIGHT, PAPER, draw_scale, halo
from model_server.reconstruction import Reconstruction

Array = NDArray[np.float64]
SLICE_MARGIN_MM = 8.0
SLICE_STEP_MM = 0.2
DRAWN = "#ffb000"
FOUND = "#22d3ee"
DASHES = (0, (3.0, 2.4))


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


def draw_slice(
    axes: Any,
    outlines: Sequence[PlanarOutline],
    reconstruction: Reconstruction,
    image: Volume | None,
) -> None:
    """Draw the slice of one plane.

    Args:
        axes: of matplotlib.
        outlines: drawn in this plane, RAS mm.
        reconstruction: RAS mm.
        image: shown behind; without it the slice stays blank.
    """
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
    axes.set_facecolor(NIGHT if image is not None else "#f3f4f6")
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
    draw_scale(
        axes, (frame[1] - 0.07 * half, frame[2] + 0.07 * half), 0.35 * half, 1.0, 0.04 * half,
        width=2.5, size=9, color=ink, dark=image is not None, leftward=True, foot="baseline",
    )  # fmt: skip
    axes.set_title(_slice_title(outlines, reconstruction), fontsize=11.5, color=INK)
    axes.legend(
        loc="upper left",
        fontsize=8.5,
        framealpha=0.55,
        facecolor=NIGHT if image is not None else PAPER,
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
            path_effects=halo(dark),
        )
