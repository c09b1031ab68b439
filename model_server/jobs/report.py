"""What a fit found, as plain numbers for ``report.json``; every name says its unit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from model_server import __version__
from model_server.geometry.next_plane import next_plane, slices_across, slices_of
from model_server.jobs.image_use import ImageUse
from model_server.observations import Observations
from model_server.reconstruction import Reconstruction

REPORT_VERSION = 1
VIEWS = ("sagittal", "coronal", "axial")  # across R, A and S, or nearly
PLAUSIBILITY = (
    "As unlike the nearest training shape as a typical pair of training shapes: {distance:.2f}."
)


def report(
    reconstruction: Reconstruction,
    other_seconds: Mapping[str, float] | None = None,
    observations: Observations = Observations(),
    image: ImageUse | None = None,
) -> dict[str, Any]:
    """The report of a reconstruction.

    Args:
        reconstruction: RAS mm.
        other_seconds: stages outside the fit, e.g. loading the prior.
        observations: what it was fitted to: where no outline has to be suggested any more, and the
            volume whose slices there are.
        image: what became of the one that was given as evidence.
    """
    surface, made = reconstruction.surface, reconstruction.provenance
    low, high = surface.points.min(axis=0), surface.points.max(axis=0)
    area = surface.area()
    return _finite(
        {
            "report_version": REPORT_VERSION,
            "program_version": __version__,
            "prior": made.prior,
            "prior_version": made.version,
            "device": made.device,
            "stage": reconstruction.stage,
            "pose": reconstruction.pose.as_dict(),
            "residuals": [
                {
                    "name": r.name,
                    "kind": r.kind,
                    "mean_mm": round(r.mean_mm, 4),
                    "max_mm": round(r.max_mm, 4),
                }
                for r in reconstruction.residuals
            ],
            "image": image and image.told(reconstruction, (other_seconds or {}).get("read image")),
            "volume_ml": round(surface.volume() / 1000.0, 4),
            "area_mm2": round(area, 2),
            "area_cm2": round(area / 100.0, 4),
            "bounds_ras_mm": [[round(float(v), 3) for v in corner] for corner in (low, high)],
            "vertices": len(surface.points),
            "triangles": len(surface.triangles),
            "seconds": {k: round(v, 4) for k, v in made.seconds.items()},
            "other_seconds": {k: round(v, 4) for k, v in (other_seconds or {}).items()},
            "iterations": dict(made.iterations),
            "uncertainty_mm": _spread(reconstruction),
            "next_slice": _next_slice(reconstruction, observations),
            "template": reconstruction.template,
            "parts": _parts(reconstruction),
            "plausibility": _plausibility(reconstruction),
            "warnings": list(reconstruction.warnings),
        }
    )


def _spread(reconstruction: Reconstruction) -> dict[str, Any] | None:
    """Standard deviation along the normal over the surface, and where it is largest."""
    values = reconstruction.uncertainty_mm
    if values is None or not len(values):
        return None
    worst = reconstruction.surface.points[int(np.argmax(values))]
    return {
        "mean": round(float(values.mean()), 4),
        "median": round(float(np.median(values)), 4),
        "percentile_95": round(float(np.percentile(values, 95)), 4),
        "max": round(float(values.max()), 4),
        "max_at_ras_mm": [round(float(v), 2) for v in worst],
    }


def _next_slice(
    reconstruction: Reconstruction, observations: Observations
) -> dict[str, Any] | None:
    """Where one more outline would tell most: a slice of the volume, if there is one."""
    surface = reconstruction.surface
    volume = observations.image or observations.label_map
    if volume is None:
        slices = tuple(slices_across(surface, normal) for normal in np.eye(3))
    else:
        slices = slices_of(volume)
    drawn = [(o.origin, o.normal) for o in observations.outlines]
    place = next_plane(reconstruction, slices, drawn)
    if place is None:
        return None
    return {
        "name": VIEWS[int(np.abs(place.normal).argmax())],
        "origin_ras_mm": [round(float(v), 3) for v in place.origin],
        "normal": [round(float(v), 6) for v in place.normal],
        "share_of_variance_it_takes_away": round(place.share, 4),
        "uncertainty_along_it_mm": round(place.spread_mm, 4),
    }


def plausibility(reconstruction: Reconstruction) -> list[str]:
    """How unlike the training shapes a surface is, in a sentence; none where nothing is known."""
    nearest = reconstruction.nearest_training[:1]
    return [PLAUSIBILITY.format(distance=n.distance) for n in nearest]


def _parts(reconstruction: Reconstruction) -> list[dict[str, Any]] | None:
    """Number, name and share of the surface of each part."""
    if reconstruction.parts is None:
        return None
    a, b, c = reconstruction.surface.corners().transpose(1, 0, 2)
    area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
    # A triangle across the border belongs to both parts, by its corners.
    corners = reconstruction.parts[reconstruction.surface.triangles]
    return [
        {
            "number": int(number),
            "name": reconstruction.part_names.get(int(number), ""),
            "area_cm2": round(float(area @ (corners == number).mean(axis=1)) / 100.0, 4),
        }
        for number in np.unique(reconstruction.parts)
    ]


def _plausibility(reconstruction: Reconstruction) -> dict[str, Any] | None:
    """How unlike the training shapes a surface is: a figure, what it means, the nearest ones."""
    nearest = reconstruction.nearest_training
    if not nearest:
        return None
    return {
        "distance_to_nearest_training_shape": round(nearest[0].distance, 3),
        "meaning": plausibility(reconstruction)[0],
        "nearest_training_shapes": [
            {"name": n.name, "distance": round(n.distance, 3)} for n in nearest
        ],
    }


def _finite(value: Any) -> Any:
    """The same with numbers that JSON does not know (NaN, infinity) as None."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_json(content: Mapping[str, Any]) -> str:
    """The report as text for a file."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
