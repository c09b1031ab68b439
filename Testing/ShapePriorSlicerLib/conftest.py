"""Annotations as the client sends them."""

from __future__ import annotations

import pytest

from model_server.observations import Observations, PlanarOutline


@pytest.fixture
def drawn(draw) -> Observations:
    """Three outlines of an ellipsoid."""
    return Observations(
        tuple(PlanarOutline.from_loop(draw(axis).points, f"outline {axis}") for axis in range(3))
    )
