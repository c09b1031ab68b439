"""The harness on priors whose scores are known, and on ones that fail."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analytic_surfaces import ellipsoid, sphere
from matplotlib.figure import Figure

from model_server.errors import ShapePriorError
from model_server.evaluation import harness, plots
from model_server.evaluation.harness import Method, evaluate
from model_server.evaluation.metrics import Truth
from model_server.evaluation.plots import _spread, plot_costs, plot_curves, plot_methods
from model_server.evaluation.protocols import FIXED, find_protocol
from model_server.evaluation.results import CaseRecord, EvaluationResult
from model_server.io.volumes import image_from_array
from model_server.observations import Observations, Volume
from model_server.pose import Pose
from model_server.priors.card import PriorCard
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Provenance, Reconstruction, Surface

TRUE_RADII = (14.0, 12.0, 10.0)


@dataclass(frozen=True)
class AnalyticCase:
    """An ellipsoid at a place that its name tells."""

    name: str

    def label(self) -> Volume:
        center = (float(self.name[-1]), 0.0, 0.0)
        return Truth.from_surface(ellipsoid(TRUE_RADII, center), np.array([1.0, 1.0, 2.0])).label


class BoxPrior:
    """An ellipsoid inflated by ``extra_mm`` in the annotations' bounding box, after a ball."""

    def __init__(self, name: str, extra_mm: float = 0.0, rms_radius: float | None = 0.5) -> None:
        self.card = PriorCard(name, "test", "box")
        self.extra_mm = extra_mm
        if rms_radius:
            self.rms_radius = rms_radius
        self.seen: list[Observations] = []
        self.settings: list[FitSettings] = []

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        self.seen.append(observations)
        self.settings.append(settings)
        points = observations.spanning_points()
        low, high = points.min(axis=0), points.max(axis=0)
        center, radii = 0.5 * (low + high), 0.5 * (high - low)
        yield self.answer(sphere(float(radii.mean()), tuple(center), level=3), "quick look")
        time.sleep(0.05)
        yield self.answer(ellipsoid(tuple(radii + self.extra_mm), tuple(center), 3), "final")

    def answer(self, surface: Surface, stage: str) -> Reconstruction:
        return Reconstruction(
            *(surface, surface.points, Pose(np.zeros(3), 1.0), np.zeros(1), stage, ()),
            provenance=Provenance(self.card.name, "0", "cpu"),
            warnings=("a warning",),
        )


class FailingPrior(BoxPrior):
    """Fails on every case but the first."""

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        if observations.spanning_points().mean() > 0.5:
            raise ShapePriorError("It does not fit.", "Try another.")
        yield from super().fit(observations, start, settings)


class SilentPrior(BoxPrior):
    """Yields nothing."""

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        yield from ()


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> list[AnalyticCase]:
    found = [AnalyticCase(f"case_{i}") for i in (0, 3, 6)]
    monkeypatch.setattr(harness, "cases_of", lambda *_: found)
    return found


def compare(priors: dict[str, BoxPrior], **changes: Any) -> EvaluationResult:
    return evaluate(
        *("test", Path("nowhere"), list(priors)),
        load=lambda name, device: priors[name],
        **changes,
    )


def test_methods_are_measured_timed_and_compared(cases: list[AnalyticCase]) -> None:
    result = compare({"good": BoxPrior("good"), "fat": BoxPrior("fat", 3.0)}, every_stage=True)
    assert len(result.records) == 6
    assert result.mean("good", "dice") > 0.95
    assert result.mean("fat", "assd_mm") == pytest.approx(3.0, abs=0.4)
    for record in result.records:
        assert record.error is None
        assert record.seconds_first > 0
        assert record.seconds_final > record.seconds_first + 0.045
        assert list(record.stages) == ["quick look", "final"]
        assert (
            record.stages["quick look"]["dice"] < record.metrics["dice"] or record.method == "fat"
        )
        assert record.warnings == ("a warning",)
    by_metric = {p.metric: p for p in result.paired("good")}
    assert set(by_metric) == {"dice", "nsd", "hd95_mm"}
    for pair in by_metric.values():
        assert (pair.other, pair.wins, pair.losses, pair.cases) == ("fat", 3, 0, 3)
        assert pair.verdict == "better"
    assert by_metric["hd95_mm"].difference < -2.0
    assert {p.verdict for p in result.paired("fat")} == {"worse"}


