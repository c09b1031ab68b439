"""The rooms of ShapePriorSlicer: no circles, nothing looks up, no hall is too long, no torch.

Every import counts: those inside functions and those for type checkers alone, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "ShapePriorSlicer"
LIBRARY, BROWSER, MODULE = "ShapePriorSlicerLib", "ShapePriorBrowser", "ShapePriorSlicer"
EFFECT = "ShapePriorEffect"
# A room imports from itself and from those before it.
ROOMS = (
    LIBRARY,  # its __init__.py: where to find the backend
    f"{LIBRARY}.scene",
    f"{LIBRARY}.server",
    f"{LIBRARY}.files",
    f"{LIBRARY}.session",
    f"{LIBRARY}.panel",
    BROWSER,
    EFFECT,
    MODULE,
)
MOST_LINES = 500
# What the library takes of the backend: its nouns anywhere, more only where it is named here.
NOUNS = {f"model_server.{name}" for name in ("errors", "observations", "pose", "reconstruction")}
MORE = {
    LIBRARY: {"model_server"},
    f"{LIBRARY}.scene.annotations": {"model_server.geometry.curves"},
    f"{LIBRARY}.scene.live_model": {"model_server.geometry.mask_border"},
    f"{LIBRARY}.scene.slice_views": {"model_server.geometry.next_plane"},
    f"{LIBRARY}.session.session": {"model_server.geometry.next_plane"},
    f"{LIBRARY}.scene.segmentations": {"model_server.io.terminology"},
    f"{LIBRARY}.scene.terminology": {"model_server.io.terminology"},
    f"{LIBRARY}.scene.voxels": {"model_server.geometry.correspondences"},
    f"{LIBRARY}.server.backend": {"model_server", "model_server.service.wire"},
    f"{LIBRARY}.server.connection": {
        "model_server.service.wire",
        "model_server.service.wire_surfaces",
    },
    f"{LIBRARY}.server.requests": {"model_server.service.wire"},
    f"{LIBRARY}.server.upload": {"model_server.service.wire"},
    f"{LIBRARY}.server.priors": {"model_server.priors.card", "model_server.priors.registry"},
}
HEAVY = {"torch", "skimage", "trimesh", "fastapi", "uvicorn", "matplotlib"}
WIDGETS = {"qt", "ctk"}


def read(folder: Path) -> dict[str, str]:
    """Source of every module in a folder, by its dotted name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


SOURCES = read(FOLDER)
PACKAGES = {".".join(path.relative_to(FOLDER).parent.parts) for path in FOLDER.rglob("__init__.py")}


def imported(name: str, sources: dict[str, str]) -> Iterator[str]:
    """All that a module imports, by dotted names; of ours the file that is meant."""
    for node in ast.walk(ast.parse(sources[name])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                # Of a package's __init__.py the package itself is where it looks from.
                up = node.level - (name in PACKAGES)
                parts = name.split(".")
                base = ".".join([*parts[: len(parts) - up], *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in sources else base


def ours(name: str, sources: dict[str, str]) -> set[str]:
    return {other for other in imported(name, sources) if other in sources}


def room(name: str) -> str:
    """The innermost room that a module is in."""
    return max((r for r in ROOMS if name == r or name.startswith(f"{r}.")), key=len)


def circle(sources: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle, or none."""
    try:
        tuple(TopologicalSorter({n: ours(n, sources) for n in sources}).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def upward(sources: dict[str, str]) -> list[str]:
    """Imports from a room above."""
    return [
        f"{name} imports {other}"
        for name in sources
        for other in ours(name, sources)
        if ROOMS.index(room(other)) > ROOMS.index(room(name))
    ]


def tooHeavy(sources: dict[str, str]) -> list[str]:
    """What the library imports and should not."""
    return [
        f"{name} imports {other}"
        for name in sources
        if name.split(".")[0] == LIBRARY
        for other in imported(name, sources)
        if other.split(".")[0] in HEAVY
        or (other.split(".")[0] in WIDGETS and room(name) != f"{LIBRARY}.panel")
        or (other.split(".")[0] == "model_server" and other not in NOUNS | MORE.get(name, set()))
    ]


def test_there_is_something_to_walk():
    assert len(SOURCES) > 50
    assert {room(name) for name in SOURCES} == set(ROOMS)
    assert f"{LIBRARY}.session.fit" in ours(f"{LIBRARY}.session.session", SOURCES)
    assert f"{LIBRARY}.panel.panel" in ours(MODULE, SOURCES)
    assert f"{BROWSER}.panel" in ours(f"{BROWSER}.app", SOURCES)


def test_no_file_is_in_the_librarys_hall():
    """Every file of the library has a room."""
    assert [p.name for p in (FOLDER / LIBRARY).glob("*.py")] == ["__init__.py"]


def test_no_import_goes_in_a_circle():
    assert circle(SOURCES) == []


def test_no_room_imports_from_one_above():
    assert upward(SOURCES) == []


def test_the_library_imports_nothing_heavy():
    assert tooHeavy(SOURCES) == []


def test_more_of_the_backend_is_allowed_only_where_it_is_used():
    for name, more in MORE.items():
        assert more <= set(imported(name, SOURCES)), name


@pytest.mark.parametrize("name", list(SOURCES))
def test_no_file_is_too_long(name):
    assert SOURCES[name].count("\n") <= MOST_LINES


# --- what would be found --------------------------------------------------------------------------


def planted(name: str, line: str) -> dict[str, str]:
    """The sources with one more line in a module."""
    return SOURCES | {name: f"{SOURCES[name]}\n{line}\n"}


@pytest.mark.parametrize(
    "line",
    [
        "from .session import Session",
        "from . import session",
        "def late():\n    from .session import Session",
        "if TYPE_CHECKING:\n    from .session import Session",
        f"import {LIBRARY}.session.session",
    ],
)
def test_a_circle_would_be_found(line):
    found = circle(planted(f"{LIBRARY}.session.fit", line))
    assert {f"{LIBRARY}.session.fit", f"{LIBRARY}.session.session"} <= set(found)


@pytest.mark.parametrize(
    "line", ["from ..session.history import History", "def late():\n    from ..panel import texts"]
)
def test_a_look_upward_would_be_found(line):
    assert len(upward(planted(f"{LIBRARY}.scene.coloring", line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "import torch",
        "def late():\n    from torch import nn",
        "from model_server.priors.registry import load_prior",
        "import qt",
    ],
)
def test_heavy_imports_would_be_found(line):
    assert len(tooHeavy(planted(f"{LIBRARY}.session.fit", line))) == 1
