"""The product's main task: an axial, a coronal and a sagittal outline, pose unknown.

    python Testing/benchmarks/three_outlines.py [--organs hippocampus liver] [--limit 5]

Writes three_outlines_<organ>.json, .md and .png.
"""

from __future__ import annotations

from common import METHODS, measured, parser, show_bars

ORGANS = ["hippocampus", "kidney", "liver", "pancreas", "spleen"]
BARS = {
    "hippocampus": {"dice": 0.875, "nsd": 0.905},
    "kidney": {"dice": 0.91},
    "liver": {"dice": 0.905},
    "pancreas": {"dice": 0.64},
}


def main() -> None:
    """Run all organs that were asked for."""
    arguments = parser(__doc__, [METHODS[0], "atlas", *METHODS[1:]])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    chosen = arguments.parse_args()
    for organ in chosen.organs:
        name = f"three_outlines_{organ}"
        result = measured(chosen, organ, "outlines", name)
        if organ in BARS:
            show_bars(result, chosen.methods[0], BARS[organ], chosen.output / f"{name}.md")


if __name__ == "__main__":
    main()
