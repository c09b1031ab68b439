"""What the colors of a surface show: its point arrays, the color tables, the legends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from model_server.reconstruction import Reconstruction

Array = NDArray[np.float64]
Node = Any

# Point arrays; files have the same names.
TEMPLATE_COORDINATES = "TemplateCoordinates"
TEMPLATE_ID = "TemplateId"
PARTS = "Part"
UNCERTAINTY = "UncertaintyMm"
CORRESPONDENCE = "CorrespondenceColor"
DISTANCE = "DistanceToAnnotationsMm"
CHANGE = "ChangeMm"


@dataclass(frozen=True)
class Shade:
    """A coloring: the point array, the color table ("" for colors as they are), the title, and
    whether what it measures has a sign, so that zero is in the middle of the colors.

    Slice views cannot show colors as they are: Slicer's mapper there asks for a range of values,
    and complains of "Bad table range: [0, -1]" many times a second.
    """

    array: str
    table: str = ""
    title: str = ""
    isSigned: bool = False

    @property
    def hasLegend(self) -> bool:
        """Whether there is something to read off: a measure, or names of parts."""
        return bool(self.title)


SHADES = {
    "correspondence": Shade(CORRESPONDENCE),
    "parts": Shade(PARTS, title="Parts"),
    "uncertainty": Shade(UNCERTAINTY, "vtkMRMLColorTableNodeFileViridis.txt", "Uncertainty (mm)"),
    "distance": Shade(
        DISTANCE, "vtkMRMLColorTableNodeFileMagma.txt", "Distance to annotations (mm)"
    ),
    "change": Shade(
        CHANGE,
        "vtkMRMLColorTableNodeFileDivergingBlueRed.txt",
        "Moved outward (+), inward (-) (mm)",
        isSigned=True,
    ),
}
# Told apart also by those who see red and green alike; more parts begin anew.
PART_COLORS = (
    (0.90, 0.62, 0.10),
    (0.33, 0.65, 0.90),
    (0.10, 0.62, 0.45),
    (0.80, 0.47, 0.65),
    (0.95, 0.90, 0.35),
    (0.15, 0.40, 0.72),
    (0.84, 0.37, 0.10),
)
NO_PART = (0.6, 0.6, 0.6)
TABLE_TAG = "ShapePriorParts"  # begins the singleton tags of tables of parts
LEGEND_ATTRIBUTE = "ShapePriorSlicer.Legend"  # title of ours among the scene's legends
LEGEND_LABELS = 5  # of a measure
MOST_COLORS = 256  # of a measure
LEGEND_SIZE = (0.08, 0.4)  # share of the view's width and height; the text follows
LEGEND_LETTER = 0.018  # share of the view's width for each letter of a part's name
MOST_WIDTH = 0.5
LEGEND_TEXT = 14  # points
LEGEND_ENDS = (0.03, 0.92)  # where the lowest and the highest stand; titles are above them
LEGEND_ROOM = 0.85  # share of the view's height that all legends take at most


def coloringsOf(reconstruction: Reconstruction | None, isRepair: bool = False) -> tuple[str, ...]:
    """What a surface can be colored by, in the order of the panel.

    Args:
        reconstruction: the surface; None for all there are.
        isRepair: whether it mends a mask.
    """
    found = ["plain", "correspondence"]
    if reconstruction is None or reconstruction.parts is not None:
        found.append("parts")
    if reconstruction is None or reconstruction.uncertainty_mm is not None:
        found.append("uncertainty")
    return (*found, "distance", *(["change"] if isRepair or reconstruction is None else []))


def partName(number: int, names: Mapping[int, str]) -> str:
    """What a part is called: as the prior calls it, else by its number."""
    return names.get(number) or (f"Part {number}" if number else "No part")


def partColor(number: int) -> tuple[float, float, float]:
    """Red, green, blue of a part, 0 to 1."""
    return PART_COLORS[(number - 1) % len(PART_COLORS)] if number else NO_PART


def correspondenceColors(template: Array) -> NDArray[np.uint8]:
    """(V, 3) red, green, blue of template coordinates (V, 3): the same color, the same place."""
    # Templates lie in the unit sphere: one scale for all, or patient and template would differ.
    share = np.clip(0.5 + 0.5 * template, 0.0, 1.0)
    return np.asarray(np.round(40 + 200 * share), dtype=np.uint8)


def color(model: Node, coloring: str, names: Mapping[int, str], legend: bool = True) -> None:
    """Color a model by one of its point arrays; plain where it has no such array.

    Args:
        model: model node with a display node.
        coloring: a key of ``SHADES``, or "plain".
        names: of parts by their numbers.
        legend: whether measures and parts get a legend.
    """
    display = model.GetDisplayNode()
    shade = _shadeOf(model, coloring)
    if shade is None:
        _hideLegend(display)
        display.SetScalarVisibility(False)
        return
    display.SetActiveScalar(shade.array, vtk.vtkAssignAttribute.POINT_DATA)
    values = vtk_to_numpy(model.GetPolyData().GetPointData().GetArray(shade.array))
    labels: list[str] = []
    if shade.array == PARTS:
        labels = _useParts(display, values, names)
    elif shade.table:
        display.SetScalarRangeFlag(display.UseManualScalarRange)
        display.SetScalarRange(*_range(values, shade.isSigned))
        display.SetAndObserveColorNodeID(shade.table)
    else:
        display.SetScalarRangeFlag(display.UseDirectMapping)
    display.SetScalarVisibility(True)
    if legend and shade.hasLegend:
        _showLegend(display, shade.title, labels)  # it needs the colors to be there
    else:
        _hideLegend(display)


def _range(values: NDArray[Any], isSigned: bool) -> tuple[float, float]:
    """What the ends of the colors stand for; of nearly nothing a little, so that noise is pale."""
    highest = float(np.abs(values).max(initial=0.0))
    return (-max(highest, 1.0), max(highest, 1.0)) if isSigned else (0.0, max(highest, 0.1))


def isInSlices(model: Node, coloring: str) -> bool:
    """Whether slice views can show a model in these colors too."""
    shade = _shadeOf(model, coloring)
    return shade is None or shade.hasLegend


def _shadeOf(model: Node, coloring: str) -> Shade | None:
    """What a model is colored by; None for its plain color, also where it has no such array."""
    shade, mesh = SHADES.get(coloring), model.GetPolyData()
    if shade is None or mesh is None or mesh.GetPointData().GetArray(shade.array) is None:
        return None
    return shade


# --- parts --------------------------------------------------------------------------------------


def _useParts(display: Node, values: NDArray[Any], names: Mapping[int, str]) -> list[str]:
    """One color for each part, from the lowest number to the highest; returns what they are."""
    # Not of what is shown alone: a part should keep its color from surface to surface.
    numbers = {*np.unique(values).tolist(), *names} or {1}
    low, high = int(min(numbers)), int(max(numbers))
    labels = [partName(number, names) for number in range(low, high + 1)]
    table = _tableOfParts(display.GetScene(), low, labels)
    display.SetScalarRangeFlag(display.UseManualScalarRange)
    display.SetScalarRange(low - 0.5, high + 0.5)
    display.SetAndObserveColorNodeID(table.GetID())
    return labels


def _tableOfParts(scene: Node, low: int, labels: Sequence[str]) -> Node:
    """The color table of parts from a number on; all surfaces with the same parts share it.

    It is no part of a saved scene: it is made again under the same ID.
    """
    import slicer

    digest = blake2b(repr((low, labels)).encode(), digest_size=6).hexdigest()
    tag = f"{TABLE_TAG}{digest}"
    found = scene.GetSingletonNode(tag, "vtkMRMLColorTableNode")
    if found is not None:
        return found
    table = slicer.vtkMRMLColorTableNode()
    table.SetName("Parts")
    table.SetSingletonTag(tag)
    table.SetTypeToUser()
    table.SetNumberOfColors(len(labels))
    for index, label in enumerate(labels):
        table.SetColor(index, label, *partColor(low + index), 1.0)
    table.GetLookupTable().SetTableRange(low - 0.5, low + len(labels) - 0.5)
    table.SetHideFromEditors(True)
    table.SaveWithSceneOff()
    return scene.AddNode(table)


# --- legends ------------------------------------------------------------------------------------


def _hasLegends(display: Node) -> bool:
    """Whether the application shows color legends."""
    return bool(display.GetScene().IsNodeClassRegistered("vtkMRMLColorLegendDisplayNode"))


def _hideLegend(display: Node) -> None:
    import slicer

    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(display)
    if legend is not None:
        # By both: who shows the hidden organ again shows all its display nodes.
        legend.SetVisibility(False)
        legend.SetVisibility3D(False)
        _arrangeLegends(display.GetScene())


def _showLegend(display: Node, title: str, labels: Sequence[str]) -> None:
    """A color legend beside the surface: a measure with its unit, or the labels of parts."""
    import slicer

    if not _hasLegends(display):
        return
    logic = slicer.vtkSlicerColorLogic
    legend = logic.GetColorLegendDisplayNode(display)
    legend = legend or logic.AddDefaultColorLegendDisplayNode(display)
    if legend is None:
        return
    was = legend.StartModify()
    legend.SetAttribute(LEGEND_ATTRIBUTE, title)
    legend.SetUseColorNamesForLabels(bool(labels))
    legend.SetLabelFormat("%s" if labels else "%.1f")
    # Of a table with few colors, Slicer takes their number once and for all.
    legend.SetMaxNumberOfColors(len(labels) or MOST_COLORS)
    legend.SetNumberOfLabels(len(labels) or LEGEND_LABELS)
    for text in (legend.GetTitleTextProperty(), legend.GetLabelTextProperty()):
        text.SetFontSize(LEGEND_TEXT)
    # Slicer makes the text so small that the longest label fits beside the bar.
    longest = max(map(len, labels), default=0)
    width = min(LEGEND_SIZE[0] + LEGEND_LETTER * longest, MOST_WIDTH)
    legend.SetSize(width, legend.GetSize()[1])
    legend.SetVisibility2D(False)  # slices are for drawing
    legend.SetVisibility3D(True)
    legend.SetVisibility(True)
    legend.EndModify(was)
    _arrangeLegends(display.GetScene())


def _shownLegends(scene: Node) -> Iterator[Node]:
    count = scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode")
    for index in range(count):
        legend = scene.GetNthNodeByClass(index, "vtkMRMLColorLegendDisplayNode")
        model = legend.GetDisplayableNode()
        isShown = legend.GetVisibility() and legend.GetVisibility3D()
        if legend.GetAttribute(LEGEND_ATTRIBUTE) and isShown and model is not None:
            yield legend


def _arrangeLegends(scene: Node) -> None:
    """One below the other, as long as they fit; each tells whose it is if there are several."""
    legends = list(_shownLegends(scene))
    height = min(LEGEND_SIZE[1], LEGEND_ROOM / max(len(legends), 1))
    for index, legend in enumerate(legends):
        x, _ = legend.GetPosition()
        place = 0.5 if len(legends) == 1 else index / (len(legends) - 1)
        share = LEGEND_ENDS[1] + place * (LEGEND_ENDS[0] - LEGEND_ENDS[1])
        whose = f"{legend.GetDisplayableNode().GetName()}: " if len(legends) > 1 else ""
        was = legend.StartModify()
        legend.SetSize(legend.GetSize()[0], height)
        legend.SetPosition(x, share)
        legend.SetTitleText(f"{whose}{legend.GetAttribute(LEGEND_ATTRIBUTE)}")
        legend.EndModify(was)
