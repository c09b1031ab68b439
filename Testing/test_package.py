"""What ships: packaging files agree with each other and with the code."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parent.parent
BACKEND = REPOSITORY / "model_server"
MODULE = REPOSITORY / "ShapePriorSlicer"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Where the name of a package is not the name that is imported.
PACKAGE_OF = {
    "PIL": "pillow",
    "SimpleITK": "simpleitk",
    "igl": "libigl",
    "itk": "itk-morphologicalcontourinterpolation",
    "skimage": "scikit-image",
    "vtkmodules": "vtk",
}
CMAKE = (REPOSITORY / "CMakeLists.txt").read_text()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def constraints() -> list[Requirement]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line.split("#")[0].strip()]


def requirements(project: dict[str, Any]) -> list[Requirement]:
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return [r for r in map(Requirement, lines) if r.name != project["name"]]


def pins_for(python: str, constraints: list[Requirement]) -> dict[str, list[str]]:
    pins: dict[str, list[str]] = {}
    for line in constraints:
        if line.marker is None or line.marker.evaluate({"python_version": python}):
            version = str(line.specifier).removeprefix("==")
            pins.setdefault(canonicalize_name(line.name), []).append(version)
    return pins


# --- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_once_within_its_range(project, constraints, python):
    pins = pins_for(python, constraints)
    for requirement in requirements(project):
        pinned = pins.get(canonicalize_name(requirement.name), [])
        assert len(pinned) == 1, f"{requirement.name} on Python {python}: {pinned}"
        assert requirement.specifier.contains(pinned[0]), f"{requirement} but {pinned[0]}"


@pytest.mark.parametrize("python", PYTHONS)
def test_no_package_is_pinned_twice(constraints, python):
    twice = {name: pins for name, pins in pins_for(python, constraints).items() if len(pins) > 1}
    assert not twice


def test_everything_that_comes_along_is_pinned(project, constraints):
    pinned = {canonicalize_name(line.name) for line in constraints}
    # What only a CUDA build of torch needs is torch's own matter, and setuptools the builder's.
    left = [canonicalize_name(r.name) for r in requirements(project)]
    seen = {"setuptools"}
    while left:
        name = left.pop()
        if name in seen or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        seen.add(name)
        assert name in pinned, f"{name} has no line in constraints.txt"
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        further = [Requirement(line) for line in lines]
        left += [
            canonicalize_name(r.name)
            for r in further
            if r.marker is None or r.marker.evaluate({"extra": ""})
        ]


def test_torch_is_the_version_the_priors_were_trained_with(constraints):
    assert pins_for("3.12", constraints)["torch"] == ["2.13.0"]


def test_requirements_are_ranges(project):
    for requirement in requirements(project):
        operators = {s.operator for s in requirement.specifier}
        assert operators, f"{requirement} has no range"
        assert "==" not in operators, f"{requirement} is a pin; pins belong in constraints.txt"


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


def test_everything_the_backend_imports_is_required(project):
    required = {canonicalize_name(r.name) for r in requirements(project)}
    foreign = {
        canonicalize_name(PACKAGE_OF.get(name, name)): str(path.relative_to(REPOSITORY))
        for path in BACKEND.rglob("*.py")
        for name in imported(path)
        if name not in sys.stdlib_module_names and name not in ("model_server", "mpl_toolkits")
    }
    missing = {name: path for name, path in foreign.items() if name not in required}
    assert not missing


@pytest.mark.parametrize("folder", ["model_server", "ShapePriorSlicer", "Testing"])
def test_the_code_is_python_3_10(folder):
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        ast.parse(path.read_text(), filename=str(path), feature_version=(3, 10))


def test_entry_point_exists(project):
    module, _, function = project["scripts"]["shape-prior"].partition(":")
    assert callable(getattr(import_module(module), function))


# --- what is in the packages --------------------------------------------------------------------


def zoo_files() -> list[Path]:
    return sorted(p for p in (BACKEND / "zoo").glob("*/*") if p.is_file())


def test_the_example_ships_with_the_package():
    tool = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    from model_server.jobs.example import EXAMPLE_FOLDERS

    (folder, patterns), *more = tool["data-files"].items()
    assert not more
    assert EXAMPLE_FOLDERS[1] == Path(sys.prefix) / folder
    shipped = {path for pattern in patterns for path in REPOSITORY.glob(pattern)}
    assert shipped == {p for p in (REPOSITORY / "Resources/example").iterdir() if p.is_file()}


# --- the Slicer extension -----------------------------------------------------------------------


def setting(name: str) -> str:
    found = re.search(rf'^set\({name} "(.*)"\)$', CMAKE, re.MULTILINE)
    assert found, f"{name} is not set"
    return found.group(1)


def test_cmake_project_is_the_extension():
    assert re.search(r"^project\((\w+)\)$", CMAKE, re.MULTILINE).group(1) == "ShapePriorSlicer"
    order = [
        CMAKE.index(text)
        for text in (
            "project(ShapePriorSlicer)",
            "find_package(Slicer REQUIRED)",
            "include(${Slicer_USE_FILE})",
            "install(",
            "include(${Slicer_EXTENSION_GENERATE_CONFIG})",
            "include(${Slicer_EXTENSION_CPACK})",
        )
    ]
    assert order == sorted(order)


def test_the_description_states_the_licenses_of_the_weights():
    description = setting("EXTENSION_DESCRIPTION")
    for path in (BACKEND / "zoo").glob("*/prior.json"):
        card = json.loads(path.read_text())
        assert card["licence"] in description, card["name"]
        lobe = card["organ"].startswith("lung-")
        named = "lung lobes" if lobe else card["organ"].replace("-", " ")
        assert named in description, card["name"]


def test_torch_comes_through_its_extension():
    assert "PyTorch" in setting("EXTENSION_DEPENDS").split()


@pytest.mark.parametrize("name", ["EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"])
def test_pictures_of_the_extension_are_in_the_repository(name):
    for url in setting(name).split():
        path = REPOSITORY / url.partition("/main/")[2]
        assert path.is_file(), f"{name} names {path}, which does not exist"
        assert path.read_bytes().startswith(b"\x89PNG")


# A stand-in for what Slicer's CMake files define, with the checks of its own macro.
SLICER = """
set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/Use.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/Nothing.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/Nothing.cmake")
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR "lib/qt-scripted-modules")
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR "lib/qt-scripted-modules")
"""
USE = """
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS OR NOT MY_NAME)
    message(FATAL_ERROR "wrong arguments: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  foreach(file ${MY_SCRIPTS} ${MY_RESOURCES})
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${file})
      message(FATAL_ERROR "given nonexistent file ${file}")
    endif()
    get_filename_component(folder ${file} DIRECTORY)
    install(FILES ${file} DESTINATION ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}/${folder})
  endforeach()
