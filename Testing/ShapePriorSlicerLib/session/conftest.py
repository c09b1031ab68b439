"""A structure that has been fitted, and a user at the Segment Editor."""

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


@pytest.fixture
def sitting(application, workspace):
    """A user who has painted nothing yet."""
    from sittings import Sitting

    return Sitting(application, workspace)
