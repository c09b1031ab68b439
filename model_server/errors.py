"""Errors that a user can mend: what is wrong, and how to put it right."""

from __future__ import annotations

import re

# What steers a terminal or turns the direction of a line, and what no file can hold.
STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
BREAKS = re.compile("[\t\r\n]+")


def shown(text: object) -> str:
    """A text of files or users in one line that can be shown anywhere: a character that would steer
    a terminal becomes a replacement character."""
    return STEERING.sub("\N{REPLACEMENT CHARACTER}", BREAKS.sub(" ", str(text)))


def shown_lines(text: object) -> str:
    """The same of several lines."""
    return "\n".join(shown(line) for line in str(text).split("\n"))


class ShapePriorError(ValueError):
    """Something the caller gave cannot be used.

    Args:
        what: one sentence saying what is wrong, naming the input.
        remedy: one sentence saying how to mend it.
        code: short stable word for programs (wire errors, tests).
    """

    def __init__(self, what: str, remedy: str, code: str = "bad-input") -> None:
        self.what, self.remedy = shown_lines(what), shown_lines(remedy)
        super().__init__(f"{self.what} {self.remedy}")
        self.code = code


def counted(count: int, one: str, more: str = "") -> str:
    """ "1 point", "2 points": a number of things, as it is said.

    Args:
        count: how many.
        one: the word for one of them.
        more: the word for several; by default with an s.
    """
    return f"{count} {one if count == 1 else more or one + 's'}"
