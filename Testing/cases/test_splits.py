"""Which cases train, and which validate."""

from __future__ import annotations

from model_server.cases.organs import Labels, labels_of
from model_server.cases.splits import split_cases


def test_every_tenth_patient_validates_with_both_kidneys(tmp_path):
    for patient in range(21):
        for side in ("left", "right"):
            (tmp_path / f"kidney_{patient:03d}_{side}.nii.gz").touch()
    split = split_cases(tmp_path)
    names = [c.name for c in split.validation]
    assert names == [f"kidney_{p:03d}_{s}" for p in (0, 10, 20) for s in ("left", "right")]
    assert len(split.training) == 36
    assert split.validation[1].side == "right"


def test_cases_of_one_patient_stay_together(tmp_path):
    for number in range(20):
        (tmp_path / f"liver_lits_{number}.nii.gz").touch()
    split = split_cases(tmp_path)
    held = {c.name for c in split.validation}
    for group in ((6, 7, 8, 9), (0, 1), (14, 15)):
        assert len({f"liver_lits_{n}" in held for n in group}) == 1


def test_a_lobe_is_a_value_of_the_lobes_and_other_organs_have_a_folder():
    assert labels_of("lung-left-upper-lobe") == Labels("lung_lobes", (4,))
    assert labels_of("submandibular-gland") == Labels("submandibular_gland")
