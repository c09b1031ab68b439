"""Slices of a result: what was drawn and what was found, on the image, in any plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Slice:
    """What is seen in one plane.

    Attributes:
        outlines: drawn in it, RAS mm.
        colors: of each of them.
        found: loops (N, 3) of the surface in it, RAS mm.
    """

    outlines: Sequence[PlanarOutline]
    colors: Sequence[str]
    found: Sequence[Array]

    @classmethod
    def of(
        cls,
        outlines: Sequence[PlanarOutline],
        colors: Sequence[str],
        reconstruction: Reconstruction,
    ) -> Slice:
        """The plane of outlines, cut out of a surface."""
        surface, first = reconstruction.surface, outlines[0]
        found = section_loops(surface.points, surface.triangles, first.origin, first.normal)
        return cls(outlines, colors, found)

    def box(self) -> tuple[Array, float]:
        """The middle (2,) of all that is drawn, on the screen, and half its longer side; mm."""
        first = self.outlines[0]
        loops = [*(loop for outline in self.outlines for loop in outline.loops), *self.found]
        flat = np.concatenate([loop - first.origin for loop in loops])
        flat = flat @ viewing_axes(first.normal).T
        low, high = flat.min(axis=0), flat.max(axis=0)
        return 0.5 * (low + high), 0.5 * float((high - low).max())


def half_width(slices: Sequence[Slice]) -> float:
    """Mm from the middle of a slice to its edge: enough for each, so that all have one scale."""
    return max((one.box()[1] for one in slices), default=0.0) + SLICE_MARGIN_MM


def draw_slice(
    axes: Any, shown: Slice, half: float, reconstruction: Reconstruction, image: Volume | None
) -> None:
    """Draw the slice of one plane.

    Args:
        axes: of matplotlib.
        shown: what is in the plane.
        half: mm from its middle to its edges; square, so that slices of one value are of one scale
            and of one height on the page.
        reconstruction: RAS mm.
        image: shown behind; without it the slice stays blank.
    """
    outlines, first = shown.outlines, shown.outlines[0]
    screen = viewing_axes(first.normal)
    center, _ = shown.box()
    frame = (center[0] - half, center[0] + half, center[1] - half, center[1] + half)
    dark = image is not None
    axes.set_facecolor(NIGHT if dark else "#f3f4f6")
    if image is not None:
        _show_image(axes, image, first.origin, screen, frame)
    ink = "white" if dark else INK
    # Dashes on top: where both agree, both are seen.
    for index, loop in enumerate(shown.found):
        label = "reconstructed" if index == 0 else None
        _plot_loop(axes, loop, first.origin, screen, ink, label, path_effects=halo(dark, 3.4))
    for outline, color in zip(outlines, shown.colors, strict=True):
        for index, loop in enumerate(outline.loops):
            label = "drawn" if outline is first and index == 0 else None
            _plot_loop(axes, loop, first.origin, screen, color, label, ls=DASHES)
    axes.set_xlim(frame[0], frame[1])
    axes.set_ylim(frame[2], frame[3])
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#9aa5b1")
    _letters(axes, screen, ink, dark)
    draw_scale(
        axes, (frame[1] - 0.07 * half, frame[2] + 0.07 * half), 0.5 * half, 1.0, 0.04 * half,
        width=2.5, size=9, color=ink, dark=dark, leftward=True, foot="baseline",
    )  # fmt: skip
    axes.set_title(_slice_title(outlines, reconstruction), fontsize=11.5, color=INK)
    axes.legend(
        loc="upper left",
        fontsize=8.5,
        framealpha=0.55,
        facecolor=NIGHT if dark else PAPER,
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


def _plot_loop(
    axes: Any, loop: Array, origin: Array, screen: Array, color: str, label: str | None, **how: Any
) -> None:
    at = (np.vstack([loop, loop[:1]]) - origin) @ screen.T
    axes.plot(*at.T, color=color, lw=1.8, label=label, **how)


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
