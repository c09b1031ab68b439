"""The nodes of one structure: its parameter node, what it refers to, and its state for undo."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_server.observations import Observations, resample_loop

from .annotations import (
    PLANE_ATTRIBUTE,
    SPACING_ATTRIBUTE,
    Array,
    bindToSlice,
    definedPoints,
    localPoints,
    observationsFrom,
    placed,
    sliceSpacing,
)
from .markups import addedMarkups, dress, setLocalPoints
from .palette import INSIDE_COLOR, LANDMARK_COLOR, OUTSIDE_COLOR, PAIRS, Color, Pair
from .parameters import Parameters, readParameters, writeParameters

Node = Any

MODULE = "ShapePriorSlicer"
SAVED_PARAMETER = "saved"  # how often the surface was kept as a segment
KIND_ATTRIBUTE = "ShapePriorSlicer.Kind"  # of the parameter node: "structure"
FOLDER_ATTRIBUTE = "ShapePriorSlicer.Folder"  # of the folder made for a structure
KEY_ATTRIBUTE = "ShapePriorSlicer.Key"  # the same for an annotation that undo brings back
VIEW_ATTRIBUTE = "ShapePriorSlicer.View"  # the slice view an outline was drawn in
MADE_ATTRIBUTE = "ShapePriorSlicer.Made"  # of an annotation that was made here
PAINTED_ATTRIBUTE = "ShapePriorSlicer.Painted"  # of one that a segment's voxels made: which
TAKEN_ATTRIBUTE = "ShapePriorSlicer.Taken"  # of one that others made: it is let go, not removed
COLORS_ATTRIBUTE = "ShapePriorSlicer.Colors"  # of the parameter node: which pair of the palette

# Annotations, by the role under which the parameter node refers to them.
OUTLINE, BOUNDARY, INSIDE, OUTSIDE = "outline", "boundary", "inside", "outside"
TEMPLATE_LANDMARKS = "templateLandmarks"
CURVE_CLASS = "vtkMRMLMarkupsClosedCurveNode"
POINTS_CLASS = "vtkMRMLMarkupsFiducialNode"
CLASSES = {
    OUTLINE: CURVE_CLASS,
    BOUNDARY: POINTS_CLASS,
    INSIDE: POINTS_CLASS,
    OUTSIDE: POINTS_CLASS,
    TEMPLATE_LANDMARKS: POINTS_CLASS,
}
# Other nodes it refers to.
VOLUME, MODEL, TEMPLATE, LANDMARKS = "volume", "model", "template", "landmarks"
SEGMENTATION = "segmentation"
MASK, APPLIED = "mask", "applied"  # a segment's voxels: to be mended, and as they were filled

LOOP_POINTS = 24  # control points of an outline made from a dense loop
CONTOUR_POINTS = 48  # of one of a structure set: nobody has to move them
LANDMARK_LABELS = "%d"  # the node's name before it, on organ and template, would cover both


@dataclass(frozen=True)
class Annotation:
    """One markups node as undo remembers it.

    Attributes:
        key: the same for a node that undo brings back.
        role: "outline", "boundary" and so on.
        name: of the node.
        points: placed ones in the node's own frame, mm.
        plane, spacing, view: where an outline was drawn, as in the node's attributes.
        labels: of the points of a list.
        transform: key of the parent transform.
        painted: which slice of a segment it comes from, if from one.
    """

    key: str
    role: str
    name: str
    points: tuple[tuple[float, ...], ...]
    plane: str = ""
    spacing: str = ""
    view: str = ""
    labels: tuple[str, ...] = ()
    transform: str = ""
    painted: str = ""


@dataclass(frozen=True)
class State:
    """All that undo brings back."""

    parameters: Parameters
    annotations: tuple[Annotation, ...] = ()
    saved: int = 0


def readState(values: dict[str, Any]) -> State:
    """A state from plain values by the names of its fields, as JSON gives them back.

    Raises:
        KeyError, TypeError, ValueError, ShapePriorError: they are damaged.
    """
    annotations = tuple(_readAnnotation(a) for a in values["annotations"])
    return State(Parameters(**values["parameters"]), annotations, int(values["saved"]))


def _readAnnotation(values: dict[str, Any]) -> Annotation:
    points = tuple(tuple(float(v) for v in p) for p in values["points"])
    found = Annotation(**{**values, "points": points, "labels": tuple(values["labels"])})
    if found.role not in CLASSES or any(len(p) != 3 for p in points):
        raise ValueError("no annotation of ours")
    return found


class Structure:
    """One structure's nodes in a scene.

    Args:
        scene: MRML scene.
        node: its parameter node.
    """

    def __init__(self, scene: Node, node: Node) -> None:
        self.scene, self.node = scene, node

    @classmethod
    def create(cls, scene: Node, name: str, parameters: Parameters) -> Structure:
        """A new structure's parameter node."""
        node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.SetName(name)
        node.SetModuleName(MODULE)
        node.SetAttribute(KIND_ATTRIBUTE, "structure")
        node.SetAttribute(COLORS_ATTRIBUTE, str(_freePair(cls.all(scene))))
        node.SetHideFromEditors(True)
        writeParameters(node, parameters)
        added = scene.AddNode(node)
        node.UnRegister(None)  # CreateNodeByClass gave us one reference, the scene has its own
        return cls(scene, added)

    @classmethod
    def all(cls, scene: Node) -> list[Structure]:
        """The structures of a scene, in the order they were made."""
        count = scene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode")
        nodes = [scene.GetNthNodeByClass(i, "vtkMRMLScriptedModuleNode") for i in range(count)]
        return [cls(scene, n) for n in nodes if n.GetAttribute(KIND_ATTRIBUTE) == "structure"]

    @property
    def name(self) -> str:
        """As the user calls it."""
        return str(self.node.GetName())

    @property
    def parameters(self) -> Parameters:
        """The user's choices."""
        return readParameters(self.node)

    @property
    def pair(self) -> int:
        """Which colors of the palette it has; the first ones in scenes of older versions."""
        text = self.node.GetAttribute(COLORS_ATTRIBUTE) or "0"
        return int(text) % len(PAIRS) if text.isdigit() else 0

    @property
    def colors(self) -> Pair:
        """Of its outlines and its surface."""
        return PAIRS[self.pair]

    @property
    def saved(self) -> int:
        """How often the surface was kept as a segment."""
        text = self.node.GetParameter(SAVED_PARAMETER) or "0"
        return int(text) if text.isdigit() else 0

    def exists(self) -> bool:
        """Whether its parameter node is still in the scene."""
        return bool(self.scene.IsNodePresent(self.node))

    def rename(self, name: str) -> None:
        """Call it otherwise, and its model and folder."""
        folder = self._folderOfOwned()
        if folder:
            _hierarchy(self.scene).SetItemName(folder, name)
        self.node.SetName(name)
        model = self.refers(MODEL)
        if model is not None:
            model.SetName(name)

    def delete(self) -> None:
        """Remove all that was made for it from the scene; segmentations and what was taken stay."""
        folder = self._folderOfOwned()
        for role, node in list(self.annotations()):
            if node.GetAttribute(TAKEN_ATTRIBUTE):
                self.release(role, node)
        for node in self.owned():
            self.remove(node)
        if folder:
            # With the children, this would remove what the user put there too.
            _hierarchy(self.scene).RemoveItem(folder, False, False)
        self.scene.RemoveNode(self.node)

    # --- references ---------------------------------------------------------------------------

    def refers(self, role: str) -> Node | None:
        """The one node of a role, if it is there."""
        return self.node.GetNodeReference(role)

    def refer(self, role: str, node: Node | None) -> None:
        """Remember the one node of a role."""
        self.node.SetNodeReferenceID(role, node.GetID() if node is not None else None)

    def nodes(self, role: str) -> list[Node]:
        """The annotations of a role, in the order they were made."""
        count = self.node.GetNumberOfNodeReferences(role)
        found = [self.node.GetNthNodeReference(role, i) for i in range(count)]
        return [n for n in found if n is not None]

    def annotations(self) -> Iterator[tuple[str, Node]]:
        """Role and node of every annotation."""
        for role in CLASSES:
            yield from ((role, node) for node in self.nodes(role))

    # --- annotations --------------------------------------------------------------------------

    def add(self, role: str, node: Node) -> None:
        """Make a markups node of the scene an annotation of this structure."""
        if not node.GetAttribute(MADE_ATTRIBUTE):
            node.SetAttribute(TAKEN_ATTRIBUTE, "1")
        taken = {_keyOf(other) for _, other in self.annotations()}
        if node.GetAttribute(KEY_ATTRIBUTE) in taken:
            node.SetAttribute(KEY_ATTRIBUTE, None)  # a copy of one of ours
        _keyOf(node)
        self._dress(role, node)
        self.node.AddNodeReferenceID(role, node.GetID())
        self.file(node)

    def madeOutline(self, loop: Array, name: str, sliceNode: Node | None = None) -> Node:
        """A curve node through a dense loop.

        Args:
            loop: (N, 3) RAS mm.
            name: of the node.
            sliceNode: of the view in whose plane it was drawn; None of one drawn elsewhere.
        """
        count = CONTOUR_POINTS if sliceNode is None else LOOP_POINTS
        spacing = float(np.linalg.norm(loop - np.roll(loop, 1, axis=0), axis=1).sum()) / count
        curve = self.made(OUTLINE, name)
        setLocalPoints(curve, resample_loop(loop, spacing))
        if sliceNode is None:
            return curve
        bindToSlice(curve, sliceNode, sliceSpacing(self.refers(VOLUME), sliceNode))
        curve.SetAttribute(VIEW_ATTRIBUTE, sliceNode.GetName())
        return curve

    def file(self, node: Node) -> None:
        """Put a node into this structure's folder of the subject hierarchy."""
        hierarchy = _hierarchy(self.scene)
        folder = self._folderOfOwned()
        if not folder:
            folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), self.name)
            hierarchy.SetItemAttribute(folder, FOLDER_ATTRIBUTE, "structure")
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.SetItemParent(item, folder)
        else:  # without Slicer's application nothing makes items by itself
            hierarchy.CreateItem(folder, node)

    def remove(self, node: Node) -> None:
        """Take a node of this structure out of the scene, with what shows and stores it."""
        parts = [node.GetNthDisplayNode(i) for i in range(node.GetNumberOfDisplayNodes())]
        parts += [node.GetNthStorageNode(i) for i in range(node.GetNumberOfStorageNodes())]
        self.scene.RemoveNode(node)
        for part in parts:
            if part is not None and self.scene.IsNodePresent(part):
                self.scene.RemoveNode(part)
        hierarchy = _hierarchy(self.scene)
        item = hierarchy.GetItemByDataNode(node)
        if item:  # without Slicer's application nothing removes items by itself
            hierarchy.RemoveItem(item, False, False)

    def release(self, role: str, node: Node) -> None:
        """Leave an annotation that others made to them again."""
        index = self.nodes(role).index(node)
        self.node.RemoveNthNodeReferenceID(role, index)
        display, hierarchy = node.GetDisplayNode(), _hierarchy(self.scene)
        if display is not None:
            display.RemoveAllViewNodeIDs()
            display.SetVisibility2D(True)
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.SetItemParent(item, hierarchy.GetSceneItemID())

    def owned(self) -> list[Node]:
        """Nodes made for this structure: annotations, models, landmarks."""
        found = [node for _, node in self.annotations()]
        others = map(self.refers, (MODEL, TEMPLATE, LANDMARKS, MASK, APPLIED))
        return found + [n for n in others if n is not None]

    def _folderOfOwned(self) -> int:
        """The folder its nodes are in, or 0; numbers of items do not outlive a saved scene."""
        hierarchy = _hierarchy(self.scene)
        top = hierarchy.GetSceneItemID()
        for node in self.owned():
            item = hierarchy.GetItemByDataNode(node)
            parent = hierarchy.GetItemParent(item) if item else 0
            # The user may have moved them into a folder or study of their own.
            if parent and parent != top and hierarchy.GetItemAttribute(parent, FOLDER_ATTRIBUTE):
                return int(parent)
        return 0

    def made(self, role: str, name: str) -> Node:
        """A new, empty annotation node in the scene, not yet an annotation of the structure."""
        node = addedMarkups(self.scene, CLASSES[role], freeName(self.scene, name))
        node.SetAttribute(MADE_ATTRIBUTE, "1")
        self._dress(role, node)
        return node

    def _dress(self, role: str, node: Node) -> None:
        """Show a markups node as an annotation of this structure, also one that others made."""
        isLandmark = role == TEMPLATE_LANDMARKS
        dress(node, self._colorOf(role), labels=isLandmark, large=role == OUTLINE)
        if isLandmark and not node.GetNumberOfControlPoints():
            node.SetControlPointLabelFormat(LANDMARK_LABELS)

    def _colorOf(self, role: str) -> Color:
        others = {
            INSIDE: INSIDE_COLOR,
            OUTSIDE: OUTSIDE_COLOR,
            TEMPLATE_LANDMARKS: LANDMARK_COLOR,
        }
        return others.get(role, self.colors.outline)

    # --- state --------------------------------------------------------------------------------

    def state(self) -> State:
        """What the scene holds now."""
        found = tuple(_annotationOf(role, node) for role, node in self.annotations())
        return State(self.parameters, found, self.saved)

    def inputs(self) -> tuple[Any, ...]:
        """What a surface depends on: prior, side, strength, and where annotations lie in the world.

        Without landmarks and names; to a tenth of a micrometer, as files keep it.
        """
        chosen = self.parameters
        given = tuple(
            (role, _keyOf(node), _curveType(node), _rounded(definedPoints(node)))
            for role, node in self.annotations()
            if role != TEMPLATE_LANDMARKS
        )
        mask = self.refers(MASK)
        masked = () if mask is None else (mask.GetAttribute(PAINTED_ATTRIBUTE) or "",)
        return (chosen.prior, chosen.side, chosen.strength, given, *masked)

    def observations(self) -> tuple[Observations, tuple[str, ...]]:
        """What a fit is given, and the keys of the nodes in the order of its residuals.

        Raises:
            ShapePriorError: see ``observationsFrom``.
        """
        curves = [c for c in self.nodes(OUTLINE) if len(definedPoints(c))]
        boundary = [b for b in self.nodes(BOUNDARY) if len(definedPoints(b))]
        inside, outside, mask = self.nodes(INSIDE), self.nodes(OUTSIDE), self.refers(MASK)
        found = observationsFrom(curves, boundary, inside, outside, mask)
        return found, tuple(n.GetAttribute(KEY_ATTRIBUTE) for n in [*curves, *boundary])

    def apply(self, state: State) -> None:
        """Bring the scene to a state: nodes made, removed and moved as needed."""
        wanted = {a.key: a for a in state.annotations}
        present = {_keyOf(n): n for _, n in self.annotations()}
        for role, node in list(self.annotations()):
            if _keyOf(node) in wanted:
                continue
            if node.GetAttribute(TAKEN_ATTRIBUTE):
                self.release(role, node)
            else:
                self.remove(node)
        for key, annotation in wanted.items():
            node = present.get(key)
            if node is None:
                node = self._takenAgain(annotation) or self._restored(annotation)
            _setAnnotation(node, annotation)
        self._sort([a.key for a in state.annotations])
        if readParameters(self.node) != state.parameters:
            writeParameters(self.node, state.parameters)
        if self.saved != state.saved:
            self.node.SetParameter(SAVED_PARAMETER, str(state.saved))

    def _sort(self, keys: list[str]) -> None:
        """Give the annotations of each role this order."""
        for role in CLASSES:
            nodes = self.nodes(role)
            wanted = sorted(nodes, key=lambda node: keys.index(_keyOf(node)))
            if wanted != nodes:
                for index, node in enumerate(wanted):
                    self.node.SetNthNodeReferenceID(role, index, node.GetID())

    def _takenAgain(self, annotation: Annotation) -> Node | None:
        """A markups node that was let go, if it is still there and nobody else took it."""
        known = [n for other in Structure.all(self.scene) for _, n in other.annotations()]
        count = self.scene.GetNumberOfNodesByClass(CLASSES[annotation.role])
        nodes = (self.scene.GetNthNodeByClass(i, CLASSES[annotation.role]) for i in range(count))
        for node in nodes:
            isOurs = node.GetAttribute(TAKEN_ATTRIBUTE) and _keyOf(node) == annotation.key
            if isOurs and node not in known:
                self.add(annotation.role, node)
                return node
        return None

    def _restored(self, annotation: Annotation) -> Node:
        node = self.made(annotation.role, annotation.name)
        node.SetAttribute(KEY_ATTRIBUTE, annotation.key)
        self.add(annotation.role, node)
        return node


