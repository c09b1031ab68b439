"""The module as Slicer loads it: module, widget, logic and self test. What they do is in
ShapePriorSlicerLib."""

import contextlib
import enum
import logging
import queue
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import qt
import slicer
from ShapePriorSlicerLib import ShapePriorError
from ShapePriorSlicerLib.files.sample_data import (
    EXAMPLE_PRIOR,
    OUTLINES,
    exampleImage,
    exampleOutline,
    exampleTruth,
)
from ShapePriorSlicerLib.panel import texts as texts
from ShapePriorSlicerLib.scene.structure import (
    BOUNDARY,
    INSIDE,
    OUTLINE,
    OUTSIDE,
    TEMPLATE_LANDMARKS,
)
from ShapePriorSlicerLib.server import dependencies
from ShapePriorSlicerLib.server.backend import LocalBackend, RemoteBackend
from ShapePriorSlicerLib.server.priors import (
    listPriors,
    listRemotePriors,
    requirePriors,
    withPriors,
)
from ShapePriorSlicerLib.session.keeping import exportSession, withSuffix
from ShapePriorSlicerLib.session.workspace import Workspace
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

VIEWS = ("Red", "Green", "Yellow")  # with buttons of their own
POLL_MILLISECONDS = 20
WRONG = "color: #d04020;"  # readable on Slicer's light and dark style
FLAGS_ROLE = 255  # Qt::UserRole - 1: where items of Qt's own model keep whether they can be chosen
CHOOSABLE, GRAY = 33, 0  # Qt::ItemIsSelectable | Qt::ItemIsEnabled, Qt::NoItemFlags
LEND_SECONDS = 0.003  # to the worker, while it is needed: the main thread keeps Python's lock


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


def registerSampleData():
    """Offer the bundled case in Slicer's Sample Data module; it is loaded without network."""
    import SampleData

    image = exampleImage()
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="ShapePriorSlicer",
        sampleName=_("Hippocampus (synthetic MR)"),
        thumbnailFileName=str(Path(__file__).parent / "Resources/Icons/ShapePriorSlicer.png"),
        uris=image.as_uri(),
        # Not the file's own name, under which another download may lie in Slicer's cache.
        fileNames="ShapePriorSlicerHippocampus.nii.gz",
        nodeNames="Hippocampus",
        checksums=f"SHA256:{sha256(image.read_bytes()).hexdigest()}",
    )


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

    def label(self):
        """As the list shows it."""
        return {
            "plain": _("One color"),
            "correspondence": _("Place on the template"),
            "parts": _("Parts"),
            "uncertainty": _("Uncertainty (mm)"),
            "distance": _("Distance to the annotations (mm)"),
        }[self.value]


@parameterNodeWrapper
class ShapePriorSlicerParameterNode:
    """One structure's choices; the same node and names as ShapePriorSlicerLib.parameters."""

    prior: str
    side: Side = Side.auto
    strength: Annotated[float, WithinRange(-2.0, 2.0)] = 0.0
    autoUpdate: bool = True
    coloring: Coloring = Coloring.plain
    opacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.7
    slicesOn: bool = True
    showTemplate: bool = False


# --- widget ---------------------------------------------------------------------------------------


class ShapePriorSlicerWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Buttons to the logic, and the logic's state back to the labels; decides nothing itself."""

    def __init__(self, parent=None):
        # First: without a parent Slicer's constructor calls setup().
        self.logic = None
        self._connectedNode = self._parameterNode = self._guiTag = None
        self._shortcuts = []
        self._tableNodes = []
        self._updating = False
        self._said = {}  # label's name -> (text, whether it is an error), of the user's last action
        VTKObservationMixin.__init__(self)
        ScriptedLoadableModuleWidget.__init__(self, parent)

    # --- life ---------------------------------------------------------------------------------

    def setup(self):
        """Load the panel and connect it."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/ShapePriorSlicer.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = ShapePriorSlicerLogic()
        self.logic.onChanged = self.update
        self._setUpTable()
        self._fillPriors()
        self._connectButtons()
        self._connectSelectors()
        self._fillMenus()
        for event, method in (
            (slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose),
            (slicer.mrmlScene.EndCloseEvent, self.onSceneChanged),
            (slicer.mrmlScene.EndImportEvent, self.onSceneChanged),
        ):
            self.addObserver(slicer.mrmlScene, event, method)
        self.update()
        # A module that is loaded anew while it is open is not entered again.
        if getattr(self.parent, "isEntered", False):
            self.enter()

    def cleanup(self):
        """Slicer ends, or the module is loaded again: the server goes with it."""
        self.removeObservers()
        if self.logic is not None:
            self.logic.close()
        # When Slicer ends, the main window may have gone with its widgets.
        with contextlib.suppress(ValueError):
            self._connectParameters(None)
        self._removeShortcuts()

    def enter(self):
        """The user opened the module."""
        self._addShortcuts()
        self._chooseVolume()
        self.update()

    def exit(self):
        """The user left the module: nothing is placed behind their back."""
        self._removeShortcuts()
        self.logic.workspace.drawing.finish()

    def onSceneStartClose(self, caller, event):
        """The scene goes: let go of its nodes."""
        self._connectParameters(None)

    def onSceneChanged(self, caller, event):
        """Another scene is there."""
        self._chooseVolume()
        self.update()

    # --- connections --------------------------------------------------------------------------

    def _connectButtons(self):
        ui = self.ui
        for view in VIEWS:
            draw = getattr(ui, f"draw{view}Button")
            draw.connect("clicked(bool)", lambda _checked, v=view: self.onDraw(v))
            border = getattr(ui, f"border{view}Button")
            border.connect("clicked(bool)", lambda _checked, v=view: self.onBorder(v))
        for button, role in self._pointButtons():
            button.connect("clicked(bool)", lambda on, r=role: self.onPoints(r, on))
        # Button, what it does, and the label beside it that tells how that went.
        for button, method, label in (
            (ui.exampleButton, self.onExample, "drawingLabel"),
            (ui.newButton, self.onNew, "drawingLabel"),
            (ui.removeButton, self.onRemove, "drawingLabel"),
            (ui.jumpButton, self.onJump, "drawingLabel"),
            (ui.deleteButton, self.onDelete, "drawingLabel"),
            (ui.undoButton, self.onUndo, "drawingLabel"),
            (ui.redoButton, self.onRedo, "drawingLabel"),
            (ui.useCurveButton, self.onUseCurve, "drawingLabel"),
            (ui.reconstructButton, self.onReconstruct, "statusLabel"),
            (ui.refineButton, self.onRefine, "statusLabel"),
            (ui.cancelButton, self.onCancel, "statusLabel"),
            (ui.suggestButton, self.onSuggest, "suggestLabel"),
            (ui.saveSegmentButton, self.onSaveSegment, "exportLabel"),
            (ui.installButton, self.onInstall, "backendLabel"),
            (ui.offlineButton, self.onOffline, "backendLabel"),
            (ui.priorsFolderButton, self.onPriorsFolder, "backendLabel"),
            (ui.testButton, self.onTest, "backendLabel"),
            (ui.logButton, self.onLog, "backendLabel"),
        ):
            button.connect("clicked(bool)", lambda _checked, m=method, b=label: self._guarded(b, m))
        ui.exportStlButton.connect("clicked(bool)", lambda _checked: self.onExport(".stl"))
        ui.exportNrrdButton.connect("clicked(bool)", lambda _checked: self.onExport(".nrrd"))

    def _connectSelectors(self):
        ui = self.ui
        ui.volumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onVolume)
        ui.structureSelector.connect("currentIndexChanged(int)", self.onStructure)
        ui.priorSelector.connect("currentIndexChanged(int)", self.onPrior)
        ui.annotationTable.connect("itemChanged(QTableWidgetItem*)", self.onTableChanged)
        ui.annotationTable.connect("cellDoubleClicked(int,int)", self.onTableDoubleClicked)
        ui.annotationTable.connect("itemSelectionChanged()", self.update)
        ui.nameEdit.connect("editingFinished()", self.onRename)
        ui.remoteRadioButton.connect("toggled(bool)", self.onRemote)
        ui.addressEdit.connect("editingFinished()", self.onRemote)
        ui.tokenEdit.connect("editingFinished()", self.onRemote)
        ui.priorsFolderEdit.connect("editingFinished()", self.onPriorsFolderEdited)
        ui.addressEdit.text = self.logic.remoteAddress()
        ui.priorsFolderEdit.text = self.logic.priorsFolder
        self.logic.onTested = self.onTested

    def _pointButtons(self):
        ui = self.ui
        return (
            (ui.boundaryButton, BOUNDARY),
            (ui.insideButton, INSIDE),
            (ui.outsideButton, OUTSIDE),
            (ui.landmarkButton, TEMPLATE_LANDMARKS),
        )

    def _fillMenus(self):
        self._exportMenu = qt.QMenu(self.ui.exportOtherButton)
        for suffix, name in texts.OTHER_EXPORTS.items():
            action = self._exportMenu.addAction(_(name))
            action.connect("triggered()", lambda s=suffix: self.onExport(s))
        self.ui.exportOtherButton.setMenu(self._exportMenu)
        self._viewMenu = qt.QMenu(self.ui.drawOtherButton)
        self._viewMenu.connect("aboutToShow()", self._fillViewMenu)
        self.ui.drawOtherButton.setMenu(self._viewMenu)

    def _fillViewMenu(self):
        self._viewMenu.clear()
        for node in self.logic.sliceNodes():
            name = node.GetName()
            action = self._viewMenu.addAction(f"{name} ({node.GetOrientation()})")
            action.connect("triggered()", lambda v=name: self.onDraw(v))

    def _addShortcuts(self):
        self._removeShortcuts()
        window = slicer.util.mainWindow()
        if window is None:
            return
        for keys, method, label in (
            ("Ctrl+Z", self.onUndo, "drawingLabel"),
            ("Ctrl+Y", self.onRedo, "drawingLabel"),
            ("Ctrl+Shift+Z", self.onRedo, "drawingLabel"),
            ("D", self.onDrawHere, "drawingLabel"),
            ("Return", self.onAccept, "exportLabel"),
            ("Enter", self.onAccept, "exportLabel"),  # of the number pad
            ("Esc", self.onEscape, "drawingLabel"),
        ):
            shortcut = qt.QShortcut(qt.QKeySequence(keys), window)
            shortcut.autoRepeat = False  # a key that is held is one action
            shortcut.connect("activated()", lambda m=method, b=label: self._guarded(b, m))
            self._shortcuts.append(shortcut)

    def _removeShortcuts(self):
        shortcuts, self._shortcuts = self._shortcuts, []
        for shortcut in shortcuts:
            with contextlib.suppress(ValueError):  # gone with the main window
                shortcut.disconnect("activated()")
                shortcut.setParent(None)

    def _connectParameters(self, session):
        """Tie the panel's parameter widgets to a session's node, or to none."""
        node = None if session is None else session.structure.node
        if node is self._connectedNode:
            return
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
        self._connectedNode, self._parameterNode = node, None
        if node is not None:
            self._parameterNode = ShapePriorSlicerParameterNode(node)
            # Not connectGui(): in some versions it returns no tag to disconnect by.
            self._guiTag = self._parameterNode.connectParametersToGui(self._parameterWidgets())

    def _parameterWidgets(self):
        """Parameter name -> widget, by the property that Qt Designer gave it."""
        named = {w.property("SlicerParameterName"): w for w in self.ui.__dict__.values()}
        return {name: widget for name, widget in named.items() if name}

    # --- actions ------------------------------------------------------------------------------

    def _guarded(self, label, action, *arguments):
        """Do something; a label beside the button says in one sentence how that went.

        Args:
            label: its name in the panel.
            action: returns what to say, if anything.
            arguments: its arguments.
        """
        self._said = {}
        try:
            text, wrong = action(*arguments), False
        except ShapePriorError as error:
            text, wrong = f"{error.what} {error.remedy}", True
        except Exception as error:
            logging.exception("ShapePriorSlicer")
            text, wrong = texts.surpriseText(error), True
        if text:
            self._said = {label: (text, wrong)}
        self.update()

    def onExample(self):
        """Load the bundled case, ready to be drawn on."""
        session = self.logic.beginExample()
        self.ui.volumeSelector.setCurrentNode(session.volume)

    def onNew(self):
        """Begin another structure."""
        self._newSession()

    def onRename(self):
        """The structure's name was edited."""
        session = self.logic.workspace.current
        name = self.ui.nameEdit.text.strip()
        if session is not None and name and name != session.name:
            self._guarded("drawingLabel", self.logic.workspace.rename, session, name)

    def onRemove(self):
        """Delete the structure, after asking: undo cannot bring all of it back."""
        session = self.logic.requireSession()
        question = _("Delete '{name}' with its annotations and its surface?")
        if slicer.util.confirmYesNoDisplay(question.format(name=session.name)):
            self._connectParameters(None)
            self.logic.workspace.remove(session)

    def onDraw(self, view):
        """Draw an outline in a view; a second press ends it."""
        self._guarded("drawingLabel", self._draw, view)

    def _draw(self, view):
        drawing = self.logic.workspace.drawing
        if drawing.isActive and drawing.view == view:
            drawing.finish()
            return
        drawing.outline(self._readySession(), self.logic.sliceNode(view))

    def onDrawHere(self):
        """Draw in the slice view under the mouse."""
        node = self.logic.sliceNodeUnderMouse()
        if node is not None:
            self._draw(node.GetName())

    def onPoints(self, role, on):
        """Begin or end clicking points."""
        self._guarded("drawingLabel", self._points, role, on)

    def _points(self, role, on):
        drawing = self.logic.workspace.drawing
        drawing.finish()
        if on:
            session = self._readySession()
            if role == TEMPLATE_LANDMARKS:
                self.logic.requireTemplate(session)
            drawing.points(session, role)

    def _readySession(self):
        """A session to annotate, made if there is none, once the backend's packages are there."""
        ready = self.logic.ensureBackend()
        session = self.logic.workspace.current or self._newSession()
        if ready:
            session.warmUp()
        else:
            self.ui.backendSection.collapsed = False
        return session

    def _newSession(self):
        volume = self.ui.volumeSelector.currentNode() or self.logic.shownVolume()
        return self.logic.newSession(self._chosenPrior(), volume)

    def onBorder(self, view):
        """Take a segment's border in a view as an outline."""
        self._guarded("drawingLabel", self._border, view)

    def _border(self, view):
        selector = self.ui.segmentSelector
        session = self._readySession()
        self.logic.addBorder(session, selector.currentNode(), selector.currentSegmentID(), view)

    def onUseCurve(self):
        """Take a closed curve of the scene as an outline."""
        self.logic.addCurve(self._readySession(), self.ui.curveSelector.currentNode())

    def onJump(self):
        """Show the selected annotation's slice."""
        node = self._selectedNode()
        if node is not None:
            self.logic.requireSession().jumpTo(node, self.logic.sliceNodes())

    def onDelete(self):
        """Delete the selected annotation."""
        node = self._selectedNode()
        if node is not None:
            self.logic.requireSession().remove(node)

    def onUndo(self):
        """One step back."""
        self.logic.workspace.undo()

    def onRedo(self):
        """One step forth."""
        self.logic.workspace.redo()

    def onAccept(self):
        """Enter: end the outline being drawn; otherwise keep the surface as a segment."""
        focused = slicer.util.mainWindow().focusWidget()
        # Of line edits and of spin boxes, also those of the slice views' own controls.
        if any(hasattr(focused, name) for name in ("selectedText", "cleanText")):
            focused.clearFocus()  # the shortcut took the key from it: this ends the editing
        elif self.logic.workspace.drawing.isActive:
            self.logic.workspace.drawing.finish()
        elif self.logic.hasSurface():
            return self.onSaveSegment()
        return ""

    def onEscape(self):
        """Escape: drop the outline being drawn, or cancel the fit."""
        if self.logic.workspace.drawing.isActive:
            self.logic.workspace.drawing.cancel()
        elif self.logic.workspace.current is not None:
            self.logic.workspace.current.cancel()

    def onReconstruct(self):
        """Fit now."""
        self.logic.workspace.drawing.finish()
        self._readySession().reconstruct()

    def onRefine(self):
        """More effort."""
        self.logic.requireSession().refine()

    def onCancel(self):
        """End the running fit."""
        self.logic.requireSession().cancel()

    def onSuggest(self):
        """Move a view to where an outline would tell most."""
        return self.logic.suggestSlice()

    def onSaveSegment(self):
        """Keep the surface as a segment."""
        segmentation = self.logic.saveSegment(self.ui.segmentationSelector.currentNode())
        self.ui.segmentationSelector.setCurrentNode(segmentation)
        return _("Kept in '{name}'.").format(name=segmentation.GetName())

    def onExport(self, suffix):
        """Ask for a file and write it."""
        self._guarded("exportLabel", self._export, suffix)

    def _export(self, suffix):
        self.logic.requireSurface()
        path = qt.QFileDialog.getSaveFileName(
            slicer.util.mainWindow(),
            _("Export"),
            self.logic.suggestedPath(suffix),
            f"{_(texts.EXPORTS[suffix])} (*{suffix})",
        )
        # PythonQt gives the path alone, other bindings the filter too.
        path = path[0] if isinstance(path, tuple) else path
        if not path:
            return ""
        final = withSuffix(Path(path), suffix)
        # The dialog asked about the name as it was typed.
        question = _("'{name}' exists already. Replace it?").format(name=final.name)
        renamed = final != Path(path) and final.exists()
        if renamed and not slicer.util.confirmYesNoDisplay(question):
            return ""
        return _("Written: {path}").format(path=self.logic.export(str(final), suffix))

    # --- the backend --------------------------------------------------------------------------

    def onRemote(self, *_unused):
        """Local or remote, address or token changed."""
        self._guarded("backendLabel", self._useRemote)

    def _useRemote(self):
        remote = self.ui.remoteRadioButton.checked
        address = self.ui.addressEdit.text.strip() if remote else ""
        self.logic.useRemote(address, self.ui.tokenEdit.text)
        self._fillPriors()
        return _("Enter the server's address.") if remote and not address else ""

    def onPriorsFolder(self):
        """Choose the folder of the user's own priors."""
        folder = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(), _("Folder of your priors"), self.logic.priorsFolder
        )
        return self._usePriors(str(folder)) if folder else ""

    def onPriorsFolderEdited(self):
        """The folder of the user's own priors was typed, or emptied."""
        if self.ui.priorsFolderEdit.text.strip() != self.logic.priorsFolder:
            self._guarded("backendLabel", self._usePriors, self.ui.priorsFolderEdit.text.strip())

    def _usePriors(self, folder):
        try:
            count = self.logic.usePriors(folder)
        finally:
            self.ui.priorsFolderEdit.text = self.logic.priorsFolder
        self._fillPriors()
        return texts.priorsText(count) if folder else ""

    def onTest(self):
        """Ask the server elsewhere for its priors; ``onTested`` tells the answer."""
        self.logic.testRemote(self.ui.addressEdit.text.strip(), self.ui.tokenEdit.text)
        return _("Asking the server ...")

    def onTested(self, text, wrong):
        """The server elsewhere answered, or did not."""
        self._said = {"backendLabel": (text, wrong)}
        self._fillPriors()
        self.update()

    def onInstall(self):
        """Install what is missing."""
        return texts.installedText(self.logic.installBackend())

    def onOffline(self):
        """Install what is missing from a folder of wheels."""
        folder = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(), _("Folder with the wheels"), ""
        )
        return texts.installedText(self.logic.installBackend(str(folder))) if folder else ""

    def onLog(self):
        """Show what the server wrote."""
        lines = self.logic.logLines()
        if not lines:
            return _("The server wrote nothing.")
        slicer.util.infoDisplay(_("The server's last lines"), detailedText="\n".join(lines))
        return ""

    # --- selectors ----------------------------------------------------------------------------

    def onVolume(self, node):
        """Another volume is drawn on."""
        if not self._updating:
            self._guarded("drawingLabel", self.logic.useVolume, node)

    def onStructure(self, index):
        """Another structure."""
        sessions = self.logic.workspace.sessions
        if not self._updating and 0 <= index < len(sessions):
            self._guarded("drawingLabel", self.logic.select, sessions[index])

    def onPrior(self, index):
        """Another organ prior."""
        if not self._updating:
            self._guarded("drawingLabel", self.logic.choosePrior, self._chosenPrior())

    def _chosenPrior(self):
        selector = self.ui.priorSelector
        return str(selector.itemData(selector.currentIndex) or "")

    def _fillPriors(self):
        """Priors by organ; another server may bring others."""
        selector, priors = self.ui.priorSelector, self.logic.priors
        shown = [(selector.itemData(i), selector.itemText(i)) for i in range(selector.count)]
        if shown == [(p.name, p.label) for p in priors]:
            return
        self._updating = True
        chosen = self._chosenPrior()
        selector.clear()
        for prior in priors:
            selector.addItem(prior.label, prior.name)
        selector.setCurrentIndex(max(selector.findData(chosen), 0))
        self._updating = False

    def _chooseVolume(self):
        """Begin with the volume the slice views show; a structure has its own."""
        if self.logic.workspace.current is None and self.ui.volumeSelector.currentNode() is None:
            self.ui.volumeSelector.setCurrentNode(self.logic.shownVolume())

    # --- the table ----------------------------------------------------------------------------

    def _setUpTable(self):
        table = self.ui.annotationTable
        table.setColumnCount(len(texts.COLUMNS))
        table.setHorizontalHeaderLabels([_(name) for name in texts.COLUMNS])
        table.verticalHeader().hide()
        table.verticalHeader().defaultSectionSize = 22
        header = table.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)

    def _updateTable(self, session):
        rows = [] if session is None else session.rows()
        table = self.ui.annotationTable
        if table.rowCount != len(rows):
            table.setRowCount(len(rows))
        self._tableNodes = [row.node for row in rows]
        for index, row in enumerate(rows):
            for column, text in enumerate(texts.cells(row)):
                item = table.item(index, column)
                if item is None:
                    item = qt.QTableWidgetItem()
                    table.setItem(index, column, item)
                if item.text() != text:
                    item.setText(text)
            shown = qt.Qt.Checked if row.visible else qt.Qt.Unchecked
            if table.item(index, 0).checkState() != shown:
                table.item(index, 0).setCheckState(shown)

    def _selectedNode(self):
        row = self.ui.annotationTable.currentRow()
        return self._tableNodes[row] if 0 <= row < len(self._tableNodes) else None

    def onTableChanged(self, item):
        """A check box was clicked: show or hide that annotation."""
        if self._updating or item.column() != 0 or item.row() >= len(self._tableNodes):
            return
        display = self._tableNodes[item.row()].GetDisplayNode()
        if display is not None:
            display.SetVisibility(item.checkState() == qt.Qt.Checked)

    def onTableDoubleClicked(self, row, column):
        """Go to that annotation's slice."""
        self._guarded("drawingLabel", self.onJump)

    # --- state to panel -----------------------------------------------------------------------

    def update(self):
        """Show the logic's state."""
        if self._updating:
            return
        self._updating = True
        try:
            session = self.logic.workspace.current
            self._connectParameters(session)
            self._updateSelectors(session)
            self._updateTable(session)
            self._updateButtons(session)
            self._updateLabels(session)
        finally:
            self._updating = False

    def _updateSelectors(self, session):
        ui = self.ui
        names = [s.name for s in self.logic.workspace.sessions]
        selector = ui.structureSelector
        if [selector.itemText(i) for i in range(selector.count)] != names:
            selector.clear()
            selector.addItems(names)
        if not ui.nameEdit.hasFocus():
            ui.nameEdit.text = "" if session is None else session.name
        if session is None:
            return
        selector.setCurrentIndex(self.logic.workspace.sessions.index(session))
        index = ui.priorSelector.findData(session.parameters.prior)
        if index != ui.priorSelector.currentIndex:
            ui.priorSelector.setCurrentIndex(index)
        if ui.volumeSelector.currentNode() is not session.volume:
            ui.volumeSelector.setCurrentNode(session.volume)

    def _updateButtons(self, session):
        ui, drawing = self.ui, self.logic.workspace.drawing
        exists, surface = session is not None, self.logic.hasSurface()
        busy = exists and session.status.busy
        selected = self._selectedNode() is not None
        remote, missing = ui.remoteRadioButton.checked, self.logic.isMissing()
        for widget, enabled in (
            (ui.nameEdit, exists),
            (ui.removeButton, exists),
            (ui.sideSelector, exists and self.logic.isPaired(session)),
            (ui.autoUpdateCheckBox, exists),
            (ui.strengthSlider, exists),
            (ui.coloringSelector, exists),
            (ui.opacitySlider, exists),
            (ui.slicesOnCheckBox, exists),
            (ui.showTemplateCheckBox, exists),
            (ui.landmarkButton, exists and self.logic.hasTemplate(session)),
            (ui.jumpButton, selected),
            (ui.deleteButton, selected),
            (ui.undoButton, exists and (session.canUndo or drawing.isActive)),
            (ui.redoButton, exists and session.canRedo),
            (ui.reconstructButton, exists and bool(session.rows())),
            (ui.refineButton, surface and not busy),
            (ui.cancelButton, busy),
            (ui.suggestButton, surface),
            (ui.saveSegmentButton, surface),
            (ui.exportStlButton, surface),
            (ui.exportNrrdButton, surface),
            (ui.exportOtherButton, surface),
            (ui.installButton, missing),
            (ui.offlineButton, missing),
            (ui.addressEdit, remote),
            (ui.tokenEdit, remote),
            (ui.testButton, remote),
            (ui.logButton, not remote),
        ):
            widget.enabled = bool(enabled)
        self._updateColorings(session)
        for button, role in self._pointButtons():
            button.checked = drawing.isActive and drawing.role == role
        for view in VIEWS:
            getattr(ui, f"draw{view}Button").checked = drawing.isActive and drawing.view == view
        ui.undoButton.toolTip = texts.undoText(session.history.undoText if exists else "")
        ui.redoButton.toolTip = texts.redoText(session.history.redoText if exists else "")
        ui.progressBar.maximum = 0 if busy else 1  # 0 moves without end

    def _updateColorings(self, session):
        """Only what the surface has can be chosen."""
        selector = self.ui.coloringSelector
        for index, coloring in enumerate(Coloring):
            offered = session is None or coloring.value in session.colorings
            selector.setItemData(index, CHOOSABLE if offered else GRAY, FLAGS_ROLE)

    def _updateLabels(self, session):
        ui, drawing = self.ui, self.logic.workspace.drawing
        ui.priorInfoLabel.text = self.logic.priorDescription(self._chosenPrior())
        ui.figuresLabel.text = texts.figuresText(session)
        ui.deviceLabel.text = self.logic.deviceText()
        for name, (text, wrong) in (
            ("drawingLabel", texts.drawingText(session, drawing)),
            ("statusLabel", texts.statusText(session)),
            ("suggestLabel", ("", False)),
            ("landmarkLabel", texts.landmarksText(session)),
            ("exportLabel", texts.exportText(session)),
            ("backendLabel", (self.logic.problem, True)),
        ):
            self._say(getattr(ui, name), *self._said.get(name, (text, wrong)))

    def _say(self, label, text, wrong):
        label.text = text
        style = WRONG if wrong else ""
        if label.styleSheet != style:
            label.styleSheet = style


