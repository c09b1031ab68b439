"""The colors of structures and their annotations, told apart also by the color-blind."""

from __future__ import annotations

from dataclasses import dataclass

Color = tuple[float, float, float]

# Okabe and Ito, "Color Universal Design" (2002).
ORANGE = (0.902, 0.624, 0.0)
SKY_BLUE = (0.337, 0.706, 0.914)
GREEN = (0.0, 0.620, 0.451)
YELLOW = (0.941, 0.894, 0.259)
BLUE = (0.0, 0.447, 0.698)
VERMILION = (0.835, 0.369, 0.0)
PURPLE = (0.800, 0.475, 0.655)
WHITE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Pair:
    """What is drawn of a structure, and the surface that follows it."""

    outline: Color
    surface: Color


# One for each structure of a scene; more structures begin anew.
PAIRS = (
    Pair(ORANGE, SKY_BLUE),
    Pair(SKY_BLUE, VERMILION),
    Pair(YELLOW, BLUE),
    Pair(WHITE, PURPLE),
    Pair(YELLOW, GREEN),
)
INSIDE_COLOR, OUTSIDE_COLOR = GREEN, VERMILION
LANDMARK_COLOR = WHITE  # on a template in all colors
TEMPLATE_COLOR = (0.75, 0.75, 0.75)
POSE_COLOR = YELLOW  # of a step of a search, beside the surface
