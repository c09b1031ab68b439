"""A stand-in for what slicer-core lacks of the Slicer application, so that the module's own widget
runs on a real MRML scene, with a real server process, and its real buttons are clicked.

``start()`` puts ``qt``, ``ctk``, ``slicer.ScriptedLoadableModule``, ``slicer.i18n``,
``slicer.parameterNodeWrapper``, ``slicer.app`` and ``slicer.modules`` where the module looks for
them. ``slicer.util`` is Slicer's own, and so is MRML.

What it does not prove: that Slicer's widgets, views and event loop behave like these; mouse
placement in slice views; the subject hierarchy's plug-ins; readers and writers chosen by file
type; that the main thread keeps Python's lock (here workers always run). See ``python_qt`` for Qt.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import tempfile
import time
import types
import unittest
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import python_qt
import segment_editor
import slicer
import slicer_widgets
import vtk
from parameter_node import module as parameterNodeModule
from PySide6 import QtCore, QtUiTools, QtWidgets
from python_qt import classOf, unwrap, wrap

MODULE = Path(__file__).resolve().parents[2] / "ShapePriorSlicer" / "ShapePriorSlicer.py"
ORIENTATIONS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}


MODULES = (
    "qt",
    "ctk",
    "slicer.ScriptedLoadableModule",
    "slicer.i18n",
    "slicer.parameterNodeWrapper",
)
ATTRIBUTES = ("app", "modules", "mrmlScene", "qSlicerScriptedLoadableModuleWidget")
LOGICS = ("vtkSlicerMarkupsLogic", "vtkSlicerSegmentationsModuleLogic")


# --- slicer.app -----------------------------------------------------------------------------------


class _IOManager:
    """Reads and writes through storage nodes, chosen by type as here named."""

    STORAGES: ClassVar = {
        "VolumeFile": ("vtkMRMLScalarVolumeNode", "vtkMRMLVolumeArchetypeStorageNode"),
        "MarkupsFile": ("vtkMRMLMarkupsClosedCurveNode", "vtkMRMLMarkupsJsonStorageNode"),
        "ModelFile": ("vtkMRMLModelNode", "vtkMRMLModelStorageNode"),
    }

    def loadNodes(self, kind: str, properties: dict, loaded: Any, messages: Any = None) -> bool:
        """As qSlicerCoreIOManager's: whether it could be read."""
        path, scene = properties["fileName"], slicer.mrmlScene
        if kind == "SceneFile":
            scene.SetURL(path)
            return bool(scene.ReadFromMRB(path, False))
        nodeClass, storageClass = self.STORAGES[kind]
        if kind == "VolumeFile" and properties.get("labelmap"):
            nodeClass = "vtkMRMLLabelMapVolumeNode"
        node = scene.AddNewNodeByClass(nodeClass, properties.get("name") or Path(path).stem)
        storage = scene.AddNode(getattr(slicer, storageClass)())
        storage.SetFileName(path)
        if not storage.ReadData(node):
            return False
        if properties.get("name"):
            node.SetName(properties["name"])
        node.SetAndObserveStorageNodeID(storage.GetID())
        node.CreateDefaultDisplayNodes()
        if nodeClass == "vtkMRMLScalarVolumeNode":
            slicer.util.setSliceViewerLayers(background=node)
        loaded.AddItem(node)
        return True

    def saveNodes(self, kind: str, properties: dict, messages: Any = None) -> bool:
        """As qSlicerCoreIOManager's; scenes only."""
        assert kind == "SceneFile"
        return bool(slicer.mrmlScene.WriteToMRB(properties["fileName"], None))


class _Modules:
    """qSlicerModuleManager."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}

    def connect(self, signature: str, target: Any) -> bool:
        """No module is ever unloaded here."""
        assert signature == "moduleAboutToBeUnloaded(QString)"
        return True

    disconnect = connect

    def module(self, name: str) -> Any:
        """By its name, or None."""
        return self._found.get(name)


class _Environment:
    """QProcessEnvironment."""

    def keys(self) -> list[str]:
        """Names of the variables."""
        return list(os.environ)

    def value(self, name: str) -> str:
        """One of them."""
        return os.environ[name]


class _LayoutManager:
    """qSlicerLayoutManager, of views that paint nothing."""

    threeDViewCount = 1

    def threeDWidget(self, index: int) -> Any:
        """One of the 3D views."""
        return slicer_widgets.ThreeDWidget()

    def setLayout(self, layout: int) -> None:
        """Four-Up alone."""
        assert layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            node.SetMappedInLayout(node.GetName() in ORIENTATIONS)

    def mrmlSliceLogics(self) -> Any:
        """None: nothing is to be fitted."""
        return vtk.vtkCollection()


class _App:
    """slicer.app; what is not here raises AttributeError."""

    applicationName = "Slicer"

    def __init__(self, application: Any, window: Any, folder: str) -> None:
        self._application, self._window = application, window
        self.temporaryPath = self.defaultScenePath = folder
        self._settings = None
        self._modules, self._startup = _Modules(), []
        self._logic: Any = None

    def connect(self, signature: str, target: Any) -> bool:
        """Only for the end of the start."""
        assert signature == "startupCompleted()"
        self._startup.append(target)
        return True

    def completeStartup(self) -> None:
        """What the application emits when it is up."""
        for target in self._startup:
            target()

    def userSettings(self) -> Any:
        """A file of our own."""
        if self._settings is None:
            import qt

            self._settings = qt.QSettings(
                f"{self.temporaryPath}/settings.ini", qt.QSettings.IniFormat
            )
        return self._settings

    def applicationLogic(self) -> Any:
        """slicer-core's own."""
        return self._logic

    def moduleManager(self) -> Any:
        """Of the modules."""
        return self._modules

    def coreIOManager(self) -> Any:
        """Of the readers and writers."""
        return _IOManager()

    def layoutManager(self) -> Any:
        """None without a main window, as there."""
        return _LayoutManager() if self._window is not None else None

    def topLevelWidgets(self) -> list[Any]:
        """The main window."""
        return [] if self._window is None else [wrap(self._window)]

    def startupEnvironment(self) -> Any:
        """The environment Slicer was started in."""
        return _Environment()

    def moduleDocumentationUrl(self, name: str) -> str:
        """Of a module."""
        return f"https://slicer.readthedocs.io/{name}"

    def processEvents(self) -> None:
        """Timers, clicks and repaints."""
        self._application.processEvents()

    def testingEnabled(self) -> bool:
        """--testing."""
        return False


