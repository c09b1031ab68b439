"""A surface as a shaded picture, from a view that suits it.

It is rendered by a small depth buffer in numpy: VTK needs graphics libraries that servers lack, and
matplotlib's own 3-D axes neither shade smoothly nor hide what lies behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_server.reconstruction import Surface

Array = NDArray[np.float64]
PIXELS = 1200  # of the rendering, along its longer side, before it is halved against jaggies
FRAGMENTS = 100_000  # pixels that are looked at in one go
SIZE_STEP = 3  # pixels; triangles whose boxes differ by less are filled together
TISSUE = np.array([0.87, 0.63, 0.52])


@dataclass(frozen=True)
class Camera:
    """An orthographic view.

    Attributes:
        axes: (3, 3) rows: right and up on the picture, and toward the viewer, RAS.
        center: (3,) RAS mm, in the middle of the picture.
        pixel_mm: size of a pixel.
        shape: (rows, columns).
    """

    axes: Array
    center: Array
    pixel_mm: float
    shape: tuple[int, int]

    def project(self, points: Array) -> Array:
        """(N, 3) RAS mm -> column, row and height toward the viewer (mm)."""
        view = (points - self.center) @ self.axes.T
        rows, columns = self.shape
        column = view[:, 0] / self.pixel_mm + 0.5 * (columns - 1)
        row = 0.5 * (rows - 1) - view[:, 1] / self.pixel_mm
        return np.stack([column, row, view[:, 2]], axis=1)


def camera_for(surface: Surface, elevation_deg: float = 24.0) -> Camera:
    """A view from slightly above, from the side that shows most of the surface."""
    corners = surface.corners()
    areas = 0.5 * np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    tilt = np.deg2rad(elevation_deg)
    # From the front half: so that the patient's left is never mistaken.
    angles = np.deg2rad(np.arange(20.0, 161.0, 5.0))
    views = np.stack(
        [
            np.cos(tilt) * np.cos(angles),
            np.cos(tilt) * np.sin(angles),
            np.full_like(angles, np.sin(tilt)),
        ],
        axis=1,
    )
    toward = views[int(np.abs(areas @ views.T).sum(axis=0).argmax())]
    right = np.cross([0.0, 0.0, 1.0], toward)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(toward, right), toward])
    view = surface.points @ axes.T
    low, high = view.min(axis=0), view.max(axis=0)
    extent = (high - low)[:2]
    pixel = float(extent.max()) / (0.9 * PIXELS)
    shape = tuple(int(n) for n in np.ceil(extent[::-1] / pixel) + 0.1 * PIXELS)
    return Camera(axes, 0.5 * (low + high) @ axes, pixel, (shape[0], shape[1]))


def render(surface: Surface, camera: Camera) -> tuple[Array, Array]:
    """Smoothly shaded picture (rows, columns, 4) and heights (rows, columns), -inf where empty.

    Each pixel keeps the highest triangle, with its normal interpolated from the vertices.
    """
    rows, columns = camera.shape
    depth = np.full(rows * columns, -np.inf)
    normal = np.zeros((rows * columns, 3))
    places = camera.project(surface.points)[surface.triangles]
    normals = (surface.vertex_normals() @ camera.axes.T)[surface.triangles]
    for triangle, pixel, weights in _fragments(places, rows, columns):
        height = (weights * places[triangle, :, 2]).sum(axis=1)
        # Of fragments on one pixel the last one stays: the highest.
        order = np.argsort(height)
        order = order[height[order] > depth[pixel[order]]]
        depth[pixel[order]] = height[order]
        found = np.einsum("fk,fkc->fc", weights[order], normals[triangle[order]])
        normal[pixel[order]] = found
    picture = _shade(normal.reshape(rows, columns, 3), np.isfinite(depth).reshape(rows, columns))
    return picture, depth.reshape(rows, columns)


def _fragments(
    places: Array, rows: int, columns: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], Array]]:
    """The pixels that triangles cover, in batches of triangles of like size.

    Args:
        places: (F, 3, 3) column, row and height of each corner.
        rows, columns: of the picture.

    Yields:
        triangle (N,), pixel (N,) counted along the rows, barycentric weights (N, 3).
    """
    limit = np.array([columns, rows]) - 1
    low = np.maximum(np.floor(places[..., :2].min(axis=1)), 0).astype(int)
    high = np.minimum(np.ceil(places[..., :2].max(axis=1)), limit).astype(int)
    (ax, ay), (bx, by), (cx, cy) = places[..., :2].transpose(1, 2, 0)
    doubled = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    sides = (high - low + 1).max(axis=1)
    usable = (high >= low).all(axis=1) & (np.abs(doubled) > 1e-9)
    sizes = np.where(usable, -(-sides // SIZE_STEP) * SIZE_STEP, 0)
    for size in np.unique(sizes[usable]):
        chosen = np.flatnonzero(sizes == size)
        dy, dx = (d.ravel() for d in np.indices((size, size)))
        batch = max(1, FRAGMENTS // len(dx))
        for first in range(0, len(chosen), batch):
            t = chosen[first : first + batch, None]
            x, y = low[t, 0] + dx, low[t, 1] + dy
            b = ((x - ax[t]) * (cy[t] - ay[t]) - (cx[t] - ax[t]) * (y - ay[t])) / doubled[t]
            c = ((bx[t] - ax[t]) * (y - ay[t]) - (x - ax[t]) * (by[t] - ay[t])) / doubled[t]
            weights = np.stack([1.0 - b - c, b, c], axis=-1)
            seen = (weights.min(axis=-1) >= -1e-6) & (x <= high[t, 0]) & (y <= high[t, 1])
            which, _ = np.nonzero(seen)
            yield t[which, 0], (y * columns + x)[seen], weights[seen]


def _shade(normal: Array, covered: NDArray[np.bool_]) -> Array:
    """Lambert's law for a key and a fill light, some ambient light, a soft highlight."""
    unit = normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    # Seen from behind (an open surface, a fold) the other side is lit.
    unit = np.where(unit[..., 2:] < 0, -unit, unit)
    key = np.array([-0.45, 0.65, 0.61]) / np.linalg.norm([-0.45, 0.65, 0.61])
    fill = np.array([0.8, -0.1, 0.6]) / np.linalg.norm([0.8, -0.1, 0.6])
    light = 0.30 + 0.66 * np.clip(unit @ key, 0, 1) + 0.16 * np.clip(unit @ fill, 0, 1)
    half = key + np.array([0.0, 0.0, 1.0])
    glow = 0.16 * np.clip(unit @ (half / np.linalg.norm(half)), 0, 1) ** 24
    color = np.clip(TISSUE * light[..., None] + glow[..., None], 0, 1)
    return np.concatenate([color, covered[..., None].astype(np.float64)], axis=-1)


def halved(picture: Array) -> Array:
    """Two by two pixels made one; colors weighted by coverage."""
    rows, columns = (n // 2 * 2 for n in picture.shape[:2])
    parts = picture[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, 4)
    cover = parts[..., 3:]
    total = cover.sum(axis=(1, 3))
    color = (parts[..., :3] * cover).sum(axis=(1, 3)) / np.maximum(total, 1e-9)
    return np.concatenate([color, total / 4.0], axis=-1)
