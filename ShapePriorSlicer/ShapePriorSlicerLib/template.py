"""The template beside the patient's organ, and landmarks that go from one to the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from model_server.observations import Observations, PointSet
from model_server.pose import Pose
from model_server.reconstruction import Provenance, Reconstruction, Surface

from .annotations import Array, definedPoints, fromWorld, localPoints
from .live_model import LiveModel, landmarkPositions
from .parameters import Parameters
from .structure import (
    LANDMARKS,
    POINTS_CLASS,
    TEMPLATE,
    TEMPLATE_LANDMARKS,
    Structure,
    addedMarkups,
    setLocalPoints,
)

Node = Any

GAP = 0.4  # between patient and template, in widths of the patient's organ


class TemplateView:
    """The template's model node, and the landmarks placed on it.

    Args:
        structure: whose template it is.
    """

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self._model = LiveModel(structure, TEMPLATE, " template")
        self._known: dict[str, tuple[Surface, Array]] = {}
        self._shown: Reconstruction | None = None

    @property
    def node(self) -> Node | None:
        """The template's model node."""
        return self._model.node

    def has(self, prior: str) -> bool:
        """Whether this prior's template has come, now or with a saved scene."""
        return prior in self._known or self._stands(prior)

    def take(self, prior: str, surface: Surface, coordinates: Array) -> None:
        """Keep a template, canonical frame, and the template coordinates of its vertices."""
        self._known[prior] = (surface, coordinates)

    def restore(self) -> None:
        """Go on with what a saved scene holds."""
        self._shown = self._model.restored()

    def show(self, chosen: Parameters, patient: Reconstruction | None) -> None:
        """Show the template beside the patient's organ, or hide it.

        It stays where it stood first: landmarks lie on it.
        """
        if not chosen.showTemplate:
            self._setVisible(False)
            return
        if not self._stands(chosen.prior):
            known = self._known.get(chosen.prior)
            if patient is None or known is None:
                return
            self._place(chosen, patient, *known)
        self._setVisible(True)

    def moveLandmarks(self, patient: Reconstruction | None) -> None:
        """Put the patient's landmarks where the template's landmarks are on the organ."""
        placed = self._placed()
        node = self._structure.refers(LANDMARKS)
        if self._shown is None or patient is None or not len(placed):
            if node is not None and node.GetNumberOfControlPoints():
                node.RemoveAllControlPoints()
            return
        onTemplate = _nearestCoordinates(self._shown, placed)
        node = node or self._madeLandmarks()
        found = fromWorld(node, landmarkPositions(patient, onTemplate))
        if not np.array_equal(localPoints(node), found):
            node.SetLocked(False)
            setLocalPoints(node, found)
            node.SetLocked(True)
            for index, label in enumerate(self._labels()):
                node.SetNthControlPointLabel(index, label)

    # --- parts --------------------------------------------------------------------------------

    def _stands(self, prior: str) -> bool:
        shown = self._shown
        return shown is not None and self.node is not None and shown.provenance.prior == prior

    def _placed(self) -> Array:
        nodes = self._structure.nodes(TEMPLATE_LANDMARKS)
        return np.concatenate([np.empty((0, 3)), *(definedPoints(n) for n in nodes)])

    def _labels(self) -> list[str]:
        return [
            node.GetNthControlPointLabel(index)
            for node in self._structure.nodes(TEMPLATE_LANDMARKS)
            for index in range(node.GetNumberOfControlPoints())
            if node.GetNthControlPointPositionStatus(index) == node.PositionDefined
        ]

    def _place(
        self, chosen: Parameters, patient: Reconstruction, surface: Surface, coordinates: Array
    ) -> None:
        """Of the organ's size, upright, to the side of the patient's right."""
        points, organ = surface.points, patient.surface
        scale = (organ.volume() / max(surface.volume(), 1e-12)) ** (1.0 / 3.0)
        width = np.ptp(organ.points, axis=0)[0]
        right = organ.points[:, 0].max() + GAP * width - scale * points[:, 0].min()
        center = 0.5 * (organ.points.max(axis=0) + organ.points.min(axis=0))
        moved = points * scale + np.array([right, *center[1:]])
        self._shown = Reconstruction(
            Surface(moved, surface.triangles),
            coordinates,
            Pose(np.zeros(3), scale),
            np.empty(0),
            "template",
            (),
            Provenance(chosen.prior, "", ""),
        )
        nothing = Observations(boundary=(PointSet(moved[:1]),))
        colors = Parameters(coloring="correspondence", opacity=1.0, slicesOn=False)
        self._model.show(self._shown, nothing, colors)

    def _setVisible(self, visible: bool) -> None:
        nodes = [self.node, *self._structure.nodes(TEMPLATE_LANDMARKS)]
        for node in nodes:
            display = None if node is None else node.GetDisplayNode()
            if display is not None and bool(display.GetVisibility()) != visible:
                display.SetVisibility(visible)

    def _madeLandmarks(self) -> Node:
        name = f"{self._structure.name} landmarks"
        node = addedMarkups(self._structure.scene, POINTS_CLASS, name)
        node.CreateDefaultDisplayNodes()
        node.SetLocked(True)  # they follow the fit; the ones on the template are moved by hand
        self._structure.refer(LANDMARKS, node)
        self._structure.file(node)
        return node


def _nearestCoordinates(template: Reconstruction, points: Array) -> Array:
    """(L, 3) template coordinates of points (L, 3) placed on the template's surface, RAS mm."""
    swapped = Reconstruction(
        Surface(template.template_coordinates, template.surface.triangles),
        template.surface.points,
        template.pose,
        template.latents,
        template.stage,
        (),
        template.provenance,
    )
    return landmarkPositions(swapped, points)
