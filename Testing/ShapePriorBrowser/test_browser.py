"""The whole job in headless Chromium, by mouse: draw, see, drag, undo, export.

Screenshots are kept under Testing/artifacts/browser. The tests go on from one another, as one
person's visit does.
"""

from __future__ import annotations

import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from chromium import HERE, VIEWS, Person, openedPage, servedExample, whyNot

from model_server.geometry.labels import voxelize
from model_server.io.surfaces import read_surface
from model_server.io.volumes import read_volume
from model_server.jobs.example import example_case
from model_server.reconstruction import Surface

pytestmark = pytest.mark.skipif(bool(reason := whyNot()), reason=reason or "-")

ARTIFACTS = HERE.parent / "artifacts" / "browser"
MOST_CLICKS = 5
LEAST_DICE = 0.90
BLUER = 60  # than red: the surface's cut in a slice, and nothing else there
DRAG_MM = 4.0
PIXELS_MM = 0.3  # two pixels of the page


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with servedExample(ARTIFACTS) as found:
        yield found


@pytest.fixture(scope="module")
def refusals(address) -> dict[str, int]:
    """What those get who come before the token is used, and without it."""
    return {path: statusOf(address, path) for path in ("/", "/index.html", "/ws", "/download/stl")}


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """Addresses the page asked for."""
    return []


@pytest.fixture(scope="module")
def person(address, refusals, asked) -> Iterator[Person]:
    with openedPage(address) as page:
        page.on("request", lambda request: asked.append(request.url))
        yield Person(page, ARTIFACTS)


@pytest.fixture(scope="module")
def job(person) -> dict[str, Any]:
    """Three outlines drawn, a surface seen, an STL exported; what was there before and after."""
    person.shot("1-opened")
    before = {view: person.seen(view) for view in ("ThreeD", "Red")}
    for name in VIEWS:
        person.draw(name)
        person.shot(f"2-drawn-{name}")
    scene = person.untilDone()
    person.page.wait_for_timeout(500)
    person.shot("3-reconstructed")
    after = {view: person.seen(view) for view in ("ThreeD", "Red")}
    path = person.download("STL")
    return {"scene": scene, "before": before, "after": after, "stl": path, "clicks": person.clicks}


def statusOf(address: str, path: str) -> int:
    found = urlsplit(address)
    try:
        with urllib.request.urlopen(f"{found.scheme}://{found.netloc}{path}") as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def surfaceOf(scene: dict[str, Any]) -> Surface:
    model = scene["model"]
    return Surface(np.array(model["points"]), np.array(model["triangles"]).reshape(-1, 3))


def cutPixels(picture: np.ndarray) -> int:
    """Pixels of the surface's blue."""
    return int((picture[..., 2] - picture[..., 0] > BLUER).sum())


# --- the job ------------------------------------------------------------------------------------


def test_the_address_alone_opens_nothing(refusals):
    assert set(refusals.values()) == {403}


def test_three_outlines_and_few_clicks_lead_to_a_file(job):
    assert job["stl"].stat().st_size > 10_000
    assert job["clicks"] <= MOST_CLICKS


def test_points_lie_where_the_mouse_clicked(job, person):
    for name, (view, _, _) in VIEWS.items():
        drawn, clicked = np.array(job["scene"]["outlines"][view]), person.example[name]
        assert drawn.shape == clicked.shape
        assert np.abs(drawn - clicked).max() < PIXELS_MM


def test_the_surface_is_seen_in_space_and_in_slices(job):
    changed = np.abs(job["after"]["ThreeD"] - job["before"]["ThreeD"]).max(axis=-1) > 40
    assert changed.mean() > 0.02
    assert cutPixels(job["before"]["Red"]) < 20
    assert cutPixels(job["after"]["Red"]) > 100


def test_the_file_is_the_model_of_the_scene(job):
    found, _ = read_surface(job["stl"])
    model = surfaceOf(job["scene"])
    assert len(found.triangles) == len(model.triangles)
    corners = found.points[found.triangles] - model.points[model.triangles]
    assert np.abs(corners).max() < 1e-3


def test_the_surface_is_the_organ(job):
    truth = read_volume(example_case().truth)
    true = np.asarray(truth.array) > 0
    found = voxelize(read_surface(job["stl"])[0], truth.ijk_to_ras, true.shape)
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) >= LEAST_DICE


