"""The Segment Editor's effect "Shape prior" as Slicer loads it; what it does is in
ShapePriorSlicerLib.

It has a folder of its own: ``qSlicerSegmentEditorScriptedEffect::setPythonSource`` loads a file as
the Python module that has its folder's name, and takes the class that has the file's.
"""

from pathlib import Path

import qSlicerSegmentationsEditorEffectsPythonQt as effects
import qt
import slicer
from SegmentEditorEffects import AbstractScriptedSegmentEditorEffect
from ShapePriorSlicerLib.panel.effect_panel import EffectPanel
from slicer.i18n import tr as _

FILE = Path(__file__).resolve()
ICON = FILE.parent.parent / "Resources" / "Icons" / "ShapePriorSlicer.png"


def moduleLogic():
    """The module's own logic, so that effect and module share their sessions."""
    return slicer.util.getModuleWidget("ShapePriorSlicer").logic


class ShapePriorEffect(AbstractScriptedSegmentEditorEffect):
    """Completes a segment that is painted on a few slices, by a learned prior of its organ."""

    def __init__(self, scriptedEffect):
        scriptedEffect.name = "Shape prior"
        scriptedEffect.perSegment = True
        scriptedEffect.requireSegments = True
        AbstractScriptedSegmentEditorEffect.__init__(self, scriptedEffect)
        self.panel = None

    def clone(self):
        """Another one, for another editor."""
        cloned = effects.qSlicerSegmentEditorScriptedEffect(None)
        cloned.setPythonSource(FILE.as_posix())
        return cloned

    def icon(self):
        """In the list of effects."""
        return qt.QIcon(str(ICON))

    def helpText(self):
        """Below the list of effects."""
        return _(
            "Paint or draw an organ on two or three slices, best at right angles: a learned shape "
            "prior completes it, in the preview, and follows every stroke.<p>Choose the organ, "
            "press Initialize, go on with Paint, Draw or Erase, and Apply. A whole segment is "
            "mended. For research, not for clinical use.</p>"
        )

    def setupOptionsFrame(self):
        """Make the options."""
        self.panel = EffectPanel(self.scriptedEffect, moduleLogic)

    def createCursor(self, widget):
        """The usual one: nothing is drawn with this effect."""
        return slicer.util.mainWindow().cursor

    def setMRMLDefaults(self):
        """It has no parameters: what is chosen is the structure's."""

    def activate(self):
        """The user chose it."""
        self.panel.activate()

    def deactivate(self):
        """The user chose another one."""
        self.panel.deactivate()

    def cleanup(self):
        """It is deleted."""
        if self.panel is not None:
            self.panel.deactivate()

    def updateGUIFromMRML(self):
        """Another segment, segmentation or volume was chosen."""
        if self.panel is not None and self.scriptedEffect.active():
            self.panel.update()

    def updateMRMLFromGUI(self):
        """Widgets tell by themselves."""
