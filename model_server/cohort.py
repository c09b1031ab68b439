"""Many fits from one table: resumable, in processes or as Ray tasks; a failed case is a row.

What an earlier run wrote for a case stays until the case is fitted again; ``report.json`` says
from which files, by their hashes, its neighbors come.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from socket import create_connection
from typing import Any
from urllib.parse import urlsplit

from model_server.errors import ShapePriorError
from model_server.fit_session import SIDES, Session

REQUIRED = ("case", "prior", "annotations")
OPTIONAL = ("mask", "reference", "side")
TABLE_FILE = "cohort.csv"
REPORT_FILE = "report.json"
MOST_PROBLEMS = 5  # of a table are told at once
# Neither hidden nor leaving its folder, and a file's name on Windows too.
CASE_NAME = re.compile(r"\w(?:[\w .,+=@()-]*[\w)])?")
# Headers whose voxels lie in a file of the same name beside them.
DETACHED = (".mhd", ".nhdr", ".hdr")
ANSWER_S = 10.0  # within which a cluster has to answer
DIED = "The process that fitted this case died twice (killed, or out of memory)."


@dataclass(frozen=True)
class Case:
    """One row of the table; paths are absolute.

    Attributes:
        name: unique; names the folder and the files of the results.
        prior: a name of the registry, or a folder.
        annotations: markups files.
        mask: label volume to refine.
        reference: volume whose geometry labelmaps take.
        side: "auto", "left" or "right".
    """

    name: str
    prior: str
    annotations: tuple[Path, ...]
    mask: Path | None = None
    reference: Path | None = None
    side: str = "auto"


@dataclass(frozen=True)
class Settings:
    """What all cases share.

    Attributes:
        output: folder of the results.
        formats: endings of the result files, of ``model_server.io.outputs.FORMATS``.
        device: "auto", "cpu" or "cuda".
        again: whether finished cases are fitted once more.
    """

    output: Path
    formats: tuple[str, ...] = (".stl",)
    device: str = "auto"
    again: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a case; its fields are the columns of ``cohort.csv``.

    Attributes:
        case: its name.
        status: "fitted", "skipped" (finished before) or "failed".
        error: why it failed, or empty.
        prior: its name.
        volume_ml: enclosed volume, ml.
        area_cm2: surface area, square centimeters.
        mean_residual_mm: mean over the annotations of their mean distance, mm.
        uncertainty_mean_mm: mean standard deviation along the normal, mm.
        seconds: reading, loading and fitting; of a skipped case, when it was fitted.
    """

    case: str
    status: str
    error: str = ""
    prior: str = ""
    volume_ml: float | None = None
    area_cm2: float | None = None
    mean_residual_mm: float | None = None
    uncertainty_mean_mm: float | None = None
    seconds: float | None = None


COLUMNS = tuple(field.name for field in fields(Outcome))
# Told each outcome, how many there are by now, and how many there will be.
Tell = Callable[[Outcome, int, int], None]
Outcomes = Generator[Outcome, None, None]


# --- the table of cases -------------------------------------------------------------------------


def read_cases(table: Path) -> tuple[Case, ...]:
    """Every row of a table of cases; paths in it are relative to the table.

    Raises:
        ShapePriorError: the file is no such table, or some of its rows cannot be used; the lines
            are named.
    """
    rows = _rows(table)
    folder = table.absolute().parent
    cases: list[Case] = []
    problems: list[str] = []
    lines: dict[str, int] = {}  # of names; some file systems do not tell a from A
    for line, row in rows:
        case, found = _case(row, folder)
        earlier = lines.setdefault(case.name.casefold(), line)
        if case.name and earlier != line:
            found.append(f"the case '{case.name}' stands in line {earlier} already")
        problems += [f"line {line}: {problem}" for problem in found]
        cases.append(case)
    if problems:
        told = "; ".join(problems[:MOST_PROBLEMS])
        more = len(problems) - MOST_PROBLEMS
        raise _bad_table(table, told + (f"; and {more} more" if more > 0 else ""))
    if not cases:
        raise _bad_table(table, "it has no rows")
    return tuple(cases)


