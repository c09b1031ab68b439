"""The backend knows nothing of Slicer, its nouns need no torch, and the client only these."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SLICER = {"slicer", "qt", "ctk", "mrml", "PythonQt", "vtkSlicer", "trame", "trame_slicer"}
LIBRARY = [
    REPOSITORY / "ShapePriorSlicer" / "ShapePriorSlicerLib" / name
    for name in ("__init__.py", "server/backend.py", "server/connection.py", "server/events.py")
]
FILES = sorted((REPOSITORY / "model_server").rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def test_there_are_files_to_check():
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_backend_imports_nothing_of_slicer(path: Path):
    tops = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    assert not tops & SLICER


@pytest.mark.parametrize(
    "modules",
    [
        "model_server, model_server.observations, model_server.reconstruction, model_server.pose",
        "model_server.priors.protocol, model_server.priors.card, model_server.priors.registry",
        "model_server.commands.main, model_server.cohort.run, model_server.jobs.report",
        "model_server.io.markups, model_server.threads",
    ],
)
def test_nouns_and_command_line_pull_in_no_torch(modules: str):
    heavy = "[m for m in ('torch', 'vtk', 'vtkmodules', 'slicer', 'pymeshlab') if m in sys.modules]"
    code = f"import sys, {modules}; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# Each takes a tenth of a second and more, and tens of megabytes.
UNUSED = {"torch", "vtk", "SimpleITK", "trimesh", "networkx", "matplotlib", "pydicom", "highdicom"}


@pytest.mark.parametrize(
    ("prior", "needed"), [("hippocampus-pca", set()), ("hippocampus-dals", {"torch"})]
)
def test_a_fit_of_outlines_loads_no_library_it_does_not_use(
    tmp_path: Path, prior: str, needed: set[str]
):
    code = """
import sys
from model_server.commands.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*sys.modules)
"""
    example = sorted((REPOSITORY / "Resources" / "example").glob("*.mrk.json"))
    words = ["fit", "--prior", prior, "--quiet", "--device", "cpu"]
    words += ["--output", str(tmp_path / "organ.stl"), "--annotations", *map(str, example)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "organ.stl").stat().st_size > 10_000
    assert not set(done.stdout.split()) & (UNUSED - needed)


# What the client takes from the backend, and what those modules need themselves.
CLIENT = ["ShapePriorSlicerLib.server.backend", "ShapePriorSlicerLib.server.connection"]
SHARED = {"errors", "observations", "pose", "reconstruction", "service"}
SHARED |= {"service.wire", "service.wire_surfaces"}
HEAVY = {
    "torch",
    "scipy",
    "vtk",
    "vtkmodules",
    "fastapi",
    "uvicorn",
    "skimage",
    "SimpleITK",
    "trimesh",
    "shapely",
}


def test_the_client_pulls_in_only_the_nouns_and_the_wire():
    # websockets is imported late, by the worker: it counts as well.
    code = f"import sys, {', '.join(CLIENT)}, websockets.sync.client; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY / "ShapePriorSlicer",
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert set(CLIENT) < loaded
    own = {name.removeprefix("model_server.") for name in loaded if name.startswith("model_server")}
    assert own - {"model_server"} == SHARED
    assert not {name.split(".")[0] for name in loaded} & (HEAVY | SLICER)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.name)
def test_the_client_knows_no_qt_and_no_torch_even_later(path: Path):
    tops = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    assert not tops & (HEAVY | SLICER)