def test_residuals_and_figures_are_told_with_units(job, person):
    table = person.page.locator(".sp-table").inner_text()
    assert "Residual, mm" in table
    assert len(re.findall(r"\s16\s+\d\.\d\d\b", table)) == 3
    figures = person.page.locator(".sp-figures").inner_text()
    assert all(unit in figures for unit in ("ml", "cm²", "mm"))


# --- corrections --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dragged(job, person) -> dict[str, Any]:
    """A control point moved in the axial view; the scene before, while and after."""
    before = person.untilDone()
    place = np.array(before["outlines"]["Red"][8])
    center = np.mean(before["outlines"]["Red"], axis=0)
    away = (place - center) / np.linalg.norm(place - center)
    path = place + np.linspace(0.0, DRAG_MM, 12)[:, None] * away
    mouse = person.page.mouse
    pixels = person.pixels("axial", path)
    mouse.move(*pixels[0])
    mouse.down()
    for x, y in pixels[1:]:
        mouse.move(x, y)
        person.page.wait_for_timeout(30)
    while_ = person.until(lambda: changedModel(person, before), "the surface follows the drag")
    mouse.up()
    person.page.wait_for_timeout(200)
    after = person.untilDone()
    person.shot("4-dragged")
    return {"before": before, "while": while_, "after": after, "end": path[-1]}


def changedModel(person: Person, before: dict[str, Any]) -> dict[str, Any] | None:
    found = person.watch()
    return found if found["model"] != before["model"] else None


def test_the_surface_follows_a_dragged_point(dragged):
    moved = np.array(dragged["after"]["outlines"]["Red"][8])
    assert np.abs(moved - dragged["end"]).max() < PIXELS_MM
    before, after = surfaceOf(dragged["before"]), surfaceOf(dragged["after"])
    reach = np.linalg.norm(after.points - moved, axis=1).min()
    assert reach < np.linalg.norm(before.points - moved, axis=1).min() - 0.3


def test_undo_and_redo_by_key_bring_both_surfaces_back(dragged, person):
    person.page.keyboard.press("Control+z")
    person.until(
        lambda: person.watch()["outlines"] == dragged["before"]["outlines"], "undo moves the point"
    )
    assert person.untilDone()["model"] == dragged["before"]["model"]
    person.shot("5-undone")
    person.page.keyboard.press("Control+y")
    person.until(
        lambda: person.watch()["outlines"] == dragged["after"]["outlines"], "redo moves the point"
    )
    assert person.untilDone()["model"] == dragged["after"]["model"]


def test_undo_by_button_names_what_it_takes_back(dragged, person):
    person.page.get_by_role("button", name="Undo", exact=True).hover()
    person.page.get_by_text("Undo: Move point of an outline (Ctrl+Z)").wait_for()
    person.press("Undo")
    person.until(lambda: person.watch()["model"] == dragged["before"]["model"], "undo")


@pytest.mark.parametrize("coloring", ["Correspondence", "Uncertainty (mm)", "Distance"])
def test_colors_are_seen(coloring, job, person):
    before = person.seen("ThreeD")
    person.page.get_by_label("Color").first.click(force=True)
    person.page.get_by_role("option", name=coloring).click()
    person.until(
        lambda: (np.abs(person.seen("ThreeD") - before).max(axis=-1) > 40).mean() > 0.01, coloring
    )
    person.page.wait_for_timeout(500)
    person.shot(f"6-{coloring.split()[0].lower()}")


def test_keys_undo_after_a_choice_from_a_list(job, person):
    """The list keeps the focus, as an input that nobody types into."""
    person.page.get_by_label("Color").first.click(force=True)
    person.page.get_by_role("option", name="Plain").click()
    chosen = person.page.get_by_label("Color").first
    person.until(lambda: chosen.input_value() == "Plain", "a choice")
    person.page.wait_for_timeout(300)
    person.page.keyboard.press("Control+z")
    person.until(lambda: chosen.input_value() != "Plain", "undo by key", 10.0)
    person.page.keyboard.press("Control+y")
    person.until(lambda: chosen.input_value() == "Plain", "redo by key", 10.0)


def test_every_download_is_what_it_says(job, person):
    for name in ("NRRD", "SEG.NRRD"):
        label = np.asarray(read_volume(person.download(name)).array) > 0
        assert label.shape == read_volume(example_case().image).array.shape
        assert label.sum() / 1000.0 == pytest.approx(
            surfaceOf(job["scene"]).volume() / 1e3, rel=0.05
        )
    assert b"UncertaintyMm" in person.download("VTP").read_bytes()
    assert person.download("CSV").read_text().startswith("vertex,R_mm")


