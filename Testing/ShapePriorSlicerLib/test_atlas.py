"""ImplicitAtlas in the module, with a real server: parts, templates, landmarks, plausibility."""

from __future__ import annotations

import csv
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
from scenes import Application, SharedBackend, addExample, curve, opened, writeBundle
from scenes import settle as settledWithin
from ShapePriorSlicerLib.files.export import exportStructure
from ShapePriorSlicerLib.panel.texts import figuresText
from ShapePriorSlicerLib.scene import coloring
from ShapePriorSlicerLib.scene.annotations import definedPoints
from ShapePriorSlicerLib.scene.landmarks import onPatient, onTemplate
from ShapePriorSlicerLib.scene.structure import LANDMARKS, OUTLINE, TEMPLATE_LANDMARKS
from ShapePriorSlicerLib.server.backend import LocalBackend
from ShapePriorSlicerLib.session.workspace import Workspace
from vtk.util.numpy_support import vtk_to_numpy

from model_server.cases.canonical import standardization
from model_server.cases.simulate import three_outlines
from model_server.fitting.pose_prior import mirror_points
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface
from model_server.service.sessions import template_of

ATLAS = "hippocampus-atlas"
RADIUS_MM = 13.0  # RMS, of a hippocampus
MOST_TRIED = 8  # shapes, until the fit chooses another template
PATIENT = Pose(np.array([-25.0, 10.0, 30.0]), 30.0)


@pytest.fixture(scope="module")
def prior():
    return load_prior(ATLAS, "cpu")


@pytest.fixture(scope="module")
def backend():
    found = LocalBackend(arguments=("--device", "cpu"))
    yield SharedBackend(found)
    found.stop()


@contextmanager
def scene(backend):
    application = Application()
    application.scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
    workspace = Workspace(application.scene, lambda: backend)
    try:
        yield application, workspace
    finally:
        workspace.close()
        application.close()


@pytest.fixture
def workspace(backend):
    with scene(backend) as (_, found):
        yield found


@pytest.fixture(scope="module")
def example(backend):
    """The bundled case, fitted once."""
    with scene(backend) as (application, workspace):
        session = workspace.create(ATLAS)
        addExample(session)
        settle(workspace)
        assert session.status.phase == "done", session.status
        yield application, session


@pytest.fixture
def fitted(example):
    """The bundled case as it was fitted."""
    session = example[1]
    for node in session.structure.nodes(TEMPLATE_LANDMARKS):
        session.remove(node)
    session.change(coloring="plain", showTemplate=False)
    session.poll()
    return session


def array(session, name):
    return vtk_to_numpy(session.model.node.GetPolyData().GetPointData().GetArray(name))


def settle(workspace):
    """A fit takes two seconds; on a machine with other work to do it may take more."""
    settledWithin(workspace, 240.0)


