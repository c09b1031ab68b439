"""What the image adds: networks alone, networks that are told what was drawn, fits with and
without the image.

    python Testing/benchmarks/images.py [--organs hippocampus left_atrium] [--limit 5]

"unet" is a plain 3D U-Net of the same encoder, trained as long, where SHAPE_PRIOR_ZOO has one (its
largest component, marching cubes); "mesh" is ImplicitMeshNet's own mesh; "meshnet" the same through
what was drawn; priors with "+image" are fitted to the annotations and the image, those without to
the annotations alone. Everybody is scored on every case; who refuses scores zero. Writes
images_<organ>_<what>.json, .md.
"""

from __future__ import annotations

from common import THERE, measured, parser

from model_server.evaluation.harness import Method

ORGANS = ["hippocampus", "left_atrium"]
GIVEN = ["none", "one-outline", "outlines", "clicks-20"]
PRIORS = ["dals", "atlas", "pca", "any-structure"]
MESH = {"local": False, "remesh": False}  # the network's mesh as it is


def methods_of(organ: str, given: str, priors: list[str]) -> list[Method]:
    """All that can answer; without annotations only what sees. A U-Net where one was trained."""
    dashed = organ.replace("_", "-")
    network, plain_network = f"{dashed}-meshnet", f"{dashed}-unet"
    found = [Method("mesh", network, MESH, sees=True), Method("meshnet", network, sees=True)]
    if plain_network in THERE:
        found.append(Method("unet", plain_network, sees=True))
    for name in priors:
        plain = Method.named(name, organ)
        if plain.prior not in THERE:
            continue
        found.append(Method(f"{name}+image", plain.prior, sees=True))
        if given not in ("none", "one-outline"):
            found.append(plain)
    return found


def main() -> None:
    """Run all organs and kinds of annotations that were asked for."""
    arguments = parser(__doc__, PRIORS)
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    arguments.add_argument("--given", nargs="+", default=GIVEN)
    chosen = arguments.parse_args()
    for organ in chosen.organs:
        for given in chosen.given:
            name = f"images_{organ}_{given.replace('-', '_')}"
            measured(chosen, organ, given, name, methods_of(organ, given, chosen.methods))


if __name__ == "__main__":
    main()
