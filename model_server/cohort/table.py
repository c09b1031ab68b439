"""The table of cases that is read, and the table of what became of them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from model_server.errors import ShapePriorError
from model_server.jobs.session import SIDES, MaskChoice

REQUIRED = ("case", "prior", "annotations")
OPTIONAL = ("mask", "reference", "side", "label", "segment", "image", "roi", "repair")
REPAIRS = {"": False, "no": False, "yes": True}  # else the file of the mask's source
TABLE_FILE = "cohort.csv"
MOST_PROBLEMS = 5  # of a table are told at once
# Neither hidden nor leaving its folder, and a file's name on Windows too.
CASE_NAME = re.compile(r"\w(?:[\w .,+=@()-]*[\w)])?")


@dataclass(frozen=True)
class Case:
    """One row of the table; paths are absolute.

    Attributes:
        name: unique; names the folder and the files of the results.
        prior: a name of the registry, or a folder.
        annotations: markups files, or a structure set.
        mask: label volume to refine.
        reference: volume whose geometry labelmaps take.
        side: "auto", "left" or "right".
        choice: which of the mask's labels is the organ.
        image: volume in which the organ is seen.
        roi: name or number of the structure in a structure set.
        repair: whether the mask is to be repaired.
        source: how it errs, by a file of ``repair-source``.
    """

    name: str
    prior: str
    annotations: tuple[Path, ...]
    mask: Path | None = None
    reference: Path | None = None
    side: str = "auto"
    choice: MaskChoice = field(default_factory=MaskChoice)
    image: Path | None = None
    roi: str = ""
    repair: bool = False
    source: Path | None = None


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
        image: "used" where the fit heard an image, else why not; empty without one.
        image_residual_mm: mean distance of the surface from what the image shows, mm.
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
    image: str = ""
    image_residual_mm: float | None = None


COLUMNS = tuple(field.name for field in fields(Outcome))
Outcomes = Generator[Outcome, None, None]


# --- cases --------------------------------------------------------------------------------------


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
    needed = [name for name in REQUIRED if name != "annotations" or "image" not in header]
    missing = [name for name in needed if name not in header]
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
    mask, reference, image = (
        folder / row[key] if row.get(key) else None for key in ("mask", "reference", "image")
    )
    side = row.get("side") or "auto"
    problems = []
    if not name:
        problems.append("the case has no name")
    elif not _is_safe(name):
        problems.append(f"the case name '{name}' cannot name a file")
    if not prior:
        problems.append("no prior is named")
    if not annotations and not mask and not image:
        problems.append("there are no annotations, no mask and no image")
    if side not in SIDES:
        problems.append(f"the side '{side}' is none of {', '.join(SIDES)}")
    label = row.get("label", "").replace(";", " ").split()
    if not all(word.isdecimal() for word in label):
        problems.append(f"the label '{row['label']}' is not a number, or several parted by ;")
        label = []
    choice = MaskChoice(tuple(sorted({int(word) for word in label})), row.get("segment", ""))
    word = row.get("repair", "")
    repair = REPAIRS.get(word.casefold(), True)
    source = None if word.casefold() in REPAIRS else folder / word
    if repair and not mask:
        problems.append("there is no mask to repair")
    files = (_prior(prior, folder), annotations, mask, reference)
    case = Case(name, *files, side, choice, image, row.get("roi", ""), repair, source)
    return case, problems


def _is_safe(name: str) -> bool:
    # "a.seg" with ".nrrd" would name a file of another format.
    taken = name.casefold() == TABLE_FILE or name.casefold().endswith(".seg")
    return bool(CASE_NAME.fullmatch(name)) and not taken


def _prior(name: str, folder: Path) -> str:
    """A prior's folder is relative to the table too; any other name is left as it is."""
    from model_server.priors.card import CARD_FILE

    return str(folder / name) if name and (folder / name / CARD_FILE).is_file() else name


# --- outcomes -----------------------------------------------------------------------------------


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write ``cohort.csv``.

    Raises:
        ShapePriorError: it cannot be written.
    """
    from model_server.io.writing import write_text

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(outcome) for outcome in outcomes)
    write_text(path, text.getvalue())
