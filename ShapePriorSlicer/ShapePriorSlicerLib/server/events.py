"""What happened to what was asked of the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_server.reconstruction import Reconstruction, Template


@dataclass(frozen=True)
class Starting:
    """The server is being started; ``text`` says how far it is."""

    text: str


@dataclass(frozen=True)
class Connected:
    """The server has welcomed us."""

    session: int
    device: str
    limits: Mapping[str, Any]


@dataclass(frozen=True)
class Lost:
    """The connection broke; it is being made again, and the newest request sent again."""

    reason: str


@dataclass(frozen=True)
class Sending:
    """The image that a request needs is on its way; ``share`` of it, 0 to 1, is there."""

    share: float


@dataclass(frozen=True)
class Progressed:
    """A better surface of a request that goes on."""

    request: int
    reconstruction: Reconstruction
    seconds: float


@dataclass(frozen=True)
class Finished:
    """The last surface of a request; ``changed`` names the annotations new since the one before."""

    request: int
    reconstruction: Reconstruction
    seconds: float
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Cancelled:
    """A request ended without a result: by "cancel" or because it was "superseded"."""

    request: int
    by: str


@dataclass(frozen=True)
class Failed:
    """A request, or with None the connection itself, ended in an error."""

    request: int | None
    code: str
    message: str
    remedy: str


@dataclass(frozen=True)
class TemplateCame:
    """One of a prior's templates."""

    prior: str
    template: Template


Event = (
    Starting
    | Connected
    | Lost
    | Sending
    | Progressed
    | Finished
    | Cancelled
    | Failed
    | TemplateCame
)
