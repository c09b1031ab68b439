"""What all pictures share: their ink, the bar that tells the scale, the patient's directions."""

from __future__ import annotations

from typing import Any

import numpy as np

from model_server.pictures.rendering import Camera

PAPER = "#ffffff"
INK = "#1f2933"
NIGHT = "#10161d"  # behind light ink, on images
# Letters at the ends of the RAS axes: negative, positive.
LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))


def halo(dark: bool, width: float = 2.5) -> list[Any]:
    """What keeps light letters and bars readable on bright tissue."""
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=width, foreground=NIGHT), Normal()] if dark else []


def round_length(about: float) -> float:
    """The largest of 1, 2, 5, 10, ... mm that is at most ``about``."""
    power = 10.0 ** np.floor(np.log10(max(about, 1e-6)))
    return float(max(step * power for step in (1, 2, 5) if step * power <= about * 1.0001))


def draw_scale(
    axes: Any,
    place: tuple[float, float],
    about_mm: float,
    pixel_mm: float,
    lift: float,
    *,
    width: float,
    size: float,
    color: str = INK,
    dark: bool = False,
    leftward: bool = False,
    foot: str = "bottom",
) -> None:
    """A bar of a round length, and how long it is.

    Args:
        axes: of matplotlib.
        place: where the bar begins.
        about_mm: no longer than this.
        pixel_mm: of one unit of the axes.
        lift: from the bar to the letters.
        width: of the bar, points.
        size: of the letters, points.
        color: of both.
        dark: whether they lie on an image.
        leftward: whether the bar goes to the left of its place.
        foot: what of the letters is lifted: "bottom" or "baseline".
    """
    length = round_length(about_mm)
    long = length / pixel_mm
    x, y = place[0] - long * leftward, place[1]
    axes.plot(
        *([x, x + long], [y, y]),
        color=color,
        lw=width,
        solid_capstyle="butt",
        clip_on=False,
        path_effects=halo(dark, width + 2.0),
    )
    axes.text(
        *(x + long / 2, y + lift, f"{length:g} mm"),
        color=color,
        ha="center",
        va=foot,
        fontsize=size,
        path_effects=halo(dark),
    )


def draw_compass(
    axes: Any,
    camera: Camera,
    place: tuple[float, float],
    length: float,
    *,
    width: float,
    size: float,
    head: float = 10.0,
    reach: float = 1.4,
    shortest: float = 0.0,
) -> None:
    """Where right, anterior and superior point.

    Args:
        axes: of matplotlib, in pixels of the camera.
        camera: from where.
        place: where the arrows begin.
        length: of an arrow across the view, pixels.
        width: of the arrows, points.
        size: of the letters, points.
        head: of the arrows, points.
        reach: from the beginning of an arrow to its letter, in arrows.
        shortest: share of the length under which an arrow is left out.
    """
    x, y = place
    for axis in range(3):
        # The patient's left is drawn instead of the right where it points toward the viewer.
        direction = camera.axes[:, axis]
        end = 1 if direction[2] > -0.05 else 0
        dx, dy = (direction[:2] if end else -direction[:2]) * length * (1, -1)
        if np.hypot(dx, dy) < shortest * length:
            continue
        arrow = {"arrowstyle": "-|>", "color": INK, "lw": width, "mutation_scale": head}
        axes.annotate("", (x + dx, y + dy), (x, y), arrowprops=arrow, annotation_clip=False)
        axes.text(
            *(x + reach * dx, y + reach * dy, LETTERS[axis][end]),
            ha="center",
            va="center",
            color=INK,
            fontsize=size,
        )
