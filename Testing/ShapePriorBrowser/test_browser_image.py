"""*Use the image* and *Find in image* in headless Chromium: one click, no annotation, a surface."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from chromium import HERE, Person, openedPage, servedExample, whyNot

from model_server.pose import place_of_step

pytestmark = pytest.mark.skipif(bool(reason := whyNot()), reason=reason or "-")

ARTIFACTS = HERE.parent / "artifacts" / "browser-image"


@pytest.fixture(scope="module")
def person() -> Iterator[Person]:
    with servedExample(ARTIFACTS, "watched_image.py") as address, openedPage(address) as page:
        yield Person(page, ARTIFACTS)


def state(person: Person) -> str:
    return person.page.get_by_role("status").inner_text()


def test_the_organ_is_found_by_one_click(person):
    assert state(person).endswith("Or press Find in image.")
    box = person.page.get_by_label("Use the image")
    assert box.is_checked()
    person.press("Find in image")
    person.until(lambda: state(person).startswith("Up to date"), "a surface")
    assert "image used" in state(person)
    person.page.wait_for_timeout(500)
    person.shot("1-found")
    scene = person.watch()
    assert scene["outlines"] == {}
    center = np.mean(scene["model"]["points"], axis=0)
    assert (
        np.abs(center - [-25.0, 10.0, 30.0]).max() < 6.0
    )  # of a hippocampus, which is no ellipsoid
    assert "Image: scan" in person.page.locator(".sp-table").inner_text()


def test_the_image_is_switched_off_and_undone(person):
    box = person.page.get_by_label("Use the image")
    box.click(force=True)
    person.until(lambda: not box.is_checked(), "the choice is taken")
    person.page.wait_for_timeout(500)
    person.press("Undo")
    person.until(box.is_checked, "undo")
    person.until(lambda: state(person).startswith("Up to date"), "the surface is back")


def test_a_search_step_by_step_is_shown_again_dragged_and_gone_on_with(person):
    page = person.page
    page.get_by_label("Organ prior").first.click(force=True)
    page.get_by_role("option", name="Hippocampus - statistical shape (DISSM)").click()
    person.until(lambda: not state(person).startswith("Fitting"), "the prior is taken")
    person.press("Find in image")
    chosen = page.get_by_label("Steps of the search").first
    person.until(lambda: chosen.count() == 1, "the steps")
    person.until(lambda: state(person).startswith("Up to date"), "a surface")
    person.press("Nudge")
    person.until(lambda: person.watch()["pose"] is not None, "the shape of the last step")
    page.wait_for_timeout(1000)
    person.shot("3-nudge")
    first, place = np.array(person.watch()["pose"]), person.picture("Red")
    # The untrained agent left the shape in the middle; there Slicer's handle to move it is.
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    for step in (-1, 0):
        page.mouse.move(x + step, y)
        page.wait_for_timeout(200)
    page.mouse.down()
    for step in (10, 20, 30):
        page.mouse.move(x - step, y)
        page.wait_for_timeout(100)
    page.mouse.up()
    person.until(lambda: not np.array_equal(person.watch()["pose"], first), "it is dragged")
    page.wait_for_timeout(500)
    person.shot("4-nudged")
    before = np.array(person.watch()["pose"])
    moved = (before - first)[:3, 3]
    assert moved[0] > 1.0, "to the patient's right, which is on the left"
    np.testing.assert_allclose(before[:3, :3], first[:3, :3], atol=1e-6)
    person.press("Refine from here")
    person.until(lambda: person.watch()["pose"] is None, "a search from there")
    person.until(lambda: state(person).startswith("Up to date"), "a surface")
    steps = json.loads(person.download("JSON").read_text())["steps"]
    np.testing.assert_allclose(place_of_step(steps[0]), before, atol=2e-3)


def test_a_prior_without_a_reader_says_why(person):
    person.page.get_by_label("Organ prior").first.click(force=True)
    person.page.get_by_role("option", name="Brainstem - quick and coarse (PCA)").click()
    button = person.page.get_by_role("button", name="Find in image", exact=True)
    person.until(button.is_disabled, "nobody reads brainstems")
    why = "This prior looks at no image"
    assert person.page.locator(f"[title^='{why}']").count() == 1
    person.shot("2-no-reader")
