"""What the page shows: the library's state as plain values under the names the page uses."""

from __future__ import annotations

from typing import Any

from ShapePriorSlicerLib.panel.guide import Line, drawingText
from ShapePriorSlicerLib.panel.texts import cells, imageText, stepTexts
from ShapePriorSlicerLib.scene.parameters import Parameters, titleOf
from ShapePriorSlicerLib.server.priors import listPriors
from ShapePriorSlicerLib.session.drawing import Drawing
from ShapePriorSlicerLib.session.session import Session
from ShapePriorSlicerLib.session.status import Row, Status
from ShapePriorSlicerLib.session.trajectory import Trajectory
from ShapePriorSlicerLib.session.workspace import Workspace

Node = Any
Values = dict[str, Any]

# Choices that the page sends back as they are, by the name they have in Parameters.
CHOICES = ("prior", "side", "strength", "autoUpdate", "useImage", "coloring", "opacity")
COLORINGS = [
    {"value": "plain", "title": "Plain"},
    {"value": "correspondence", "title": "Correspondence"},
    {"value": "parts", "title": "Parts"},
    {"value": "uncertainty", "title": "Uncertainty (mm)"},
    {"value": "distance", "title": "Distance to annotations (mm)"},
    {"value": "change", "title": "Change by the repair (mm)"},
]
NO_STEP = -1  # value of the choice to show none
UNLIKENESS = (
    "As unlike the nearest training shape as a typical pair of training shapes, times this; well "
    "above what your cases usually have means an unusual organ, or wrong outlines."
)
SIDES = [
    {"value": "auto", "title": "Auto"},
    {"value": "left", "title": "Left"},
    {"value": "right", "title": "Right"},
]


def nothing() -> Values:
    """The page before any volume is open."""
    return {
        **{name: getattr(Parameters(), name) for name in CHOICES},
        **_statusValues(Status()),
        **lineValues(Line("")),
        "rows": [],
        **_searchValues(None),
        "canUseImage": False,
        "needsImage": False,
        "imageText": "",
        "figures": [],
        "colorings": COLORINGS,
        "ready": False,
        "hasSurface": False,
        "hasUncertainty": False,
        "undoText": "",
        "redoText": "",
        "volumeName": "",
        "structures": [],
        "structure": "",
        "drawnView": "",
        "drawnRole": "",
        "howTo": "",
    }


def sessionValues(session: Session) -> Values:
    """All that the page shows of one structure."""
    chosen, found = session.parameters, session.reconstruction
    return {
        **{name: getattr(chosen, name) for name in CHOICES},
        **_statusValues(session.status),
        "rows": [_rowValues(row) for row in [*session.rows(), *session.imageRow()]],
        **_searchValues(session.trajectory),
        **_imageValues(session),
        "figures": _figureValues(session),
        "colorings": [c for c in COLORINGS if c["value"] in session.colorings],
        "ready": True,
        "hasSurface": found is not None,
        "hasUncertainty": found is not None and found.uncertainty_mm is not None,
        "undoText": session.history.undoText,
        "redoText": session.history.redoText,
        "volumeName": session.volume.GetName() if session.volume is not None else "",
    }


def _searchValues(trajectory: Trajectory | None) -> Values:
    """The steps of the search that found the surface, and which one is shown."""
    texts = [] if trajectory is None else stepTexts(trajectory.steps)
    index = None if trajectory is None else trajectory.index
    titles = ["Steps of the search", *texts] if texts else []
    return {
        "steps": [{"value": i - 1, "title": title} for i, title in enumerate(titles)],
        "step": NO_STEP if index is None else index,
        "stepShown": trajectory is not None and trajectory.isShown,
        "nudging": trajectory is not None and trajectory.isNudging,
    }


def _imageValues(session: Session) -> Values:
    """Whether fits can look at the image, and what that means or why not."""
    problem = session.image.problem()
    return {
        "canUseImage": problem is None,
        "needsImage": session.image.isNeeded,
        "imageText": imageText(session.image.prior, problem),
    }


def structureValues(workspace: Workspace) -> Values:
    """The structures of the scene, and which one is drawn."""
    current = workspace.current
    return {
        "structures": [{"value": keyOf(s), "title": s.name} for s in workspace.sessions],
        "structure": keyOf(current) if current is not None else "",
    }


def keyOf(session: Session) -> str:
    """How the page calls a structure."""
    return str(session.structure.node.GetID())


def drawingValues(drawing: Drawing) -> Values:
    """What is being placed by mouse: an outline in a view, or points of a role."""
    role = drawing.role if drawing.isActive else ""
    return {"drawnView": drawing.view, "drawnRole": role, "howTo": drawingText(drawing)}


def priorValues() -> Values:
    """The priors for the choice, grouped by organ, and what has to be known of each."""
    items: list[Values] = []
    about: dict[str, Values] = {}
    organ = None
    for prior in listPriors():
        if prior.organ != organ:
            organ = prior.organ
            items.append({"type": "subheader", "title": titleOf(organ), "value": organ})
        items.append({"value": prior.name, "title": prior.label})
        text = f"{prior.description} {prior.limits}".strip()
        about[prior.name] = {"text": text, "paired": prior.paired}
    return {"priors": items, "aboutPriors": about}


def _rowValues(row: Row) -> Values:
    return {
        "id": "" if row.node is None else row.node.GetID(),
        "role": row.role,
        "name": cells(row)[0],
        "view": row.view,
        "points": cells(row)[2],
        "residual": None if row.residualMm is None else f"{row.residualMm:.2f}",
        "visible": row.visible,
        "color": "transparent" if row.node is None else _colorOf(row.node),
    }


def _colorOf(markups: Node) -> str:
    """As the views show it, for style sheets."""
    display = markups.GetDisplayNode()
    color = (0.0, 0.0, 0.0) if display is None else display.GetSelectedColor()
    return "#" + "".join(f"{round(255 * v):02x}" for v in color)


def _statusValues(status: Status) -> Values:
    return {"phase": status.phase, "busy": status.busy}


def lineValues(line: Line) -> Values:
    """What is going on, and what to do next."""
    return {"stateText": line.text, "stateIsWrong": line.wrong}


def _figureValues(session: Session) -> list[Values]:
    figures = session.figures
    if figures is None:
        return []
    found = [
        ("Volume", f"{figures.volumeMl:.2f}", "ml", ""),
        ("Area", f"{figures.areaCm2:.1f}", "cm²", ""),
    ]
    if figures.uncertaintyMm is not None:
        found.append(("Uncertainty", f"{figures.uncertaintyMm:.2f}", "mm", ""))
    if figures.unlikeness is not None:
        found.append(("Unlikeness", f"{figures.unlikeness:.1f}", "", UNLIKENESS))
    return [dict(zip(("name", "value", "unit", "about"), f, strict=True)) for f in found]
