"""How long one tick of the module's timer holds Slicer's main thread, through a whole job.

    python Testing/benchmarks/module_polls.py

The bundled case: three outlines, drags with previews, every coloring, template and landmark, undo
and redo, a refinement, a save and a restart of the server. Without Slicer's windows: what views
take to render is not in it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from module_common import Sitting, readCurve
from service_common import Check, parser, report
from ShapePriorSlicerLib.files.sample_data import OUTLINES, exampleOutline
from ShapePriorSlicerLib.scene.structure import OUTLINE, TEMPLATE_LANDMARKS
from ShapePriorSlicerLib.session.session import Session

BAR_MS = 50.0
DRAG_STEPS = 15


class Job:
    """A session that somebody works on, and how long each action held the thread.

    Args:
        prior: name in the zoo.
        device: "cpu" or "cuda".
    """

    def __init__(self, prior: str, device: str) -> None:
        self.sitting = Sitting(("--device", device))
        self.session: Session = self.sitting.workspace.create(prior)
        self.actions: list[tuple[float, str]] = []
        self.previews: list[float] = []

    def act(self, name: str, action: Callable[[], object], settle: bool = True) -> None:
        """Do something as a button or the mouse does, then tick until nothing runs."""
        self.sitting.doing = name
        began = time.perf_counter()
        action()
        self.actions.append((time.perf_counter() - began, name))
        if settle:
            self.sitting.settle()

    def draw(self, name: str) -> None:
        """One of the bundled outlines."""
        node = readCurve(self.session, exampleOutline(name))
        self.act(f"draw {name}", lambda: self.session.add(OUTLINE, node))

    def drag(self) -> None:
        """A point, step by step, with a preview after each; then let go."""
        node = self.session.outlines()[0].node
        node.InvokeEvent(node.PointStartInteractionEvent)
        for _ in range(DRAG_STEPS):
            place = node.GetNthControlPointPositionWorld(0) + np.array([0.0, 0.2, 0.0])
            self.act("drag", lambda at=place: node.SetNthControlPointPositionWorld(0, *at), False)
            self.previews.append(self.sitting.until(lambda: not self.session.isActive()))
        self.act("release", lambda: node.InvokeEvent(node.PointEndInteractionEvent))

    def landmark(self) -> None:
        """The template, and a landmark on it."""
        self.act("template", lambda: self.session.change(showTemplate=True))
        self.sitting.until(lambda: self.session.template.node is not None)
        marks = self.session.structure.made(TEMPLATE_LANDMARKS, "marks")
        marks.AddControlPoint(*self.session.template.node.GetPolyData().GetPoint(100))
        self.act("landmark", lambda: self.session.add(TEMPLATE_LANDMARKS, marks))

    def back(self) -> None:
        """Undo everything, and do it again."""
        while self.session.canUndo:
            self.act("undo", self.session.undo)
        while self.session.canRedo:
            self.act("redo", self.session.redo)

    def crash(self) -> None:
        """The server dies in the middle of a fit."""
        node = self.session.outlines()[1].node
        place = node.GetNthControlPointPositionWorld(0) + np.array([0.0, 0.0, 0.4])
        self.act("crash", lambda: node.SetNthControlPointPositionWorld(0, *place), False)
        self.sitting.until(lambda: self.session.status.phase == "fitting")
        os.kill(self.sitting.workspace.backend.pid, signal.SIGKILL)
        self.sitting.settle()

    def save(self) -> None:
        """The scene as a bundle; Slicer's writing is timed apart, it is not ours."""
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "scene.mrb")
            self.act("save", self.session.save)
            self.sitting.scene.WriteToMRB(path)


def worked(job: Job) -> None:
    """The whole job."""
    for name in OUTLINES:
        job.draw(name)
    job.drag()
    for coloring in ("uncertainty", "distance", "correspondence"):
        job.act(coloring, lambda chosen=coloring: job.session.change(coloring=chosen))
    job.landmark()
    job.drag()
    job.act("strength", lambda: job.session.change(strength=-0.5))
    job.back()
    job.act("refine", job.session.refine)
    job.crash()
    job.save()


def main() -> None:
    """Work, and compare with the bar."""
    chosen = parser(__doc__).parse_args()
    job = Job(chosen.prior, chosen.device)
    try:
        worked(job)
    finally:
        job.sitting.close()
    polls = [(1000.0 * seconds, doing) for seconds, doing in job.sitting.polls]
    actions = [(1000.0 * seconds, doing) for seconds, doing in job.actions]
    worst = sorted(polls, reverse=True)[:10]
    times = np.array([ms for ms, _ in polls])
    checks = [
        Check("longest tick, ms", worst[0][0], "≤", BAR_MS),
        Check("tick, 99th percentile, ms", float(np.percentile(times, 99)), "≤", BAR_MS),
        Check("longest action (undo, a choice), ms", max(actions)[0], "≤", BAR_MS),
        Check("preview in a drag, median ms", 1000.0 * float(np.median(job.previews)), "≤", 250.0),
    ]
    print(f"{len(polls)} ticks; the longest: {worst}", file=sys.stderr)
    print(f"Longest actions: {sorted(actions, reverse=True)[:8]}", file=sys.stderr)
    data = {"ticks": len(polls), "longest": worst, "actions": sorted(actions, reverse=True)[:20],
            "previews_ms": [1000.0 * s for s in job.previews]}  # fmt: skip
    title = f"{chosen.prior}: {len(polls)} ticks of one job on the bundled case"
    report(chosen, "module_polls", title, checks, data)


if __name__ == "__main__":
    main()
