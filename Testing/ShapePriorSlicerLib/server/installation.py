"""Packages that pip knows of, and a user who is asked about them."""

from __future__ import annotations

from importlib import metadata

from ShapePriorSlicerLib.server import dependencies
from ShapePriorSlicerLib.server.dependencies import CANCEL, INSTALL


class Packages:
    """The packages pip knows of."""

    def __init__(self, monkeypatch, **versions):
        self.versions = {name.replace("_", "-"): v for name, v in versions.items()}
        monkeypatch.setattr(dependencies.importlib.metadata, "version", self.version)

    def version(self, name):
        if name not in self.versions:
            raise metadata.PackageNotFoundError(name)
        return self.versions[name]


class User:
    """Answers, and remembers what was asked and told."""

    def __init__(self, answer=INSTALL, cancelAt=None):
        self.answer, self.cancelAt, self.questions, self.steps = answer, cancelAt, [], []

    def ask(self, question):
        self.questions.append(question)
        assert self.answer in dict(question.choices)
        assert question.choices[-1][0] == CANCEL
        return self.answer

    def progress(self, step):
        self.steps.append(step)
        return len(self.steps) != self.cancelAt


def installed(slicer, user, **options):
    return dependencies.install(user.ask, user.progress, slicer, **options)
