"""A scene as Slicer's application makes it, a session on it, and a server that says what it is
told to. The connection stands in for the worker thread and its socket only: what it proves is what
the session asks and does with answers, not that anybody answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import slicer
import vtk
from ShapePriorSlicerLib.scene.structure import OUTLINE, Structure
from ShapePriorSlicerLib.server.events import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Lost,
    Progressed,
    Sending,
    TemplateCame,
)
from ShapePriorSlicerLib.server.priors import ImageReaderInfo, PriorInfo
from ShapePriorSlicerLib.session.session import Session
from ShapePriorSlicerLib.session.workspace import Workspace

from model_server.geometry.icosphere import icosphere
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.reconstruction import (
    JointSpread,
    Provenance,
    Reconstruction,
    Residual,
    Surface,
    Template,
)

CENTER = np.array([-25.0, 10.0, 30.0])
RADII = np.array([7.0, 20.0, 8.0])
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
SPHERE = icosphere(2)
# A sphere that may be elsewhere: errors of opposite sides go together.
JOINT = JointSpread(np.arange(len(SPHERE.points), dtype=np.int32), SPHERE.points.copy(), 0.25)


class Application:
    """Scene and the logics that Slicer's application would have.

    Attributes:
        scene: MRML scene with singletons, color nodes and slice orientations.
    """

    def __init__(self) -> None:
        self.scene = slicer.vtkMRMLScene()
        self.logic = slicer.vtkSlicerApplicationLogic()
        self.logic.SetMRMLScene(self.scene)
        colors = self.logic.GetColorLogic()
        colors.SetMRMLScene(self.scene)
        colors.AddDefaultColorNodes()
        self.markups = slicer.vtkSlicerMarkupsLogic()
        self.markups.SetMRMLApplicationLogic(self.logic)
        self.markups.SetMRMLScene(self.scene)
        self.logic.SetModuleLogic("Markups", self.markups)
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)

    def close(self) -> None:
        """End the scene."""
        self.scene.Clear(1)

    def view(self, name: str, orientation: str, center: np.ndarray = CENTER):
        """A slice node through a place."""
        node = self.scene.CreateNodeByClass("vtkMRMLSliceNode")
        node.SetName(name)
        node.SetLayoutName(name)
        node.SetSingletonTag(name)
        found = self.scene.AddNode(node)
        node.UnRegister(None)
        found.SetOrientation(orientation)
        found.JumpSliceByOffsetting(*center)
        return found


# --- a server that says what it is told to ------------------------------------------------------


def surfaceOf(observations: Observations, stage: str = "final", shift: float = 0.0):
    """A sphere about the annotations; as large as ``shift`` says, to tell surfaces apart."""
    points = observations.spanning_points(1.0)
    center = points.mean(axis=0) if len(points) else CENTER
    radius = 10.0 + shift
    names = [(o.name, "outline") for o in observations.outlines]
    names += [(p.name, "boundary points") for p in observations.boundary]
    return Reconstruction(
        Surface(center + radius * SPHERE.points, SPHERE.triangles),
        SPHERE.points.copy(),
        Pose(center, radius),
        np.empty(0),
        stage,
        tuple(Residual(n, k, 0.1 * (i + 1), 1.0) for i, (n, k) in enumerate(names)),
        Provenance("hippocampus-dals", "1", "cpu"),
        np.linspace(0.1, 1.0, len(SPHERE.points)),
        joint_spread=JOINT if stage == "final" else None,
    )


@dataclass
class Request:
    """What was asked."""

    number: int
    kind: str
    prior: str = ""
    observations: Observations | None = None
    settings: dict | None = None
    image: object = None
    waits: bool = True
    start: np.ndarray | None = None

    @property
    def isPreview(self) -> bool:
        return bool(self.settings) and self.settings.get("local") is False


class FakeConnection:
    """Remembers requests; events come when a test makes them."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.running: Request | None = None
        self.templates: list[tuple[str, int]] = []
        self.events: list[Event] = []
        self.isClosed = self.isHeld = False
        self.lastObservations: Observations | None = None

    def fit(self, prior, observations, settings=None, image=None, waits=True, start=None) -> int:
        self.lastObservations = observations
        given = (prior, observations, dict(settings), image, waits, start)
        return self._ask(Request(len(self.requests) + 1, "fit", *given))

    def find(self, prior, image, settings=None, start=None) -> int:
        self.lastObservations = Observations()
        given = (prior, Observations(), dict(settings), image, True, start)
        return self._ask(Request(len(self.requests) + 1, "find", *given))

    def hold(self, holds: bool) -> None:
        self.isHeld = holds

    def refine(self) -> int:
        return self._ask(Request(len(self.requests) + 1, "refine", "", self.lastObservations))

    def _ask(self, request: Request) -> int:
        assert not self.isClosed
        if self.running is not None:
            self.events.append(Cancelled(self.running.number, "superseded"))
        self.requests.append(request)
        self.running = request
        return request.number

    def cancel(self) -> None:
        if self.running is not None:
            self.events.append(Cancelled(self.running.number, "cancel"))
            self.running = None

    def askTemplate(self, prior: str, number: int = 0) -> None:
        self.templates.append((prior, number))

    def isBusy(self) -> bool:
        return self.running is not None

    def drain(self, wait: float = 0.0) -> list[Event]:
        found, self.events = self.events, []
        return found

    def start(self) -> None:
        pass

    def close(self, wait: float = 3.0) -> None:
        self.isClosed = True

    # --- what the server does -----------------------------------------------------------------

    def progress(self, stage: str = "global", shift: float = 0.0) -> None:
        assert self.running is not None
        found = surfaceOf(self.running.observations, stage, shift)
        self.events.append(Progressed(self.running.number, found, 0.1))

    def answer(self, shift: float = 0.0, **changes) -> None:
        assert self.running is not None
        request, self.running = self.running, None
        found = replace(surfaceOf(request.observations, "final", shift), **changes)
        self.events.append(Finished(request.number, found, 0.2, ()))

    def fail(self, code: str = "too-far", message: str = "It does not fit.") -> None:
        assert self.running is not None
        request, self.running = self.running, None
        self.events.append(Failed(request.number, code, message, "Look at the outlines."))

    def send(self, share: float) -> None:
        self.events.append(Sending(share))

    def lose(self) -> None:
        self.events.append(Lost("The server was ended by signal 9."))

    def sendTemplate(self, prior: str = "hippocampus-dals", **changes) -> None:
        template = Template(Surface(SPHERE.points, SPHERE.triangles), SPHERE.points)
        self.events.append(TemplateCame(prior, replace(template, **changes)))


