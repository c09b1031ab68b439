"""The networks of ImplicitAtlas (Yang et al., section 3): templates and their deformation.

An occupancy logit is T(t(h), p + D(d(h), p)). T and D are the same convolutional decoder
(Figure 3b). Its MLP begins with a linear layer on the concatenated features of every scale and the
coordinates. Trilinear sampling is linear too, and each scale's nodes are a subset of the next
one's, so that layer acts on the nodes before the sampling: one read of one map replaces a read at
every scale, with the same result.

The paper's baselines are the same model with parts left out or replaced: ``AtlasSizes.network``
"mlp" is the decoder of DeepSDF in place of the convolutional one, without templates an occupancy
logit is F(h, p), without ``deforms`` it is T(t(h), p).

Beyond the paper, D may have a part that is linear in the latent (``SplineModes``): training starts
it from principal modes of rough correspondences, which a convolutional decoder needs thousands of
steps to find. The convolutional part adds what is not linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.1  # of the leaky ReLU
LOGIT_SCALE = 10.0  # logits for one unit of the template network's output
MLP_WIDTH = 256
MLP_SKIP = 4  # the layer that sees the input again
OUTSIDE_SLOPE = 200.0  # logits lost for each canonical unit beyond the box


@dataclass(frozen=True)
class AtlasSizes:
    """How large the networks are.

    Attributes:
        latent_size: c, of h and d.
        template_size: of t: a few templates need no long ones.
        templates: m; 0 for a baseline without templates.
        base: nodes of the coarsest feature map along x, y, z; each scale has 2n - 1.
        channels: of the feature map at each scale.
        hidden: width of the MLP.
        network: "conv", or "mlp" for a baseline with DeepSDF's decoder.
        deforms: False for a baseline that only chooses a template.
        controls: control points of D's linear part along x, y, z; None if it has none.
    """

    latent_size: int = 384
    templates: int = 5
    base: tuple[int, int, int] = (5, 7, 6)
    channels: tuple[int, ...] = (16, 32, 16)
    hidden: int = 32
    network: str = "conv"
    deforms: bool = True
    template_size: int = 32
    controls: tuple[int, int, int] | None = None

    def nodes(self) -> tuple[int, int, int]:
        """Nodes of the finest feature map along x, y, z."""
        fold = 2 ** (len(self.channels) - 1)
        x, y, z = (fold * (n - 1) + 1 for n in self.base)
        return x, y, z


def base_nodes(box: Sequence[float], most: int = 220, beyond: int = 0) -> tuple[int, int, int]:
    """Nodes of the coarsest map along x, y, z.

    As many as ``most`` allows, in cells that are nearly cubes: the latents are linear there, so
    what they can tell apart depends on it.

    Args:
        box: (3,) edges.
        most: nodes in all.
        beyond: so many of them along each axis lie outside the box.
    """
    found = (2 + beyond, 2 + beyond, 2 + beyond)
    for least in range(3, most):
        x, y, z = (1 + beyond + round((least - 1) * edge / min(box)) for edge in box)
        if x * y * z > most:
            break
        found = (x, y, z)
    return found


class PixelShuffle3d(nn.Module):
    """(B, C * X * Y * Z) -> (B, C, X, Y, Z): the first upsampling, from one node to the base."""

    def __init__(self, nodes: tuple[int, int, int]) -> None:
        super().__init__()
        self.nodes = nodes

    def forward(self, features: Tensor) -> Tensor:
        """Channels become places."""
        return features.unflatten(1, (-1, *self.nodes))


class FeatureDecoder(nn.Module):
    """Latent -> first-layer features of the MLP on the finest nodes -> output at points.

    Args:
        sizes: of the networks.
        latent_size: of its latents.
        outputs: 1 for the template network, 3 for the deformation network.
    """

    grid: Tensor

    def __init__(self, sizes: AtlasSizes, latent_size: int, outputs: int) -> None:
        super().__init__()
        self.sizes = sizes
        channels = sizes.channels
        x, y, z = sizes.base
        self.first = nn.Linear(latent_size, channels[0] * x * y * z)
        self.shuffle = PixelShuffle3d(sizes.base)
        before = (channels[0], *channels[:-1])
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(a, b, 3, padding=1), nn.GroupNorm(max(1, b // 8), b), nn.LeakyReLU(SLOPE)
            )
            for a, b in zip(before, channels, strict=True)
        )
        self.reads = nn.ModuleList(nn.Conv3d(b, sizes.hidden, 1) for b in channels)
        self.place = nn.Linear(3, sizes.hidden)
        self.middle = nn.Linear(sizes.hidden, sizes.hidden)
        self.last = nn.Linear(sizes.hidden, outputs)
        axes = [torch.linspace(-1.0, 1.0, n) for n in sizes.nodes()]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        self.register_buffer("grid", grid, persistent=False)

    def layers(self, scale: int) -> tuple[nn.Conv3d, nn.GroupNorm, nn.LeakyReLU, nn.Conv3d]:
        """Convolution, normalization and bend of a scale's block, and what reads its features."""
        block, read = self.blocks[scale], self.reads[scale]
        assert isinstance(block, nn.Sequential)
        assert isinstance(read, nn.Conv3d)
        convolution, norm, bend = block
        assert isinstance(convolution, nn.Conv3d)
        assert isinstance(norm, nn.GroupNorm)
        assert isinstance(bend, nn.LeakyReLU)
        return convolution, norm, bend, read

    def maps(self, latents: Tensor) -> Tensor:
        """Latents (B, c) -> features (B, nodes, hidden) on the finest nodes."""
        features = self.shuffle(self.first(latents))
        total: Tensor | None = None
        for index, (block, read) in enumerate(zip(self.blocks, self.reads, strict=True)):
            if index:
                features = finer(features)
            features = block(features)
            seen = read(features)
            total = seen if total is None else finer(total) + seen
        assert total is not None
        places = self.place(self.grid)
        return total.float().flatten(2).transpose(1, 2) + places.flatten(0, 2)

    def read(self, maps: Tensor, places: Tensor) -> Tensor:
        """The MLP at places.

        Args:
            maps: (B, nodes, hidden).
            places: (B, N, 3), -1 to 1 across the box.

        Returns:
            (B, N, outputs).
        """
        return self.finish(sample(maps, places, self.sizes.nodes()))

    def finish(self, features: Tensor) -> Tensor:
        """The MLP after its first layer: (..., hidden) -> (..., outputs)."""
        features = functional.leaky_relu(features, SLOPE)
        features = functional.leaky_relu(self.middle(features), SLOPE)
        outputs: Tensor = self.last(features)
        return outputs


