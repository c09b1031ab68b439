"""The template sphere grown inside one shape, and carried from it to the others.

A sphere that is wrapped around a horseshoe, such as the mandible, spans its opening. Grown inside,
as the part within a distance that rises, it has no opening to span, at the cost of a few folded
triangles where branches part.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from skimage.graph import MCP_Geometric

from model_server.geometry.grid import Grid
from model_server.geometry.icosphere import icosphere
from model_server.geometry.level_set import zero_level
from model_server.geometry.sampling import sample_surface
from model_server.interrupts import worker_pool
from model_server.reconstruction import Surface
from model_server.training.wrapping import signed_distance

Array = NDArray[np.float64]
GRID = 80
NEAR = 0.1  # a distance from which on shapes are no more alike, of the unit sphere's radius
MIDDLE = 0.15  # how much farther from the ends than the middle a start may be
ROUNDS = 40  # in which a sphere grows
ROUND_STEPS = 25
FINER_STEPS = 60
LAST_STEPS = 20
SAMPLES = 8000  # of a surface
PULL = 0.5  # share of the way to the mean of the samples that are nearest
LAST_PULL = 0.3
EVENING = 0.5  # share of the way to the middle of the triangles around
# As far away as that is a sample whose normal is across. It keeps the sides of thin parts apart,
# but winds a sphere that is not yet smooth around twice.
TURN = 0.1
LAST_TURN = 0.03
SPREADS = (0.4, 0.3, 0.2, 0.15, 0.1, 0.07)  # of the motion that carries a sphere to another shape
CARRYING_STEPS = 10  # with each of them


def grow_all(surfaces: Sequence[Surface], level: int, workers: int = 1) -> Array:
    """(N, V, 3) vertices of ``icosphere(level)`` on surfaces of one organ inside the unit sphere.

    They grow inside the most central shape, from which they are carried to the others.

    Args:
        surfaces: canonical frame.
        level: 4 or more leave thin ends some vertices.
        workers: processes.
    """
    start = grown(central_field(surfaces), level)
    if workers == 1:
        return np.stack([carried(start, s, level) for s in surfaces])
    with worker_pool(workers) as pool:
        return np.stack(list(pool.map(partial(carried, start, level=level), surfaces)))


def central_field(surfaces: Sequence[Surface]) -> Array:
    """(GRID, GRID, GRID) signed distance of the shape most alike all others that has no handle."""
    grid = _grid()
    fields = np.stack([signed_distance(s, grid).astype(np.float32) for s in surfaces])
    near = np.clip(fields, -NEAR, NEAR)
    order = ((near - near.mean(axis=0)) ** 2).sum(axis=(1, 2, 3)).argsort()
    whole = (i for i in order if not _handles(zero_level(fields[i], _start(), grid.spacing)))
    return np.asarray(fields[next(whole, order[0])], dtype=np.float64)


def grown(field: Array, level: int) -> Array:
    """(V, 3) vertices of ``icosphere(level)``, 3 or more, grown inside a shape until they cover it.

    Args:
        field: (GRID, GRID, GRID) signed distances in the unit sphere's cube, without handles.
    """
    grid, start, coarse = _grid(), _start(), 3
    middle, way = _from_the_middle(field)
    depth = -field[middle]
    points = start + grid.spacing * np.array(middle) + 0.9 * depth * icosphere(coarse).points
    for reach in np.linspace(depth, way.max() + 2 * grid.spacing, ROUNDS):
        part = zero_level(np.maximum(field, way - reach), start, grid.spacing)
        points = spread(points, part, coarse, ROUND_STEPS)
    whole = zero_level(field, start, grid.spacing)
    for finer in range(coarse + 1, level + 1):
        points = spread(_halved(points, finer - 1), whole, finer, FINER_STEPS)
    return points


def spread(
    points: Array,
    surface: Surface,
    level: int,
    steps: int,
    pull: float = PULL,
    turn: float = 0.0,
) -> Array:
    """(V, 3) an ``icosphere(level)`` spread evenly over a surface near it.

    As ``wrapping.cover``, but vertices go towards the larger of the triangles around them, which
    also fills long ends, while the mean of the neighbors keeps out of them.
    """
    target = _Target(surface, turn)
    triangles = icosphere(level).triangles
    for _ in range(steps):
        normals = Surface(points, triangles).vertex_normals()
        count, pulled = target.pulls(points, normals)
        points = points + pull * pulled / np.maximum(count, 1.0)
        normals = Surface(points, triangles).vertex_normals()
        even = _middle_of_triangles(points, level) - points
        points = points + EVENING * (even - (even * normals).sum(axis=1, keepdims=True) * normals)
        at = target.nearest(points, normals)
        across = target.normals[at]
        gap = ((target.points[at] - points) * across).sum(axis=1, keepdims=True)
        points = points + 0.5 * gap * across
    return points


def carried(points: Array, surface: Surface, level: int) -> Array:
    """(V, 3) a grown ``icosphere(level)`` moved to another surface, first as a whole, then ever
    more locally; what is near moves alike, so that parts find their like."""
    target = _Target(surface, TURN)
    triangles = icosphere(level).triangles
    gaps = cdist(points, points, "sqeuclidean").astype(np.float32)
    share = len(points) / SAMPLES
    for width in SPREADS:
        near = np.exp(-gaps / (2.0 * width**2))
        for _ in range(CARRYING_STEPS):
            normals = Surface(points, triangles).vertex_normals()
            count, pulled = target.pulls(points, normals)
            moves = target.points[target.nearest(points, normals)] - points + share * pulled
            points = points + (near @ moves) / (near @ (1.0 + share * count))
    return spread(points, surface, level, LAST_STEPS, LAST_PULL, LAST_TURN)


class _Target:
    """Samples of a surface that are looked up by place and normal, so that a vertex of one side of
    a thin part finds that side.

    Args:
        surface: closed.
        turn: as far away as that is a sample whose normal is across.
    """

    def __init__(self, surface: Surface, turn: float) -> None:
        self.points = sample_surface(surface, SAMPLES, np.random.default_rng(0))
        self.normals = surface.vertex_normals()[cKDTree(surface.points).query(self.points)[1]]
        self._turn = turn
        self._features = self._of(self.points, self.normals)
        self._tree = cKDTree(self._features)

    def nearest(self, points: Array, normals: Array) -> NDArray[np.int64]:
        """(V,) the sample nearest to each vertex."""
        return np.asarray(self._tree.query(self._of(points, normals))[1])

    def pulls(self, points: Array, normals: Array) -> tuple[Array, Array]:
        """(V, 1) to how many samples a vertex is the nearest, and (V, 3) the sum of the ways to
        them."""
        nearest = cKDTree(self._of(points, normals)).query(self._features)[1]
        count = np.bincount(nearest, minlength=len(points))[:, None].astype(np.float64)
        total = [np.bincount(nearest, axis, len(points)) for axis in self.points.T]
        return count, np.stack(total, axis=1) - count * points

    def _of(self, points: Array, normals: Array) -> Array:
        return np.concatenate([points, self._turn * normals], axis=1)


def _grid() -> Grid:
    return Grid(GRID, 1.0)


def _start() -> Array:
    return np.full(3, -_grid().reach)


def _handles(surface: Surface) -> bool:
    return 2 * len(surface.points) - len(surface.triangles) != 4


def _from_the_middle(field: Array) -> tuple[tuple[int, ...], Array]:
    """A deep node halfway between a shape's ends, and how far all nodes are from it through the
    shape; those outside as far as the nearest inside."""
    inside = ndimage.label(field < 0)[0]
    inside = inside == 1 + np.argmax(np.bincount(inside.ravel())[1:])

    def ways(node: tuple[int, ...]) -> Array:
        found = MCP_Geometric(np.where(inside, 1.0, -1.0)).find_costs([node])[0]
        return np.asarray(_grid().spacing * found)

    def farthest(way: Array) -> tuple[int, ...]:
        return _node(np.where(inside, way, -1.0).argmax(), way)

    one = farthest(ways(_node(inside.argmax(), inside)))
    from_one = ways(one)
    ends = np.where(inside, np.maximum(from_one, ways(farthest(from_one))), np.inf)
    midway = ends <= (1.0 + MIDDLE) * ends.min()
    middle = _node(np.where(midway, field, np.inf).argmin(), field)
    nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return middle, ndimage.gaussian_filter(ways(middle)[tuple(nearest)], 1.0)


def _node(flat: np.intp, values: NDArray[np.generic]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, values.shape))


@lru_cache(maxsize=8)
def _around(level: int) -> sparse.csr_matrix:
    """(V, F) one where a vertex is a corner of a triangle."""
    triangles = icosphere(level).triangles
    columns = np.repeat(np.arange(len(triangles)), 3)
    return sparse.csr_matrix((np.ones(len(columns)), (triangles.ravel(), columns)))


def _middle_of_triangles(points: Array, level: int) -> Array:
    """(V, 3) means, by area, of the middles of the triangles around each vertex."""
    corners = Surface(points, icosphere(level).triangles).corners()
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(across, axis=1)[:, None] + 1e-12
    around = _around(level)
    return np.asarray((around @ (area * corners.mean(axis=1))) / (around @ area))


def _halved(points: Array, level: int) -> Array:
    """(V, 3) vertices of ``icosphere(level)`` -> those of the next level, between them."""
    found = np.empty_like(icosphere(level + 1).points)
    found[: len(points)] = points
    a, b, c = icosphere(level).triangles.T
    middles = icosphere(level + 1).triangles[3::4].T  # of every triangle
    for middle, one, other in zip(middles, (a, b, c), (b, c, a), strict=True):
        found[middle] = 0.5 * (points[one] + points[other])
    return found
