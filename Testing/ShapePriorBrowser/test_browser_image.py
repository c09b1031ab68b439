"""*Use the image* and *Find in image* in headless Chromium: one click, no annotation, a surface."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from chromium import HERE, Person, openedPage, servedExample, whyNot

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


def test_a_prior_without_a_reader_says_why(person):
    person.page.get_by_label("Organ prior").first.click(force=True)
    person.page.get_by_role("option", name="Spleen - quick and coarse (PCA)").click()
    button = person.page.get_by_role("button", name="Find in image", exact=True)
    person.until(button.is_disabled, "nobody reads spleens")
    why = "This prior looks at no image"
    assert person.page.locator(f"[title^='{why}']").count() == 1
    person.shot("2-no-reader")
