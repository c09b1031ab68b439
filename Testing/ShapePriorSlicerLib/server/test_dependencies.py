"""What is missing, and installing it: with a stand-in for Slicer, and with pip itself."""

from __future__ import annotations

import os
import subprocess
import sys
import types
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from ShapePriorSlicerLib.server import dependencies
from ShapePriorSlicerLib.server.dependencies import CANCEL, EXTENSION, INSTALL, PIP, Outcome

from model_server.errors import ShapePriorError

TWO = ("first-package>=1.2", "second-package>=3")


class Packages:
    """The packages pip knows of."""

    def __init__(self, monkeypatch, **versions):
        self.versions = {name.replace("_", "-"): v for name, v in versions.items()}
        monkeypatch.setattr(dependencies.importlib.metadata, "version", self.version)

    def version(self, name):
        if name not in self.versions:
            raise metadata.PackageNotFoundError(name)
        return self.versions[name]


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


@pytest.fixture
def needs(monkeypatch, tmp_path):
    """``needs("a>=1", ...)``: what the backend needs besides torch."""

    def make(*specs, torch=False):
        path = tmp_path / "requirements.txt"
        path.write_text("\n".join(("# a comment", "", *specs, "")))
        monkeypatch.setattr(dependencies, "REQUIREMENTS", path)
        if not torch:
            monkeypatch.setattr(dependencies, "requirements", lambda remote=False: specs)

    return make


class User:
    """Answers, and remembers what was asked and told."""

    def __init__(self, answer=INSTALL, cancelAt=None):
        self.answer, self.cancelAt, self.questions, self.steps = answer, cancelAt, [], []

    def ask(self, question):
        self.questions.append(question)
        assert self.answer in dict(question.choices)
        assert question.choices[-1][0] == CANCEL
        return self.answer

    def progress(self, step):
        self.steps.append(step)
        return len(self.steps) != self.cancelAt


def installed(slicer, user, **options):
    return dependencies.install(user.ask, user.progress, slicer, **options)


# --- what is there ------------------------------------------------------------------------------


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


# --- with the stand-in --------------------------------------------------------------------------


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
    assert "PyTorch" in user.questions[0].text
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
    assert "without network" in user.questions[0].text


# --- with pip itself ----------------------------------------------------------------------------


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
