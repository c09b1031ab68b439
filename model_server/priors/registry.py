"""Which priors there are, and loading them by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from model_server.errors import ShapePriorError
from model_server.priors.card import ADDED_FILE, CARD_FILE, WEIGHTS_FILE, PriorCard, read_card
from model_server.priors.protocol import ShapePrior

# method -> module and class; the class offers ``load(folder, card, device, quick)`` and says by
# ``starts_quickly`` whether it is given the organ's PCA prior.
METHODS = {
    "pca": ("model_server.priors.pca", "PcaPrior"),
    "dals": ("model_server.priors.dals", "DalsPrior"),
    "atlas": ("model_server.priors.implicit_atlas", "ImplicitAtlasPrior"),
    "dissm": ("model_server.priors.dissm", "DissmPrior"),
    "reshapeit": ("model_server.priors.reshapeit", "ReshapeitPrior"),
    "deepsdf": ("model_server.priors.deepsdf", "DeepSdfPrior"),
    "smooth": ("model_server.priors.any_structure", "AnyStructurePrior"),
    "meshnet": ("model_server.imaging.prior", "MeshNetPrior"),
    "unet": ("model_server.imaging.unet", "UNetPrior"),
}
# Baselines that need no training: name -> module and class, constructed without arguments.
UNTRAINED = {
    "rbf": ("model_server.priors.rbf", "RbfBaseline"),
    "poisson": ("model_server.priors.poisson", "PoissonBaseline"),
    "dasm": ("model_server.priors.dasm", "DasmBaseline"),
}
BUNDLED_ZOO = Path(__file__).parent.parent / "zoo"
ZOO_VARIABLE = "SHAPE_PRIOR_ZOO"  # a folder of priors the user trained


def zoo_folders(own: Path | None = None) -> list[Path]:
    """Folders that are searched for priors, the user's own first.

    Args:
        own: folder of the user's priors; by default the environment says.
    """
    named = own or os.environ.get(ZOO_VARIABLE)
    return ([Path(named)] if named else []) + [BUNDLED_ZOO]


def prior_folders(own: Path | None = None) -> dict[str, Path]:
    """Folder of every prior in the zoo, by name; ``own`` as for ``zoo_folders``."""
    found: dict[str, Path] = {}
    for zoo in zoo_folders(own):
        if zoo.is_dir():
            for card in sorted(zoo.glob(f"*/{CARD_FILE}")):
                found.setdefault(card.parent.name, card.parent)
    return found


@dataclass(frozen=True)
class Zoo:
    """What there is.

    Attributes:
        cards: of all priors that can be used, sorted by name.
        broken: why others cannot, by the names of their folders.
    """

    cards: tuple[PriorCard, ...]
    broken: dict[str, ShapePriorError]


def read_zoo() -> Zoo:
    """All priors; one with a broken card is told of, and is in nobody's way."""
    cards, broken = [], {}
    for name, folder in sorted(prior_folders().items()):
        try:
            cards.append(_checked_card(folder))
        except ShapePriorError as error:
            broken[name] = error
    return Zoo(tuple(cards), broken)


def list_priors() -> list[PriorCard]:
    """The cards of all priors that can be used, sorted by name."""
    return list(read_zoo().cards)


def _checked_card(folder: Path) -> PriorCard:
    """A card and what it says for its method.

    Raises:
        ShapePriorError: (bad-prior) it is missing or damaged.
    """
    from model_server.priors.schema import check_card

    card = read_card(folder)
    check_card(card)
    return card


def prior_card(name: str | Path) -> PriorCard:
    """The card of a prior, without its weights.

    Args:
        name: "hippocampus-dals", "rbf", or a folder that holds a ``prior.json``.

    Raises:
        ShapePriorError: no such prior, or its card is damaged.
    """
    if str(name) in UNTRAINED:
        card: PriorCard = _part_of(UNTRAINED[str(name)]).card
        return card
    return _checked_card(_folder_of(name))


def load_prior(name: str | Path, device: str = "auto") -> ShapePrior:
    """A prior by its name, or from a folder that holds a ``prior.json``.

    Args:
        name: "hippocampus-dals", "rbf", or a folder.
        device: "auto", "cpu" or "cuda".

    Raises:
        ShapePriorError: no such prior, or its files are damaged.
    """
    if str(name) in UNTRAINED:
        untrained: ShapePrior = _part_of(UNTRAINED[str(name)])()
        return untrained
    folder = _folder_of(name)
    card = _checked_card(folder)
    if card.method not in METHODS:
        raise ShapePriorError(
            f"The prior '{card.name}' uses the unknown method '{card.method}'.",
            "Update the extension.",
            "bad-prior",
        )
    kind = _part_of(METHODS[card.method])
    quick = _quick_look(folder, card.organ) if kind.starts_quickly else None
    try:
        prior: ShapePrior = kind.load(folder, card, device, quick)
    except ShapePriorError:
        raise
    except Exception as error:  # what no schema foresaw: a file that another program wrote
        raise ShapePriorError(
            f"The files of the prior '{card.name}' do not belong together "
            f"({type(error).__name__}).",
            "Install it again or train it anew.",
            "bad-prior",
        ) from error
    return prior


def _quick_look(folder: Path, organ: str) -> ShapePrior:
    """The PCA prior of an organ: that beside a prior's folder, else the zoo's."""
    beside = folder.parent / f"{organ}-pca"
    return load_prior(beside if beside.is_dir() else f"{organ}-pca", "cpu")


def _part_of(place: tuple[str, str]) -> Any:
    """The class of a module; loading it may take a while."""
    module, kind = place
    return getattr(import_module(module), kind)


def files_of(name: str | Path) -> tuple[Path, ...]:
    """The files that a prior is read from; none where there is no such prior, or it needs none."""
    folder = prior_folders().get(str(name), Path(name))
    return tuple(
        f for name in (CARD_FILE, WEIGHTS_FILE, ADDED_FILE) if (f := folder / name).is_file()
    )


def _folder_of(name: str | Path) -> Path:
    folder = prior_folders().get(str(name), Path(name))
    if not (folder / CARD_FILE).is_file():
        known = ", ".join([*prior_folders(), *UNTRAINED])
        raise ShapePriorError(
            f"There is no prior called '{name}'.", f"Choose one of: {known}.", "unknown-prior"
        )
    return folder
