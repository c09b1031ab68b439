"""The command line: ``python -m model_server`` and ``shape-prior``.

Results go to files and to standard output; progress, warnings and errors go to standard error.
What the user can mend ends in one sentence and exit code 2, a cohort with failed cases in 1,
Ctrl-C in 130. torch and VTK are imported inside the commands that need them, so that ``--help``
answers at once.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_server.errors import ShapePriorError
from model_server.fit_session import SIDES, Session

if TYPE_CHECKING:
    from model_server.cohort import Outcome
    from model_server.fit_session import Progress
    from model_server.priors.card import PriorCard
    from model_server.reconstruction import Reconstruction

EXIT_SOME_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
DEVICES = ("auto", "cpu", "cuda")
# Options that take several values after one flag; click knows only one value for each flag.
SEVERAL = ("--annotations", "--methods")

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    name="shape-prior",
    help="Organ surfaces from sparse annotations, by learned shape priors.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True, highlight=False, soft_wrap=True)
output = Console(highlight=False)


def main() -> None:
    """Entry point."""
    app(split_several(sys.argv[1:]))


def split_several(words: Sequence[str]) -> list[str]:
    """``--annotations A B --output C`` -> ``--annotations A --annotations B --output C``."""
    result: list[str] = []
    flag: str | None = None
    waiting = False  # the flag stands there already and has no value yet
    for word in words:
        if word.startswith("-") and word != "-":
            name, equals, _ = word.partition("=")
            flag = name if name in SEVERAL else None
            waiting = flag is not None and not equals
            result.append(word)
        elif flag is not None and not waiting:
            result += [flag, word]
        else:
            waiting = False
            result.append(word)
    return result


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose mendable errors end in one sentence, and Ctrl-C in exit code 130."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ShapePriorError as error:
            errors.print(f"Error: {error}", markup=False)
            raise typer.Exit(EXIT_BAD_INPUT) from error
        except KeyboardInterrupt as error:
            errors.print("Interrupted: nothing was written.")
            raise typer.Exit(EXIT_INTERRUPTED) from error

    return run


def _choice(value: str, allowed: Sequence[str], option: str) -> str:
    if value not in allowed:
        raise ShapePriorError(
            f"{option} is '{value}'.", f"Choose one of: {', '.join(allowed)}.", "unknown-choice"
        )
    return value


def print_table(table: Table) -> None:
    """Print a table whole: in a pipe or a narrow window rich would cut its columns off."""
    needed = Console(width=10_000).measure(table).maximum
    Console(highlight=False, width=max(output.width, needed)).print(table)


# --- priors -------------------------------------------------------------------------------------


@app.command()
@guarded
def priors(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the priors that can be fitted."""
    from dataclasses import asdict

    from model_server.priors.registry import UNTRAINED, list_priors

    cards = list_priors()
    if as_json:
        print(json.dumps({"priors": [asdict(c) for c in cards], "untrained": list(UNTRAINED)}))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "organ", "method", "version", "sides", "shapes", "license"):
        table.add_column(column, no_wrap=True)
    for card in cards:
        shapes = str(len(card.splits.get("training", [])))
        sides = "both" if card.mirrors else ""
        table.add_row(
            *(card.name, card.organ, card.method, card.version, sides, shapes, card.licence)
        )
    print_table(table)
    output.print(f"Without training: {', '.join(UNTRAINED)}.")


# --- fit ----------------------------------------------------------------------------------------


