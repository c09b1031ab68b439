"""Losses of triangle meshes that gradients pass through (DALS, section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def triangle_quality(vertices: Tensor, triangles: Tensor) -> Tensor:
    """L_reg of Eq. 2 for (B, V, 3) vertices: 0 for equilateral triangles."""
    a, b, c = (vertices[:, triangles[:, k]] for k in range(3))
    area = 0.5 * torch.linalg.cross(b - a, c - a).square().sum(-1).clamp_min(1e-20).sqrt()
    edges = ((b - a) ** 2 + (c - b) ** 2 + (a - c) ** 2).sum(-1).clamp_min(1e-12)
    return 1.0 - 4.0 * math.sqrt(3.0) * (area / edges).mean()


def sample_mesh(vertices: Tensor, triangles: Tensor, count: int) -> Tensor:
    """(B, V, 3) -> (B, count, 3) differentiable samples, uniform over the area."""
    a, b, c = (vertices[:, triangles[:, k]] for k in range(3))
    with torch.no_grad():
        area = torch.linalg.cross(b - a, c - a).norm(dim=-1) + 1e-12
        chosen = torch.multinomial(area, count, replacement=True)
        u, v = torch.rand(2, *chosen.shape, 1, device=vertices.device).unbind(0)
        u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    index = chosen[..., None].expand(-1, -1, 3)
    a, b, c = (t.gather(1, index) for t in (a, b, c))
    return (1 - u - v) * a + u * b + v * c


def chamfer(first: Tensor, second: Tensor) -> Tensor:
    """Symmetric mean squared nearest distance of (B, N, 3) and (B, M, 3) point sets."""
    with torch.no_grad():
        gap = torch.cdist(first, second, compute_mode="use_mm_for_euclid_dist")
        there, back = gap.argmin(2), gap.argmin(1)
    to_second = second.gather(1, there[..., None].expand(-1, -1, 3))
    to_first = first.gather(1, back[..., None].expand(-1, -1, 3))
    forward = (first - to_second).square().sum(-1).mean()
    return forward + (second - to_first).square().sum(-1).mean()
