"""What is missing, and what is held as Slicer brings it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata

import pytest
from installation import Packages
from ShapePriorSlicerLib.server import dependencies


def test_everything_is_known_in_this_environment():
    assert dependencies.requirements()[-1] == dependencies.TORCH
    here = {d.metadata["Name"].lower() for d in metadata.distributions()}
    for spec in dependencies.missing():
        name, least = dependencies._parted(spec)
        if name.lower() in here:
            assert dependencies._numbers(metadata.version(name)) < least


@pytest.mark.parametrize(
    ("version", "there"),
    [("1.1.9", False), ("1.2", True), ("1.2.0", True), ("1.10", True), ("2", True), ("1", False)],
)
def test_versions_are_compared_as_numbers(monkeypatch, needs, version, there):
    needs("first-package>=1.2")
    Packages(monkeypatch, first_package=version)
    assert (dependencies.missing() == ()) is there


@pytest.mark.parametrize("version", ["2.5.1+cpu", "2.13.0.dev20260101", "2.5.0rc1"])
def test_torch_builds_count(monkeypatch, version):
    Packages(monkeypatch, torch=version)
    assert dependencies.TORCH not in dependencies.missing()


def test_a_broken_package_is_missing(monkeypatch, needs):
    needs("first-package>=1.2")
    Packages(monkeypatch, first_package=None)
    assert dependencies.missing() == ("first-package>=1.2",)


def test_looking_imports_nothing():
    code = (
        "import sys; from ShapePriorSlicerLib.server import dependencies as d;"
        "before = set(sys.modules);"
        "d.missing(); d.constraints();"
        "print({m.split('.')[0] for m in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for name in ("numpy", "vtk", "torch", "SimpleITK", "scipy", "slicer", "qt", "pip", "fastapi"):
        assert f"'{name}'" not in done.stdout


def test_a_remote_server_needs_little_here():
    assert [dependencies._parted(s)[0] for s in dependencies.requirements(remote=True)] == [
        "msgpack",
        "websockets",
    ]


def test_what_slicer_brings_is_held(monkeypatch):
    Packages(monkeypatch, numpy="2.0.2", scipy="1.15.1", SimpleITK="2.5.0")
    found = {"vtk": object()}
    monkeypatch.setattr(dependencies.importlib.util, "find_spec", found.get)
    expected = ("numpy==2.0.2", "scipy==1.15.1", "SimpleITK==2.5.0", "vtk<0")
    assert dependencies.constraints() == expected
