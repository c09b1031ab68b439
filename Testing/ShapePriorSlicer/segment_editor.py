"""A stand-in for the Segment Editor's widget: what effects see of it, on Slicer's own logic of the
editor (vtkSlicerSegmentEditorLogic), which masks, overwrites and undoes.

Imitated as in Modules/Loadable/Segmentations/EditorEffects, qSlicerSegmentEditorScriptedEffect.cxx
and qSlicerSegmentEditorAbstractEffect.h. What it does not prove: that the real widget calls effects
at these moments, and how their options look.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import slicer
from PySide6 import QtWidgets
from python_qt import unwrap

EFFECTS, BASE = "qSlicerSegmentationsEditorEffectsPythonQt", "SegmentEditorEffects"
ABSTRACT = "qSlicerSegmentEditorAbstractEffect"


class qSlicerSegmentEditorScriptedEffect:
    """One effect of one editor, or the one that is registered."""

    registered: ClassVar[dict[str, Any]] = {}

    def __init__(self, parent: Any) -> None:
        self.name, self.perSegment, self.requireSegments = "", True, True
        self.frame = QtWidgets.QFrame()
        self.form = QtWidgets.QFormLayout(self.frame)
        self.editor: SegmentEditor | None = None
        self._active = False
        self._self: Any = None

    def setPythonSource(self, path: str) -> bool:
        """The file becomes the module that has its folder's name."""
        name, className = Path(path).parent.name, Path(path).stem
        assert className.endswith("Effect")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._self = getattr(module, className)(self)
        return True

    def self(self) -> Any:
        """The Python object."""
        return self._self

    def active(self) -> bool:
        """Whether it is the chosen one."""
        return self._active

    def parameterSetNode(self) -> Any:
        """Of the editor; None of the one that is registered."""
        return None if self.editor is None else self.editor.node

    def addOptionsWidget(self, widget: Any) -> None:
        """One more line of options: a widget or a layout."""
        self.form.addRow(unwrap(widget))

    def addLabeledOptionsWidget(self, label: str, widget: Any) -> None:
        """The same with a label."""
        self.form.addRow(label, unwrap(widget))

    def saveStateForUndo(self) -> None:
        """Asks the editor."""
        assert self.editor.logic.SaveStateForUndo()

    def modifySegmentByLabelmap(
        self,
        segmentation: Any,
        segmentId: str,
        labelmap: Any,
        mode: int,
        bypassMasking: bool = False,
    ) -> None:
        """As the editor's masking says."""
        logic = self.editor.logic
        logic.UpdateMaskLabelmap()
        logic.UpdateAlignedSourceVolume()
        logic.ModifySegmentByLabelmap(
            segmentation, segmentId, labelmap, mode, self.perSegment, bypassMasking
        )


class AbstractScriptedSegmentEditorEffect:
    """Base of scripted effects."""

    def __init__(self, scriptedEffect: Any) -> None:
        self.scriptedEffect = scriptedEffect

    def register(self) -> None:
        """Every editor that is made later has a clone."""
        qSlicerSegmentEditorScriptedEffect.registered[self.scriptedEffect.name] = (
            self.scriptedEffect
        )


class SegmentEditor:
    """The widget: one parameter set, clones of the effects that are registered."""

    def __init__(self, scene: Any, segmentation: Any, volume: Any) -> None:
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self.logic.SetMRMLScene(scene)
        self.node = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.logic.SetSegmentEditorNode(self.node)
        self.node.SetAndObserveSegmentationNode(segmentation)
        self.node.SetAndObserveSourceVolumeNode(volume)
        self.effects = {}
        for name, effect in qSlicerSegmentEditorScriptedEffect.registered.items():
            clone = effect.self().clone()
            clone.editor = self
            clone.self().setupOptionsFrame()
            clone.self().setMRMLDefaults()
            self.effects[name] = clone
        self.active: Any = None

    def setActiveEffect(self, name: str) -> Any:
        """Another effect, or none; returns its Python object."""
        if self.active is not None:
            self.active._active = False
            self.active.self().deactivate()
        self.active = self.effects.get(name)
        if self.active is None:
            return None
        self.active._active = True
        self.active.self().updateGUIFromMRML()
        self.active.self().activate()
        self.active.frame.show()
        return self.active.self()

    def select(self, segmentId: str) -> None:
        """Another segment."""
        self.node.SetSelectedSegmentID(segmentId)
        if self.active is not None:
            self.active.self().updateGUIFromMRML()

    def close(self) -> None:
        """It is deleted."""
        for effect in self.effects.values():
            effect.self().cleanup()
            effect.frame.deleteLater()


def putModules() -> None:
    """Where effects look for them."""
    effects, base = types.ModuleType(EFFECTS), types.ModuleType(BASE)
    effects.qSlicerSegmentEditorScriptedEffect = qSlicerSegmentEditorScriptedEffect
    base.AbstractScriptedSegmentEditorEffect = AbstractScriptedSegmentEditorEffect
    sys.modules |= {EFFECTS: effects, BASE: base}
    logic = slicer.vtkSlicerSegmentEditorLogic
    abstract = types.SimpleNamespace(ModificationModeSet=logic.ModificationModeSet)
    setattr(slicer, ABSTRACT, abstract)
    qSlicerSegmentEditorScriptedEffect.registered.clear()
