"""Installing what is missing, with a stand-in for Slicer and for its extension of PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from installation import Packages, User, installed
from ShapePriorSlicerLib.server import dependencies
from ShapePriorSlicerLib.server.dependencies import CANCEL, EXTENSION, PIP, Outcome

from model_server.errors import ShapePriorError

TWO = ("first-package>=1.2", "second-package>=3")


class Slicer(types.ModuleType):
    """A stand-in that records what it is asked for, and installs at once.

    It proves the order and the arguments of the calls, not that Slicer takes them: those come
    from its source (slicer/packaging.py, slicer/util.py, qSlicerExtensionsManagerModel.h).
    """

    def __init__(self, monkeypatch, packages, modern=True, testing=False, fails=()):
        super().__init__("standInForSlicer")
        self.packages, self.fails, self.calls, self.constraints = packages, fails, [], []
        self.testing, self.waiting, self.extensionWorks = testing, [], True
        self.interactiveWhileInstalling = None
        self.util = types.SimpleNamespace(pip_install=self.oldPip)
        self.app = types.SimpleNamespace(
            processEvents=self.processEvents,
            testingEnabled=lambda: testing,
            extensionsManagerModel=lambda: self.manager,
        )
        self.manager = types.SimpleNamespace(
            interactive=True, installExtensionFromServer=self.installExtensionFromServer
        )
        monkeypatch.setitem(sys.modules, self.__name__, self)
        if modern:
            packaging = types.ModuleType("standInForSlicer.packaging")
            packaging.pip_install = self.newPip
            self.__path__ = []
            monkeypatch.setitem(sys.modules, packaging.__name__, packaging)

    def done(self, arguments, constraints):
        self.calls.append(arguments)
        self.constraints.append(Path(constraints).read_text().split())
        name, _, version = arguments[-1].partition(">=")
        if name in self.fails:
            return 1
        self.packages.versions[name] = version
        return 0

    def oldPip(self, requirements):
        assert isinstance(requirements, list)
        assert requirements[0] == "-c"
        if self.done(requirements[2:], requirements[1]):
            raise subprocess.CalledProcessError(1, "pip")

    def newPip(
        self,
        requirements,
        constraints=None,
        no_deps_requirements=None,
        skip_packages=None,
        blocking=True,
        show_progress=True,
        requester=None,
        parent=None,
        logCallback=None,
        completedCallback=None,
    ):
        assert isinstance(requirements, list)
        assert requester == "ShapePriorSlicer"
        code = self.done(requirements, constraints)
        if self.testing:
            if code:
                raise subprocess.CalledProcessError(code, "pip")
            return
        assert not blocking
        if code:
            logCallback("ERROR: No matching distribution found")
        self.waiting = [lambda: None, lambda: None, lambda: completedCallback(code)]

    def processEvents(self):
        if self.waiting:
            self.waiting.pop(0)()

    def installExtensionFromServer(self, name, restart=True, update=False):
        self.calls.append(["extension", name, restart])
        self.interactiveWhileInstalling = self.manager.interactive
        return self.extensionWorks


def test_nothing_is_asked_where_nothing_is_missing(monkeypatch, needs):
    needs(*TWO)
    packages = Packages(monkeypatch, first_package="1.2", second_package="4")
    slicer, user = Slicer(monkeypatch, packages), User()
    assert installed(slicer, user) is Outcome.READY
    assert not user.questions
    assert not slicer.calls


@pytest.mark.parametrize("testing", [False, True])
@pytest.mark.parametrize("modern", [False, True])
def test_packages_are_installed_one_at_a_time(monkeypatch, needs, modern, testing):
    needs(*TWO)
    packages = Packages(monkeypatch, numpy="2.0.2")
    slicer, user = Slicer(monkeypatch, packages, modern, testing), User()
    assert installed(slicer, user) is Outcome.READY
    (question,) = user.questions
    assert question.packages == TWO
    assert slicer.calls == [["--prefer-binary", spec] for spec in TWO]
    assert all("numpy==2.0.2" in held for held in slicer.constraints)
    assert [step.done for step in user.steps] == sorted(step.done for step in user.steps)
    assert user.steps[-1].done == user.steps[-1].total == 2
    assert "first-package" in user.steps[0].text


def test_no_means_no(monkeypatch, needs):
    needs(*TWO)
    slicer, user = Slicer(monkeypatch, Packages(monkeypatch)), User(CANCEL)
    assert installed(slicer, user) is Outcome.CANCELLED
    assert not slicer.calls
    assert not user.steps


@pytest.mark.parametrize(("modern", "at"), [(False, 2), (True, 2), (True, 3)])
def test_cancel_finishes_the_package_and_leaves_the_rest(monkeypatch, needs, modern, at):
    needs(*TWO)
    slicer = Slicer(monkeypatch, Packages(monkeypatch), modern)
    assert installed(slicer, User(cancelAt=at)) is Outcome.CANCELLED
    assert [call[-1] for call in slicer.calls] == [TWO[0]]
    again = User()
    assert installed(slicer, again) is Outcome.READY
    assert again.questions[0].packages == TWO[1:]


@pytest.mark.parametrize("modern", [False, True])
def test_a_failure_is_one_sentence_by_name(monkeypatch, needs, modern):
    needs(*TWO)
    slicer = Slicer(monkeypatch, Packages(monkeypatch), modern, fails=("second-package",))
    with pytest.raises(ShapePriorError, match="'second-package>=3' could not") as caught:
        installed(slicer, User())
    assert caught.value.code == "install-failed"
    assert ("No matching distribution" in caught.value.what) is modern
    assert dependencies.missing() == TWO[1:]


def test_a_package_that_is_not_found_afterwards_is_told(monkeypatch, needs):
    needs(*TWO)
    slicer = Slicer(monkeypatch, Packages(monkeypatch))
    monkeypatch.setattr(slicer.packages, "versions", {}, raising=True)
    monkeypatch.setattr(slicer, "done", lambda *_: 0)
    with pytest.raises(ShapePriorError, match="cannot be found after"):
        installed(slicer, User())


class TorchUtils(types.ModuleType):
    """The PyTorch extension's module, with the signature of its source."""

    def __init__(self, packages, works=True):
        super().__init__("PyTorchUtils")
        outer = self
        self.calls = []

        class PyTorchUtilsLogic:
            def installTorch(
                self,
                askConfirmation=False,
                forceComputationBackend=None,
                torchVersionRequirement=None,
            ):
                outer.calls.append((askConfirmation, torchVersionRequirement))
                outer.held = os.environ["PIP_CONSTRAINT"]
                if not works:
                    return None
                packages.versions["torch"] = "2.9.0+cpu"
                return object()

        self.PyTorchUtilsLogic = PyTorchUtilsLogic


