"""Runs methods over cases through the same annotations and measures what they return."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from model_server.cases.canonical import standardization
from model_server.cases.organs import labels_of
from model_server.cases.splits import split_cases, volume_files
from model_server.errors import ShapePriorError
from model_server.evaluation.metrics import Truth, measure
from model_server.evaluation.protocols import Protocol as Annotation
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import CaseRecord, EvaluationResult, machine
from model_server.imaging.look import Look
from model_server.imaging.pose_reader import PoseReader
from model_server.imaging.reader import ImageReader, Reader
from model_server.imaging.readers import is_reader
from model_server.io.writing import refuse_inputs
from model_server.observations import Observations, Volume
from model_server.pose import Pose
from model_server.priors.protocol import FitSettings, ShapePrior
from model_server.priors.registry import METHODS, UNTRAINED, files_of, load_prior
from model_server.reconstruction import Reconstruction, Surface
from model_server.threads import begin_with_few

# mm, of the normalized surface distance: a voxel for the hippocampus, and for CT organs, whose
# slices lie 1 to 5 mm apart, what radiologists of different hospitals agree on.
TOLERANCE_MM = {"hippocampus": 1.0}
DEFAULT_TOLERANCE_MM = 2.0
ONLY = {"liver": "lits"}  # AMOS cases stay out unless asked for: their weights are not bundled

Load = Callable[[str, str], ShapePrior]
Progress = Callable[[str, str, int, int], None]


class CaseLike(Protocol):
    """What is needed of a case (``cases.splits.Case`` is one)."""

    @property
    def name(self) -> str:
        """Seeds its annotations, and stands in the records."""
        ...

    def label(self) -> Volume:
        """The label volume; any non-zero voxel is organ."""
        ...

    def image(self) -> Volume | None:
        """The image that shows it, where there is one."""
        ...


@dataclass(frozen=True)
class Method:
    """A prior under a name, perhaps with settings of its own (for ablations).

    Attributes:
        label: as tables show it.
        prior: as ``load_prior`` knows it.
        settings: fields of ``FitSettings`` that differ from the default.
        sees: whether it is given the case's image, read by the organ's reader.
    """

    label: str
    prior: str
    settings: dict[str, Any] = field(default_factory=dict)
    sees: bool = False

    @classmethod
    def named(cls, name: str, organ: str) -> Method:
        """ "dals" -> "hippocampus-dals"; untrained baselines and full names as they are."""
        trained = name in METHODS and name not in UNTRAINED
        return cls(name, f"{organ.replace('_', '-')}-{name}" if trained else name)

    def fit_settings(self, pose: Pose | None = None) -> FitSettings:
        """The settings of a fit.

        Args:
            pose: the true one, where the protocol gives it.

        Raises:
            ShapePriorError: a setting that does not exist.
        """
        chosen = self.settings | ({} if pose is None else {"pose": pose})
        unknown = set(chosen) - {f.name for f in fields(FitSettings)}
        if unknown:
            which = "setting" if len(unknown) == 1 else "settings"
            raise ShapePriorError(
                f"'{self.label}' asks for the unknown {which} {', '.join(sorted(unknown))}.",
                f"Choose among {', '.join(f.name for f in fields(FitSettings))}.",
                "unknown-setting",
            )
        return FitSettings(**chosen)


@dataclass(frozen=True)
class Fitted:
    """What a fit yielded and when: stages in order, each with seconds since the start."""

    stages: tuple[tuple[float, Reconstruction], ...]

    @property
    def final(self) -> Reconstruction:
        """The last surface."""
        return self.stages[-1][1]


def timed_fit(prior: ShapePrior, observations: Observations, settings: FitSettings) -> Fitted:
    """Run a fit to its end, noting when each surface came.

    Raises:
        ShapePriorError: the prior refuses, or yields nothing.
    """
    stages = []
    start = time.perf_counter()
    for reconstruction in prior.fit(observations, settings=settings):
        stages.append((time.perf_counter() - start, reconstruction))
    if not stages:
        raise ShapePriorError("The fit yielded no surface.", "This is a fault of the prior.")
    return Fitted(tuple(stages))


def known_pose(prior: ShapePrior, surface: Surface) -> Pose:
    """The true center and scale in the prior's own canonical frame, axes unturned.

    Raises:
        ShapePriorError: the prior does not tell its canonical scale (``rms_radius``).
    """
    canonical = getattr(prior, "rms_radius", None)
    if canonical is None:
        raise ShapePriorError(
            f"'{prior.card.name}' does not say how large its canonical shapes are.",
            "Use a protocol with the pose unknown.",
            "no-canonical-scale",
        )
    true = standardization(surface)
    return Pose(true.center, true.rms_radius / float(canonical))


def _settings_for(
    method: Method, prior: ShapePrior, protocol: Annotation, truth: Truth
) -> FitSettings:
    # Baselines without a canonical frame have no use for a pose.
    given = protocol.known_pose and prior.card.method not in UNTRAINED
    return method.fit_settings(known_pose(prior, truth.surface) if given else None)


def evaluate_case(
    method: Method,
    prior: ShapePrior,
    protocol: Annotation,
    case: str,
    truth: Truth,
    tolerance_mm: float,
    every_stage: bool = False,
    repeat: int = 0,
    look: Look | None = None,
) -> CaseRecord:
    """One method on one case, with an image where there is a ``look``; whatever goes wrong is in
    the record."""
    name = case if repeat == 0 else f"{case}#{repeat}"
    try:
        observations = protocol.observations(truth, case, repeat)
        if look is not None:
            observations = look.observed(observations, meshes=hasattr(prior, "reader"))
        settings = _settings_for(method, prior, protocol, truth)
        fitted = timed_fit(prior, observations, settings)
        metrics = measure(fitted.final.surface, truth, tolerance_mm)
        stages = _stage_metrics(fitted, truth, tolerance_mm) if every_stage else {}
    except Exception as error:  # a method's fault must not end the comparison of the others
        return CaseRecord(name, method.label, error=f"{type(error).__name__}: {error}")
    return CaseRecord(
        name,
        method.label,
        metrics,
        stages,
        fitted.stages[0][0],
        fitted.stages[-1][0],
        tuple(fitted.final.warnings),
        trained_on=case in prior.card.splits.get("training", []),
    )


def _stage_metrics(
    fitted: Fitted, truth: Truth, tolerance_mm: float
) -> dict[str, dict[str, float]]:
    """The last surface of each stage, measured without the paper's slow scores."""
    last = {r.stage: (seconds, r) for seconds, r in fitted.stages}
    return {
        stage: {"seconds": seconds, **measure(r.surface, truth, tolerance_mm, paper=False)}
        for stage, (seconds, r) in last.items()
    }


