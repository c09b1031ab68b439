"""2,500 points on the surface, the paper's first task, pose unknown (DALS, Table 1).

    python Testing/benchmarks/liver_points.py [--only ''] [--limit 5]

Chamfer is between 100,000 samples of each surface, the truth scaled into the unit sphere.
"""

from __future__ import annotations

from common import measured, parser, show, show_bars

BARS = {
    "chamfer": 2.4e-4,
    "f1_percent": 95.4,
    "f2_percent": 99.0,
    "self_intersections_percent": 0.2,
    "quality": 0.98,
}
# Method, Chamfer x1e4, Hausdorff, F@1%, F@2%, quality, % self-intersections.
PAPER = [
    ("DeepSDF", 40.7, 0.21, 31.3, 63.8, 0.98, 0.00),
    ("SIREN+DeepSDF", 36.2, 0.20, 51.4, 78.4, 0.98, 0.00),
    ("DASM", 17.0, 0.23, 87.7, 92.9, 0.74, 7.40),
    ("DASM+R", 8.8, 0.19, 94.6, 96.8, 0.98, 0.00),
    ("DUAL-MLP (global)", 13.6, 0.16, 71.7, 91.4, 0.98, 0.00),
    ("DUAL-MLP (local)", 161.7, 0.43, 44.5, 62.1, 0.98, 0.00),
    ("DALS", 2.4, 0.11, 95.4, 99.0, 0.98, 0.20),
]
HEADER = ["method", "Chamfer x1e4", "Hausdorff", "F@1%", "F@2%", "quality", "self-int. %"]


def main() -> None:
    """Run, and print the paper's table below ours."""
    chosen = parser(__doc__).parse_args()
    result = measured(chosen, "liver", "points-2500", "liver_points")
    path = chosen.output / "liver_points.md"
    rows = [[str(v) for v in row] for row in PAPER]
    show("The paper's Table 1 (its livers, pose given)", HEADER, rows, path)
    show_bars(result, chosen.methods[0], BARS, path)


if __name__ == "__main__":
    main()
