"""A look into a prior's shape space: its mean, its main modes, its templates, random shapes, and
the way from one shape to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.labels import voxelize
from model_server.io.surfaces import surface_file
from model_server.io.volumes import read_volume
from model_server.io.writing import Write, make_folder, of_bytes, refuse_inputs, write_together
from model_server.jobs.shape_modes import shape_modes
from model_server.observations import Observations
from model_server.pictures.shape_space import Row, Tile, draw
from model_server.pose import Pose
from model_server.priors.protocol import FitSettings, ShapePrior
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
MODES = 4
DEVIATIONS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # at which a mode is shown, in standard deviations
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way from one shape to another
SAMPLES = 5
PICTURE = "explore.png"
DICE_GRID = 128  # voxels along each edge of the templates' bounding box, as the paper has them
DECODED_AT = {"pca": 2, "atlas": 3}  # resolution that looks smooth; others have their own


@dataclass(frozen=True)
class Exploration:
    """What was written and found.

    Attributes:
        files: meshes and a picture.
        sentences: for the user.
    """

    files: tuple[Path, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class _Shape:
    """A point of the shape space: latents, and the size in mm per canonical unit."""

    latents: Array
    scale: float
    name: str


@dataclass
class _Space:
    """One prior's shapes, in mm about the origin."""

    prior: ShapePrior
    mean: Array = field(init=False)
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        self.mean = self.need("latent_mean")
        low, high = self.prior.card.hyperparameters.get("radius_mm", (1.0, 1.0))
        self.scale = float(np.sqrt(low * high)) / float(self.need("rms_radius"))

    def need(self, name: str) -> Any:
        """An attribute that priors with a latent space have.

        Raises:
            ShapePriorError: this one has not.
        """
        found = getattr(self.prior, name, None)
        if found is None:
            raise ShapePriorError(
                f"'{self.prior.card.name}' has no latent space to explore.",
                "Choose a prior of the method dals, atlas, dissm, reshapeit or pca.",
            )
        return found

    def placed(self, canonical: Surface, scale: float | None = None) -> Surface:
        """A canonical surface in mm."""
        pose = Pose(np.zeros(3), scale or self.scale)
        return Surface(pose.apply(canonical.points), canonical.triangles)

    def surface(self, latents: Array, scale: float | None = None) -> Surface:
        """The shape of latents, in mm."""
        resolution = DECODED_AT.get(self.prior.card.method)
        decode = self.need("decode")
        found = decode(latents) if resolution is None else decode(latents, resolution)
        return self.placed(found, scale)

    def reconstructed(self, path: Path) -> _Shape:
        """A label volume as latents and size.

        Raises:
            ShapePriorError: it cannot be read, or not be fitted.
        """
        label = read_volume(path)
        if self.prior.card.method == "atlas" and not self.prior.card.mirrors:
            from model_server.priors.atlas_encoding import encode
            from model_server.priors.implicit_atlas import ImplicitAtlasPrior

            assert isinstance(self.prior, ImplicitAtlasPrior)
            found = encode(self.prior, label)
            return _Shape(found.latents, found.state.pose.scale, path.name)
        settings = FitSettings(uncertainty=False, remesh=False)
        last = list(self.prior.fit(Observations(label_map=label), settings=settings))[-1]
        return _Shape(last.latents, last.pose.scale, path.name)


