"""Parts of an organ on its template, learned from label volumes in which they have values.

Every labeled voxel votes at the place of the template it corresponds to; what a node of the
template hears most is its part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.cases.splits import Case, split_cases
from model_server.errors import ShapePriorError
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import surface_from_label
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations, PointSet, Volume
from model_server.pose import Pose
from model_server.priors.card import PriorCard, read_card, read_weights, save_prior
from model_server.priors.dals import TEMPLATE_LEVEL
from model_server.priors.implicit_atlas import atlas_nodes
from model_server.priors.protocol import FitSettings, ShapePrior
from model_server.reconstruction import Reconstruction
from model_server.training.progress import Progress

if TYPE_CHECKING:
    from model_server.priors.carried_field import CarriedField
    from model_server.training.dals import TrainedDals
    from model_server.training.implicit_atlas import TrainedAtlas

Array = NDArray[np.float64]
Place = Callable[[int, Array], tuple[int, Array]]
# What the values of these data mean. A tumor is no part: it may be anywhere.
NAMES: dict[str, dict[int, str]] = {"hippocampus": {1: "anterior", 2: "posterior"}, "kidney": {}}
NAMES_KEY = "part_names"  # among the hyperparameters of a card
WEIGHTS_KEY = "parts"
ENOUGH_CASES = 60  # that vote; their neighbors would say the same
FIT_POINTS = 500  # of a label's surface: a fit to them is as good as to all, and quick
SMOOTHING = 0.7  # of the votes, in distances of nodes
NEIGHBORS = 27  # nodes that are smoothed over
QUICKLY = FitSettings(uncertainty=False, remesh=False)


class PartsPrior(ShapePrior, Protocol):
    """A prior that keeps parts on its template."""

    parts: NDArray[np.uint8] | None

    def part_nodes(self) -> Array:
        """(N, 3) places of the template at which parts are kept."""
        ...

    def part_shape(self) -> tuple[int, ...]:
        """Of the array of parts: templates, then N in all."""
        ...

    def to_template(self, reconstruction: Reconstruction, points: Array) -> Array:
        """(N, 3) RAS mm -> (N, 3) on the template."""
        ...


def part_values(organ: str, labels: Sequence[Volume]) -> list[int]:
    """The values from 1 to 255 that are parts of an organ; fewer than two: it has none."""
    seen = {int(v) for label in labels for v in np.unique(label.array) if 0 < v < 256}
    known = NAMES.get(organ)
    return sorted(seen if known is None else seen & set(known))


def part_names(organ: str, values: Sequence[int]) -> dict[int, str]:
    """Names of the parts of an organ by their values."""
    known = NAMES.get(organ, {})
    return {value: known.get(value, f"part {value}") for value in values}


def voted_parts(
    nodes: Array, templates: int, labels: Sequence[Volume], values: Sequence[int], place: Place
) -> NDArray[np.uint8]:
    """(templates, N) the part that most voxels near each node of each template have.

    A template that no label chose takes the votes of all.

    Args:
        nodes: (N, 3) of the template.
        templates: how many.
        labels: with their parts.
        values: of the parts.
        place: number of a label and (M, 3) RAS mm points in it -> its template, and (M, 3) where
            the points lie on it.
    """
    tree = cKDTree(nodes)
    votes = np.zeros((templates, len(nodes), len(values)))
    for index, label in enumerate(labels):
        array = np.asarray(label.array)
        kji = np.argwhere(np.isin(array, values))
        template, places = place(index, label.to_ras(kji[:, ::-1].astype(np.float64)))
        part = np.searchsorted(values, array[tuple(kji.T)])
        np.add.at(votes[template], (tree.query(places)[1], part), 1.0)
    gaps, near = tree.query(nodes, k=min(NEIGHBORS, len(nodes)))
    weights = np.exp(-0.5 * (gaps / (SMOOTHING * np.median(gaps[:, 1]))) ** 2)
    pooled = votes.sum(axis=0)
    return np.stack(
        [_winners(v if v.any() else pooled, nodes, near, weights, values) for v in votes]
    )


def _winners(
    votes: Array, nodes: Array, near: NDArray[np.int64], weights: Array, values: Sequence[int]
) -> NDArray[np.uint8]:
    """(N,) after smoothing; nodes that heard nothing take the nearest one that did."""
    smooth = np.einsum("nk,nkp->np", weights, votes[near])
    heard = np.flatnonzero(smooth.sum(axis=1) > 1e-3)
    nearest = heard[cKDTree(nodes[heard]).query(nodes)[1]]
    return np.array(values, dtype=np.uint8)[smooth.argmax(axis=1)][nearest]


# --- while a prior is trained -------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What a training knows of its shapes.

    Attributes:
        labels: of the shapes.
        poses: canonical -> RAS mm, of each.
        organ: whose they are.
    """

    labels: Sequence[Volume]
    poses: Sequence[Pose]
    organ: str

    def parts(self, nodes: Array, templates: int, place: Place) -> NDArray[np.uint8] | None:
        """(templates, N) parts; ``place`` as for ``voted_parts``, of canonical points.

        Returns:
            None where the organ has no parts.
        """
        values = part_values(self.organ, self.labels)
        if len(values) < 2:
            return None
        return voted_parts(
            *(nodes, templates, self.labels, values),
            lambda index, points: place(index, self.poses[index].invert(points)),
        )

    def named(self, card: PriorCard) -> PriorCard:
        """The card with the names of the parts."""
        return named(card, part_names(self.organ, part_values(self.organ, self.labels)))


