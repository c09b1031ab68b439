"""The module's self test in a real Slicer, which ends with 0 if it passed and with 1 otherwise.

    Slicer --no-splash --python-script Testing/run_in_slicer.py

With ``--testing`` no window waits for an answer; ``--no-main-window`` works too. A module that is
not installed is loaded from this checkout. The packages of the backend have to be there.
"""

import sys
import time
import traceback
from pathlib import Path

import qt
import slicer

MODULE = Path(__file__).resolve().parents[1] / "ShapePriorSlicer" / "ShapePriorSlicer.py"


def loadModule():
    """Load the module unless Slicer has it.

    Raises:
        RuntimeError: it cannot be loaded.
    """
    if hasattr(slicer.modules, MODULE.stem.lower()):
        return
    # For its library, and for the import below.
    sys.path.insert(0, str(MODULE.parent))
    factory = slicer.app.moduleManager().factoryManager()
    factory.registerModule(qt.QFileInfo(str(MODULE)))
    factory.loadModules([MODULE.stem])
    if not hasattr(slicer.modules, MODULE.stem.lower()):
        raise RuntimeError(f"{MODULE} could not be loaded; Slicer's log says why.")


def runTest():
    """Load the module, show it where there is a window, and test it."""
    loadModule()
    if slicer.util.mainWindow() is not None:
        slicer.util.selectModule(MODULE.stem)
    from ShapePriorSlicer import ShapePriorSlicerTest

    ShapePriorSlicerTest().runTest()


def main():
    """Test, say in one line how it went, and end Slicer."""
    began, code = time.monotonic(), 0
    try:
        runTest()
    except Exception:
        # An exception that leaves the script would leave Slicer open.
        traceback.print_exc()
        code = 1
    told = "failed" if code else "passed"
    print(f"ShapePriorSlicer self test {told} in {time.monotonic() - began:.0f} s.", flush=True)
    slicer.util.exit(code)


main()
