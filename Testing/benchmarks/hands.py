"""People's hands vary: how many of their drawings are refused, and what comes of the others.

    python Testing/benchmarks/hands.py [--organs hippocampus] [--drawings 500] [--limit 5]

First so many simulated drawings (protocol "hands") of the cases in turn, read, checked and fitted
by the organ's PCA prior: each refusal is counted by its reason. Then every protocol with all
methods. Writes hands_<organ>.json and .md, and hands_<organ>_<protocol>.json.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from typing import Any

from common import (
    chosen_methods,
    console,
    evaluated,
    load,
    number,
    organs_there,
    parser,
    provenance,
    show,
    tell,
    verdict,
)

from model_server.errors import ShapePriorError
from model_server.evaluation.harness import Method, cases_of, timed_fit
from model_server.evaluation.metrics import Truth
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import EvaluationResult, machine
from model_server.priors.registry import list_priors

KINDS = ("random", "clustered", "slices", "half")
PROTOCOLS = ["outlines", "hands", "clicks-20", *(f"clicks-{kind}-20" for kind in KINDS)]
DRAWINGS = 500
# Dice of 20 clicks placed uniformly at random.
BARS = {"pca": 0.845, "dals": 0.85, "atlas": 0.85}
# Reading and checks alone.
QUICKLY = {"local": False, "remesh": False, "uncertainty": False}
HEADER = ["protocol", "method", "Dice", "worst tenth", "NSD", "HD95 mm", "refused", "bar"]


def refusals(chosen: argparse.Namespace, organ: str) -> dict[str, Any]:
    """Draw so many times, and count what is refused, and what is mended, by its reason."""
    method = Method("pca", f"{organ}-pca", QUICKLY)
    prior, protocol = load(method.prior, chosen.device), find_protocol("hands")
    cases = cases_of(organ, chosen.data, chosen.split, chosen.only)[: chosen.limit]
    refused: Counter[str] = Counter()
    warned: Counter[str] = Counter()
    named: list[str] = []
    for index, case in enumerate(cases):
        truth = Truth.from_label(case.label())
        for repeat in range(-(-(chosen.drawings - index) // len(cases))):
            try:
                observations = protocol.observations(truth, case.name, repeat)
                final = timed_fit(prior, observations, method.fit_settings()).final
            except ShapePriorError as error:
                refused[_reason(error.what)] += 1
                named.append(f"{case.name}#{repeat}: {error}")
            else:
                warned.update({_reason(warning) for warning in final.warnings})
        tell(case.name, "drawings", index + 1, len(cases))
    return {"drawings": chosen.drawings, "refused": refused, "warned": warned, "cases": named}


def _reason(sentence: str) -> str:
    """A sentence without its names and numbers."""
    return re.sub(r"-?\d[\d.,]*", "N", re.sub(r"'[^']*'", "'...'", sentence))


def row(protocol: str, method: str, result: EvaluationResult) -> list[str]:
    """One line of the table."""
    dice = result.mean(method, "dice")
    barred = protocol == "clicks-random-20" and result.organ == "hippocampus" and method in BARS
    return [
        protocol,
        method,
        number(dice, ".4f"),
        number(result.worst_tenth(method), ".4f"),
        number(result.mean(method, "nsd"), ".4f"),
        number(result.mean(method, "hd95_mm"), ".2f"),
        str(len(result.failures(method))),
        f">= {BARS[method]:g}: {verdict(dice, '≥', BARS[method])}" if barred else "",
    ]


def compare(chosen: argparse.Namespace, organ: str) -> None:
    """One organ: its refusals, then a table of all protocols."""
    chosen.output.mkdir(parents=True, exist_ok=True)
    path = chosen.output / f"hands_{organ}.md"
    path.unlink(missing_ok=True)
    if chosen.drawings:
        found = refusals(chosen, organ)
        data = found | {"organ": organ, "machine": machine(chosen.device, chosen.threads)}
        path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
        counts = [[f"refused: {what}", str(n)] for what, n in found["refused"].most_common()]
        counts += [[f"warned: {what}", str(n)] for what, n in found["warned"].most_common()]
        counts.insert(0, ["refused in all", str(found["refused"].total())])
        title = f"{organ}: {chosen.drawings} drawings by hands that vary, {organ}-pca"
        show(title, ["what", "drawings"], counts, path)
    known = {card.name for card in list_priors()} | {"rbf"}
    methods = [m for m in chosen_methods(chosen.methods, organ) if m.prior in known]
    results = {}
    for name in chosen.protocols:
        results[name] = evaluated(chosen, organ, methods, name, name)
    rows = [row(name, m, result) for name, result in results.items() for m in result.methods]
    if not rows:
        return
    show(f"{organ}: hands and clicks, pose unknown", HEADER, rows, path)
    with path.open("a") as file:
        for name, result in results.items():
            for remark in result.remarks():
                console.print(f"{organ}, {name}: {remark}", style="bold red", markup=False)
                file.write(f"\n{name}: {remark}\n")
        file.write("\n" + provenance(list(results.values())[-1]))


def main() -> None:
    """Run all organs that were asked for: by default those that have a prior."""
    arguments = parser(__doc__, ["dals", "atlas", "pca", "rbf"])
    arguments.add_argument("--organs", nargs="+")
    arguments.add_argument("--drawings", type=int, default=DRAWINGS, help="of each organ; 0: none")
    arguments.add_argument("--protocols", nargs="*", default=PROTOCOLS)
    chosen = arguments.parse_args()
    for organ in organs_there(chosen):
        compare(chosen, organ)


if __name__ == "__main__":
    main()
