"""What the commands share: consoles, exit codes, choices and tables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from model_server import __version__
from model_server.errors import ShapePriorError, shown, shown_lines
from model_server.interrupts import Terminated

if TYPE_CHECKING:
    from model_server.jobs.session import Progress
    from model_server.reconstruction import Reconstruction

EXIT_SOME_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143
DEVICES = ("auto", "cpu", "cuda")

P = ParamSpec("P")
R = TypeVar("R")


class PlainConsole(Console):
    """Prints texts as they are: names of files, curves and priors are neither read as markup, nor
    do they steer the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """See ``Console``."""
        super().print(*(shown_lines(o) if isinstance(o, str) else o for o in objects), **options)


errors = PlainConsole(stderr=True, soft_wrap=True)
output = PlainConsole()


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose mendable errors end in one sentence, and Ctrl-C and SIGTERM in theirs."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ShapePriorError as error:
            errors.print(f"Error: {error}", markup=False)
            raise typer.Exit(EXIT_BAD_INPUT) from error
        except KeyboardInterrupt as error:
            raise interrupted(
                error, "every file is whole, as it was before or as it is new"
            ) from error

    return run


def interrupted(error: KeyboardInterrupt, state: str) -> typer.Exit:
    """Say how things stand after Ctrl-C or SIGTERM; returns what ends the command.

    Args:
        error: which of the two it was.
        state: what was kept, and how to go on.
    """
    errors.print(f"Interrupted: {state}.")
    return typer.Exit(EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED)


# --- choices ------------------------------------------------------------------------------------


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"shape-prior {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="Tell the version.", callback=_tell_version, is_eager=True),
]
Label = Annotated[
    str, typer.Option(help="Of the mask's labels those that are the organ, e.g. 1 or 1,2.")
]
SegmentName = Annotated[
    str, typer.Option(help="Of the mask's segments the organ: its name or number.")
]
Roi = Annotated[
    str, typer.Option(help="Of the structures in a DICOM RTSTRUCT the organ: its name or number.")
]


def choice(value: str, allowed: Sequence[str], option: str) -> str:
    """The value of an option.

    Raises:
        ShapePriorError: it is none of those allowed.
    """
    if value not in allowed:
        raise ShapePriorError(
            f"{option} is '{value}'.", f"Choose one of: {', '.join(allowed)}.", "unknown-choice"
        )
    return value


def label_numbers(text: str) -> tuple[int, ...]:
    """ "1,2" -> (1, 2).

    Raises:
        ShapePriorError: no such list.
    """
    words = [word.strip() for word in text.split(",")] if text else []
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ShapePriorError(
            f"--label '{text}' is not a list of label values.",
            "Write e.g. --label 1 or 1,2; a name goes with --segment.",
        )
    return tuple(sorted({int(word) for word in words}))


def check_device(device: str) -> None:
    """Refuse a device that there is not.

    Raises:
        ShapePriorError: no such device, or not on this machine.
    """
    if choice(device, DEVICES, "--device") != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise ShapePriorError(
            "There is no CUDA device on this machine.", "Choose --device auto or cpu."
        )


# --- tables and progress ------------------------------------------------------------------------


def cells(*values: object) -> list[str]:
    """A row of a table: empty for None."""
    return ["" if value is None else shown(value) for value in values]


def print_table(table: Table) -> None:
    """Print a table whole: in a pipe or a narrow window rich would cut its columns off."""
    needed = PlainConsole(width=10_000).measure(table).maximum
    PlainConsole(width=max(output.width, needed)).print(table)


@contextmanager
def fit_progress(prior: str, quiet: bool) -> Iterator[Progress | None]:
    """While a prior is fitted: what tells each of its surfaces on standard error."""
    if quiet:
        yield None
        return
    with errors.status(Text(shown(f"Fitting {prior} ..."))):
        yield lambda result, seconds: errors.print(_progress_line(result, seconds), markup=False)


@contextmanager
def search_progress(image: str, quiet: bool) -> Iterator[Callable[[float], None] | None]:
    """While an image is read: what is told the share of a search that is done."""
    if quiet:
        yield None
        return
    line = f"Reading {shown(image)} ..."
    with errors.status(Text(line)) as status:
        yield lambda share: status.update(Text(f"{line} {share:.0%}"))


def _progress_line(result: Reconstruction, seconds: float) -> str:
    from model_server.reconstruction import IMAGE  # late: it needs numpy

    gaps = [r.mean_mm for r in result.residuals if r.kind != IMAGE]
    mean = f"{sum(gaps) / len(gaps):6.2f} mm from the annotations" if gaps else ""
    return f"{result.stage:<14} {seconds:6.2f} s  {mean}"