def explore(
    prior: ShapePrior,
    folder: Path,
    samples: int = SAMPLES,
    first: Path | None = None,
    second: Path | None = None,
    seed: int = 0,
) -> Exploration:
    """Write meshes (PLY, LPS mm) and ``explore.png``.

    Shapes have the size in the middle of those of the training shapes; label volumes, and what
    lies between them, have theirs.

    Args:
        prior: with a latent space: ImplicitAtlas, DALS or PCA.
        folder: made where it is missing.
        samples: random shapes.
        first: label volume whose shape is the start of the way, or, without ``second``, its end,
            which then begins at the mean; without both it leads between the first random shapes.
        second: label volume at its end.
        seed: of the random shapes.

    Raises:
        ShapePriorError: a prior without a latent space, a volume that cannot be used, or a file
            that cannot be written, or that is one of these volumes.
    """
    given_files = [path for path in (first, second) if path is not None]
    # Links may lead anywhere, whatever they are called.
    refuse_inputs((*folder.glob("*.ply"), folder / PICTURE), given_files)
    space = _Space(prior)
    drawn = [
        _Shape(z, space.scale, f"sample {k + 1}")
        for k, z in enumerate(space.need("sample")(samples, seed))
    ]
    given = [space.reconstructed(path) for path in given_files]
    make_folder(folder)  # before the work of decoding: perhaps it cannot be made
    mean = _Shape(space.mean, space.scale, "mean")
    ends = given if len(given) == 2 else [mean, *given] if given else [mean, *drawn][-2:]
    if not given and len(drawn) > 2:
        ends = drawn[:2]
    templates = _template_rows(space)
    rows = [*_mode_rows(space), _sample_row(space, drawn), _way_row(space, ends), *templates]
    sentences = [_nearest(prior, shape) for shape in given]
    sentences += _template_sentences(templates)
    return _written(prior, folder, rows, PICTURE, sentences)


def explore_templates(prior: ShapePrior, folder: Path) -> Exploration:
    """Write the templates of a prior as meshes (PLY, LPS mm) and ``templates.png``.

    Raises:
        ShapePriorError: a prior without a latent space.
    """
    rows = _template_rows(_Space(prior))
    if not rows:
        raise ShapePriorError(
            f"'{prior.card.name}' has no learned templates.",
            "Choose a prior of the method atlas.",
        )
    return _written(prior, folder, rows, "templates.png", _template_sentences(rows))


def _written(
    prior: ShapePrior, folder: Path, rows: Sequence[Row], picture: str, sentences: Sequence[str]
) -> Exploration:
    make_folder(folder)
    # The mean stands in every mode's row, the ends of a way perhaps among the samples.
    names: dict[int, tuple[str, Surface]] = {}
    for row in rows:
        for index, tile in enumerate(row.tiles):
            name = "mean" if tile.title.startswith("mean") else f"{row.key}-{index + 1}"
            names.setdefault(id(tile.surface), (name, tile.surface))
    jobs: dict[Path, Write] = {
        folder / f"{name}.ply": of_bytes(surface_file(s, ".ply")) for name, s in names.values()
    }
    title = f"{prior.card.name}: what it learned from {_count(prior)} training shapes"
    write_together({**jobs, folder / picture: partial(draw, title, rows)})
    return Exploration((*jobs, folder / picture), tuple(s for s in sentences if s))


def _count(prior: ShapePrior) -> int:
    return len(prior.card.splits.get("training", []))


# --- rows ---------------------------------------------------------------------------------------


def _tile(title: str, surface: Surface, reference: Surface | None = None) -> Tile:
    gaps = None if reference is None else signed_gaps(surface, reference)
    milliliters = surface.volume() / 1000
    shown = f"{milliliters:,.0f}" if milliliters >= 100 else f"{milliliters:.3g}"
    return Tile(f"{title}\n{shown} ml", surface, gaps)


def signed_gaps(surface: Surface, reference: Surface) -> Array:
    """(V,) distance in mm of each vertex to a closed reference surface, negative inside it."""
    triangle, weights, gap = closest_on_mesh(reference, surface.points)
    corners = reference.corners()[triangle]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    from_it = surface.points - (weights[..., None] * corners).sum(axis=1)
    return np.asarray(np.where((from_it * across).sum(axis=1) < 0, -gap, gap))


def _mode_rows(space: _Space) -> list[Row]:
    """Each main mode of the shapes at several standard deviations, the mean in the middle."""
    mean = space.surface(space.mean)
    modes = shape_modes(space.prior, MODES)
    rows = []
    for k, (direction, share) in enumerate(zip(modes.directions, modes.shares, strict=True)):
        steps = {d: space.surface(space.mean + d * direction) for d in DEVIATIONS if d}
        tiles = [
            _tile(f"{d:+g} SD", steps[d], mean) if d else _tile("mean", mean, mean)
            for d in DEVIATIONS
        ]
        label = f"mode {k + 1}\n{share:.0%} of\nvariance"
        rows.append(Row(f"mode{k + 1}", label, tuple(tiles), "to the mean"))
    return rows


