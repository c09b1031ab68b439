"""DICOM series as scanners write them, made by SimpleITK: a small scan of known voxels."""

from __future__ import annotations

import locale
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

ROOT = "1.2.826.0.1.3680043.8.498."
VOXELS = (np.arange(6 * 8 * 10) % 251).reshape(6, 8, 10).astype(np.int16)
ORIGIN = np.array([-20.0, -30.0, 40.0])
SPACING = (0.8, 0.9, 2.5)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def scan(
    folder: Path,
    heights: Sequence[float] | None = None,
    series: str = "1",
    shift: float = 0.0,
    what: str = "abdomen",
    axes: Sequence[float] = AXIAL,
) -> list[Path]:
    """Slices of a CT, their names against their order.

    Args:
        folder: made if missing.
        heights: of the slices along their normal, mm; by default six, evenly spaced.
        series: tells series apart.
        shift: of each slice against the one before along its columns, mm: a tilted gantry.
        what: the description of the series.
        axes: of rows and columns in the patient, LPS.
    """
    folder.mkdir(exist_ok=True)
    heights = [SPACING[2] * k for k in range(6)] if heights is None else heights
    row, column = np.array(axes[:3]), np.array(axes[3:])
    files = []
    before = locale.setlocale(locale.LC_ALL)
    for index, height in enumerate(heights):
        image = sitk.GetImageFromArray(VOXELS[index % 6])
        image.SetSpacing(SPACING[:2])
        place = ORIGIN + height * np.cross(row, column) + shift * index * column
        for key, value in {
            "0008|0060": "CT",
            "0008|103e": what,
            "0020|000d": f"{ROOT}9",
            "0020|000e": f"{ROOT}{series}",
            "0008|0018": f"{ROOT}{series}.{index + 1}{abs(heights[0]):.0f}",
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{v:g}" for v in place),
            "0020|0037": "\\".join(f"{v:g}" for v in axes),
        }.items():
            image.SetMetaData(key, value)
        files.append(folder / f"{series}_{axes[0]:.0f}_{90 - index}.dcm")
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(files[-1]))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # GDCM's writer leaves "C" behind
    return files
