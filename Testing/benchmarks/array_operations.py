"""The array operations of a fit: how many, on how many numbers, and what a GPU would do with them.

    python Testing/benchmarks/array_operations.py [--prior hippocampus-dals] [--protocols outlines]

A GPU takes 5 to 10 microseconds to begin an operation, however small; where the host has to read a
number, or a length that depends on numbers, before it can go on, it waits for all that was begun.
So what is worth a GPU are few operations on many numbers. This counts them in one final surface of
the bundled case, by parts: the decoder, the large matrices (``fitting.arrays``), and points, which
are all else. The source of the fit is read with a counter around every expression; seconds are of
the CPU, of one thread, and measured without it, the least of several. Writes array_operations.md.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np

PACKAGE = "model_server"
COUNTED = ("fitting", "geometry", "priors", "pose", "reconstruction")  # that fits are made of
BEGUN_US = (5.0, 10.0)  # that a GPU takes to begin an operation
REPEATS = 7
PROFILED = ("outlines", "planes-20", "clicks-1024")  # kinds of annotations
NO_COPY = {"asarray", "atleast_2d", "array_split", "broadcast_to", "ravel", "reshape", "transpose"}
LENGTHS = {"flatnonzero", "nonzero", "unique"}  # whose answers are as long as numbers say
COUNTER = "_counter"  # as instrumented source calls it
POINTS, MATRICES, DECODER = "points", "large matrices", "decoder"
# What begins a part: module, class or none, functions. What they call belongs to it.
BEGINNINGS = {
    MATRICES: [
        ("fitting.leftover", "Kriging",
         ("of", "at", "displaced", "rows", "variance", "covariance", "among", "known")),
        ("fitting.leftover", "Leftover", ("alike",)),
        ("fitting.gauss_newton", "", ("covariance_of",)),
        ("fitting.gauss_newton", "_Scale", ("of", "__call__")),
        ("fitting.vertex_latents", "VertexLatents", ("of", "moved", "covariance", "known")),
        ("fitting.mesh_errors", "NodeErrors", ("__init__", "variance", "covariance")),
    ],
    DECODER: [("priors.dals_arrays", "ArrayDecoder", ("linear", "vertices"))],
}  # fmt: skip


@dataclass
class Part:
    """What one part of a fit did: ``sizes`` of the answers of its operations, ``waits`` of the host
    for numbers, ``seconds`` of the CPU."""

    sizes: list[int] = field(default_factory=list)
    waits: int = 0
    seconds: float = 0.0


class Counter:
    """Told every value that instrumented source computes, and where parts begin."""

    def __init__(self) -> None:
        self.on = False
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.part = POINTS
        self.parts = {name: Part() for name in (DECODER, MATRICES, POINTS)}

    def _operation(self, size: int, waits: bool = False) -> None:
        self.parts[self.part].sizes.append(size)
        self.parts[self.part].waits += waits

    def value(self, found: Any) -> Any:
        """Of an operator."""
        if self.on and isinstance(found, np.ndarray) and found.ndim:
            self._operation(found.size)
        return found

    def item(self, array: Any, index: Any) -> Any:
        """Of an array, by an index."""
        found = array[index]
        if not self.on or not isinstance(array, np.ndarray):
            return found
        keys = index if isinstance(index, tuple) else (index,)
        by_mask = any(isinstance(k, np.ndarray) and k.dtype == bool for k in keys)
        if by_mask or not isinstance(found, np.ndarray):
            self._operation(np.size(found), waits=True)
        elif found.base is None:  # else it is the same memory
            self._operation(found.size)
        return found

    def call(self, function: Any, *given: Any, **named: Any) -> Any:
        """Of a function; what the package's own do is counted inside of them."""
        found = function(*given, **named)
        if not self.on or (getattr(function, "__module__", None) or "").startswith(PACKAGE):
            return found
        name = getattr(function, "__name__", "")
        arrays = [x for x in (getattr(function, "__self__", None), *given)
                  if isinstance(x, np.ndarray) and x.ndim]  # fmt: skip
        first = found[0] if isinstance(found, tuple) and found else found
        if isinstance(first, np.ndarray) and first.ndim:
            if name not in NO_COPY:
                self._operation(first.size, waits=name in LENGTHS)
        elif arrays and isinstance(found, (np.generic, bool, int, float)) and name != "len":
            self._operation(arrays[0].size, waits=True)
        return found

    def begins(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as the beginning of a part."""

        def within(*given: Any, **named: Any) -> Any:
            if self.part != POINTS:
                return function(*given, **named)
            self.part, began = part, time.process_time()
            try:
                return function(*given, **named)
            finally:
                self.parts[part].seconds += time.process_time() - began
                self.part = POINTS

        return within


class Instrumented(ast.NodeTransformer):
    """Source with a counter around every operator, index and call."""

    def _told(self, how: str, node: ast.expr, given: list[ast.expr], named: Any = ()) -> ast.Call:
        method = ast.Attribute(ast.Name(COUNTER, ast.Load()), how, ast.Load())
        return ast.copy_location(ast.Call(method, given, list(named)), node)

    def _operator(self, node: Any) -> ast.Call:
        self.generic_visit(node)
        return self._told("value", node, [node])

    visit_BinOp = visit_Compare = _operator

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        """Signs of constants are no operations."""
        return node if isinstance(node.operand, ast.Constant) else self._operator(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """Where it is read."""
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        return self._told("item", node, [node.value, _index(node.slice)])

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """``super`` alone looks at its caller."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in ("super", "TypeVar"):
            return node
        return self._told("call", node, [node.func, *node.args], node.keywords)

    def _body(self, node: Any) -> Any:
        """Annotations, bases, defaults and decorators stay what they are."""
        node.body = [self.visit(each) for each in node.body]
        return node

    visit_FunctionDef = visit_ClassDef = _body

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        """Its value."""
        node.value = node.value and self.visit(node.value)
        return node


def _index(node: ast.expr) -> ast.expr:
    """An index as a value that can be handed on."""
    if isinstance(node, ast.Slice):
        ends = [end or ast.Constant(None) for end in (node.lower, node.upper, node.step)]
        return ast.Call(ast.Name("slice", ast.Load()), ends, [])
    if isinstance(node, ast.Tuple):
        return ast.Tuple([_index(each) for each in node.elts], ast.Load())
    return node


class Loader(SourceFileLoader):
    """Reads source with the counter in it, and keeps no compiled file."""

    def get_code(self, fullname: str) -> CodeType:
        """See there."""
        path = self.get_filename(fullname)
        tree = Instrumented().visit(ast.parse(self.get_data(path)))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    """Finds the modules that fits are made of; torch compiles none of them."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """See there."""
        parts = fullname.split(".")
        found = PathFinder.find_spec(fullname, path) if parts[0] == PACKAGE else None
        if found is None or not found.origin or not found.has_location or len(parts) < 2:
            return None
        if parts[1] in COUNTED and not found.submodule_search_locations:
            found.loader = Loader(fullname, found.origin)
        return found


def begin_parts(counter: Counter) -> None:
    """Put the counter where parts begin."""
    for part, places in BEGINNINGS.items():
        for module, kind, names in places:
            owner = sys.modules[f"{PACKAGE}.{module}"]
            owner = getattr(owner, kind) if kind else owner
            for name in names:
                known = owner.__dict__[name]
                plain = known.__func__ if isinstance(known, classmethod) else known
                begun = counter.begins(part, plain)
                setattr(owner, name, classmethod(begun) if plain is not known else begun)


def measured(prior: str, protocol: str, counting: bool) -> dict[str, Part]:
    """One final surface: its operations, or the CPU seconds of its parts."""
    from gpu import EXAMPLE, Truth, find_protocol, last, load, read_volume

    counter = getattr(builtins, COUNTER)
    drawn = find_protocol(protocol).observations(
        Truth.from_label(read_volume(EXAMPLE / "truth.nii.gz")), "bundled"
    )
    loaded = load(prior, "cpu")
    last(loaded, drawn)
    begin_parts(counter)
    found: list[tuple[float, dict[str, Part]]] = []
    for _ in range(1 if counting else REPEATS):
        counter.clear()
        counter.on, began = counting, time.process_time()
        last(loaded, drawn)
        counter.on, spent = False, time.process_time() - began
        known = sum(part.seconds for part in counter.parts.values())
        counter.parts[POINTS].seconds = spent - known
        found.append((spent, counter.parts))
    return min(found, key=lambda each: each[0])[1]


def row(name: str, counted: Part, timed: Part, whole: float) -> list[str]:
    """Of the table."""
    low, high = (1e-3 * us * len(counted.sizes) for us in BEGUN_US)
    size = np.median(counted.sizes) if counted.sizes else 0
    large = sum(n > 10_000 for n in counted.sizes)
    return [name, f"{1e3 * timed.seconds:.0f}", f"{100 * timed.seconds / whole:.0f} %",
            str(len(counted.sizes)), f"{size:.0f}", str(large), str(counted.waits),
            f"{low:.0f} to {high:.0f}"]  # fmt: skip


def in_process(prior: str, protocol: str, counting: bool) -> dict[str, Part]:
    """Measured in a process of its own: source is instrumented where it is read."""
    import json
    import subprocess

    words = [sys.executable, __file__, "--prior", prior, "--protocols", protocol]
    words += ["--measure", "counts" if counting else "seconds"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {name: Part(**part) for name, part in told.items()}


def tables(prior: str, protocols: Sequence[str], path: Path) -> None:
    """Print a table for each kind of annotations, and write them."""
    from common import show

    from model_server.evaluation.results import machine

    path.unlink(missing_ok=True)
    where = machine()
    header = ["part", "CPU ms", "share", "operations", "numbers (median)", "of more than 10,000",
              "waits for a number", "to begin them on a GPU, ms"]  # fmt: skip
    for protocol in protocols:
        counts, timed = (in_process(prior, protocol, counting) for counting in (True, False))
        whole = sum(part.seconds for part in timed.values())
        rows = [row(name, counts[name], timed[name], whole) for name in counts]
        title = f"{prior}, {protocol}, final surface of the bundled case ({where['cpu']}, one "
        title += f"thread, {where['date']}, commit {where['commit']})"
        show(title, header, rows, path)


def main() -> None:
    """Measure, or print what was measured."""
    import json
    from dataclasses import asdict

    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--prior", default="hippocampus-dals", help="whose decoder moves a mesh")
    found.add_argument("--protocols", nargs="+", default=list(PROFILED))
    found.add_argument("--output", type=Path, help="folder of the results")
    found.add_argument("--measure", choices=["counts", "seconds"], help="used by itself")
    chosen = found.parse_args()
    if chosen.measure is None:
        from common import RESULTS

        folder = chosen.output or RESULTS
        tables(chosen.prior, chosen.protocols, folder / "array_operations.md")
        return
    setattr(builtins, COUNTER, Counter())
    if chosen.measure == "counts":
        sys.meta_path.insert(0, Finder())
    parts = measured(chosen.prior, chosen.protocols[0], chosen.measure == "counts")
    print(json.dumps({name: asdict(part) for name, part in parts.items()}))


if __name__ == "__main__":
    main()
