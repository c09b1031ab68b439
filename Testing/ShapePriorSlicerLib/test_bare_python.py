"""The module opens in a Slicer that has nothing but what Slicer brings."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY = REPOSITORY / "ShapePriorSlicer" / "ShapePriorSlicerLib"
MODULES = sorted(
    ".".join(path.relative_to(LIBRARY).with_suffix("").parts) for path in LIBRARY.rglob("[a-z]*.py")
)
BROUGHT = {"slicer", "vtk", "SimpleITK", "numpy", "scipy"} | set(sys.stdlib_module_names)
OURS = {"model_server", "ShapePriorSlicerLib"}
# All else that could be installed here: importing any of it fails in the child process.
CODE = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in BLOCKED:
            raise ImportError(f"'{name}' is not in Slicer")

sys.meta_path.insert(0, Refuse())
for name in MODULES:
    importlib.import_module("ShapePriorSlicerLib." + name)
opened = {name.split(".")[0] for name in sys.modules}
assert not opened & SLOW, opened & SLOW
from ShapePriorSlicerLib.server.priors import listPriors
found = listPriors()
assert any(p.name == "kidney-dals" and p.paired for p in found), found
assert all(p.licence and p.trainingData for p in found), found
from ShapePriorSlicerLib.session.workspace import Workspace
import slicer
scene = slicer.vtkMRMLScene()
workspace = Workspace(scene)
workspace.create("hippocampus-dals")
workspace.poll()
workspace.close()
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & BLOCKED, loaded & BLOCKED
"""
BLOCKED = {
    "torch", "msgpack", "websockets", "trimesh", "skimage", "fastapi", "uvicorn", "safetensors",
    "gpytoolbox", "shapely", "typer", "rich", "matplotlib", "starlette", "pydantic", "psutil", "qt",
}  # fmt: skip


SLOW = {"scipy", "SimpleITK"}  # which Slicer has, but starts without


def test_the_library_needs_nothing_that_slicer_lacks():
    code = f"BLOCKED, MODULES, SLOW = {BLOCKED!r}, {MODULES!r}, {SLOW!r}\n{CODE}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY / "ShapePriorSlicer",
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", MODULES)
def test_at_file_scope_only_what_slicer_brings_is_imported(name):
    tree = ast.parse((LIBRARY / f"{name.replace('.', '/')}.py").read_text())
    tops = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            tops |= {found.name.split(".")[0] for found in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            tops.add(node.module.split(".")[0])
    assert tops <= BROUGHT | OURS
