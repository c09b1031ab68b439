"""The options of the Segment Editor's effect: its widgets, tied to the painter.

Calls of Slicer's ``qSlicerSegmentEditorScriptedEffect`` are those of its base class in
Modules/Loadable/Segmentations/EditorEffects/qSlicerSegmentEditorAbstractEffect.h, those of its
parameter set node of Modules/Loadable/Segmentations/MRML/vtkMRMLSegmentEditorNode.h. The buttons'
words and order are those of the same folder's AbstractScriptedSegmentEditorAutoCompleteEffect.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from model_server.errors import ShapePriorError

from ..scene.segment_preview import opacityOf, previewOf, setOpacity
from ..session.segment_painting import SegmentPainting
from . import texts
from .logic import PanelLogic
from .section import WRONG
from .translation import tr as _

Node = Any
Effect = Any  # qSlicerSegmentEditorScriptedEffect


class EffectEditor:
    """The editor that the effect belongs to: segments change by its settings.

    Editable area, intensity range and what is overwritten are obeyed by
    ``modifySegmentByLabelmap`` itself.

    Args:
        effect: of the editor.
    """

    def __init__(self, effect: Effect) -> None:
        self._effect = effect

    @property
    def allowsOverlap(self) -> bool:
        """Whether segments may share voxels: "Allow overlap" in the editor's masking."""
        node = self._effect.parameterSetNode()
        return bool(node.GetOverwriteMode() == node.OverwriteNone)

    def saveStateForUndo(self) -> None:
        """Make what follows one step of the editor's undo."""
        self._effect.saveStateForUndo()

    def modify(self, segmentation: Node, segmentId: str, labelmap: Any) -> None:
        """Set a segment to these voxels, within what may be edited."""
        import slicer

        node = self._effect.parameterSetNode()
        chosen = node.GetSelectedSegmentID()
        # The editable area is told for the selected segment.
        if chosen != segmentId:
            node.SetSelectedSegmentID(segmentId)
        mode = slicer.qSlicerSegmentEditorAbstractEffect.ModificationModeSet
        self._effect.modifySegmentByLabelmap(segmentation, segmentId, labelmap, mode)
        if chosen != segmentId:
            node.SetSelectedSegmentID(chosen)


