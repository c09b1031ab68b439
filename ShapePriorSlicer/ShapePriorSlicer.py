"""The module as Slicer loads it: module, widget, logic, self test. What they do is in
ShapePriorSlicerLib and in Testing."""

import contextlib
import enum
import runpy
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import qt
import slicer
from ShapePriorSlicerLib.files.sample_data import exampleImage
from ShapePriorSlicerLib.panel.logic import PanelLogic
from ShapePriorSlicerLib.panel.panel import Panel
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

HERE = Path(__file__).resolve().parent
SELF_TEST = Path("Testing", "ShapePriorSlicer", "selftest.py")
POLL_MILLISECONDS = 20


class ShapePriorSlicer(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Shape Prior Slicer")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Markups", "Segmentations", "Colors"]
        self.parent.contributors = ["The ShapePriorSlicer authors"]
        self.parent.helpText = _(
            "Draw an organ's outline on three slices, or click points on its boundary: a learned "
            "shape prior finds the whole surface, with correspondences and its uncertainty in "
            "millimeters, and follows every edit. For research, not for clinical use."
        )
        self.parent.helpText += self.getDefaultModuleDocumentationLink()
        self.parent.acknowledgementText = _(
            "Built on DALS, ImplicitAtlas, ReShapeIT, DISSM and ImplicitMeshNet. The bundled "
            "priors were trained on public data; each prior names its data and its license."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)
        slicer.app.connect("startupCompleted()", registerEffect)


def registerSampleData():
    """Offer the bundled case in Slicer's Sample Data module; it is loaded without network."""
    import SampleData

    image = exampleImage()
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="ShapePriorSlicer",
        sampleName=_("Hippocampus (synthetic MR)"),
        thumbnailFileName=str(HERE / "Resources/Icons/ShapePriorSlicer.png"),
        uris=image.as_uri(),
        # Not the file's own name, under which another download may lie in Slicer's cache.
        fileNames="ShapePriorSlicerHippocampus.nii.gz",
        nodeNames="Hippocampus",
        checksums=f"SHA256:{sha256(image.read_bytes()).hexdigest()}",
    )


def registerEffect():
    """Offer the effect "Shape prior" in the Segment Editor, as Slicer registers its own ones
    (registerEffects() of EditorEffects/Python/SegmentEditorEffects.__init__.py.in)."""
    import qSlicerSegmentationsEditorEffectsPythonQt as effects

    effect = effects.qSlicerSegmentEditorScriptedEffect(None)
    effect.setPythonSource((HERE / "ShapePriorEffect" / "ShapePriorEffect.py").as_posix())
    effect.self().register()


# --- parameters -----------------------------------------------------------------------------------


class Side(enum.Enum):
    """Of a paired organ; the names are what the parameter node holds."""

    auto = "auto"
    left = "left"
    right = "right"

    def label(self):
        """As the list shows it."""
        return {"auto": _("Automatic"), "left": _("Left"), "right": _("Right")}[self.value]


class Coloring(enum.Enum):
    """Of the surface; the names are what the parameter node holds."""

    plain = "plain"
    correspondence = "correspondence"
    parts = "parts"
    uncertainty = "uncertainty"
    distance = "distance"
    change = "change"

    def label(self):
        """As the list shows it."""
        return {
            "plain": _("One color"),
            "correspondence": _("Place on the template"),
            "parts": _("Parts"),
            "uncertainty": _("Uncertainty (mm)"),
            "distance": _("Distance to the annotations (mm)"),
            "change": _("Change by the repair (mm)"),
        }[self.value]


@parameterNodeWrapper
class ShapePriorSlicerParameterNode:
    """One structure's choices; the same node and names as the library's Parameters."""

    prior: str
    side: Side = Side.auto
    strength: Annotated[float, WithinRange(-2.0, 2.0)] = 0.0
    autoUpdate: bool = True
    useImage: bool = True
    start: str = ""
    coloring: Coloring = Coloring.plain
    opacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.7
    slicesOn: bool = True
    showTemplate: bool = False


# --- widget ---------------------------------------------------------------------------------------


class ShapePriorSlicerWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Gives the library's panel its widgets, and tells it what happens to module and scene."""

    def __init__(self, parent=None):
        # First: without a parent Slicer's constructor calls setup().
        self.logic = self.panel = None
        VTKObservationMixin.__init__(self)
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self):
        """Load the panel and connect it."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/ShapePriorSlicer.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = ShapePriorSlicerLogic()
        self.panel = Panel(self.ui, self.logic, ShapePriorSlicerParameterNode)
        for event, method in (
            (slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose),
            (slicer.mrmlScene.EndCloseEvent, self.onSceneChanged),
            (slicer.mrmlScene.EndImportEvent, self.onSceneChanged),
        ):
            self.addObserver(slicer.mrmlScene, event, method)
        self.panel.update()
        # A module that is loaded anew while it is open is not entered again.
        if getattr(self.parent, "isEntered", False):
            self.enter()

    def cleanup(self):
        """Slicer ends, or the module is loaded again: the server goes with it."""
        self.removeObservers()
        if self.logic is None:
            return
        self.logic.close()
        # When Slicer ends, the main window may have gone with its widgets.
        with contextlib.suppress(ValueError):
            self.panel.parameters.connect(None)
        self.panel.keys.remove()

    def enter(self):
        """The user opened the module."""
        self.panel.enter()

    def exit(self):
        """The user left the module."""
        self.panel.leave()

    def onSceneStartClose(self, caller, event):
        """The scene goes: let go of its nodes."""
        self.panel.parameters.connect(None)

    def onSceneChanged(self, caller, event):
        """Another scene is there."""
        self.panel.follow()


# --- logic ----------------------------------------------------------------------------------------


class ShapePriorSlicerLogic(PanelLogic, ScriptedLoadableModuleLogic):
    """The library's logic, and the timer that keeps it going."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        PanelLogic.__init__(self)
        # Slicer's main thread keeps Python's lock: without a running timer the workers that talk
        # to the server would not run at all.
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MILLISECONDS)
        self._timer.connect("timeout()", self.poll)
        self._timer.start()

    def close(self):
        """End the server; the scene keeps everything."""
        self._timer.stop()
        PanelLogic.close(self)


# --- self test ------------------------------------------------------------------------------------


class ShapePriorSlicerTest(ScriptedLoadableModuleTest):
    """Slicer's way to the self test, which lies with the other tests."""

    def runTest(self):
        """The whole job on the bundled case."""
        # In the packaged extension, and in a checkout.
        places = (HERE / SELF_TEST, HERE.parent / SELF_TEST)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{SELF_TEST} is missing: install the extension again.")
        runpy.run_path(str(path))["SelfTest"]().runTest()
