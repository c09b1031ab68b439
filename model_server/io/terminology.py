"""What SNOMED CT and Slicer's terminologies call an organ."""

from __future__ import annotations

from dataclasses import dataclass, replace

Color = tuple[float, float, float]
SIDES = {"left": "SCT^7771000^Left", "right": "SCT^24028007^Right"}
TISSUE = "SCT^85756007^Tissue~SCT^85756007^Tissue~^^"  # of what has no code here
TISSUE_COLOR = (0.5020, 0.6824, 0.5020)


@dataclass(frozen=True)
class Term:
    """An anatomical structure: SNOMED CT ``code``, its ``meaning``, its usual color, and the
    ``side`` that was named beside it: "left", "right" or ""."""

    code: str
    meaning: str
    color: Color
    side: str = ""

    @property
    def name(self) -> str:
        """As a segment is called: "Left kidney"."""
        return f"{self.side} {self.meaning}".strip().capitalize()

    @property
    def entry(self) -> str:
        """Category, type and side as Slicer's terminology entries have them."""
        structure = f"SCT^123037004^Anatomical Structure~SCT^{self.code}^{self.meaning}"
        return f"{structure}~{SIDES.get(self.side, '^^')}"


# By the words that name them. Codes and colors of Slicer's general anatomy list. What it lacks has
# SNOMED CT's codes as DICOM has them (CID 7140 and 4); of colors, the hippocampus has the
# amygdala's, the left atrium that of Slicer's DICOM list, glands that of salivary glands.
TERMS = {
    "hippocampus": Term("5366008", "Hippocampus", (98 / 255, 153 / 255, 112 / 255)),
    "kidney": Term("64033007", "Kidney", (185 / 255, 102 / 255, 83 / 255)),
    "liver": Term("10200004", "Liver", (221 / 255, 130 / 255, 101 / 255)),
    "pancreas": Term("15776009", "Pancreas", (249 / 255, 180 / 255, 111 / 255)),
    "spleen": Term("78961009", "Spleen", (157 / 255, 108 / 255, 162 / 255)),
    "left atrium": Term("82471001", "Left atrium", (203 / 255, 108 / 255, 81 / 255)),
    "mandible": Term("91609006", "Mandible", (222 / 255, 198 / 255, 101 / 255)),
    "brainstem": Term("119238007", "Brain stem", (85 / 255, 188 / 255, 255 / 255)),
    "parotid": Term("45289007", "Parotid gland", (70 / 255, 163 / 255, 117 / 255)),
    "submandibular gland": Term(
        "54019009", "Submandibular gland", (70 / 255, 163 / 255, 117 / 255)
    ),
    "upper lobe lung": Term("45653009", "Upper lobe of lung", (172 / 255, 138 / 255, 115 / 255)),
    "right middle lobe lung": Term(
        "72481006", "Middle lobe of right lung", (202 / 255, 164 / 255, 140 / 255)
    ),
    "lower lobe lung": Term("90572001", "Lower lobe of lung", (224 / 255, 186 / 255, 162 / 255)),
}


def term_of(organ: str | None) -> Term | None:
    """The term of "liver", "left kidney", "kidney, right" or "lung-left-upper-lobe"; the most
    words count. None for an organ without a code here."""
    words = set((organ or "").lower().translate(str.maketrans(",_-", "   ")).split())
    known = [name for name in TERMS if words.issuperset(name.split())]
    if not known:
        return None
    name = max(known, key=lambda name: (len(name.split()), name))
    beside = words.difference(name.split())
    return replace(TERMS[name], side=next((side for side in SIDES if side in beside), ""))
