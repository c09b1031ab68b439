"""Does the distance of the nearest training shape tell what is no hippocampus?

    python Testing/benchmarks/plausibility.py [--limit 5]

Validation hippocampi, the same stretched, and validation kidneys and pancreases made as small as
hippocampi, each fitted with hippocampus-atlas from three outlines. Writes plausibility.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import number, parser, show

from model_server.cases.canonical import standardization
from model_server.cases.splits import Case, split_cases
from model_server.errors import ShapePriorError
from model_server.evaluation.harness import use_threads
from model_server.evaluation.metrics import Truth
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.priors.context import with_context
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface

PRIOR = "hippocampus-atlas"
RADIUS_MM = 13.0  # RMS, of a hippocampus
STRETCH = np.array([1.7, 0.8, 1.0])
MOST = 12  # cases of each other group
HEADER = ["shapes", "fitted", "refused", "least", "median", "95 %", "most"]


def resized(case: Case, stretch: np.ndarray) -> Surface:
    """A case's surface at its own place, of a hippocampus's size."""
    surface = case.surface()
    center = standardization(surface).center
    points = (surface.points - center) * stretch
    scale = RADIUS_MM / standardization(Surface(points, surface.triangles)).rms_radius
    return Surface(center + scale * points, surface.triangles)


def main() -> None:
    """Fit every group; print and write the table."""
    chosen = parser(__doc__).parse_args()
    use_threads(chosen.threads)
    prior = load_prior(PRIOR, chosen.device)
    cases = {o: split_cases(chosen.data / o).validation for o in ("hippocampus", "pancreas")}
    left = [c for c in split_cases(chosen.data / "kidney").validation if c.side == "left"]
    groups = {
        "hippocampi": (cases["hippocampus"], np.ones(3)),
        "hippocampi, stretched": (cases["hippocampus"][:MOST], STRETCH),
        "kidneys": (left[:MOST], np.ones(3)),
        "pancreases": (cases["pancreas"], np.ones(3)),
    }
    protocol = find_protocol("outlines")
    rows = []
    for name, (group, stretch) in groups.items():
        found, refused = [], 0
        for case in group[: chosen.limit]:
            truth = Truth(resized(case, stretch), case.label())
            try:
                *_, last = prior.fit(protocol.observations(truth, case.name))
            except ShapePriorError:
                refused += 1
                continue
            found.append(with_context(prior, last).nearest_training[0].distance)
        figures = np.quantile(found, [0.0, 0.5, 0.95, 1.0]) if found else np.full(4, np.nan)
        rows.append(
            [name, str(len(found)), str(refused), *(number(float(f), ".2f") for f in figures)]
        )
    m = machine(chosen.device, chosen.threads)
    path: Path = chosen.output / "plausibility.md"
    path.unlink(missing_ok=True)
    made = f"{m['cpu']}, {m['date']}, commit {m['commit']}"
    show(f"{PRIOR}: distance of the nearest training shape ({made})", HEADER, rows, path)


if __name__ == "__main__":
    main()
