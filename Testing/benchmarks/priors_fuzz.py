"""Damaged priors: is each refused with one sentence, or good enough for a fit?

    python Testing/benchmarks/priors_fuzz.py [--count 500] [--priors spleen-pca hippocampus-dals]

Cards and weights are changed in one place each, with renewed checksums. What loads is fitted to
twenty clicks (deep priors every tenth time).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import HERE, RESULTS, show

sys.path.insert(0, str(HERE.parent / "priors"))

from mutations import Mutant

from model_server.errors import ShapePriorError
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations, PointSet
from model_server.priors.registry import BUNDLED_ZOO, load_prior
from model_server.reconstruction import Surface

PRIORS = ["spleen-pca", "hippocampus-dals", "hippocampus-atlas"]
EVERY = 10  # of the deep priors that load is fitted


def clicks(name: str) -> Observations:
    """Twenty places on a prior's mean shape, of the size its organ has."""
    prior = load_prior(f"{name.split('-')[0]}-pca", "cpu")
    shape = prior.decode(prior.latent_mean)
    radius = np.mean(prior.card.hyperparameters["radius_mm"])
    whole = Surface(shape.points * radius / prior.rms_radius, shape.triangles)
    return Observations(boundary=(PointSet(sample_surface(whole, 20, np.random.default_rng(0))),))


def outcomes(name: str, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """What came of each damaged prior, and what was done to it."""
    drawn = clicks(name)
    with tempfile.TemporaryDirectory() as place:
        zoo = Path(place)
        quick = f"{name.split('-')[0]}-pca"
        if quick != name:
            shutil.copytree(BUNDLED_ZOO / quick, zoo / quick)
        mutant = Mutant(BUNDLED_ZOO / name, zoo / name)
        for number in range(count):
            told = mutant.write(np.random.default_rng([seed, number]))
            try:
                prior = load_prior(zoo / name, "cpu")
                if name == quick or number % EVERY == 0:
                    list(prior.fit(drawn))
                yield "usable", told
            except ShapePriorError as error:
                steers = any(ord(c) < 32 for c in str(error))
                yield ("steers the terminal" if steers else f"refused ({error.code})"), told
            except Exception as error:
                traceback.print_exc()
                yield f"fault ({type(error).__name__})", told


def main() -> None:
    """Damage, load, fit, count."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=500, help="in all")
    arguments.add_argument("--priors", nargs="+", default=PRIORS)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--output", type=Path, default=RESULTS)
    chosen = arguments.parse_args()
    rows = []
    for index, name in enumerate(chosen.priors):
        count = len(range(index, chosen.count, len(chosen.priors)))
        began = time.perf_counter()
        found: Counter[str] = Counter()
        for outcome, told in outcomes(name, count, chosen.seed):
            found[outcome] += 1
            if outcome.startswith(("fault", "steers")):
                print(f"{name}: {told}: {outcome}", file=sys.stderr)
        faults = sum(n for what, n in found.items() if what.startswith(("fault", "steers")))
        refused = sum(n for what, n in found.items() if what.startswith("refused"))
        seconds = f"{time.perf_counter() - began:.0f}"
        rows.append([name, str(count), str(refused), str(found["usable"]), str(faults), seconds])
    path = chosen.output / "priors_fuzz.md"
    path.write_text(f"`{' '.join(sys.argv)}`\n")
    columns = ["prior", "damaged", "refused in a sentence", "usable", "faults", "seconds"]
    show(f"{chosen.count} damaged priors", columns, rows, path)


if __name__ == "__main__":
    main()