def test_all_methods_get_the_same_annotations_in_every_run(cases: list[AnalyticCase]) -> None:
    first, second = BoxPrior("first"), BoxPrior("second")
    compare({"first": first, "second": second})
    alone = BoxPrior("second")
    compare({"second": alone}, limit=2)
    # The first fit of each warms up, on the first case.
    assert len(first.seen) == 4
    for mine, his in zip(first.seen, second.seen, strict=True):
        assert np.array_equal(mine.spanning_points(), his.spanning_points())
    for mine, his in zip(first.seen[:3], alone.seen, strict=True):
        assert np.array_equal(mine.spanning_points(), his.spanning_points())
    assert not np.allclose(first.seen[1].outlines[0].origin, first.seen[2].outlines[0].origin)


def test_repeats_draw_anew_and_are_named(cases: list[AnalyticCase]) -> None:
    prior = BoxPrior("box")
    result = compare({"box": prior}, repeats=2, limit=1)
    assert [r.case for r in result.records] == ["case_0", "case_0#1"]
    assert not np.array_equal(prior.seen[1].spanning_points(), prior.seen[2].spanning_points())


def test_failures_are_reported_and_count_against_the_method(cases: list[AnalyticCase]) -> None:
    result = compare({"good": BoxPrior("good"), "bad": FailingPrior("bad", 3.0)})
    assert set(result.failures("bad")) == {"case_3", "case_6"}
    assert "It does not fit" in result.failures("bad")["case_3"]
    row = result.summary()["bad"]
    assert row["refused"] == 2
    finished = result.of("bad")["case_0"].metrics
    assert row["dice"] == pytest.approx(finished["dice"] / 3)
    assert row["nsd"] == pytest.approx(finished["nsd"] / 3)
    assert row["dice_worst_tenth"] == 0.0
    assert row["hd95_mm"] == pytest.approx(finished["hd95_mm"])  # there is no distance to nothing
    pair = result.paired("good", ["dice"])[0]
    assert (pair.wins, pair.losses, pair.cases) == (3, 0, 3)
    assert pair.difference > 0.5
    pair = result.paired("good", ["hd95_mm"])[0]
    assert (pair.wins, pair.losses, pair.cases) == (3, 0, 1)
    assert np.isnan(pair.error)
    assert pair.verdict == "level"  # one common case tells nothing about the mean
    assert "bad failed on 2 cases, case_3 first: ShapePriorError: It does not fit" in (
        result.markdown()
    )


def test_a_fit_without_a_surface_is_a_failure(cases: list[AnalyticCase]) -> None:
    result = compare({"silent": SilentPrior("silent")}, limit=1)
    assert "no surface" in result.failures("silent")["case_0"]
    assert result.mean("silent", "dice") == 0.0
    assert np.isnan(result.mean("silent", "assd_mm"))
    assert "| silent | 0.0000 | 0.0000 | 0.0000 | - | - | 1 | 1 |" in result.markdown()


def test_a_prior_that_cannot_be_loaded_fails_on_every_case(cases: list[AnalyticCase]) -> None:
    result = evaluate("test", Path("nowhere"), ["no-such-prior"])
    assert len(result.failures("no-such-prior")) == 3
    assert "There is no prior called" in result.failures("no-such-prior")["case_0"]


def test_the_known_pose_is_given_in_the_priors_own_units(cases: list[AnalyticCase]) -> None:
    prior = BoxPrior("box", rms_radius=0.25)
    compare({"box": prior}, protocol="outlines-paper")
    pose = prior.settings[-1].pose
    assert pose is not None
    assert pose.translation == pytest.approx([6, 0, 0], abs=0.2)
    # The RMS radius of the truth over 0.25; it lies between the smallest and largest half axis.
    assert 10 / 0.25 < pose.scale < 14 / 0.25
    compare({"box": prior}, protocol="outlines-paper-unknown")
    assert prior.settings[-1].pose is None


def test_a_prior_without_a_scale_cannot_be_given_the_pose(cases: list[AnalyticCase]) -> None:
    result = compare({"box": BoxPrior("box", rms_radius=None)}, protocol="outlines-paper", limit=1)
    assert "how large its canonical shapes are" in result.failures("box")["case_0"]


