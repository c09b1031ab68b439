"""One fit from files to files, for every command that fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_server.errors import ShapePriorError

if TYPE_CHECKING:
    from model_server.observations import Grid, Observations
    from model_server.priors.protocol import ShapePrior
    from model_server.reconstruction import Reconstruction

    # Told each surface and the seconds since the fit began.
    Progress = Callable[[Reconstruction, float], None]

SIDES = ("auto", "left", "right")


@dataclass(frozen=True)
class MaskChoice:
    """Which of the labels of a mask's file is the organ.

    Attributes:
        labels: values of its voxels.
        segment: name, id or number of its segment.
    """

    labels: tuple[int, ...] = ()
    segment: str = ""


class Session:
    """One fit from files to files, and what each part of it took.

    Args:
        prior: loaded.
        observations: RAS mm.
        reference: grid of labelmaps, or None.
        seconds: stages so far.
    """

    def __init__(
        self,
        prior: ShapePrior,
        observations: Observations,
        reference: Grid | None,
        seconds: dict[str, float],
    ) -> None:
        self.prior = prior
        self.observations = observations
        self.reference = reference
        self.seconds = seconds

    @classmethod
    def opened(
        cls,
        prior: str | Path,
        annotations: Sequence[Path],
        mask: Path | None,
        reference: Path | None,
        device: str,
        choice: MaskChoice = MaskChoice(),
    ) -> Session:
        """Read everything a fit needs.

        Args:
            prior: a name of the registry, or a folder.
            annotations: markups files.
            mask: label file to refine.
            reference: volume of which the header alone is read.
            device: "auto", "cpu" or "cuda".
            choice: which of the mask's labels is the organ.

        Raises:
            ShapePriorError: a file cannot be used, or there is no such prior.
        """
        from model_server.cases.masks import read_mask
        from model_server.io.markups import read_annotations
        from model_server.io.volumes import read_grid
        from model_server.priors.registry import load_prior

        began = time.perf_counter()
        if mask is None and choice != MaskChoice():
            raise ShapePriorError(
                "--label and --segment go with --mask only.", "Give --mask, or neither of them."
            )
        image = read_grid(reference) if reference else None
        label = read_mask(mask, choice.labels, choice.segment) if mask else None
        observations = read_annotations(annotations, label, image)
        observations.require_enough()
        read = time.perf_counter()
        loaded = load_prior(prior, device)
        seconds = {"read annotations": read - began, "load prior": time.perf_counter() - read}
        return cls(loaded, observations, image, seconds)

    def fit(
        self, side: str = "auto", progress: Progress | None = None, strength: float = 1.0
    ) -> Reconstruction:
        """The last of the surfaces the prior yields.

        Args:
            side: "auto", "left" or "right".
            progress: told each surface.
            strength: multiplies the weight of the prior.

        Raises:
            ShapePriorError: the annotations cannot determine a surface.
        """
        from model_server.priors.context import with_context
        from model_server.priors.protocol import FitSettings

        began = time.perf_counter()
        result = None
        settings = FitSettings(prior_strength=strength, side=side)
        for result in self.prior.fit(self.observations, settings=settings):
            if progress:
                progress(result, time.perf_counter() - began)
        if result is None:
            raise ShapePriorError("The fit yielded no surface.", "Try another prior.")
        self.seconds["fit"] = time.perf_counter() - began
        return with_context(self.prior, result)

    def write(
        self,
        result: Reconstruction,
        paths: Sequence[Path],
        report_file: Path | None,
        more: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write the results and the report together; returns the report.

        Args:
            result: RAS mm.
            paths: where; the ending decides the format.
            report_file: where the report goes, or None.
            more: further entries of the report.

        Raises:
            ShapePriorError: the reference does not contain the shape, or a file cannot be written.
        """
        from model_server.io.outputs import write_outputs
        from model_server.jobs.report import as_json
        from model_server.jobs.report import report as make_report
        from model_server.priors.card import part_names

        content = {**make_report(result, self.seconds, self.observations), **(more or {})}
        others = {report_file: as_json(content)} if report_file else {}
        card = self.prior.card
        write_outputs(result, paths, self.reference, card.organ, others, part_names(card))
        return content