def _bad_table(table: Path, why: str) -> ShapePriorError:
    return ShapePriorError(
        f"The table '{table}' cannot be used: {why}.",
        f"Give comma-separated columns {', '.join(REQUIRED)} and, where needed, "
        f"{', '.join(OPTIONAL)}; one case in each row.",
        "bad-table",
    )


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, cells by column) of every row that is not blank."""
    try:
        # Excel begins its files with a byte order mark.
        text = table.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        numbered = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except OSError as error:
        raise _bad_table(table, f"it cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _bad_table(table, f"it is not a text of comma-separated values ({error})") from error
    rows = [(line, cells) for line, cells in numbered if any(cells)]
    if not rows:
        raise _bad_table(table, "it is empty")
    (header_line, header), *body = rows
    _check_header(table, header_line, header)
    for line, cells in body:
        if len(cells) > len(header):
            raise _bad_table(
                table, f"line {line}: it has {len(cells)} cells for {len(header)} columns"
            )
    return [(line, dict(zip(header, cells, strict=False))) for line, cells in body]


def _check_header(table: Path, line: int, header: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in header]
    # A misspelled optional column would otherwise be passed over in silence.
    unknown = [name for name in header if name not in (*REQUIRED, *OPTIONAL)]
    twice = {name for name in header if header.count(name) > 1}
    for what, names in (("no", missing), ("an unknown", unknown), ("more than one", sorted(twice))):
        if names:
            listed = ", ".join(f"'{name}'" for name in names)
            raise _bad_table(table, f"line {line}: there is {what} column {listed}")


def _case(row: dict[str, str], folder: Path) -> tuple[Case, list[str]]:
    """The case of a row, and what is wrong with it."""
    name, prior = row.get("case", ""), row.get("prior", "")
    words = [word.strip() for word in row.get("annotations", "").split(";")]
    annotations = tuple(folder / word for word in words if word)
    mask, reference = (folder / row[key] if row.get(key) else None for key in OPTIONAL[:2])
    side = row.get("side") or "auto"
    problems = []
    if not name:
        problems.append("the case has no name")
    elif not _is_safe(name):
        problems.append(f"the case name '{name}' cannot name a file")
    if not prior:
        problems.append("no prior is named")
    if not annotations and not mask:
        problems.append("there are no annotations and no mask")
    if side not in SIDES:
        problems.append(f"the side '{side}' is none of {', '.join(SIDES)}")
    return Case(name, _prior(prior, folder), annotations, mask, reference, side), problems


def _is_safe(name: str) -> bool:
    # "a.seg" with ".nrrd" would name a file of another format.
    taken = name.casefold() == TABLE_FILE or name.casefold().endswith(".seg")
    return bool(CASE_NAME.fullmatch(name)) and not taken


def _prior(name: str, folder: Path) -> str:
    """A prior's folder is relative to the table too; any other name is left as it is."""
    from model_server.priors.card import CARD_FILE

    return str(folder / name) if name and (folder / name / CARD_FILE).is_file() else name


# --- one case -----------------------------------------------------------------------------------


def fit_case(case: Case, settings: Settings) -> Outcome:
    """Fit one case and write its results, unless that was done before; never raises for it."""
    began = time.perf_counter()
    try:
        return _fitted(case, settings)
    except ShapePriorError as error:
        why = str(error)
    except Exception as error:  # a defect of the program must not end the other cases
        why = f"{type(error).__name__}: {error}"
    return _failed(case, why, time.perf_counter() - began)


