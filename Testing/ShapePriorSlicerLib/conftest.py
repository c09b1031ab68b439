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


@pytest.fixture
def application():
    """Scene and logics as in Slicer."""
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    from scenes import Application

    found = Application()
    yield found
    found.close()


@pytest.fixture
def workspace(application):
    """Sessions whose server says what a test tells it to."""
    from scenes import FakeWorkspace

    found = FakeWorkspace(application.scene)
    yield found
    found.close()


@pytest.fixture
def session(workspace):
    """One structure, with a clock of its own."""
    from scenes import Clock

    found = workspace.create("hippocampus-dals")
    found._clock = Clock()
    return found
