"""Redo the pictures of Resources/Documentation/tutorial.md: the whole job, by mouse, in Chromium.

    make tutorial

Needs what the browser's tests need (Testing/ShapePriorBrowser/chromium.py says what is missing).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "Testing" / "ShapePriorBrowser"))

from chromium import VIEWS, Person, openedPage, servedExample, whyNot  # noqa: E402

PICTURES = REPOSITORY / "Resources" / "Documentation" / "tutorial"
WIDTH = 1000
QUALITY = 45
TURN = 0.35  # of the 3D view's width: about 70 degrees
STEPS_BACK = 2  # of the wheel: from the side it is longer than the view


def main() -> int:
    """Work through the tutorial and keep a picture of each step."""
    reason = whyNot()
    if reason:
        print(f"The pictures cannot be made here: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        shots = Path(folder)
        with servedExample(shots) as address, openedPage(address) as page:
            _work(Person(page, shots))
        PICTURES.mkdir(parents=True, exist_ok=True)
        for shot in sorted(shots.glob("step-*.png")):
            _keep(shot, PICTURES / f"{shot.stem}.webp")
    return 0


def _work(person: Person) -> None:
    person.page.wait_for_timeout(1500)
    person.shot("step-1-open")
    _drawHalf(person, "axial")
    for name in ("coronal", "sagittal"):
        person.draw(name)
    person.untilDone()
    _turn(person)
    person.shot("step-3-surface")
    _drag(person)
    _color(person, "Uncertainty (mm)")
    person.shot("step-5-uncertainty")
    _color(person, "Correspondence")
    person.shot("step-6-correspondence")
    person.page.get_by_role("link", name="STL", exact=True).scroll_into_view_if_needed()
    person.page.wait_for_timeout(300)
    person.shot("step-7-export")
    person.download("STL")


def _drawHalf(person: Person, name: str) -> None:
    """Draw an outline, with a picture taken in the middle of it."""
    person.scroll(name)
    person.press(VIEWS[name][0])
    person.page.wait_for_selector(".sp-hint")
    places = person.pixels(name, person.example[name])
    for index, (x, y) in enumerate(places):
        if index == len(places) * 2 // 3:
            person.page.wait_for_timeout(800)
            person.shot("step-2-draw")
        person.page.mouse.move(x, y)
        person.page.mouse.click(x, y)
    person.page.mouse.click(*places[-1], button="right")
    person.until(lambda: not person.page.locator(".sp-hint").count(), "drawing ends")


def _turn(person: Person) -> None:
    """Look at the organ from the side: from the front a long one is seen end on."""
    box = person.picture("ThreeD")
    # From a corner, where there is no point that would be dragged.
    y, left = box["y"] + 0.1 * box["height"], box["x"] + 0.05 * box["width"]
    person.page.mouse.move(left, y)
    person.page.mouse.down()
    for share in np.linspace(0.0, TURN, 12):
        person.page.mouse.move(left + share * box["width"], y + 0.3 * share * box["height"])
        person.page.wait_for_timeout(200)
    person.page.wait_for_timeout(1000)
    person.page.mouse.up()
    for _ in range(STEPS_BACK):
        person.page.mouse.wheel(0, 100)
        person.page.wait_for_timeout(300)
    person.page.wait_for_timeout(1500)


def _drag(person: Person) -> None:
    """Drag a point outwards, with a picture while it is held."""
    before = person.untilDone()
    points = np.array(before["outlines"]["Red"])
    away = points[8] - points.mean(axis=0)
    path = points[8] + np.linspace(0.0, 4.0, 12)[:, None] * away / np.linalg.norm(away)
    pixels = person.pixels("axial", path)
    person.page.mouse.move(*pixels[0])
    person.page.mouse.down()
    for x, y in pixels[1:]:
        person.page.mouse.move(x, y)
        person.page.wait_for_timeout(50)
    person.page.wait_for_timeout(1500)
    person.shot("step-4-drag")
    person.page.mouse.up()
    person.page.wait_for_timeout(200)
    person.untilDone()


def _color(person: Person, name: str) -> None:
    person.page.get_by_label("Color").first.click(force=True)
    person.page.get_by_role("option", name=name).click()
    person.page.wait_for_timeout(2500)


def _keep(shot: Path, place: Path) -> None:
    """Scaled and compressed: pictures should not make the clone large."""
    picture = Image.open(shot).convert("RGB")
    height = round(picture.height * WIDTH / picture.width)
    small = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    small.save(place, quality=QUALITY, method=6)


if __name__ == "__main__":
    sys.exit(main())
