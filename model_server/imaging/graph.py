"""Graph convolutions on the template sphere."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from model_server.geometry.icosphere import icosphere


@lru_cache(maxsize=4)
def normalized_adjacency(level: int, loops: bool) -> Tensor:
    """(V, V) sparse D^-1/2 A D^-1/2 of ``icosphere(level)``, symmetric.

    Args:
        level: subdivisions.
        loops: whether a vertex is its own neighbor (Kipf and Welling).
    """
    a, b, c = icosphere(level).triangles.T.astype(np.int64)
    rows, columns = np.concatenate([a, b, c, b, c, a]), np.concatenate([b, c, a, a, b, c])
    count = len(icosphere(level).points)
    adjacent = sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    adjacent = (adjacent.tocsr() > 0).astype(np.float64)
    if loops:
        adjacent = adjacent + sparse.eye(count)
    root = sparse.diags(1.0 / np.sqrt(np.asarray(adjacent.sum(axis=1)).ravel()))
    found = (root @ adjacent @ root).tocsr()
    with warnings.catch_warnings():
        # That they are in beta state is nothing to tell who fits an organ.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(found.indptr.astype(np.int64)),
            torch.from_numpy(found.indices.astype(np.int64)),
            torch.from_numpy(found.data.astype(np.float32)),
            size=found.shape,
            check_invariants=False,
        )


class _Neighbors(torch.autograd.Function):
    """x -> A x for a symmetric sparse A, whose gradient is A's too."""

    @staticmethod
    def forward(ctx: Any, adjacency: Tensor, x: Tensor) -> Tensor:
        ctx.adjacency = adjacency
        return adjacency @ x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, ctx.adjacency @ gradient.contiguous()


def neighbors(x: Tensor, level: int, loops: bool) -> Tensor:
    """(B, V, C) vertex features -> (B, V, C) weighted sums over each vertex' neighbors."""
    batch, count, channels = x.shape
    adjacency = normalized_adjacency(level, loops).to(x.device)
    flat = x.float().transpose(0, 1).reshape(count, batch * channels)
    # Sparse products are not made in half precision.
    with torch.autocast(x.device.type, enabled=False):
        found: Tensor = _Neighbors.apply(adjacency, flat)  # type: ignore[no-untyped-call]
    return found.reshape(count, batch, channels).transpose(0, 1)


class Chebyshev(nn.Module):
    """Chebyshev graph convolution of order two: x W0 + L x W1, L = -D^-1/2 A D^-1/2.

    The scaled Laplacian's largest eigenvalue is taken as 2 (Defferrard et al. 2016, as in
    torch-geometric's ``ChebConv(K=2, normalization="sym")``).
    """

    def __init__(self, before: int, after: int, level: int) -> None:
        super().__init__()
        self.level = level
        self.own = nn.Linear(before, after)
        self.around = nn.Linear(before, after, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, V, C) -> (B, V, C')."""
        # The narrower of both sides is spread over the graph.
        if self.around.in_features > self.around.out_features:
            spread = neighbors(self.around(x), self.level, loops=False)
        else:
            spread = self.around(neighbors(x, self.level, loops=False))
        return self.own(x) - spread


class GraphBlock(nn.Module):
    """Two graph convolutions beside a shortcut."""

    def __init__(self, channels: int, level: int) -> None:
        super().__init__()
        self.first = Chebyshev(channels, channels, level)
        self.second = Chebyshev(channels, channels, level)

    def forward(self, x: Tensor) -> Tensor:
        """(B, V, C) -> (B, V, C)."""
        return functional.relu(x + self.second(functional.relu(self.first(x))))
