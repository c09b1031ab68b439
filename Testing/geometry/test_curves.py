"""Slicer's closed curve, against points that 3D Slicer itself returned."""

from __future__ import annotations

import numpy as np

from model_server.geometry.curves import closed_spline

# vtkMRMLMarkupsClosedCurveNode::GetCurvePointsWorld() of slicer-core 5.12.4, which keeps floats.
CONTROL_POINTS = np.array(
    [[10, 0, 5], [8, 7, 5], [0, 9, 5], [-9, 6, 5], [-7, -5, 5], [1, -8, 5]], dtype=float
)
SLICER = {
    0: (10.0, 0.0, 5.0),
    5: (10.274999618530273, 4.099999904632568, 5.0),
    13: (6.032599925994873, 8.066200256347656, 5.0),
    27: (-7.081200122833252, 7.866000175476074, 5.0),
    41: (-6.381800174713135, -5.8796000480651855, 5.0),
    58: (8.852800369262695, -1.8880000114440918, 5.0),
}
SLICER_COUNT = 61  # the first point stands again at the end


def test_closed_spline_is_the_curve_that_slicer_draws():
    curve = closed_spline(CONTROL_POINTS)
    assert len(curve) == SLICER_COUNT - 1
    for index, place in SLICER.items():
        np.testing.assert_allclose(curve[index], place, atol=1e-5)