def _fitted(case: Case, settings: Settings) -> Outcome:
    from model_server.io.outputs import check_outputs, make_folder, remove_leftovers

    folder = settings.output / case.name
    outputs = [folder / f"{case.name}{suffix}" for suffix in settings.formats]
    inputs = inputs_of(case, settings)
    if not settings.again:
        report = _report_of(folder, outputs, inputs)
        if report is not None:
            return _outcome(case, "skipped", report)
    session = Session.opened(
        case.prior, case.annotations, case.mask, case.reference, settings.device
    )
    make_folder(folder)
    remove_leftovers(folder)
    check_outputs(outputs, [folder / REPORT_FILE])
    result = session.fit(case.side)
    report = session.write(result, outputs, folder / REPORT_FILE, {"cohort": inputs})
    return _outcome(case, "fitted", report)


def inputs_of(case: Case, settings: Settings) -> dict[str, Any]:
    """What determines the results of a case, as JSON has it: hashes of files, prior, settings.

    Raises:
        ShapePriorError: a file cannot be read, or there is no such prior.
    """
    from model_server.priors.registry import prior_card

    card = prior_card(case.prior)
    return {
        "case": case.name,
        "prior": {"name": card.name, "version": card.version, "weights": card.checksum},
        # Names count: a markup without its own name is called as its file.
        "annotations": [[path.name, _hash(path)] for path in case.annotations],
        "mask": _hash(case.mask) if case.mask else None,
        "reference": _hash(case.reference) if case.reference else None,
        "side": case.side,
        "formats": list(settings.formats),
    }


def _hash(path: Path) -> str:
    """SHA-256 of a file's contents."""
    files = [path]
    if path.suffix.lower() in DETACHED and path.is_file():
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
    residuals = [r["mean_mm"] for r in report["residuals"]]
    return Outcome(
        case=case.name,
        status=status,
        prior=report["prior"],
        volume_ml=report["volume_ml"],
        area_cm2=report["area_cm2"],
        mean_residual_mm=round(sum(residuals) / len(residuals), 4) if residuals else None,
        uncertainty_mean_mm=(report["uncertainty_mm"] or {}).get("mean"),
        seconds=round(sum(report["other_seconds"].values()), 3),
    )


def _failed(case: Case, why: str, seconds: float | None = None) -> Outcome:
    spent = None if seconds is None else round(seconds, 3)
    # One row, one line: messages of libraries may have several.
    return Outcome(case.name, "failed", " ".join(why.split()), case.prior, seconds=spent)


# --- all cases ----------------------------------------------------------------------------------


def run_cohort(
    cases: Sequence[Case],
    settings: Settings,
    workers: int = 1,
    ray_address: str | None = None,
    tell: Tell | None = None,
) -> list[Outcome]:
    """Fit all cases; write ``cohort.csv``, also when interrupted: then of the cases done so far.

    Args:
        cases: with distinct names.
        settings: shared by all.
        workers: processes; 1 fits in this one. With a local Ray cluster: its CPUs (1: all).
        ray_address: fit as Ray tasks instead: "local", or the address of a cluster whose nodes
            have this package and see the files under the same paths.
        tell: told each outcome as it comes.

    Returns:
        Outcomes in the order of the cases.

    Raises:
        ShapePriorError: the output folder cannot be written, or there is no Ray.
    """
    from model_server.io.outputs import check_writable, make_folder

    settings = replace(settings, output=settings.output.absolute())
    make_folder(settings.output)
    table = settings.output / TABLE_FILE
    check_writable(table)
    outcomes: Outcomes
    if ray_address is not None:
        outcomes = _on_ray(cases, settings, ray_address, workers)
    elif workers > 1:
        outcomes = _in_processes(cases, settings, workers)
    else:
        outcomes = (fit_case(case, settings) for case in cases)
    done: dict[str, Outcome] = {}
    try:
        with closing(outcomes):
            for outcome in outcomes:
                done[outcome.case] = outcome
                if tell:
                    tell(outcome, len(done), len(cases))
    finally:
        ordered = [done[case.name] for case in cases if case.name in done]
        if ordered:
            _write_table(table, ordered)
    return ordered


def _write_table(path: Path, outcomes: Sequence[Outcome]) -> None:
    from model_server.io.outputs import write_text

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(outcome) for outcome in outcomes)
    write_text(path, text.getvalue())