endmacro()
macro(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${MY_SCRIPT})
    message(FATAL_ERROR "given nonexistent test ${MY_SCRIPT}")
  endif()
endmacro()
"""


def cmake_lists(path: Path) -> dict[str, list[str]]:
    """What a CMakeLists.txt sets, by name, its own variables filled in."""
    text = re.sub(r"#.*", "", path.read_text())
    found: dict[str, list[str]] = {}
    for name, body in re.findall(r"^set\((\w+)\s+([^)]*)\)", text, re.MULTILINE):
        for known, values in found.items():
            body = body.replace(f"${{{known}}}", " ".join(values))
        found[name] = [value.strip('"') for value in body.split()]
    return found


SELF_TEST = "Testing/ShapePriorSlicer/selftest.py"


def listed() -> list[str]:
    """Files of the module that ship, relative to its folder."""
    lists = cmake_lists(MODULE / "CMakeLists.txt")
    return lists["MODULE_PYTHON_SCRIPTS"] + lists["MODULE_PYTHON_RESOURCES"]


def matching(folder: Path, patterns: list[str]) -> Iterator[Path]:
    """Files of a folder that CMake's FILES_MATCHING PATTERN ... would take."""
    excluded = {patterns[i - 1] for i, word in enumerate(patterns) if word == "EXCLUDE"}
    wanted = {patterns[i + 1] for i, word in enumerate(patterns) if word == "PATTERN"} - excluded
    for path in folder.rglob("*"):
        # Like CMake's, these match the end of a path, from a folder on.
        wants = any(path.match(pattern) for pattern in wanted)
        if path.is_file() and wants and not excluded & set(path.parts):
            yield path


