"""A control point dragged in the browser: until the surface follows, and whether views freeze.

    python Testing/benchmarks/browser_drawing.py [--drags 20]

Headless Chromium at the bundled case, three outlines drawn by mouse, then control points of one
dragged by mouse events in the page. Times are taken in the page: from the mouse event until a
picture is loaded in which the cut of a new surface has moved, in the view of another outline. How
long the server's event loop was held is measured in the server.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from service_common import Check, parser, report, tell

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ShapePriorBrowser"))

from chromium import VIEWS, Person, openedPage, servedExample, whyNot

BARS = {"preview": 250.0, "final": 2.0, "frozen": 100.0}
ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts" / "browser_drawing"
DRAGGED, WATCHED = "Red", ("Green", "Yellow")  # an outline and the others' views
POINTS = 5  # of the outline that are dragged
JUMP_MM, LEFT_MM = 3.0, 0.6
WOBBLE_SECONDS = 1.5  # of moving on and on, for the gaps between pictures
MOVE_SECONDS = 0.016
NOISE = 2  # pixels that may differ between pictures of the same
PREVIEW_SECONDS = 10.0  # without one: it counts as never
# Pictures as they are loaded; of the compared views with the number of pixels, of a ninth of them,
# that differ from the picture before. JPEG noise differs by less than the threshold, also when a
# picture comes again in better quality.
RECORDER = """
({ timed, compared }) => {
  const record = { frames: {}, moved: 0, up: 0, surface: 0, done: 0 };
  window.record = record;
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const imageOf = (view) => document.querySelector(`[data-view=${view}] img`);
  function pixelsOf(image) {
    const [width, height] = [image.naturalWidth, image.naturalHeight].map((n) => Math.floor(n / 3));
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  }
  function changes(pixels, last) {
    let count = 0;
    for (let i = 0; i < pixels.length; i += 4)
      count += Math.abs(pixels[i] - last[i]) + Math.abs(pixels[i + 2] - last[i + 2]) > 60;
    return count;
  }
  for (const view of timed) {
    const frames = (record.frames[view] = []);
    imageOf(view).addEventListener("load", () => frames.push([performance.now(), 0]));
  }
  for (const view of compared) {
    const frames = (record.frames[view] = []);
    let last = pixelsOf(imageOf(view));
    imageOf(view).addEventListener("load", () => {
      const time = performance.now();
      const pixels = pixelsOf(imageOf(view));
      frames.push([time, pixels.length === last.length ? changes(pixels, last) : 0]);
      last = pixels;
    });
  }
  document.addEventListener("pointermove", () => { record.moved = performance.now(); }, true);
  document.addEventListener("pointerup", () => { record.up = performance.now(); }, true);
  // Volume and area are told in the moment in which a surface is put into the scene.
  const figures = document.querySelector(".sp-figures");
  new MutationObserver(() => { record.surface = performance.now(); })
    .observe(figures, { characterData: true, childList: true, subtree: true });
  const status = document.querySelector("[role=status]");
  let text = "";
  new MutationObserver(() => {
    const now = status.textContent;
    if (now !== text && now.includes("Up to date")) record.done = performance.now();
    text = now;
  }).observe(status, { characterData: true, childList: true, subtree: true });
}
"""


@dataclass(frozen=True)
class Drag:
    """One drag as the page saw it.

    Attributes:
        preview: ms from the mouse event to the first picture of a moved surface.
        final: seconds from the release to the picture of the final surface.
        gaps: ms between pictures of the dragged view while the mouse moved.
    """

    preview: float
    final: float
    gaps: list[float]


class Dragging:
    """A person who drags control points of the axial outline.

    Args:
        person: at the page, three outlines drawn.
    """

    def __init__(self, person: Person) -> None:
        self._person, self._page = person, person.page
        views = {"timed": [DRAGGED, "ThreeD"], "compared": list(WATCHED)}
        self._page.evaluate(RECORDER, views)

    def drag(self, index: int) -> Drag:
        """Drag one control point outward, to and fro, and let it go."""
        outline = np.array(self._person.watch()["outlines"][DRAGGED])
        place, center = outline[self._nearOthers(outline)[index % POINTS]], outline.mean(axis=0)
        away = (place - center) / np.linalg.norm(place - center)
        # Let go a little outside or inside: another surface, but still an organ's.
        rest = LEFT_MM * (-1.0) ** index
        steps = np.array([0.0, JUMP_MM, rest])
        start, end, left = self._person.pixels("axial", place + steps[:, None] * away)
        self._page.mouse.move(*start)
        self._page.mouse.down()
        self._page.wait_for_timeout(200)
        self._page.mouse.move(*end)
        preview = self._preview()
        gaps = self._wobble(end)
        self._page.mouse.move(*left)
        self._page.mouse.up()
        return Drag(preview, self._final(), gaps)

    def _nearOthers(self, outline: np.ndarray) -> np.ndarray:
        """Control points nearest to the other outlines' planes: there their views must show it."""
        across, along = self._person.example["coronal"], self._person.example["sagittal"]
        off = np.abs(outline[:, [1, 0]] - [across[0, 1], along[0, 0]]).min(axis=1)
        return np.argsort(off)

    def _frames(self, view: str, since: float) -> list[tuple[float, int]]:
        found = self._page.evaluate("(view) => window.record.frames[view]", view)
        return [(time, changed) for time, changed in found if time > since]

    def _time(self, name: str) -> float:
        return float(self._page.evaluate("(name) => window.record[name]", name))

    def _preview(self) -> float:
        """Until the cut of a new surface is seen to have moved in a view of another outline."""
        moved = self._time("moved")
        began = time.perf_counter()
        while time.perf_counter() - began < PREVIEW_SECONDS:
            surface = self._time("surface")
            frames = [f for view in WATCHED for f in self._frames(view, max(moved, surface))]
            seen = [at for at, changed in frames if changed > NOISE]
            if surface > moved and seen:
                return min(seen) - moved
            self._page.wait_for_timeout(20)
        return float("inf")

    def _wobble(self, middle: np.ndarray) -> list[float]:
        """Gaps between the pictures of the dragged view while the mouse moves on."""
        began = self._page.evaluate("() => performance.now()")
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < WOBBLE_SECONDS:
            # On a circle: where a mouse rests for a moment, no new picture is due.
            x, y = middle + 6.0 * np.array([np.cos(8.0 * elapsed), np.sin(8.0 * elapsed)])
            self._page.mouse.move(x, y)
            time.sleep(MOVE_SECONDS)
        times = [at for at, _ in self._frames(DRAGGED, began)]
        return np.diff(times).tolist()

    def _final(self) -> float:
        """Until the picture of the final surface in 3D."""
        self._person.until(lambda: self._time("done") > self._time("up"), "the final surface")
        done = self._time("done")
        frames = self._person.until(lambda: self._frames("ThreeD", done), "its picture")
        return (frames[0][0] - self._time("up")) / 1000.0


