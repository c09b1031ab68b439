"""The template beside the patient's organ, and landmarks that go from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from model_server.errors import ShapePriorError
from model_server.observations import Observations, PointSet
from model_server.pose import Pose
from model_server.reconstruction import Provenance, Reconstruction, Surface, Template

from .annotations import Array, definedPoints, fromWorld, localPoints, placed
from .coloring import PARTS
from .landmarks import Places, onPatient, onTemplate
from .live_model import LiveModel
from .markups import addedMarkups, dress, setLocalPoints
from .palette import LANDMARK_COLOR, TEMPLATE_COLOR
from .parameters import Parameters
from .structure import (
    LANDMARK_LABELS,
    LANDMARKS,
    POINTS_CLASS,
    TEMPLATE,
    TEMPLATE_LANDMARKS,
    Structure,
)

Node = Any

GAP = 0.4  # between patient and template, in widths of the patient's organ
POSE_ATTRIBUTE = "ShapePriorSlicer.Pose"  # translation mm, scale, mirrored
COLORS = Parameters(coloring="correspondence", opacity=1.0, slicesOn=False)


class TemplateView:
    """The template's model node, and the landmarks placed on it.

    What is shown is in the scene alone: user and saved scenes may change it.

    Args:
        structure: whose template it is.
    """

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self._model = LiveModel(structure, TEMPLATE, " template", False, TEMPLATE_COLOR)
        self._known: dict[tuple[str, int], Template] = {}
        self.problem: ShapePriorError | None = None  # of the landmarks, for the user to read

    @property
    def node(self) -> Node | None:
        """The template's model node."""
        return self._model.node

    def has(self, prior: str, number: int) -> bool:
        """Whether this template has come, now or with a saved scene."""
        return (prior, number) in self._known or self._stands(prior, number)

    def canonical(self, prior: str, number: int = 0) -> Template | None:
        """A template as it came, in the prior's canonical frame; None of one that has not."""
        return self._known.get((prior, number))

    def take(self, prior: str, template: Template) -> None:
        """Keep a template that came."""
        self._known[prior, template.number] = template

    def show(self, chosen: Parameters, patient: Reconstruction | None) -> None:
        """Show the template that the fit chose beside the patient's organ, or hide it.

        It stays where it stood first, and another one of the prior takes its place there:
        landmarks lie on it.
        """
        if not chosen.showTemplate:
            self._setVisible(False)
            return
        wanted = (chosen.prior, templateNumber(chosen.prior, patient))
        if patient is not None and wanted in self._known and not self._fits(*wanted, patient):
            self._place(chosen.prior, self._known[wanted], patient)
        self.color(chosen)
        self._setVisible(True)

    def color(self, chosen: Parameters) -> None:
        """Color the template as the organ, by place or by parts; what is measured, it has not."""
        shared = "correspondence" if chosen.coloring == "correspondence" else "plain"
        coloring = "parts" if chosen.coloring == "parts" and self._hasParts() else shared
        self._model.display(replace(COLORS, coloring=coloring))

    def moveLandmarks(self, patient: Reconstruction | None) -> None:
        """Put the patient's landmarks where the template's landmarks are on the organ.

        ``problem`` says which of them have no place.
        """
        self.problem = None
        points, labels = self._placed()
        node = self._structure.refers(LANDMARKS)
        template = None if not len(points) else self._model.restored()
        # While another prior's template stands there, nothing tells what corresponds.
        if template is None or patient is None or _priorOf(template) != _priorOf(patient):
            if node is not None and node.GetNumberOfControlPoints():
                node.RemoveAllControlPoints()
            return
        places = onTemplate(template, points)
        found = onPatient(patient, places.points)
        self.problem = _noPlace(labels, places, found)
        kept = places.found & found.found
        node = node or self._madeLandmarks()
        local = fromWorld(node, found.points[kept])
        if not np.array_equal(localPoints(node), local):
            node.SetLocked(False)
            setLocalPoints(node, local)
            node.SetLocked(True)
        for index, label in enumerate(np.array(labels, dtype=object)[kept]):
            if node.GetNthControlPointLabel(index) != label:
                node.SetNthControlPointLabel(index, label)

    # --- parts --------------------------------------------------------------------------------

    def _stands(self, prior: str, number: int) -> bool:
        """Whether the scene holds this template."""
        shown = self._model.restored()
        return shown is not None and (_priorOf(shown), shown.template) == (prior, number)

    def _fits(self, prior: str, number: int, patient: Reconstruction) -> bool:
        """Whether this template stands there, and on the patient's side of the body.

        With landmarks on it, it is not turned to the other side: they would not be where they
        were placed.
        """
        pose = self._pose()
        sided = pose is None or pose.mirrored == patient.pose.mirrored or len(self._placed()[0])
        return self._stands(prior, number) and bool(sided)

    def _hasParts(self) -> bool:
        shown = None if self.node is None else self.node.GetPolyData()
        return shown is not None and shown.GetPointData().GetArray(PARTS) is not None

    def _placed(self) -> tuple[Array, list[str]]:
        """(L, 3) RAS mm and labels of the landmarks on the template."""
        nodes = self._structure.nodes(TEMPLATE_LANDMARKS)
        points = np.concatenate([np.empty((0, 3)), *(definedPoints(n) for n in nodes)])
        return points, [n.GetNthControlPointLabel(i) for n in nodes for i in placed(n)]

    def _place(self, prior: str, template: Template, patient: Reconstruction) -> None:
        """Of the organ's size, upright, to the side of the patient's right."""
        pose = self._kept(prior, patient) or _beside(template.surface, patient)
        surface = template.surface
        # Mirrored triangles would face inward.
        order = surface.triangles[:, ::-1] if pose.mirrored else surface.triangles
        shown = Reconstruction(
            Surface(pose.apply(surface.points), np.ascontiguousarray(order)),
            template.coordinates,
            pose,
            np.empty(0),
            "template",
            (),
            Provenance(prior, "", ""),
            template=template.number,
            parts=template.parts,
            part_names=template.part_names,
        )
        nothing = Observations(boundary=(PointSet(shown.surface.points[:1]),))
        node = self._model.show(shown, nothing, COLORS)
        values = [*pose.translation.tolist(), pose.scale, float(pose.mirrored)]
        node.SetAttribute(POSE_ATTRIBUTE, " ".join(repr(float(v)) for v in values))
        which = f" template {template.number + 1} of {template.count}"
        node.SetName(self._structure.name + (which if template.count > 1 else " template"))

    def _kept(self, prior: str, patient: Reconstruction) -> Pose | None:
        """Where another template of this prior stands, turned to the other side if need be."""
        pose, shown = self._pose(), self._model.restored()
        if pose is None or shown is None or _priorOf(shown) != prior:
            return None
        sided = pose.mirrored == patient.pose.mirrored or len(self._placed()[0])
        return pose if sided else replace(pose, mirrored=patient.pose.mirrored)

    def _pose(self) -> Pose | None:
        """Canonical frame to where the template was put; None where nothing says so."""
        text = None if self.node is None else self.node.GetAttribute(POSE_ATTRIBUTE)
        try:
            *place, scale, mirrored = (float(v) for v in (text or "").split())
            return Pose(np.array(place).reshape(3), scale, mirrored=bool(mirrored))
        except ValueError:
            return None

    def _setVisible(self, visible: bool) -> None:
        nodes = [self.node, *self._structure.nodes(TEMPLATE_LANDMARKS)]
        for node in nodes:
            display = None if node is None else node.GetDisplayNode()
            if display is not None and bool(display.GetVisibility()) != visible:
                display.SetVisibility(visible)

    def _madeLandmarks(self) -> Node:
        name = f"{self._structure.name} landmarks"
        node = addedMarkups(self._structure.scene, POINTS_CLASS, name)
        dress(node, LANDMARK_COLOR, labels=True)
        node.SetControlPointLabelFormat(LANDMARK_LABELS)
        node.SetLocked(True)  # they follow the fit; the ones on the template are moved by hand
        self._structure.refer(LANDMARKS, node)
        self._structure.file(node)
        return node