READER = ImageReaderInfo("hippocampus-meshnet", "T1-weighted MR", "CC BY-SA 4.0")


def priorsWithReader() -> list[PriorInfo]:
    """Two priors of an organ whose images are read, and one of another organ."""

    def prior(organ, method, image=None, needs=False):
        name, licence = f"{organ}-{method}", "CC BY-SA 4.0"
        return PriorInfo(name, organ, method, licence, "some", False, image=image, needsImage=needs)

    return [
        prior("hippocampus", "dals", READER),
        prior("hippocampus", "meshnet", READER, True),
        prior("spleen", "pca"),
    ]


def priorsThatSearch() -> list[PriorInfo]:
    """With one that finds its shape step by step."""
    name, licence = "hippocampus-dissm", "CC BY-SA 4.0"
    reader = replace(READER, reader=name)
    found = PriorInfo(name, "hippocampus", "dissm", licence, "some", False, image=reader)
    return [*priorsWithReader(), found]


def wayOf(*steps: tuple[str, int]) -> tuple[dict, ...]:
    """A search of so many steps, each farther to the right, larger and more turned."""
    return tuple(
        {
            "stage": stage,
            "step": number,
            "translation_mm": (CENTER + np.array([i, 0.0, 0.0])).tolist(),
            "scale_mm": [9.0 + i, 10.0, 11.0],
            "rotation": np.round(turn(10.0 * i)[:3, :3], 5).tolist(),
            "latent": [],
        }
        for i, (stage, number) in enumerate(steps)
    )


class FakeWorkspace(Workspace):
    """A workspace of fake connections."""

    def _connection(self) -> FakeConnection:
        return FakeConnection()


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- what a user does ---------------------------------------------------------------------------


def ellipse(axis: int, offset: float = 0.0, count: int = 12, center=CENTER) -> np.ndarray:
    """(count, 3) points on the section of an ellipsoid across an axis, RAS mm."""
    first, second = (a for a in range(3) if a != axis)
    angle = np.arange(count) * (2.0 * np.pi / count)
    points = np.zeros((count, 3))
    points[:, axis] = offset
    size = np.sqrt(1.0 - (offset / RADII[axis]) ** 2)
    points[:, first] = size * RADII[first] * np.cos(angle)
    points[:, second] = size * RADII[second] * np.sin(angle)
    return points + center


def curve(structure: Structure, points: np.ndarray, name: str, role: str = OUTLINE):
    """A markups node with points, not yet an annotation."""
    node = structure.made(role, name)
    for point in points:
        node.AddControlPoint(*point)
    return node


def draw(session: Session, name: str = "axial", offset: float = 0.0):
    """An outline as the user draws it, and the timer after it."""
    node = curve(session.structure, ellipse(AXES[name], offset), name)
    session.add(OUTLINE, node)
    session.poll()
    return node


def move(node, index: int = 0, by=(0.0, 1.0, 0.0)) -> None:
    """Move a control point in the world."""
    position = np.zeros(3)
    node.GetNthControlPointPositionWorld(index, position)
    node.SetNthControlPointPositionWorld(index, *(position + by))


def transformed(scene, matrix: np.ndarray, *nodes, parent=None):
    """Nodes put under a new linear transform."""
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetMatrixTransformToParent(vtkMatrix(matrix))
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    for child in nodes:
        child.SetAndObserveTransformNodeID(node.GetID())
    return node


