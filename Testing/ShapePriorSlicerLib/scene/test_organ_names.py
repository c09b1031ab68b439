"""What the organ of a prior is called, for segments, files and new structures."""

from __future__ import annotations

import pytest
from ShapePriorSlicerLib.scene.parameters import Parameters, organOf


@pytest.mark.parametrize(
    ("prior", "organ"),
    [
        ("liver-dals", "liver"),
        ("left-kidney-pca", "left-kidney"),
        ("bean", "bean"),
        ("any-structure", "structure"),
    ],
)
def test_the_organ_of_a_prior(prior, organ):
    assert organOf(prior) == organ
    assert Parameters(prior=prior).organ == organ
    assert Parameters(prior=prior, side="left").organ == f"left {organ}"