class MlpDecoder(nn.Module):
    """DeepSDF's decoder, for baselines: (latent, point) -> output, the input fed in again halfway.

    Its "maps" are the latents themselves: it has no places.

    Args:
        latent_size: of its latents.
        outputs: 1 for the template network, 3 for the deformation network.
    """

    def __init__(self, latent_size: int, outputs: int) -> None:
        super().__init__()
        given = latent_size + 3
        wide = given + MLP_WIDTH
        enters = [given, MLP_WIDTH, MLP_WIDTH, MLP_WIDTH, wide, MLP_WIDTH, MLP_WIDTH, MLP_WIDTH]
        self.layers = nn.ModuleList(nn.Linear(size, MLP_WIDTH) for size in enters)
        self.last = nn.Linear(MLP_WIDTH, outputs)

    def maps(self, latents: Tensor) -> Tensor:
        """(B, c) -> (B, 1, c)."""
        return latents[:, None]

    def read(self, maps: Tensor, places: Tensor) -> Tensor:
        """(B, 1, c), (B, N, 3) -> (B, N, outputs)."""
        given = torch.cat([maps.expand(-1, places.shape[1], -1), places], dim=-1)
        features = given
        for index, layer in enumerate(self.layers):
            if index == MLP_SKIP:
                features = torch.cat([features, given], dim=-1)
            features = functional.relu(layer(features))
        outputs: Tensor = self.last(features)
        return outputs.float()


def network(sizes: AtlasSizes, latent_size: int, outputs: int) -> FeatureDecoder:
    """T or D; of a baseline an ``MlpDecoder``, which has the same ``maps`` and ``read``.

    Fits, which need more than these, are of convolutional networks only.
    """
    if sizes.network == "mlp":
        return cast(FeatureDecoder, MlpDecoder(latent_size, outputs))
    return FeatureDecoder(sizes, latent_size, outputs)


def finer(features: Tensor) -> Tensor:
    """Trilinear: n nodes along an edge become 2n - 1, the old ones among them."""
    if features.dtype != torch.bfloat16:
        size = [2 * n - 1 for n in features.shape[2:]]
        return functional.interpolate(features, size, mode="trilinear", align_corners=True)
    # Of half precision, PyTorch's interpolation takes four times as long as this on a CPU.
    for axis in (4, 3, 2):
        n = features.shape[axis]
        middle = 0.5 * (features.narrow(axis, 0, n - 1) + features.narrow(axis, 1, n - 1))
        longer = features.new_empty(
            [2 * n - 1 if a == axis else size for a, size in enumerate(features.shape)]
        )
        old = (*[slice(None)] * axis, slice(0, None, 2))
        new = (*[slice(None)] * axis, slice(1, None, 2))
        longer[old], longer[new] = features, middle
        features = longer
    return features


