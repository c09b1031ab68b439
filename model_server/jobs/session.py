"""One fit from files to files, for every command that fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_server.errors import ShapePriorError
from model_server.jobs.image_use import ImageUse

if TYPE_CHECKING:
    from model_server.imaging.look import Look
    from model_server.io.dicom_outputs import DicomSources
    from model_server.observations import Grid, Observations, Volume
    from model_server.priors.card import PriorCard
    from model_server.priors.protocol import ShapePrior
    from model_server.reconstruction import Reconstruction, Surface

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
        image: evidence, or None.
        look: of its reader; None where nobody reads the prior's organ.
        implied: whether the reference is the image, which surfaces may leave.
        dicom: what results in DICOM refer to; None where they refer to nothing.
    """

    def __init__(
        self,
        prior: ShapePrior,
        observations: Observations,
        reference: Grid | None,
        seconds: dict[str, float],
        image: Volume | None = None,
        look: Look | None = None,
        implied: bool = False,
        dicom: DicomSources | None = None,
    ) -> None:
        self.prior = prior
        self.observations = observations
        self.reference = reference
        self.seconds = seconds
        self.image, self.look = image, look
        self.implied = implied
        self.dicom = dicom
        self.use: ImageUse | None = None

    @classmethod
    def opened(
        cls,
        prior: str | Path,
        annotations: Sequence[Path],
        mask: Path | None,
        reference: Path | None,
        device: str,
        choice: MaskChoice = MaskChoice(),
        image: Path | None = None,
        use_image: bool = True,
        roi: str = "",
    ) -> Session:
        """Read everything a fit needs.

        Args:
            prior: a name of the registry, or a folder.
            annotations: markups files, and at most one structure set of DICOM.
            mask: label file to refine.
            reference: volume of which the header alone is read.
            device: "auto", "cpu" or "cuda".
            choice: which of the mask's labels is the organ.
            image: volume in which the organ is seen.
            use_image: whether it is evidence, too; else it is what was annotated, no more.
            roi: name or number of the structure in a structure set.

        Raises:
            ShapePriorError: a file cannot be used, or there is no such prior.
        """
        from model_server.cases.masks import read_mask
        from model_server.imaging.readers import Looks, Readers
        from model_server.io.dicom_outputs import DicomSources
        from model_server.io.markups import read_annotations
        from model_server.io.volumes import read_grid, read_volume
        from model_server.priors.registry import load_prior

        began = time.perf_counter()
        if mask is None and choice != MaskChoice():
            raise ShapePriorError(
                "--label and --segment go with --mask only.", "Give --mask, or neither of them."
            )
        seen = read_volume(image) if image and use_image else None
        annotated = reference or image
        grid = read_grid(annotated) if annotated else None
        label = read_mask(mask, choice.labels, choice.segment) if mask else None
        observations = read_annotations(annotations, label, grid, roi)
        if seen is None:
            observations.require_enough()
        read = time.perf_counter()
        loaded = load_prior(prior, device)
        look = None if seen is None else Looks(Readers(device)).of(loaded, seen)
        seconds = {"read annotations": read - began, "load prior": time.perf_counter() - read}
        dicom = DicomSources.of(annotations, roi, annotated)
        return cls(loaded, observations, grid, seconds, seen, look, reference is None, dicom)

    def look_at_image(self, searching: Callable[[float], None] | None = None) -> None:
        """Let the image tell; once, and before the fit.

        Args:
            searching: told the share of the search, where nothing is annotated.

        Raises:
            ShapePriorError: too little is annotated for a fit without the image, and it cannot be
                used.
        """
        from model_server.imaging.readers import found_in, observed

        if self.image is None or self.use is not None:
            return
        began = time.perf_counter()
        drawn = self.observations
        if drawn.empty:
            found = found_in(self.prior, self.look, searching, drawn.start)
            told = replace(drawn, reading=found.reading)
        else:
            told = observed(self.prior, self.look, self.image.name, drawn)
        self.use = ImageUse.of(self.image.name, self.look, told, len(drawn.left_out))
        self.observations = told
        told.require_enough()
        self.seconds["read image"] = time.perf_counter() - began

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

        self.look_at_image()
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
        surfaces: Mapping[Path, Surface] | None = None,
        trajectory: Path | None = None,
    ) -> dict[str, Any]:
        """Write the results and the report together; returns the report.

        Args:
            result: RAS mm.
            paths: where; the ending decides the format.
            report_file: where the report goes, or None.
            more: further entries of the report.
            surfaces: further ones, by their files.
            trajectory: where the way of the agent that found the organ goes, or None.

        Raises:
            ShapePriorError: the reference does not contain the shape, or a file cannot be written.
        """
        from model_server.io.dicom_outputs import DicomSources
        from model_server.io.outputs import VOXEL_FORMATS, format_of, write_outputs
        from model_server.jobs.report import as_json
        from model_server.jobs.report import report as make_report
        from model_server.priors.card import part_names

        content = {**make_report(result, self.seconds, self.observations, self.use), **(more or {})}
        others = {report_file: as_json(content)} if report_file else {}
        if trajectory is not None:
            others[trajectory] = as_json(self._trajectory())
        card = self.prior.card
        voxels = any(format_of(path) in VOXEL_FORMATS for path in paths)
        reference = self.reference if voxels or not self.implied else None
        names = part_names(card)
        dicom = replace(self.dicom or DicomSources(), side=_side(card, result))
        noise = self.observations.mask_noise
        cut = noise is not None and bool(noise.edges)  # the scan's edge, as the warning says
        write_outputs(result, paths, reference, card.organ, others, names, surfaces, dicom, cut)
        return content

    def _trajectory(self) -> dict[str, Any]:
        """The states of the agent, in order; RAS mm."""
        reading = self.observations.reading
        steps = [] if reading is None else [dict(step) for step in reading.path]
        image = None if self.image is None else self.image.name
        return {"prior": self.prior.card.name, "image": image, "steps": steps}


def _side(card: PriorCard, result: Reconstruction) -> str:
    """ "left" or "right" of paired organs, whose priors learned the left ones; else empty."""
    return ("right" if result.pose.mirrored else "left") if card.mirrors else ""
