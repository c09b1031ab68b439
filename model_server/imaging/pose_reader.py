"""DISSM reads an image: an agent places its shape and loads its components, a network mends it.

The answer is a reading like any other: signed distances with their doubt. So all that hears images
hears it: fits, what is told of strange images, parts, what was drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, special

from model_server.errors import ShapePriorError
from model_server.fitting.engine import place
from model_server.fitting.interrupt import apart, check
from model_server.geometry.labels import oriented
from model_server.imaging.intensities import Intensities
from model_server.imaging.pose_agent import STAGES, AgentShape, PoseAgent, PoseStep, View
from model_server.imaging.pose_steps import Places
from model_server.imaging.prompts import PROMPTS, prompt_channels
from model_server.imaging.reader import UNKNOWN_MM, Doubt, no_overlap
from model_server.imaging.refine_network import RefineNetwork, RefineShape
from model_server.imaging.region import Frame, Region, on_voxels, read_image
from model_server.imaging.voxel_network import laid_out
from model_server.imaging.watching import watcher
from model_server.observations import Observations, Volume
from model_server.priors.card import OWN_READER, PriorCard
from model_server.priors.protocol import FitSettings
from model_server.priors.schema import bad_prior
from model_server.reading import ImageReading, Structure
from model_server.reconstruction import Provenance, Reconstruction, Surface

Array = NDArray[np.float64]
Image = NDArray[np.float32]
AGENT, REFINE = "agent.", "refine."  # of the names of weights
NODE_STEP = 0.08  # canonical units, about, between nodes at which the shape is decoded
MARGIN_MM = 4.0  # around the band
LEAST_SLOPE = 0.3  # of a decoded distance; 1 is a true one
PLACED = STAGES[2:]  # what is left to find where annotations tell the place
BLUNT_MM = 1.0  # doubt where no network tells it; calibrated


class Shape(Protocol):
    """What the agent places: a shape model's mean and its distances (``DissmPrior``)."""

    card: PriorCard
    quick: Any

    def template(self) -> Surface:
        """The mean shape, canonical frame."""
        ...

    def template_coordinates(self) -> Array:
        """(V, 3) of its vertices."""
        ...

    @property
    def size(self) -> int:
        """K whitened latents."""
        ...

    def latents(self, latent: Array) -> Array:
        """(K,) whitened -> (d,)."""
        ...

    def decode(self, latents: Array, resolution: int = 1) -> Surface:
        """(d,) -> a closed surface, canonical frame."""
        ...

    def distances(self, latent: Array, points: Array) -> Array:
        """(N,) signed distances of the shape (K,) whitened at canonical points (N, 3)."""
        ...


