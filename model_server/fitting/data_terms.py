"""The paper's three data terms as differentiable losses (DALS, section 4, appendices A and B).

The shipped fit linearizes the same distances (attachment.py); these serve the reference
implementation and whoever wants gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_server.fitting.mask import MaskField
from model_server.fitting.mesh_losses import chamfer, sample_mesh
from model_server.geometry.sections import plane_section

Array = NDArray[np.float64]


def points_loss(vertices: Tensor, triangles: Tensor, points: Tensor) -> Tensor:
    """Chamfer distance of as many mesh samples to (N, 3) points, squared units (section 4.1)."""
    samples = sample_mesh(vertices[None], triangles, len(points))
    return chamfer(samples, points[None])


def section_samples(
    vertices: Tensor, triangles: NDArray[np.int32], origin: Array, normal: Array, count: int
) -> Tensor:
    """(count, 3) differentiable samples of a mesh-plane section (appendix A, Eq. 5).

    The topology and the barycentric weights are constants; gradients reach the vertices through
    the linear combination. Segments are drawn by length. Empty where the plane misses the mesh.
    """
    section = plane_section(vertices.detach().cpu().double().numpy(), triangles, origin, normal)
    if len(section.triangles) == 0:
        return vertices.new_zeros((0, 3))
    length = np.linalg.norm(section.ends[:, 1] - section.ends[:, 0], axis=1) + 1e-12
    chosen = torch.multinomial(
        torch.as_tensor(length, dtype=torch.float32), count, replacement=True
    ).numpy()
    weights = torch.as_tensor(section.weights[chosen], dtype=vertices.dtype)[..., None]
    edges = torch.as_tensor(section.edges[chosen])
    ends = (1 - weights) * vertices[edges[..., 0]] + weights * vertices[edges[..., 1]]
    share = torch.rand(count, 1, dtype=vertices.dtype)
    return share * ends[:, 0] + (1 - share) * ends[:, 1]


def curves_loss(
    vertices: Tensor,
    triangles: NDArray[np.int32],
    planes: list[tuple[Tensor, Array, Array]],
    count: int,
) -> Tensor:
    """Mean over planes of the in-plane Chamfer distance (appendix A, Eq. 6 and 7).

    Args:
        vertices: (V, 3).
        triangles: (F, 3).
        planes: for each plane the annotation samples (N, 3), its origin and its normal.
        count: samples of each section.
    """
    losses = []
    for targets, origin, normal in planes:
        samples = section_samples(vertices, triangles, origin, normal, count)
        if len(samples) == 0:
            # The mesh does not reach the plane: its nearest vertices are pulled there.
            gap = torch.cdist(targets, vertices).min(dim=1).values
            losses.append(gap.square().mean())
        else:
            losses.append(chamfer(samples[None], targets[None]))
    return torch.stack(losses).mean()


class _MaskDistance(torch.autograd.Function):
    """|distance| at (V, 3) points; its gradient is the interpolated Sobel gradient."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, mask: MaskField) -> Tensor:
        value, slope = mask.at(points.detach().cpu().double().numpy())
        ctx.save_for_backward(torch.as_tensor(np.sign(value)[:, None] * slope, dtype=points.dtype))
        return torch.as_tensor(np.abs(value), dtype=points.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grads[0][:, None] * slope, None


def mask_loss(vertices: Tensor, mask: MaskField) -> Tensor:
    """Mean unsigned distance of the vertices, RAS mm, to a mask's boundary (appendix B, Eq. 8)."""
    distance: Tensor = _MaskDistance.apply(vertices, mask)
    return distance.mean()


def dirichlet_energy(latents: Tensor, laplacian: Tensor, power: int = 2) -> Tensor:
    """Tr(Z' L^p Z) of (V, d) latents and a (V, V) sparse Laplacian (Eq. 4)."""
    smoothed = latents
    for _ in range(power):
        smoothed = torch.sparse.mm(laplacian, smoothed)
    return (latents * smoothed).sum()