def wait(session, condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, session.status
        session.poll(0.01)


def drawAround(session, surface: Surface) -> Observations:
    """Three outlines of a surface in place of what was drawn."""
    for row in session.rows():
        session.remove(row.node)
    found = three_outlines(surface, np.random.default_rng(0))
    for outline in found.outlines:
        for loop in outline.loops:
            few = loop[:: max(1, len(loop) // 24)]
            session.add(OUTLINE, curve(session.structure, few, outline.name))
    return found


def rarestFirst(prior) -> np.ndarray:
    """Training latents, those with the rarest templates first, then one of the most common."""
    whitened = [prior.whiten(h.astype(np.float64)) for h in prior.training_latents]
    chosen = np.array([prior.whole.likely_templates(u)[0] for u in whitened])
    order = np.argsort(np.bincount(chosen)[chosen], kind="stable")
    return prior.training_latents[np.concatenate([order[-1:], order[:-1]])]


def shapeOf(prior, latents, mirrored=False) -> Surface:
    """A shape of the prior, in a patient."""
    shape = prior.decode(latents)
    points = PATIENT.apply(shape.points)
    if mirrored:
        return Surface(mirror_points(points), np.ascontiguousarray(shape.triangles[:, ::-1]))
    return Surface(points, shape.triangles)


def showTemplate(session):
    """The template that the fit chose, as it is shown."""
    session.change(showTemplate=True)
    number = session.reconstruction.template
    wait(session, lambda: session.template.has(session.parameters.prior, number))
    session.poll()
    return session.template._model.restored()


def placeLandmarks(session, points):
    nodes = session.structure.nodes(TEMPLATE_LANDMARKS)
    for node in nodes:
        session.remove(node)
    session.add(TEMPLATE_LANDMARKS, curve(session.structure, points, "marks", TEMPLATE_LANDMARKS))
    session.poll()
    return definedPoints(session.structure.refers(LANDMARKS))


# --- parts --------------------------------------------------------------------------------------


def test_parts_and_template_come_into_the_model(fitted):
    found = fitted.reconstruction
    assert set(np.unique(array(fitted, coloring.PARTS))) == {1, 2}
    assert np.array_equal(array(fitted, coloring.PARTS), found.parts)
    assert set(array(fitted, coloring.TEMPLATE_ID)) == {found.template}
    assert found.part_names == {1: "anterior", 2: "posterior"}
    front = found.surface.points[:, 1]
    assert front[found.parts == 1].min() > front[found.parts == 2].mean()


def test_parts_are_offered_where_there_are_parts(workspace, fitted):
    assert "parts" in fitted.colorings
    other = workspace.create("hippocampus-pca")
    addExample(other)
    settle(workspace)
    assert "parts" not in other.colorings
    assert {"plain", "correspondence", "uncertainty", "distance"} <= set(other.colorings)
    other.change(coloring="parts")  # it was chosen with another prior
    other.poll()
    assert not other.model.node.GetDisplayNode().GetScalarVisibility()


def test_parts_have_a_color_each_and_a_legend_with_their_names(fitted):
    fitted.change(coloring="parts")
    fitted.poll()
    display = fitted.model.node.GetDisplayNode()
    assert display.GetActiveScalarName() == coloring.PARTS
    table = display.GetColorNode()
    assert [table.GetColorName(i) for i in range(table.GetNumberOfColors())] == [
        "anterior",
        "posterior",
    ]
    colors = table.CreateLookupTableCopy()
    colors.SetTableRange(display.GetScalarRange())
    shown = [0.0, 0.0, 0.0]
    for part in (1, 2):
        colors.GetColor(part, shown)
        assert shown == pytest.approx(coloring.PART_COLORS[part - 1], abs=0.01)
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(display)
    assert legend.GetVisibility()
    assert legend.GetUseColorNamesForLabels()
    fitted.change(coloring="uncertainty")
    fitted.poll()
    assert not legend.GetUseColorNamesForLabels()
    fitted.change(coloring="plain")
    fitted.poll()
    assert not legend.GetVisibility()


def test_parts_go_into_files(fitted, tmp_path):
    path = exportStructure(fitted.structure, tmp_path / "organ.correspondences.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = [int(row["part"]) for row in rows]
    assert np.array_equal(parts, fitted.reconstruction.parts)
    named = {(row["part"], row["part_name"]) for row in rows}
    assert named == {("1", "anterior"), ("2", "posterior")}
    assert {int(row["template"]) for row in rows} == {fitted.reconstruction.template}
    text = exportStructure(fitted.structure, tmp_path / "organ.vtp").read_text()
    assert all(f'Name="{name}"' in text for name in ("Part", "TemplateId", "TemplateCoordinates"))


def test_a_saved_scene_shows_parts_without_a_server(backend, example, fitted, tmp_path):
    fitted.change(coloring="parts")
    fitted.poll()
    was = fitted.reconstruction
    path = writeBundle(example[0], tmp_path)
    with scene(backend) as (application, workspace):
        opened(application, path, tmp_path)
        _isTheSame(workspace, fitted, was)


def _isTheSame(workspace, fitted, was):
    (back,) = workspace.sessions
    found = back.reconstruction
    assert np.array_equal(found.parts, was.parts)
    assert (found.template, found.part_names) == (was.template, was.part_names)
    assert found.nearest_training == was.nearest_training
    display = back.model.node.GetDisplayNode()
    assert display.GetScalarVisibility()
    assert display.GetColorNode().GetColorName(0) == "anterior"
    assert back.colorings == fitted.colorings


# --- the template -------------------------------------------------------------------------------


def test_the_template_that_the_fit_chose_is_shown_and_replaced(workspace, prior):
    session = workspace.create(ATLAS)
    seen = {}
    for latents in rarestFirst(prior)[:MOST_TRIED]:
        drawAround(session, shapeOf(prior, latents))
        settle(workspace)
        number = session.reconstruction.template
        shown = showTemplate(session)
        assert shown.template == number
        wanted = template_of(prior, number)
        pose = session.template._pose()
        assert np.abs(pose.apply(wanted.surface.points) - shown.surface.points).max() < 1e-3
        assert np.array_equal(shown.parts, wanted.parts)
        assert session.template.node.GetName().endswith(f"template {number + 1} of 5")
        seen[number] = (pose.translation.tolist(), pose.scale, session.template.node.GetID())
        if len(seen) == 2:
            break
    assert len(seen) == 2, "every shape chose the same template"
    assert len({str(where) for where in seen.values()}) == 1  # in place of the other


def test_the_template_is_colored_by_parts_as_the_organ(fitted):
    showTemplate(fitted)
    display = fitted.template.node.GetDisplayNode()
    for measured in ("plain", "uncertainty", "distance"):  # which a template has not
        fitted.change(coloring=measured)
        fitted.poll()
        assert not display.GetScalarVisibility()
    fitted.change(coloring="correspondence")
    fitted.poll()
    assert display.GetScalarVisibility()
    assert display.GetActiveScalarName() == coloring.CORRESPONDENCE
    fitted.change(coloring="parts")
    fitted.poll()
    assert display.GetActiveScalarName() == coloring.PARTS
    assert display.GetColorNodeID() == fitted.model.node.GetDisplayNode().GetColorNodeID()
    assert slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(display) is None


# --- landmarks ----------------------------------------------------------------------------------


def test_landmarks_are_where_the_prior_says(fitted, prior):
    """On the client through the surface's coordinates, as the inverse of p + D(p) on the server."""
    shown = showTemplate(fitted)
    chosen = np.arange(0, len(shown.surface.points), 250)
    found = placeLandmarks(fitted, shown.surface.points[chosen])
    assert fitted.template.problem is None
    assert len(found) == len(chosen)
    *_, same = prior.fit(fitted.structure.observations()[0])
    exact, left = prior.from_template(same, shown.template_coordinates[chosen])
    gaps = np.linalg.norm(found - exact, axis=1)[left < 0.05]
    assert np.median(gaps) < 0.2
    assert gaps.max() < 1.0


def test_landmarks_stay_when_another_template_takes_over(fitted, prior):
    """Where they are on the organ, seen from either template, differs by less than a millimeter."""
    session = fitted
    shown = showTemplate(session)
    points = shown.surface.points[::300]
    before = placeLandmarks(session, points)
    other = template_of(prior, (session.reconstruction.template + 1) % prior.template_count)
    session.template.take(ATLAS, other)
    changed = replace(session.reconstruction, template=other.number)
    session.template.show(session.parameters, changed)
    assert session.template._model.restored().template == other.number
    session.template.moveLandmarks(changed)
    after = definedPoints(session.structure.refers(LANDMARKS))
    assert session.template.problem is None
    assert np.linalg.norm(after - before, axis=1).max() < 1.0


def test_a_landmark_without_a_place_on_the_organ_says_so(fitted):
    shown = showTemplate(fitted)
    front = shown.surface.points[[shown.surface.points[:, 1].argmax()]]
    assert len(placeLandmarks(fitted, front)) == 1
    found = fitted.reconstruction
    # An organ whose front end corresponds to nothing: its coordinates end before.
    places = np.minimum(found.template_coordinates, [9.0, 0.0, 9.0])
    fitted.template.moveLandmarks(replace(found, template_coordinates=places))
    assert "without a place" in fitted.template.problem.what
    assert fitted.structure.refers(LANDMARKS).GetNumberOfControlPoints() == 0


def test_landmarks_of_a_mirrored_organ_are_mirrored(workspace):
    """Kidneys: one prior for both sides, the right one by mirroring."""
    kidney = load_prior("kidney-dals", "cpu")
    shape = kidney.decode(kidney.latent_mean)
    pose = Pose(np.array([60.0, 0.0, 0.0]), 50.0)
    left = Surface(pose.apply(shape.points), shape.triangles)
    landmarks = {}
    for side in ("left", "right"):
        session = workspace.create("kidney-dals")
        session.change(side=side)
        flip = mirror_points if side == "right" else np.asarray
        found = three_outlines(left, np.random.default_rng(0))
        for outline in found.outlines:
            (loop,) = outline.loops
            session.add(OUTLINE, curve(session.structure, flip(loop[::5]), outline.name))
        settle(workspace)
        assert session.status.phase == "done", session.status
        assert session.reconstruction.pose.mirrored == (side == "right")
        shown = showTemplate(session)
        assert shown.surface.volume() > 0.0  # faces outward, also in the mirror
        chosen = np.arange(0, len(shown.surface.points), 400)
        landmarks[side] = placeLandmarks(session, shown.surface.points[chosen])
        assert session.template.problem is None
        # The template looks as the organ does: mirrored with it.
        centered = shown.surface.points - session.template._pose().translation
        scaled = centered / session.template._pose().scale
        assert np.abs(scaled - flip(shape.points)).max() < 1e-3
    assert len(landmarks["left"]) == len(landmarks["right"]) > 3
    gaps = np.linalg.norm(mirror_points(landmarks["right"]) - landmarks["left"], axis=1)
    assert gaps.max() < 0.5


# --- plausibility -------------------------------------------------------------------------------


def test_the_nearest_training_shape_is_told_without_its_name(fitted):
    nearest = fitted.reconstruction.nearest_training
    assert [n.name for n in nearest] == [""] * 3
    assert sorted(n.distance for n in nearest) == [n.distance for n in nearest]
    assert 0.0 < nearest[0].distance < 0.8  # the example is a shape as the training shapes are
    text = figuresText(fitted)
    assert f"typical pair of them: {nearest[0].distance:.1f}" in text


def test_what_is_no_hippocampus_is_refused_in_one_sentence(workspace):
    kidney = load_prior("kidney-dals", "cpu")
    shape = kidney.decode(kidney.latent_mean)
    points = shape.points * RADIUS_MM / standardization(shape).rms_radius
    other = workspace.create(ATLAS)
    drawAround(other, Surface(points + PATIENT.translation, shape.triangles))
    settle(workspace)
    assert other.status.phase == "failed"
    assert "would have a mean radius" in other.status.text
    assert len(other.rows()) == 3  # nothing that was drawn is lost


# --- the maps by themselves ---------------------------------------------------------------------


def test_round_trips_end_where_they_began(fitted):
    found, shown = fitted.reconstruction, showTemplate(fitted)
    inOwnFrame = Surface(shown.template_coordinates, shown.surface.triangles)
    there = found.template_coordinates[::20]
    places = onTemplate(replace(shown, surface=inOwnFrame), there)
    back = onPatient(found, places.points)
    gaps = np.linalg.norm(back.points - found.surface.points[::20], axis=1)
    assert np.median(gaps) < 0.1
    assert places.found.all()
    assert back.found.all()