def templateNumber(prior: str, patient: Reconstruction | None) -> int:
    """Of the template that the fit of this prior chose; the first one while there is none."""
    chosen = patient is not None and patient.provenance.prior == prior
    return patient.template if chosen and patient is not None else 0


def _priorOf(reconstruction: Reconstruction) -> str:
    return reconstruction.provenance.prior


def _beside(surface: Surface, patient: Reconstruction) -> Pose:
    """Where a template in its canonical frame stands beside an organ, as large as that."""
    organ, mirrored = patient.surface, patient.pose.mirrored
    scale = (organ.volume() / max(surface.volume(), 1e-12)) ** (1.0 / 3.0)
    points = Pose(np.zeros(3), scale, mirrored=mirrored).apply(surface.points)
    low, high = organ.points.min(axis=0), organ.points.max(axis=0)
    right = high[0] + GAP * (high[0] - low[0]) - points[:, 0].min()
    center = 0.5 * (low + high)
    return Pose(np.array([right, center[1], center[2]]), scale, mirrored=mirrored)


def _noPlace(labels: Sequence[str], places: Places, found: Places) -> ShapePriorError | None:
    """What to tell of landmarks that cannot be brought to the patient."""
    off = [label for label, good in zip(labels, places.found, strict=True) if not good]
    if off:
        return ShapePriorError(
            f"{_listed(off)} not on the template.",
            "Drag it onto the template, or delete it.",
            "off-template",
        )
    pairs = zip(labels, found.found, strict=True)
    lost = [label for label, good in pairs if not good]
    if lost:
        return ShapePriorError(
            f"{_listed(lost)} without a place on this organ: nothing of it corresponds to there.",
            "Move it on the template, or add outlines there.",
            "no-place",
        )
    return None


def _listed(labels: Sequence[str]) -> str:
    named = ", ".join(f"'{label}'" for label in labels)
    return f"Landmark {named} is" if len(labels) == 1 else f"Landmarks {named} are"