# --- in processes -------------------------------------------------------------------------------


def _in_processes(cases: Sequence[Case], settings: Settings, workers: int) -> Outcomes:
    """Outcomes as they come.

    A process that dies breaks its whole pool and does not say whose fault it was. So no more
    cases are handed out than there are processes, and those that were under way are fitted again,
    each alone: the one that breaks its pool once more has failed.
    """
    waiting = deque(cases)
    while waiting:
        suspects: list[Case] = []
        with _pool(min(workers, len(waiting))) as pool:
            running: dict[Future[Outcome], Case] = {}
            while running or (waiting and not suspects):
                while waiting and not suspects and len(running) < workers:
                    case = waiting.popleft()
                    try:
                        running[pool.submit(fit_case, case, settings)] = case
                    except BrokenProcessPool:
                        suspects.append(case)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    case = running.pop(future)
                    try:
                        outcome = future.result()
                    except BrokenProcessPool:
                        suspects.append(case)
                    else:
                        yield outcome
        for case in suspects:
            yield _alone(case, settings)


def _alone(case: Case, settings: Settings) -> Outcome:
    """In a process of its own, twice if need be: among others it may have been the innocent one."""
    for _ in range(2):
        with _pool(1) as pool:
            try:
                return pool.submit(fit_case, case, settings).result()
            except BrokenProcessPool:
                continue
    return _failed(case, f"{DIED} Use fewer --workers, or see to its input.")


def _pool(workers: int) -> ProcessPoolExecutor:
    threads = max(1, (os.cpu_count() or 1) // workers)
    # A fork beside torch's threads may hang.
    context = get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(threads,))


def _begin_worker(threads: int) -> None:
    # Numerical libraries read these when they are loaded, which is later.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    # Ctrl-C reaches all processes of a terminal: this one cleans up and ends without a word.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))


# --- on Ray -------------------------------------------------------------------------------------


def _on_ray(cases: Sequence[Case], settings: Settings, address: str, workers: int) -> Outcomes:
    """Outcomes as they come; a cluster this process has joined already is used and kept."""
    ray = _ray()
    mine = not ray.is_initialized()
    if mine:
        _join(ray, address, workers)
    try:
        task = ray.remote(**_task_options(settings))(fit_case)
        running = {task.remote(case, settings): case for case in cases}
        while running:
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            case = running.pop(ready)
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayError as error:
                outcome = _failed(case, f"Ray could not fit this case: {error}")
            yield outcome
    finally:
        if mine:
            ray.shutdown()


def _ray() -> Any:
    # Ray reports its use to its makers unless told not to; names of cases are nobody's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ShapePriorError(
            "Ray is not installed.",
            "Install it with: pip install 'shape-prior-slicer[cluster]'",
            "no-ray",
        ) from error
    return ray


def _join(ray: Any, address: str, workers: int) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        quiet |= {"num_cpus": workers if workers > 1 else None, "include_dashboard": False}
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        if place.port:
            # Ray itself would try for minutes.
            create_connection((place.hostname or "", place.port), timeout=ANSWER_S).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise ShapePriorError(
            f"No Ray cluster can be used at '{address}' ({' '.join(str(error).split())[:200]}).",
            "Check --ray: 'local', or an address such as 10.0.0.1:6379.",
            "no-ray",
        ) from error


def _task_options(settings: Settings) -> dict[str, Any]:
    """A process that dies is retried once; priors are found where this process finds them."""
    from model_server.priors.registry import ZOO_VARIABLE

    options: dict[str, Any] = {"num_cpus": 1, "max_retries": 1}
    if settings.device == "cuda":
        options["num_gpus"] = 1  # Ray hides the GPUs from tasks that ask for none
    if ZOO_VARIABLE in os.environ:
        zoo = str(Path(os.environ[ZOO_VARIABLE]).absolute())
        options["runtime_env"] = {"env_vars": {ZOO_VARIABLE: zoo}}
    return options