def test_cases_that_a_prior_was_trained_on_are_told(cases: list[AnalyticCase]) -> None:
    prior = BoxPrior("box")
    prior.card = PriorCard("box", "test", "box", splits={"training": ["case_3", "case_9"]})
    result = compare({"box": prior})
    assert [r.case for r in result.records if r.trained_on] == ["case_3"]
    assert "box was trained on 1 of these cases (case_3" in result.markdown()
    assert compare({"box": BoxPrior("box")}).remarks() == []


def test_methods_by_name() -> None:
    assert Method.named("dals", "kidney").prior == "kidney-dals"
    assert Method.named("rbf", "kidney").prior == "rbf"
    assert Method.named("kidney-dals", "kidney").prior == "kidney-dals"
    assert Method("x", "x", {"local": False}).fit_settings() == FitSettings(local=False)
    with pytest.raises(ShapePriorError, match="'x' asks for the unknown setting"):
        Method("x", "x", {"locale": 1}).fit_settings()


def test_the_worst_tenth_is_of_the_worst_cases() -> None:
    dices = [0.9 - 0.01 * i for i in range(25)]
    result = made_up({"a": dices, "none": []})
    assert result.worst_tenth("a") == pytest.approx(np.mean(sorted(dices)[:3]))
    assert result.worst_tenth("a", "hd95_mm") == pytest.approx(10 * (1 - np.mean(dices[-3:])))
    assert np.isnan(result.worst_tenth("none"))


CLICKS = ["clicks-20", *(f"clicks-{kind}-20" for kind in ("random", "clustered", "slices", "half"))]


MASKS = ("mask", "network-mask")
SEEN = {"one-outline": (1, 0), "none": (0, 0)}  # too little without an image


@pytest.mark.parametrize("name", [*FIXED, "points-300", *CLICKS, "planes-4", "drawn-4", "stack-4"])
def test_every_protocol_annotates(name: str) -> None:
    protocol = find_protocol(name)
    truth = Truth.from_label(AnalyticCase("case_3").label())
    observations = protocol.observations(truth, "case_3")
    if name not in SEEN:
        observations.require_enough()
    counts = {
        **SEEN,
        "points-300": (0, 300),
        "two-outlines": (2, 0),
        **dict.fromkeys(CLICKS, (0, 20)),
        "stack-4": (3, 0),  # of nine slices
        "planes-4": (4, 0),
        "drawn-4": (4, 0),
        "mixture": (2, 10),
        **dict.fromkeys(MASKS, (0, 0)),
    }
    found = (len(observations.outlines), len(observations.boundary_points()))
    assert found == counts.get(name, (3, 0))
    assert (observations.label_map is not None) == (name in MASKS)


@pytest.mark.parametrize("name", ["lines", "points-0", "clicks-many", "planes"])
def test_unknown_protocols_are_refused(name: str) -> None:
    with pytest.raises(ShapePriorError, match=f"no protocol called '{name}'"):
        find_protocol(name)


def test_no_method_is_an_error() -> None:
    with pytest.raises(ShapePriorError, match="No method"):
        evaluate("hippocampus", Path("nowhere"), [])


def test_no_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShapePriorError, match="no folder"):
        evaluate("hippocampus", tmp_path / "nowhere", ["rbf"])
    with pytest.raises(ShapePriorError, match="no validation case"):
        evaluate("hippocampus", tmp_path, ["rbf"])


def test_cases_come_from_the_split_of_the_folder(tmp_path: Path) -> None:
    import SimpleITK

    labels = tmp_path / "hippocampus" / "labels"
    labels.mkdir(parents=True)
    label = AnalyticCase("case_0").label()
    image = image_from_array(np.asarray(label.array).astype(np.uint8), label.ijk_to_ras)
    for index in range(12):
        SimpleITK.WriteImage(image, str(labels / f"hippocampus_{index:03d}.nii.gz"))
    names = [c.name for c in harness.cases_of("hippocampus", tmp_path)]
    assert names == ["hippocampus_000", "hippocampus_010"]
    assert len(harness.cases_of("hippocampus", tmp_path / "hippocampus", "training")) == 10
    assert len(harness.cases_of("hippocampus", tmp_path, "all")) == 12
    with pytest.raises(ShapePriorError, match="no split 'test'"):
        harness.cases_of("hippocampus", tmp_path, "test")
    good = BoxPrior("good")
    result = evaluate("hippocampus", tmp_path, ["good"], load=lambda *_: good)
    assert len(result.records) == 2
    assert result.mean("good", "dice") > 0.9


