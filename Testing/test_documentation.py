"""Documentation: commands run as printed, links lead somewhere, each method has one word."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from model_server.commands.main import app, split_several

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "Resources").glob("*/*.md")),
]
DEVELOPERS = ("how-it-works", "developing", "wire", "measured", "speed", "extensions-index")
MAKEFILE = (REPOSITORY / "Makefile").read_text()
# Commands of the reader's system; what they do is not ours to test.
FOREIGN = ("source", "echo", "export", "openssl", "git", "cd")
# They need other people's data, a long time, or never end: their options are checked alone.
LONG = ("train", "learn-parts", "serve", "evaluate", "explore", "demo")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Command:
    """A line of a page: where it stands, and its words."""

    page: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.stem}: {' '.join(self.words)}"

    @property
    def program(self) -> tuple[str, ...]:
        """Its words without the variables before them."""
        first = next(i for i, word in enumerate(self.words) if not re.match(r"[A-Z_]+=", word))
        return self.words[first:]


def commands_of(page: Path) -> Iterator[Command]:
    for language, block in FENCE.findall(page.read_text()):
        if language != "sh":
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = tuple(shlex.split(line, comments=True))
            if words:
                yield Command(page, words)


COMMANDS = [command for page in PAGES for command in commands_of(page)]
OURS = [c for c in COMMANDS if c.program and c.program[0] == "shape-prior"]


def parsed(words: tuple[str, ...] | list[str]) -> click.Context:
    """The command line as far as its options; an unknown one raises."""
    group: Any = typer.main.get_command(app)
    name, *rest = split_several(list(words))
    return group.commands[name].make_context(name, rest, resilient_parsing=False)


def test_every_page_with_commands_was_read():
    assert len(OURS) > 12
    assert {c.page.stem for c in OURS} >= {"README", "train", "explore", "cohorts", "remote"}


@pytest.mark.parametrize("command", OURS, ids=str)
def test_options_are_those_of_the_command(command):
    parsed(command.program[1:])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in OURS], ids=str)
def test_other_commands_are_there(command):
    program, *rest = command.program
    if program == "make":
        assert re.search(rf"^{rest[0]}:", MAKEFILE, re.MULTILINE), rest[0]
    elif program == "python":
        assert_python(command, rest)
    elif program == "pip":
        assert_pip(rest)
    else:
        assert program in FOREIGN, program


def assert_python(command: Command, rest: list[str]) -> None:
    """The script, or the module, is in the checkout and has the options."""
    if rest[0] == "-m":
        (source,) = REPOSITORY.glob(f"**/{rest[1].replace('.', '/')}/__main__.py")
        rest = rest[1:]
    else:
        source = REPOSITORY / rest[0]
    assert source.is_file(), command
    text = source.read_text()
    if "benchmarks" in source.parts:
        text += (source.parent / "common.py").read_text()
    for word in rest[1:]:
        if word.startswith("--"):
            assert f'"{word}"' in text, f"{source.name} has no {word}"


def assert_pip(rest: list[str]) -> None:
    """The package is on no index: only what is there can be installed."""
    given = [word for word in rest if "shape-prior" in word.lower() or word.startswith(".")]
    assert all(word.startswith((".", "git+https://")) for word in given), given
    for option, value in zip(rest, rest[1:], strict=False):
        if option == "-r":
            assert (REPOSITORY / value).is_file(), value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_sentences_have_their_options(page):
    group: Any = typer.main.get_command(app)
    for span in SPAN.findall(page.read_text()):
        words = span.split()
        if words[:1] == ["shape-prior"] and len(words) > 1 and words[1] in group.commands:
            known = {o for p in group.commands[words[1]].params for o in p.opts}
            assert {w for w in words if w.startswith("--") and w != "--help"} <= known, span
        if words[:1] == ["make"] and len(words) > 1 and words[1].islower():
            assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE), span
        if words[:1] == ["python"] and len(words) > 1 and words[1].endswith(".py"):
            assert_python(Command(page, tuple(words)), words[1:])


def test_what_can_run_here_runs(shape_prior, tmp_path, monkeypatch):
    """Every command of every page, in the order of the pages, on the bundled case."""
    shutil.copytree(REPOSITORY / "Resources" / "example", tmp_path / "Resources" / "example")
    monkeypatch.chdir(tmp_path)
    # Another prior of the organ does as well, and sooner, unless correspondences are asked for.
    table = tmp_path / "Resources" / "example" / "cases.csv"
    table.write_text(table.read_text().replace("-dals", "-pca"))
    ran = []
    for command in OURS:
        words = [w for word in command.program[1:] for w in sorted(glob(word)) or [word]]
        context = parsed(words)
        if words[0] in LONG or not all(file.exists() for file in read_by(context)):
            continue
        if words[0] == "fit":
            words = [re.sub("-(dals|atlas)$", "-pca", word) for word in words]
        words = [w for w in words if w not in ("--workers", "2")]
        done = shape_prior(*words)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        ran.append(words[0])
    assert set(ran) == {"priors", "fit", "fit-cohort", "landmarks"}
    for file in ("hippocampus.stl", "hippocampus.seg.nrrd", "report.json", "a.vtp", "a.csv"):
        assert (tmp_path / file).stat().st_size
    given = (tmp_path / "Resources" / "example" / "landmarks.csv").read_text().splitlines()
    back = (tmp_path / "landmarks.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in back] == [line.split(",")[0] for line in given]


def read_by(context: click.Context) -> Iterator[Path]:
    """The files that a command would read."""
    for name, value in context.params.items():
        if "output" in name or name == "report":
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Path):
                yield one


# --- links and words ----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text())
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        assert found.is_relative_to(REPOSITORY), f"{target} is outside of the repository"
        if anchor:
            assert anchor in anchors(found), f"{found.name} has no heading #{anchor}"


def test_every_page_is_in_the_index():
    index = REPOSITORY / "Resources" / "Documentation" / "README.md"
    linked = {(index.parent / target).name for target in LINK.findall(index.read_text())}
    pages = {page.name for page in index.parent.glob("*.md")} - {"README.md"}
    assert pages <= linked


def test_users_come_before_developers():
    text = (REPOSITORY / "Resources" / "Documentation" / "README.md").read_text()
    users, developers = text.split("## For developers")
    linked = {Path(target).stem for target in LINK.findall(users)}
    assert not linked & set(DEVELOPERS)
    assert {Path(target).stem for target in LINK.findall(developers)} == set(DEVELOPERS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_method_has_one_word(page):
    """`dals`, `atlas`, `pca`: as in the names of priors, on the command line, in their files."""
    from model_server.training.methods import TRAINERS

    text = page.read_text()
    assert "implicit-atlas" not in text
    for method in re.findall(r"--method ([\w-]+)", text):
        assert method in TRAINERS, method


def test_the_folder_of_a_prior_ends_in_its_method():
    from model_server.priors.registry import list_priors

    trained = [card for card in list_priors() if card.checksum]
    assert trained
    for card in trained:
        assert card.name == f"{card.organ}-{card.method}"
