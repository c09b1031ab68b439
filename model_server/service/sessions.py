"""One client's requests: the newest wins, each ends in exactly one answer, the next starts warm."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.fitting.interrupt import apart
from model_server.imaging.readers import Looks, Readers, found_in, observed
from model_server.imaging.watching import watched
from model_server.observations import Observations
from model_server.priors.card import part_names
from model_server.priors.context import with_context
from model_server.priors.protocol import FitSettings, ShapePrior, checked_strength
from model_server.reconstruction import Reconstruction, Template
from model_server.service.compute import ComputeThread, Job
from model_server.service.images import ImageBox, SentImage
from model_server.service.outbox import Frame, Outbox
from model_server.service.wire import (
    Limits,
    bad_message,
    error_map,
    read_observations,
    read_start,
    request_id,
)
from model_server.service.wire import field as message_field
from model_server.service.wire_surfaces import template_map

log = logging.getLogger(__name__)
SIDES = ("auto", "left", "right")
SWITCHES = ("local", "remesh", "uncertainty")
IMAGE = "image"  # in names of what changed


class Priors:
    """Priors loaded once and kept; used by compute threads only.

    Args:
        device: "auto", "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._loaded: dict[str, ShapePrior] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> ShapePrior:
        """A prior of the zoo by name; folders are not taken from clients.

        Raises:
            ShapePriorError: no such prior, or its files are damaged.
        """
        from model_server.priors.registry import UNTRAINED, load_prior, prior_folders

        with self._lock:
            if name not in self._loaded:
                known = [*prior_folders(), *UNTRAINED]
                if name not in known:
                    raise ShapePriorError(
                        "The server has no such prior.",
                        f"Choose one of: {', '.join(known)}.",
                        "unknown-prior",
                    )
                self._loaded[name] = load_prior(name, self._device)
            return self._loaded[name]


def content_hashes(observations: Observations, image: SentImage | None = None) -> dict[str, str]:
    """A hash of each annotation's points, by kind, place and name, and that of the image."""
    groups = {
        "outline": [(o.name, np.concatenate(o.loops)) for o in observations.outlines],
        **{
            kind: [(s.name, s.points) for s in getattr(observations, kind)]
            for kind in ("boundary", "inside", "outside")
        },
    }
    hashes = {
        f"{kind} {index}: {name}": _digest(points)
        for kind, found in groups.items()
        for index, (name, points) in enumerate(found)
    }
    mask = observations.label_map
    if mask is not None:
        hashes[f"label_map 0: {mask.name}"] = _digest(mask.array, mask.ijk_to_ras)
    if observations.mask_noise is not None:
        hashes["repair 0: mask"] = repr(observations.mask_noise.source)
    if observations.start is not None:
        hashes["start 0: pose"] = _digest(observations.start)
    if image is not None:
        hashes[f"{IMAGE} 0: {image.volume.name}"] = image.hash
    return hashes