@app.command()
@guarded
def fit(
    prior: Annotated[str, typer.Option(help="Name of a prior (see 'priors'), or its folder.")],
    annotations: Annotated[
        list[Path] | None,
        typer.Option(help="3D Slicer markups files (.mrk.json): closed curves, point lists."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Label volume to refine.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Volume whose geometry labelmaps take.")
    ] = None,
    output_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--output", help=".stl, .ply, .obj, .vtp, .nrrd, .seg.nrrd or .nii.gz; repeatable."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where the report goes (JSON).")] = None,
    side: Annotated[str, typer.Option(help="auto, left or right (paired organs).")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Fit a prior to outlines, points or a mask, and write the surface."""
    _choice(side, SIDES, "--side")
    _check_device(device)
    from model_server.io.outputs import check_outputs
    from model_server.report import plausibility

    paths = output_files or []
    check_outputs(paths, [report] if report else [])
    session = Session.opened(prior, annotations or [], mask, reference, device)
    with fit_progress(session.prior.card.name, quiet) as progress:
        result = session.fit(side, progress)
    session.write(result, paths, report)
    for warning in result.warnings:
        errors.print(f"Warning: {warning}", markup=False)
    if not quiet:
        for sentence in plausibility(result):
            errors.print(sentence, markup=False)
        errors.print(f"Wrote {', '.join(str(p) for p in paths)}.", markup=False)


def _check_device(device: str) -> None:
    if _choice(device, DEVICES, "--device") != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise ShapePriorError(
            "There is no CUDA device on this machine.", "Choose --device auto or cpu."
        )


@contextmanager
def fit_progress(prior: str, quiet: bool) -> Iterator[Progress | None]:
    """While a prior is fitted: what tells each of its surfaces on standard error."""
    if quiet:
        yield None
        return
    with errors.status(f"Fitting {prior} ..."):
        yield lambda result, seconds: errors.print(_progress_line(result, seconds), markup=False)


def _progress_line(result: Reconstruction, seconds: float) -> str:
    gaps = [r.mean_mm for r in result.residuals]
    mean = f"{sum(gaps) / len(gaps):6.2f} mm from the annotations" if gaps else ""
    return f"{result.stage:<14} {seconds:6.2f} s  {mean}"


# --- landmarks ----------------------------------------------------------------------------------


@app.command()
@guarded
def landmarks(
    prior: Annotated[str, typer.Option(help="Name of a prior (see 'priors'), or its folder.")],
    output_file: Annotated[Path, typer.Option("--output", help="CSV that is written.")],
    annotations: Annotated[
        list[Path] | None, typer.Option(help="Of the patient, as for 'fit'.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Label volume of the patient.")] = None,
    patient: Annotated[
        Path | None, typer.Option(help="Points in the patient (.mrk.json, .csv): to the template.")
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="Places on the template (.csv): to the patient.")
    ] = None,
    side: Annotated[str, typer.Option(help="auto, left or right (paired organs).")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Carry landmarks from a patient to the template, or back, with their errors in mm."""
    _choice(side, SIDES, "--side")
    _check_device(device)
    if (patient is None) == (template is None):
        raise ShapePriorError(
            "It is not clear which landmarks to carry over.", "Give either --patient or --template."
        )
    from model_server import landmarks as carried
    from model_server.io.outputs import check_writable, write_text

    check_writable(output_file)
    if patient is not None:
        points = carried.read_landmarks(patient)
    elif template is not None:
        points = carried.read_landmarks(template, carried.PLACE)
    session = Session.opened(prior, annotations or [], mask, None, device)
    carried.require_correspondences(session.prior)
    with fit_progress(session.prior.card.name, quiet) as progress:
        result = session.fit(side, progress)
    table = carried.to_template_table if patient is not None else carried.from_template_table
    write_text(output_file, table(session.prior, result, points))
    for warning in result.warnings:
        errors.print(f"Warning: {warning}", markup=False)


# --- fit-cohort ---------------------------------------------------------------------------------


@app.command()
@guarded
def fit_cohort(
    cases: Annotated[
        Path, typer.Argument(help="CSV: case, prior, annotations (;), mask, reference, side.")
    ],
    output_folder: Annotated[
        Path, typer.Option("--output", help="Folder for the results; made if missing.")
    ] = Path("cohort"),
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="stl (default), ply, obj, vtp, nrrd, seg.nrrd or nii.gz; repeatable.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Fit as Ray tasks: local, or a cluster's address.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    again: Annotated[bool, typer.Option("--again", help="Redo finished cases.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Fit every case of a table; started again, it fits what is new, changed or failed."""
    if ray is None:
        _check_device(device)
    else:  # the nodes of a cluster have their own
        _choice(device, DEVICES, "--device")
    from model_server.cohort import Settings, read_cases, run_cohort
    from model_server.io.outputs import FORMATS

    dotted = dict.fromkeys("." + name.lower().removeprefix(".") for name in formats or ["stl"])
    endings = tuple(_choice(name, FORMATS, "--format") for name in dotted)
    settings = Settings(output_folder, endings, device, again)
    try:
        outcomes = run_cohort(
            read_cases(cases), settings, workers, ray, None if quiet else _tell_outcome
        )
    except KeyboardInterrupt as error:
        errors.print("Interrupted: finished cases are kept; the same command goes on from there.")
        raise typer.Exit(EXIT_INTERRUPTED) from error
    print_table(_outcome_table(outcomes))
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    if failed:
        errors.print(f"{failed} of {len(outcomes)} cases failed.")
        raise typer.Exit(EXIT_SOME_FAILED)


def _tell_outcome(outcome: Outcome, done: int, total: int) -> None:
    took = "" if outcome.seconds is None else f"{outcome.seconds:.2f} s"
    line = f"{done}/{total}  {outcome.case}  {outcome.status}  {outcome.error or took}"
    errors.print(line, markup=False)


def _outcome_table(outcomes: Sequence[Outcome]) -> Table:
    from model_server.cohort import COLUMNS

    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        number = column.endswith(("_ml", "_cm2", "_mm", "seconds"))
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for outcome in outcomes:
        cells = (getattr(outcome, column) for column in COLUMNS)
        table.add_row(*(escape("" if cell is None else str(cell)) for cell in cells))
    return table


# --- train, evaluate ----------------------------------------------------------------------------


@app.command()
@guarded
def train(
    method: Annotated[str, typer.Argument(help="pca, dals, implicit-atlas or deepsdf.")] = "",
    organ: Annotated[str, typer.Option(help="Names the prior, e.g. liver.")] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of label volumes; every tenth validates.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Your own label volumes, five or more: checked, trained, measured."),
    ] = None,
    method_option: Annotated[str, typer.Option("--method", help="The same as METHOD.")] = "",
    label: Annotated[
        str, typer.Option(help="With --labels: values that are the organ, e.g. 1 or 1,2.")
    ] = "",
    output_folder: Annotated[
        Path, typer.Option("--output", help="Folder of priors; the prior gets one in it.")
    ] = Path("runs"),
    only: Annotated[str, typer.Option(help="Keep cases whose name contains this.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Hyperparameter as name=value; repeatable.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train a prior from label volumes; started again, it goes on from its checkpoint."""
    _check_device(device)
    method = _training_choices(method or method_option, organ, data, labels)
    values = _label_values(label, labels)
    options = dict(_parsed_option(text) for text in option or [])
    common: dict[str, Any] = {"device": device, "steps": steps, "options": options}
    with _resumable(), TrainingProgress(quiet) as progress:
        common |= {"progress": progress, "told": progress.tell}
        if labels is not None:
            from model_server.training.own import train_own

            card = train_own(method, organ, labels, output_folder, values=values, **common)
        else:
            from model_server.training.run import train as run_training

            assert data is not None
            card = run_training(method, organ, data, output_folder, only=only, **common)
    if labels is not None:
        print_table(_score_table(card))
        if any(score["seen_in_training"] for score in card.scores.values()):
            output.print("The prior was trained on these very cases: on new ones it does worse.")
    output.print(f"Trained {card.name} in {output_folder / card.name}.", markup=False)


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        errors.print("Interrupted: the same command goes on from the last checkpoint.")
        raise typer.Exit(EXIT_INTERRUPTED) from error


def _score_table(card: PriorCard) -> Table:
    """What a prior of one's own reaches from simulated annotations."""
    table = Table(box=None, pad_edge=False)
    for column in ("annotations", "cases", "quick look Dice", "Dice", "mean distance mm", "failed"):
        table.add_column(column, justify="left" if column == "annotations" else "right")
    for name, score in card.scores.items():
        figures = (score["quick_look_dice"], score["dice"], score["mean_distance_mm"])
        shown = ["-" if f is None else f"{f:.3f}" for f in figures]
        table.add_row(name, str(score["cases"]), *shown, str(score["failed"]))
    return table


def _label_values(text: str, labels: Path | None) -> tuple[int, ...]:
    """ "1,2" -> (1, 2)."""
    if not text:
        return ()
    if labels is None:
        raise ShapePriorError("--label goes with --labels only.", "Give --labels, or no --label.")
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise ShapePriorError(
            f"--label '{text}' is not a list of label values.", "Write e.g. --label 1 or 1,2."
        )
    return tuple(sorted({int(word) for word in words}))


def _training_choices(method: str, organ: str, data: Path | None, labels: Path | None) -> str:
    """The method, if what is needed to train was given."""
    if not method:
        raise ShapePriorError("No method was named.", "Give --method implicit-atlas, dals or pca.")
    if not organ:
        raise ShapePriorError("The organ has no name.", "Give --organ, e.g. --organ liver.")
    if (data is None) == (labels is None):
        raise ShapePriorError("Label volumes are needed.", "Give either --labels or --data.")
    if data is not None and not data.is_dir():
        raise ShapePriorError(f"There is no folder '{data}'.", "Check --data.", "no-data")
    return method


def _parsed_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ShapePriorError(f"--option '{text}' is not name=value.", "Write e.g. modes=40.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


class TrainingProgress:
    """A bar on standard error for each stage: share done, latest figures, time."""

    def __init__(self, quiet: bool) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._bar = Progress(*columns, console=errors, disable=quiet)
        self._stage = ""
        self._task: Any = None

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        self._bar.stop()

    def _finish(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=1.0)

    def __call__(self, stage: str, share: float, figures: dict[str, Any]) -> None:
        """Show where a training stands."""
        if stage != self._stage:
            self._finish()
            self._stage = stage
            self._task = self._bar.add_task(stage, total=1.0, figures="")
        shown = "  ".join(f"{k} {_short(v)}" for k, v in figures.items())
        self._bar.update(self._task, completed=share, figures=shown)

    def tell(self, sentence: str) -> None:
        """Print a sentence above the bars, also when quiet."""
        errors.print(sentence, markup=False)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@app.command()
@guarded
def evaluate(
    organ: Annotated[str, typer.Option(help="hippocampus, liver, kidney, ...")],
    data: Annotated[Path, typer.Option(help="Root of the label volumes, or the organ's folder.")],
    methods: Annotated[
        list[str] | None,
        typer.Option(help="The first is compared with the others, e.g. dals pca rbf poisson."),
    ] = None,
    protocol: Annotated[str, typer.Option(help="outlines, mixture, points-2500, ...")] = "outlines",
    split: Annotated[str, typer.Option(help="validation, training or all.")] = "validation",
    limit: Annotated[int | None, typer.Option(help="Only the first so many cases.")] = None,
    only: Annotated[str | None, typer.Option(help="Keep cases whose name contains this.")] = None,
    output_file: Annotated[Path | None, typer.Option("--output", help="JSON of results.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
    stages: Annotated[bool, typer.Option("--stages", help="Measure every stage.")] = False,
    repeats: Annotated[int, typer.Option(help="Annotations of each case.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Compare methods on label volumes through the same annotations."""
    _check_device(device)
    if output_file:
        from model_server.io.outputs import check_writable

        check_writable(output_file)
    from model_server.evaluation.harness import evaluate as run_evaluation

    def tell(case: str, method: str, done: int, total: int) -> None:
        if not quiet:
            errors.print(f"{done}/{total}  {case}  {method}", markup=False)

    result = run_evaluation(
        organ,
        data,
        methods or [],
        protocol,
        split,
        limit,
        output_file,
        device,
        threads,
        only=only,
        every_stage=stages,
        repeats=repeats,
        progress=tell,
    )
    for table in result.tables():
        print_table(table)


# --- learn-parts --------------------------------------------------------------------------------


@app.command()
@guarded
def learn_parts(
    prior: Annotated[Path, typer.Argument(help="Folder of a trained prior, dals or atlas.")],
    data: Annotated[Path, typer.Option(help="Folder of the label volumes it was trained on.")],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Learn an organ's parts from labels in which they have values; the prior keeps them."""
    _check_device(device)
    if not data.is_dir():
        raise ShapePriorError(f"There is no folder '{data}'.", "Check --data.", "no-data")
    from model_server.training.parts import add_parts

    with TrainingProgress(quiet) as progress:
        card = add_parts(prior, data, device, progress)
    names = ", ".join(card.hyperparameters["part_names"].values())
    output.print(f"{card.name} knows the parts {names}.", markup=False)


# --- explore ------------------------------------------------------------------------------------


@app.command()
@guarded
def explore(
    prior: Annotated[str, typer.Option(help="Name of a prior (see 'priors'), or its folder.")],
    output_folder: Annotated[
        Path, typer.Option("--output", help="Folder for meshes and picture; made if missing.")
    ] = Path("explore"),
    samples: Annotated[int, typer.Option(min=1, max=12, help="Random shapes.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the random shapes.")] = 0,
    first: Annotated[
        Path | None, typer.Option(help="Label volume to go from (to, where it is the only one) ...")
    ] = None,
    second: Annotated[Path | None, typer.Option(help="... and to.")] = None,
    templates: Annotated[
        bool, typer.Option("--templates", help="Only the learned templates.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
) -> None:
    """Write a prior's mean, main modes, templates, random and in-between shapes, and a picture."""
    _check_device(device)
    if first is None and second is not None:
        raise ShapePriorError("--second was given alone.", "Give --first, or both.")
    if templates and first is not None:
        raise ShapePriorError(
            "--templates shows no label volumes.", "Leave out --templates, or --first."
        )
    from model_server import explore as explorer
    from model_server.priors.registry import load_prior

    loaded = load_prior(prior, device)
    with errors.status(f"Exploring {loaded.card.name} ..."):
        if templates:
            found = explorer.explore_templates(loaded, output_folder)
        else:
            found = explorer.explore(loaded, output_folder, samples, first, second, seed)
    for sentence in found.sentences:
        output.print(sentence, markup=False)
    count = len(found.files) - 1
    output.print(f"Wrote {count} meshes and {found.files[-1]}.", markup=False)


# --- serve --------------------------------------------------------------------------------------


@app.command()
@guarded
def serve(
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 chooses a free one.")] = 0,
    remote: Annotated[
        bool, typer.Option("--remote", help="Allow an interface other machines can reach.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of a fit.")] = None,
    watch_parent: Annotated[
        bool, typer.Option("--watch-parent", help="End when standard input is closed.")
    ] = False,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="TLS key (PEM).")] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web origin whose pages may connect; repeatable.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Serve on a Ray cluster at this address, or 'local'.")
    ] = None,
    replicas: Annotated[int, typer.Option(help="Of the server, with --ray.")] = 1,
    gpus: Annotated[float, typer.Option(help="For each replica, with --ray.")] = 0.0,
    max_sessions: Annotated[int, typer.Option(help="Clients at once.")] = 32,
    idle_minutes: Annotated[float, typer.Option(help="A silent client is closed then.")] = 60.0,
) -> None:
    """Serve fits to 3D Slicer and other clients over WebSocket, on this machine by default.

    The token is read from SHAPE_PRIOR_TOKEN, or made up and printed.
    """
    _check_device(device)
    from model_server.service.server import ServeOptions
    from model_server.service.server import serve as run_server
    from model_server.service.wire import Limits

    if threads:
        from model_server.evaluation.harness import use_threads

        use_threads(threads)
    options = ServeOptions(
        host,
        port,
        remote,
        device,
        watch_parent,
        certificate,
        key,
        tuple(allow_origin or ()),
        Limits(sessions=max_sessions, idle_minutes=idle_minutes),
    )
    if ray is None:
        run_server(options)
        return
    from model_server.service.cluster import ClusterOptions, serve_on_ray

    serve_on_ray(options, ClusterOptions(ray, replicas, float(threads or 1), gpus))


# --- demo ---------------------------------------------------------------------------------------


@app.command()
@guarded
def demo(
    output_folder: Annotated[
        Path, typer.Option("--output", help="Folder for the results; made if missing.")
    ] = Path("demo-output"),
    prior: Annotated[str, typer.Option(help="Prior to fit.")] = "hippocampus-dals",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Fit the bundled example from its three outlines; write surface, labelmap and picture."""
    _check_device(device)
    from model_server.demo import run_demo

    run_demo(output_folder, prior, device, quiet)


if __name__ == "__main__":
    main()