def test_results_survive_the_file(cases: list[AnalyticCase], tmp_path: Path) -> None:
    output = tmp_path / "deep" / "result.json"
    priors = {"good": BoxPrior("good"), "bad": FailingPrior("bad")}
    result = compare(priors, output=output, every_stage=True)
    assert EvaluationResult.load(output) == result
    data = json.loads(output.read_text())
    assert data["summary"]["good"]["dice"] == pytest.approx(result.mean("good", "dice"))
    assert {"cpu", "cores", "date", "commit"} <= data["machine"].keys()
    assert [p["metric"] for p in data["paired"]["good"]] == ["dice", "nsd", "hd95_mm"]
    assert not list(output.parent.glob("*.part"))


def made_up(values: dict[str, list[float]]) -> EvaluationResult:
    """A result with the given Dice by method."""
    records = tuple(
        CaseRecord(f"case {i}", method, {"dice": dice, "nsd": dice, "hd95_mm": 10 * (1 - dice)})
        for method, dices in values.items()
        for i, dice in enumerate(dices)
    )
    return EvaluationResult(
        "test", "outlines", "made up", "validation", 1.0, tuple(values), records
    )


def test_the_paired_difference_and_its_standard_error() -> None:
    result = made_up({"a": [0.9, 0.8, 0.7, 0.6], "b": [0.8, 0.8, 0.5, 0.7]})
    pair = result.paired("a", ["dice"])[0]
    # Differences 0.1, 0, 0.2, -0.1: mean 0.05, standard deviation 0.1291, over sqrt(4).
    assert pair.difference == pytest.approx(0.05)
    assert pair.error == pytest.approx(0.1290994 / 2)
    assert (pair.wins, pair.losses, pair.verdict) == (2, 1, "level")
    distance = result.paired("a", ["hd95_mm"])[0]
    assert (distance.difference, distance.wins) == (pytest.approx(-0.5), 2)


def test_tables_show_every_method() -> None:
    result = made_up({"a": [0.9, 0.8], "b": [0.7, 0.5]})
    text = result.markdown()
    assert "| method | Dice | worst tenth | NSD | HD95 mm |" in text
    assert "| a | 0.8500 | 0.8000 | 0.8500 |" in text
    assert "cases | refused |" in text
    assert "| b | +0.2500 ± 0.0500 (2/0) better |" in text
    assert "NSD at 1 mm" in text
    assert [t.row_count for t in result.tables()] == [2, 1]


def test_plots_are_written(tmp_path: Path) -> None:
    result = made_up({"a": [0.9, 0.8], "b": []})
    plot_methods(result, tmp_path / "methods.png")
    curve = {"dice": {"a": {2: [0.7, 0.8], 3: [0.9, 0.9]}, "b": {2: [], 3: [0.5]}}}
    plot_curves(curve, ["dice"], tmp_path / "curve.png")
    for name in ("methods.png", "curve.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
        assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize(("costs", "scale"), [([0.5, 0.6], "linear"), ([0.5, 50.0], "log")])
def test_costs_start_at_zero_unless_they_are_of_very_different_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, costs: list[float], scale: str
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, *_: drawn.append(figure))
    line = {2: costs, 3: [0.55]}
    panels = {"CPU s": {"a": line}, "MB": {"a": {2: [400.0], 3: [401.0]}}}
    plot_costs(panels, tmp_path / "costs.png", "planes", "a machine")
    seconds, memory = drawn[0].axes
    assert seconds.get_yscale() == scale
    assert seconds.get_title() == "CPU s"
    assert memory.get_ylim()[0] == 0.0
    assert memory.get_ylim()[1] > 401.0
    assert seconds.get_xlabel() == "planes"


def test_counts_of_very_different_size_stand_apart() -> None:
    axis = Figure().add_subplot()
    _spread(axis, [10, 20, 1024])
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["10", "20", "1024"]
    near = Figure().add_subplot()
    _spread(near, [2, 3, 10])
    assert near.get_xscale() == "linear"
