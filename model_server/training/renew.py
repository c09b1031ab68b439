"""Where organs lie, learned anew for priors that are trained already; all else stays as it is.

    python -m model_server.training.renew --data ../shared/data [--priors PRIOR ...]

By default of all bundled priors, each from the labels that it was trained on, in a folder of its
organ's name. The same labels give the same weights, byte for byte.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from model_server.cases.canonical import canonical_shapes, load_surfaces
from model_server.cases.organs import labels_of
from model_server.cases.splits import Case, split_cases
from model_server.errors import ShapePriorError
from model_server.priors.card import CARD_FILE, PriorCard, read_card, read_weights, save_prior
from model_server.priors.registry import BUNDLED_ZOO
from model_server.training.pose_prior import learn_pose_prior
from model_server.training.prepared import Prepared, workers

SAME = 1e-5  # relative difference of radii of the same shapes, kept in 32 bits

Trained = tuple[str, bool, tuple[str, ...]]  # organ, whether it mirrors, training cases


def renew(folders: Sequence[Path], data: Path) -> list[PriorCard]:
    """Learn the pose priors of trained priors anew, and keep them there.

    Args:
        folders: of the priors; those trained on the same cases share one pose prior.
        data: holds a folder of label volumes for each organ.

    Raises:
        ShapePriorError: training cases are missing, or are not those that a prior was trained on.
    """
    found = sorted(folders, key=lambda folder: _trained(read_card(folder)))
    renewed = []
    for trained, same in groupby(found, key=lambda folder: _trained(read_card(folder))):
        prepared = _prepare(trained, data)
        arrays = learn_pose_prior(*prepared.unmirrored()).arrays()
        for folder in same:
            card = read_card(folder)
            weights = read_weights(folder, card)
            _check_radius(card, float(weights["rms_radius"][0]), prepared.canonical.rms_radius)
            kept = {n: a for n, a in weights.items() if not n.startswith("pose.")}
            renewed.append(save_prior(folder, card, kept | arrays))
    return renewed


def _trained(card: PriorCard) -> Trained:
    return card.organ, card.mirrors, tuple(card.splits["training"])


def _prepare(trained: Trained, data: Path) -> Prepared:
    organ, mirrors, names = trained
    labels = labels_of(organ)
    data = data / labels.folder
    if not data.is_dir():
        raise ShapePriorError(f"There is no folder '{data}'.", "Check --data.", "no-data")
    split = split_cases(data, values=labels.values)
    known: dict[str, Case] = {case.name: case for case in split.training + split.validation}
    missing = sorted(set(names) - set(known))
    if missing:
        raise ShapePriorError(
            f"'{data}' lacks {len(missing)} of the labels that {organ} priors were trained on, "
            f"'{missing[0]}' first.",
            "Give the folder of their training labels.",
            "no-data",
        )
    cases = [known[name] for name in names]
    surfaces = load_surfaces(cases, workers(len(cases)))
    return Prepared(tuple(cases), (), canonical_shapes(cases, surfaces, mirrors))


def _check_radius(card: PriorCard, kept: float, found: float) -> None:
    """A prior's shapes stand in a frame of their own: other labels make another one."""
    if not np.isclose(kept, found, rtol=SAME):
        raise ShapePriorError(
            f"'{card.name}' was trained on other labels of the same names.",
            "Give the folder of its training labels.",
            "other-labels",
        )


def main() -> None:
    """Renew the priors that are named, by default all bundled ones."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    arguments.add_argument("--data", type=Path, required=True, help="holds a folder for each organ")
    arguments.add_argument("--priors", type=Path, nargs="+", help="folders of priors")
    chosen = arguments.parse_args()
    bundled = sorted(file.parent for file in BUNDLED_ZOO.glob(f"*/{CARD_FILE}"))
    bundled = [folder for folder in bundled if "training" in read_card(folder).splits]
    for card in renew(chosen.priors or bundled, chosen.data):
        print(f"{card.name}: {card.checksum}")


if __name__ == "__main__":
    main()
