"""What the module does, without torch; Qt comes only into the panel, inside functions."""

import sys
from pathlib import Path

try:
    import model_server  # noqa: F401
except ModuleNotFoundError:
    # A checkout on Slicer's additional module paths: the backend lies beside the module's folder.
    sys.path.append(str(Path(__file__).resolve().parent.parent.parent))
