"""The backend knows nothing of Slicer, and its nouns need no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SLICER = {"slicer", "qt", "ctk", "mrml", "PythonQt", "vtkSlicer", "trame", "trame_slicer"}
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
        "model_server.cli, model_server.cohort, model_server.report, model_server.io.markups",
    ],
)
def test_nouns_and_command_line_pull_in_no_torch(modules: str):
    heavy = "[m for m in ('torch', 'vtk', 'slicer', 'pymeshlab') if m in sys.modules]"
    code = f"import sys, {modules}; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
