"""Local latents, the triangle term L_reg and remeshing, each on and off (DALS, Table 5).

    python Testing/benchmarks/ablation.py [--only ''] [--limit 5]

2,500 points on the surface, pose unknown. L_reg is switched off in the fit alone; the paper
switches it off in training as well.
"""

from __future__ import annotations

from itertools import product

from common import measured, number, parser, show

from model_server.evaluation.harness import Method

# (local, L_reg, remeshing) -> Chamfer x1e4, quality; the paper's Table 5.
PAPER = {
    (False, False, False): (7.89, 0.75),
    (True, False, False): (1.89, 0.72),
    (False, True, False): (5.41, 0.83),
    (True, True, False): (1.50, 0.87),
    (True, True, True): (2.41, 0.98),
}
HEADER = ["local", "L_reg", "remeshed", "Chamfer x1e4", "paper", "quality", "paper", "Dice", "s"]


def variant(prior: str, local: bool, regular: bool, remesh: bool) -> Method:
    """The DALS fit with parts switched off."""
    parts = [n for n, on in (("local", local), ("Lreg", regular), ("remesh", remesh)) if on]
    settings = {"local": local, "quality_weight": float(regular), "remesh": remesh}
    return Method("+".join(parts) or "neither", prior, settings)


def main() -> None:
    """Run every combination, the paper's five beside the paper's figures."""
    arguments = parser(__doc__, ["dals"])
    arguments.add_argument("--organ", default="liver")
    chosen = arguments.parse_args()
    prior = f"{chosen.organ}-dals"
    combinations = sorted(product((True, False), repeat=3), reverse=True)
    methods = [variant(prior, *c) for c in combinations]
    result = measured(chosen, chosen.organ, "points-2500", "ablation", methods)
    rows = []
    for combination, method in zip(combinations, methods, strict=True):
        chamfer, quality = PAPER.get(combination, ("-", "-"))
        row = [
            *("yes" if on else "no" for on in combination),
            number(1e4 * result.mean(method.label, "chamfer"), ".2f"),
            str(chamfer),
            number(result.mean(method.label, "quality"), ".3f"),
            str(quality),
            number(result.mean(method.label, "dice"), ".4f"),
            number(result.summary()[method.label]["seconds_final"], ".2f"),
        ]
        rows.append(row)
    show("Ablation, beside the paper's Table 5", HEADER, rows, chosen.output / "ablation.md")


if __name__ == "__main__":
    main()