def assemble_by_reading(folder: Path) -> Path:
    """The installed layout, from the lists alone."""
    for name in listed():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(MODULE / name, folder / name)
    lists = cmake_lists(REPOSITORY / "CMakeLists.txt")
    for source, patterns in (
        ("model_server", "BACKEND_FILES"),
        ("Resources/example", "EXAMPLE_FILES"),
    ):
        for path in matching(REPOSITORY / source, lists[patterns]):
            target = folder / path.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    (selftest,) = lists["SELF_TEST"]
    (folder / selftest).parent.mkdir(parents=True)
    shutil.copyfile(REPOSITORY / selftest, folder / selftest)
    return folder


def assemble_by_cmake(folder: Path) -> Path:
    """The installed layout, by CMake with a stand-in for Slicer."""
    cmake = shutil.which("cmake")
    if cmake is None or not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("needs cmake and a compiler")
    (folder / "slicer").mkdir()
    for name, text in (("SlicerConfig", SLICER), ("Use", USE), ("Nothing", "")):
        (folder / "slicer" / f"{name}.cmake").write_text(text)
    arguments = [
        f"-DSlicer_DIR={folder / 'slicer'}",
        f"-DCMAKE_INSTALL_PREFIX={folder / 'out'}",
        "-DBUILD_TESTING=ON",
    ]
    build = str(folder / "build")
    for command in (
        [cmake, "-S", str(REPOSITORY), "-B", build, *arguments],
        [cmake, "--install", build],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("model_server/zoo/", "Resources/example/", SELF_TEST):
        assert (folder / "build" / "lib" / "qt-scripted-modules" / name).exists()
    return folder / "out" / "lib" / "qt-scripted-modules"


@pytest.fixture(scope="module", params=[assemble_by_reading, assemble_by_cmake])
def installed(request, tmp_path_factory) -> Path:
    """What ships, in its place beside Slicer's own scripted modules."""
    return request.param(tmp_path_factory.mktemp("extension"))


def test_every_file_of_the_module_is_listed_once():
    tree = [MODULE / "ShapePriorSlicer.py"]
    for folder in ("ShapePriorSlicerLib", "ShapePriorEffect"):
        tree += (MODULE / folder).rglob("*.py")
    tree += (p for p in (MODULE / "Resources").rglob("*") if p.is_file())
    assert sorted(listed()) == sorted(p.relative_to(MODULE).as_posix() for p in tree)


def test_cmake_installs_module_self_test_backend_example_and_nothing_else(
    installed,
):
    code = [p for p in BACKEND.rglob("*.py") if "__pycache__" not in p.parts]
    example = [p for p in (REPOSITORY / "Resources" / "example").iterdir() if p.is_file()]
    expected = {str(p.relative_to(REPOSITORY)) for p in [*code, *zoo_files(), *example]}
    expected |= {*listed(), SELF_TEST}
    found = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
    assert expected - found == set()
    assert found - expected <= {"model_server/LICENSE", "model_server/py.typed"}


def test_the_installed_module_finds_its_self_test(installed):
    source = (installed / "ShapePriorSlicer.py").read_text()
    (parts,) = re.findall(r"^SELF_TEST = Path\((.*)\)$", source, re.MULTILINE)
    assert installed.joinpath(*re.findall(r'"(.*?)"', parts)).is_file()


def test_the_installed_backend_starts(installed):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-m", "model_server", "priors", "--json"],
        cwd=installed,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    names = {prior["name"] for prior in json.loads(done.stdout)["priors"]}
    assert names == {path.parent.name for path in zoo_files()}


# Run where the extension is installed; the checkout may not be looked at.
IMPORTING = """
import importlib, json, sys
from pathlib import Path

layout, checkout = (Path(argument).resolve() for argument in sys.argv[1:])
# The virtual environment may lie in the checkout, as `make test` has it.
allowed = {layout, Path(sys.prefix).resolve()}


def forbid(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path = Path(arguments[0])
        if path.is_absolute() and checkout in path.parents and not allowed & {*path.parents}:
            sys.exit(f"{path} is of the checkout")


sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f)]
sys.path[:] = [str(layout), *(p for p in sys.path if p and Path(p) != checkout)]
sys.addaudithook(forbid)
for path in sorted(layout.glob("ShapePriorSlicerLib/**/*.py")):
    try:
        name = ".".join(path.relative_to(layout).with_suffix("").parts)
        module = importlib.import_module(name.removesuffix(".__init__"))
    except ModuleNotFoundError as error:
        # Some need Slicer's observers: they are imported where slicer-core is installed.
        assert error.name.split(".")[0] == "slicer", error
        continue
    assert Path(module.__file__) == path, module.__file__
for name, module in sys.modules.items():
    if name.split(".")[0] in ("model_server", "ShapePriorSlicerLib"):
        assert layout in Path(module.__file__).parents, module
assert not {"torch", "qt"} & set(sys.modules)

from model_server.priors.registry import list_priors
from ShapePriorSlicerLib.server import dependencies
from ShapePriorSlicerLib.files import sample_data

files = [sample_data.exampleImage(), sample_data.exampleTruth()]
files += [sample_data.exampleOutline(name) for name in sample_data.OUTLINES]
assert all(layout in file.parents and file.is_file() for file in files), files
print(json.dumps([[card.name for card in list_priors()], dependencies.requirements()]))
"""


def test_the_installed_library_finds_all_it_needs(installed, tmp_path):
    pytest.importorskip("vtk")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, str(installed), str(REPOSITORY)],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    priors, required = json.loads(done.stdout)
    assert set(priors) == {path.parent.name for path in zoo_files()}
    assert len(required) > 5