def _digest(*arrays: NDArray[Any]) -> str:
    """Of what arrays hold, their type and shape: the same bytes may be another volume."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def template_of(prior: ShapePrior, number: int = 0) -> Template:
    """One of a prior's templates.

    Args:
        prior: loaded.
        number: of the template, from 0.

    Raises:
        ShapePriorError: (no-template) a prior that has none, as baselines, or no such number.
    """
    if not hasattr(prior, "template_coordinates"):
        raise ShapePriorError(
            f"'{prior.card.name}' has no template.", "Choose a learned prior.", "no-template"
        )
    learned: Any = prior
    count = int(getattr(prior, "template_count", 1))
    if not 0 <= number < count:
        raise ShapePriorError(
            f"'{prior.card.name}' has no template {number}.",
            f"Ask for one from 0 to {count - 1}.",
            "no-template",
        )
    which = (number,) if count > 1 else ()
    coordinates = learned.template_coordinates(*which)
    parts = None
    if getattr(prior, "parts", None) is not None:
        parts = learned.part_of(number, coordinates)
    return Template(
        learned.template(*which), coordinates, number, count, parts, part_names(prior.card)
    )


@dataclass(frozen=True)
class Request:
    """A fit that was asked for.

    Attributes:
        image: evidence beside the observations, or None.
        search: whether the organ is looked for in all of it.
    """

    number: int
    prior: str
    observations: Observations
    settings: FitSettings
    refine: bool = False
    hashes: dict[str, str] = field(default_factory=dict)
    image: SentImage | None = None
    search: bool = False
    began: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Answer:
    """A finished request and its surface: where the next one starts."""

    request: Request
    reconstruction: Reconstruction


def read_settings(message: object, strength: float = 1.0) -> FitSettings:
    """Settings of a fit from a client's map.

    Args:
        message: the map.
        strength: of the prior, where the client names none.

    Raises:
        ShapePriorError: a value out of its range.
    """
    if not isinstance(message, dict):
        raise bad_message("The field 'settings' is no map.")
    strength = message.get("prior_strength", strength)
    side = message.get("side", "auto")
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise bad_message("The strength of the prior is no number.")
    if not isinstance(side, str) or side not in SIDES:
        raise ShapePriorError("There is no such side.", f"Choose one of: {', '.join(SIDES)}.")
    switches = {}
    for name in SWITCHES:
        switches[name] = message.get(name, True)
        if not isinstance(switches[name], bool):
            raise bad_message(f"The setting '{name}' is neither true nor false.")
    return FitSettings(prior_strength=checked_strength(strength), side=side, **switches)


class Session:
    """What one connection asked for; lives in the event loop's thread.

    Args:
        number: of the session, for logs.
        compute: does the fitting.
        priors: shared.
        limits: of the server.
        loop: where answers are delivered.
        readers: of images, shared.
    """

    def __init__(
        self,
        number: int,
        compute: ComputeThread,
        priors: Priors,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        readers: Readers | None = None,
    ) -> None:
        self.number, self.compute, self.priors, self.limits = number, compute, priors, limits
        self.loop = loop
        self.outbox = Outbox(limits.frames_per_second)
        self.running: tuple[Request, Job] | None = None
        self.last: Answer | None = None
        self.newest = 0
        self.images = ImageBox(limits)
        self.looks = Looks(readers or Readers())

    # --- requests -----------------------------------------------------------------------------

    async def handle(self, message: Mapping[str, Any]) -> None:
        """Act on one message; what is wrong with it becomes an error message."""
        number: int | None = None
        try:
            number = request_id(message) if "id" in message else None
            kind = message_field(message, "type", str)
            handlers: dict[str, Callable[[Mapping[str, Any], int], Awaitable[None]]] = {
                "fit": self._fit,
                "find": self._find,
                "volume": self._volume,
                "slices": self._slices,
                "refine": self._refine,
                "cancel": self._cancel,
                "template": self._template,
                "ping": self._ping,
            }
            if kind not in handlers or number is None:
                raise bad_message("There is no message of this type, or it has no 'id'.")
            await handlers[kind](message, number)
        except ShapePriorError as error:
            log.info("session %d: refused (%s)", self.number, error.code)
            self.outbox.put(error_map(error, number))
        except Exception as error:
            # No message: it may name the patient's files.
            log.error("session %d: %s", self.number, type(error).__name__)
            self.outbox.put(error_map(bad_message("The message cannot be used."), number))

    async def _ping(self, message: Mapping[str, Any], number: int) -> None:
        self.outbox.put({"type": "pong", "id": number, "jobs": self.compute.waiting()})

    async def _template(self, message: Mapping[str, Any], number: int) -> None:
        """Answer with a prior's template; the running fit goes on."""
        self._check_new(number)
        name = str(message_field(message, "prior", str))
        which = int(message_field(message, "template", int)) if "template" in message else 0
        # The prior may have to be read from disk first.
        found = await asyncio.to_thread(lambda: template_of(self.priors.get(name), which))
        self.outbox.put({"type": "template", "id": number, "prior": name, **template_map(found)})

    async def _cancel(self, message: Mapping[str, Any], number: int) -> None:
        # A request that has ended meanwhile has had its answer: nothing is left to say.
        if self.running is not None and self.running[0].number == number:
            self._end_running("cancel")

    async def _fit(self, message: Mapping[str, Any], number: int) -> None:
        self._check_new(number)
        # Checking outlines takes time that other sessions' answers should not wait for.
        self._start(await asyncio.to_thread(self._request, message, number))

    async def _find(self, message: Mapping[str, Any], number: int) -> None:
        """A fit of what the image alone tells."""
        self._check_new(number)
        self._start(self._request(message, number))

    def _request(self, message: Mapping[str, Any], number: int) -> Request:
        search = message["type"] == "find"
        observations, image = Observations(), self.images.named(message.get("image"))
        if not search:
            told = message_field(message, "observations", dict)
            observations = read_observations(told, self.limits)
        elif image is None:
            raise bad_message("The field 'image' is missing.")
        observations = replace(observations, start=read_start(message))
        return Request(
            number,
            str(message_field(message, "prior", str)),
            observations,
            read_settings(message.get("settings", {}), self.limits.prior_strength),
            hashes=content_hashes(observations, image),
            image=image,
            search=search,
        )

    async def _volume(self, message: Mapping[str, Any], number: int) -> None:
        """The header of an image; what runs goes on with the one before."""
        before = self.images.image
        self.images.announce(message)
        if self.images.image is not before:
            self.looks.forget()
        self.outbox.put(self.images.state(number))

    async def _slices(self, message: Mapping[str, Any], number: int) -> None:
        self.images.put(message)
        self.outbox.put(self.images.state(number))

    async def _refine(self, message: Mapping[str, Any], number: int) -> None:
        self._check_new(number)
        if self.last is None:
            raise ShapePriorError(
                "There is no surface to refine.", "Reconstruct first.", "nothing-to-refine"
            )
        asked = self.last.request
        self._start(
            replace(asked, number=number, refine=True, search=False, began=time.monotonic())
        )

    def _check_new(self, number: int) -> None:
        if number <= self.newest:
            raise bad_message("Numbers of requests have to grow.")
        self.newest = number

    def _end_running(self, by: str) -> None:
        """Tell that the running request was cancelled; its late surfaces are dropped."""
        if self.running is None:
            return
        request, job = self.running
        self.running = None
        job.stopped.set()
        self.outbox.forget(request.number)
        self.outbox.put({"type": "cancelled", "id": request.number, "by": by})

    def _start(self, request: Request) -> None:
        self._end_running("superseded")
        changed = self._changed(request)

        def deliver(found: Reconstruction, final: bool) -> None:
            self.loop.call_soon_threadsafe(self._surface, request, found, final, changed)

        def failed(error: ShapePriorError) -> None:
            self.loop.call_soon_threadsafe(self._failed, request, error)

        def begin() -> Iterator[Reconstruction]:
            # What an agent tries in the image is shown while it goes on.
            with watched(lambda found: deliver(found, False)):
                return self._surfaces(request)

        job = Job(self.number, begin, deliver, failed)
        self.running = (request, job)
        self.compute.submit(job)

    def close(self) -> None:
        """Stop what runs; nothing more is sent."""
        if self.running is not None:
            self.running[1].stopped.set()
            self.running = None

    # --- the fit, in the compute thread -------------------------------------------------------

    def _changed(self, request: Request) -> tuple[str, ...]:
        """Annotations that are new, gone or different since the last answer."""
        before = self.last.request.hashes if self.last else {}
        names = {**before, **request.hashes}
        return tuple(n for n in names if before.get(n) != request.hashes.get(n))

    def _surfaces(self, request: Request) -> Iterator[Reconstruction]:
        last = self.last
        same_prior = last is not None and last.request.prior == request.prior
        if last is not None and same_prior and not request.refine:
            unchanged = request.hashes == last.request.hashes
            unchanged &= request.search == last.request.search
            if unchanged and request.settings == last.request.settings:
                return iter([last.reconstruction])
        # In the same image there are many organs: what was annotated has to be shared.
        shared = last is not None and any(
            last.request.hashes.get(name) == hashed
            for name, hashed in request.hashes.items()
            if not name.startswith(IMAGE)
        )
        start = last.reconstruction if last is not None and same_prior and shared else None
        if request.observations.start is not None:
            start = None  # it was moved away from there
        # Reading its files may take a second: others need not wait.
        prior = apart(lambda: self.priors.get(request.prior))
        told = self._told(prior, request)
        path = () if told.reading is None else told.reading.path
        found = prior.fit(told, start, request.settings)
        return (replace(with_context(prior, surface), path=path) for surface in found)

    def _told(self, prior: ShapePrior, request: Request) -> Observations:
        """What a fit is given: annotations, and what the image says."""
        image = request.image
        if image is None:
            return request.observations
        volume = image.volume
        look = apart(lambda: self.looks.of(prior, volume))
        if request.search:
            return found_in(prior, look, start=request.observations.start)
        quick = not request.settings.local and not request.settings.remesh
        return observed(prior, look, volume.name, request.observations, quick)

    # --- answers, in the event loop's thread --------------------------------------------------

    def _is_running(self, request: Request) -> bool:
        return self.running is not None and self.running[0] is request

    def _surface(
        self, request: Request, found: Reconstruction, final: bool, changed: tuple[str, ...]
    ) -> None:
        if not self._is_running(request):
            return
        elapsed = time.monotonic() - request.began
        kind = "result" if final else "progress"
        frame = Frame(kind, request.number, found, elapsed, changed)
        if not final:
            self.outbox.show(frame)
            return
        self.running = None
        self.last = Answer(request, found)
        self.outbox.put(frame)
        log.info("session %d: %s fitted in %.2f s", self.number, request.prior, elapsed)

    def _failed(self, request: Request, error: ShapePriorError) -> None:
        if not self._is_running(request):
            return
        self.running = None
        self.outbox.forget(request.number)
        self.outbox.put(error_map(error, request.number))
        log.info("session %d: failed (%s)", self.number, error.code)
