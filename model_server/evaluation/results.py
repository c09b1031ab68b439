"""What an evaluation found: records, summaries, paired comparison, tables, files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model_server.errors import counted
from model_server.evaluation.metrics import LARGER_IS_BETTER
from model_server.io.writing import make_folder, write_text

if TYPE_CHECKING:
    from rich.table import Table

PAIRED_METRICS = ("dice", "nsd", "hd95_mm")
# A refused case counts as zero in what is better the larger it is; a distance to nothing has no
# number, so means of distances are of the other cases, and the table says how many were refused.
ZERO_IF_REFUSED = ("dice", "nsd", "f1_percent", "f2_percent")
WORST_TENTH = "dice_worst_tenth"


@dataclass(frozen=True)
class CaseRecord:
    """One method on one case.

    Attributes:
        case: its name.
        method: as asked for.
        metrics: of the final surface (see ``metrics.measure``); empty after a failure.
        stages: the same after each stage, where asked for.
        seconds_first: from the annotations to the first surface; None after a failure before it.
        seconds_final: to the last surface.
        warnings: of the final surface.
        error: what went wrong, or None.
        trained_on: whether the prior's card lists this case among its training cases.
    """

    case: str
    method: str
    metrics: dict[str, float] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds_first: float | None = None
    seconds_final: float | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    trained_on: bool = False


@dataclass(frozen=True)
class Paired:
    """One method against another on the same cases.

    Attributes:
        metric: which.
        other: the other method.
        difference: mean of (method - other) over the cases in which both have a value; NaN without
            any.
        error: standard error of that mean; NaN with fewer than two.
        wins: cases where the method is better; a case in which only it has a value is a win.
        losses: the opposite.
        cases: in which both have a value.
    """

    metric: str
    other: str
    difference: float
    error: float
    wins: int
    losses: int
    cases: int

    @property
    def verdict(self) -> str:
        """ "better", "worse", or "level" where the difference is within its standard error."""
        if not abs(self.difference) > self.error:
            return "level"
        return "better" if (self.difference > 0) == LARGER_IS_BETTER[self.metric] else "worse"


def machine(device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """Where and when a measurement was made."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": threads,
        "device": device,
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """The commit this checkout is at, with "+" where tracked files differ from it."""
    folder = Path(__file__).parent
    try:
        head = _git("rev-parse", "--short", "HEAD", folder=folder)
        changed = _git("status", "--porcelain", "--untracked-files=no", folder=folder)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*words: str, folder: Path) -> str:
    done = subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


