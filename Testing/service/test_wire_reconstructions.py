"""Surfaces, templates and errors go over the socket as they are; others are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_priors import reconstruction
from refusals import refused

from model_server.errors import ShapePriorError
from model_server.geometry.icosphere import icosphere
from model_server.reconstruction import JointSpread, Likeness, Surface, Template
from model_server.service.wire import error_map, pack, unpack
from model_server.service.wire_surfaces import (
    read_reconstruction,
    read_template,
    reconstruction_map,
    template_map,
)


def test_reconstructions_travel():
    sent = reconstruction(2.0)
    found = read_reconstruction(unpack(pack(reconstruction_map(sent))))
    np.testing.assert_array_equal(found.surface.points, sent.surface.points)
    np.testing.assert_array_equal(found.surface.triangles, sent.surface.triangles)
    np.testing.assert_array_equal(found.template_coordinates, sent.template_coordinates)
    np.testing.assert_array_equal(found.uncertainty_mm, sent.uncertainty_mm)
    np.testing.assert_array_equal(found.pose.linear(), sent.pose.linear())
    np.testing.assert_array_equal(found.pose.translation, sent.pose.translation)
    assert found.residuals == sent.residuals
    assert found.provenance == sent.provenance
    assert (found.stage, found.warnings) == (sent.stage, sent.warnings)


def test_parts_templates_and_likeness_travel_without_names_of_cases():
    sent = replace(
        reconstruction(),
        template=3,
        parts=np.array([1, 2, 2, 1], np.uint8),
        part_names={1: "anterior", 2: "posterior"},
        nearest_training=(Likeness("patient_007", 0.75), Likeness("patient_009", 1.5)),
    )
    data = pack(reconstruction_map(sent))
    assert b"patient" not in data
    found = read_reconstruction(unpack(data))
    assert found.template == 3
    np.testing.assert_array_equal(found.parts, sent.parts)
    assert found.part_names == sent.part_names
    assert found.nearest_training == (Likeness("", 0.75), Likeness("", 1.5))


STEP = {
    "stage": "rotation",
    "step": 2,
    "translation_mm": [-25.0, 10.0, 30.0],
    "scale_mm": [14.0, 15.0, 13.0],
    "rotation": np.eye(3).tolist(),
    "latent": [],
}


def test_the_way_of_a_search_travels():
    sent = replace(reconstruction(), path=(STEP, {**STEP, "step": 3}))
    assert read_reconstruction(unpack(pack(reconstruction_map(sent)))).path == sent.path
    message = reconstruction_map(sent)
    del message["path"]  # of an older server
    assert read_reconstruction(message).path == ()
    for wrong in ("turn", {**STEP, "stage": 1}, {**STEP, "scale_mm": [1.0]}, {"stage": "x"}):
        with pytest.raises(ShapePriorError):
            read_reconstruction({**message, "path": [wrong]})


def test_templates_travel():
    surface = reconstruction().surface
    sent = Template(
        surface, surface.points, 4, 5, np.array([1, 2, 2, 0], np.uint8), {1: "head", 2: "tail"}
    )
    found = read_template(unpack(pack(template_map(sent))))
    np.testing.assert_array_equal(found.surface.points, surface.points)
    np.testing.assert_array_equal(found.surface.triangles, surface.triangles)
    np.testing.assert_array_equal(found.coordinates, surface.points)
    np.testing.assert_array_equal(found.parts, sent.parts)
    assert (found.number, found.count, found.part_names) == (4, 5, sent.part_names)


def test_answers_of_an_older_server_are_read():
    new = ("template", "templates", "parts", "part_names", "nearest_training")
    older = {k: v for k, v in reconstruction_map(reconstruction()).items() if k not in new}
    found = read_reconstruction(unpack(pack(older)))
    assert (found.template, found.parts, found.part_names) == (0, None, {})
    assert found.nearest_training == ()
    surface = reconstruction().surface
    message = template_map(Template(surface, surface.points))
    template = read_template({k: v for k, v in message.items() if k not in new})
    assert (template.number, template.count, template.parts) == (0, 1, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"template": "first"},
        {"templates": None},
        {"parts": np.zeros(3, np.uint8)},
        {"part_names": ["anterior"]},
        {"triangles": np.full((4, 3), 9, np.int32)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_templates_of_another_form_are_refused(changes: dict):
    surface = reconstruction().surface
    with refused():
        read_template(template_map(Template(surface, surface.points)) | changes)


def test_triangles_and_template_coordinates_may_be_those_of_before():
    before, sent = reconstruction(), reconstruction(2.0)
    message = unpack(pack(reconstruction_map(sent, before)))
    assert message["triangles"] is None
    assert message["template_coordinates"] is None
    found = read_reconstruction(message, before)
    assert found.surface.triangles is before.surface.triangles
    assert found.template_coordinates is before.template_coordinates
    np.testing.assert_array_equal(found.surface.points, sent.surface.points)
    with refused():
        read_reconstruction(message)
    with refused():
        read_reconstruction(message | {"triangles": sent.surface.triangles})


def test_template_coordinates_travel_anew_where_they_moved():
    before = reconstruction()
    sent = replace(before, template_coordinates=before.template_coordinates[::-1])
    message = unpack(pack(reconstruction_map(sent, before)))
    assert message["triangles"] is None
    found = read_reconstruction(message, before)
    np.testing.assert_array_equal(found.template_coordinates, sent.template_coordinates)


def test_a_surface_that_moved_is_little_more_than_its_points():
    sphere = icosphere(4)
    before = replace(reconstruction(), surface=sphere, template_coordinates=sphere.points)
    before = replace(before, uncertainty_mm=None)
    moved = replace(before, surface=Surface(1.1 * sphere.points, sphere.triangles.copy()))
    assert len(sphere.points) == 2562
    assert len(pack(reconstruction_map(moved, before))) < 4 * sphere.points.size + 2000


@pytest.mark.parametrize(
    "changes",
    [
        {"points": np.zeros((3, 3))},  # fewer than the triangles ask for
        {"points": np.zeros(12)},
        {"triangles": np.zeros((4, 4), np.int32)},
        {"triangles": np.full((4, 3), -1, np.int32)},
        {"template_coordinates": np.zeros((3, 3))},
        {"uncertainty_mm": np.zeros(5)},
        {"uncertainty_mm": [1.0]},
        {"pose": {}},
        {"residuals": [{"name": "a"}]},
        {"residuals": [{"name": "a", "kind": "b", "mean_mm": "1", "max_mm": 1.0}]},
        {"residuals": [None]},
        {"seconds": []},
        {"warnings": "text"},
        {"stage": 1},
        {"parts": np.zeros(3, np.uint8)},
        {"part_names": {"one": "anterior"}},
        {"part_names": {"1": 5}},
        {"nearest_training": ["near"]},
        {"nearest_training": [-1.0]},
        {"nearest_training": {}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_reconstructions_of_another_form_are_refused(changes: dict):
    with refused():
        read_reconstruction(reconstruction_map(reconstruction()) | changes)


def test_an_error_says_how_to_mend_it():
    found = error_map(ShapePriorError("What.", "How.", "code"), 3)
    assert found == {
        "type": "error", "id": 3, "code": "code", "message": "What.", "remedy": "How."
    }  # fmt: skip


# --- how errors go together ---------------------------------------------------------------------


def joined(**changes):
    joint = JointSpread(np.array([2, 0], np.int32), np.array([[1.0, 0.5], [0.25, 2.0]]), 0.25)
    return replace(reconstruction(), joint_spread=replace(joint, **changes))


def test_how_errors_go_together_travels():
    found = read_reconstruction(unpack(pack(reconstruction_map(joined()))))
    assert found.joint_spread.vertices.tolist() == [2, 0]
    assert found.joint_spread.root.tolist() == [[1.0, 0.5], [0.25, 2.0]]
    assert found.joint_spread.noise_mm == 0.25
    older = reconstruction_map(joined())
    del older["joint_spread"]
    assert read_reconstruction(older).joint_spread is None


@pytest.mark.parametrize(
    "changes",
    [
        {"vertices": np.array([2, 4], np.int32)},
        {"vertices": np.array([0], np.int32)},
        {"root": np.array([[1.0, np.nan], [0.0, 1.0]])},
        {"root": np.zeros(2)},
        {"noise_mm": 0.0},
    ],
)
def test_errors_that_cannot_go_together_are_refused(changes):
    with refused():
        read_reconstruction(reconstruction_map(joined(**changes)))
