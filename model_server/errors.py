"""Errors that a user can mend: what is wrong, and how to put it right."""

from __future__ import annotations


class ShapePriorError(ValueError):
    """Something the caller gave cannot be used.

    Args:
        what: one sentence saying what is wrong, naming the input.
        remedy: one sentence saying how to mend it.
        code: short stable word for programs (wire errors, tests).
    """

    def __init__(self, what: str, remedy: str, code: str = "bad-input") -> None:
        super().__init__(f"{what} {remedy}")
        self.what = what
        self.remedy = remedy
        self.code = code


def counted(count: int, one: str, more: str = "") -> str:
    """ "1 point", "2 points": a number of things, as it is said.

    Args:
        count: how many.
        one: the word for one of them.
        more: the word for several; by default with an s.
    """
    return f"{count} {one if count == 1 else more or one + 's'}"