class PoseReader:
    """An agent and a refinement of one shape model.

    Args:
        card: the shape model's, its hyperparameters those of the reader.
        prior: the shape model.
        agent: that places it.
        refine: that mends it; None where there is none.
    """

    def __init__(
        self,
        card: PriorCard,
        prior: Shape,
        agent: PoseAgent,
        refine: RefineNetwork | None = None,
    ) -> None:
        self.card, self.prior, self.agent, self.refine = card, prior, agent, refine
        self.frame = agent.shape.frame
        told = card.hyperparameters
        self.intensities, self.doubt = Intensities.of(told), Doubt.of(told)

    @classmethod
    def of(cls, prior: Any) -> PoseReader:
        """Of a shape model whose card tells of a reader, and whose file has its weights.

        Raises:
            ShapePriorError: (bad-prior) the weights are not those of its networks.
        """
        card = reader_side(prior.card)
        told = card.hyperparameters
        try:
            agent = PoseAgent(AgentShape.of(told["agent"]))
            agent.load_state_dict(_state(prior.reader_weights, AGENT))
            refine = None
            if "refine" in told:
                refine = RefineNetwork(RefineShape.of(told["refine"]))
                refine.load_state_dict(_state(prior.reader_weights, REFINE))
                refine = laid_out(refine).eval()
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise bad_prior(prior.card, "its reader's weights are not those of its card") from error
        return cls(card, prior, laid_out(agent).eval(), refine)

    @property
    def organ(self) -> str:
        """That it reads."""
        return self.card.organ

    def read(
        self,
        image: Volume,
        center: Array,
        observations: Observations | None = None,
        meshes: bool = False,
        start: Places | None = None,
    ) -> ImageReading:
        """Find the organ around a place, and tell how far everything there is from it.

        Args:
            image: any orientation, spacing and type.
            center: (3,) RAS mm, about the organ's.
            observations: from whose start, or else pose, the agent starts; and prompts of the
                refinement.
            meshes: whether the shape's own surface is told, too.
            start: where the agent starts; by default the mean pose, or what annotations tell.

        Raises:
            ShapePriorError: (no-overlap) the image does not reach there.
        """
        path, told = [], watcher()
        for step in self.walk(image, center, observations, start):
            path.append(step)
            if told is not None:
                told(self.shown(step))
        return self.told(image, tuple(path), observations, meshes)

    # --- the way ------------------------------------------------------------------------------

    def walk(
        self,
        image: Volume,
        center: Array,
        observations: Observations | None = None,
        start: Places | None = None,
        place_known: bool = True,
    ) -> Iterator[PoseStep]:
        """State by state, the first one first; arguments as of ``read``.

        Args:
            place_known: whether a given start tells the place, so that only what is finer is found.

        Raises:
            ShapePriorError: (no-overlap) the image does not reach there.
        """
        region = self.frame.at(center)
        values, known = read_image(image, region)
        if not known.any():
            raise no_overlap(image)
        normal = self.intensities.normalized(values, known)
        volumes = torch.from_numpy(np.stack([normal, known])[None])
        view = View(volumes, self.frame, region.origin)
        start = start or self._told_place(observations)
        if start is None:
            return self.agent.walk(view, self.agent.mean_place(center))
        return self.agent.walk(view, start, PLACED if place_known else STAGES)

    def _told_place(self, observations: Observations | None) -> Places | None:
        """Where to start, or the place that annotations tell; None where they tell too little."""
        if observations is not None and observations.start is not None:
            return Places.of_matrix(observations.start, self.agent.shape.usual)
        drawn = None if observations is None else replace(observations, reading=None)
        if drawn is None or not (len(drawn.spanning_points()) or drawn.label_map is not None):
            return None
        try:
            return Places.of_pose(place(self.prior.quick, drawn, FitSettings()).pose)
        except ShapePriorError:  # too few points for a surface: the image has to tell
            return None

    def shown(self, step: PoseStep) -> Reconstruction:
        """A state as a surface: the mean shape in its place."""
        mean = self.prior.template()
        points = step.places.apply(torch.tensor(mean.points, dtype=torch.float32)[None])[0]
        return Reconstruction(
            Surface(points.double().numpy(), mean.triangles),
            self.prior.template_coordinates(),
            step.places.pose(),
            self.prior.latents(self._whole(step.latent)),
            f"pose: {step.stage} {step.number}",
            (),
            Provenance(self.card.name, self.card.version, "cpu"),
        )

    # --- what is told -------------------------------------------------------------------------

    def told(
        self,
        image: Volume,
        path: tuple[PoseStep, ...],
        observations: Observations | None = None,
        meshes: bool = False,
    ) -> ImageReading:
        """The reading at the end of a way."""
        last = path[-1]
        surface = self.surface(last)
        check()
        region = on_voxels(self._region(surface), image)
        distance = self.decoded(last, region)
        values, known = read_image(image, region)
        normal = self.intensities.normalized(values, known)
        prompts = np.zeros((PROMPTS, *values.shape), dtype=np.float32)
        if observations is not None:
            prompts = prompt_channels(observations, region)
        doubt = np.full(distance.shape, BLUNT_MM, dtype=np.float32)
        if self.refine is not None:
            seen = np.concatenate([np.stack([normal, known]), prompts])
            distance, doubt = apart(lambda: self._refined(seen, distance))
        doubt = self.doubt.true(doubt)
        structures = (Structure(self.organ, surface),) if meshes else ()
        return ImageReading(
            reader=self.card.name,
            origin=region.origin,
            spacing=region.frame.spacing,
            distance=distance,
            doubt=np.where(known > 0, doubt, UNKNOWN_MM).astype(np.float32),
            inside=special.ndtr(-distance / np.maximum(doubt, 0.1)).astype(np.float32),
            image=normal,
            known=known > 0,
            alike_mm=self.doubt.alike_mm,
            structures=structures,
            prompted=observations is not None,
            calibration=self.card.hyperparameters.get("calibration", {}),
            path=tuple(step.told() for step in path),
        )

    def _whole(self, latent: Array) -> Array:
        """(K,) of the shape model, of the first components that the agent loads."""
        found = np.zeros(self.prior.size)
        count = min(len(latent), len(found))
        found[:count] = latent[:count]
        return found

    def surface(self, step: PoseStep) -> Surface:
        """A state's own shape, RAS mm."""
        shape = self.prior.decode(self.prior.latents(self._whole(step.latent)))
        points = step.places.apply(torch.tensor(shape.points, dtype=torch.float32)[None])[0]
        return oriented(Surface(points.double().numpy(), shape.triangles))

    def _region(self, surface: Surface) -> Region:
        """The box around a surface in which it may be mended."""
        spacing = self.refine.shape.spacing if self.refine else 0.5 * self.frame.spacing
        multiple = self.refine.shape.multiple if self.refine else 1
        margin = MARGIN_MM + (self.refine.shape.band_mm if self.refine else 0.0)
        low, high = surface.points.min(axis=0) - margin, surface.points.max(axis=0) + margin
        count = np.ceil((high - low) / spacing / multiple).astype(int) * multiple
        return Frame((int(count[0]), int(count[1]), int(count[2])), spacing).at(0.5 * (low + high))

    def decoded(self, step: PoseStep, region: Region) -> Image:
        """(X, Y, Z) mm to a state's surface: decoded at some voxels, as distances are smooth,
        then made true."""
        places, latent = step.places, self._whole(step.latent)
        spacing = region.frame.spacing
        every = max(1, round(NODE_STEP * self.agent.shape.usual / spacing))  # voxels
        coarse = [np.arange(-0.5, n + every, every) for n in region.frame.shape]
        shape = tuple(len(axis) for axis in coarse)
        index = np.stack(np.meshgrid(*coarse, indexing="ij"), axis=-1).reshape(-1, 3)
        world = torch.tensor(region.to_ras(index), dtype=torch.float32)[None]
        canonical = places.invert(world)[0].double().numpy()
        found = apart(lambda: self.prior.distances(latent, canonical))
        field = (float(places.size[0]) * found).reshape(shape)
        slope = np.gradient(field, every * spacing)
        field = field / np.maximum(np.sqrt(np.square(slope).sum(axis=0)), LEAST_SLOPE)
        fine = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / every for n in region.frame.shape],
                                    indexing="ij"))  # fmt: skip
        return np.asarray(ndimage.map_coordinates(field, fine, order=1, mode="nearest"), np.float32)

    @torch.inference_mode()
    def _refined(self, seen: Image, distance: Image) -> tuple[Image, Image]:
        """Distances and their doubt, mm, after the network."""
        assert self.refine is not None
        spacing = self.refine.shape.spacing
        correction, log_doubt = self.refine(
            torch.from_numpy(seen[None]), torch.from_numpy(distance[None] / spacing)
        )
        # Laplace's scale is a standard deviation divided by the square root of two.
        doubt = np.sqrt(2.0) * spacing * log_doubt[0].exp().numpy()
        return distance + spacing * correction[0].numpy(), doubt


def reader_side(card: PriorCard) -> PriorCard:
    """A card as its reader has it."""
    return replace(card, hyperparameters=dict(card.hyperparameters[OWN_READER]))


def pack_reader(agent: PoseAgent, refine: RefineNetwork | None) -> dict[str, NDArray[Any]]:
    """Arrays of a prior's file, in half precision."""
    found = {AGENT + name: value for name, value in agent.state_dict().items()}
    if refine is not None:
        found |= {REFINE + name: value for name, value in refine.state_dict().items()}
    return {name: v.detach().cpu().numpy().astype(np.float16) for name, v in found.items()}


def _state(weights: dict[str, NDArray[Any]], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(value.astype(np.float32))
        for name, value in weights.items()
        if name.startswith(prefix)
    }
