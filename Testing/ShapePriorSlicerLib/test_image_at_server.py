"""The image of a scene at the real server, which is in this process; its reader is a tiny one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
from image_readers import MODALITY, NAME
from scenes import draw, settle, until, volume, vtkMatrix
from served import TOKEN, Served
from ShapePriorSlicerLib.scene.meshes import pointsOf, surfaceInWorld
from ShapePriorSlicerLib.server.priors import listPriors, listRemotePriors
from ShapePriorSlicerLib.session.workspace import Workspace

from model_server.pose import place_of_step
from model_server.priors.registry import ZOO_VARIABLE

RADII = np.array([7.0, 20.0, 8.0])


@pytest.fixture
def workspace(application, reader) -> Iterator[Workspace]:
    """At a server whose reader sees the ellipsoid."""
    found = Workspace(application.scene, Served)
    yield found
    found.close()


@pytest.fixture
def scanned(application, ellipsoid_scan):
    """The ellipsoid's image as a node."""
    node = volume(application.scene, np.asarray(ellipsoid_scan.array), "scan")
    node.SetIJKToRASMatrix(vtkMatrix(ellipsoid_scan.ijk_to_ras))
    return node


def test_the_reader_is_offered_to_all_priors_of_its_organ(reader):
    found = {prior.name: prior for prior in listPriors()}
    for name in (NAME, "hippocampus-dals", "hippocampus-pca"):
        assert (found[name].image.reader, found[name].image.modality) == (NAME, MODALITY)
    assert {p.name for p in found.values() if p.needsImage} == {NAME, "left-atrium-meshnet"}
    assert found["spleen-pca"].image is None


def test_found_without_annotations_refined_by_one_outline(workspace, scanned):
    session = workspace.create("hippocampus-pca", scanned)
    session.find()
    settle(workspace)
    assert session.status.phase == "done", session.status
    assert session.status.usesImage
    assert session.reconstruction.surface.volume() == pytest.approx(
        4.0 / 3.0 * np.pi * RADII.prod(), rel=0.35
    )
    draw(session)
    settle(workspace)
    assert session.status.phase == "done", session.status
    (row,), (seen,) = session.rows(), session.imageRow()
    assert row.residualMm < 1.0
    assert seen.residualMm < 5.0  # a hippocampus is no ellipsoid
    (server,) = workspace.backend.state.sessions.values()
    found = server.images.image.volume.array
    np.testing.assert_array_equal(found, slicer.util.arrayFromVolume(scanned))


def test_a_search_step_by_step_is_seen_stopped_shown_again_and_gone_on_with(
    application, pose_zoo, scanned, monkeypatch
):
    monkeypatch.setenv(ZOO_VARIABLE, str(pose_zoo))
    workspace = Workspace(application.scene, Served)
    session = workspace.create("hippocampus-dissm", scanned)
    assert session.image.prior.searches
    # A server elsewhere tells it, too, and of no other prior of the organ.
    host = workspace.backend.address().url.removeprefix("ws://").removesuffix("/session")
    told = listRemotePriors(host, TOKEN)
    searching = [prior.name for prior in told if prior.searches]
    assert [name for name in searching if name.startswith("hippocampus")] == ["hippocampus-dissm"]
    seen = []

    def follow():
        seen.append(session.status.stage)
        return not workspace.isBusy()

    session.find()
    until(workspace, follow)
    assert session.status.phase == "done", session.status
    assert any(stage.startswith("pose: ") for stage in seen)
    steps = session.trajectory.steps
    assert [step["stage"] for step in steps][:2] == ["start", "translation"]
    assert steps[-1]["stage"] == "shape"
    found = session.reconstruction.surface.points
    # The mean shape of the last step stands where the surface is.
    session.trajectory.nudge(True)
    settle(workspace)
    (model,) = [n for n in slicerNodes(application.scene) if n.GetName().endswith(" step")]
    middle = pointsOf(surfaceInWorld(model)).mean(axis=0)
    assert np.linalg.norm(middle - found.mean(axis=0)) < 6.0
    # Dragged by 2 mm, the search begins there.
    transform = model.GetParentTransformNode()
    place = session.trajectory.place()
    place[0, 3] += 2.0
    transform.SetMatrixTransformToParent(vtkMatrix(place))
    session.findFromPose()
    settle(workspace)
    assert session.status.phase == "done", session.status
    again = session.trajectory.steps
    np.testing.assert_allclose(place_of_step(again[0]), place, atol=2e-3)
    assert "translation" not in [step["stage"] for step in again]
    # Stopped, what there was stays.
    before = session.reconstruction
    session.find()
    until(workspace, lambda: session.status.stage.startswith("pose: "))
    session.cancel()
    settle(workspace)
    assert session.status.text == "Cancelled."
    assert session.reconstruction is before
    workspace.close()


def slicerNodes(scene):
    return [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]


def test_an_image_that_the_reader_does_not_know_is_left_out_and_told(
    application, workspace, scanned
):
    array = np.full(slicer.util.arrayFromVolume(scanned).shape, 7, np.int16)
    node = volume(application.scene, array, "empty")
    session = workspace.create("hippocampus-pca", node)
    draw(session)
    draw(session, "coronal")
    settle(workspace)
    assert session.status.phase == "done", session.status
    assert session.status.warning.startswith("The image 'empty' is left out: ")
    assert not session.status.usesImage
    session.remove(session.rows()[1].node)
    session.remove(session.rows()[0].node)
    session.find()
    until(workspace, lambda: session.status.phase == "failed")
    assert session.status.text
    assert session.status.remedy
