"""What all benchmarks share: arguments, progress, tables and files."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from rich.console import Console  # noqa: E402

from model_server.cases.organs import labels_of  # noqa: E402
from model_server.evaluation.harness import Load, Method, evaluate  # noqa: E402
from model_server.evaluation.plots import plot_methods  # noqa: E402
from model_server.evaluation.results import (  # noqa: E402
    EvaluationResult,
    markdown_table,
    rich_table,
)
from model_server.priors.protocol import ShapePrior  # noqa: E402
from model_server.priors.registry import list_priors, load_prior, prior_folders  # noqa: E402

DATA = HERE.parent.parent.parent / "shared" / "data"
RESULTS = HERE / "results"
METHODS = ["dals", "pca", "rbf", "poisson", "dasm", "deepsdf"]
THERE = {*prior_folders(), *(name.replace("-dals", "-reference") for name in prior_folders())}
console = Console(width=200)


def parser(description: str, methods: Sequence[str] = METHODS) -> argparse.ArgumentParser:
    """Arguments every benchmark takes."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--data", type=Path, default=DATA, help="root of the label volumes")
    found.add_argument("--limit", type=int, help="only the first so many cases")
    found.add_argument("--methods", nargs="+", default=list(methods), help="first against others")
    found.add_argument("--split", default="validation", help="validation, training or all")
    found.add_argument("--only", help="cases whose name contains this (livers: lits; '' for all)")
    found.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    found.add_argument("--threads", type=int, help="threads of torch")
    found.add_argument("--repeats", type=int, default=1, help="annotations of each case")
    found.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return found


def load(name: str, device: str) -> ShapePrior:
    """A prior by name; "<organ>-reference" is the paper's ADAM fit of that organ's DALS."""
    if not name.endswith("-reference"):
        return load_prior(name, device)
    reference: ShapePrior = import_module("reference_dals").ReferenceDals(
        load_prior(name.replace("-reference", "-dals"), device)
    )
    return reference


def chosen_methods(names: Sequence[str], organ: str) -> list[Method]:
    """Methods by name, the reference included; of what the organ has no prior, it is said."""
    found = [
        Method(n, f"{organ}-reference") if n == "reference" else Method.named(n, organ)
        for n in names
    ]
    missing = [m for m in found if m.prior == f"{organ}-{m.label}" and m.prior not in THERE]
    for method in missing:
        console.print(f"There is no prior '{method.prior}': left out.", markup=False)
    return [m for m in found if m not in missing]


def tell(case: str, method: str, done: int, total: int) -> None:
    """One line of progress, over the last one."""
    end = "\n" if done == total else ""
    print(f"\r{done}/{total} {case} {method}\033[K", end=end, file=sys.stderr, flush=True)


def organs_there(arguments: argparse.Namespace) -> list[str]:
    """Those that were asked for; by default all with labels and a prior."""
    known = {card.organ for card in list_priors()}
    return list(arguments.organs or sorted(o for o in known if _labeled(o, arguments.data)))


def _labeled(organ: str, data: Path) -> bool:
    return (data / labels_of(organ).folder).is_dir()


def evaluated(
    arguments: argparse.Namespace,
    organ: str,
    methods: Sequence[Method],
    protocol: str,
    name: str,
    loader: Load = load,
) -> EvaluationResult:
    """Evaluate by the arguments that every benchmark takes; kept as ``name``.json."""
    return evaluate(
        *(organ, arguments.data, methods, protocol, arguments.split, arguments.limit),
        output=arguments.output / f"{name}.json",
        device=arguments.device,
        threads=arguments.threads,
        only=arguments.only,
        repeats=arguments.repeats,
        load=loader,
        progress=tell,
    )


def measured(
    arguments: argparse.Namespace,
    organ: str,
    protocol: str,
    name: str,
    methods: Sequence[Method] | None = None,
    loader: Load = load,
) -> EvaluationResult:
    """Evaluate, print the tables, and write ``name``.json, .md and .png."""
    found = chosen_methods(arguments.methods, organ) if methods is None else methods
    result = evaluated(arguments, organ, found, protocol, name, loader)
    for table in result.tables():
        console.print(table)
    for remark in result.remarks():
        console.print(remark, style="bold red", markup=False)
    (arguments.output / f"{name}.md").write_text(result.markdown() + "\n" + provenance(result))
    plot_methods(result, arguments.output / f"{name}.png")
    return result


def provenance(result: EvaluationResult) -> str:
    """One line: machine, date, commit, command."""
    m = result.machine
    threads = f", {m['threads']} threads" if m.get("threads") else ""
    return (
        f"{m['cpu']}, {m['cores']} cores{threads}, {m['device']}; {m['date']}; "
        f"commit {m['commit']}; `{result.command}`\n"
    )


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], path: Path) -> None:
    """Print a table and add it to a markdown file."""
    console.print(rich_table(title, header, rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"\n{title}\n\n{markdown_table(header, rows)}\n")


def number(value: float, form: str) -> str:
    """A formatted number, or a dash for NaN."""
    return "-" if math.isnan(value) else format(value, form)


def verdict(value: float, sign: str, bar: float) -> str:
    """Whether ``value`` is at least ("≥") or at most ("≤") the bar."""
    if math.isnan(value):
        return "not measured"
    return "met" if (value >= bar if sign == "≥" else value <= bar) else "missed"


def show_bars(result: EvaluationResult, method: str, bars: Mapping[str, float], path: Path) -> None:
    """Whether a method reaches the issue's bars, metric by metric."""
    from model_server.evaluation.metrics import LARGER_IS_BETTER
    from model_server.evaluation.results import COLUMNS

    if method not in result.methods:
        return
    rows = []
    for metric, bar in bars.items():
        _, factor, decimals = COLUMNS[metric]
        value = result.mean(method, metric)
        sign = "≥" if LARGER_IS_BETTER[metric] else "≤"
        found = number(factor * value, f".{decimals}f")
        rows.append(
            [COLUMNS[metric][0], found, f"{sign} {factor * bar:g}", verdict(value, sign, bar)]
        )
    show(f"{result.organ}: {method} and its bars", ["metric", "found", "bar", ""], rows, path)
