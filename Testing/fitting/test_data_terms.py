"""The paper's data terms: analytic values, and gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from model_server.fitting import data_terms as terms
from model_server.fitting.mask import MaskField
from model_server.geometry.icosphere import icosphere
from model_server.geometry.sections import plane_section
from model_server.observations import Volume

Array = NDArray[np.float64]
SPHERE = icosphere(3)
FACES = torch.tensor(SPHERE.triangles, dtype=torch.int64)
AXIAL = np.array([0.0, 0.0, 1.0])
OBLIQUE = np.array([1.0, 2.0, -1.5]) / np.linalg.norm([1.0, 2.0, -1.5])
TURN = Rotation.from_rotvec([0.3, -0.5, 0.8]).as_matrix()
BALL_CENTER = np.array([5.0, -3.0, 8.0])
BALL_RADIUS = 12.0


def tensor(array: object) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float64)


def bumpy() -> Array:
    """A sphere that is nowhere symmetric, so that no gradient vanishes by chance."""
    rng = np.random.default_rng(0)
    waves = 0.06 * np.sin(SPHERE.points @ rng.normal(0, 2, (3, 4)) + rng.random(4)).sum(axis=1)
    return np.asarray(SPHERE.points * (1.0 + waves[:, None]) * [1.2, 1.0, 0.8])


def check_gradient(loss: Callable[[Tensor], Tensor], at: Array, step: float = 1e-6) -> None:
    """Directional derivatives agree with central differences along random directions."""
    point = tensor(at).requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(point), point)
    assert float(gradient.abs().max()) > 0
    rng = np.random.default_rng(1)
    for _ in range(6):
        way = rng.standard_normal(at.shape)
        way /= np.linalg.norm(way)
        high, low = loss(tensor(at + step * way)), loss(tensor(at - step * way))
        expected = float((gradient * tensor(way)).sum())
        assert float(high - low) / (2 * step) == pytest.approx(expected, rel=2e-3, abs=1e-6)


def circle(radius: float, normal: Array, offset: float = 0.0, count: int = 400) -> Array:
    axes = np.linalg.svd(normal[None])[2][1:]
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    flat = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.asarray(flat @ axes + offset * normal)


def plane(points: Array, normal: Array) -> tuple[Tensor, Array, Array]:
    return tensor(points), points[0], normal


# --- points -------------------------------------------------------------------------------------


def test_points_loss_of_concentric_spheres() -> None:
    torch.manual_seed(0)
    targets = tensor(icosphere(4).points)

    def at(radius: float) -> float:
        return float(terms.points_loss(tensor(radius * SPHERE.points), FACES, targets))

    # 0.5 apart: 0.25 each way, and a little for the sampling.
    assert at(1.5) == pytest.approx(0.5, rel=0.05)
    assert at(1.0) < 0.5 * min(at(0.9), at(1.1))


def test_points_gradient_points_at_the_targets() -> None:
    torch.manual_seed(0)
    vertices = tensor(1.2 * SPHERE.points).requires_grad_(True)
    loss = terms.points_loss(vertices, FACES, tensor(icosphere(4).points))
    (gradient,) = torch.autograd.grad(loss, vertices)
    outward = (gradient.numpy() * SPHERE.points).sum(axis=1)
    assert outward.sum() == pytest.approx(4 * 0.2, rel=0.05)  # d/dr of (r - 1)^2, both ways


# --- curves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("normal", [AXIAL, OBLIQUE])
def test_section_of_a_sphere_is_a_circle(normal: Array) -> None:
    torch.manual_seed(0)
    fine = icosphere(5)
    samples = terms.section_samples(
        tensor(fine.points), fine.triangles, 0.4 * normal, normal, 3000
    ).numpy()
    assert np.abs(samples @ normal - 0.4).max() < 1e-9
    away = samples - 0.4 * normal
    assert np.linalg.norm(away, axis=1) == pytest.approx(np.full(3000, np.sqrt(0.84)), abs=1e-3)
    assert np.abs(away.mean(axis=0)).max() < 0.05  # uniform along it


def test_a_plane_that_misses_has_no_samples() -> None:
    none = terms.section_samples(tensor(SPHERE.points), SPHERE.triangles, 2 * AXIAL, AXIAL, 10)
    assert none.shape == (0, 3)


@pytest.mark.parametrize("normal", [AXIAL, OBLIQUE])
def test_curve_gradient_is_that_of_equation_5(normal: Array) -> None:
    """Weights, segments and neighbors held as Eq. 5 holds them, differences must agree."""
    start, origin = bumpy(), 0.13 * normal
    annotation = tensor(circle(0.9, normal, 0.13))
    section = plane_section(start, SPHERE.triangles, origin, normal)
    length = np.linalg.norm(section.ends[:, 1] - section.ends[:, 0], axis=1) + 1e-12

    def held(vertices: Tensor) -> Tensor:
        torch.manual_seed(0)  # the draws of ``section_samples``, in its order
        chosen = torch.multinomial(tensor(length).float(), 300, replacement=True).numpy()
        weight, edges = tensor(section.weights[chosen])[..., None], section.edges[chosen]
        ends = (1 - weight) * vertices[edges[..., 0]] + weight * vertices[edges[..., 1]]
        share = torch.rand(300, 1, dtype=torch.float64)
        samples = share * ends[:, 0] + (1 - share) * ends[:, 1]
        gap = torch.cdist(samples, annotation).square()
        return gap.min(dim=1).values.mean() + gap.min(dim=0).values.mean()

    check_gradient(held, start)
    gradients = []
    for loss in (
        held,
        lambda v: terms.curves_loss(v, SPHERE.triangles, [(annotation, origin, normal)], 300),
    ):
        torch.manual_seed(0)
        point = tensor(start).requires_grad_(True)
        gradients.append(torch.autograd.grad(loss(point), point)[0])
    assert torch.allclose(gradients[0], gradients[1], atol=1e-12)


def test_several_loops_of_one_plane_are_compared_together() -> None:
    torch.manual_seed(0)
    aside = np.array([3.0, 0.0, 0.0])
    points = np.concatenate([SPHERE.points, SPHERE.points + aside])
    faces = np.concatenate([SPHERE.triangles, SPHERE.triangles + len(SPHERE.points)])
    first = circle(1.0, AXIAL, 0.05)

    def loss(annotation: Array) -> float:
        both = [plane(annotation, AXIAL)]
        return float(terms.curves_loss(tensor(points), faces.astype(np.int32), both, 2000))

    assert loss(np.concatenate([first, first + aside])) < 1e-3
    assert loss(first) > 1.0  # the other half of the section is 1 to 3 away


def test_curves_average_over_planes_and_pull_where_the_mesh_is_missed() -> None:
    torch.manual_seed(0)
    hit, missed = plane(circle(1.0, AXIAL, 0.01), AXIAL), plane(circle(0.5, AXIAL, 1.5), AXIAL)

    def loss(*planes: tuple[Tensor, Array, Array]) -> Tensor:
        vertices = tensor(SPHERE.points).requires_grad_(True)
        value = terms.curves_loss(vertices, SPHERE.triangles, list(planes), 1000)
        value.backward()  # type: ignore[no-untyped-call]
        assert float(vertices.grad.abs().max()) > 0  # type: ignore[union-attr]
        return value.detach()

    far = float(loss(missed))
    assert far == pytest.approx((np.hypot(1.5, 0.5) - 1.0) ** 2, rel=0.05)
    assert float(loss(hit, missed)) == pytest.approx(0.5 * (float(loss(hit)) + far), rel=0.02)


# --- masks --------------------------------------------------------------------------------------


def ball(spacing: list[float]) -> MaskField:
    """A ball in a turned, perhaps anisotropic grid."""
    shape = np.ceil(40.0 / np.array(spacing)).astype(int)
    geometry = np.eye(4)
    geometry[:3, :3] = TURN * spacing
    geometry[:3, 3] = BALL_CENTER - geometry[:3, :3] @ ((shape - 1) / 2)
    k, j, i = np.meshgrid(*[np.arange(n) for n in shape[::-1]], indexing="ij")
    ras = np.stack([i, j, k], axis=-1) @ geometry[:3, :3].T + geometry[:3, 3]
    inside = np.linalg.norm(ras - BALL_CENTER, axis=-1) < BALL_RADIUS
    return MaskField.of(Volume(inside, geometry))


@pytest.mark.parametrize("spacing", [[1.0, 1.0, 1.0], [0.7, 0.9, 1.6]])
@pytest.mark.parametrize("radius", [7.0, 16.0])
def test_mask_loss_and_gradient_of_a_ball(spacing: list[float], radius: float) -> None:
    vertices = tensor(BALL_CENTER + radius * SPHERE.points).requires_grad_(True)
    loss = terms.mask_loss(vertices, ball(spacing))
    assert float(loss.detach()) == pytest.approx(abs(radius - BALL_RADIUS), abs=0.4 * max(spacing))
    (gradient,) = torch.autograd.grad(loss, vertices)
    along = len(SPHERE.points) * (gradient.numpy() * SPHERE.points).sum(axis=1)
    along *= np.sign(radius - BALL_RADIUS)
    assert along.mean() == pytest.approx(1.0, abs=0.08)
    assert along.min() > 0.6


def test_mask_gradient_matches_differences_where_the_distance_is_linear() -> None:
    array = np.zeros((40, 40, 40), dtype=bool)
    array[:, :, 5:35] = True
    geometry = np.eye(4)
    geometry[:3, :3] = TURN * [1.0, 2.0, 0.5]
    field = MaskField.of(Volume(array, geometry))
    # Beside the slab, three voxels and more from its border: U is linear there.
    points = np.array([[38.5, 20.0, 20.0], [1.3, 19.7, 21.3]]) @ geometry[:3, :3].T
    check_gradient(lambda p: terms.mask_loss(p, field), points, step=1e-4)


# --- Dirichlet energy ---------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2, 3])
def test_dirichlet_energy_is_the_trace(power: int) -> None:
    rng = np.random.default_rng(0)
    half = rng.standard_normal((12, 12)) * (rng.random((12, 12)) < 0.4)
    dense, latents = half + half.T, rng.standard_normal((12, 5))
    laplacian = tensor(dense).to_sparse()
    expected = np.trace(latents.T @ np.linalg.matrix_power(dense, power) @ latents)
    energy = terms.dirichlet_energy(tensor(latents), laplacian, power)
    assert float(energy) == pytest.approx(expected)
    check_gradient(lambda z: terms.dirichlet_energy(z, laplacian, power), latents, step=1e-5)