# --- logic ----------------------------------------------------------------------------------------


class ShapePriorSlicerLogic(ScriptedLoadableModuleLogic):
    """The workspace of the scene, its timer, and what needs Slicer's application."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self.problem = ""  # what went wrong without the user having done anything
        self.onChanged = None  # called when something changed that the panel shows
        self.onTested = None  # called with the answer to testRemote, and whether it is bad
        self.priorsFolder = (
            slicer.app.userSettings().value("ShapePriorSlicer/PriorsFolder", "") or ""
        )
        self._checkPriors()
        self.priors = listPriors(self.priorsFolder)
        self.remote = ("", "")
        self._installing = False
        self._turnedTo = set()  # structures whose first surface the 3D views were turned to
        self._missing = dependencies.missing()
        self._declined = False
        self._tests = queue.SimpleQueue()  # answers of servers elsewhere
        self._testing = 0
        self.workspace = Workspace(slicer.mrmlScene, self._makeBackend)
        # Slicer's main thread keeps Python's lock: without a running timer the workers that talk
        # to the server would not run at all.
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MILLISECONDS)
        self._timer.connect("timeout()", self._poll)
        self._timer.start()

    def close(self):
        """End the server; the scene keeps everything."""
        self._timer.stop()
        self.workspace.close()

    def _poll(self):
        try:
            changed = self.workspace.poll(LEND_SECONDS)
            self._takeTests()
            self._turnToFirstSurface()
            if changed and self.onChanged is not None:
                self.onChanged()
        except Exception as error:
            # Fifty times a second: once in the log is enough.
            problem = texts.surpriseText(error)
            if problem != self.problem:
                logging.exception("ShapePriorSlicer")
            self.problem = problem

    def _turnToFirstSurface(self):
        """Turn the 3D views to a first surface: Slicer leaves the camera where it was."""
        shown = self.workspace.current if self.hasSurface() else None
        node = None if shown is None else shown.structure.node
        if node is None or node in self._turnedTo:
            self._turnedTo &= {session.structure.node for session in self.workspace.sessions}
            return
        self._turnedTo.add(node)
        layout = slicer.app.layoutManager()
        for index in range(0 if layout is None else layout.threeDViewCount):
            layout.threeDWidget(index).threeDView().resetFocalPoint()

    # --- views and volumes --------------------------------------------------------------------

    def sliceNodes(self):
        """Slice nodes of the views on screen, of all views without a main window."""
        nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode")
        shown = [node for node in nodes if node.IsMappedInLayout()]
        return shown or nodes

    def sliceNode(self, view):
        """The slice node of a view by its name.

        Raises:
            ShapePriorError: it is not on screen, where nobody could draw in it.
        """
        for node in self.sliceNodes():
            if node.GetName() == view:
                return node
        raise ShapePriorError(
            _("The {view} view is not on screen.").format(view=view),
            _("Choose a layout that shows it."),
        )

    def sliceNodeUnderMouse(self):
        """The slice node of the view under the mouse, if any."""
        crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        return None if crosshair is None else crosshair.GetCursorPositionXYZ([0.0, 0.0, 0.0])

    def shownVolume(self):
        """The volume that the slice views show in the background, or the only one."""
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            volume = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
            if volume is not None:
                return volume
        return None

    def loadExample(self):
        """The bundled case's image as a volume shown in the slice views."""
        volume = slicer.util.loadVolume(str(exampleImage()), {"name": "Hippocampus"})
        slicer.util.setSliceViewerLayers(background=volume, fit=True)
        return volume

    def beginExample(self):
        """A structure on the bundled case; the current one if nothing was drawn yet."""
        volume, session = self.loadExample(), self.workspace.current
        if session is None or session.rows():
            return self.newSession(EXAMPLE_PRIOR, volume)
        self.choosePrior(EXAMPLE_PRIOR)
        session.volume = volume
        return session

    def useVolume(self, volume):
        """Draw the current structure on another volume, and show it."""
        session = self.workspace.current
        if session is not None and session.volume is not volume:
            session.volume = volume
        if volume is not None and self.shownVolume() is not volume:
            slicer.util.setSliceViewerLayers(background=volume, fit=True)

    # --- sessions -----------------------------------------------------------------------------

    def newSession(self, prior, volume):
        """A new structure, made current."""
        return self.workspace.create(prior, volume)

    def choosePrior(self, prior):
        """Another organ prior for the current structure, if there is one."""
        if self.workspace.current is not None:
            self.workspace.choosePrior(self.workspace.current, prior)

    def requireSession(self):
        """The current structure.

        Raises:
            ShapePriorError: there is none.
        """
        if self.workspace.current is None:
            raise ShapePriorError(_("There is no structure yet."), _("Draw an outline first."))
        return self.workspace.current

    def select(self, session):
        """Go on with another structure, on the volume it is drawn on."""
        self.workspace.select(session)
        if session.volume is not None:
            self.useVolume(session.volume)

    def hasSurface(self):
        """Whether the current structure has a surface."""
        session = self.workspace.current
        return session is not None and session.reconstruction is not None

    def requireSurface(self):
        """The current structure, with a surface.

        Raises:
            ShapePriorError: it has none.
        """
        session = self.requireSession()
        if session.reconstruction is None:
            raise ShapePriorError(_("There is no surface yet."), _("Reconstruct first."))
        return session

    def hasTemplate(self, session):
        """Whether the template stands beside the organ."""
        return session.template.node is not None and session.parameters.showTemplate

    def requireTemplate(self, session):
        """Show the template, on which landmarks are placed.

        Raises:
            ShapePriorError: it is not there yet.
        """
        if not self.hasTemplate(session):
            raise ShapePriorError(
                _("The template is not shown yet."), _("Show it beside the organ first.")
            )

    def isPaired(self, session):
        """Whether the organ has a left and a right."""
        return any(p.name == session.parameters.prior and p.paired for p in self.priors)

    def priorDescription(self, name):
        """Training data, license and scores of a prior."""
        return next((p.description for p in self.priors if p.name == name), "")

    def addBorder(self, session, segmentation, segmentId, view):
        """A segment's border in a view as an outline.

        Raises:
            ShapePriorError: no segment is chosen, or it has no border there.
        """
        if segmentation is None or not segmentId:
            raise ShapePriorError(_("No segment is chosen."), _("Choose one above the button."))
        session.addSegmentBorder(segmentation, segmentId, self.sliceNode(view))

    def addCurve(self, session, curve):
        """A closed curve of the scene as an outline.

        Raises:
            ShapePriorError: none is chosen, or it cannot be used.
        """
        if curve is None:
            raise ShapePriorError(_("No curve is chosen."), _("Choose one beside the button."))
        session.add(OUTLINE, curve)

    def suggestSlice(self):
        """Move a view to where one more outline would tell most."""
        view, place = self.requireSurface().suggestSlice(self.sliceNodes())
        return _("{view} view: mean uncertainty along the cut {spread:.1f} mm.").format(
            view=view.GetName(), spread=place.uncertaintyMm
        )

    # --- results ------------------------------------------------------------------------------

    def saveSegment(self, segmentation):
        """Keep the surface as a segment; returns the segmentation."""
        return self.requireSurface().keep(segmentation)

    def suggestedPath(self, suffix):
        """Where an export would go, unless the user says otherwise."""
        folder = slicer.app.userSettings().value("ShapePriorSlicer/ExportFolder", "")
        name = self.requireSession().name.replace(" ", "-").lower()
        return str(Path(folder or slicer.app.defaultScenePath) / f"{name}{suffix}")

    def export(self, path, suffix=""):
        """Write the current structure's surface, labelmap or correspondences to a file."""
        written = exportSession(self.requireSurface(), Path(path), suffix)
        slicer.app.userSettings().setValue("ShapePriorSlicer/ExportFolder", str(written.parent))
        return written

    # --- the backend --------------------------------------------------------------------------

    def _makeBackend(self):
        address, token = self.remote
        if address:
            return RemoteBackend(address, token)
        # Without Slicer's own environment PythonSlicer does not find its libraries.
        environment = withPriors(slicer.util.startupEnvironment(), self.priorsFolder)
        return LocalBackend(environment=environment)

    def _checkPriors(self):
        """Say so if the folder of the user's own priors has gone since the last time."""
        try:
            if self.priorsFolder:
                requirePriors(self.priorsFolder)
        except ShapePriorError as error:
            self.problem = f"{error.what} {error.remedy}"

    def usePriors(self, folder):
        """Offer the user's own priors beside the bundled ones; returns how many there are.

        The server on this computer is started anew, and knows them.

        Raises:
            ShapePriorError: there are none in that folder.
        """
        if folder:
            requirePriors(folder)
        self.priorsFolder, self.problem = folder, ""
        slicer.app.userSettings().setValue("ShapePriorSlicer/PriorsFolder", folder)
        if not self.remote[0]:
            self.priors = listPriors(folder)
            self.workspace.useBackend(self._makeBackend)
        return sum(prior.own for prior in listPriors(folder))

    def remoteAddress(self):
        """The address used last; the token is not stored."""
        return slicer.app.userSettings().value("ShapePriorSlicer/RemoteAddress", "") or ""

    def useRemote(self, address, token):
        """Compute on another computer; with an empty address on this one."""
        if (address, token) == self.remote or (not address and not self.remote[0]):
            return
        self.remote = (address, token)
        self._missing = dependencies.missing(bool(address))
        self._declined = False
        if address:
            slicer.app.userSettings().setValue("ShapePriorSlicer/RemoteAddress", address)
        else:
            self.priors = listPriors(self.priorsFolder)
        self.workspace.useBackend(self._makeBackend)

    def testRemote(self, address, token):
        """Ask a server elsewhere for its priors; ``onTested`` is called with the answer.

        Raises:
            ShapePriorError: there is no address.
        """
        if not address:
            raise ShapePriorError(_("There is no address."), _("Enter the server's address."))
        self._testing += 1
        # Not on the main thread: a server that is not there answers after seconds.
        threading.Thread(target=self._test, args=(address, token), daemon=True).start()

    def _test(self, address, token):
        try:
            self._tests.put((address, listRemotePriors(address, token), None))
        except ShapePriorError as error:
            self._tests.put((address, [], error))

    def _takeTests(self):
        if not self._testing:
            return
        try:
            # Waiting lends Python's lock to the thread that asks.
            address, priors, error = self._tests.get(timeout=LEND_SECONDS)
        except queue.Empty:
            return
        self._testing -= 1
        if error is None and address == self.remote[0]:
            self.priors = priors
        if self.onTested is not None:
            self.onTested(*texts.testedText(priors, error))

    def isMissing(self):
        """Whether packages have to be installed before anything can be computed."""
        return bool(self._missing)

    def ensureBackend(self):
        """Ask once to install what is missing; whether everything is there."""
        if not self._missing:
            return True
        return False if self._declined else self.installBackend()

    def installBackend(self, wheels=None):
        """Install what is missing, after asking; whether everything is there then.

        Args:
            wheels: folder to install from without a network.

        Raises:
            ShapePriorError: it could not be installed.
        """
        if self._installing:
            return False  # the panel stays live while pip runs
        dialog, self._installing = _InstallDialog(), True
        try:
            outcome = dependencies.install(
                dialog.ask, dialog.progress, slicer, bool(self.remote[0]), wheels
            )
        finally:
            dialog.close()
            self._installing = False
            self._missing = dependencies.missing(bool(self.remote[0]))
        self._declined = outcome is dependencies.Outcome.CANCELLED
        if outcome is dependencies.Outcome.RESTART and slicer.util.confirmYesNoDisplay(
            _("The PyTorch extension is there after a restart. Save your work first. Restart now?")
        ):
            slicer.util.restart()
        return not self._missing

    def stopServer(self):
        """End the server process; the next fit starts another."""
        self.workspace.useBackend(self._makeBackend)

    def logLines(self):
        """The last lines of the server on this computer."""
        backend = self.workspace.backend
        return backend.logLines() if isinstance(backend, LocalBackend) else []

    def deviceText(self):
        """Where fits are computed, plainly."""
        session = self.workspace.current
        device = "" if session is None else session.status.device
        return texts.deviceText(self.remote[0], device, self._missing)


