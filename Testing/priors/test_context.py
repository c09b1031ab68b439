"""What is told beside a fit: parts by name, templates by number, the nearest training shapes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from model_server.errors import ShapePriorError
from model_server.geometry.icosphere import icosphere
from model_server.jobs.report import as_json, plausibility, report
from model_server.pose import Pose
from model_server.priors.card import PriorCard
from model_server.priors.context import with_context
from model_server.priors.registry import load_prior
from model_server.reconstruction import Likeness, Provenance, Reconstruction
from model_server.service.sessions import template_of

ATLAS = "hippocampus-atlas"
CARD = PriorCard("thing-atlas", "thing", "atlas", hyperparameters={"part_names": {"2": "tail"}})


class KnowsItsTraining:
    """A prior of three shapes, one number each."""

    card = CARD

    def nearest_training(self, latents, count):
        gaps = {name: abs(latents[0] - at) for name, at in (("a", 0.0), ("b", 2.0), ("c", 9.0))}
        return sorted(gaps.items(), key=lambda gap: gap[1])[:count]


class KnowsNothing:
    card = CARD


@pytest.fixture(scope="module")
def atlas():
    return load_prior(ATLAS, "cpu")


def found(**changes) -> Reconstruction:
    sphere = icosphere(1)
    parts = np.where(sphere.points[:, 1] > 0, 1, 2).astype(np.uint8)
    return replace(
        Reconstruction(
            sphere, sphere.points, Pose(np.zeros(3), 1.0), np.array([1.9]), "final", (),
            Provenance("thing-atlas", "1", "cpu"), parts=parts,
        ),
        **changes,
    )  # fmt: skip


def test_the_nearest_training_shapes_come_first():
    told = with_context(KnowsItsTraining(), found()).nearest_training
    assert [n.name for n in told] == ["b", "a", "c"]
    assert told[0].distance == pytest.approx(0.1)


def test_latents_of_every_vertex_count_by_their_mean():
    told = with_context(KnowsItsTraining(), found(latents=np.array([[0.0], [4.0]])))
    assert told.nearest_training[0] == Likeness("b", 0.0)


def test_only_what_is_known_is_told():
    assert with_context(KnowsItsTraining(), found(stage="global")).nearest_training == ()
    assert with_context(KnowsNothing(), found()).nearest_training == ()
    assert with_context(KnowsNothing(), found()).part_names == {2: "tail"}
    assert with_context(KnowsNothing(), found(parts=None)).part_names == {}


def test_the_report_names_the_nearest_shapes_and_the_parts():
    told = with_context(KnowsItsTraining(), found(template=3))
    content = json.loads(as_json(report(told)))
    assert content["template"] == 3
    about = content["plausibility"]
    assert about["distance_to_nearest_training_shape"] == 0.1
    assert about["nearest_training_shapes"][0] == {"name": "b", "distance": 0.1}
    assert about["meaning"] == plausibility(told)[0]
    assert "0.10" in about["meaning"]
    first, second = content["parts"]
    assert (first["number"], first["name"], second["number"], second["name"]) == (1, "", 2, "tail")
    assert first["area_cm2"] + second["area_cm2"] == pytest.approx(content["area_cm2"], abs=1e-3)


def test_a_report_without_them_says_nothing():
    content = report(found(parts=None))
    assert content["plausibility"] is None
    assert content["parts"] is None
    assert plausibility(found()) == []


# --- the bundled atlas --------------------------------------------------------------------------


def test_a_training_shape_is_its_own_nearest(atlas):
    for index in (0, 100):
        (nearest, second) = atlas.nearest_training(atlas.training_latents[index], 2)
        assert nearest == (atlas.card.splits["training"][index], 0.0)
        assert 0.3 < second[1] < 1.5


def test_unusual_shapes_are_farther_from_all(atlas):
    """Along the widest axis: the figure grows, in the end beyond that of a typical pair."""
    axis = atlas.latent_root[:, 0]
    far = [atlas.nearest_training(atlas.latent_mean + k * axis, 1)[0][1] for k in (0, 5, 10)]
    assert far[0] < 0.65 < far[1] < 1.0 < far[2]


def test_every_template_can_be_asked_for(atlas):
    templates = [template_of(atlas, k) for k in range(atlas.template_count)]
    assert [t.number for t in templates] == list(range(5))
    assert {t.count for t in templates} == {5}
    volumes = [t.surface.volume() for t in templates]
    assert len(set(volumes)) == 5
    assert max(volumes) < 1.3 * min(volumes)
    for template in templates:
        assert np.array_equal(template.coordinates, template.surface.points)
        assert set(np.unique(template.parts)) == {1, 2}
        assert template.part_names == {1: "anterior", 2: "posterior"}


@pytest.mark.parametrize(("name", "number"), [(ATLAS, 5), (ATLAS, -1), ("hippocampus-pca", 1)])
def test_a_number_beyond_the_templates_is_one_sentence(atlas, name, number):
    prior = atlas if name == ATLAS else load_prior(name, "cpu")
    with pytest.raises(ShapePriorError, match="has no template") as caught:
        template_of(prior, number)
    assert caught.value.code == "no-template"


def test_a_baseline_has_no_template():
    with pytest.raises(ShapePriorError, match="has no template"):
        template_of(load_prior("rbf"))


def test_fits_may_use_axes_that_training_shapes_hardly_span(atlas):
    wide, learned = (np.linalg.norm(r, axis=0) for r in (atlas.latent_root, atlas.learned_root))
    least = wide.min()
    assert least > 3.0 * learned.min()
    assert np.allclose(wide, np.maximum(learned, least))
    assert (wide > 1.5 * learned).any()
    assert (wide == learned).any()
    # Sampled shapes keep to the learned axes.
    spread = atlas.sample(400).std(axis=0)
    assert np.linalg.norm(spread) == pytest.approx(np.linalg.norm(atlas.learned_root), rel=0.05)