def freeName(scene: Node, name: str) -> str:
    """A name that no node has: with a number from 2 on, where one has it.

    ``GenerateUniqueName`` counts on from every name it ever gave: the first outline that is kept
    would be the third.
    """
    numbered = (f"{name} {i}" for i in range(2, 10_000))
    return next(n for n in (name, *numbered) if scene.GetFirstNodeByName(n) is None)


def _freePair(structures: list[Structure]) -> int:
    """The first colors that the fewest structures have."""
    taken = Counter(structure.pair for structure in structures)
    return min(range(len(PAIRS)), key=lambda pair: taken[pair])


def _hierarchy(scene: Node) -> Node:
    import slicer

    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)


def _keyOf(node: Node) -> str:
    """A name for a node that no other has, whatever happens to its ID."""
    if not node.GetAttribute(KEY_ATTRIBUTE):
        node.SetAttribute(KEY_ATTRIBUTE, uuid.uuid4().hex[:12])
    return str(node.GetAttribute(KEY_ATTRIBUTE))


def _curveType(node: Node) -> int:
    return int(node.GetCurveType()) if node.IsA(CURVE_CLASS) else 0


def _rounded(points: Array) -> bytes:
    return bytes((np.round(points, 4) + 0.0).tobytes())  # 0.0 makes one zero of two


