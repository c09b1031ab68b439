"""Surfaces and templates as messages, see ``service.wire``.

Torch-free, shared by server and client, described in Resources/Documentation/wire.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.pose import Pose, place_of_step
from model_server.reconstruction import (
    JointSpread,
    Likeness,
    Provenance,
    Reconstruction,
    Residual,
    Surface,
    Template,
)
from model_server.service.wire import Message, bad_message, field, shaped

# --- templates ----------------------------------------------------------------------------------


def template_map(template: Template) -> Message:
    """A template as a map."""
    surface, parts = template.surface, template.parts
    return {
        "points": surface.points.astype(np.float32),
        "triangles": surface.triangles.astype(np.int32),
        "template_coordinates": template.coordinates.astype(np.float32),
        "template": int(template.number),
        "templates": int(template.count),
        "parts": None if parts is None else parts.astype(np.uint8),
        "part_names": _names_map(template.part_names),
    }


def read_template(message: Mapping[str, Any]) -> Template:
    """The inverse of ``template_map``.

    Raises:
        ShapePriorError: (bad-message) not of this form.
    """
    points = shaped(message, "points", (None, 3)).astype(np.float64)
    triangles = shaped(message, "triangles", (None, 3)).astype(np.int32)
    coordinates = shaped(message, "template_coordinates", (len(points), 3)).astype(np.float64)
    _require_inside(triangles, len(points))
    return Template(
        Surface(points, triangles),
        coordinates,
        int(field(message, "template", int)) if "template" in message else 0,
        int(field(message, "templates", int)) if "templates" in message else 1,
        _read_parts(message, len(points)),
        _read_names(message),
    )


def _names_map(names: Mapping[int, str]) -> Message:
    return {str(number): str(name) for number, name in names.items()}


def _read_names(message: Mapping[str, Any]) -> dict[int, str]:
    """Names of parts by their numbers; none from an older server."""
    names = field(message, "part_names", dict) if "part_names" in message else {}
    if not all(k.isascii() and k.isdigit() and isinstance(n, str) for k, n in names.items()):
        raise bad_message("The names of the parts are no words by number.")
    return {int(number): name for number, name in names.items()}


def _read_parts(message: Mapping[str, Any], count: int) -> NDArray[np.uint8] | None:
    if message.get("parts") is None:
        return None
    return shaped(message, "parts", (count,)).astype(np.uint8)


def _require_inside(indices: NDArray[np.int32], count: int) -> None:
    """Raise where triangles, or chosen vertices, are not of so many points."""
    if indices.size and not 0 <= indices.min() <= indices.max() < count:
        raise bad_message("A surface's triangles do not fit its points.")


# --- reconstructions ----------------------------------------------------------------------------


def reconstruction_map(
    reconstruction: Reconstruction, before: Reconstruction | None = None
) -> Message:
    """A reconstruction as a map; latents and names of training cases stay on the server.

    Args:
        reconstruction: RAS mm.
        before: what the receiver was sent last; triangles and template coordinates that are still
            the same travel as null, so that of a moving surface only its points do.
    """
    surface, made, pose = reconstruction.surface, reconstruction.provenance, reconstruction.pose
    spread, places = reconstruction.uncertainty_mm, reconstruction.template_coordinates
    kept = before is not None and _same(before.surface.triangles, surface.triangles)
    stay = before is not None and kept and _same(before.template_coordinates, places)
    return {
        "stage": reconstruction.stage,
        "points": surface.points.astype(np.float32),
        "triangles": None if kept else surface.triangles.astype(np.int32),
        "template_coordinates": None if stay else places.astype(np.float32),
        "uncertainty_mm": None if spread is None else spread.astype(np.float32),
        "template": int(reconstruction.template),
        "parts": None if reconstruction.parts is None else reconstruction.parts.astype(np.uint8),
        "part_names": _names_map(reconstruction.part_names),
        "joint_spread": _joint_map(reconstruction.joint_spread),
        "nearest_training": [float(n.distance) for n in reconstruction.nearest_training],
        "pose": {
            "translation": pose.translation,
            "scale": float(pose.scale),
            "rotation": pose.rotation,
            "mirrored": bool(pose.mirrored),
        },
        "residuals": [
            {"name": r.name, "kind": r.kind, "mean_mm": r.mean_mm, "max_mm": r.max_mm}
            for r in reconstruction.residuals
        ],
        "prior": made.prior,
        "prior_version": made.version,
        "device": made.device,
        "seconds": {k: float(v) for k, v in made.seconds.items()},
        "iterations": {k: int(v) for k, v in made.iterations.items()},
        "warnings": list(reconstruction.warnings),
        "path": [dict(step) for step in reconstruction.path],
    }


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    # Compared, not hashed: that takes a tenth of the time, and cannot be mistaken.
    return one is other or np.array_equal(one, other)


def read_reconstruction(
    message: Mapping[str, Any], before: Reconstruction | None = None
) -> Reconstruction:
    """The inverse of ``reconstruction_map``, with empty latents.

    Args:
        message: from the server.
        before: the one that came last; its very arrays become those of one that comes without.

    Raises:
        ShapePriorError: (bad-message) not of this form.
    """
    points = shaped(message, "points", (None, 3)).astype(np.float64)
    triangles = _read_triangles(message, before)
    _require_inside(triangles, len(points))
    spread = None
    if message.get("uncertainty_mm") is not None:
        spread = shaped(message, "uncertainty_mm", (len(points),)).astype(np.float64)
    return Reconstruction(
        surface=Surface(points, triangles),
        template_coordinates=_read_coordinates(message, before, len(points)),
        pose=_read_pose(field(message, "pose", dict)),
        latents=np.empty(0),
        stage=str(field(message, "stage", str)),
        residuals=tuple(_read_residual(r) for r in field(message, "residuals", list)),
        provenance=Provenance(
            str(field(message, "prior", str)),
            str(message.get("prior_version", "")),
            str(message.get("device", "")),
            dict(field(message, "seconds", dict)),
            dict(field(message, "iterations", dict)),
        ),
        uncertainty_mm=spread,
        warnings=tuple(str(w) for w in field(message, "warnings", list)),
        template=int(field(message, "template", int)) if "template" in message else 0,
        parts=_read_parts(message, len(points)),
        part_names=_read_names(message),
        nearest_training=_read_nearest(message),
        joint_spread=_read_joint(message, len(points)),
        path=_read_path(message),
    )


def _read_triangles(message: Mapping[str, Any], before: Reconstruction | None) -> NDArray[np.int32]:
    if message.get("triangles") is not None:
        return shaped(message, "triangles", (None, 3)).astype(np.int32)
    if before is None:
        raise bad_message("A surface came without triangles.")
    return before.surface.triangles


def _read_coordinates(
    message: Mapping[str, Any], before: Reconstruction | None, count: int
) -> NDArray[np.float64]:
    if message.get("template_coordinates") is not None:
        return shaped(message, "template_coordinates", (count, 3)).astype(np.float64)
    if before is None or len(before.template_coordinates) != count:
        raise bad_message("A surface came without template coordinates.")
    return before.template_coordinates


def _joint_map(joint: JointSpread | None) -> Message | None:
    if joint is None:
        return None
    return {
        "vertices": joint.vertices.astype(np.int32),
        "root": joint.root.astype(np.float32),
        "noise_mm": float(joint.noise_mm),
    }


def _read_joint(message: Mapping[str, Any], count: int) -> JointSpread | None:
    """How errors of so many vertices go together; None from an older server."""
    found = message.get("joint_spread")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise bad_message("A joint spread is no map.")
    vertices = shaped(found, "vertices", (None,)).astype(np.int32)
    root = shaped(found, "root", (len(vertices), None)).astype(np.float64)
    _require_inside(vertices, count)
    noise = float(field(found, "noise_mm", (float, int)))
    if not noise > 0.0 or not np.isfinite(root).all():
        raise bad_message("A joint spread is not of numbers that it can be of.")
    return JointSpread(vertices, root, noise)


def _read_pose(message: Mapping[str, Any]) -> Pose:
    return Pose(
        shaped(message, "translation", (3,)).astype(np.float64),
        float(field(message, "scale", (float, int))),
        shaped(message, "rotation", (3, 3)).astype(np.float64),
        bool(field(message, "mirrored", bool)),
    )


def _read_nearest(message: Mapping[str, Any]) -> tuple[Likeness, ...]:
    """Distances to the nearest training shapes; none from an older server."""
    found = field(message, "nearest_training", list) if "nearest_training" in message else []
    if not all(type(d) in (float, int) and d >= 0.0 for d in found):
        raise bad_message("The distances to training shapes are no numbers.")
    return tuple(Likeness("", float(d)) for d in found)


def _read_path(message: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """States of the agent that found it; none from an older server."""
    steps = field(message, "path", list) if "path" in message else []
    for step in steps:
        if not isinstance(step, dict):
            raise bad_message("A step is no map.")
        field(step, "stage", str), field(step, "step", int)
        place_of_step(step)
    return tuple(steps)


def _read_residual(message: object) -> Residual:
    if not isinstance(message, dict):
        raise bad_message("A residual is no map.")
    return Residual(
        str(field(message, "name", str)),
        str(field(message, "kind", str)),
        float(field(message, "mean_mm", (float, int))),
        float(field(message, "max_mm", (float, int))),
    )