def sample(maps: Tensor, places: Tensor, nodes: tuple[int, int, int]) -> Tensor:
    """Trilinear values at places, differentiable by both.

    Args:
        maps: (B, nodes, C), x slowest.
        places: (B, N, 3), -1 to 1; beyond, the border's value.
        nodes: along x, y, z.

    Returns:
        (B, N, C).
    """
    batch, count = places.shape[:2]
    last = places.new_tensor([n - 1 for n in nodes])
    index = ((places.clamp(-1.0, 1.0) + 1.0) * (0.5 * last)).clamp_min(0.0)
    low = torch.minimum(index.detach().floor(), last - 1.0)
    share = index - low
    strides = torch.tensor([nodes[1] * nodes[2], nodes[2], 1], device=places.device)
    first = (low.long() * strides).sum(-1)
    first = first + torch.arange(batch, device=places.device)[:, None] * maps.shape[1]
    x, y, z = ((1.0 - share[..., a], share[..., a]) for a in range(3))
    corners = [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    offsets = torch.tensor(corners, device=places.device) @ strides
    weights = torch.stack([x[i] * y[j] * z[k] for i, j, k in corners], dim=-1)
    found = functional.embedding_bag(
        (first[..., None] + offsets).reshape(-1, 8),
        maps.reshape(-1, maps.shape[-1]),
        per_sample_weights=weights.reshape(-1, 8),
        mode="sum",
    )
    return found.view(batch, count, -1)


class SplineModes(nn.Module):
    """Displacements linear in the latent: control points of a cubic B-spline over the box, a
    statistical deformation model (Rueckert et al. 2003, IEEE TMI 22(8)).

    Args:
        latent_size: of the latents.
        templates: m; each adds displacements of its own, so that a shape hardly changes where its
            latent begins to choose another one.
        controls: control points along x, y, z, one of them beyond each face of the box.
        nodes: of the map that is read at points.
    """

    def __init__(
        self,
        latent_size: int,
        templates: int,
        controls: tuple[int, int, int],
        nodes: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.controls, self.nodes = controls, nodes
        count = 3 * controls[0] * controls[1] * controls[2]
        self.modes = nn.Linear(latent_size, count)
        self.offsets = nn.Parameter(torch.zeros(templates, count))
        for axis, basis in enumerate(self.bases(nodes)):
            self.register_buffer(f"basis_{axis}", basis, persistent=False)

    def bases(self, nodes: Sequence[int]) -> list[Tensor]:
        """Per axis (nodes, controls): what control points give the nodes, cubic B-splines."""
        found = []
        for n, count in zip(nodes, self.controls, strict=True):
            along = torch.linspace(1.0, count - 2.0, n)[:, None]
            gap = (along - torch.arange(count)).abs()
            near = (4.0 - 6.0 * gap**2 + 3.0 * gap**3) / 6.0
            far = (2.0 - gap).clamp_min(0.0) ** 3 / 6.0
            found.append(torch.where(gap < 1.0, near, far))
        return found

    def _bases(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.get_buffer("basis_0"), self.get_buffer("basis_1"), self.get_buffer("basis_2")

    def points(self, latents: Tensor, chosen: Tensor) -> Tensor:
        """Control points (B, x, y, z, 3) of latents (B, c) and one-hot choices (B, m)."""
        with torch.autocast(latents.device.type, enabled=False):
            found = self.modes(latents.float()) + chosen.float() @ self.offsets
        return cast(Tensor, found.unflatten(1, (*self.controls, 3)))

    def maps(self, latents: Tensor, chosen: Tensor) -> Tensor:
        """(B, nodes, 3) displacements on the nodes."""
        with torch.autocast(latents.device.type, enabled=False):
            found = torch.einsum("bxyzc,lx->blyzc", self.points(latents, chosen), self._bases()[0])
            found = torch.einsum("blyzc,my->blmzc", found, self._bases()[1])
            found = torch.einsum("blmzc,nz->blmnc", found, self._bases()[2])
        return found.flatten(1, 3)

    def weights(self, places: Tensor) -> list[Tensor]:
        """Per axis (N, controls): what control points give places (N, 3), -1 to 1.

        Linear between nodes, as a map of the nodes is read.
        """
        found = []
        for axis, basis in enumerate(self._bases()):
            last = len(basis) - 1
            index = 0.5 * (places[:, axis].clamp(-1.0, 1.0) + 1.0) * last
            low = index.detach().floor().clamp(0, last - 1)
            share = (index - low)[:, None]
            found.append((1.0 - share) * basis[low.long()] + share * basis[low.long() + 1])
        return found

    def at(self, points: Tensor, places: Tensor) -> Tensor:
        """(N, 3) displacements at places (N, 3) of control points (x, y, z, 3)."""
        x, y, z = self.weights(places)
        along = (x @ points.flatten(1)).unflatten(1, points.shape[1:])
        return torch.einsum("nyzc,ny,nz->nc", along, y, z)


class AtlasDecoder(nn.Module):
    """Templates, the choice among them, and the deformation (Equation 3).

    Args:
        sizes: of the networks.
        box: half edges of the box around all canonical shapes, along x, y, z.
    """

    box: Tensor

    def __init__(self, sizes: AtlasSizes, box: Sequence[float]) -> None:
        super().__init__()
        self.sizes = sizes
        c = sizes.latent_size
        if sizes.templates:
            t = sizes.template_size
            self.template_latents = nn.Parameter(torch.randn(sizes.templates, t) / t**0.5)
            self.choice = nn.Linear(c, sizes.templates)
        self.template_net = network(sizes, sizes.template_size if sizes.templates else c, 1)
        if sizes.deforms and sizes.templates:
            self.deformation_net = network(sizes, c, 3)
            nn.init.normal_(self.deformation_net.last.weight, std=1e-3)
            nn.init.zeros_(self.deformation_net.last.bias)
        self.spline: SplineModes | None = None
        if sizes.controls:
            self.spline = SplineModes(c, sizes.templates, sizes.controls, sizes.nodes())
        self.register_buffer("box", torch.as_tensor(box, dtype=torch.float32))

    def template_maps(self) -> Tensor:
        """(m, nodes, hidden) features of every template."""
        maps: Tensor = self.template_net.maps(self.template_latents)
        return maps

    def choose(self, latents: Tensor) -> Tensor:
        """(B, m) one-hot choice of a template, with the gradient of the softmax."""
        soft = torch.softmax(self.choice(latents), dim=-1)
        hard = functional.one_hot(soft.argmax(dim=-1), self.sizes.templates).to(soft)
        return hard + soft - soft.detach()

    def deformation_maps(self, latents: Tensor, chosen: Tensor) -> Tensor:
        """(B, nodes, hidden) features of D, then (B, nodes, 3) more of its linear part, of latents
        (B, c) and one-hot choices of a template (B, m)."""
        maps: Tensor = self.deformation_net.maps(latents)
        if self.spline is None:
            return maps
        return torch.cat([maps.float(), self.spline.maps(latents, chosen)], dim=-1)

    def deformation(self, maps: Tensor, points: Tensor) -> Tensor:
        """(B, N, 3) D at canonical points (B, N, 3), in canonical units."""
        places = points / self.box
        if self.spline is None:
            moved: Tensor = self.deformation_net.read(maps, places)
            return moved
        return self.finish(sample(maps, places, self.sizes.nodes()))

    def finish(self, features: Tensor) -> Tensor:
        """What D reads at points (..., hidden or hidden + 3) -> displacements (..., 3)."""
        if self.spline is None:
            return self.deformation_net.finish(features)
        hidden = self.sizes.hidden
        return self.deformation_net.finish(features[..., :hidden]) + features[..., hidden:]

    def template_logit(self, maps: Tensor, points: Tensor) -> Tensor:
        """(B, N) occupancy logit of the templates at canonical points (B, N, 3)."""
        places = points / self.box
        beyond = (places.abs() - 1.0).clamp_min(0.0).norm(dim=-1)
        inside = LOGIT_SCALE * self.template_net.read(maps, places).squeeze(-1)
        return inside - OUTSIDE_SLOPE * beyond

    def fields(
        self, latents: Tensor, templates: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Features of the chosen templates and, if there is one, of the deformation.

        Args:
            latents: (B, c).
            templates: (B,) their numbers; by default the latents choose.

        Returns:
            (B, nodes, hidden), and as ``deformation_maps``.
        """
        if not self.sizes.templates:
            return self.template_net.maps(latents), None
        if templates is None:
            choice = self.choose(latents)
        else:
            choice = functional.one_hot(templates, self.sizes.templates).to(latents)
        chosen = torch.einsum("bm,mnh->bnh", choice, self.template_maps())
        if not self.sizes.deforms:
            return chosen, None
        return chosen, self.deformation_maps(latents, choice)

    def evaluate(
        self, chosen: Tensor, maps: Tensor | None, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Occupancy logits (B, N) and deformations (B, N, 3) at canonical points (B, N, 3)."""
        moved = torch.zeros_like(points) if maps is None else self.deformation(maps, points)
        return self.template_logit(chosen, points + moved), moved

    def forward(self, latents: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Occupancy logits (B, N) and deformations (B, N, 3) of latents (B, c) at (B, N, 3)."""
        return self.evaluate(*self.fields(latents), points)
