"""What every fit returns: one closed surface without folds, which passes through what was drawn.

    python Testing/benchmarks/surfaces.py [--organs hippocampus] [--methods dals] [--limit 5]

Validation cases; two and three drawn outlines, 20 clicks, and three outlines that contradict each
other. Writes surfaces.md.
"""

from __future__ import annotations

import argparse

import numpy as np
from common import chosen_methods, load, number, parser, show, tell, verdict
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from model_server.errors import ShapePriorError
from model_server.evaluation.harness import Method, cases_of, use_threads
from model_server.evaluation.metrics import Truth, self_intersections
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.priors.protocol import ShapePrior
from model_server.reconstruction import Reconstruction, Surface

ORGANS = ["hippocampus", "kidney", "liver", "pancreas", "spleen"]
PROTOCOLS = ["two-outlines", "outlines", "clicks-20", "outlines-contradicting"]
MOST_FOLDED = 0.2  # percent of the faces
MEAN_MM = {"hippocampus": 0.3}  # of an outline from the surface, over all cases
MEAN_MM_CT = 0.8
NAMED_MM = 2.0  # a loop farther off has to be named by a warning
HEADER = ["organ", "annotations", "method", "cases", "refused", "open or in parts", "self-int. %"]
HEADER += ["worst self-int. %", "outline mm", f"loops > {NAMED_MM:g} mm", "not named", "bars"]


def is_one(surface: Surface) -> bool:
    """Whether a surface is closed and in one piece: every edge has two triangles, all connected."""
    edges = np.sort(surface.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    shared = np.unique(edges, axis=0, return_counts=True)[1]
    count = len(surface.points)
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    parts = connected_components(graph, directed=False)[1][np.unique(edges)]
    return bool((shared == 2).all() and (parts == parts[0]).all())


def row(organ: str, protocol: str, method: str, found: list[Reconstruction], cases: int) -> list[str]:
    """One line of the table."""
    folded = [self_intersections(r.surface) for r in found]
    whole = sum(is_one(r.surface) for r in found)
    gaps = [(r, gap) for r in found for gap in r.residuals if gap.kind == "outline"]
    far = [(r, gap) for r, gap in gaps if gap.max_mm > NAMED_MM]
    named = [any(f"'{gap.name}'" in warning for warning in r.warnings) for r, gap in far]
    mean = float(np.mean([gap.mean_mm for _, gap in gaps])) if gaps else float("nan")
    worst = max(folded, default=float("nan"))
    checks = [
        verdict(len(found) - whole, "≤", 0.0),
        verdict(worst, "≤", MOST_FOLDED),
        verdict(len(named) - sum(named), "≤", 0.0),
    ]
    if protocol == "outlines":
        checks.append(verdict(mean, "≤", MEAN_MM.get(organ, MEAN_MM_CT)))
    return [
        *(organ, protocol, method, str(cases), str(cases - len(found)), str(len(found) - whole)),
        *(number(float(np.mean(folded)), ".3f"), number(worst, ".3f"), number(mean, ".2f")),
        *(str(len(far)), str(len(named) - sum(named))),
        "met" if all(check in ("met", "not measured") for check in checks) else "missed",
    ]


def fitted(
    prior: ShapePrior, method: Method, truths: dict[str, Truth], protocol: str
) -> list[Reconstruction]:
    """The final surfaces of all cases that are not refused."""
    found = []
    for name, truth in truths.items():
        observations = find_protocol(protocol).observations(truth, name)
        try:
            found.append(list(prior.fit(observations, settings=method.fit_settings()))[-1])
        except ShapePriorError:
            continue
    return found


def compare(chosen: argparse.Namespace, organ: str) -> list[list[str]]:
    """The lines of one organ."""
    cases = cases_of(organ, chosen.data, chosen.split, chosen.only)[: chosen.limit]
    truths = {case.name: Truth.from_label(case.label()) for case in cases}
    methods = chosen_methods(chosen.methods, organ)
    rows = []
    for done, method in enumerate(methods, start=1):
        prior = load(method.prior, chosen.device)
        for protocol in chosen.protocols:
            found = fitted(prior, method, truths, protocol)
            rows.append(row(organ, protocol, method.label, found, len(truths)))
        tell(organ, method.label, done, len(methods))
    return rows


def main() -> None:
    """Print and write the table."""
    arguments = parser(__doc__, ["dals", "atlas", "pca"])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    arguments.add_argument("--protocols", nargs="+", default=PROTOCOLS)
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    path = chosen.output / "surfaces.md"
    path.unlink(missing_ok=True)
    rows = [line for organ in chosen.organs for line in compare(chosen, organ)]
    m = machine(chosen.device, chosen.threads)
    title = f"Surfaces, {chosen.split} cases ({m['cpu']}, {m['date']}, commit {m['commit']})"
    show(title, HEADER, rows, path)


if __name__ == "__main__":
    main()
