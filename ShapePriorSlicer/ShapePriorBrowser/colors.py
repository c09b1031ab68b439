"""What the desktop brings along for colors: its color tables and legends."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import slicer

Node = Any

SHADES = 256
TABLES = {"viridis": "Viridis", "magma": "Magma", "RdBu_r": "DivergingBlueRed"}


def provideColors(scene: Node) -> None:
    """Add the color tables that the library colors surfaces with, under the desktop's IDs."""
    for name, title in TABLES.items():
        # The desktop reads these from files, and makes the ID of the file's name.
        tag = f"File{title}.txt"
        if scene.GetNodeByID(f"vtkMRMLColorTableNode{tag}") is None:
            scene.AddNode(_table(name, title, tag))
    scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())


def _table(name: str, title: str, tag: str) -> Node:
    table = slicer.vtkMRMLColorTableNode()
    table.SetName(title)
    table.SetSingletonTag(tag)
    table.SetTypeToFile()
    table.SetNumberOfColors(SHADES)
    for index, color in enumerate(matplotlib.colormaps[name](np.linspace(0.0, 1.0, SHADES))):
        table.SetColor(index, f"{index}", *color[:3], 1.0)
    table.GetLookupTable().SetTableRange(0, SHADES - 1)
    table.SaveWithSceneOff()
    return table
