"""Who reads which organ, and what becomes of images of every kind."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from image_readers import (
    BRIGHT,
    DARK,
    FRAME,
    MODALITY,
    NAME,
    NETWORK,
    ellipsoid_image,
    read_by_brightness,
)

from model_server.errors import ShapePriorError
from model_server.evaluation.metrics import self_intersections
from model_server.geometry.curves import closed_spline
from model_server.geometry.icosphere import icosphere
from model_server.imaging.parts import parted, parts_of
from model_server.imaging.reader import ImageReader
from model_server.imaging.readers import (
    Looks,
    Readers,
    found_in,
    observed,
    reader_card,
    reader_cards,
)
from model_server.observations import Observations, PlanarOutline, PointSet, Volume
from model_server.priors.card import PriorCard, read_card
from model_server.priors.registry import ZOO_VARIABLE
from model_server.reading import Structure
from model_server.reconstruction import Surface

CENTER = np.array([-25.0, 10.0, 30.0])
RADII = np.array([7.0, 20.0, 8.0])
ANGLE = np.deg2rad(25.0)
TILTED = np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1.0]]
)


def prior_of(organ: str = "hippocampus", method: str = "pca") -> SimpleNamespace:
    return SimpleNamespace(card=PriorCard(f"{organ}-{method}", organ, method))


@pytest.fixture(scope="module")
def drawn(draw) -> Observations:
    """Three outlines of the ellipsoid."""
    found = []
    for axis in range(3):
        curve = draw(axis)
        found.append(PlanarOutline.from_loop(closed_spline(curve.points), curve.name))
    return Observations(outlines=tuple(found))


@pytest.fixture
def look(reader):
    """``look(image)``: of the reader of hippocampi."""
    looks = Looks(Readers("cpu"))
    return lambda image: looks.of(prior_of(), image)


def changed(image: Volume, change) -> Volume:
    return replace(image, array=change(image.array.astype(np.float32)))


# --- who reads ----------------------------------------------------------------------------------


def test_a_prior_is_read_by_the_reader_of_its_organ(reader):
    assert reader_cards()["hippocampus"].name == NAME
    assert reader_card(prior_of().card).name == NAME
    assert reader_card(prior_of("kidney").card) is None
    own = PriorCard("my-own", "hippocampus", "meshnet")
    assert reader_card(own) is own, "a reader reads with itself"


def test_a_reader_is_loaded_once_and_a_look_is_kept_for_its_image(reader, ellipsoid_scan):
    readers = Readers("cpu")
    assert readers.of(prior_of()) is readers.of(prior_of(method="dals"))
    assert readers.of(prior_of("kidney")) is None
    looks = Looks(readers)
    first = looks.of(prior_of(), ellipsoid_scan)
    assert looks.of(prior_of(method="atlas"), ellipsoid_scan) is first
    assert looks.of(prior_of(), replace(ellipsoid_scan)) is not first


def test_a_network_of_the_zoo_reads(reader_zoo, ellipsoid_scan, drawn, monkeypatch):
    monkeypatch.setenv(ZOO_VARIABLE, str(reader_zoo))
    network = Readers("cpu").of(prior_of())
    reading = network.read(ellipsoid_scan, CENTER, drawn, meshes=True)
    assert reading.distance.shape == FRAME.shape
    assert np.isfinite(reading.distance).all()
    assert (reading.doubt > 0).all()
    assert tuple(s.name for s in reading.structures) == NETWORK.structures
    assert reading.prompted


# --- images -------------------------------------------------------------------------------------

USED = {
    "as it is": lambda: ellipsoid_image(CENTER, RADII),
    "oblique": lambda: ellipsoid_image(CENTER, RADII, axes=TILTED),
    "left-handed": lambda: ellipsoid_image(CENTER, RADII, axes=np.diag([1.0, -1.0, 1.0])),
    "8 mm slices": lambda: ellipsoid_image(CENTER, RADII, (1.0, 8.0, 1.0), dtype="<f4"),
    "unsigned": lambda: ellipsoid_image(CENTER, RADII, dtype="<u2"),
}


@pytest.mark.parametrize("kind", USED)
def test_volumes_of_any_geometry_are_heard(look, drawn, kind):
    image = USED[kind]()
    found = observed(prior_of(), look(image), image.name, drawn)
    assert not any("is left out" in told for told in found.left_out)
    points = drawn.spanning_points()
    assert np.abs(found.reading.distance_at(points)).mean() < 1.2


LEFT_OUT = {
    "zeros": (lambda v: 0.0 * v, "shows no hippocampus"),
    "not a number": (lambda v: v * np.nan, "shows no hippocampus"),
    "inverted": (lambda v: BRIGHT + DARK - v, "does not look like"),
    "one slice": (lambda v: v[len(v) // 2 :][:1], "it "),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_images_of_another_kind_are_left_out_in_one_sentence(look, ellipsoid_scan, drawn, kind):
    change, why = LEFT_OUT[kind]
    image = changed(ellipsoid_scan, change)
    found = observed(prior_of(), look(image), image.name, drawn)
    assert found.reading is None
    (told,) = found.left_out
    assert told.startswith(f"The image '{image.name}' is left out: ")
    assert why in told
    assert found.outlines == drawn.outlines


def test_an_image_of_another_place_is_left_out(look, drawn):
    away = ellipsoid_image(CENTER + 300.0, RADII)
    found = observed(prior_of(), look(away), away.name, drawn)
    assert found.reading is None
    assert "does not reach" in found.left_out[0]
    beside = ellipsoid_image(CENTER + np.array([0.0, 0.0, 9.0]), RADII)
    found = observed(prior_of(), look(beside), beside.name, drawn)
    assert found.reading is None
    assert " mm from the hippocampus that is seen in it" in found.left_out[0]


def test_without_a_reader_the_fit_goes_on_and_says_so(drawn):
    found = observed(prior_of("kidney"), None, "scan", drawn)
    assert found.reading is None
    assert found.left_out == (
        "The image 'scan' is left out: there is no image reader of the organ 'kidney'.",
    )
    with pytest.raises(ShapePriorError, check=lambda e: e.code == "no-reader"):
        observed(prior_of("kidney"), None, "scan", Observations())


def test_a_prior_that_needs_an_image_says_why_it_has_none(look, ellipsoid_scan, drawn):
    dark = changed(ellipsoid_scan, lambda v: 0.0 * v)
    with pytest.raises(ShapePriorError, check=lambda e: e.code == "unknown-image") as refused:
        observed(prior_of(method="meshnet"), look(dark), dark.name, drawn)
    assert MODALITY in str(refused.value)


def test_previews_ask_no_network(look, ellipsoid_scan, drawn, monkeypatch):
    reads = []

    def counted(*arguments, **more):
        reads.append(1)
        return read_by_brightness(*arguments, **more)

    monkeypatch.setattr(ImageReader, "read", counted)
    seeing = look(ellipsoid_scan)
    assert observed(prior_of(), seeing, "scan", drawn, quick=True) is drawn
    assert reads == []
    whole = observed(prior_of(), seeing, "scan", drawn)
    asked = len(reads)
    moved = Observations(outlines=drawn.outlines, inside=(PointSet(CENTER[None]),))
    preview = observed(prior_of(), seeing, "scan", moved, quick=True)
    assert len(reads) == asked
    assert preview.reading is whole.reading
    # Nor is the same asked twice.
    assert observed(prior_of(), seeing, "scan", drawn).reading is whole.reading
    assert len(reads) == asked


def test_outlines_that_contradict_the_image_are_named(look, ellipsoid_scan, drawn):
    sagittal, coronal, axial = drawn.outlines
    off = PlanarOutline.from_loop(coronal.loops[0] + [4.5, 0.0, 0.0], "coronal")
    given = Observations(outlines=(sagittal, off, axial))
    found = observed(prior_of(), look(ellipsoid_scan), "scan", given)
    assert found.reading is not None
    (told,) = found.left_out
    assert told.startswith("coronal lies up to ")
    assert 3.0 < float(told.split()[4]) < 6.0
    assert "mm RAS" in told


# --- without annotations --------------------------------------------------------------------------


def test_an_organ_is_found_in_a_larger_image(look):
    wide = ellipsoid_image(CENTER, RADII)
    array = np.pad(wide.array, ((0, 40), (0, 0), (50, 0)), constant_values=int(DARK))
    matrix = wide.ijk_to_ras.copy()
    matrix[0, 3] -= 50.0
    shares: list[float] = []
    image = Volume(array, matrix, "wide")
    found = found_in(prior_of(), look(image), shares.append)
    surface = found.reading.structures[0].surface
    assert np.abs(surface.points.mean(axis=0) - CENTER).max() < 1.0
    assert surface.volume() / 1000.0 == pytest.approx(4.7, rel=0.15)
    assert shares[-1] == 1.0
    assert sorted(shares) == shares


@pytest.mark.parametrize(("change", "code"), [("zeros", "not-found"), ("inverted", None)])
def test_nothing_is_found_where_nothing_is(look, ellipsoid_scan, change, code):
    image = changed(ellipsoid_scan, LEFT_OUT[change][0])
    with pytest.raises(ShapePriorError) as refused:
        found_in(prior_of(), look(image))
    assert refused.value.code in ([code] if code else ["not-found", "unknown-image"])
    assert refused.value.remedy


def test_nobody_finds_an_organ_without_a_reader(reader):
    with pytest.raises(ShapePriorError, check=lambda e: e.code == "no-reader") as refused:
        found_in(prior_of("kidney"), None)
    assert "hippocampus" in refused.value.remedy


# --- parts ----------------------------------------------------------------------------------------


def ball(x: float) -> Surface:
    sphere = icosphere(4)
    return Surface(10.0 * sphere.points + [x, 0.0, 0.0], sphere.triangles)


def test_parts_share_no_space():
    left, right = ball(-7.0), ball(7.0)
    first, second = parted([Structure("left", left), Structure("right", right)], 0.5)
    assert (first.name, second.name) == ("left", "right")
    joined = Surface(
        np.concatenate([first.surface.points, second.surface.points]),
        np.concatenate(
            [first.surface.triangles, second.surface.triangles + len(first.surface.points)]
        ).astype(np.int32),
    )
    assert self_intersections(joined) == 0.0
    assert first.surface.points[:, 0].max() < 0.0 < second.surface.points[:, 0].min()
    lens = np.pi * 3.0**2 * (3.0 * 10.0 - 3.0) / 3.0
    assert first.surface.volume() == pytest.approx(left.volume() - lens, rel=0.02)


def test_a_part_within_another_is_left_out():
    small = icosphere(4)
    inner = Surface(0.5 * small.points, small.triangles)
    found = parted([Structure("all", ball(0.0)), Structure("inner", inner)], 0.5)
    assert [s.name for s in found] == ["all"]


def test_every_vertex_is_told_the_part_along_which_it_lies():
    left, right = ball(-7.0), ball(7.0)
    off = 0.5 * np.random.default_rng(0).standard_normal(left.points.shape)
    # Of two parts that overlap what lies outside the other is the organ's surface.
    kept = left.points[:, 0] < -2.0
    points = np.concatenate(
        [(left.points + off)[kept], (right.points - off)[right.points[:, 0] > 2.0]]
    )
    whole = Surface(points, np.zeros((0, 3), dtype=np.int32))
    structures = [Structure("all", whole), Structure("left", left), Structure("right", right)]
    found = parts_of(whole, structures)
    assert found is not None
    assert found.tolist() == [1] * kept.sum() + [2] * (len(points) - kept.sum())
    assert parts_of(whole, structures[:1]) is None


def test_the_card_of_the_tests_reader_is_whole(reader_zoo):
    assert read_card(reader_zoo / NAME).hyperparameters["modality"] == MODALITY