def run(
    organ: str,
    cases: Sequence[CaseLike],
    methods: Sequence[Method],
    protocol: Annotation,
    device: str = "cpu",
    load: Load = load_prior,
    every_stage: bool = False,
    repeats: int = 1,
    progress: Progress | None = None,
) -> tuple[CaseRecord, ...]:
    """Every method over every case.

    A prior is loaded once, and fitted once to the first case before anything is timed: what is
    timed is a session that is already open.

    Args:
        organ: chooses the tolerance.
        cases: each truth is prepared once for all methods.
        methods: what to compare.
        protocol: how cases are annotated.
        device: "cpu" or "cuda".
        load: name and device -> prior.
        every_stage: also measure the surface after each stage.
        repeats: independent annotations of each case.
        progress: told case, method, number done and number in all.
    """
    loaded = {m.label: _load(m, device, load) for m in methods}
    reader = _reader(organ, device, load) if any(m.sees for m in methods) else None
    tolerance = TOLERANCE_MM.get(organ, DEFAULT_TOLERANCE_MM)
    records: list[CaseRecord] = []
    total = len(cases) * repeats * len(methods)
    warm: set[str] = set()
    for case in cases:
        truth = Truth.from_label(case.label(), case.image() if reader is not None else None)
        looks: dict[str, Look] = {}
        for repeat in range(repeats):
            for method in methods:
                prior = loaded[method.label]
                if isinstance(prior, str):
                    records.append(CaseRecord(case.name, method.label, error=prior))
                else:
                    if method.label not in warm:
                        _warm_up(method, prior, protocol, case.name, truth)
                        warm.add(method.label)
                    records.append(
                        evaluate_case(
                            *(method, prior, protocol, case.name, truth, tolerance),
                            every_stage=every_stage,
                            repeat=repeat,
                            look=_look(looks, prior, reader, truth) if method.sees else None,
                        )
                    )
                if progress:
                    progress(case.name, method.label, len(records), total)
    return tuple(records)


def _look(
    looks: dict[str, Look], prior: ShapePrior, reader: ImageReader | None, truth: Truth
) -> Look | None:
    """The case's image as a prior's own reader sees it, else as that of the organ; kept in
    ``looks``."""
    own: Reader | None = getattr(prior, "reader", None)
    if own is None and is_reader(prior.card):
        own = PoseReader.of(prior)
    own = own or reader
    if own is None or truth.image is None:
        return None
    return looks.setdefault(own.card.name, Look(own, truth.image))