def _sample_row(space: _Space, drawn: Sequence[_Shape]) -> Row:
    tiles = [_tile(shape.name, space.surface(shape.latents)) for shape in drawn]
    return Row("sample", "random\nshapes", tuple(tiles))


def _way_row(space: _Space, ends: Sequence[_Shape]) -> Row:
    """Shapes from the first end to the second."""
    first, second = ends
    blend = space.need("interpolate")
    tiles: list[Tile] = []
    for share in SHARES:
        scale = float(first.scale ** (1.0 - share) * second.scale**share)
        surface = space.surface(blend(first.latents, second.latents, share), scale)
        name = {0.0: first.name, 1.0: second.name}.get(share, f"{share:.0%}")
        tiles.append(_tile(_short(name), surface, tiles[0].surface if tiles else surface))
    return Row("between", "from one\nto another", tuple(tiles), f"to {_short(first.name)}")


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 3] + "..."


def _template_rows(space: _Space) -> list[Row]:
    """The learned templates, where the prior has them; each beside how often it is chosen."""
    decoder = getattr(space.prior, "decoder", None)
    latents = getattr(decoder, "template_latents", None)
    if latents is None:
        return []
    template = space.need("template")
    surfaces = [space.placed(template(k)) for k in range(len(latents))]
    chosen = _chosen(space, len(surfaces))
    tiles = []
    for k, surface in enumerate(surfaces):
        tile = _tile(f"template {k + 1}", surface, surfaces[0])
        times = f"{chosen[k]} shape" if chosen[k] == 1 else f"{chosen[k]} shapes"
        tiles.append(Tile(f"{tile.title}, {times}", surface, tile.gaps))
    return [Row("template", "templates", tuple(tiles), "to template 1")]


def _chosen(space: _Space, count: int) -> list[int]:
    """How many training shapes choose each template."""
    import torch

    decoder = space.need("decoder")
    known = torch.as_tensor(space.need("training_latents"), dtype=torch.float32)
    device = next(decoder.parameters()).device
    with torch.no_grad():
        picked = decoder.choice(known.to(device)).argmax(dim=-1).cpu().numpy()
    return [int(n) for n in np.bincount(picked, minlength=count)]


# --- sentences ----------------------------------------------------------------------------------


def _nearest(prior: ShapePrior, shape: _Shape) -> str:
    """Which training shapes a reconstruction resembles, where the prior keeps their latents."""
    find = getattr(prior, "nearest_training", None)
    if find is None:
        return ""
    named = ", ".join(f"{name} ({gap:.2f})" for name, gap in find(shape.latents))
    return (
        f"Training shapes nearest to {shape.name}: {named}; 1 is the distance of a typical pair of "
        "training shapes."
    )


def _template_sentences(rows: Sequence[Row]) -> list[str]:
    found = []
    for row in rows:
        if len(row.tiles) > 1:
            overlap = pairwise_dice([tile.surface for tile in row.tiles])
            found.append(
                f"Average pairwise Dice of the {len(row.tiles)} templates: {100 * overlap:.2f} %."
            )
    return found


def pairwise_dice(surfaces: Sequence[Surface]) -> float:
    """Mean Dice of all pairs of closed surfaces, counted on a grid around them all."""
    low = np.min([s.points.min(axis=0) for s in surfaces], axis=0)
    high = np.max([s.points.max(axis=0) for s in surfaces], axis=0)
    step = (high - low) / DICE_GRID
    lattice = np.diag([*step, 1.0])
    lattice[:3, 3] = low + 0.5 * step
    masks = [voxelize(s, lattice, (DICE_GRID,) * 3).ravel() for s in surfaces]
    counts = np.array([m.sum() for m in masks], dtype=np.float64)
    packed = np.stack(masks).astype(np.float32)
    both = (packed @ packed.T).astype(np.float64)
    dice = 2.0 * both / (counts[:, None] + counts[None])
    return float(dice[np.triu_indices(len(masks), 1)].mean())
