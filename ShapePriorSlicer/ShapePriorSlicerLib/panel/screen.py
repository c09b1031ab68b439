"""What is on Slicer's screen: slice views, 3D views, and the volume they show."""

from __future__ import annotations

from typing import Any

import slicer

from model_server.errors import ShapePriorError

from .translation import tr as _

Node = Any

FOUR_UP = ("Red", "Green", "Yellow")  # slice views of Slicer's layout "Four-Up"


def sliceNodes() -> list[Node]:
    """Slice nodes of the views on screen, of all views without a main window."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    if slicer.app.layoutManager() is None:
        return nodes
    return [node for node in nodes if node.IsMappedInLayout()]


def sliceNode(view: str) -> Node:
    """The slice node of a view by its name.

    Raises:
        ShapePriorError: it is not on screen, where nobody could draw in it.
    """
    for node in sliceNodes():
        if node.GetName() == view:
            return node
    raise ShapePriorError(
        _("The {view} view is not on screen.").format(view=view),
        _("Choose a layout that shows it."),
    )


def shownSliceNode(view: str) -> Node:
    """The slice node of a view; a layout that shows none of that name is changed for one.

    Raises:
        ShapePriorError: see ``sliceNode``.
    """
    if view in FOUR_UP and view not in [node.GetName() for node in sliceNodes()]:
        layout = slicer.app.layoutManager()
        layout.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    return sliceNode(view)


def sliceNodeUnderMouse() -> Node | None:
    """The slice node of the view under the mouse, if any."""
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    return None if crosshair is None else crosshair.GetCursorPositionXYZ([0.0, 0.0, 0.0])


def shownVolume() -> Node | None:
    """The volume that the slice views show in the background, or the only one."""
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        volume = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
        if volume is not None:
            return volume
    return None


def showVolume(volume: Node) -> None:
    """Show a volume in the slice views, whole."""
    slicer.util.setSliceViewerLayers(background=volume, fit=True)


def threeDViews() -> list[tuple[Node, float]]:
    """View node of each 3D view on screen, and how many times as wide as high it is."""
    layout = slicer.app.layoutManager()
    count = 0 if layout is None else layout.threeDViewCount
    return [_viewAndAspect(layout.threeDWidget(index)) for index in range(count)]


def _viewAndAspect(widget: Any) -> tuple[Node, float]:
    width, height = widget.threeDView().renderWindow().GetSize()
    return widget.mrmlViewNode(), max(width, 1) / max(height, 1)
