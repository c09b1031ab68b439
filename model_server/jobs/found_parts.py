"""The parts of an organ that a reader tells apart, as files beside that of the whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_server.errors import ShapePriorError
from model_server.io.outputs import format_of
from model_server.io.surfaces import SURFACE_FORMATS

if TYPE_CHECKING:
    from model_server.priors.card import PriorCard
    from model_server.reading import ImageReading
    from model_server.reconstruction import Surface

FINER = 0.5  # of the reading's voxels: where parts are told from each other


def part_files(card: PriorCard, paths: Sequence[Path]) -> dict[Path, str]:
    """Where the parts go, and their names: ``hippocampus.stl`` -> ``hippocampus-anterior.stl``.

    Args:
        card: of the prior.
        paths: of the results; those of voxels hold the parts by themselves.

    Raises:
        ShapePriorError: (no-parts) the organ's reader tells no parts apart; no surface is written.
    """
    from model_server.imaging.readers import no_reader, reader_card

    reader = reader_card(card)
    if reader is None:
        raise no_reader(card)
    told = reader.hyperparameters.get("network", {}).get("structures", ())[1:]
    if not told:
        raise ShapePriorError(
            f"'{reader.name}' sees the {reader.organ} as a whole, without parts.",
            "Leave --parts out.",
            "no-parts",
        )
    surfaces = [path for path in paths if format_of(path) in SURFACE_FORMATS]
    if not surfaces:
        raise ShapePriorError(
            "No surface is written whose parts could lie beside it.",
            f"Give an --output that ends in one of {', '.join(SURFACE_FORMATS)}.",
            "no-parts",
        )
    return {
        path.with_name(f"{path.name.removesuffix(path.suffix)}-{_word(name)}{path.suffix}"): name
        for path in surfaces
        for name in map(str, told)
    }


def part_surfaces(
    reading: ImageReading | None, files: Mapping[Path, str]
) -> tuple[dict[Path, Surface], list[str]]:
    """The parts for their files, which do not intersect, and the names of those not seen."""
    from model_server.imaging.parts import parted

    if reading is None or not files:
        return {}, []
    found = {s.name: s.surface for s in parted(reading.structures[1:], FINER * reading.spacing)}
    missing = sorted({name for name in files.values() if name not in found})
    return {path: found[name] for path, name in files.items() if name in found}, missing


def _word(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-") or "part"