class _InstallDialog:
    """The one question before packages are installed, and the progress of it."""

    def __init__(self):
        self._dialog = None

    def ask(self, question):
        """Show the question; the answer that was chosen."""
        if slicer.app.testingEnabled():
            return dependencies.CANCEL
        box = qt.QMessageBox(slicer.util.mainWindow())
        box.setWindowTitle(_("Shape Prior Slicer"))
        box.setText(question.text)
        box.setDetailedText("\n".join(question.packages))
        for answer, words in question.choices:
            cancels = answer == dependencies.CANCEL
            box.addButton(
                words, qt.QMessageBox.RejectRole if cancels else qt.QMessageBox.AcceptRole
            )
        box.exec_()
        chosen = box.clickedButton()
        # Qt may have marked a letter of the button's words as its key.
        words = "" if chosen is None else chosen.text.replace("&", "")
        return next((a for a, w in question.choices if w == words), dependencies.CANCEL)

    def progress(self, step):
        """Show how far it is; whether to go on."""
        if self._dialog is None:
            self._dialog = slicer.util.createProgressDialog(
                parent=slicer.util.mainWindow(), windowTitle=_("Installing the backend")
            )
        self._dialog.maximum = step.total
        self._dialog.labelText = step.text
        self._dialog.value = step.done
        slicer.app.processEvents()
        return not self._dialog.wasCanceled

    def close(self):
        """It is over."""
        if self._dialog is not None:
            self._dialog.close()