def _reader(organ: str, device: str, load: Load) -> ImageReader:
    """Of an organ's images.

    Raises:
        ShapePriorError: there is none.
    """
    prior: Any = load(f"{organ.replace('_', '-')}-meshnet", device)
    reader: ImageReader = prior.reader
    return reader


def _warm_up(
    method: Method, prior: ShapePrior, protocol: Annotation, case: str, truth: Truth
) -> None:
    """Fit once without looking; what fails will fail again where it is recorded."""
    with suppress(Exception):
        settings = _settings_for(method, prior, protocol, truth)
        timed_fit(prior, protocol.observations(truth, case), settings)


def _load(method: Method, device: str, load: Load) -> ShapePrior | str:
    """The prior, or what is wrong with it: then each of its cases counts as a failure."""
    try:
        return load(method.prior, device)
    except (ShapePriorError, ImportError) as error:
        return f"{type(error).__name__}: {error}"


def cases_of(
    organ: str, data: Path, split: str = "validation", only: str | None = None
) -> Sequence[CaseLike]:
    """The cases of an organ.

    Args:
        organ: folder of ``data``, unless ``data`` itself is the organ's folder.
        data: root of the label volumes.
        split: "validation", "training" or "all".
        only: keep cases whose name contains this; by default LiTS for livers, all for others.

    Raises:
        ShapePriorError: no such folder or split, or no case.
    """
    folder = _folder_of(organ, data)
    if not folder.is_dir():
        raise ShapePriorError(f"There is no folder '{folder}'.", "Give --data.", "no-data")
    wanted = ONLY.get(organ, "") if only is None else only
    parts = split_cases(folder, wanted, labels_of(organ).values)
    choices = {
        "validation": parts.validation,
        "training": parts.training,
        "all": parts.validation + parts.training,
    }
    if split not in choices:
        raise ShapePriorError(
            f"There is no split '{split}'.", f"Choose one of: {', '.join(choices)}."
        )
    if not choices[split]:
        raise ShapePriorError(f"'{folder}' has no {split} case.", "Check --data.", "no-data")
    return choices[split]


def _folder_of(organ: str, data: Path) -> Path:
    own = data / labels_of(organ).folder
    return own if own.is_dir() else data


def use_threads(threads: int | None) -> None:
    """Have fits and networks take so many threads; None leaves them."""
    if threads is None:
        return
    begin_with_few(threads)
    import torch

    torch.set_num_threads(threads)


def evaluate(
    organ: str,
    data: Path,
    methods: Sequence[str | Method],
    protocol: str = "outlines",
    split: str = "validation",
    limit: int | None = None,
    output: Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    only: str | None = None,
    every_stage: bool = False,
    repeats: int = 1,
    load: Load = load_prior,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Compare methods on an organ.

    Args:
        organ: "hippocampus", "kidney", ...
        data: root of the label volumes, or the organ's own folder.
        methods: the first is compared pairwise with every other. "dals", "pca", "deepsdf" stand
            for the organ's own; "rbf", "poisson", "dasm" need none; any name or folder that
            ``load_prior`` knows will do.
        protocol: see ``protocols.find_protocol``.
        split: "validation", "training" or "all".
        limit: only the first so many cases.
        output: where the JSON goes.
        device: "cpu", "cuda" or "auto".
        threads: for torch; None leaves its default.
        only: see ``cases_of``.
        every_stage: also measure each stage.
        repeats: independent annotations of each case.
        load: name and device -> prior.
        progress: told case, method, number done and number in all.

    Raises:
        ShapePriorError: no such data, protocol, split, or no method; an output that is an input,
            or cannot be written.
    """
    if not methods:
        raise ShapePriorError("No method was named.", "Give --methods, e.g. dals pca rbf.")
    chosen = [m if isinstance(m, Method) else Method.named(m, organ) for m in methods]
    annotation = find_protocol(protocol)
    cases = cases_of(organ, data, split, only)[:limit]
    if output is not None:
        read = [path for method in chosen for path in files_of(method.prior)]
        folder = _folder_of(organ, data)
        read += volume_files(folder) if folder.is_dir() else []
        refuse_inputs((output,), read)
    use_threads(threads)
    records = run(*(organ, cases, chosen, annotation, device, load, every_stage, repeats, progress))
    result = EvaluationResult(
        organ,
        annotation.name,
        annotation.description,
        split,
        TOLERANCE_MM.get(organ, DEFAULT_TOLERANCE_MM),
        tuple(m.label for m in chosen),
        records,
        machine(device, threads),
        " ".join(sys.argv),
    )
    if output is not None:
        result.save(output)
    return result
