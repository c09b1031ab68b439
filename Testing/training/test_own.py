"""Train your own: from a folder of labels, by the command line, to a prior that fits everywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from model_server.cases import simulate
from model_server.commands.training_progress import TrainingProgress
from model_server.errors import ShapePriorError
from model_server.evaluation.metrics import dice
from model_server.geometry.labels import surface_from_label
from model_server.io.markups import Markup, write_markups
from model_server.io.surfaces import read_surface
from model_server.io.volumes import read_volume
from model_server.priors.card import CARD_FILE, read_card
from model_server.service.app import prior_cards
from model_server.service.sessions import Priors
from model_server.training import checkpoints, own
from model_server.training.own import LossCurve, train_own

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SECONDS = 240.0  # until a process that hangs is given up
# As small as learns anything.
TINY: dict[str, dict[str, Any]] = {
    "dals": {"latent_size": 8, "hidden": [32, 32, 16], "level": 2, "batch": 6,
             "augmentations": 2, "points": 200},
    "implicit-atlas": {"latent_size": 8, "channels": [8, 8, 8], "hidden": 8, "batch": 4,
                       "templates": 2, "augmentations": 1, "near_points": 256},
}  # fmt: skip
STEPS = {"dals": 1000, "implicit-atlas": 400}


def command(method: str, labels: Path, output: Path, steps: int) -> list[str]:
    words = ["train", "--method", method, "--organ", "bean", "--labels", str(labels)]
    words += ["--output", str(output), "--steps", str(steps), "--device", "cpu"]
    for name, value in TINY[method].items():
        words += ["--option", f"{name}={json.dumps(value)}"]
    return words


def quickly(labels: Path, output: Path, **changes: Any) -> Any:
    """A PCA prior: all of the way but the optimization."""
    return train_own("pca", "bean", labels, output, options={"grid": 24}, **changes)


def folders(output: Path) -> list[str]:
    return sorted(p.name for p in output.iterdir())


# --- from end to end ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dals", "implicit-atlas"])
def test_an_ended_training_goes_on_and_its_prior_fits(
    shape_prior, shapes, tmp_path, monkeypatch, method
):
    zoo, steps = tmp_path / "zoo", STEPS[method]
    words = command(method, shapes, zoo, steps)
    process = subprocess.Popen(
        [sys.executable, "-m", "model_server", *words],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        # Started in the background of a shell, pytest itself may ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        end = time.monotonic() + SECONDS
        while not list(zoo.glob("*.unfinished-*/curve.json")):  # of the first steps
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM if method == "dals" else signal.SIGINT)
        process.wait(SECONDS)
        said = process.stderr.read().decode()
    finally:
        process.kill()
    name = f"bean-{'dals' if method == 'dals' else 'atlas'}"
    assert [f.split("-")[1].split(".")[1] for f in folders(zoo)] == ["unfinished"]
    assert process.returncode == (143 if method == "dals" else 130), said
    assert "'bean-pca' whole and" in said
    assert "steps of the training" in said
    assert "goes on from there: shape-prior train --method" in said
    assert "Traceback" not in said

    shares: list[float] = []
    monkeypatch.setattr(
        TrainingProgress,
        "__call__",
        lambda self, stage, share, figures: shares.append(share) if stage == "training" else None,
    )
    done = shape_prior(*words)
    assert done.returncode == 0, done.stderr
    assert "Going on from the checkpoint" in done.stderr
    kept = int(said.partition("whole and ")[2].split()[0])
    assert min(s for s in shares if s > 0) > kept / steps
    assert folders(zoo) == sorted([name, "bean-pca"])
    assert sorted(p.name for p in (zoo / name).iterdir()) == [
        "loss.png", CARD_FILE, "weights.safetensors"
    ]  # fmt: skip
    assert "clicks-64" in done.stdout
    assert "on new ones it does worse" in done.stdout
    card = read_card(zoo / name)
    assert card.licence == "the user's own"
    assert card.scores["clicks-64"]["cases"] == own.MEASURED
    assert card.scores["clicks-64"]["failed"] == 0
    assert card.scores["clicks-64"]["dice"] > 0.8
    assert_fits(shape_prior, name, zoo, shapes, tmp_path, monkeypatch)


def test_a_trained_prior_is_known_everywhere(shape_prior, shapes, tmp_path, monkeypatch):
    zoo = tmp_path / "zoo"
    words = ("--method", "pca", "--organ", "bean", "--option", "grid=24")
    done = shape_prior("train", *words, "--labels", shapes, "--output", zoo)
    assert done.returncode == 0, done.stderr
    assert folders(zoo) == ["bean-pca"]
    assert_fits(shape_prior, "bean-pca", zoo, shapes, tmp_path, monkeypatch)


def assert_fits(shape_prior, name, zoo, shapes, tmp_path, monkeypatch) -> None:
    """By the command line and in the server, by its name."""
    monkeypatch.setenv("SHAPE_PRIOR_ZOO", str(zoo))
    label = read_volume(shapes / "case_2.nrrd")
    truth = surface_from_label(label)
    points = simulate.clicks(truth, 60, np.random.default_rng(0))
    path, out = tmp_path / "clicks.mrk.json", tmp_path / "out.ply"
    write_markups(path, [Markup("edge", "Fiducial", points.boundary_points())])
    done = shape_prior("fit", "--prior", name, "--annotations", path, "--output", out, "--quiet")
    assert done.returncode == 0, done.stderr
    assert dice(read_surface(out)[0], label) > 0.8
    assert name in [card["name"] for card in prior_cards()["priors"]]
    served = list(Priors("cpu").get(name).fit(points))
    assert dice(served[-1].surface, label) > 0.8


def test_real_hippocampi_become_a_prior(data_root, tmp_path):
    """Five real volumes; the scores are those of a PCA that has seen them."""
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in sorted((data_root / "hippocampus" / "labels").iterdir())[1:6]:
        shutil.copy(path, labels)
    card = train_own("pca", "hippocampus", labels, tmp_path / "zoo")
    assert card.scores["outlines"]["dice"] > 0.85
    assert card.scores["outlines"]["seen_in_training"]
    assert card.training_data == "label volumes in labels"


@pytest.mark.slow
def test_twenty_volumes_hold_some_out(hippocampus, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    for index in range(20):
        image = hippocampus(index % 8)
        image.SetSpacing([1.0 + 0.01 * index] * 3)
        sitk.WriteImage(image, str(labels / f"case_{index:02d}.nrrd"))
    card = quickly(labels, tmp_path / "zoo")
    assert card.splits["validation"] == ["case_00", "case_10"]
    assert not card.scores["outlines"]["seen_in_training"]
    assert list(card.scores["outlines"]["dice_by_case"]) == ["case_00", "case_10"]


def test_both_sides_of_a_pair_make_one_prior(hippocampus, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    for index in range(6):
        side = "left" if index % 2 else "right"
        image = hippocampus(index)
        array = sitk.GetArrayFromImage(image)[:, :, :: 1 if side == "left" else -1]
        flipped = sitk.GetImageFromArray(array)
        flipped.CopyInformation(image)
        sitk.WriteImage(flipped, str(labels / f"patient{index // 2}_{side}.nrrd"))
    card = quickly(labels, tmp_path / "zoo")
    assert card.mirrors
    assert card.scores["clicks-64"]["dice"] > 0.85


# --- nothing is mixed -----------------------------------------------------------------------------


class Interrupting:
    """A progress callback at which the user presses Ctrl-C."""

    def __init__(self, stage: str, share: float = 0.0) -> None:
        self.stage, self.share = stage, share

    def __call__(self, stage: str, share: float, figures: dict[str, Any]) -> None:
        if stage == self.stage and share >= self.share:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_other_labels_and_options_never_take_a_checkpoint(shapes, hippocampus, tmp_path):
    zoo, labels = tmp_path / "zoo", Path(shutil.copytree(shapes, tmp_path / "labels"))
    options = TINY["dals"] | {"augmentations": 1}
    for stop in (0.75, 0.8):  # the second time it goes on from the first
        with pytest.raises(KeyboardInterrupt):
            train_own("dals", "bean", labels, zoo, steps=600, options=options,
                      progress=Interrupting("training", stop))  # fmt: skip
    (first,) = zoo.iterdir()
    kept = (first / "checkpoint.pt").read_bytes()

    said: list[str] = []
    begun: list[float] = []

    def note(stage: str, share: float, figures: dict[str, Any]) -> None:
        if stage == "training" and figures:
            begun.append(share)
            raise KeyboardInterrupt

    sitk.WriteImage(hippocampus(6), str(labels / "case_5.nrrd"))
    with pytest.raises(KeyboardInterrupt):
        train_own("dals", "bean", labels, zoo, steps=600, options=options, progress=note,
                  told=said.append)  # fmt: skip
    (labels / "case_5.nrrd").unlink()
    with pytest.raises(KeyboardInterrupt):
        train_own("dals", "bean", labels, zoo, steps=650, options=options, progress=note)
    assert begun == pytest.approx([50 / 600, 50 / 650])
    assert said[0] == (
        f"Unfinished trainings of other labels or options are left alone: {first.name}. Remove "
        "them if they are not needed."
    )
    assert (first / "checkpoint.pt").read_bytes() == kept
    with pytest.raises(KeyboardInterrupt):  # the same again goes on
        train_own("dals", "bean", labels, zoo, steps=600, options=options, progress=note)
    assert begun[-1] > 500 / 600


def test_interrupted_while_measuring_nothing_is_trained_again(shapes, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        quickly(shapes, tmp_path, progress=Interrupting("measuring"))
    assert not (tmp_path / "bean-pca").exists()
    monkeypatch.setattr(own, "train_on", None)  # would fail if called
    quickly(shapes, tmp_path)
    assert folders(tmp_path) == ["bean-pca"]


@pytest.mark.slow
def test_a_quick_look_of_the_same_labels_is_used_again(shapes, tmp_path):
    quickly(shapes, tmp_path)
    before = (tmp_path / "bean-pca" / CARD_FILE).read_bytes()
    train_own("dals", "bean", shapes, tmp_path, steps=50, options=TINY["dals"])
    assert (tmp_path / "bean-pca" / CARD_FILE).read_bytes() == before


@pytest.mark.slow
def test_a_prior_is_not_robbed_of_its_quick_look(shapes, hippocampus, tmp_path):
    zoo, labels = tmp_path / "zoo", Path(shutil.copytree(shapes, tmp_path / "labels"))
    train_own("dals", "bean", labels, zoo, steps=50, options=TINY["dals"])
    before = {p: p.read_bytes() for p in zoo.rglob("*.*") if p.is_file()}
    sitk.WriteImage(hippocampus(6), str(labels / "case_5.nrrd"))
    with pytest.raises(ShapePriorError, match="bean-dals' was trained on other labels"):
        quickly(labels, zoo)
    assert {p: p.read_bytes() for p in zoo.rglob("*.*") if p.is_file()} == before
    # The prior itself may be trained anew: its quick look goes with it.
    train_own("dals", "bean", labels, zoo, steps=50, options=TINY["dals"])
    cards = [read_card(zoo / name) for name in folders(zoo)]
    assert [len(card.splits["training"]) for card in cards] == [6, 6]


# --- what cannot be done --------------------------------------------------------------------------


def test_bad_labels_leave_no_trace(shape_prior, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    for index in range(5):
        sitk.WriteImage(sitk.Image([9, 9, 9], sitk.sitkUInt8), str(labels / f"{index}.nrrd"))
    done = shape_prior(*command("dals", labels, tmp_path / "zoo", 100))
    assert done.returncode == 2
    assert done.stderr.count("is empty: no voxel has a label: segment the organ") == 5
    assert done.stderr.splitlines()[-1].strip() == "Nothing was trained."
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--organ", "../liver"), "cannot name a prior"),
        (("--method", "magic"), "no method 'magic'"),
        (("--option", "colour=3"), "dals has no option colour"),
        (("--steps", "0"), "less than one step"),
        (("--label", "one"), "not a list of label values"),
    ],
)
def test_a_wrong_choice_is_one_sentence(shape_prior, shapes, tmp_path, words, sentence):
    given = command("dals", shapes, tmp_path / "zoo", 100)
    for option, value in zip(words[::2], words[1::2], strict=True):
        given += [option, value]
    done = shape_prior(*given)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("Error: ")
    assert sentence in done.stderr
    assert not (tmp_path / "zoo").exists()


def test_an_output_below_a_file_is_refused_before_any_work(shapes, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShapePriorError, match="cannot be made"):
        quickly(shapes, tmp_path / "file" / "zoo", progress=Interrupting("aligning shapes"))


def test_a_disk_without_room_is_refused_before_any_work(shapes, tmp_path, monkeypatch):
    little = shutil.disk_usage(tmp_path)._replace(free=12_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: little)
    with pytest.raises(ShapePriorError, match="12 MB free"):
        quickly(shapes, tmp_path / "zoo", progress=Interrupting("aligning shapes"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs resource limits")
def test_a_disk_that_fills_up_leaves_no_half_prior(shapes, tmp_path):
    """The real failure: no file may grow beyond 20 kB."""
    limited = (
        "import resource, sys; from model_server.commands.main import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); main()"
    )
    words = ["train", "pca", "--organ", "bean", "--labels", str(shapes), "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", limited, *words, "--quiet"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert not (tmp_path / "bean-pca").exists()
    quickly(shapes, tmp_path)


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(shapes, tmp_path, monkeypatch):
    def full(self: Path, content: bytes) -> None:
        if "checkpoint" in self.name:
            raise OSError(28, "No space left on device")
        write(self, content)

    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    with pytest.raises(ShapePriorError, match="cannot be written"):
        train_own("dals", "bean", shapes, tmp_path, steps=600, options=TINY["dals"])


# --- the curve ------------------------------------------------------------------------------------


def test_a_curve_goes_on_where_its_training_does(tmp_path):
    file = tmp_path / "curve.json"
    curve = LossCurve(file=file)
    for share in (0.1, 0.2, 0.3):
        curve("training", share, {"wrapped": 1.0 - share})
    again = LossCurve(file=file)
    again("training", 0.2, {"wrapped": 0.7})  # the checkpoint was older
    again("training", 0.4, {"chamfer": 0.1})
    assert [share for share, _ in again.points] == [0.1, 0.2, 0.4]
    again.draw(tmp_path / "loss.png", "bean", {"outlines": {"dice_by_case": {"a": 0.9}}})
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
