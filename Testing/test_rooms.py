"""The rooms stand in order: no import from a room above, no circle of files, no file too long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
BACKEND = REPOSITORY / "model_server"
MODULE = REPOSITORY / "ShapePriorSlicer"
TESTS = REPOSITORY / "Testing"
PACKAGES = (BACKEND, MODULE / "ShapePriorSlicerLib", MODULE / "ShapePriorBrowser")
MOST_LINES = 500
# From the bottom up; rooms of one line may import from each other. What is named nowhere (commands,
# pictures, cohorts, reports: whatever users call) stands above them all.
ROOMS = (
    # The nouns, and what every process needs.
    ("errors", "pose", "observations", "reconstruction", "reading", "threads", "interrupts"),
    ("geometry",),
    ("io",),
    ("cases",),
    ("fitting", "priors.protocol", "priors.card"),  # all that a fit may know of priors
    ("priors",),
    ("imaging",),
    ("evaluation",),
    ("training",),  # may score what it trained
    ("service",),
)
FLOOR = {name: floor for floor, names in enumerate(ROOMS) for name in names}
Imports = dict[str, set[str]]


# --- the walk -----------------------------------------------------------------------------------


def walked(package: Path) -> Imports:
    """Every module of a package, and those of the same package that it imports: at its top, late
    inside functions, or for types only."""
    files = {name_of(path, package): path for path in sorted(package.rglob("*.py"))}
    return {
        name: {found for found in imported(name, path, set(files)) if found != name}
        for name, path in files.items()
    }


def name_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(name: str, path: Path, known: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = base_of(node, name, path.name == "__init__.py")
            for each in node.names:
                # A module of the package that is named, or something in the module named.
                inner = f"{base}.{each.name}"
                yield from [inner] if inner in known else [base] if base in known else []


def base_of(node: ast.ImportFrom, name: str, is_package: bool) -> str:
    """The absolute name of what is imported from."""
    parts = name.split(".")
    up = node.level - is_package
    above = parts[: len(parts) - up] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


# --- what is wrong ------------------------------------------------------------------------------


def floor(module: str) -> int:
    """Of the longest name in ROOMS that a module lies under."""
    parts = module.split(".")[1:]
    under = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    top = len(ROOMS) if parts else 0  # the package itself is its version: below all
    return next((FLOOR[name] for name in under if name in FLOOR), top)


def upward(imports: Imports) -> list[str]:
    """The imports of modules that stand higher."""
    return [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in sorted(others)
        if floor(other) > floor(module)
    ]


def circle(imports: Imports) -> list[str]:
    """Modules each of which imports the next, the last the first; empty if there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def too_long(folder: Path) -> dict[str, int]:
    """The lines of files that have more than they may."""
    lengths = {
        str(path.relative_to(folder.parent)): len(path.read_text().splitlines())
        for path in sorted(folder.rglob("*.py"))
    }
    return {path: length for path, length in lengths.items() if length > MOST_LINES}


def test_no_room_imports_from_one_above_it():
    found = upward(walked(BACKEND))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_no_file_imports_itself_by_way_of_others(package):
    found = circle(walked(package))
    assert not found, " imports ".join(found)


@pytest.mark.parametrize("folder", [BACKEND, MODULE, TESTS], ids=lambda p: p.name)
def test_no_file_is_too_long(folder):
    assert too_long(folder) == {}


def test_the_walk_sees_the_whole_backend():
    imports = walked(BACKEND)
    assert len(imports) == len(list(BACKEND.rglob("*.py")))
    named = {name for name in FLOOR if f"{BACKEND.name}.{name}" in imports}
    assert {"errors", "geometry", "io", "cases", "fitting", "priors.card", "service"} <= named
    assert f"{BACKEND.name}.geometry.labels" in imports[f"{BACKEND.name}.cases.splits"]


# --- the walk finds what is planted -------------------------------------------------------------


