"""Which reader reads the organ of a prior, and what an image says for its fits.

Networks are loaded late: to list what there is needs no torch.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from model_server.errors import ShapePriorError
from model_server.observations import Observations, Volume
from model_server.priors.card import OWN_READER, PriorCard
from model_server.priors.protocol import ShapePrior
from model_server.priors.registry import list_priors, load_prior

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from model_server.imaging.look import Look
    from model_server.imaging.pose_reader import PoseReader
    from model_server.imaging.reader import ImageReader, Reader
    from model_server.observations import Array

METHOD = "meshnet"  # of priors that read the images of all others of their organ


def needs_image(card: PriorCard) -> bool:
    """Whether a prior fits nothing without an image."""
    return card.method == METHOD


def is_reader(card: PriorCard) -> bool:
    """Whether a prior reads images with what is in its own files."""
    return needs_image(card) or bool(card.hyperparameters.get(OWN_READER))


def require_steps(card: PriorCard, unless: str = "leave out --trajectory") -> None:
    """Check that a prior finds its organ step by step.

    Args:
        card: of the prior.
        unless: what else can be done, in words.

    Raises:
        ShapePriorError: (no-steps) it sees the organ at once, or reads no images itself.
    """
    if not card.hyperparameters.get(OWN_READER):
        raise ShapePriorError(
            f"'{card.name}' does not search an image step by step.",
            f"Choose a prior of the method dissm that has a reader, or {unless}.",
            "no-steps",
        )


def modality_of(card: PriorCard) -> str:
    """Of the images that a reader knows, e.g. "T1-weighted MR"."""
    told = card.hyperparameters.get(OWN_READER) or card.hyperparameters
    return str(told.get("modality", "image"))


def reader_cards(cards: Iterable[PriorCard] | None = None) -> dict[str, PriorCard]:
    """The card of each organ's reader, by the organ; of several that named after it.

    Args:
        cards: of the zoo; by default they are read.
    """
    found: dict[str, PriorCard] = {}
    known = list_priors() if cards is None else cards
    for card in sorted(known, key=lambda c: c.name != f"{c.organ}-{METHOD}"):
        if needs_image(card):
            found.setdefault(card.organ, card)
    return found


def reader_card(card: PriorCard, readers: dict[str, PriorCard] | None = None) -> PriorCard | None:
    """The card of who reads the images of a prior; None where nobody does.

    Args:
        card: of the prior; a reader reads with itself.
        readers: by organ; by default the zoo's.
    """
    if is_reader(card):
        return card
    return (reader_cards() if readers is None else readers).get(card.organ)


class Readers:
    """Readers loaded once and kept, for all threads.

    Args:
        device: "auto", "cpu" or "cuda".
    """

    def __init__(self, device: str = "auto") -> None:
        self._device = device
        self._loaded: dict[str, ImageReader] = {}
        self._own: dict[str, PoseReader] = {}
        self._lock = threading.Lock()

    def of(self, prior: ShapePrior) -> Reader | None:
        """Who reads the organ of a prior; None where nobody does.

        Raises:
            ShapePriorError: (bad-prior) the reader's files are damaged.
        """
        from model_server.imaging.prior import MeshNetPrior

        if isinstance(prior, MeshNetPrior):
            return prior.reader
        if is_reader(prior.card):
            return self._own_of(prior)
        organ = prior.card.organ
        with self._lock:
            if organ not in self._loaded:
                card = reader_card(prior.card)
                if card is None:
                    return None
                loaded = load_prior(card.name, self._device)
                assert isinstance(loaded, MeshNetPrior)
                self._loaded[organ] = loaded.reader
            return self._loaded[organ]

    def _own_of(self, prior: ShapePrior) -> PoseReader:
        """The reader in a prior's own files."""
        from model_server.imaging.pose_reader import PoseReader

        name = prior.card.name
        with self._lock:
            if name not in self._own or self._own[name].prior is not prior:
                self._own[name] = PoseReader.of(prior)
            return self._own[name]


class Looks:
    """What readers have seen in the one image that is used at present.

    Args:
        readers: shared.
    """

    def __init__(self, readers: Readers) -> None:
        self.readers = readers
        self._looks: dict[str, Look] = {}

    def of(self, prior: ShapePrior, image: Volume) -> Look | None:
        """The look of a prior's reader; None where nobody reads its organ.

        Args:
            prior: that is fitted.
            image: any orientation, spacing and type; of another one what was seen is forgotten.

        Raises:
            ShapePriorError: (bad-prior) the reader's files are damaged.
        """
        from model_server.imaging.look import Look

        reader = self.readers.of(prior)
        if reader is None:
            return None
        found = self._looks.get(reader.card.name)
        if found is None or found.image is not image:
            self._looks = {n: look for n, look in self._looks.items() if look.image is image}
            found = self._looks[reader.card.name] = Look(reader, image)
        return found

    def forget(self) -> None:
        """Let go of the image."""
        self._looks = {}


def observed(
    prior: ShapePrior,
    look: Look | None,
    image: str,
    observations: Observations,
    quick: bool = False,
) -> Observations:
    """Annotations with what an image says; without it, and the reason, where it is not used.

    Args:
        prior: that is fitted.
        look: of its reader; None where nobody reads its organ.
        image: its name.
        observations: RAS mm; without any the organ is looked for.
        quick: no pass of a network, unless the prior cannot do without.

    Raises:
        ShapePriorError: nothing was annotated and the image shows no organ that is known; or the
            prior needs an image and this one is not used.
    """
    if look is None:
        if observations.empty:
            raise no_reader(prior.card)
        why = f"The image '{image}' is left out: there is no image reader of the organ "
        return replace(
            observations, left_out=(*observations.left_out, f"{why}'{prior.card.organ}'.")
        )
    if observations.start is not None:
        require_steps(prior.card, "give no start")
    needed = needs_image(prior.card)
    quick = quick and not (needed and look.seen is None)
    found = look.observed(observations, quick, meshes=needed)
    if found.reading is None and needed:
        raise ShapePriorError(
            found.left_out[-1],
            f"Choose {look.modality} of the {prior.card.organ}, or a prior that needs no image.",
            "unknown-image",
        )
    if found.reading is None or look.seen is None:
        return found
    # In the words of one who was not told what was drawn.
    from model_server.fitting.residuals import disagreements

    told = disagreements(observations, look.seen.reading)
    return replace(found, left_out=(*found.left_out, *told))


def found_in(
    prior: ShapePrior,
    look: Look | None,
    progress: Callable[[float], None] | None = None,
    start: Array | None = None,
) -> Observations:
    """What an image says of an organ that nobody annotated.

    Args:
        prior: that is fitted.
        look: of its reader; None where nobody reads its organ.
        progress: told the share of the search that is done.
        start: (4, 4) canonical frame -> RAS mm, from which one that finds its shape step by step
            goes on; None searches all of the image.

    Raises:
        ShapePriorError: (no-reader); (no-steps) it knows no start; (not-found) the organ is not
            seen; (unknown-image) it is none of those that the reader knows.
    """
    if look is None:
        raise no_reader(prior.card)
    if start is None:
        look.find(progress)
    else:
        require_steps(prior.card, "give no start")
    return look.observed(Observations(start=start))


def no_reader(card: PriorCard) -> ShapePriorError:
    """The error where nobody reads an organ, and whose are read."""
    known = ", ".join(sorted(reader_cards()))
    return ShapePriorError(
        f"No image reader knows the organ '{card.organ}'.",
        f"Draw its outline on two or three slices; images are read of: {known}."
        if known
        else "Draw its outline on two or three slices.",
        "no-reader",
    )
