"""One case of a cohort: fitted from files to files, unless that was done before.

What an earlier run wrote for a case stays until the case is fitted again; ``report.json`` says
from which files, by their hashes, its neighbors come.
"""

from __future__ import annotations

import glob
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_server.cohort.table import Case, Outcome
from model_server.errors import ShapePriorError
from model_server.jobs.repair import read_source, repair
from model_server.jobs.session import Session
from model_server.priors.card import PriorCard
from model_server.reconstruction import IMAGE, Reconstruction

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Settings:
    """What all cases share.

    Attributes:
        output: folder of the results.
        formats: endings of the result files, of ``model_server.io.outputs.ALL_FORMATS``.
        device: "auto", "cpu" or "cuda".
        again: whether finished cases are fitted once more.
        use_images: whether the images of cases are evidence.
    """

    output: Path
    formats: tuple[str, ...] = (".stl",)
    device: str = "auto"
    again: bool = False
    use_images: bool = True


def fit_case(case: Case, settings: Settings) -> Outcome:
    """Fit one case and write its results, unless that was done before; never raises for it."""
    began = time.perf_counter()
    try:
        return _fitted(case, settings)
    except ShapePriorError as error:
        why = str(error)
    except Exception as error:  # a defect of the program must not end the other cases
        why = f"{type(error).__name__}: {error}"
    return failed(case, why, time.perf_counter() - began)


def _fitted(case: Case, settings: Settings) -> Outcome:
    from model_server.io.dicom_outputs import DicomSources
    from model_server.io.outputs import check_outputs
    from model_server.io.writing import make_folder, remove_leftovers

    folder = settings.output / case.name
    *outputs, report_file = outputs_of(case, settings)
    inputs = inputs_of(case, settings)
    if not settings.again:
        report = _report_of(folder, outputs, inputs)
        if report is not None:
            return _outcome(case, "skipped", report)
    session = Session.opened(
        case.prior,
        case.annotations,
        case.mask,
        case.reference,
        settings.device,
        case.choice,
        case.image,
        settings.use_images,
        case.roi,
    )
    make_folder(folder)
    remove_leftovers(folder)
    check_outputs(outputs, [report_file], dicom=session.dicom or DicomSources())
    result, told = _answer(case, session)
    report = session.write(result, outputs, report_file, {"cohort": inputs, **told})
    return _outcome(case, "fitted", report)


def _answer(case: Case, session: Session) -> tuple[Reconstruction, dict[str, Any]]:
    """The surface, and what its report says beyond a fit's."""
    if not case.repair:
        return session.fit(case.side), {}
    noise = None if case.source is None else read_source(case.source)
    return repair(session, noise, case.side)


def outputs_of(case: Case, settings: Settings) -> list[Path]:
    """The result files of a case, and its report at the end."""
    folder = settings.output / case.name
    results = [folder / f"{case.name}{suffix}" for suffix in settings.formats]
    return [*results, folder / REPORT_FILE]


def files_read(case: Case) -> list[Path]:
    """The files that a case is fitted from."""
    from model_server.priors.registry import files_of

    given = (case.mask, case.reference, case.image, case.source)
    volumes = [path for path in given if path is not None]
    return [*case.annotations, *volumes, *files_of(case.prior)]


def inputs_of(case: Case, settings: Settings) -> dict[str, Any]:
    """What determines the results of a case, as JSON has it: hashes of files, prior, settings.

    Raises:
        ShapePriorError: a file cannot be read, or there is no such prior.
    """
    from model_server.imaging.readers import reader_card
    from model_server.priors.registry import prior_card

    card = prior_card(case.prior)
    seen = case.image if settings.use_images else None
    reader = None if seen is None else reader_card(card)
    return {
        "case": case.name,
        "prior": _told(card),
        # Names count: a markup without its own name is called as its file.
        "annotations": [[path.name, _hash(path)] for path in case.annotations],
        "mask": _hash(case.mask) if case.mask else None,
        "reference": _hash(case.reference) if case.reference else None,
        "image": _hash(case.image) if case.image else None,
        "reader": None if reader is None else _told(reader),
        "label": list(case.choice.labels),
        "segment": case.choice.segment,
        "roi": case.roi,
        "side": case.side,
        "formats": list(settings.formats),
        # Cases that were fitted before there were repairs stay as they are.
        **({"repair": _hash(case.source) if case.source else "usual"} if case.repair else {}),
    }


def _told(card: PriorCard) -> dict[str, str]:
    """What determines the answers of a prior."""
    # How it is fitted, and what its uncertainty is worth.
    settings = json.dumps(card.hyperparameters, sort_keys=True).encode()
    return {
        "name": card.name,
        "version": card.version,
        "weights": card.checksum,
        "settings": hashlib.sha256(settings).hexdigest(),
    }


def _hash(path: Path) -> str:
    """SHA-256 of a file's contents; of a DICOM series, of all its files."""
    from model_server.io.dicom import is_dicom, series_files
    from model_server.io.writing import DETACHED

    files = [path]
    if path.is_dir() or is_dicom(path):
        files = list(series_files(path))
    elif path.suffix.lower() in DETACHED and path.is_file():
        files = sorted(path.parent.glob(f"{glob.escape(path.stem)}.*"))
    digest = hashlib.sha256()
    try:
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise ShapePriorError(
            f"The file '{path}' cannot be read ({error.strerror}).",
            "Check its name in the table.",
            "unreadable",
        ) from error
    return digest.hexdigest()


def _report_of(
    folder: Path, outputs: Sequence[Path], inputs: dict[str, Any]
) -> dict[str, Any] | None:
    """The report of a case that was finished with the same inputs, or None."""
    try:
        report = json.loads((folder / REPORT_FILE).read_text())
    except (OSError, ValueError):
        return None
    same = isinstance(report, dict) and report.get("cohort") == inputs
    return report if same and all(path.is_file() for path in outputs) else None


def _outcome(case: Case, status: str, report: dict[str, Any]) -> Outcome:
    residuals = [r["mean_mm"] for r in report["residuals"] if r.get("kind") != IMAGE]
    image = report.get("image") or {}
    return Outcome(
        case=case.name,
        status=status,
        prior=report["prior"],
        volume_ml=report["volume_ml"],
        area_cm2=report["area_cm2"],
        mean_residual_mm=round(sum(residuals) / len(residuals), 4) if residuals else None,
        uncertainty_mean_mm=(report["uncertainty_mm"] or {}).get("mean"),
        seconds=round(sum(report["other_seconds"].values()), 3),
        image=_said_of_image(image),
        image_residual_mm=(image.get("residual_mm") or {}).get("mean"),
    )


def _said_of_image(image: dict[str, Any]) -> str:
    """ "used", or why not; with what outlines contradict."""
    used = ["used"] if image.get("used") else []
    return " ".join([*used, *image.get("notes", [])])


def failed(case: Case, why: str, seconds: float | None = None) -> Outcome:
    """The outcome of a case that could not be fitted."""
    spent = None if seconds is None else round(seconds, 3)
    # One row, one line: messages of libraries may have several.
    return Outcome(case.name, "failed", " ".join(why.split()), case.prior, seconds=spent)
