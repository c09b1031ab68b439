"""The 3D view shows the organ whole and large, once."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from scenes import CENTER, draw, move, opened, outline, writeBundle
from scenes import FakeWorkspace as Workspace
from ShapePriorSlicerLib.scene.cameras import FILLED, fitCamera, fitCameras, shownPoints
from views import Space, cannotRender

CAN_RENDER = pytest.mark.skipif(bool(cannotRender()), reason=cannotRender())
SIZES = ((450, 450), (600, 300), (240, 480))


@pytest.fixture(params=SIZES, ids=str)
def space(application, request):
    found = Space(application, request.param)
    yield found
    found.close()


def seenShare(picture):
    """Width and height of what is not background, in those of the view."""
    rows, columns = np.nonzero(np.any(picture != picture[0, 0], axis=2))
    height, width = picture.shape[:2]
    return (np.ptp(columns) + 1) / width, (np.ptp(rows) + 1) / height


def camera(scene):
    return scene.GetSingletonNode("1", "vtkMRMLCameraNode")


@CAN_RENDER
@pytest.mark.parametrize("isParallel", [False, True])
def test_the_organ_fills_a_view_of_any_shape(application, fitted, space, isParallel):
    width, height = space.picture().shape[1::-1]
    camera(application.scene).SetParallelProjection(isParallel)
    direction = np.subtract(camera(application.scene).GetPosition(), (0.0, 0.0, 0.0))
    fitCameras([(space.node, width / height)], shownPoints(fitted.structure))
    assert max(seenShare(space.picture())) == pytest.approx(FILLED, abs=0.03)
    found = camera(application.scene)
    after = np.subtract(found.GetPosition(), found.GetFocalPoint())
    assert after @ direction > 0.999 * np.linalg.norm(after) * np.linalg.norm(direction)


@CAN_RENDER
def test_an_organ_far_away_and_cut_off_is_seen_whole(application, fitted, space):
    found = camera(application.scene)
    found.SetFocalPoint(*(CENTER + 300.0))
    found.SetPosition(*(CENTER + np.array([300.0, 301.0, 300.0])))
    width, height = space.picture().shape[1::-1]
    fitCameras([(space.node, width / height)], shownPoints(fitted.structure))
    assert max(seenShare(space.picture())) == pytest.approx(FILLED, abs=0.03)


def test_without_points_or_a_camera_nothing_moves(application):
    scene = application.scene
    view = scene.AddNewNodeByClass("vtkMRMLViewNode")
    view.SetLayoutName("1")
    fitCameras([(view, 1.0)], CENTER[None])  # no camera yet
    made = scene.AddNewNodeByClass("vtkMRMLCameraNode")
    before = made.GetPosition()
    fitCameras([(view, 1.0)], np.empty((0, 3)))
    assert made.GetPosition() == before


@pytest.mark.parametrize("points", [[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0], [1.0, 2.0, 9.0]]])
def test_a_point_and_a_line_are_no_reason_to_fail(application, points):
    made = application.scene.AddNewNodeByClass("vtkMRMLCameraNode")
    made.SetViewUp(*np.subtract(made.GetFocalPoint(), made.GetPosition()))  # along the view
    fitCamera(made, np.array(points), 1.0)
    assert np.isfinite([*made.GetPosition(), *made.GetFocalPoint()]).all()


def test_a_shown_template_is_seen_too(fitted):
    alone = shownPoints(fitted.structure)
    fitted.change(showTemplate=True)
    fitted.poll()
    fitted.connection.sendTemplate()
    fitted.poll()
    both = shownPoints(fitted.structure)
    assert len(both) > len(alone)
    fitted.change(showTemplate=False)
    fitted.poll()
    assert len(shownPoints(fitted.structure)) == len(alone)


def test_a_structure_has_one_first_surface(application, session, tmp_path):
    assert not session.takeFirstSurface()
    draw(session)
    draw(session, "coronal")
    session.connection.progress("quick look")
    session.poll()
    assert session.takeFirstSurface()
    session.connection.answer()
    session.poll()
    move(outline(session))
    session.poll()
    assert not session.takeFirstSurface()
    session.save()
    path = writeBundle(application, tmp_path)
    application.scene.Clear(0)
    opened(application, path, tmp_path)
    again = Workspace(application.scene)
    assert again.current.reconstruction is not None
    assert not again.current.takeFirstSurface()
    again.close()