class EffectPanel:
    """What the user sees of the effect.

    Args:
        effect: of Slicer.
        logic: gives the module's own logic; it is made when it is first needed.
    """

    def __init__(self, effect: Effect, logic: Callable[[], PanelLogic]) -> None:
        import ctk
        import qt

        self._effect, self._makeLogic = effect, logic
        self._logic: PanelLogic | None = None
        self._said: tuple[str, bool] = ("", False)
        self._picked: dict[tuple[str, str], str] = {}  # priors of segments that are not previewed
        self._updating = False
        self.priorSelector = qt.QComboBox()
        self.priorSelector.toolTip = _("Which organ it is.")
        self.sliceList = qt.QListWidget()
        self.sliceList.toolTip = _("Painted slices that count as outlines; others lie inside.")
        self.sliceList.maximumHeight = 120
        self.autoUpdateCheckBox = qt.QCheckBox(_("Auto-update"))
        self.autoUpdateCheckBox.toolTip = _("Bring the preview up to date after every stroke.")
        self.autoUpdateCheckBox.checked = True
        self.previewButton = qt.QPushButton(_("Initialize"))
        self.previewButton.toolTip = _("Preview the whole organ.")
        self.allButton = qt.QPushButton(_("All segments"))
        self.allButton.toolTip = _("Preview every visible segment, each with its own prior.")
        self.opacitySlider = ctk.ctkSliderWidget()
        self.opacitySlider.minimum, self.opacitySlider.maximum = 0.0, 1.0
        self.opacitySlider.singleStep = 0.05
        self.opacitySlider.spinBoxVisible = False
        self.show3DButton = qt.QPushButton(_("Show 3D"))
        self.show3DButton.checkable = True
        self.show3DButton.checked = True
        self.changeCheckBox = qt.QCheckBox(_("Show changes"))
        self.changeCheckBox.toolTip = _(
            "Color the surface by how far it lies off the segment as it was: red where the border "
            "moved outward, blue where it moved inward, in mm."
        )
        self.stateLabel = qt.QLabel()
        self.stateLabel.wordWrap = True
        self.stateLabel.textFormat = qt.Qt.PlainText
        self.cancelButton = qt.QPushButton(_("Cancel"))
        self.cancelButton.toolTip = _("Clear the preview; the segment stays as it is.")
        self.applyButton = qt.QPushButton(_("Apply"))
        self.applyButton.toolTip = _("Fill the segment with what is previewed.")
        self._layOut()
        self._connect()

    # --- widgets ------------------------------------------------------------------------------

    def _layOut(self) -> None:
        import qt

        effect = self._effect
        effect.addLabeledOptionsWidget(_("Prior:"), self.priorSelector)
        effect.addLabeledOptionsWidget(_("Slices:"), self.sliceList)
        for label, widgets in (
            (_("Preview:"), (self.autoUpdateCheckBox, self.previewButton, self.allButton)),
            (
                _("Display:"),
                (
                    qt.QLabel(_("inputs")),
                    self.opacitySlider,
                    qt.QLabel(_("results")),
                    self.show3DButton,
                ),
            ),
        ):
            effect.addLabeledOptionsWidget(label, _row(widgets))
        effect.addLabeledOptionsWidget(_("Repair:"), self.changeCheckBox)
        effect.addOptionsWidget(self.stateLabel)
        effect.addOptionsWidget(_row((self.cancelButton, self.applyButton)))

    def _connect(self) -> None:
        for button, action in (
            (self.previewButton, self.preview),
            (self.allButton, self.previewAll),
            (self.cancelButton, self.cancel),
            (self.applyButton, self.apply),
        ):
            button.connect("clicked(bool)", lambda _checked, a=action: self._guarded(a))
        self.autoUpdateCheckBox.connect("clicked(bool)", self._onAutoUpdate)
        self.show3DButton.connect("clicked(bool)", self._onShow3D)
        self.changeCheckBox.connect("clicked(bool)", self._onShowChange)
        self.opacitySlider.connect("valueChanged(double)", self._onOpacity)
        self.priorSelector.connect("currentIndexChanged(int)", self._onPrior)
        self.sliceList.connect("itemChanged(QListWidgetItem*)", self._onSlice)

    # --- the editor ---------------------------------------------------------------------------

    @property
    def logic(self) -> PanelLogic:
        """The module's."""
        if self._logic is None:
            self._logic = self._makeLogic()
        return self._logic

    @property
    def segmentation(self) -> Node | None:
        """That is edited."""
        node = self._effect.parameterSetNode()
        return None if node is None else node.GetSegmentationNode()

    @property
    def segmentId(self) -> str:
        """Of the chosen segment."""
        node = self._effect.parameterSetNode()
        return "" if node is None else str(node.GetSelectedSegmentID() or "")

    @property
    def volume(self) -> Node | None:
        """The editor's source volume."""
        node = self._effect.parameterSetNode()
        return None if node is None else node.GetSourceVolumeNode()

    @property
    def painting(self) -> SegmentPainting | None:
        """Of the chosen segment, while it is previewed."""
        return self.logic.painter.painting(self.segmentation, self.segmentId)

    def activate(self) -> None:
        """The effect was chosen: from now on it shows what happens."""
        if self.update not in self.logic.painter.listeners:
            self.logic.painter.listeners.append(self.update)
        self.update()

    def deactivate(self) -> None:
        """Another was chosen: what is previewed goes on following."""
        if self._logic is not None and self.update in self._logic.painter.listeners:
            self._logic.painter.listeners.remove(self.update)

    # --- actions ------------------------------------------------------------------------------

    def preview(self) -> None:
        """Complete the chosen segment, or bring its preview up to date."""
        if not self.logic.server.ensure():
            raise ShapePriorError(_("Not installed."), _("Install the packages first."))
        prior = self._picked.pop(self._place, "")
        try:
            self.logic.painter.begin(self.segmentation, self.segmentId, self.volume, prior)
        finally:
            self._onAutoUpdate(self.autoUpdateCheckBox.checked)

    @property
    def _place(self) -> tuple[str, str]:
        segmentation = self.segmentation
        return ("" if segmentation is None else segmentation.GetID(), self.segmentId)

    def previewAll(self) -> str:
        """Complete every visible segment; tells how many were left out."""
        if not self.logic.server.ensure():
            raise ShapePriorError(_("Not installed."), _("Install the packages first."))
        ids = self._visibleIds()
        found = self.logic.painter.beginAll(self.segmentation, ids, self.volume)
        self._onAutoUpdate(self.autoUpdateCheckBox.checked)
        left = len(ids) - len(found)
        return _("{count} of {all} visible segments were left out: they are empty.").format(
            count=left, all=len(ids)
        ) if left else ""  # fmt: skip

    def _visibleIds(self) -> list[str]:
        segmentation = self.segmentation
        if segmentation is None:
            return []
        display = segmentation.GetDisplayNode()
        ids = [str(found) for found in segmentation.GetSegmentation().GetSegmentIDs()]
        return [i for i in ids if display is None or display.GetSegmentVisibility(i)]

    def cancel(self) -> None:
        """Clear the preview."""
        self.logic.painter.cancel(self.segmentation)

    def apply(self) -> None:
        """Fill what is previewed."""
        self.logic.painter.apply(self.segmentation, EffectEditor(self._effect))

    def _guarded(self, action: Callable[[], str | None]) -> None:
        """Do something; the label says in one sentence how that went."""
        try:
            self._said = (action() or "", False)
        except ShapePriorError as error:
            self._said = (f"{error.what} {error.remedy}", True)
        except Exception as error:
            logging.exception("ShapePriorSlicer")
            self._said = (texts.surpriseText(error), True)
        self.update(False)

    def _onAutoUpdate(self, on: bool) -> None:
        self.logic.painter.setAutoUpdate(self.segmentation, bool(on))

    def _onShow3D(self, on: bool) -> None:
        for painting in self.logic.painter.paintings(self.segmentation):
            painting.show3D(bool(on))

    def _onShowChange(self, on: bool) -> None:
        for painting in self.logic.painter.paintings(self.segmentation):
            if painting.canShowChange:
                painting.showChange(bool(on))

    def _onOpacity(self, value: float) -> None:
        if not self._updating and self.segmentation is not None:
            setOpacity(self.segmentation, float(value))

    def _onPrior(self, index: int) -> None:
        prior, painting = self._chosenPrior(), self.painting
        if self._updating or not prior:
            return
        if painting is None:
            self._picked[self._place] = prior
        else:
            self._guarded(lambda: painting.session.change(prior=prior))

    def _onSlice(self, item: Any) -> None:
        import qt

        painting = self.painting
        if self._updating or painting is None:
            return
        row = self.sliceList.row(item)
        if 0 <= row < len(painting.marks):
            isMeant = item.checkState() == qt.Qt.Checked
            painting.setMeant(painting.marks[row].key, isMeant)

    def _chosenPrior(self) -> str:
        selector = self.priorSelector
        return str(selector.itemData(selector.currentIndex) or "")

    # --- state --------------------------------------------------------------------------------

    def update(self, isNews: bool = True) -> None:
        """Show how the chosen segment stands.

        Args:
            isNews: whether something happened that makes what was said of the last action old.
        """
        if self._updating:
            return
        self._updating = True
        try:
            painting = self.painting
            if isNews and painting is not None:
                self._said = ("", False)
            self._showPrior(painting)
            self._showSlices(painting)
            self._showState(painting)
        finally:
            self._updating = False

    def _showPrior(self, painting: SegmentPainting | None) -> None:
        selector, priors = self.priorSelector, self.logic.server.priors
        shown = [(selector.itemData(i), selector.itemText(i)) for i in range(selector.count)]
        if shown != [(p.name, p.label) for p in priors]:
            selector.clear()
            for prior in priors:
                selector.addItem(prior.label, prior.name)
        wanted = self._priorOf(painting)
        index = selector.findData(wanted)
        if wanted and index != selector.currentIndex:
            selector.setCurrentIndex(index)

    def _priorOf(self, painting: SegmentPainting | None) -> str:
        if painting is not None:
            return painting.session.parameters.prior
        segmentation = self.segmentation
        if segmentation is None:
            return ""
        if segmentation.GetSegmentation().GetSegment(self.segmentId) is None:
            return ""
        picked = self._picked.get(self._place)
        return picked or self.logic.painter.priorFor(segmentation, self.segmentId)

    def _showSlices(self, painting: SegmentPainting | None) -> None:
        import qt

        marks, shown = () if painting is None else painting.marks, self.sliceList
        isNew = [shown.item(i).text() for i in range(shown.count)] != [m.name for m in marks]
        if isNew:
            shown.clear()
            for mark in marks:
                shown.addItem(mark.name)
        for row, mark in enumerate(marks):
            state = qt.Qt.Checked if mark.isMeant else qt.Qt.Unchecked
            if isNew or shown.item(row).checkState() != state:
                shown.item(row).setCheckState(state)  # the first one brings the box
        shown.setVisible(bool(marks))

    def _showState(self, painting: SegmentPainting | None) -> None:
        segmentation, painter = self.segmentation, self.logic.painter
        paintings = painter.paintings(segmentation)
        self.previewButton.text = _("Initialize") if painting is None else _("Update")
        hasPreview = segmentation is not None and previewOf(segmentation) is not None
        self.applyButton.enabled = any(found.hasResult for found in paintings)
        self.cancelButton.enabled = bool(paintings)
        self.opacitySlider.enabled = hasPreview
        self.show3DButton.enabled = hasPreview
        if hasPreview:
            self.opacitySlider.value = opacityOf(segmentation)
        if painting is not None:
            self.autoUpdateCheckBox.checked = painting.session.parameters.autoUpdate
        self.changeCheckBox.enabled = any(found.canShowChange for found in paintings)
        self.changeCheckBox.checked = any(
            found.canShowChange and found.showsChange for found in paintings
        )
        text, wrong = self._said
        if not text and painting is not None:
            text, wrong = painting.text
        self.stateLabel.text = text
        style = WRONG if wrong else ""
        if self.stateLabel.styleSheet != style:
            self.stateLabel.styleSheet = style


def _row(widgets: tuple[Any, ...]) -> Any:
    """A layout of widgets side by side."""
    import qt

    layout = qt.QHBoxLayout()
    for widget in widgets:
        layout.addWidget(widget)
    return layout