def drags(person: Person, count: int) -> Iterator[Drag]:
    """Drag one point after the other."""
    dragging = Dragging(person)
    for index in range(count):
        yield dragging.drag(index)


def measured(arguments: argparse.Namespace) -> tuple[list[Drag], list[float]]:
    """All drags, and the pauses of the server's event loop in ms."""
    found: list[Drag] = []
    with servedExample(ARTIFACTS) as address, openedPage(address) as page:
        person = Person(page, ARTIFACTS)
        for name in VIEWS:
            person.draw(name)
        person.untilDone()
        page.wait_for_timeout(1000)
        person.watch()  # pauses count from here
        for drag in drags(person, arguments.drags):
            found.append(drag)
            tell(len(found), arguments.drags, f"{drag.preview:.0f} ms, {drag.final:.2f} s")
        return found, [1000.0 * pause for pause in person.watch()["pauses"]]


def main() -> None:
    """Drag, and compare with the bars."""
    arguments = parser(__doc__)
    arguments.add_argument("--drags", type=int, default=20, help="control points dragged")
    chosen = arguments.parse_args()
    if why := whyNot():
        sys.exit(why)
    found, pauses = measured(chosen)
    gaps = [gap for drag in found for gap in drag.gaps]
    previews, finals = [d.preview for d in found], [d.final for d in found]
    checks = [
        Check("drag to preview seen, median ms", np.median(previews), "≤", BARS["preview"]),
        Check("release to final surface seen, median s", np.median(finals), "≤", BARS["final"]),
        Check("release to final surface seen, largest s", max(finals), "≤", BARS["final"]),
        Check("longest pause of the server's event loop, ms", max(pauses), "≤", BARS["frozen"]),
        Check("longest gap between pictures while dragging, ms", max(gaps), "≤", BARS["frozen"]),
    ]
    data = {
        "drags": [vars(drag) for drag in found],
        "preview_largest_ms": max(previews),
        "gap_median_ms": np.median(gaps),
        "gap_99_percent_ms": np.percentile(gaps, 99),
        "pause_99_percent_ms": np.percentile(pauses, 99),
        "pauses_over_50_ms": sum(pause > 50.0 for pause in pauses),
    }
    report(chosen, "browser_drawing", f"bundled case, {chosen.drags} drags", checks, data)


if __name__ == "__main__":
    main()
