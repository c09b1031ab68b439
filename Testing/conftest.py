"""What several tests need: the data folder, and annotations of a hippocampus-like ellipsoid."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_readers import NAME, ellipsoid_image, read_by_brightness, write_reader
from numpy.typing import NDArray

from model_server.commands.main import app, split_several
from model_server.imaging.reader import ImageReader
from model_server.io.markups import Markup, write_markups
from model_server.io.volumes import image_from_array, write_image
from model_server.observations import Volume
from model_server.priors.registry import ZOO_VARIABLE

Array = NDArray[np.float64]
REPOSITORY = Path(__file__).resolve().parent.parent
RADII = np.array([7.0, 20.0, 8.0])  # of a hippocampus, mm along R, A, S
CENTER = np.array([-25.0, 10.0, 30.0])  # RAS mm


def pytest_configure() -> None:
    """Ctrl-C is heard: a shell lets what it starts in the background ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Trainings come first: what takes longest must not be what one of two processes ends with."""
    items.sort(key=lambda item: item.path.parent.name != "training")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The label volumes, from SHAPE_PRIOR_DATA or beside the repository."""
    default = REPOSITORY.parent / "shared" / "data"
    root = Path(os.environ.get("SHAPE_PRIOR_DATA", default))
    if not root.is_dir():
        pytest.skip(f"no label volumes in '{root}': set SHAPE_PRIOR_DATA")
    return root


def ellipse(axis: int, offset: float = 0.0, count: int = 16) -> Array:
    """(count, 3) control points, RAS mm, on the ellipsoid's section across ``axis``."""
    first, second = (a for a in range(3) if a != axis)
    angle = np.arange(count) * (2.0 * np.pi / count)
    points = np.zeros((count, 3))
    points[:, axis] = offset
    size = np.sqrt(1.0 - (offset / RADII[axis]) ** 2)
    points[:, first] = size * RADII[first] * np.cos(angle)
    points[:, second] = size * RADII[second] * np.sin(angle)
    return points + CENTER


def outline(axis: int, offset: float = 0.0) -> Markup:
    """A closed curve on the ellipsoid's section across ``axis``."""
    name = f"{('sagittal', 'coronal', 'axial')[axis]} {offset:g}".removesuffix(" 0")
    return Markup(name, "ClosedCurve", ellipse(axis, offset))


@pytest.fixture(scope="session")
def draw() -> Callable[..., Markup]:
    """``draw(axis, offset=0)``: a closed curve on the ellipsoid."""
    return outline


@pytest.fixture
def outlines(tmp_path: Path) -> Path:
    """A markups file with three outlines of the ellipsoid."""
    path = tmp_path / "outlines.mrk.json"
    write_markups(path, [outline(axis) for axis in range(3)])
    return path


@pytest.fixture
def shape_prior(
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``shape_prior("fit", ...)``: the command line in this process."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        said = [str(word) for word in words]
        with pytest.raises(SystemExit) as end:
            app(split_several(said))
        seen = capsys.readouterr()
        return subprocess.CompletedProcess(said, int(end.value.code or 0), seen.out, seen.err)

    return run


@pytest.fixture(scope="session")
def ellipsoid_scan() -> Volume:
    """An image in which the ellipsoid is bright."""
    return ellipsoid_image(CENTER, RADII)


@pytest.fixture(scope="session")
def reader_zoo(ellipsoid_scan: Volume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo with a reader of hippocampi: a tiny network that learned nothing."""
    zoo = tmp_path_factory.mktemp("zoo")
    write_reader(zoo, ellipsoid_scan, CENTER)
    return zoo


@pytest.fixture(scope="session")
def pose_zoo(ellipsoid_scan: Volume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo with a prior that searches images of hippocampi step by step, tiny and untrained."""
    from pose_readers import write_pose_reader

    zoo = tmp_path_factory.mktemp("zoo of dissm")
    write_pose_reader(zoo, ellipsoid_scan, CENTER)
    return zoo


@pytest.fixture
def reader(reader_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same where priors are looked for, its network replaced: what is bright is the organ."""
    monkeypatch.setenv(ZOO_VARIABLE, str(reader_zoo))
    monkeypatch.setattr(ImageReader, "read", read_by_brightness)
    return reader_zoo / NAME


@pytest.fixture
def scan(ellipsoid_scan: Volume, tmp_path: Path) -> Path:
    """A file of the image in which the ellipsoid is bright."""
    path = tmp_path / "scan.nii.gz"
    write_image(path, image_from_array(ellipsoid_scan.array, ellipsoid_scan.ijk_to_ras))
    return path
