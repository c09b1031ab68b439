"""The label volumes of these tests."""

from __future__ import annotations

from label_volumes import hippocampus, shapes

__all__ = ["hippocampus", "shapes"]