# --- self test ------------------------------------------------------------------------------------


class ShapePriorSlicerTest(ScriptedLoadableModuleTest):
    """The whole job on the bundled case, in a real Slicer with a real server process."""

    SECONDS = 120.0  # until a step that hangs is given up

    def setUp(self):
        """An empty scene, and the logic of the module's own panel."""
        slicer.mrmlScene.Clear(0)
        self.logic = slicer.util.getModuleWidget("ShapePriorSlicer").logic

    def runTest(self):
        """All tests."""
        self.setUp()
        try:
            self.test_outlinesToFiles()
        finally:
            self.logic.stopServer()

    def test_outlinesToFiles(self):
        """Three outlines to a surface, exported, undone, saved and loaded again."""
        session = self._reconstructed()
        folder = Path(slicer.util.tempDirectory())
        self.delayDisplay("Comparing with the truth")
        self.assertGreater(self._dice(folder / "hippocampus.nrrd"), 0.9)
        surface = slicer.util.loadModel(str(self.logic.export(folder / "hippocampus.stl")))
        mine = slicer.util.arrayFromModelPoints(session.model.node)
        self.assertLess(_farthest(slicer.util.arrayFromModelPoints(surface), mine), 0.01)
        segmentation = self.logic.saveSegment(None)
        # The hippocampus, its anterior and its posterior part.
        self.assertEqual(segmentation.GetSegmentation().GetNumberOfSegments(), 3)
        self._undoAndRedo(session)
        self._saveAndReload(folder / "scene.mrb", mine.copy())
        self.delayDisplay("All passed")

    def _reconstructed(self):
        self.delayDisplay("Three outlines of the bundled case")
        volume = self.logic.loadExample()
        session = self.logic.newSession(EXAMPLE_PRIOR, volume)
        for name in OUTLINES:
            session.add(OUTLINE, slicer.util.loadMarkups(str(exampleOutline(name))))
            session.save()  # one step of undo for each
        self._wait(lambda: session.status.phase in ("done", "failed") and not session.isActive())
        self.assertEqual(session.status.phase, "done", session.status.text)
        self.assertGreater(session.figures.volumeMl, 1.0)
        return session

    def _dice(self, path):
        self.logic.export(path)
        found = slicer.util.arrayFromVolume(slicer.util.loadLabelVolume(str(path))) > 0
        truth = slicer.util.arrayFromVolume(slicer.util.loadLabelVolume(str(exampleTruth()))) > 0
        return 2.0 * (found & truth).sum() / (found.sum() + truth.sum())

    def _undoAndRedo(self, session):
        self.delayDisplay("Undo and redo")
        self.assertEqual(self.logic.workspace.undo(), "Save as segment")
        self.assertEqual(self.logic.workspace.undo(), "Draw outline")
        self.assertEqual(len(session.outlines()), len(OUTLINES) - 1)
        self.assertEqual(self.logic.workspace.redo(), "Draw outline")
        self.assertEqual(len(session.outlines()), len(OUTLINES))
        self._wait(lambda: not session.isActive())

    def _saveAndReload(self, path, points):
        self.delayDisplay("Saving and loading the scene")
        self.assertTrue(slicer.util.saveScene(str(path)))
        slicer.mrmlScene.Clear(0)
        self.assertEqual(self.logic.workspace.sessions, [])
        slicer.util.loadScene(str(path))
        session = self.logic.workspace.current
        self.assertEqual(len(session.outlines()), len(OUTLINES))
        self.assertTrue(session.canUndo)
        again = slicer.util.arrayFromModelPoints(session.model.node)
        self.assertLess(_farthest(again, points), 0.01)

    def _wait(self, condition):
        end = time.monotonic() + self.SECONDS
        while not condition():
            self.assertLess(time.monotonic(), end, "waited for too long")
            slicer.app.processEvents()
            time.sleep(0.01)


def _farthest(points, others):
    """Largest distance from one of (N, 3) points to the nearest of (M, 3) others, mm."""
    from scipy.spatial import cKDTree

    return cKDTree(others).query(points)[0].max()