def test_a_suggested_slice_moves_a_view(job, person):
    def offsets() -> list[str]:
        return person.page.locator(".sp-offset").all_inner_texts()

    before = offsets()
    person.press("Suggest next slice")
    person.until(lambda: offsets() != before, "a view moves")
    person.press("Jump to slice")


def test_keys_draw_and_finish(job, person):
    box = person.picture("Green")
    person.page.mouse.move(box["x"] + 60, box["y"] + 60)
    person.page.keyboard.press("d")
    person.page.locator("[data-view=Green] .sp-hint").wait_for()
    person.page.keyboard.press("Enter")
    person.until(lambda: not person.page.locator(".sp-hint").count(), "drawing ends")
    assert len(person.watch()["outlines"]) == 3


def test_a_second_structure_leaves_the_first_alone(job, person):
    before = person.watch()
    person.press("New structure")
    person.until(lambda: not person.watch()["outlines"], "an empty structure")
    person.page.wait_for_timeout(500)
    person.shot("7-second-structure")
    assert person.page.locator("a.v-btn--disabled", has_text="STL").count()
    clickPoints(person, "Boundary", 3)
    assert "Hippocampus 2 boundary points" in person.page.locator(".sp-table").inner_text()
    person.page.get_by_label("Structure", exact=True).first.click(force=True)
    person.page.get_by_role("option", name="Hippocampus", exact=True).click()
    person.until(lambda: person.watch()["outlines"] == before["outlines"], "the first one")
    assert person.watch()["model"] == before["model"]
    person.page.get_by_label("Structure", exact=True).first.click(force=True)
    person.page.get_by_role("option", name="Hippocampus 2", exact=True).click()
    person.until(lambda: not person.watch()["outlines"], "the second one")
    person.press("Delete structure")
    person.until(lambda: person.watch()["model"] == before["model"], "the first one is left")


def clickPoints(person: Person, role: str, count: int) -> None:
    """Click points in a row in the coronal view; Enter ends."""
    person.press(role)
    person.page.wait_for_selector(".sp-hint")
    box = person.picture("Green")
    for index in range(count):
        x, y = box["x"] + 250 + 40 * index, box["y"] + 200
        person.page.mouse.move(x, y)
        person.page.mouse.click(x, y)
    row = person.page.locator(".sp-table tbody tr")
    person.until(lambda: row.count() and f"{count}" in row.last.inner_text(), "the points are told")
    person.page.keyboard.press("Enter")
    person.until(lambda: not person.page.locator(".sp-hint").count(), "placing ends")


# --- what goes wrong ----------------------------------------------------------------------------


def state(person: Person) -> str:
    return person.page.get_by_role("status").inner_text()


def test_a_killed_server_is_told_while_nothing_runs(job, person):
    assert state(person).startswith("Up to date: ")
    os.kill(person.watch()["server"], signal.SIGKILL)
    person.until(lambda: "ended by signal 9" in state(person), "it is told", 2.0)
    person.shot("8-killed")
    person.until(lambda: state(person).startswith("Up to date"), "it is started again")


# --- other volumes ------------------------------------------------------------------------------


def upload(person: Person, path: Path) -> None:
    person.page.locator("#sp-file").set_input_files(path)


def test_what_is_no_volume_is_refused_in_one_sentence(job, person, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no volume")
    upload(person, broken)
    person.page.get_by_text("'broken.nii.gz' cannot be read as a volume.").wait_for()
    person.shot("8-refused")
    other = tmp_path / "notes.txt"
    other.write_text("no volume")
    upload(person, other)
    person.page.get_by_text("'notes.txt' is no volume file.").wait_for()
    assert person.watch()["model"] is not None  # what was open stays


def test_an_uploaded_volume_takes_the_place_of_the_example(job, person, tmp_path):
    path = tmp_path / "patient.nii.gz"
    path.write_bytes(example_case().image.read_bytes())
    upload(person, path)
    person.page.get_by_text("patient.nii.gz").first.wait_for()
    scene = person.watch()
    assert scene["outlines"] == {}
    assert scene["model"] is None
    person.shot("9-uploaded")


def test_nothing_is_asked_of_other_machines(job, asked):
    assert {urlsplit(url).hostname for url in asked if url.startswith("http")} == {"127.0.0.1"}
