"""A person at the browser: draws, drags and clicks controls, by real mouse events in the page."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_server.io.markups import read_markups
from model_server.io.volumes import read_volume
from model_server.jobs.example import example_case
from model_server.pictures.slices import viewing_axes

Array = NDArray[np.float64]
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FLAGS = [
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = {"width": 1600, "height": 950}
# View of the page by the example's outline -> its name, its axis, the way its offset goes.
VIEWS = {"axial": ("Red", 2, 1.0), "coronal": ("Green", 1, 1.0), "sagittal": ("Yellow", 0, -1.0)}
SECONDS = 60.0


def whyNot() -> str:
    """Why the page cannot be driven here, or nothing."""
    try:
        import playwright.sync_api
        import trame_slicer  # noqa: F401
        from ShapePriorBrowser.rendering import canRender
    except ImportError as error:
        return f"{error.name} is not installed: python Resources/set_up.py test"
    del playwright
    if browserFile() is None:
        return "no Chromium: apt-get install chromium, or set SHAPE_PRIOR_CHROMIUM"
    if not canRender():
        return "no OpenGL: apt-get install libegl1 libgl1-mesa-dri"
    return ""


def browserFile() -> str | None:
    """The Chromium to drive."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = [os.environ.get("SHAPE_PRIOR_CHROMIUM"), *(shutil.which(name) for name in names)]
    return next((path for path in found if path), None)


@contextmanager
def servedExample(artifacts: Path, script: str = "watched.py") -> Iterator[str]:
    """The bundled case served by a process of its own; gives the address with its token.

    What the process has to say is kept in ``artifacts``/server.log; ``script`` is what it runs.
    """
    artifacts.mkdir(parents=True, exist_ok=True)
    shared = (ROOT / "Testing", ROOT / "Testing" / "ShapePriorSlicerLib")
    path = os.pathsep.join(map(str, (ROOT / "ShapePriorSlicer", ROOT, *shared)))
    with (artifacts / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / script)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, f"the server ended with code {process.wait()}"
        yield address
    finally:
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def openedPage(address: str) -> Iterator[Any]:
    """A Chromium page at an address."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browserFile(), args=FLAGS)
        page = browser.new_page(viewport=SIZE, accept_downloads=True)
        page.goto(address)
        yield page
        browser.close()


@dataclass
class Person:
    """Who works at a page.

    Attributes:
        page: of playwright.
        artifacts: folder of the screenshots.
        clicks: on controls so far; drawing in the views is none.
    """

    page: Any
    artifacts: Path
    clicks: int = 0
    example: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.artifacts.mkdir(parents=True, exist_ok=True)
        case = example_case()
        for path in case.outlines:
            for markup in read_markups(path):
                self.example[markup.name] = markup.points
        volume = read_volume(case.image)
        last = np.array(volume.array.shape[::-1]) - 0.5
        corners = volume.to_ras(np.array([np.full(3, -0.5), last]))
        self._middle, self._extent = corners.mean(axis=0), np.abs(corners[1] - corners[0])
        self.page.wait_for_selector("[data-view=Yellow] img")

    # --- controls -----------------------------------------------------------------------------

    def press(self, name: str) -> None:
        """Click a control by its name."""
        self.clicks += 1
        self.page.get_by_role("button", name=name, exact=True).first.click()

    def download(self, name: str) -> Path:
        """Click a download; returns the file."""
        self.clicks += 1
        with self.page.expect_download() as download:
            self.page.get_by_role("link", name=name, exact=True).click()
        path = self.artifacts / download.value.suggested_filename
        download.value.save_as(path)
        return path

    # --- in the views -------------------------------------------------------------------------

    def picture(self, view: str) -> dict[str, float]:
        """Where a view's picture lies in the page, pixels."""
        found = self.page.locator(f"[data-view={view}] .sp-picture").bounding_box()
        assert found is not None
        return found

    def pixels(self, name: str, points: Array) -> Array:
        """(N, 2) pixels of the page where RAS mm points (N, 3) are seen in a fitted view."""
        view, axis, _ = VIEWS[name]
        box = self.picture(view)
        axes = viewing_axes(np.eye(3)[axis])
        width, height = np.abs(axes) @ self._extent
        scale = min(box["width"] / width, box["height"] / height)
        right, up = ((points - self._middle) @ axes.T * scale).T
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        return np.column_stack([x + right, y - up])

    def scroll(self, name: str) -> None:
        """Turn the wheel until a view shows the plane of the example's outline."""
        view, axis, way = VIEWS[name]
        wanted = float(self.example[name][0, axis])
        box = self.picture(view)
        self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)

        def off() -> float:
            return wanted - self._offset(view)

        for _ in range(80):
            before = off()
            if abs(before) < 0.05:
                return
            self.page.mouse.wheel(0, -100 if before * way > 0 else 100)
            self.until(lambda: off() != before, "the slice moves")  # noqa: B023
        raise AssertionError(f"{view} does not come to {wanted} mm")

    def _offset(self, view: str) -> float:
        side, value, _ = self.page.locator(f"[data-view={view}] .sp-offset").inner_text().split()
        return float(value) * (1.0 if side in "RAS" else -1.0)

    def draw(self, name: str) -> None:
        """Draw one of the example's outlines, point by point; a right click ends it."""
        self.scroll(name)
        self.press(VIEWS[name][0])
        self.page.wait_for_selector(".sp-hint")
        places = self.pixels(name, self.example[name])
        for x, y in places:
            self.page.mouse.move(x, y)
            self.page.mouse.click(x, y)
        self.page.mouse.click(*places[-1], button="right")
        self.until(lambda: not self.page.locator(".sp-hint").count(), "drawing ends")

    def shot(self, name: str) -> None:
        """Keep a screenshot of the page."""
        self.page.screenshot(path=self.artifacts / f"{name}.png")

    def seen(self, view: str) -> NDArray[np.int16]:
        """(H, W, 3) what a view shows."""
        box = self.picture(view)
        png = self.page.screenshot(clip=box)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int16)

    # --- waiting ------------------------------------------------------------------------------

    def watch(self) -> dict[str, Any]:
        """What is in the server's scene."""
        return self.page.evaluate("fetch('watch').then((answer) => answer.json())")

    def until(self, holds: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
        """Wait until something holds; returns it."""
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            found = holds()
            if found:
                return found
            self.page.wait_for_timeout(30)
        self.shot("waiting")
        raise AssertionError(f"waited {seconds:.0f} s in vain: {what}")

    def untilDone(self) -> dict[str, Any]:
        """Wait for the final surface of all that was drawn."""

        def done() -> dict[str, Any] | None:
            found = self.watch()
            return found if found["phase"] == "done" and found["model"] else None

        self.until(lambda: self.watch()["phase"] != "idle", "a fit begins")
        return self.until(done, "the final surface")
