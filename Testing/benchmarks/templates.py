"""Whether ReShapeIT's templates are shapes, and carry over to unseen ones.

    python Testing/benchmarks/templates.py [--priors pancreas-reshapeit] [--limit 5]

Of each template: closed and in one piece, triangles that pass through others (MeshLab), and how far
it is from the nearest training shape, as its card says. Then, on the prior's validation cases, each
fitted to 1,024 clicks: shapes that took the template's triangles (others took the zero level, as
triangles folded on the way), self-intersections, and how far places of the template that go to the
shape (back through p + Delta vec) and back again (p + Delta vec) end from where they started.
Writes templates.md.
"""

from __future__ import annotations

import argparse

import numpy as np
from common import number, parser, show, tell, verdict
from surfaces import is_one

from model_server.evaluation.harness import cases_of, use_threads
from model_server.evaluation.metrics import Truth, self_intersections
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import list_priors, load_prior
from model_server.priors.reshapeit import ReshapeitPrior

CLICKS = "clicks-1024"
AS_USED = FitSettings(uncertainty=False)
HEADER = ["prior", "one, closed", "self-int. %", "nearest training shape", "mm from it", "cases"]
HEADER += ["carried", "worst self-int. %", "round trip mm, mean", "worst tenth", "bars"]


def row(name: str, chosen: argparse.Namespace) -> list[str]:
    """One line of the table."""
    prior = load_prior(name, chosen.device)
    assert isinstance(prior, ReshapeitPrior)
    card, template = prior.card, prior.template()
    told = card.hyperparameters["template"]
    radius = float(np.mean(card.hyperparameters["radius_mm"]))
    folded, whole = self_intersections(template), is_one(template)
    carried, worst, gaps = 0, 0.0, []
    cases = list(cases_of(card.organ, chosen.data, chosen.split, chosen.only))[: chosen.limit]
    for done, case in enumerate(cases, 1):
        truth = Truth.from_label(case.label())
        given = find_protocol(CLICKS).observations(truth, case.name)
        found = list(prior.fit(given, settings=AS_USED))[-1]
        latent = prior.whiten(np.asarray(found.latents, dtype=np.float64))
        shape = prior.field.carried(latent)
        carried += shape.whole
        worst = max(worst, self_intersections(shape.surface))
        back = prior.field.to_template(shape.surface.points, latent)
        away = np.linalg.norm(back - template.points, axis=1) * found.pose.scale
        gaps.append((float(away.mean()), float(np.quantile(away, 0.9))))
        tell(case.name, name, done, len(cases))
    mean, tenth = np.mean(gaps, axis=0) if gaps else (float("nan"), float("nan"))
    return [
        name,
        "yes" if whole else "no",
        number(folded, ".2f"),
        told["nearest_training"],
        number(told["mean_distance_rms_radii"] * radius, ".2f"),
        str(len(cases)),
        f"{carried} of {len(cases)}",
        number(worst, ".2f"),
        number(float(mean), ".3f"),
        number(float(tenth), ".3f"),
        verdict(folded + (not whole), "≤", 0.0),
    ]


def main() -> None:
    """Print and write the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--priors", nargs="+", help="or folders; by default all of the method")
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    names = chosen.priors or [card.name for card in list_priors() if card.method == "reshapeit"]
    path = chosen.output / "templates.md"
    path.unlink(missing_ok=True)
    rows = [row(name, chosen) for name in names]
    m = machine(chosen.device, chosen.threads)
    title = f"Templates of ReShapeIT ({m['cpu']}, {m['date']}, commit {m['commit']})"
    show(title, HEADER, rows, path)


if __name__ == "__main__":
    main()
