"""The module's own path against the command line's: the same files, the same surface.

    python Testing/benchmarks/module_equals_cli.py [--cases 3] [--organs hippocampus liver]

Three outlines of kept cases are written as markups files. Slicer's reader puts them into curve
nodes, and a session has its server fit them; ``shape-prior fit`` reads the same files. Both with as
many threads, as sums depend on that in the last digits.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from module_common import Sitting, readCurve
from service_common import Check, parser, report, surfaces, tell
from ShapePriorSlicerLib.scene.structure import OUTLINE

from model_server.cases.simulate import three_outlines
from model_server.fitting.residuals import closest_distance
from model_server.geometry.curves import POINTS_PER_SEGMENT
from model_server.io.markups import Markup, write_markups
from model_server.io.surfaces import read_surface
from model_server.reconstruction import Surface

ORGANS = ("hippocampus", "kidney", "liver", "pancreas")
BAR_MM = 0.1


def written(surface: Surface, rng: np.random.Generator, folder: Path) -> list[Path]:
    """Three outlines as files, one for each curve, by their control points."""
    paths = []
    for outline in three_outlines(surface, rng).outlines:
        for index, loop in enumerate(outline.loops):
            path = folder / f"{outline.name} {index + 1}.mrk.json"
            points = loop[::POINTS_PER_SEGMENT]
            write_markups(path, [Markup(path.name.split(".")[0], "ClosedCurve", points)])
            paths.append(path)
    return paths


def bySession(sitting: Sitting, prior: str, paths: list[Path]) -> Surface:
    """The surface a session shows for these files."""
    session = sitting.workspace.create(prior)
    for node in [readCurve(session, path) for path in paths]:
        session.add(OUTLINE, node)
    sitting.settle()
    if session.reconstruction is None or session.status.phase != "done":
        raise RuntimeError(f"{session.status.text} {session.status.remedy}")
    found = session.reconstruction.surface
    sitting.workspace.remove(session)
    return found


def byCommand(prior: str, paths: list[Path], device: str, folder: Path) -> Surface:
    """The surface the command line writes for these files."""
    output = folder / "surface.vtp"
    words = ["fit", "--prior", prior, "--device", device, "--quiet", "--output", str(output)]
    for path in paths:
        words += ["--annotations", str(path)]
    subprocess.run([sys.executable, "-m", "model_server", *words], check=True)
    return read_surface(output)[0]


def gap(one: Surface, other: Surface) -> tuple[float, float]:
    """Mean and largest distance, mm: by vertex where they have the same triangles."""
    if np.array_equal(one.triangles, other.triangles):
        apart = np.linalg.norm(one.points - other.points, axis=1)
    else:
        apart = np.concatenate(
            [closest_distance(one, other.points), closest_distance(other, one.points)]
        )
    return float(apart.mean()), float(apart.max())


def main() -> None:
    """Compare, case by case."""
    arguments = parser(__doc__)
    arguments.add_argument("--organs", nargs="+", default=list(ORGANS))
    arguments.add_argument("--cases", type=int, default=3, help="kept cases of each organ")
    chosen = arguments.parse_args()
    if not chosen.data.is_dir():
        sys.exit(f"There are no label volumes in '{chosen.data}': give --data.")
    cases, total = [], len(chosen.organs) * chosen.cases
    sitting = Sitting(("--device", chosen.device))
    try:
        for organ in chosen.organs:
            prior = chosen.prior = f"{organ}-dals"
            for index, truth in enumerate(surfaces(chosen, chosen.cases)):
                with tempfile.TemporaryDirectory() as name:
                    folder = Path(name)
                    rng = np.random.default_rng([chosen.seed, index])
                    paths = written(truth, rng, folder)
                    here = bySession(sitting, prior, paths)
                    there = byCommand(prior, paths, chosen.device, folder)
                mean, most = gap(here, there)
                same = bool(np.array_equal(here.triangles, there.triangles))
                cases.append(
                    {"organ": organ, "case": index, "mean_mm": mean, "max_mm": most, "same": same}
                )
                tell(len(cases), total, f"{organ} {index}: {most:.2g} mm")
    finally:
        sitting.close()
    checks = [
        Check(
            f"{organ}: largest distance of {chosen.cases} cases, mm",
            max(case["max_mm"] for case in cases if case["organ"] == organ),
            "≤",
            BAR_MM,
        )
        for organ in chosen.organs
    ]
    report(chosen, "module_equals_cli", "The module's surface and the command's", checks,
           {"cases": cases})  # fmt: skip


if __name__ == "__main__":
    main()