@pytest.fixture
def house(tmp_path):
    """``house({"io/surfaces.py": "..."})``: what the modules of such a package import."""

    def build(files: dict[str, str]) -> Imports:
        for name, text in files.items():
            path = tmp_path / "house" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(text)
        return walked(tmp_path / "house")

    return build


@pytest.mark.parametrize(
    "text",
    [
        "from house.io.surfaces import write",
        "from house.io import surfaces as files, volumes",
        "import numpy, house.io.surfaces",
        "from ..io.surfaces import write",
        "from ..io import surfaces",
        "def late():\n    from house.io.surfaces import write",
        "class Deep:\n    def late(self):\n        import house.io.surfaces as files",
        "if TYPE_CHECKING:\n    from house.io.surfaces import Writer",
        "try:\n    from house.io.surfaces import write\nexcept ImportError:\n    pass",
    ],
)
def test_an_import_from_above_is_found_however_it_is_written(house, text):
    imports = house({"geometry/labels.py": text, "io/surfaces.py": "", "io/volumes.py": ""})
    assert "house.geometry.labels imports house.io.surfaces" in upward(imports)


def test_imports_from_below_and_beside_are_in_order(house):
    imports = house(
        {
            "errors.py": "import numpy",
            "geometry/labels.py": "from house.errors import Error",
            "io/__init__.py": "from .surfaces import write",
            "io/surfaces.py": "from house.geometry.labels import turn\nfrom house import errors",
            "commands/fit.py": "from house import __version__\nfrom house.io import write",
            "report.py": "from house.commands import fit",
        }
    )
    assert imports["house.io"] == {"house.io.surfaces"}
    assert imports["house.io.surfaces"] == {"house.geometry.labels", "house.errors"}
    assert imports["house.commands.fit"] == {"house", "house.io"}
    assert upward(imports) == []
    assert circle(imports) == []


def test_of_priors_a_fit_knows_the_protocol_and_the_card_alone(house):
    known = "from house.priors.protocol import Prior\nfrom house.priors.card import Card"
    files = {
        "fitting/engine.py": known,
        "priors/protocol.py": "from house.fitting.terms import Term",
        "priors/card.py": "",
        "priors/registry.py": "from house.fitting.engine import fit",
        "fitting/terms.py": "",
    }
    assert upward(house(files)) == []
    files["fitting/engine.py"] += "\ndef late():\n    from house.priors import registry"
    assert upward(house(files)) == ["house.fitting.engine imports house.priors.registry"]
    files["priors/protocol.py"] = "from house.priors.registry import load"
    assert "house.priors.protocol imports house.priors.registry" in upward(house(files))


def test_training_scores_and_evaluation_does_not_train(house):
    files = {
        "training/own.py": "from house.evaluation.metrics import dice",
        "evaluation/metrics.py": "",
    }
    assert upward(house(files)) == []
    files = {"training/own.py": "", "evaluation/metrics.py": "from house.training import own"}
    assert upward(house(files)) == ["house.evaluation.metrics imports house.training.own"]


def test_what_has_no_room_stands_above_all(house):
    imports = house({"pictures.py": "", "service/app.py": "from house import pictures"})
    assert upward(imports) == ["house.service.app imports house.pictures"]


def test_a_circle_is_found_through_late_imports_and_types(house):
    files = {
        "io/a.py": "from house.io import b",
        "io/b.py": "def late():\n    from .c import thing",
        "io/c.py": "if TYPE_CHECKING:\n    from house.io.a import Thing",
    }
    imports = house(files)
    found = circle(imports)
    assert set(found) == {"house.io.a", "house.io.b", "house.io.c"}
    assert found[0] == found[-1]
    assert all(found[at + 1] in imports[found[at]] for at in range(3))
    files["io/c.py"] = ""
    assert circle(house(files)) == []


def test_a_long_file_is_found(house, tmp_path):
    house({"io/short.py": "x = 1\n" * MOST_LINES, "io/long.py": "x = 1\n" * (MOST_LINES + 1)})
    assert too_long(tmp_path / "house") == {"house/io/long.py": MOST_LINES + 1}