# --- ScriptedLoadableModule -----------------------------------------------------------------------


class ScriptedLoadableModule:
    """Base of a module."""

    def __init__(self, parent: Any) -> None:
        self.parent, self.moduleName = parent, type(self).__name__

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        """A sentence with a link."""
        return f'<a href="{slicer.app.moduleDocumentationUrl(self.moduleName)}">online</a>'


class ScriptedLoadableModuleWidget:
    """Base of a module's panel."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.parent = parent
        self.layout = parent.layout()

    def resourcePath(self, filename: str) -> str:
        """Of a file under Resources."""
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / filename)

    def setup(self) -> None:
        """The developer's buttons, which are left out."""

    def cleanup(self) -> None:
        """Nothing."""


class ScriptedLoadableModuleLogic:
    """Base of a module's logic."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")


class ScriptedLoadableModuleTest(unittest.TestCase):
    """Base of a module's self test."""

    messageDelay = 0

    def delayDisplay(self, message: str, requestedDelay: Any = None, msec: Any = None) -> None:
        """The message goes to the log only."""
        logging.info(message)


class _WidgetRepresentation:
    """qSlicerScriptedLoadableModuleWidget."""

    def __init__(self, widget: Any) -> None:
        self._widget = widget

    def self(self) -> Any:
        return self._widget


