"""ImplicitAtlas, its baselines and its parts by the paper's protocol (Tables 2, 3 and 4).

    python Testing/benchmarks/atlas_tables.py --work /tmp/tables [--methods "conv decoder" "D+MT"]
    python Testing/benchmarks/atlas_tables.py --work /tmp/tables --few

Every method is trained with the same steps, points and optimizer on the same training cases. Known
shapes and unknown ones (the validation cases) are decoded from latents optimized with the networks
fixed, on the best template of several; those of known shapes start where training left them.
Finished trainings in --work are not repeated, interrupted ones go on.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, parser, show

from model_server.evaluation.harness import cases_of, use_threads
from model_server.evaluation.results import machine
from model_server.evaluation.volume_protocol import Mask, ResizedLabel
from model_server.priors.implicit_atlas_decoder import base_nodes
from model_server.training.atlas_config import AtlasTraining
from model_server.training.atlas_protocol import (
    NOMINAL_RADIUS,
    VolumeEncoder,
    scores,
    volume_shapes,
)
from model_server.training.atlas_shapes import AtlasShapes, mode_copies
from model_server.training.implicit_atlas import AtlasTrainer

PLAIN = AtlasTraining(
    latent_size=512,
    channels=(8, 32, 16),
    controls=2744,
    steps=600,
    near_points=1536,
    smooth_weight=0,
    deformation_weight=0,
)
REGULAR = {"smooth_weight": 1e-3, "deformation_weight": 1e-2}
METHODS = {
    "MLP decoder": replace(PLAIN, network="mlp", templates=0),
    "MLP + template": replace(PLAIN, network="mlp", templates=1),
    "conv decoder": replace(PLAIN, templates=0),
    "D": replace(PLAIN, templates=1),
    "D+MT, without linear part": replace(PLAIN, controls=0),
    "MT": replace(PLAIN, deforms=False),
    "D+MT (ImplicitAtlas)": PLAIN,
    "D+MT, LS": replace(PLAIN, smooth_weight=1e-3),
    "D+MT, DP": replace(PLAIN, deformation_weight=1e-2),
    "D+MT, LS, DP (ImplicitAtlas + reg.)": replace(PLAIN, **REGULAR),
}
FEW = 5
FEW_COPIES = 60
SHOWN = 15  # known shapes that are scored
HEADER = ["method", "known DSC", "known NSD", "unknown DSC", "unknown NSD"]


def shapes_of(chosen, split: str) -> tuple[AtlasShapes, list[Mask]]:  # type: ignore[no-untyped-def]
    """Shapes of a split, with copies for training, and their masks; kept in --work."""
    known = split == "training"
    few = known and chosen.few
    copies = 0 if not known else FEW_COPIES if few else PLAIN.augmentations
    path: Path = chosen.work / f"{chosen.organ}-{split}{'-few' if few else ''}.npz"
    if not path.is_file():
        cases = cases_of(chosen.organ, chosen.data, split, chosen.only)
        cases = cases[: FEW if few else None]
        masks = [ResizedLabel.of(case.label()).inside for case in cases]
        found = volume_shapes(masks, replace(PLAIN, augmentations=copies))
        packed = np.stack([np.packbits(m) for m in masks])
        arrays = {"grid": found.grid, "near": found.near, "wrapped": found.wrapped}
        np.savez(path, box=found.box, masks=packed, **arrays)
    kept = np.load(path)
    masks = [np.unpackbits(m).reshape(128, 128, 128).astype(bool) for m in kept["masks"]]
    shapes = AtlasShapes(*(kept[k] for k in ("box", "grid", "near", "wrapped")))
    if known and shapes.wrapped is not None:
        more = mode_copies(shapes.wrapped, len(masks), NOMINAL_RADIUS, PLAIN, boxed=True)
        shapes = replace(shapes, more_wrapped=more)
    return shapes, masks


def base_of(chosen) -> tuple[int, int, int]:  # type: ignore[no-untyped-def]
    """Nodes of the coarsest map along k, j, i: the box has no shape, the organ does."""
    cases = cases_of(chosen.organ, chosen.data, "training", chosen.only)[:FEW]
    steps = [ResizedLabel.of(case.label()).ijk_to_ras[:3, :3] for case in cases]
    edges = np.mean([np.linalg.norm(step, axis=0) for step in steps], axis=0)
    return base_nodes(edges[::-1].tolist())


def measured(name: str, config: AtlasTraining, chosen, known, unknown) -> dict[str, Any]:  # type: ignore[no-untyped-def]
    """Train one method and score it; kept in --work."""
    slug = "".join(c if c.isalnum() else "-" for c in name) + ("-few" if chosen.few else "")
    slug += f"-{config.steps}"
    result: Path = chosen.work / f"{chosen.organ}-{slug}.json"
    if result.is_file():
        kept: dict[str, Any] = json.loads(result.read_text())
        if chosen.unknown or "known" in kept:
            return kept
    shapes, masks = known
    trained = AtlasTrainer(
        shapes,
        len(masks),
        NOMINAL_RADIUS,
        config,
        checkpoint=result.with_suffix(".pt"),
        progress=lambda *told: print(name, *told, flush=True),
    ).run()
    encoder = VolumeEncoder(shapes, trained, config)
    unseen = scores(trained.decoder, encoder.encode(unknown[0]), unknown[1])
    row: dict[str, Any] = {"unknown": unseen, "steps": config.steps}
    if not chosen.unknown:
        shown = slice(0, len(masks), max(1, len(masks) // SHOWN))
        some = AtlasShapes(shapes.box, shapes.grid[shown], shapes.near[shown])
        encoded = encoder.encode(some, trained.latents[shown])
        row["known"] = scores(trained.decoder, encoded, masks[shown])
    result.write_text(json.dumps(row))
    return row


def main() -> None:
    """Print and write the table."""
    arguments = parser(__doc__, list(METHODS))
    arguments.add_argument("--organ", default="hippocampus")
    arguments.add_argument("--work", type=Path, required=True, help="folder for what is trained")
    arguments.add_argument("--few", action="store_true", help="train on the first five cases only")
    arguments.add_argument("--unknown", action="store_true", help="score unknown shapes only")
    arguments.add_argument("--steps", type=int, help="of every training")
    arguments.add_argument("--base", type=int, nargs=3, help="nodes of the coarsest map (k, j, i)")
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    chosen.work.mkdir(parents=True, exist_ok=True)
    (shapes, masks), unknown = (shapes_of(chosen, s) for s in ("training", "validation"))
    steps, base = chosen.steps or PLAIN.steps, tuple(chosen.base or base_of(chosen))
    rows = []
    for name in chosen.methods:
        config = replace(METHODS[name], steps=steps, base=base)
        row = measured(name, config, chosen, (shapes, masks), unknown)
        seen = row.get("known", {})
        figures = [part.get(f) for part in (seen, row["unknown"]) for f in ("dsc", "nsd")]
        rows.append([name, *("-" if v is None else f"{v:.2f}" for v in figures)])
        print(rows[-1], flush=True)
    m = machine(chosen.device, chosen.threads)
    kind = "few" if chosen.few else "full"
    title = (
        f"{chosen.organ}, {len(masks)} training and {len(unknown[1])} validation cases, "
        f"{steps} steps ({m['cpu']}, {m['date']}, commit {m['commit']})"
    )
    path = (chosen.output or RESULTS) / f"atlas_tables_{chosen.organ}_{kind}_{steps}.md"
    path.unlink(missing_ok=True)
    show(title, HEADER, rows, path)


if __name__ == "__main__":
    main()
