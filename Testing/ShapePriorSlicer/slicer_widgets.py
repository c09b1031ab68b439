"""Widgets of CTK and MRML that the panel uses, in PySide6: their properties, signals and methods.

Only what the panel and Slicer's own Python touch. They look alike enough for a picture.
"""

from __future__ import annotations

from typing import Any, ClassVar

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

Property, Signal = QtCore.Property, QtCore.Signal
HEADER = 26  # pixels


def _stored(kind: Any, name: str, changed: str = "") -> Any:
    """A Qt property kept in the object."""

    def read(self: Any) -> Any:
        return getattr(self, f"_{name}")

    def write(self: Any, value: Any) -> None:
        setattr(self, f"_{name}", value)
        if changed:
            getattr(self, changed)()

    return Property(kind, read, write)


class ctkCollapsibleButton(QtWidgets.QWidget):
    """A title, and the contents under it while it is not collapsed."""

    contentsCollapsed = Signal(bool)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._text, self._collapsed, self._showing = "", False, False

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        super().childEvent(event)
        if event.added() and event.child().isWidgetType():
            event.child().installEventFilter(self)
        QtCore.QTimer.singleShot(0, self._follow)

    def eventFilter(self, child: Any, event: QtCore.QEvent) -> bool:
        """As CTK's: what hides one of its children itself keeps it hidden when this is opened."""
        kinds = (QtCore.QEvent.ShowToParent, QtCore.QEvent.HideToParent)
        if not self._showing and event.type() in kinds:
            child.setProperty("visibilityToParent", event.type() == kinds[0])
            self._show(child)
        return False

    def _show(self, child: Any) -> None:
        self._showing = True
        child.setVisible(not self._collapsed and child.property("visibilityToParent") is not False)
        self._showing = False

    def _follow(self) -> None:
        if self.layout() is not None:
            self.layout().setContentsMargins(6, HEADER + 4, 6, 4)
        for child in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindDirectChildrenOnly):
            self._show(child)
        self.setMaximumHeight(HEADER if self._collapsed else 16777215)
        self.setMinimumHeight(HEADER)
        self.update()

    def paintEvent(self, event: Any) -> None:
        painter = QtGui.QPainter(self)
        header = QtCore.QRect(0, 0, self.width(), HEADER - 2)
        painter.fillRect(header, self.palette().button())
        painter.drawRect(header.adjusted(0, 0, -1, -1))
        sign = "\u25b8" if self._collapsed else "\u25be"
        painter.drawText(
            header.adjusted(8, 0, 0, 0), QtCore.Qt.AlignVCenter, f"{sign}  {self._text}"
        )

    text = _stored(str, "text", "_follow")
    collapsed = _stored(bool, "collapsed", "_follow")


class ctkSliderWidget(QtWidgets.QWidget):
    """A slider of floats with a spin box."""

    valueChanged = Signal(float)
    SIGNALS: ClassVar = {"valueChanged(double)": "valueChanged"}

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._minimum, self._maximum, self._singleStep, self._decimals = 0.0, 99.0, 1.0, 2
        self._value, self._spinBoxVisible = 0.0, True
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self.slider = QtWidgets.QSlider(QtCore.Qt.Horizontal, objectName="Slider")
        self.spinBox = QtWidgets.QDoubleSpinBox(objectName="SpinBox")
        row.addWidget(self.slider)
        row.addWidget(self.spinBox)
        self.slider.valueChanged.connect(lambda step: self._set(self._minimum + step * self._step))
        self.spinBox.valueChanged.connect(self._set)

    @property
    def _step(self) -> float:
        return self._singleStep or 1.0

    def _range(self) -> None:
        self._value = min(max(self._value, self._minimum), self._maximum)
        for widget in (self.slider, self.spinBox):
            widget.blockSignals(True)
        self.slider.setRange(0, round((self._maximum - self._minimum) / self._step))
        self.slider.setValue(round((self._value - self._minimum) / self._step))
        self.spinBox.setRange(self._minimum, self._maximum)
        self.spinBox.setSingleStep(self._step)
        self.spinBox.setDecimals(self._decimals)
        self.spinBox.setValue(self._value)
        self.spinBox.setVisible(self._spinBoxVisible)
        for widget in (self.slider, self.spinBox):
            widget.blockSignals(False)

    def _set(self, value: float) -> None:
        value = round(min(max(value, self._minimum), self._maximum), 6)
        if value != self._value:
            self._value = value
            self._range()
            self.valueChanged.emit(value)

    value = Property(float, lambda self: self._value, _set)
    minimum = _stored(float, "minimum", "_range")
    maximum = _stored(float, "maximum", "_range")
    singleStep = _stored(float, "singleStep", "_range")
    decimals = _stored(int, "decimals", "_range")
    spinBoxVisible = _stored(bool, "spinBoxVisible", "_range")


class qMRMLWidget(QtWidgets.QWidget):
    """A widget that knows the scene."""

    mrmlSceneChanged = Signal(object)
    SIGNALS: ClassVar = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}
    SLOTS = ("setMRMLScene(vtkMRMLScene*)",)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)


