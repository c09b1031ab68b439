"""The surface of a structure in the scene, and the template beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from model_server.errors import ShapePriorError
from model_server.observations import Observations
from model_server.reconstruction import Reconstruction, Residual

from ..scene.live_model import LiveModel
from ..scene.structure import MODEL, State, Structure
from ..scene.template import TemplateView, templateNumber

Inputs = tuple[Any, ...]  # what a surface depends on, see Structure.inputs
Residuals = dict[str, Residual]  # by the keys of the annotations' nodes

RESIDUALS_PARAMETER = "residuals"
FITTED_PARAMETER = "fitted"  # digest of what the surface in the scene is an answer to


class ShownSurface:
    """The surface that is shown, kept in the scene with what it answers.

    Args:
        structure: whose surface it is.
        askTemplate: called with a prior and the number of the template that is wanted of it.

    Attributes:
        isPassing: whether a state of a search is shown in place of the surface.
    """

    def __init__(self, structure: Structure, askTemplate: Callable[[str, int], None]) -> None:
        self._structure, self._askTemplate = structure, askTemplate
        self._fitted = ""  # digest of what the surface answers
        self.reconstruction: Reconstruction | None = None
        self.residuals: Residuals = {}
        self.isPassing = False
        self.model = LiveModel(structure, MODEL)
        self.template = TemplateView(structure)

    @property
    def usable(self) -> Reconstruction | None:
        """The surface; None while what is shown is a state of a search."""
        return None if self.isPassing else self.reconstruction

    def showPassing(self, state: Reconstruction, observations: Observations) -> None:
        """Show a state of a search; the surface before comes back unless there is a better one."""
        self.isPassing = True
        self.model.show(state, observations, self._structure.parameters)
        self._structure.node.SetParameter(FITTED_PARAMETER, "")  # saved now, it answers nothing

    def takeBack(self) -> None:
        """The search ended without a surface: show what there was before."""
        if not self.isPassing:
            return
        self.isPassing = False
        if self.reconstruction is None:
            self.model.clear()
            return
        try:
            observations = self._structure.observations()[0]
        except ShapePriorError:
            observations = Observations()
        self.model.show(self.reconstruction, observations, self._structure.parameters)
        self._structure.node.SetParameter(FITTED_PARAMETER, self._fitted)

    def show(
        self,
        found: Reconstruction,
        residuals: Residuals,
        observations: Observations,
        answers: Inputs | None,
    ) -> None:
        """Show a surface, which answers such inputs in full, or none."""
        first, self.isPassing = self.reconstruction is None, False
        self.reconstruction, self.residuals = found, residuals
        self.model.show(found, observations, self._structure.parameters)
        self._fitted = "" if answers is None else _digest(answers)
        self._structure.node.SetParameter(FITTED_PARAMETER, self._fitted)
        # Of a preview they are passing: keeping them would have the whole panel follow each.
        self._keepResiduals(residuals if answers is not None else {})
        if first or answers is not None:  # on the way to it the fit may still change templates
            self.updateTemplate()
        self.moveLandmarks()

    def clear(self) -> None:
        """Show no surface: there was none when the structure was in this state."""
        self.reconstruction, self.residuals, self.isPassing = None, {}, False
        self.model.clear()
        self.moveLandmarks()

    def restore(self, inputs: Inputs) -> bool:
        """Take up what a saved scene holds; whether that answers these inputs."""
        self.reconstruction = self.model.restored()
        if self.reconstruction is None:
            return False
        node, chosen = self._structure.node, self._structure.parameters
        self.residuals = _readResiduals(node.GetParameter(RESIDUALS_PARAMETER) or "{}")
        self.model.display(chosen)  # tables of parts are not saved
        self.template.color(chosen)
        self.moveLandmarks()
        self._fitted = node.GetParameter(FITTED_PARAMETER) or ""
        return self._fitted == _digest(inputs)

    def follow(self, before: State, state: State) -> None:
        """Follow the choices that need no fit."""
        chosen, old = state.parameters, before.parameters
        if (chosen.coloring, chosen.opacity, chosen.slicesOn) != (
            old.coloring,
            old.opacity,
            old.slicesOn,
        ):
            self.model.display(chosen)
        if (chosen.showTemplate, chosen.prior, chosen.coloring) != (
            old.showTemplate,
            old.prior,
            old.coloring,
        ):
            self.updateTemplate()
        self.moveLandmarks()

    def updateTemplate(self) -> None:
        """Show the template if it is wanted, and ask for it if it has not come."""
        chosen = self._structure.parameters
        if chosen.showTemplate and chosen.prior:
            self.askTemplate()
        self.template.show(chosen, self.reconstruction)

    def askTemplate(self) -> None:
        """Ask for the template that the fit chose, unless it has come."""
        prior = self._structure.parameters.prior
        number = templateNumber(prior, self.reconstruction)
        if not self.template.has(prior, number):
            self._askTemplate(prior, number)

    def moveLandmarks(self) -> None:
        """Put the landmarks where the template's are on this surface."""
        self.template.moveLandmarks(self.reconstruction)

    def _keepResiduals(self, residuals: Residuals) -> None:
        kept = {node: [r.name, r.kind, r.mean_mm, r.max_mm] for node, r in residuals.items()}
        self._structure.node.SetParameter(RESIDUALS_PARAMETER, json.dumps(kept))


def _readResiduals(text: str) -> Residuals:
    try:
        return {key: Residual(*values) for key, values in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _digest(inputs: Inputs) -> str:
    return hashlib.blake2b(repr(inputs).encode(), digest_size=16).hexdigest()
