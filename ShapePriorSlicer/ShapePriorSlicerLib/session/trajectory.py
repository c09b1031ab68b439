"""The steps of a search that found a surface, shown again one by one, and dragged elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.pose import place_of_step
from model_server.reconstruction import Template

from ..scene.pose_view import PoseView
from ..scene.structure import Structure
from .surface import ShownSurface

Array = NDArray[np.float64]
Steps = tuple[Mapping[str, Any], ...]


class Trajectory:
    """Of the surface that is shown; while another search runs, of the one before.

    Args:
        structure: whose surface it is.
        shown: the surface.
        askTemplate: called where the prior's mean shape has not come yet.

    Attributes:
        index: of the step that is shown, or None.
        isNudging: whether it can be dragged.
    """

    def __init__(
        self, structure: Structure, shown: ShownSurface, askTemplate: Callable[[str, int], None]
    ) -> None:
        self._structure, self._shown, self._askTemplate = structure, shown, askTemplate
        self._view = PoseView(structure)
        self.index: int | None = None
        self.isNudging = False
        self._steps: Steps = ()  # of which one is shown
        self._waits = False  # for the mean shape

    @property
    def steps(self) -> Steps:
        """In order, the start first; none while the surface was not found step by step."""
        found = self._shown.reconstruction
        if found is None or found.provenance.prior != self._structure.parameters.prior:
            return ()  # another prior has another canonical frame
        return found.path

    @property
    def isShown(self) -> bool:
        """Whether a step is shown; the mean shape may have to come first."""
        return self.index is not None and self._view.isShown

    def show(self, index: int | None) -> None:
        """Show the mean shape as it was placed in a step; None shows nothing."""
        self.index = index if index is not None and 0 <= index < len(self.steps) else None
        self._steps = self.steps
        self._put()

    def nudge(self, on: bool) -> None:
        """Let the user drag the step that is shown, by default the last; or no more."""
        if on and not self.steps:
            raise ShapePriorError(
                "The surface was not found step by step.", "Press Find in image first.", "no-steps"
            )
        self.isNudging = on
        if on and self.index is None:
            self.show(len(self.steps) - 1)
        self._view.setHandles(on)

    def place(self) -> Array:
        """(4, 4) canonical frame -> RAS mm: where the step that is shown was dragged.

        Raises:
            ShapePriorError: none is shown, or it was turned inside out.
        """
        found = self._view.place()
        if found is None:
            raise ShapePriorError("No step is shown.", "Choose one.", "no-step")
        if np.linalg.det(found[:3, :3]) <= 0.0:
            raise ShapePriorError(
                "The shape was pulled inside out.", "Choose its step again.", "bad-start"
            )
        return found

    def follow(self) -> None:
        """Another surface may be there, a template have come, or the model be deleted."""
        if self.index is None:
            return
        if self._steps is not self.steps and self._steps != self.steps:
            self.close()
        elif self._waits and self._mean() is not None:
            self._put()
        elif not self._waits and not self._view.isShown:
            self.close()  # the user deleted it

    def close(self) -> None:
        """Show nothing."""
        self.index, self.isNudging, self._steps = None, False, ()
        self._put()

    def _put(self) -> None:
        mean, self._waits = self._mean(), False
        if self.index is None:
            self.isNudging = False
            self._view.clear()
        elif mean is None:
            self._waits = True
            self._askTemplate(self._structure.parameters.prior, 0)
        else:
            self._view.show(mean.surface, place_of_step(self._steps[self.index]))
            self._view.setHandles(self.isNudging)

    def _mean(self) -> Template | None:
        """The prior's mean shape, if it has come."""
        return self._shown.template.canonical(self._structure.parameters.prior)
