"""Plots of evaluations (matplotlib, drawn without a window)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_server.evaluation.results import COLUMNS, PAIRED_METRICS, EvaluationResult
from model_server.io.writing import make_folder, write_together

DPI, SMALL_DPI = 150, 80
COLORS = 256
WIDE = 20  # ratio of counts from which their axis is logarithmic


def _figure(columns: int, width: float = 4.0, height: float = 3.6) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]


def _save(figure: Any, path: Path, dpi: int = DPI) -> None:
    make_folder(path.parent)
    write_together({path: lambda part: _drawn(figure, part, dpi)})


def _drawn(figure: Any, part: Path, dpi: int) -> None:
    """A PNG with a palette: a plot has few colors, and the file becomes much smaller."""
    from PIL import Image

    figure.savefig(part, dpi=dpi)
    if part.suffix.lower() == ".png":
        with Image.open(part) as picture:
            few = picture.convert("RGB").quantize(COLORS, kmeans=3, dither=Image.Dither.NONE)
        few.save(part, optimize=True)


def plot_methods(
    result: EvaluationResult, path: Path, metrics: Sequence[str] = PAIRED_METRICS
) -> None:
    """One panel for each metric: a box for each method, and a dot for each case.

    Args:
        result: methods without a successful case are shown empty.
        path: PNG, PDF or SVG.
        metrics: names as in ``metrics.measure``.
    """
    figure, panels = _figure(len(metrics))
    places = np.arange(len(result.methods))
    for axis, metric in zip(panels, metrics, strict=True):
        for place, method in zip(places, result.methods, strict=True):
            values = np.array(list(result.values(method, metric).values()))
            if len(values) == 0:
                continue
            axis.boxplot(values, positions=[place], widths=0.6, showfliers=False)
            # Evenly spread, so that the picture is the same every time.
            spread = place + 0.2 * np.linspace(-1, 1, len(values))
            axis.plot(spread, values, ".", markersize=3, alpha=0.6)
        axis.set_xticks(places, result.methods, rotation=30, ha="right")
        axis.set_title(COLUMNS[metric][0])
        axis.grid(axis="y", alpha=0.3)
    figure.suptitle(result.heading(), fontsize=8, wrap=True)
    _save(figure, path)


def plot_curves(
    values: Mapping[str, Mapping[int, Sequence[float]]] | Mapping[str, Any],
    metrics: Sequence[str],
    path: Path,
    xlabel: str = "annotated planes",
) -> None:
    """Metrics over a count, a line for each method: mean, with its standard error (figure 6).

    Args:
        values: metric -> method -> count -> values of the cases.
        metrics: the panels.
        path: PNG, PDF or SVG.
        xlabel: what is counted.
    """
    figure, panels = _figure(len(metrics))
    for axis, metric in zip(panels, metrics, strict=True):
        for method, by_count in values[metric].items():
            counts = [n for n in sorted(by_count) if len(by_count[n])]
            mean = np.array([np.mean(by_count[n]) for n in counts])
            error = np.array([np.std(by_count[n]) / np.sqrt(len(by_count[n])) for n in counts])
            axis.errorbar(counts, mean, error, marker="o", markersize=3, capsize=2, label=method)
        axis.set_title(COLUMNS[metric][0].split(" x")[0])
        axis.set_xlabel(xlabel)
        axis.grid(alpha=0.3)
        _spread(axis, sorted({n for by_count in values[metric].values() for n in by_count}))
    panels[0].legend(fontsize=7)
    _save(figure, path)


def plot_costs(
    panels: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]],
    path: Path,
    xlabel: str,
    title: str = "",
) -> None:
    """Costs over a count, a line for each method: median, from the least to the most.

    Args:
        panels: what it costs, with its unit -> method -> count -> values of the cases.
        path: PNG, PDF or SVG.
        xlabel: what is counted.
        title: above all panels, e.g. where it was measured.
    """
    figure, axes = _figure(len(panels))
    for axis, (cost, by_method) in zip(axes, panels.items(), strict=True):
        for method, by_count in by_method.items():
            counts = [n for n in sorted(by_count) if len(by_count[n])]
            middle = np.array([np.median(by_count[n]) for n in counts])
            least, most = (np.array([of(by_count[n]) for n in counts]) for of in (np.min, np.max))
            around = np.stack([middle - least, most - middle])
            axis.errorbar(counts, middle, around, marker="o", markersize=3, capsize=2, label=method)
        axis.set_title(cost)
        axis.set_xlabel(xlabel)
        _from_zero(
            axis, [v for line in by_method.values() for found in line.values() for v in found]
        )
        axis.grid(alpha=0.3)
        _spread(axis, sorted({n for by_count in by_method.values() for n in by_count}))
    axes[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=8, wrap=True)
    _save(figure, path, SMALL_DPI)


def _from_zero(axis: Any, values: Sequence[float]) -> None:
    """What grows by a tenth looks like it; what grows by far more stands at equal ratios."""
    if max(values) > WIDE * min(values) > 0.0:
        axis.set_yscale("log")
    else:
        axis.set_ylim(0.0, 1.08 * max(values))


def _spread(axis: Any, counts: Sequence[float]) -> None:
    """Counts of very different size stand at equal ratios, each with its own tick."""
    if counts and counts[-1] > WIDE * counts[0] > 0:
        axis.set_xscale("log")
        axis.set_xticks(counts, [f"{n:g}" if n < 10_000 else f"{n / 1000:g}k" for n in counts])
        axis.set_xticks([], minor=True)
