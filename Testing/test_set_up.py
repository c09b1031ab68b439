"""What `make` and Windows users call: what is installed from where, with a stand-in for pip."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in for pip is a shell script")

# Python of the environment: it notes what it is asked, and answers as pip would.
PIP = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in
  *metadata*) cat "{present}" 2>/dev/null ;;
  *"index versions"*) cat "{found}" 2>/dev/null ;;
  *uninstall*) rm -f "{present}" ;;
  *editable*) echo "Downloading https://x.org/a/trimesh-5.2.0-py3-none-any.whl (751 kB)"
    exit {code} ;;
esac
"""


@pytest.fixture
def set_up() -> ModuleType:
    name = "set_up"
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "Resources" / "set_up.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Environment:
    """A virtual environment whose Python is the stand-in."""

    def __init__(self, folder: Path, code: int = 0) -> None:
        self.folder = folder / "venv"
        self.log, self.present, self.found = (folder / n for n in ("log", "present", "found"))
        python = self.folder / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(
            PIP.format(log=self.log, present=self.present, found=self.found, code=code)
        )
        python.chmod(0o755)

    def asked(self, word: str) -> list[str]:
        """What was asked of pip that has this word."""
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [line for line in lines if word in line and "metadata" not in line]


@pytest.fixture
def environment(tmp_path, monkeypatch, set_up) -> Environment:
    monkeypatch.setattr(sys, "platform", "linux")
    return Environment(tmp_path)


def available(set_up: ModuleType, environment: Environment) -> str:
    """PyTorch's index answers with the build for CPUs; its version."""
    version = set_up.pinned("torch")
    environment.found.write_text(f"torch (9.9)\nAvailable versions: 9.9+cpu, {version}+cpu, 1.0\n")
    return version


def test_torch_for_cpus_comes_first_and_from_its_own_index(set_up, environment, capsys):
    version = available(set_up, environment)
    set_up.install("test", environment.folder, "cpu")
    torch, rest = environment.asked(" install ")
    assert f"--index-url {set_up.CPU_INDEX} torch=={version}+cpu" in torch
    assert rest.endswith("--editable .[test]")
    said = capsys.readouterr().out
    assert set_up.TORCH_CPU in said
    assert set_up.TORCH_CUDA not in said
    assert "Downloading trimesh 5.2.0 (751 kB)" in said


def test_where_its_index_is_out_of_reach_the_size_is_said_and_it_goes_on(
    set_up, environment, capsys
):
    set_up.install("demo", environment.folder, "cpu")
    (rest,) = environment.asked(" install ")
    assert rest.endswith("--editable .")
    said = capsys.readouterr().out
    assert "cannot be reached" in said
    assert said.index(set_up.TORCH_CUDA) < said.index("The other packages")


def test_what_came_instead_stays(set_up, environment, capsys):
    environment.present.write_text(set_up.pinned("torch"))  # with CUDA: no name of a build
    set_up.install("test", environment.folder, "cpu")
    assert not environment.asked("uninstall")
    assert set_up.TORCH_CUDA not in capsys.readouterr().out


def test_another_version_of_the_pins_comes_from_the_same_place(set_up, environment):
    version = available(set_up, environment)
    environment.present.write_text("1.0+cpu")
    set_up.install("demo", environment.folder, "cpu")
    assert environment.asked("uninstall")
    assert environment.asked(" install ")[0].endswith(f"{set_up.CPU_INDEX} torch=={version}+cpu")


def test_cuda_is_taken_when_it_is_asked_for(set_up, environment, capsys):
    environment.present.write_text(f"{set_up.pinned('torch')}+cpu")
    set_up.install("demo", environment.folder, "cuda")
    assert environment.asked("uninstall")  # pip takes one build for the other
    assert not environment.asked("index versions")
    assert set_up.TORCH_CUDA in capsys.readouterr().out


def test_a_named_index_is_asked(set_up, environment):
    index = "https://download.pytorch.org/whl/cu130"
    set_up.install("demo", environment.folder, index)
    assert f"--index-url {index} torch==" in environment.asked(" install ")[0]


def test_a_second_run_installs_nothing_unless_something_changed(set_up, environment):
    available(set_up, environment)
    set_up.install("demo", environment.folder, "cpu")
    before = environment.log.read_text()
    set_up.install("demo", environment.folder, "cpu")
    assert environment.log.read_text() == before
    set_up.install("demo", environment.folder, "cuda")
    assert environment.log.read_text() != before


def test_outside_of_linux_the_package_index_is_right(set_up, environment, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    set_up.install("demo", environment.folder, "cpu")
    assert not environment.asked("index versions")
    with pytest.raises(set_up.SetUpError, match="name the index"):
        set_up.install("demo", environment.folder, "cuda")


def test_a_failure_of_pip_is_a_sentence_and_no_stamp(set_up, tmp_path, monkeypatch, capsys):
    broken = Environment(tmp_path / "b", code=1)
    monkeypatch.setattr(
        sys, "argv", ["set_up.py", "demo", "--venv", str(broken.folder), "--only-install"]
    )
    assert set_up.main() == 2
    assert "pip could not install the packages" in capsys.readouterr().err
    assert not (broken.folder / ".demo").exists()


def test_an_old_python_is_a_sentence(set_up, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(set_up.SetUpError, match=r"3\.10 or later"):
        set_up.make_environment(tmp_path / "none")


def test_it_imports_nothing_that_has_to_be_installed():
    import ast

    tree = ast.parse((REPOSITORY / "Resources" / "set_up.py").read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)
