"""Installing what is missing with pip itself, in a virtual environment."""

from __future__ import annotations

import os
import subprocess
import sys
import types
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from installation import User, installed
from ShapePriorSlicerLib.server import dependencies
from ShapePriorSlicerLib.server.dependencies import Outcome

from model_server.errors import ShapePriorError


def wheel(folder, name, version, requires=()):
    """A wheel with one module, as any installer takes it."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    about = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
    about += [f"Requires-Dist: {line}\n" for line in requires]
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{module}.py", f"version = {version!r}\n")
        file.writestr(f"{info}/METADATA", "".join(about))
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Python of a fresh virtual environment with pip, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("a venv") / "of mine"
    try:
        subprocess.run(
            [sys.executable, "-m", "venv", str(folder)],
            check=True,
            capture_output=True,
            timeout=120,
        )
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no virtual environment: {error.stderr[-200:]}")
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def sitePackages(python):
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture
def pip(environment, monkeypatch, tmp_path):
    """``slicer.util.pip_install`` of Slicer 5.10, for the virtual environment."""
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    # Where constraints go: spaces in it, as in many a user's name.
    folder = tmp_path / "tmp of mine"
    folder.mkdir()
    monkeypatch.setattr(dependencies.tempfile, "tempdir", str(folder))
    monkeypatch.syspath_prepend(str(sitePackages(environment)))

    def run(requirements):
        subprocess.run(
            [str(environment), "-m", "pip", "install", *requirements],
            check=True,
            capture_output=True,
            timeout=120,
        )

    slicer = types.ModuleType("slicerWithPip")
    slicer.util = types.SimpleNamespace(pip_install=run)
    return slicer


@pytest.fixture
def wheels(tmp_path):
    folder = tmp_path / "wheels of mine"
    folder.mkdir()
    return folder


def test_pip_installs_from_a_folder_with_what_it_depends_on(pip, needs, wheels):
    needs("shape-prior-probe>=1.0")
    wheel(wheels, "shape-prior-probe", "1.5", ["shape-prior-helper>=2"])
    wheel(wheels, "shape-prior-helper", "2.1")
    assert dependencies.missing() == ("shape-prior-probe>=1.0",)
    user = User()
    assert installed(pip, user, wheels=wheels) is Outcome.READY
    assert metadata.version("shape-prior-helper") == "2.1"
    assert installed(pip, user, wheels=wheels) is Outcome.READY
    assert len(user.questions) == 1


@pytest.mark.parametrize("dependency", ["numpy>=9999", "vtk"])
def test_pip_cannot_replace_what_slicer_brings(
    pip, needs, wheels, monkeypatch, environment, dependency
):
    needs("shape-prior-greedy>=1.0")
    real = dependencies._versionOf
    bundled = {"numpy": "2.0.2", "vtk": None}  # as in Slicer
    monkeypatch.setattr(
        dependencies, "_versionOf", lambda name: bundled[name] if name in bundled else real(name)
    )
    monkeypatch.setattr(dependencies.importlib.util, "find_spec", lambda name: object())
    wheel(wheels, "shape-prior-greedy", "1.0", [dependency])
    wheel(wheels, "numpy", "9999.0")
    wheel(wheels, "vtk", "9.9")
    with pytest.raises(ShapePriorError, match="shape-prior-greedy") as caught:
        installed(pip, User(), wheels=wheels)
    assert caught.value.code == "install-failed"
    folders = {path.name.split("-")[0] for path in sitePackages(environment).iterdir()}
    assert not folders & {"numpy", "vtk", "shape_prior_greedy"}


def test_pip_obeys_constraints_that_the_torch_extension_hands_on(
    environment, wheels, tmp_path, monkeypatch
):
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    wheel(wheels, "shape-prior-torch", "1.0", ["shape-prior-array>=1"])
    wheel(wheels, "shape-prior-array", "1.0")
    wheel(wheels, "shape-prior-array", "2.0")
    held = tmp_path / "with space" / "constraints.txt"
    held.parent.mkdir()
    held.write_text("shape-prior-array==1.0\n")
    command = [str(environment), "-m", "pip", "install", "--no-index", "--find-links", str(wheels)]

    class Utils:
        class PyTorchUtilsLogic:
            def installTorch(self, **_):
                subprocess.run(
                    [*command, "shape-prior-torch"], check=True, capture_output=True, timeout=120
                )
                return object()

    dependencies._installTorch(Utils, held)
    there = {path.name for path in sitePackages(environment).iterdir()}
    assert "shape_prior_array-1.0.dist-info" in there
    assert "shape_prior_array-2.0.dist-info" not in there
