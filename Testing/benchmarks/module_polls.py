"""How long one tick of the module's timer holds Slicer's main thread, through a whole job.

    python Testing/benchmarks/module_polls.py [--only-drag]

The bundled case: three outlines, drags with previews, every coloring, template and landmark, undo
and redo, a refinement, a save and a restart of the server. Without Slicer's windows: what views
take to render is not in it. Milliseconds by the clock count other processes' work, too; those of
the CPU are of the module's thread (polls), or of all of the server's (previews).
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from module_common import Sitting, readCurve
from service_common import Check, parser, report
from ShapePriorSlicerLib.files.sample_data import OUTLINES, exampleOutline
from ShapePriorSlicerLib.scene.live_model import LiveModel
from ShapePriorSlicerLib.scene.structure import OUTLINE, TEMPLATE_LANDMARKS
from ShapePriorSlicerLib.session.session import Session

BAR_MS = 50.0
POLL_MS = 15.0  # of the CPU, with the update of the model, while something is dragged
PREVIEW_MS = 40.0  # of the server's CPU
DRAG_STEPS = 15
BUSY_MS = 1.0  # a tick that takes more had something to do


class Updates:
    """CPU seconds of this thread in each update of a model node, while it is entered."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._show = LiveModel.show

    def __enter__(self) -> Updates:
        def show(model: LiveModel, *given: Any) -> Any:
            began = time.thread_time()
            try:
                return self._show(model, *given)
            finally:
                self.seconds.append(time.thread_time() - began)

        LiveModel.show = show  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        LiveModel.show = self._show  # type: ignore[method-assign]


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
        self.serverSeconds: list[float] = []  # of the server's CPU, for each preview of a drag
        self.updates = Updates()

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
        before = self.serverCpu()
        with self.updates:
            for _ in range(DRAG_STEPS):
                place = node.GetNthControlPointPositionWorld(0) + np.array([0.0, 0.2, 0.0])
                self.act(
                    "drag", lambda at=place: node.SetNthControlPointPositionWorld(0, *at), False
                )
                self.previews.append(self.sitting.until(lambda: not self.session.isActive()))
        self.serverSeconds.append((self.serverCpu() - before) / DRAG_STEPS)
        self.act("release", lambda: node.InvokeEvent(node.PointEndInteractionEvent))

    def serverCpu(self) -> float:
        """Seconds that the server has computed so far."""
        times = psutil.Process(self.sitting.workspace.backend.pid).cpu_times()
        return float(times.user + times.system)

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


def worked(job: Job, onlyDrag: bool) -> None:
    """The whole job, or its beginning."""
    for name in OUTLINES:
        job.draw(name)
    job.drag()
    if onlyDrag:
        return
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
    arguments = parser(__doc__)
    arguments.add_argument("--only-drag", action="store_true", help="not the rest of the job")
    chosen = arguments.parse_args()
    job = Job(chosen.prior, chosen.device)
    try:
        worked(job, chosen.only_drag)
    finally:
        job.sitting.close()
    polls = [(1000.0 * seconds, doing) for seconds, doing in job.sitting.polls]
    actions = [(1000.0 * seconds, doing) for seconds, doing in job.actions]
    worst = sorted(polls, reverse=True)[:10]
    times = np.array([ms for ms, _ in polls])
    drags = np.array([1000.0 * cpu for cpu, (_, doing) in zip(job.sitting.cpu, polls, strict=True)
                      if doing == "drag"])  # fmt: skip
    busy = drags[drags > BUSY_MS]
    updates = 1000.0 * np.array(job.updates.seconds)
    server = 1000.0 * float(np.median(job.serverSeconds))
    checks = [
        Check("longest tick, ms", worst[0][0], "≤", BAR_MS),
        Check("tick, 99th percentile, ms", float(np.percentile(times, 99)), "≤", BAR_MS),
        Check("longest action (undo, a choice), ms", max(actions)[0], "≤", BAR_MS),
        Check("preview in a drag, median ms", 1000.0 * float(np.median(job.previews)), "≤", 250.0),
        Check("busy tick in a drag, median CPU ms", float(np.median(busy)), "≤", POLL_MS),
        Check("longest tick in a drag, CPU ms", float(busy.max()), "≤", POLL_MS),
        Check(
            "update of the model in a drag, median CPU ms", float(np.median(updates)), "≤", POLL_MS
        ),
        Check("preview in a drag, CPU ms of the server", server, "≤", PREVIEW_MS),
    ]
    print(f"{len(polls)} ticks; the longest: {worst}", file=sys.stderr)
    print(f"Longest actions: {sorted(actions, reverse=True)[:8]}", file=sys.stderr)
    data = {"ticks": len(polls), "longest": worst, "actions": sorted(actions, reverse=True)[:20],
            "previews_ms": [1000.0 * s for s in job.previews],
            "updates_cpu_ms": updates.tolist(),
            "server_cpu_ms": server}  # fmt: skip
    title = f"{chosen.prior}: {len(polls)} ticks of one job on the bundled case"
    report(chosen, "module_polls", title, checks, data)


if __name__ == "__main__":
    main()