def vtkMatrix(matrix: np.ndarray):
    found = vtk.vtkMatrix4x4()
    found.DeepCopy(np.asarray(matrix, dtype=float).ravel())
    return found


def turn(degrees: float, axis=(1.0, 2.0, 0.5), shift=(12.0, -7.0, 5.0)) -> np.ndarray:
    """(4, 4) of a turn and a shift."""
    made = vtk.vtkTransform()
    made.Translate(*shift)
    made.RotateWXYZ(degrees, *axis)
    return np.array([[made.GetMatrix().GetElement(i, j) for j in range(4)] for i in range(4)])


def bend(scene, node, by: float = 0.0):
    """Put a node under a transform that bends: a thin plate spline."""
    spline = vtk.vtkThinPlateSplineTransform()
    corners = [[x, y, z] for x in (-80, 40) for y in (-60, 60) for z in (-20, 80)]
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for index, corner in enumerate([*corners, CENTER.tolist()]):
        source.InsertNextPoint(*corner)
        target.InsertNextPoint(corner[0], corner[1], corner[2] + by * (index == len(corners)))
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    spline.SetBasisToR()
    found = scene.AddNewNodeByClass("vtkMRMLTransformNode")
    found.SetAndObserveTransformToParent(spline)
    node.SetAndObserveTransformNodeID(found.GetID())
    return found


def volume(scene, array: np.ndarray | None = None, name: str = "T1", spacing: float = 2.0):
    """A scalar volume about the organ; (K, J, I) noise by default."""
    if array is None:
        array = np.random.default_rng(0).integers(0, 900, (20, 24, 22)).astype(np.int16)
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = CENTER - 0.5 * spacing * np.array(array.shape[::-1])
    node.SetIJKToRASMatrix(vtkMatrix(matrix))
    slicer.util.updateVolumeFromArray(node, array)
    return node


def settle(workspace: Workspace, seconds: float = 90.0) -> None:
    """Poll as Slicer's timer does, until nothing runs."""
    until(workspace, lambda: not workspace.isBusy(), seconds)


def until(workspace: Workspace, condition: Callable[[], bool], seconds: float = 90.0) -> None:
    """Poll until it comes true."""
    end = time.monotonic() + seconds
    workspace.poll()
    while not condition():
        assert time.monotonic() < end, [s.status for s in workspace.sessions]
        time.sleep(0.005)
        workspace.poll(0.003)


# --- what became of it ---------------------------------------------------------------------------


def asked(session: Session) -> list[str]:
    """What a fake server was asked for."""
    return ["preview" if r.isPreview else r.kind for r in session.connection.requests]


def points(session: Session) -> np.ndarray:
    """Of the surface."""
    return session.reconstruction.surface.points


def outline(session: Session, index: int = 0):
    """Its node."""
    return session.outlines()[index].node


# --- scenes that are saved and opened again -------------------------------------------------------


def writeBundle(application, folder):
    path = folder / "scene.mrb"
    assert application.scene.WriteToMRB(str(path))
    return path


def opened(application, path, folder):
    """Read it into a scene, as Slicer does: what is there is closed first."""
    scene = application.scene
    scene.Clear(0)
    if path.suffix == ".mrml":
        scene.SetURL(str(path))
        assert scene.Connect()
        return
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    files = slicer.vtkMRMLRemoteIOLogic()
    files.SetMRMLScene(scene)
    files.SetMRMLApplicationLogic(application.logic)
    files.GetCacheManager().SetRemoteCacheDirectory(str(cache))
    files.AddDataIOToScene()
    assert scene.ReadFromMRB(str(path), True)
    files.RemoveDataIOFromScene()


# --- the bundled case and a real server ---------------------------------------------------------


class SharedBackend:
    """A backend that outlives the workspaces that use it."""

    def __init__(self, backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def stop(self) -> None:
        """Left to whoever owns it."""


def readCurve(structure: Structure, path, role: str = OUTLINE):
    """A curve of the first markups in a file, read by Slicer; not yet an annotation."""
    node = structure.made(role, path.name.removesuffix(".mrk.json"))
    storage = slicer.vtkMRMLMarkupsJsonStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    return node


def addExample(session: Session) -> list:
    """The three outlines of the bundled case, all at once."""
    from ShapePriorSlicerLib.files.sample_data import OUTLINES, exampleOutline

    nodes = [readCurve(session.structure, exampleOutline(name)) for name in OUTLINES]
    for node in nodes:
        session.add(OUTLINE, node)
    return nodes


def gapBetween(one: Surface, other: Surface) -> float:
    """Largest distance between two surfaces, mm: by vertex where they have the same triangles."""
    if np.array_equal(one.triangles, other.triangles):
        return float(np.linalg.norm(one.points - other.points, axis=1).max())
    from model_server.fitting.residuals import closest_distance

    there, back = closest_distance(one, other.points), closest_distance(other, one.points)
    return float(max(there.max(), back.max()))
