"""Whether this machine can draw views without a display."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache

from model_server.errors import ShapePriorError

SECONDS = 60.0
THREADS = "2"
PROBE = """
import vtkmodules.vtkRenderingOpenGL2
from vtkmodules.vtkRenderingCore import vtkRenderer, vtkRenderWindow
window = vtkRenderWindow()
window.SetOffScreenRendering(1)
window.AddRenderer(vtkRenderer())
window.Render()
"""


def shareProcessor() -> None:
    """Draw in software on few threads, before the first view is made: fits need the others."""
    os.environ.setdefault("LP_NUM_THREADS", THREADS)


@lru_cache(maxsize=1)
def canRender() -> bool:
    """Try it in a child process: VTK does not come back from a missing EGL library."""
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def requireRendering() -> None:
    """Refuse to go on where views cannot be drawn.

    Raises:
        ShapePriorError: (no-rendering) OpenGL is missing.
    """
    if not canRender():
        raise ShapePriorError(
            "This machine cannot draw the views.",
            "Install OpenGL for machines without a display; on Debian and Ubuntu: "
            "apt-get install libegl1 libgl1-mesa-dri",
            "no-rendering",
        )
