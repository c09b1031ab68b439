"""The preview of what segments will be, filled in slice views beside the painted ones."""

from __future__ import annotations

from typing import Any

from .segmentations import addSegment, fillSegment, newSegmentation

Node = Any

PREVIEW_ATTRIBUTE = "ShapePriorSlicer.PreviewOf"  # ID of the segmentation
OPACITY = 0.6  # of the preview's fill, of 1 together with the inputs'; as Slicer's own effects


def previewOf(segmentation: Node) -> Node | None:
    """The preview of a segmentation, if there is one."""
    scene = segmentation.GetScene()
    found = [] if scene is None else previewsIn(scene, segmentation.GetID())
    return found[0] if found else None


def previewsIn(scene: Node, segmentationId: str | None) -> list[Node]:
    """The previews in a scene of a segmentation by its ID, which may be gone."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    nodes = (scene.GetNthNodeByClass(i, "vtkMRMLSegmentationNode") for i in range(count))
    return [n for n in nodes if n.GetAttribute(PREVIEW_ATTRIBUTE) == (segmentationId or "")]


def showPreview(segmentation: Node, segmentId: str, filling: Any) -> Node:
    """Show the voxels that a segment would have.

    Args:
        segmentation: with the segment; it stays as it is.
        segmentId: of the segment, whose color and name it takes.
        filling: vtkOrientedImageData in the segmentation's frame.
    """
    segment = segmentation.GetSegmentation().GetSegment(segmentId)
    node = previewOf(segmentation)
    if node is None:
        node = newSegmentation(segmentation.GetScene(), None, f"{segmentation.GetName()} preview")
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        node.SetAttribute(PREVIEW_ATTRIBUTE, segmentation.GetID())
        node.GetDisplayNode().SetSaveWithScene(False)
        node.GetDisplayNode().SetVisibility2DOutline(False)
        node.GetDisplayNode().SetVisibility3D(False)  # the surface itself is there
        setOpacity(segmentation, OPACITY)
    node.SetAndObserveTransformNodeID(segmentation.GetTransformNodeID())
    content = node.GetSegmentation()
    if content.GetSegment(segmentId) is None:
        addSegment(node, segment.GetName(), segmentId)
    content.GetSegment(segmentId).SetColor(*segment.GetColor())
    fillSegment(node, segmentId, filling, None)
    return node


def opacityOf(segmentation: Node) -> float:
    """How much of the results is seen, 0 to 1; the rest is the inputs."""
    node = previewOf(segmentation)
    return OPACITY if node is None else float(node.GetDisplayNode().GetOpacity())


def setOpacity(segmentation: Node, opacity: float) -> None:
    """Show more of the results, 0 to 1, and so less of the inputs."""
    node = previewOf(segmentation)
    if node is None:
        return
    node.GetDisplayNode().SetOpacity(opacity)
    if segmentation.GetDisplayNode() is not None:
        segmentation.GetDisplayNode().SetOpacity(1.0 - opacity)


def hidePreview(segmentation: Node, segmentId: str | None = None) -> None:
    """Take a segment out of the preview, or all; with the last one it is gone."""
    node = previewOf(segmentation)
    if node is None:
        return
    if segmentId is not None:
        node.GetSegmentation().RemoveSegment(segmentId)
    if segmentId is None or not node.GetSegmentation().GetNumberOfSegments():
        removePreview(node, segmentation)


def removePreview(node: Node, segmentation: Node | None) -> None:
    """Remove a preview, also of a segmentation that is gone."""
    scene = node.GetScene()
    display = node.GetDisplayNode()
    scene.RemoveNode(node)
    if display is not None and scene.IsNodePresent(display):
        scene.RemoveNode(display)
    if segmentation is not None and segmentation.GetDisplayNode() is not None:
        segmentation.GetDisplayNode().SetOpacity(1.0)
