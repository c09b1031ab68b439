"""The template interaction as the paper writes it: codes and Deform moved by ADAM (ReShapeIT,
section 3.2, Eq. 8), against the fit that ships.

    python Testing/benchmarks/interaction_adam.py [--organs pancreas liver] [--steps 30 300 1000]

The yardstick of accuracy and speed for the Gauss-Newton fit; not part of the product. Both are told
the same matching points: those of the mask's surface that the registered template explains best
(``fitting.template_interaction``). The fit solves for pose and codes; ADAM is given the pose that
the fit found and the codes it began with, and moves the codes alpha and beta, the shared weights of
Deform and the hypernetwork, Temp fixed. Of Eq. 4 distances are known at the matching points and,
along their normals, near them; of points elsewhere Eikonal and off-surface terms count alone.

The paper fine-tunes for 30 epochs at a rate of 1e-4; of one shape an epoch is one step of all its
points. "shape" is what the codes say, "mended" the mask followed and filled by that shape, the same
way for both. Masks are validation cases by the protocol "network-mask" and, of pancreases, those of
four networks. Seconds are of the processor: of the fit from the mask to the surface, of ADAM from
pose and points to the surface, so that registration and pose have to be added. Writes
interaction_adam.md.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from common import console, load, parser, show, tell
from masks import Given
from numpy.typing import NDArray
from repairs import masks_of, own
from torch import Tensor

from model_server.evaluation.harness import use_threads
from model_server.evaluation.metrics import dice, surface_distances
from model_server.evaluation.results import machine
from model_server.fitting.mask import scan_edges
from model_server.fitting.template_interaction import interacted
from model_server.fitting.terms import evidence_of
from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.labels import surface_from_label
from model_server.observations import MaskNoise, Observations
from model_server.priors.carried_field import zero_surface
from model_server.priors.protocol import FitSettings
from model_server.priors.reshapeit import ReshapeitPrior
from model_server.priors.reshapeit_field import ReshapeField
from model_server.priors.reshapeit_networks import ReshapeNetworks, places
from model_server.reconstruction import Surface
from model_server.training.reshapeit import SHARPNESS, ReshapeTraining, unlike

Array = NDArray[np.float64]
ORGANS = ["pancreas", "liver", "lung-right-upper-lobe"]
NEAR = (-0.05, -0.02, 0.02, 0.05)  # canonical units off matching points, along their normals
FAR_POINTS = 800  # elsewhere, in each step
HEADER = ["masks", "method", "cases", "Dice", "HD95 mm", "CPU s"]


@dataclass(frozen=True)
class Found:
    """One surface of one mask, and the seconds it took."""

    masks: str
    method: str
    dice: float
    hd95: float
    seconds: float


def slope_and_distance(
    networks: ReshapeNetworks, codes: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    """(N, 3) gradients and (N,) distances at canonical points (N, 3)."""
    given = places(points[None], slopes=True)
    moved = networks.deformed(networks.deform_layers(codes[None]), given)
    found = networks.template(places(points[None] + moved.value[..., :3], slopes=True))
    assert given.slope is not None
    assert moved.slope is not None
    assert found.slope is not None
    stretch = given.slope + moved.slope[..., :3]
    slope = torch.einsum("bipj,bjp->bip", stretch, found.slope[..., 0]) + moved.slope[..., 3]
    return slope[0].T, found.value[0, :, 0] + moved.value[0, :, 3]


class Tuning:
    """Eq. 8 for one shape.

    Args:
        prior: whose networks are copied.
        codes: (2n,) to begin with.
        points: (N, 6) matching points and their outward normals, canonical frame.
        rate: of ADAM.
    """

    def __init__(self, prior: ReshapeitPrior, codes: Array, points: Array, rate: float) -> None:
        told = prior.card.hyperparameters["training"]
        known = {k: v for k, v in told.items() if k in ReshapeTraining.__dataclass_fields__}
        self.config = ReshapeTraining(**{k: v for k, v in known.items() if k != "jitters"})
        assert isinstance(prior.field, ReshapeField)
        self.field = prior.field
        self.networks = copy.deepcopy(prior.field.networks)
        moving = [*self.networks.deform.parameters(), *self.networks.hyper.parameters()]
        for weights in moving:
            weights.requires_grad_(True)
        self.codes = torch.tensor(codes, dtype=torch.float32, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.codes, *moving], lr=rate)
        on = torch.tensor(points, dtype=torch.float32)
        self.on, self.normals = on[:, :3], on[:, 3:]
        offs = torch.tensor(NEAR)[:, None]
        self.near = (self.on + offs[:, None] * self.normals).reshape(-1, 3)
        self.wanted = torch.cat([torch.zeros(len(on)), offs.expand(-1, len(on)).reshape(-1)])
        self.random = torch.Generator().manual_seed(0)

    def step(self) -> None:
        """One step of ADAM."""
        config = self.config
        far = 2.0 * torch.rand((FAR_POINTS, 3), generator=self.random) - 1.0
        points = torch.cat([self.on, self.near, far])
        slope, distance = slope_and_distance(self.networks, self.codes, points)
        told = distance[: len(self.wanted)] - self.wanted
        off = torch.exp(-SHARPNESS * distance[len(self.wanted) :].abs())
        loss = (
            config.distance_weight * told.abs().mean()
            + config.normal_weight * unlike(slope[: len(self.on)].T[None], self.normals.T[None])
            + config.eikonal_weight * (slope.norm(dim=1) - 1.0).abs().mean()
            + config.off_weight * off.mean()
            + config.latent_weight * self.codes.square().sum()
        )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def surface(self) -> Surface:
        """Where the distance is zero, canonical frame."""
        field = ReshapeField(
            copy.deepcopy(self.networks),
            self.codes.detach().double().numpy(),
            np.zeros((len(self.codes), 1)),
            self.field.rms_radius,
            self.field.template,
        )
        nothing = np.zeros(1)
        return zero_surface(
            lambda points: field.distances(nothing, points),
            lambda points: field.read(nothing, 0, points),
        )


def outward(surface: Surface, points: Array) -> Array:
    """(N, 3) unit normals of a surface next to places (N, 3), RAS mm."""
    triangle, weights, _ = closest_on_mesh(surface, points)
    corners = surface.triangles[triangle]
    normals = (weights[..., None] * surface.vertex_normals()[corners]).sum(axis=1)
    return np.asarray(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12))


def compared(
    prior: ReshapeitPrior, given: Given, masks: str, chosen: argparse.Namespace
) -> Iterator[Found]:
    """The mask itself, the fit, and ADAM after so many steps each."""

    def found(method: str, surface: Surface, seconds: float) -> Found:
        gaps = surface_distances(surface, given.truth)
        score = dice(surface, given.truth.label)
        return Found(masks, method, score, gaps.percentile(95), seconds)

    noise = MaskNoise(edges=scan_edges(given.mask))
    drawn = Observations(label_map=given.mask, mask_noise=noise)
    yield found("the mask itself", own(given.mask, prior.template()), 0.0)
    began, codes, last = time.process_time(), None, None
    for last in prior.fit(drawn, settings=FitSettings(uncertainty=False)):
        codes = last.latents if codes is None else codes
        if last.stage == "global":
            yield found("fit: shape", last.surface, time.process_time() - began)
    assert last is not None
    assert codes is not None
    assert not last.pose.mirrored
    yield found("fit: mended", last.surface, time.process_time() - began)
    observations = interacted(prior, drawn)  # the same points: the prior remembers them
    evidence, label = evidence_of(observations), observations.label_map
    assert label is not None
    dense, points = evidence.dense(), evidence.boundary()
    assert dense is not None
    border = surface_from_label(label, whole=True)
    normals = outward(border, points) @ last.pose.linear() / last.pose.scale
    there = np.column_stack([last.pose.invert(points), normals])
    tuning, done, spent = Tuning(prior, codes, there, chosen.rate), 0, 0.0
    for steps in chosen.steps:
        began = time.process_time()
        for _ in range(steps - done):
            tuning.step()
        done, spent = steps, spent + time.process_time() - began
        began = time.process_time()
        shape = tuning.surface()
        placed = Surface(last.pose.apply(shape.points), shape.triangles)
        shown = spent + time.process_time() - began
        yield found(f"ADAM, {steps} steps: shape", placed, shown)
        began = time.process_time()
        mended = dense.followed(placed)
        yield found(f"ADAM, {steps} steps: mended", mended, shown + time.process_time() - began)


def rows_of(found: list[Found]) -> list[list[str]]:
    """Means of masks and methods, in order."""
    rows = []
    for masks, method in dict.fromkeys((each.masks, each.method) for each in found):
        same = [each for each in found if (each.masks, each.method) == (masks, method)]
        scores = np.array([[each.dice, each.hd95, each.seconds] for each in same]).mean(axis=0)
        told = [format(v, form) for v, form in zip(scores, (".4f", ".2f", ".1f"), strict=True)]
        rows.append([masks, method, str(len(same)), *told])
    return rows


def main() -> None:
    """Print and write the table."""
    arguments = parser(__doc__, [])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    arguments.add_argument("--kinds", nargs="+", default=["networks", "degraded"])
    arguments.add_argument("--every", type=int, default=1, help="of networks, each n-th patient")
    arguments.add_argument("--steps", nargs="+", type=int, default=[30, 300, 1000])
    arguments.add_argument("--rate", type=float, default=1e-4, help="of ADAM")
    chosen = arguments.parse_args()
    chosen.folds = 0
    use_threads(chosen.threads)
    found: list[Found] = []
    for organ in chosen.organs:
        prior = load(f"{organ}-reshapeit", chosen.device)
        assert isinstance(prior, ReshapeitPrior)
        for kind in chosen.kinds:
            if kind == "networks" and organ != "pancreas":
                continue
            masks = list(masks_of(kind, organ, chosen))
            for number, given in enumerate(masks, start=1):
                found += compared(prior, given, f"{organ}, {kind}", chosen)
                tell(given.case, kind, number, len(masks))
    m = machine(chosen.device, chosen.threads)
    path = chosen.output / "interaction_adam.md"
    path.unlink(missing_ok=True)
    title = f"Template interaction, Gauss-Newton and ADAM ({m['date']}, commit {m['commit']})"
    show(title, HEADER, rows_of(found), path)
    with path.open("a") as file:
        file.write(f"\n`python {' '.join(sys.argv)}`\n")
    console.print(f"Wrote {path}.", markup=False)


if __name__ == "__main__":
    main()