@pytest.mark.parametrize("before", [None, "mine.txt"])
def test_torch_comes_through_its_extension(monkeypatch, needs, before):
    needs(TWO[0], torch=True)
    if before is None:
        monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    else:
        monkeypatch.setenv("PIP_CONSTRAINT", before)
    packages = Packages(monkeypatch, numpy="2.0.2")
    utils = TorchUtils(packages)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", utils)
    slicer, user = Slicer(monkeypatch, packages), User()
    assert installed(slicer, user) is Outcome.READY
    assert len(user.questions) == 1
    assert "PyTorch" in user.questions[0].details
    assert utils.calls == [(False, ">=2.5")]
    assert utils.held.startswith("file://")
    assert os.environ.get("PIP_CONSTRAINT") == before
    assert [call[-1] for call in slicer.calls] == [TWO[0]]


def test_torch_that_its_extension_cannot_install_is_told(monkeypatch, needs):
    needs(torch=True)
    packages = Packages(monkeypatch)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", TorchUtils(packages, works=False))
    with pytest.raises(ShapePriorError, match="PyTorch extension could not"):
        installed(Slicer(monkeypatch, packages), User())
    assert "PIP_CONSTRAINT" not in os.environ


@pytest.fixture
def noExtension(monkeypatch):
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)  # as if it could not be found


@pytest.mark.usefixtures("noExtension")
def test_without_the_extension_both_ways_are_offered(monkeypatch, needs):
    needs(TWO[0], torch=True)
    packages = Packages(monkeypatch)
    slicer, user = Slicer(monkeypatch, packages), User(PIP)
    assert installed(slicer, user) is Outcome.READY
    assert [answer for answer, _ in user.questions[0].choices] == [EXTENSION, PIP, CANCEL]
    assert [call[-1] for call in slicer.calls] == [TWO[0], dependencies.TORCH]


@pytest.mark.usefixtures("noExtension")
def test_the_extension_is_installed_last_and_needs_a_restart(monkeypatch, needs):
    needs(TWO[0], torch=True)
    slicer, user = Slicer(monkeypatch, Packages(monkeypatch)), User(EXTENSION)
    assert installed(slicer, user) is Outcome.RESTART
    assert slicer.calls == [["--prefer-binary", TWO[0]], ["extension", "PyTorch", False]]
    assert slicer.interactiveWhileInstalling is False
    assert slicer.manager.interactive is True
    slicer.extensionWorks = False
    with pytest.raises(ShapePriorError, match="extension could not be installed"):
        installed(slicer, user)
    assert slicer.manager.interactive is True


@pytest.mark.usefixtures("noExtension")
@pytest.mark.parametrize("modern", [False, True])
def test_wheels_come_from_a_folder_without_network(monkeypatch, needs, tmp_path, modern):
    needs(TWO[0], torch=True)
    folder = tmp_path / "my wheels"
    folder.mkdir()
    slicer, user = Slicer(monkeypatch, Packages(monkeypatch), modern), User()
    with pytest.raises(ShapePriorError) as caught:
        installed(slicer, user, wheels=folder)
    assert caught.value.code == "no-wheels"
    (folder / "any.whl").write_bytes(b"")
    assert installed(slicer, user, wheels=folder) is Outcome.READY
    offline = ["--prefer-binary", "--no-index", "--find-links", str(folder)]
    assert slicer.calls == [[*offline, TWO[0]], [*offline, dependencies.TORCH]]
    assert "without network" in user.questions[0].details