def _annotationOf(role: str, node: Node) -> Annotation:
    parent = node.GetParentTransformNode()
    labels = () if role == OUTLINE else tuple(map(node.GetNthControlPointLabel, placed(node)))
    return Annotation(
        _keyOf(node),
        role,
        node.GetName() or "",
        tuple(tuple(p) for p in localPoints(node).tolist()),
        node.GetAttribute(PLANE_ATTRIBUTE) or "",
        node.GetAttribute(SPACING_ATTRIBUTE) or "",
        node.GetAttribute(VIEW_ATTRIBUTE) or "",
        labels,
        "" if parent is None else _keyOf(parent),
        node.GetAttribute(PAINTED_ATTRIBUTE) or "",
    )


def _setAnnotation(node: Node, annotation: Annotation) -> None:
    for name, value in (
        (PLANE_ATTRIBUTE, annotation.plane),
        (SPACING_ATTRIBUTE, annotation.spacing),
        (VIEW_ATTRIBUTE, annotation.view),
        (PAINTED_ATTRIBUTE, annotation.painted),
    ):
        if (node.GetAttribute(name) or "") != value:
            node.SetAttribute(name, value or None)
    if node.GetName() != annotation.name:
        node.SetName(annotation.name)
    points = np.array(annotation.points, dtype=np.float64).reshape(-1, 3)
    if not np.array_equal(localPoints(node), points):
        setLocalPoints(node, points)
    for index, label in enumerate(annotation.labels):
        if node.GetNthControlPointLabel(index) != label:
            node.SetNthControlPointLabel(index, label)
    parent = node.GetParentTransformNode()
    if annotation.transform != ("" if parent is None else _keyOf(parent)):
        node.SetAndObserveTransformNodeID(_transformId(node.GetScene(), annotation.transform))


def _transformId(scene: Node, key: str) -> str | None:
    """ID of the transform with a key; None for none, or one that was deleted."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLTransformNode")
    nodes = (scene.GetNthNodeByClass(i, "vtkMRMLTransformNode") for i in range(count))
    return next((n.GetID() for n in nodes if key and n.GetAttribute(KEY_ATTRIBUTE) == key), None)