class _LoadedModule:
    """qSlicerScriptedLoadableModule."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = str(path), path.stem
        self._representation: Any = None

    def widgetRepresentation(self) -> Any:
        """Of the panel."""
        return self._representation


# --- .ui ------------------------------------------------------------------------------------------


def _loader() -> Any:
    loader = QtUiTools.QUiLoader()
    for cls in (*slicer_widgets.CTK, *slicer_widgets.MRML):
        loader.registerCustomWidget(cls)
    return loader


def loadUI(path: str) -> Any:
    """slicer.util's, with the connections of the .ui file made here.

    Raises:
        ValueError: a connection names a signal or slot that the widget does not have.
    """
    root = ElementTree.parse(path).getroot()
    connections = root.find("connections")
    root.remove(connections)  # PySide cannot make them: its signals carry no vtkMRMLScene
    text = QtCore.QBuffer()
    text.setData(ElementTree.tostring(root))
    widget = _loader().load(text)
    if widget is None:
        raise RuntimeError(f"Could not load UI file: {path}")
    for connection in connections:
        sender, signal, receiver, slot = (connection.findtext(k) for k in CONNECTION)
        target = widget.findChild(QtWidgets.QWidget, receiver)
        slots = {s for cls in type(target).__mro__ for s in cls.__dict__.get("SLOTS", ())}
        if sender != widget.objectName() or slot not in slots:
            raise ValueError(f"{sender}.{signal} -> {receiver}.{slot}")
        python_qt.connect(widget, signal, getattr(target, slot.split("(")[0]))
    return wrap(widget)


CONNECTION = ("sender", "signal", "receiver", "slot")


# --- everything -----------------------------------------------------------------------------------


class Desktop:
    """The application with one module."""

    def __init__(self, mainWindow: bool = True) -> None:
        # Before the first application: without a display there is no other.
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
        self.application = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
        self.window = QtWidgets.QMainWindow(objectName="qSlicerMainWindow") if mainWindow else None
        self._folder = tempfile.TemporaryDirectory(prefix="ShapePriorSlicer-")
        self.folder = self._folder.name
        slicer.app = self.app = _App(self.application, self.window, self.folder)
        slicer.modules = types.SimpleNamespace()
        slicer.qSlicerScriptedLoadableModuleWidget = _WidgetRepresentation
        self._loadUI, slicer.util.loadUI = slicer.util.loadUI, loadUI
        _putModules()
        slicer.mrmlScene = self.scene = self._scene()
        self.widget: Any = None
        self.python: Any = None

    def _scene(self) -> Any:
        scene = slicer.vtkMRMLScene()
        logic = self.app._logic = slicer.vtkSlicerApplicationLogic()
        logic.SetMRMLScene(scene)
        logic.GetColorLogic().SetMRMLScene(scene)
        logic.GetColorLogic().AddDefaultColorNodes()
        cache = slicer.vtkCacheManager()
        cache.SetRemoteCacheDirectory(self.folder)
        cache.SetMRMLScene(scene)
        manager = slicer.vtkDataIOManager()
        manager.SetCacheManager(cache)
        scene.SetCacheManager(cache)
        scene.SetDataIOManager(manager)
        # They register their nodes, so that scenes with them can be read.
        self._logics = [getattr(slicer, name)() for name in LOGICS]
        for module in self._logics:
            module.SetMRMLScene(scene)
        scene.AddNode(slicer.vtkMRMLCrosshairNode())
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
        for name, orientation in ORIENTATIONS.items():
            node = scene.CreateNodeByClass("vtkMRMLSliceNode")
            node.UnRegister(None)
            node.SetName(name)
            node.SetLayoutName(name)
            node.SetSingletonTag(name)
            node.SetMappedInLayout(1)
            scene.AddNode(node)
            node.SetOrientation(orientation)
            composite = slicer.vtkMRMLSliceCompositeNode()
            composite.SetLayoutName(name)
            composite.SetSingletonTag(name)
            scene.AddNode(composite)
        return scene

    def load(self, path: Path = MODULE) -> Any:
        """What the application does with a module, until its panel is open; returns that."""
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        found = importlib.util.spec_from_file_location(path.stem, path)
        assert found is not None
        self.python = importlib.util.module_from_spec(found)
        sys.modules[path.stem] = self.python
        found.loader.exec_module(self.python)
        loaded = _LoadedModule(path)
        setattr(slicer.modules, path.stem.lower(), loaded)
        self.app.moduleManager()._found[path.stem] = loaded
        self.module = getattr(self.python, path.stem)(loaded)
        parent = slicer_widgets.qMRMLWidget(self.window)
        parent.setLayout(QtWidgets.QVBoxLayout())
        parent.setMRMLScene(self.scene)
        if self.window is not None:
            self.window.setCentralWidget(parent)
        self.widget = getattr(self.python, f"{path.stem}Widget")(wrap(parent))
        loaded._representation = _WidgetRepresentation(self.widget)
        self.widget.setup()
        self.widget.enter()
        self.panel = parent
        return self.widget

    def reload(self) -> Any:
        """What the developer's Reload does."""
        self.widget.cleanup()
        self.panel.deleteLater()
        return self.load()

    def wait(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Let the event loop run until something holds.

        Raises:
            TimeoutError: it did not.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError
            self.app.processEvents()
            time.sleep(0.005)

    def close(self) -> None:
        """The application ends."""
        if self.widget is not None:
            self.widget.exit()
            self.widget.cleanup()
        self.scene.Clear(1)
        if self.window is not None:
            self.window.close()
            self.window.deleteLater()
        self.application.processEvents()
        # Other tests of this process run without an application.
        for name in (*MODULES, segment_editor.EFFECTS, segment_editor.BASE):
            sys.modules.pop(name, None)
        for name in (*ATTRIBUTES, segment_editor.ABSTRACT):
            delattr(slicer, name)
        slicer.util.loadUI = self._loadUI
        self._folder.cleanup()


def _putModules() -> None:
    qt = python_qt.QtModule("qt")
    ctk = types.ModuleType("ctk")
    for cls in slicer_widgets.CTK:
        setattr(ctk, cls.__name__, classOf(cls))
    for cls in slicer_widgets.MRML:
        setattr(slicer, cls.__name__, classOf(cls))
    scripted = types.ModuleType("slicer.ScriptedLoadableModule")
    for cls in (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    ):
        setattr(scripted, cls.__name__, cls)
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr = lambda text: text
    i18n.translate = lambda context, text: text
    made = (qt, ctk, scripted, i18n, parameterNodeModule())
    sys.modules |= dict(zip(MODULES, made, strict=True))
    segment_editor.putModules()


def click(widget: Any) -> None:
    """Press and release the left mouse button in the middle of a widget, as a user does: in a
    section that is closed, after opening it."""
    from PySide6.QtCore import QPoint, Qt
    from PySide6.QtTest import QTest

    target = unwrap(widget)
    above = target.parentWidget()
    while above is not None:
        if isinstance(above, slicer_widgets.ctkCollapsibleButton):
            above.collapsed = False
        above = above.parentWidget()
    QtWidgets.QApplication.processEvents()  # what was just laid out has no size yet
    QTest.mouseClick(target, Qt.LeftButton, Qt.NoModifier, QPoint(*_middle(target)))


def _middle(target: Any) -> tuple[int, int]:
    # Of a check box only the box and its text react.
    wide = isinstance(target, QtWidgets.QCheckBox | QtWidgets.QRadioButton)
    return (8 if wide else target.width() // 2, target.height() // 2)
