"""The command line: ``python -m model_server`` and ``shape-prior``.

Results go to files and to standard output; progress, warnings and errors go to standard error.
What the user can mend ends in one sentence and exit code 2, a cohort with failed cases in 1,
Ctrl-C in 130 and SIGTERM in 143. torch and VTK are imported inside the commands that need them, so
that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from model_server.commands.demo import demo
from model_server.commands.evaluate import evaluate
from model_server.commands.explore import explore
from model_server.commands.find import find
from model_server.commands.fit import fit
from model_server.commands.fit_cohort import fit_cohort
from model_server.commands.landmarks import landmarks
from model_server.commands.learn_parts import learn_parts
from model_server.commands.priors import priors
from model_server.commands.repair import repair, repair_source
from model_server.commands.serve import serve
from model_server.commands.terminal import Version, guarded
from model_server.commands.train import train
from model_server.interrupts import end_at_once, end_in_order
from model_server.threads import begin_with_few, wait_asleep

# In the order of the help.
COMMANDS: tuple[Callable[..., Any], ...] = (
    priors,
    fit,
    repair,
    repair_source,
    find,
    landmarks,
    fit_cohort,
    train,
    evaluate,
    learn_parts,
    explore,
    serve,
    demo,
)
TRAININGS = ("train", "learn-parts")  # what torch takes by itself is best for them
# Options that take several values after one flag; click knows only one value for each flag.
SEVERAL = ("--annotations", "--methods")

app = typer.Typer(
    name="shape-prior",
    help="Organ surfaces from sparse annotations, by learned shape priors.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def shape_prior(version: Version = False) -> None:
    """Organ surfaces from sparse annotations, by learned shape priors."""


for command in COMMANDS:
    app.command()(guarded(command))


def main() -> None:
    """Entry point."""
    words = split_several(sys.argv[1:])
    # Before anything that computes is imported.
    if words and words[0] in TRAININGS:
        wait_asleep()
    else:
        begin_with_few()
    end_in_order()
    try:
        app(words)
    finally:
        end_at_once()


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
