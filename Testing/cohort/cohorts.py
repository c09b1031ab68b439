"""Tables of cases whose annotations are those of the ellipsoid, and what became of them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from model_server.cohort.table import Case, Outcome, read_cases

REPOSITORY = Path(__file__).resolve().parents[2]
# The untrained baseline: quick, and in need of no weights.
PRIOR = "rbf"
HEADER = "case,prior,annotations"
ELLIPSOID_ML = 4.0 / 3.0 * np.pi * 7.0 * 20.0 * 8.0 / 1000.0
# What most rows name.
FILES = "sagittal.mrk.json; coronal.mrk.json;axial.mrk.json"


def table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    """A file of cases in the folder."""
    path = folder / "cases.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def cases(folder: Path, *names: str) -> tuple[Case, ...]:
    """All with what most rows name."""
    return read_cases(table(folder, *(f"{name},{PRIOR},{FILES}" for name in names)))


def by_name(outcomes: list[Outcome]) -> dict[str, Outcome]:
    """The outcomes."""
    return {outcome.case: outcome for outcome in outcomes}


def rows_of(output: Path) -> list[dict[str, str]]:
    """What the table of results says."""
    with (output / "cohort.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))
