"""A structure that has been fitted."""

from __future__ import annotations

import pytest


@pytest.fixture
def fitted(session):
    """Two outlines and their surface."""
    from scenes import draw

    draw(session)
    draw(session, "coronal")
    session.connection.answer()
    session.poll()
    session.connection.requests.clear()
    return session
