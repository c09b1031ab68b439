"""Results in DICOM: what they refer to, and which of the two kinds a file is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model_server.errors import ShapePriorError
from model_server.io.dicom import Series, dicom_series, is_dicom
from model_server.io.dicom_segments import (
    is_segmentation,
    require_highdicom,
    write_dicom_segmentation,
)
from model_server.io.quiet import quiet_libraries
from model_server.io.structure_set_writing import write_structure_set
from model_server.io.structure_sets import structure_set_of
from model_server.io.writing import Write
from model_server.observations import Grid, Volume
from model_server.reconstruction import Reconstruction

SEGMENTS_FORMAT, DICOM_FORMAT = ".seg.dcm", ".dcm"
DICOM_FORMATS = (SEGMENTS_FORMAT, DICOM_FORMAT)


@dataclass(frozen=True)
class DicomSources:
    """What was read, as far as DICOM results refer to it.

    Attributes:
        contoured: structure set of the annotations; ``.dcm`` is one then, too, else a segmentation.
        roi: name or number of the structure that was drawn.
        image: volume that was annotated, a DICOM series or not.
        side: of the organ found: "left", "right" or "".
    """

    contoured: Path | None = None
    roi: str = ""
    image: Path | None = None
    side: str = ""

    @classmethod
    def of(cls, annotations: Sequence[Path], roi: str, image: Path | None) -> DicomSources:
        """Of the files that a fit is given.

        Raises:
            ShapePriorError: several structure sets, or none but a structure was chosen.
        """
        return cls(structure_set_of(annotations, roi), roi, image)

    def is_structure_set(self, suffix: str) -> bool:
        """Whether a file of a DICOM format is one, and not a segmentation."""
        return suffix == DICOM_FORMAT and self.contoured is not None

    def require(self, path: Path, suffix: str) -> None:
        """Refuse, before any work is done, a result that would refer to nothing.

        Args:
            path: of the file.
            suffix: its format, one of ``DICOM_FORMATS``.

        Raises:
            ShapePriorError: a segmentation without a DICOM series, or without highdicom.
        """
        if self.is_structure_set(suffix):
            return
        if not self._has_series():
            raise ShapePriorError(
                f"'{path}' would be a DICOM segmentation, but there is no DICOM series that it "
                "refers to.",
                "Give the series (its folder, or one of its files) by --reference or --image.",
                "no-series",
            )
        require_highdicom()

    def _has_series(self) -> bool:
        image = self.image
        return image is not None and (
            image.is_dir() or (is_dicom(image) and not is_segmentation(image))
        )

    def _series(self) -> Series | None:
        if self.image is None or not self._has_series():
            return None
        with quiet_libraries():
            return dicom_series(self.image)

    def writer(
        self, found: Reconstruction, suffix: str, organ: str, reference: Volume | Grid | None
    ) -> Write:
        """What writes a result in a format of DICOM.

        Args:
            found: RAS mm.
            suffix: one of ``DICOM_FORMATS``.
            organ: e.g. "kidney".
            reference: volume whose slices are contoured.

        Raises:
            ShapePriorError: the series cannot be read any more.
        """
        series, made = self._series(), found.provenance
        made_by = (made.prior, made.version)
        contoured = self.contoured
        if contoured is not None and self.is_structure_set(suffix):
            return lambda path: write_structure_set(
                *(path, contoured, self.roi, found.surface, " ".join(made_by), reference, series)
            )
        if series is None:
            raise ShapePriorError(
                "There is no DICOM series that a segmentation refers to.",
                "Give the series by --reference or --image.",
                "no-series",
            )
        sided = f"{self.side} {organ}".strip()
        return lambda path: write_dicom_segmentation(path, series, found.surface, sided, made_by)