def atlas_parts(trained: TrainedAtlas, shapes: Trained) -> NDArray[np.uint8] | None:
    """(m, X, Y, Z) parts on the nodes of every template's box, or None.

    Args:
        trained: networks and latents.
        shapes: the real ones, in the order of the latents.
    """
    decoder = trained.decoder

    def place(index: int, points: Array) -> tuple[int, Array]:
        h = torch.from_numpy(trained.latents[index])[None]
        with torch.no_grad():
            at = torch.as_tensor(points, dtype=torch.float32)[None]
            _, moved = decoder(h, at)
            return int(decoder.choice(h).argmax()), (at + moved)[0].double().numpy()

    found = shapes.parts(atlas_nodes(decoder), decoder.sizes.templates, place)
    return None if found is None else found.reshape(-1, *decoder.sizes.nodes())


def dals_parts(trained: TrainedDals, shapes: Trained) -> NDArray[np.uint8] | None:
    """(1, V) parts at the vertices of the template sphere, or None; arguments as above."""
    sphere = icosphere(TEMPLATE_LEVEL).points

    def place(index: int, points: Array) -> tuple[int, Array]:
        with torch.no_grad():
            vertices = trained.decoder.vertices(
                torch.from_numpy(trained.latents[index])[None],
                torch.as_tensor(sphere, dtype=torch.float32),
            )
        return 0, sphere[cKDTree(vertices.double().numpy()).query(points)[1]]

    return shapes.parts(sphere, 1, place)


def carried_parts(
    field: CarriedField, latents: NDArray[np.float32], shapes: Trained
) -> NDArray[np.uint8] | None:
    """(1, V) parts at the vertices of a field's template, or None.

    Args:
        field: that carries it.
        latents: (N, d) of the shapes, the real ones first.
        shapes: as above.
    """
    chosen = _evenly(len(shapes.labels), ENOUGH_CASES)
    some = Trained(
        [shapes.labels[i] for i in chosen], [shapes.poses[i] for i in chosen], shapes.organ
    )

    def place(index: int, points: Array) -> tuple[int, Array]:
        shape = field.carried(field.whiten(latents[chosen[index]])).surface
        return 0, field.template.points[cKDTree(shape.points).query(points)[1]]

    return some.parts(field.template.points, 1, place)


# --- for priors that are trained already --------------------------------------------------------


def learn_parts(
    prior: PartsPrior, cases: Sequence[Case], progress: Progress | None = None
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Parts of a trained prior: it is fitted to the labels, whose voxels vote through the fits.

    Args:
        prior: with correspondences.
        cases: to learn from; ``ENOUGH_CASES`` of them, evenly chosen, vote.
        progress: told the share done.

    Returns:
        The array of parts as the prior keeps it, and their names by value.

    Raises:
        ShapePriorError: the labels have no parts.
    """
    chosen = [cases[i] for i in _evenly(len(cases), ENOUGH_CASES)]
    labels = [case.label() for case in chosen]
    values = part_values(prior.card.organ, labels)
    if len(values) < 2:
        raise ShapePriorError(
            f"The labels of {prior.card.organ} have no parts: all voxels of the organ have one "
            "value.",
            "Give labels in which every part has a value of its own.",
            "no-parts",
        )

    def place(index: int, points: Array) -> tuple[int, Array]:
        found = _fit(prior, chosen[index], labels[index])
        if progress:
            progress("fitting labels", (index + 1) / len(chosen), {})
        return found.template, prior.to_template(found, points)

    shape = prior.part_shape()
    table = voted_parts(prior.part_nodes(), shape[0], labels, values, place)
    return table.reshape(shape), part_names(prior.card.organ, values)


def _evenly(count: int, most: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most)).round()})


def _fit(prior: ShapePrior, case: Case, label: Volume) -> Reconstruction:
    points = sample_surface(surface_from_label(label), FIT_POINTS, np.random.default_rng(0))
    observations = Observations(boundary=(PointSet(points, case.name),))
    settings = replace(QUICKLY, side=case.side or "auto")
    return list(prior.fit(observations, settings=settings))[-1]


def add_parts(
    folder: Path, data: Path, device: str = "cpu", progress: Progress | None = None
) -> PriorCard:
    """Learn the parts of the prior in a folder from its training cases, and keep them there.

    Args:
        folder: of a trained prior.
        data: folder of the label volumes it was trained on; only its training cases are read.
        device: "auto", "cpu" or "cuda".
        progress: see ``learn_parts``.

    Raises:
        ShapePriorError: a prior without correspondences, no training case in ``data``, or labels
            without parts.
    """
    from model_server.priors.registry import load_prior

    card = read_card(folder)
    prior = load_prior(folder, device)
    if not hasattr(prior, "part_nodes"):
        raise ShapePriorError(
            f"'{card.name}' has no correspondences to keep parts on.",
            "Choose a prior of the method dals, atlas, dissm or reshapeit.",
        )
    split = split_cases(data)
    known = set(card.splits.get("training", ()))
    cases = [case for case in split.training + split.validation if case.name in known]
    if not cases:
        raise ShapePriorError(
            f"'{data}' holds no case that '{card.name}' was trained on.",
            "Give the folder of its training labels.",
            "no-data",
        )
    parts, names = learn_parts(prior, sorted(cases, key=lambda c: c.name), progress)  # type: ignore[arg-type]
    weights = read_weights(folder, card) | {WEIGHTS_KEY: parts}
    return save_prior(folder, named(card, names), weights)


def named(card: PriorCard, names: Mapping[int, str]) -> PriorCard:
    """The card with the names of its parts."""
    kept = {str(value): name for value, name in names.items()}
    return replace(card, hyperparameters=card.hyperparameters | {NAMES_KEY: kept})
