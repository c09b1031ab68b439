"""Structures beside each other, and their nodes, which may go at any time."""

from __future__ import annotations

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
import vtk
from scenes import asked, curve, draw, ellipse, move, outline
from ShapePriorSlicerLib.scene.structure import BOUNDARY, OUTLINE

from model_server.errors import ShapePriorError

# --- nodes go -----------------------------------------------------------------------------------


def test_an_outline_deleted_by_hand_is_a_step(application, workspace, fitted):
    draw(fitted, "sagittal")
    application.scene.RemoveNode(outline(fitted))
    workspace.poll()
    assert [row.name for row in fitted.rows()] == ["coronal", "sagittal"]
    assert fitted.history.undoText == "Delete outline"
    assert asked(fitted) == ["fit", "fit"]


def test_a_model_deleted_by_hand_comes_with_the_next_surface(application, workspace, fitted):
    application.scene.RemoveNode(fitted.model.node)
    workspace.poll()
    fitted.change(coloring="uncertainty")
    workspace.poll()
    assert fitted.model.node is None
    move(outline(fitted))
    workspace.poll()
    fitted.connection.answer()
    workspace.poll()
    assert fitted.model.node.GetDisplayNode().GetScalarVisibility()


def test_a_model_deleted_by_hand_is_told_with_what_to_press(application, workspace, fitted):
    application.scene.RemoveNode(fitted.model.node)
    workspace.poll()
    told = fitted.status
    assert (told.phase, told.text) == ("idle", "The surface was deleted.")
    fitted.reconstruct()
    fitted.connection.answer()
    workspace.poll()
    assert fitted.model.node is not None
    assert fitted.status.phase == "done"


def countOf(application, name):
    return application.scene.GetNumberOfNodesByClass(name)


def test_what_shows_an_annotation_goes_with_it(application, workspace, fitted):
    before = countOf(application, "vtkMRMLDisplayNode")
    for _ in range(3):
        fitted.undo()
        fitted.redo()
    assert countOf(application, "vtkMRMLDisplayNode") == before
    workspace.remove(fitted)
    assert countOf(application, "vtkMRMLDisplayNode") == 0


# --- curves of the user's own --------------------------------------------------------------------


@pytest.fixture
def taken(application, fitted):
    """A curve that somebody made elsewhere, used as an outline."""
    node = application.scene.AddNewNodeByClass("vtkMRMLMarkupsClosedCurveNode", "mine")
    for point in ellipse(0):
        node.AddControlPoint(*point)
    fitted.add(OUTLINE, node)
    fitted.poll()
    return node


def test_undo_lets_a_curve_of_the_users_own_go_and_redo_takes_it_again(
    application, workspace, fitted, taken
):
    workspace.poll()
    fitted.undo()
    assert application.scene.IsNodePresent(taken)
    assert len(fitted.rows()) == 2
    assert taken.GetDisplayNode().GetNumberOfViewNodeIDs() == 0
    fitted.redo()
    assert outline(fitted, 2) is taken


def test_a_curve_of_the_users_own_outlives_the_structure(application, workspace, fitted, taken):
    workspace.remove(fitted)
    assert application.scene.IsNodePresent(taken)
    assert countOf(application, "vtkMRMLMarkupsClosedCurveNode") == 1


def test_a_volume_deleted_by_hand_is_missed_by_nobody(application, workspace, fitted):
    volume = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    fitted.volume = volume
    workspace.poll()
    application.scene.RemoveNode(volume)
    workspace.poll()
    assert fitted.volume is None
    move(outline(fitted))
    workspace.poll()
    assert asked(fitted) == ["fit"]


def test_a_parameter_node_deleted_by_hand_ends_its_session(application, workspace, fitted):
    move(outline(fitted))
    workspace.poll()
    application.scene.RemoveNode(fitted.structure.node)
    workspace.poll()
    assert workspace.sessions == []
    assert workspace.current is None
    assert fitted.connection.isClosed


def test_closing_the_scene_in_the_middle_of_a_fit(application, workspace, fitted):
    move(outline(fitted))
    workspace.poll()
    fitted.connection.answer()
    application.scene.Clear(0)
    workspace.poll()
    assert workspace.sessions == []
    assert fitted.connection.isClosed
    other = workspace.create("hippocampus-dals")
    draw(other)
    assert [row.name for row in other.rows()] == ["axial"]


# --- several structures -------------------------------------------------------------------------


def test_two_structures_know_nothing_of_each_other(application, workspace):
    first, second = workspace.create("hippocampus-dals"), workspace.create("hippocampus-dals")
    assert (first.name, second.name) == ("Hippocampus", "Hippocampus 2")
    volumes = [application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", n) for n in "ab"]
    first.volume, second.volume = volumes
    draw(first)
    draw(first, "coronal")
    workspace.poll()
    assert asked(first) == ["fit"]
    assert asked(second) == []
    second.change(strength=2.0)
    draw(second)
    assert first.parameters.strength == 0.0
    workspace.select(second)
    assert workspace.undo() == "Draw outline"
    assert len(first.outlines()) == 2
    workspace.remove(first)
    assert [n.GetName() for n in volumes if n.GetScene()] == ["a", "b"]
    assert workspace.sessions == [second]
    assert application.scene.GetNumberOfNodesByClass("vtkMRMLModelNode") == 0


def test_nothing_of_a_removed_structure_is_left(application, workspace, fitted):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(application.scene)

    def items():
        found = vtk.vtkIdList()
        hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), found, True)
        return found.GetNumberOfIds()

    assert items() == 4  # folder, two outlines, surface
    fitted.remove(outline(fitted))
    fitted.undo()
    assert items() == 4
    workspace.remove(fitted)
    assert items() == 0
    assert application.scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode") == 0
    assert application.scene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode") == 0


def test_a_renamed_structure_renames_its_surface(workspace, fitted):
    workspace.rename(fitted, "Left hippocampus")
    assert fitted.name == "Left hippocampus"
    assert fitted.model.node.GetName() == "Left hippocampus"


def test_the_same_outline_twice_is_refused(fitted):
    with pytest.raises(ShapePriorError, match="belongs"):
        fitted.add(OUTLINE, outline(fitted))


def test_an_outline_of_another_structure_is_refused(workspace, fitted):
    other = workspace.create("liver-dals")
    with pytest.raises(ShapePriorError, match="belongs to 'Hippocampus'"):
        other.add(OUTLINE, outline(fitted))


def test_only_closed_curves_are_outlines(application, session):
    node = application.scene.AddNewNodeByClass("vtkMRMLMarkupsCurveNode", "sketch")
    with pytest.raises(ShapePriorError, match="'sketch'"):
        session.add(OUTLINE, node)


def test_residuals_stand_at_their_annotations(session):
    empty = curve(session.structure, [], "empty", BOUNDARY)
    session.add(BOUNDARY, empty)
    session.add(BOUNDARY, curve(session.structure, ellipse(0)[:3], "clicks", BOUNDARY))
    draw(session)
    draw(session, "coronal")
    session.connection.answer()
    session.poll()
    found = {row.name: row.residualMm for row in session.rows()}
    assert found == {"axial": 0.1, "coronal": 0.2, "empty": None, "clicks": pytest.approx(0.3)}


def test_a_folder_of_the_users_is_neither_renamed_nor_deleted(fitted):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(fitted.structure.scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "CT 2026")
    for node in fitted.structure.owned():
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), study)
    fitted.structure.rename("Other")
    assert hierarchy.GetItemName(study) == "CT 2026"
    fitted.structure.delete()
    assert hierarchy.GetItemName(study) == "CT 2026"
