"""Colors are told apart also by those who see no red, no green, or no blue."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from ShapePriorSlicerLib.scene.palette import INSIDE_COLOR, OUTSIDE_COLOR, PAIRS
from ShapePriorSlicerLib.scene.parameters import Parameters
from ShapePriorSlicerLib.scene.structure import COLORS_ATTRIBUTE, OUTLINE, POINTS_CLASS, Structure
from skimage.color import deltaE_ciede2000, rgb2lab

# What dichromats see, in linear RGB: Machado, Oliveira and Fernandes, "A Physiologically-based
# Model for Simulation of Color Vision Deficiency" (2009), severity 1.
SIGHTS = {
    "all colors": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# Of CIEDE2000: 2 is just seen side by side; the yellow and orange-brown of before were 17 apart.
FAR, APART = 25.0, 12.0


def seen(color, sight):
    """CIELAB of a color as somebody sees it."""
    color = np.asarray(color)
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(SIGHTS[sight]) @ linear, 0.0, 1.0)
    curved = 1.055 * linear ** (1 / 2.4) - 0.055
    return rgb2lab(np.where(linear <= 0.0031308, linear * 12.92, curved))


def apart(one, other, sight):
    return float(deltaE_ciede2000(seen(one, sight), seen(other, sight)))


@pytest.mark.parametrize("sight", SIGHTS)
def test_an_outline_differs_from_the_surface_that_follows_it(sight):
    for pair in PAIRS:
        assert apart(pair.outline, pair.surface, sight) > FAR


@pytest.mark.parametrize("sight", SIGHTS)
def test_surfaces_of_several_structures_differ(sight):
    for one, other in combinations(PAIRS, 2):
        assert apart(one.surface, other.surface, sight) > APART


@pytest.mark.parametrize("sight", SIGHTS)
def test_inside_differs_from_outside(sight):
    assert apart(INSIDE_COLOR, OUTSIDE_COLOR, sight) > APART


def test_every_structure_has_a_pair_of_its_own(application):
    """As long as there are; a deleted one's goes to the next."""
    scene = application.scene
    made = [Structure.create(scene, f"organ {i}", Parameters()) for i in range(len(PAIRS))]
    assert [s.colors for s in made] == list(PAIRS)
    made[1].delete()
    assert Structure.create(scene, "another", Parameters()).colors == PAIRS[1]
    assert Structure.create(scene, "one more", Parameters()).colors == PAIRS[0]


@pytest.mark.parametrize("damaged", [None, "", "x", "-1", "700"])
def test_a_structure_without_a_pair_has_one(application, damaged):
    structure = Structure.create(application.scene, "organ", Parameters())
    structure.node.SetAttribute(COLORS_ATTRIBUTE, damaged)
    assert structure.colors in PAIRS


def test_a_curve_of_the_scene_is_dressed_as_an_outline(application):
    structure = Structure.create(application.scene, "organ", Parameters())
    curve = application.scene.AddNewNodeByClass("vtkMRMLMarkupsClosedCurveNode", "C")
    curve.CreateDefaultDisplayNodes()
    structure.add(OUTLINE, curve)
    display = curve.GetDisplayNode()
    assert display.GetSelectedColor() == pytest.approx(structure.colors.outline)
    assert not display.GetPropertiesLabelVisibility()
    assert not display.GetPointLabelsVisibility()
    points = application.scene.AddNewNodeByClass(POINTS_CLASS, "F")
    structure.add("inside", points)
    assert points.GetDisplayNode().GetSelectedColor() == pytest.approx(INSIDE_COLOR)