@dataclass(frozen=True)
class EvaluationResult:
    """Every record of one run, and how it was made."""

    organ: str
    protocol: str
    description: str
    split: str
    tolerance_mm: float
    methods: tuple[str, ...]
    records: tuple[CaseRecord, ...]
    machine: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def of(self, method: str) -> dict[str, CaseRecord]:
        """The records of one method by case."""
        return {r.case: r for r in self.records if r.method == method}

    def values(self, method: str, metric: str) -> dict[str, float]:
        """One metric of one method by case; refused cases are zero or left out."""
        found = ((case, record_value(r, metric)) for case, r in self.of(method).items())
        return {case: value for case, value in found if value is not None}

    def mean(self, method: str, metric: str) -> float:
        """Mean of ``values``; NaN without any."""
        values = list(self.values(method, metric).values())
        return float(np.mean(values)) if values else float("nan")

    def worst_tenth(self, method: str, metric: str = "dice") -> float:
        """Mean of the worst tenth of ``values``, of one case at least; NaN without any."""
        values = sorted(self.values(method, metric).values(), reverse=not LARGER_IS_BETTER[metric])
        return float(np.mean(values[: -(-len(values) // 10)])) if values else float("nan")

    def failures(self, method: str) -> dict[str, str]:
        """Why cases were refused, or what else went wrong, by case."""
        return {c: r.error for c, r in self.of(method).items() if r.error is not None}

    def summary(self) -> dict[str, dict[str, float]]:
        """For each method the mean of every metric, that of the worst tenth, median seconds, cases
        and refused ones."""
        return {method: self._summary(method) for method in self.methods}

    def _summary(self, method: str) -> dict[str, float]:
        records = self.of(method)
        names = list(dict.fromkeys(n for r in records.values() for n in r.metrics))
        measured = dict.fromkeys([*ZERO_IF_REFUSED[:2], *names])
        row = {name: self.mean(method, name) for name in measured}
        row[WORST_TENTH] = self.worst_tenth(method)
        for name in ("seconds_first", "seconds_final"):
            values = list(self.values(method, name).values())
            row[name] = float(np.median(values)) if values else float("nan")
        row["cases"] = len(records)
        row["refused"] = len(self.failures(method))
        return row

    def paired(self, method: str, metrics: Sequence[str] = PAIRED_METRICS) -> list[Paired]:
        """One method against every other, on each metric."""
        others = [m for m in self.methods if m != method]
        return [self._pair(method, other, metric) for other in others for metric in metrics]

    def _pair(self, method: str, other: str, metric: str) -> Paired:
        mine, theirs = self.values(method, metric), self.values(other, metric)
        both = sorted(mine.keys() & theirs.keys())
        gap = np.array([mine[c] - theirs[c] for c in both])
        sign = 1 if LARGER_IS_BETTER[metric] else -1
        return Paired(
            metric,
            other,
            float(gap.mean()) if len(gap) else float("nan"),
            float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else float("nan"),
            int(np.sum(sign * gap > 0)) + len(mine.keys() - theirs.keys()),
            int(np.sum(sign * gap < 0)) + len(theirs.keys() - mine.keys()),
            len(gap),
        )

    def heading(self) -> str:
        """One line saying what was measured."""
        cases = len({r.case for r in self.records})
        return (
            f"{self.organ}, {cases} {self.split} cases: {self.description}; "
            f"NSD at {self.tolerance_mm:g} mm"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        paired = {m: [asdict(p) for p in self.paired(m)] for m in self.methods[:1]}
        return asdict(self) | {"summary": self.summary(), "paired": paired}

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all.

        Raises:
            ShapePriorError: it cannot be written.
        """
        make_folder(path.parent)
        write_text(path, json.dumps(_plain(self.as_dict()), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> EvaluationResult:
        """Read what ``save`` wrote."""
        data = json.loads(path.read_text())
        data.pop("summary"), data.pop("paired")
        data["methods"] = tuple(data["methods"])
        data["records"] = tuple(
            CaseRecord(**(r | {"warnings": tuple(r["warnings"])})) for r in data["records"]
        )
        return cls(**data)

    def markdown(self) -> str:
        """The heading, the summary table, and the first method against the others."""
        parts = [self.heading(), markdown_table(*self._summary_rows())]
        if len(self.methods) > 1:
            parts.append(
                f"{self.methods[0]} against the others (mean difference ± SE, wins/losses):"
            )
            parts.append(markdown_table(*self._paired_rows(self.methods[0])))
        parts += self.remarks()
        return "\n\n".join(parts) + "\n"

    def remarks(self) -> list[str]:
        """Refused cases, and cases that a method was trained on: what a table must not hide."""
        found = []
        for method in self.methods:
            seen = [c for c, r in self.of(method).items() if r.trained_on]
            if seen:
                found.append(
                    f"{method} was trained on {len(seen)} of these cases ({seen[0]}, ...)."
                )
            by_error: dict[str, list[str]] = {}
            for case, error in self.failures(method).items():
                by_error.setdefault(error, []).append(case)
            for error, cases in by_error.items():
                on = counted(len(cases), "case")
                found.append(f"{method} failed on {on}, {cases[0]} first: {error}")
        return found

    def tables(self) -> list[Table]:
        """The same tables for the terminal (rich)."""
        found = [rich_table(self.heading(), *self._summary_rows())]
        if len(self.methods) > 1:
            title = f"{self.methods[0]} against the others (mean difference ± SE, wins/losses)"
            found.append(rich_table(title, *self._paired_rows(self.methods[0])))
        return found

    def _summary_rows(self) -> tuple[list[str], list[list[str]]]:
        summary = self.summary()
        columns = [c for c in COLUMNS if any(c in row for row in summary.values())]
        rows = [
            [method, *(_shown(c, row.get(c, float("nan"))) for c in columns)]
            for method, row in summary.items()
        ]
        return ["method", *(COLUMNS[c][0] for c in columns)], rows

    def _paired_rows(self, method: str) -> tuple[list[str], list[list[str]]]:
        pairs = self.paired(method)
        rows = []
        for other in dict.fromkeys(p.other for p in pairs):
            rows.append([other, *(shown_pair(p) for p in pairs if p.other == other)])
        return ["against", *(COLUMNS[m][0] for m in PAIRED_METRICS)], rows


# Column -> (heading, factor, decimals)
COLUMNS: dict[str, tuple[str, float, int]] = {
    "dice": ("Dice", 1.0, 4),
    WORST_TENTH: ("worst tenth", 1.0, 4),
    "nsd": ("NSD", 1.0, 4),
    "assd_mm": ("ASSD mm", 1.0, 3),
    "hd95_mm": ("HD95 mm", 1.0, 2),
    "hd_mm": ("HD mm", 1.0, 2),
    "chamfer": ("Chamfer x1e4", 1e4, 2),
    "chamfer_exact": ("Chamfer exact x1e4", 1e4, 2),
    "hausdorff": ("Hausdorff (unit sphere)", 1.0, 3),
    "f1_percent": ("F@1%", 1.0, 1),
    "f2_percent": ("F@2%", 1.0, 1),
    "quality": ("quality", 1.0, 3),
    "self_intersections_percent": ("self-int. %", 1.0, 3),
    "seconds_first": ("first s (median)", 1.0, 3),
    "seconds_final": ("final s (median)", 1.0, 3),
    "cases": ("cases", 1.0, 0),
    "refused": ("refused", 1.0, 0),
}


def record_value(record: CaseRecord, name: str) -> float | None:
    """A metric or a time of a record; of one that was refused zero or None."""
    if record.error is not None:
        return 0.0 if name in ZERO_IF_REFUSED else None
    if name in ("seconds_first", "seconds_final"):
        seconds: float | None = getattr(record, name)
        return seconds
    return record.metrics.get(name)


def _shown(column: str, value: float) -> str:
    _, factor, decimals = COLUMNS[column]
    return "-" if np.isnan(value) else f"{factor * value:.{decimals}f}"


def shown_pair(pair: Paired) -> str:
    """Mean difference ± its standard error, wins/losses, verdict."""
    _, factor, decimals = COLUMNS[pair.metric]
    if np.isnan(pair.difference):
        return f"- ({pair.wins}/{pair.losses})"
    error = "-" if np.isnan(pair.error) else f"{factor * pair.error:.{decimals}f}"
    return (
        f"{factor * pair.difference:+.{decimals}f} ± {error} "
        f"({pair.wins}/{pair.losses}) {pair.verdict}"
    )


def _plain(value: Any) -> Any:
    """NaN as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return None if not np.isfinite(value) else float(value)
    return value.item() if isinstance(value, np.generic) else value


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
