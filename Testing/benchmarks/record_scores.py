"""Write the measured scores of three_outlines.py into each bundled prior's card.

python Testing/benchmarks/record_scores.py
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from common import RESULTS

from model_server.priors.card import CARD_FILE, read_card
from model_server.priors.registry import BUNDLED_ZOO

METRICS = ("dice", "dice_worst_tenth", "nsd", "assd_mm", "hd95_mm")


def main() -> None:
    """Every prior in the zoo that its organ's result file knows."""
    for folder in sorted(BUNDLED_ZOO.glob("*")):
        card = read_card(folder)
        path = RESULTS / f"three_outlines_{card.organ}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        values = found["summary"].get(card.method)
        if not values:
            continue
        scores = {
            "three-outlines": {
                **{m: round(values[m], 4) for m in METRICS},
                "nsd_tolerance_mm": found["tolerance_mm"],
                "validation_cases": values["cases"],
                "refused": values["refused"],
                "command": "python " + found["command"],
            }
        }
        card = replace(card, scores=scores)
        (folder / CARD_FILE).write_text(json.dumps(asdict(card), indent=1) + "\n")
        print(card.name, scores["three-outlines"])


if __name__ == "__main__":
    main()