class qMRMLNodeComboBox(QtWidgets.QWidget):
    """The scene's nodes of some classes, and None."""

    currentNodeChanged = Signal(object)
    SIGNALS: ClassVar = {"currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged"}
    SLOTS = ("setMRMLScene(vtkMRMLScene*)",)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._nodeTypes: list[str] = []
        self._showChildNodeTypes, self._noneEnabled = True, False
        self._addEnabled = self._removeEnabled = self._renameEnabled = self._editEnabled = True
        self._noneDisplay = "None"
        self._scene, self._nodes, self._tags, self._current = None, [], [], None
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.combo = QtWidgets.QComboBox()
        layout.addWidget(self.combo)
        self.combo.activated.connect(self._chosen)
        self.setEnabled(False)  # as the real one is, until it has a scene

    def setMRMLScene(self, scene: Any) -> None:
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene, self._tags = scene, []
        if scene is not None:
            events = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndBatchProcessEvent)
            self._tags = [scene.AddObserver(e, lambda *unused: self._refill()) for e in events]
        self.setEnabled(scene is not None)
        self._refill()

    def mrmlScene(self) -> Any:
        return self._scene

    def currentNode(self) -> Any:
        return self._current

    def setCurrentNode(self, node: Any) -> None:
        if isinstance(node, str):
            node = self._scene.GetNodeByID(node)
        node = node if node in self._nodes else None
        changed, self._current = node is not self._current, node
        self.combo.setCurrentIndex(self._items().index(node))
        if changed:
            self.currentNodeChanged.emit(node)

    def _items(self) -> list[Any]:
        return [None, *self._nodes]

    def _chosen(self, index: int) -> None:
        self.setCurrentNode(self._items()[index])

    def _refill(self) -> None:
        scene = self._scene
        found = []
        for kind in self._nodeTypes if scene is not None else ():
            nodes = [
                scene.GetNthNodeByClass(i, kind) for i in range(scene.GetNumberOfNodesByClass(kind))
            ]
            found += [
                n
                for n in nodes
                if not n.GetHideFromEditors()
                and (self._showChildNodeTypes or n.GetClassName() == kind)
            ]
        if found == self._nodes and self.combo.count():
            return
        self._nodes = found
        self.combo.clear()
        self.combo.addItems([self._noneDisplay] + [n.GetName() for n in found])
        first = found[0] if found and not self._noneEnabled else None
        self.setCurrentNode(self._current if self._current in found else first)

    nodeTypes = _stored("QStringList", "nodeTypes")
    showChildNodeTypes = _stored(bool, "showChildNodeTypes")
    noneEnabled = _stored(bool, "noneEnabled")
    addEnabled = _stored(bool, "addEnabled")
    removeEnabled = _stored(bool, "removeEnabled")
    renameEnabled = _stored(bool, "renameEnabled")
    editEnabled = _stored(bool, "editEnabled")
    noneDisplay = _stored(str, "noneDisplay")


class qMRMLSegmentSelectorWidget(qMRMLWidget):
    """A segmentation, and one of its segments."""

    currentNodeChanged = Signal(object)
    currentSegmentChanged = Signal(str)
    SIGNALS: ClassVar = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentSegmentChanged(QString)": "currentSegmentChanged",
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._noneEnabled, self._segment = False, ""
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self.nodes = qMRMLNodeComboBox()
        self.nodes.nodeTypes = ["vtkMRMLSegmentationNode"]
        self.segments = QtWidgets.QComboBox()
        column.addWidget(self.nodes)
        row = QtWidgets.QHBoxLayout()
        row.addWidget(QtWidgets.QLabel("Segment:"))  # the real one has it, too
        row.addWidget(self.segments, 1)
        column.addLayout(row)
        self.mrmlSceneChanged.connect(self.nodes.setMRMLScene)

    def currentNode(self) -> Any:
        return self.nodes.currentNode()

    def currentSegmentID(self) -> str:
        return self._segment

    def setCurrentNode(self, node: Any) -> None:
        self.nodes.setCurrentNode(node)

    def setCurrentSegmentID(self, segment: str) -> None:
        self._segment = segment

    noneEnabled = _stored(bool, "noneEnabled")


CTK = (ctkCollapsibleButton, ctkSliderWidget)
MRML = (qMRMLWidget, qMRMLNodeComboBox, qMRMLSegmentSelectorWidget)


class ThreeDWidget:
    """qMRMLThreeDWidget, its view and the window of that, which paint nothing."""

    def mrmlViewNode(self) -> Any:
        """The view node, with a camera."""
        return _singleton("vtkMRMLViewNode")

    def threeDView(self) -> ThreeDWidget:
        """qMRMLThreeDView."""
        return self

    def renderWindow(self) -> ThreeDWidget:
        """vtkRenderWindow."""
        return self

    def GetSize(self) -> tuple[int, int]:
        """Pixels, as in the desktop's usual layout."""
        _singleton("vtkMRMLCameraNode")
        return (450, 450)


def _singleton(className: str) -> Any:
    """The node of the first 3D view, as its camera's displayable manager makes it."""
    node = slicer.mrmlScene.CreateNodeByClass(className)
    node.SetSingletonTag("1")
    node.SetLayoutName("1")
    found = slicer.mrmlScene.GetSingletonNode("1", className) or slicer.mrmlScene.AddNode(node)
    node.UnRegister(None)
    return found
