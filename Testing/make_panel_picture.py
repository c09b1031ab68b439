"""Redo the picture of the module's panel in the documentation, without 3D Slicer.

    make tutorial

The panel is the real one, with the bundled case reconstructed; its widgets are those of the
stand-in in Testing/ShapePriorSlicer/desktop.py, so that Slicer's own look a little different.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "Testing" / "ShapePriorSlicer"))

PICTURE = REPOSITORY / "Resources" / "Documentation" / "tutorial" / "panel.png"
WIDTH, HEIGHT = 400, 490


def main() -> None:
    """Reconstruct the bundled case in the panel and keep a picture of it."""
    from desktop import Desktop, click
    from ShapePriorSlicerLib.files.sample_data import OUTLINES, exampleOutline
    from ShapePriorSlicerLib.scene.structure import OUTLINE, VIEW_ATTRIBUTE

    desktop = Desktop()
    try:
        widget = desktop.load()
        click(widget.ui.exampleButton)
        session = widget.logic.workspace.current
        import slicer

        for name, view in zip(OUTLINES, ("Red", "Green", "Yellow"), strict=True):
            curve = slicer.util.loadMarkups(str(exampleOutline(name)))
            curve.SetName(f"Hippocampus {name}")
            curve.SetAttribute(VIEW_ATTRIBUTE, view)
            session.add(OUTLINE, curve)
        desktop.wait(lambda: session.status.phase == "done" and not session.isActive())
        desktop.window.resize(WIDTH, HEIGHT)
        desktop.window.show()
        widget.panel.update()
        desktop.wait(lambda: not widget.logic.workspace.isBusy())
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        desktop.panel.grab().save(str(PICTURE))
    finally:
        desktop.close()


if __name__ == "__main__":
    main()
