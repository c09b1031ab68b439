"""ReShapeIT's networks (Zhang et al. 2023, section 3.1): an implicit template, and a deformation
whose weights a hypernetwork makes for every shape.

Narrower than the paper's five layers of 256: the hypernetwork adds matrices of a low rank to
weights that all shapes share, so that a prior is a quarter of a megabyte instead of 60.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

Layers = list[tuple[Tensor, Tensor]]  # weights (..., out, in) and biases (..., out)
SMALL = 0.01  # of what the hypernetwork adds at first


@dataclass(frozen=True)
class ReshapeSizes:
    """Of the networks.

    Attributes:
        codes: n, entries of each of the two codes alpha and beta.
        width: of the sine layers.
        depth: fully connected layers of each of Temp and Deform.
        rank: of what the hypernetwork adds to a layer's weights.
        hidden: of the hypernetwork.
    """

    codes: int = 32
    width: int = 64
    depth: int = 5
    rank: int = 4
    hidden: int = 64


@dataclass(frozen=True)
class Jet:
    """Values of a function of place and what its derivatives are.

    Attributes:
        value: (..., N, c).
        slope: (..., 3, N, c) by x, y, z; None where it is not followed.
        laplacian: (..., N, c); None where it is not followed.
    """

    value: Tensor
    slope: Tensor | None = None
    laplacian: Tensor | None = None


def places(points: Tensor, slopes: bool = False, laplacian: bool = False) -> Jet:
    """The identity at points (..., N, 3)."""
    if not slopes:
        return Jet(points)
    unit = torch.eye(3, dtype=points.dtype, device=points.device)[:, None, :]
    slope = unit.expand(*points.shape[:-2], 3, points.shape[-2], 3)
    return Jet(points, slope, torch.zeros_like(points) if laplacian else None)


def through(layers: Layers, frequency: float, given: Jet) -> Jet:
    """A sine network (Sitzmann et al. 2020) and, as far as they are followed, its derivatives by
    place: forward, so that training goes back through them once.

    Args:
        layers: all but the last followed by sin(frequency * .).
        frequency: omega.
        given: what goes in.
    """
    value, slope, laplacian = given.value, given.slope, given.laplacian
    for index, (weights, biases) in enumerate(layers):
        turned = weights.transpose(-1, -2)
        value = value @ turned + biases[..., None, :]
        slope = None if slope is None else slope @ turned[..., None, :, :]
        laplacian = None if laplacian is None else laplacian @ turned
        if index == len(layers) - 1:
            break
        swung = frequency * value
        value, steep = swung.sin(), frequency * swung.cos()
        if laplacian is not None and slope is not None:
            bent = frequency**2 * value * slope.square().sum(dim=-3)
            laplacian = steep * laplacian - bent
        slope = None if slope is None else steep[..., None, :, :] * slope
    return Jet(value, slope, laplacian)


class SineLayers(nn.Module):
    """Fully connected layers, begun as sine networks are.

    Args:
        sizes: of inputs, layers and outputs.
        frequency: omega.
    """

    def __init__(self, sizes: list[int], frequency: float) -> None:
        super().__init__()
        weights = []
        for index, (given, found) in enumerate(pairwise(sizes)):
            reach = 1.0 / given if index == 0 else math.sqrt(6.0 / given) / frequency
            weights.append(nn.Parameter(torch.empty(found, given).uniform_(-reach, reach)))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(torch.zeros(found) for found in sizes[1:])

    def parts(self) -> Layers:
        """Weights and biases, layer by layer."""
        return list(zip(self.weights, self.biases, strict=True))


class HyperLayer(nn.Module):
    """What one layer's weights and biases become for a code beta: an MLP of three layers."""

    def __init__(self, codes: int, hidden: int, rank: int, given: int, found: int) -> None:
        super().__init__()
        self.rank, self.given, self.found = rank, given, found
        self.net = nn.Sequential(
            nn.Linear(codes, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, rank * (given + found) + found),
        )
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(SMALL)
            last.bias.mul_(SMALL)
            last.bias[: rank * given].normal_(std=given**-0.5)

    def forward(self, beta: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n) -> what is added to weights (B, found, given) and to biases (B, found)."""
        made = self.net(beta)
        rows, columns, biases = made.split(
            [self.rank * self.given, self.rank * self.found, self.found], dim=-1
        )
        rows = rows.unflatten(-1, (self.rank, self.given))
        columns = columns.unflatten(-1, (self.found, self.rank))
        return columns @ rows, biases


class ReshapeNetworks(nn.Module):
    """Temp, Deform and H.

    Args:
        sizes: of the networks.
        frequencies: omega of Temp and of Deform.
    """

    def __init__(self, sizes: ReshapeSizes, frequencies: tuple[float, float]) -> None:
        super().__init__()
        self.sizes, self.frequencies = sizes, frequencies
        inner = [sizes.width] * (sizes.depth - 1)
        self.temp = SineLayers([3, *inner, 1], frequencies[0])
        self.deform = SineLayers([3 + sizes.codes, *inner, 4], frequencies[1])
        widths = [3, *inner, 4]  # a code alpha only moves the first layer's biases
        self.hyper = nn.ModuleList(
            HyperLayer(sizes.codes, sizes.hidden, sizes.rank, a, b) for a, b in pairwise(widths)
        )
        nn.init.zeros_(self.deform.weights[-1])  # at first, nothing is deformed

    def deform_layers(self, codes: Tensor) -> Layers:
        """Deform's weights for codes (B, 2n): alpha, then beta."""
        alpha, beta = codes.split(self.sizes.codes, dim=-1)
        found: Layers = []
        for index, (weights, biases) in enumerate(self.deform.parts()):
            more, shifts = self.hyper[index](beta)
            if index == 0:
                shifts = shifts + alpha @ weights[:, 3:].T
                weights = weights[:, :3]
            found.append((weights + more, biases + shifts))
        return found

    def deformed(self, layers: Layers, given: Jet) -> Jet:
        """Delta vec (3) and Delta dis (1) at places, Eq. 2."""
        return through(layers, self.frequencies[1], given)

    def template(self, given: Jet) -> Jet:
        """Temp: the signed distance (1) to the template."""
        return through(self.temp.parts(), self.frequencies[0], given)

    def forward(self, layers: Layers, points: Tensor) -> Tensor:
        """(..., N) signed distances at points (..., N, 3), Eq. 3."""
        moved = self.deformed(layers, Jet(points)).value
        found = self.template(Jet(points + moved[..., :3])).value[..., 0]
        return found + moved[..., 3]