def test_what_the_module_asks_for_in_slicer_is_what_the_package_requires(project):
    from ShapePriorSlicerLib.server import dependencies

    inside = [Requirement(line) for line in dependencies.requirements()]
    brought = {canonicalize_name(name) for name in dependencies.BUNDLED}
    required = [Requirement(line) for line in project["dependencies"]]
    assert {str(r) for r in inside} == {
        str(r) for r in required if canonicalize_name(r.name) not in brought
    }
    assert brought < {canonicalize_name(r.name) for r in required}
    # The module compares versions itself, and knows only this one comparison.
    assert all(re.fullmatch(r"[\w.-]+>=[\d.]+", str(r)) for r in inside)


def test_the_icon_is_as_the_index_asks():
    header = (MODULE / "Resources" / "Icons" / "ShapePriorSlicer.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:24]) == (128, 128)


def test_the_entry_of_the_extensions_index_is_that_of_the_build():
    """Keys and values as the schema 1.0.1 of Slicer's catalog has them."""
    entry = json.loads((REPOSITORY / "Resources" / "ShapePriorSlicer.json").read_text())
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert set(entry) <= {
        *("$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies"),
        *("build_subdirectory", "enabled", "tier"),
    }
    assert entry["category"] == setting("EXTENSION_CATEGORY")
    assert entry["build_dependencies"] == setting("EXTENSION_DEPENDS").split()
    assert entry["scm_url"] == setting("EXTENSION_HOMEPAGE")
    assert entry["tier"] in (1, 3, 5)
    for name in ("EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"):
        (owner,) = re.findall(r"//raw.githubusercontent.com/([\w-]+/[\w-]+)/", setting(name))
        assert entry["scm_url"] == f"https://github.com/{owner}"
        assert f"/{entry['scm_revision']}/" in setting(name)


def test_the_description_is_for_everybody():
    """One or two sentences, the first of which needs no knowledge of shape priors."""
    sentences = re.split(r"(?<=\.) (?=[A-Z])", setting("EXTENSION_DESCRIPTION"))
    assert len(sentences) <= 2
    assert "prior" not in sentences[0]
    assert "Apache-2.0" in setting("EXTENSION_DESCRIPTION")


# --- make and CI --------------------------------------------------------------------------------


def test_ci_runs_the_tests_last():
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [
        line.strip()
        for line in script.read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    assert commands[-1] == "make test"
    assert {"make lint", "make demo"} <= set(commands)


@pytest.mark.parametrize("target", ["demo", "test", "test-all", "lint"])
def test_makefile_has_the_target(target):
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
