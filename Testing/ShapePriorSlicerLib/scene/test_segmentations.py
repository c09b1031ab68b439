"""Surfaces of a real MRML scene as segments, their parts beside them, and back by undo."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
import vtk
from organs import (
    BINARY,
    GEOMETRIES,
    TRUE_ML,
    ellipsoid,
    moving,
    requireEllipsoid,
    segmentPoints,
    terminology,
    volumeIn,
    voxels,
)
from scenes import CENTER, RADII, transformed
from ShapePriorSlicerLib.scene.coloring import PART_COLORS
from ShapePriorSlicerLib.scene.meshes import pointsOf, polyDataOf, trianglesOf
from ShapePriorSlicerLib.scene.segmentations import (
    partIdsOf,
    restoreSegment,
    saveToSegmentation,
    segmentState,
)
from ShapePriorSlicerLib.scene.terminology import terminologyOf
from ShapePriorSlicerLib.scene.voxels import gridOf
from vtk.util.numpy_support import vtk_to_numpy

from model_server.errors import ShapePriorError
from model_server.io.terminology import TERMS
from model_server.reconstruction import Surface


def refusal(*arguments):
    with pytest.raises(ShapePriorError) as caught:
        saveToSegmentation(*arguments)
    assert caught.value.remedy
    return caught.value.code


def layer(scene, *corners):
    """A segmentation whose segments, 8 mm cubes, share one layer."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "organs")
    node.CreateDefaultDisplayNodes()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for number, corner in enumerate(corners):
        made = node.GetSegmentation().AddEmptySegment(f"s{number}", f"cube {number}")
        image = slicer.vtkOrientedImageData()
        image.SetExtent(*(v for c in corner for v in (c, c + 7)))
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        image.GetPointData().GetScalars().Fill(1)
        assert logic.SetBinaryLabelmapToSegment(image, node, made, logic.MODE_REPLACE)
    return node


def asSlicerReads(segmentation, segmentId):
    """The voxels of a segment in the geometry of the segmentation: for its export and files."""
    image = slicer.vtkOrientedImageData()
    assert segmentation.GetBinaryLabelmapRepresentation(segmentId, image)
    return image.GetOrigin(), image.GetSpacing(), np.count_nonzero(voxels(image))


def snapshot(node, segmentId):
    points, _ = segmentPoints(node, segmentId)
    segment = node.GetSegmentation().GetSegment(segmentId)
    order = np.lexsort(points.T)
    seen = asSlicerReads(node, segmentId)
    return points[order].round(4).tolist(), segment.GetName(), segment.GetColor(), seen


# --- what cannot be a segment --------------------------------------------------------------------


def test_without_a_volume_there_are_no_voxels(scene, model):
    assert refusal(scene, model, None) == "no-volume"
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    assert refusal(scene, model, empty) == "no-volume"
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_voxels_without_extent_are_refused(scene, model, volume):
    flat = moving()
    flat[:3, 2] = 0.0
    transformed(scene, flat, volume)
    assert refusal(scene, model, volume) == "bad-geometry"


def test_a_bending_transform_is_refused(scene, model, volume):
    bend = scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
    bend.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
    volume.SetAndObserveTransformNodeID(bend.GetID())
    assert refusal(scene, model, volume) == "nonlinear-transform"


@pytest.mark.parametrize("shift", [14.0, 60.0, 1e6])
def test_a_surface_outside_the_volume_is_refused(scene, model, shift):
    volume = volumeIn(scene, size=(30, 60, 40), center=CENTER + np.array([0, shift, 0]))
    assert refusal(scene, model, volume) == "outside"


def test_a_little_outside_is_cut_off(scene, model):
    volume = volumeIn(scene, size=(30, 40, 40))
    node, segmentId = saveToSegmentation(scene, model, volume)
    requireEllipsoid(*segmentPoints(node, segmentId))


def test_voxels_larger_than_the_organ_are_refused(scene, model):
    volume = volumeIn(scene, size=(4, 4, 4), spacing=(60.0, 60.0, 60.0))
    assert refusal(scene, model, volume) == "empty"


def test_a_surface_with_holes_is_refused(scene, model, volume):
    known = ellipsoid()
    surface = Surface(pointsOf(known), trianglesOf(known)[:-1])
    model.SetAndObservePolyData(polyDataOf(surface))
    assert refusal(scene, model, volume) == "open-surface"


# --- segmentations ------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_new_segmentation_takes_the_volume_s_voxels(scene, model, geometry):
    volume = volumeIn(scene, **GEOMETRIES[geometry])
    node, segmentId = saveToSegmentation(scene, model, volume, organ="left kidney")
    requireEllipsoid(*segmentPoints(node, segmentId))
    segment = node.GetSegmentation().GetSegment(segmentId)
    assert segment.GetName() == "Left kidney"
    assert segment.GetColor() == pytest.approx(TERMS["kidney"].color)
    assert node.GetDisplayNode() is not None
    image = segment.GetRepresentation(BINARY)
    assert np.allclose(image.GetSpacing(), volume.GetSpacing(), atol=1e-6)
    assert image.GetNumberOfPoints() < volume.GetImageData().GetNumberOfPoints()
    reference = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
    assert reference is volume


TRANSFORMED = [
    (None, None),
    (moving(), None),
    (None, moving()),
    (moving(), moving(20.0, (0, 1, 1))),
]


@pytest.mark.parametrize(("ofVolume", "ofSegmentation"), TRANSFORMED)
@pytest.mark.parametrize("existing", [False, True])
def test_everything_may_be_under_its_own_transform(
    scene, model, volume, ofVolume, ofSegmentation, existing
):
    # The organ goes with the volume.
    if ofVolume is not None:
        transformed(scene, ofVolume, volume)
        transformed(scene, ofVolume, model)
    segmentation = None
    if existing:
        segmentation = layer(scene, (0, 0, 0))
        if ofSegmentation is not None:
            transformed(scene, ofSegmentation, segmentation)
    node, segmentId = saveToSegmentation(scene, model, volume, segmentation)
    points, voxel = segmentPoints(node, segmentId)
    requireEllipsoid(points, voxel, ofVolume)
    if not existing:
        assert node.GetTransformNodeID() == volume.GetTransformNodeID()
    # The very voxels of the volume.
    ijk = np.linalg.inv(gridOf(volume).ijkToWorld)
    index = points @ ijk[:3, :3].T + ijk[:3, 3]
    assert np.abs(index - index.round()).max() < 1e-4


def test_shear_between_volume_and_segmentation_is_refused(scene, model, volume):
    segmentation = layer(scene, (0, 0, 0))
    shear = np.eye(4)
    shear[0, 1] = 0.3
    transformed(scene, shear, segmentation)
    assert refusal(scene, model, volume, segmentation) == "sheared"
    assert segmentation.GetSegmentation().GetNumberOfSegments() == 1


def test_a_segment_that_is_replaced_keeps_its_id_and_its_neighbors(scene, model, volume):
    node = layer(scene, (0, 0, 0), (20, 0, 0), (40, 0, 0))
    content = node.GetSegmentation()
    assert content.GetNumberOfLayers() == 1
    before = [snapshot(node, f"s{n}") for n in (0, 2)]
    made, segmentId = saveToSegmentation(
        scene, model, volume, node, "s1", organ="liver", color=(1.0, 0.0, 0.0)
    )
    assert (made, segmentId) == (node, "s1")
    assert [content.GetNthSegmentID(n) for n in range(3)] == ["s0", "s1", "s2"]
    assert [snapshot(node, f"s{n}") for n in (0, 2)] == before
    requireEllipsoid(*segmentPoints(node, "s1"))
    segment = content.GetSegment("s1")
    assert segment.GetName() == "cube 1"
    assert segment.GetColor() == (1.0, 0.0, 0.0)
    assert terminology(segment) == terminologyOf("liver")


def test_an_overlapping_neighbor_stays_whole(scene, model, volume):
    node = layer(scene, (-30, 5, 25), (60, 60, 60))  # the first inside the organ
    before = [snapshot(node, f"s{n}") for n in (0, 1)]
    _, new = saveToSegmentation(scene, model, volume, node, name="organ")
    saveToSegmentation(scene, model, volume, node, "s1")
    assert snapshot(node, "s0") == before[0]
    requireEllipsoid(*segmentPoints(node, new))
    requireEllipsoid(*segmentPoints(node, "s1"))


def test_saving_again_moves_the_segment(scene, model, volume):
    node, segmentId = saveToSegmentation(scene, model, volume, organ="spleen")
    model.SetAndObservePolyData(ellipsoid(CENTER + np.array([5.0, 0.0, 0.0]), RADII * 0.5))
    again = saveToSegmentation(scene, model, volume, node, segmentId, organ="spleen")
    assert again == (node, segmentId)
    assert node.GetSegmentation().GetNumberOfSegments() == 1
    points, _ = segmentPoints(node, segmentId)
    assert np.abs(points.mean(axis=0) - CENTER - [5.0, 0, 0]).max() < 0.2
    assert len(points) / 1000.0 == pytest.approx(TRUE_ML / 8, rel=0.05)


def test_a_surface_that_was_shown_follows(scene, model, volume):
    node, segmentId = saveToSegmentation(scene, model, volume)
    assert node.CreateClosedSurfaceRepresentation()
    model.SetAndObservePolyData(ellipsoid(CENTER + np.array([6.0, 0.0, 0.0])))
    saveToSegmentation(scene, model, volume, node, segmentId)
    surface = vtk.vtkPolyData()
    node.GetClosedSurfaceRepresentation(segmentId, surface)
    assert surface.GetCenter()[0] == pytest.approx(CENTER[0] + 6.0, abs=0.5)


def test_a_segmentation_of_surfaces_takes_the_surface(scene, model, volume):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surfaces")
    content = node.GetSegmentation()
    content.SetSourceRepresentationName("Closed surface")
    cube = vtk.vtkCubeSource()
    cube.Update()
    node.AddSegmentFromClosedSurfaceRepresentation(cube.GetOutput(), "cube", [1, 0, 0], "cube")
    transformed(scene, moving(), node)
    _, segmentId = saveToSegmentation(scene, model, volume, node, "organ")
    assert segmentId == "organ"
    found = content.GetSegment("organ").GetRepresentation("Closed surface")
    world = pointsOf(found) @ moving()[:3, :3].T + moving()[:3, 3]
    assert np.abs(world - pointsOf(ellipsoid())).max() < 1e-3
    state = segmentState(node, "organ")
    model.SetAndObservePolyData(ellipsoid(CENTER + 3.0))
    saveToSegmentation(scene, model, volume, node, "organ")
    restoreSegment(node, "organ", state)
    again = content.GetSegment("organ").GetRepresentation("Closed surface")
    assert np.allclose(pointsOf(again), pointsOf(found))
    assert content.GetSegment("cube").GetRepresentation("Closed surface") is not None


def requireParts(node, name, organ):
    """The organ, and its two parts which share its voxels."""
    content = node.GetSegmentation()
    ids = content.GetSegmentIDs()[-3:]
    segments = [content.GetSegment(found) for found in ids]
    assert [s.GetName() for s in segments] == [name, f"{name} front", f"{name} Part 2"]
    for number, segment in enumerate(segments[1:]):
        assert segment.GetColor() == pytest.approx(PART_COLORS[number])
        assert terminology(segment) == terminologyOf(organ)
    whole, front, back = (segmentPoints(node, found)[0] for found in ids)
    requireEllipsoid(whole, segmentPoints(node, ids[0])[1])
    together = np.concatenate([front, back])
    assert len(together) == len(np.unique(together.round(4), axis=0)) == len(whole)
    assert np.abs(np.sort(together, axis=0) - np.sort(whole, axis=0)).max() < 1e-4
    assert len(front) == pytest.approx(len(back), rel=0.2)
    assert front[:, 1].min() > CENTER[1] - 2.0
    assert back[:, 1].max() < CENTER[1] + 2.0


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("existing", [False, True])
def test_parts_stand_beside_the_organ(scene, parted, geometry, existing):
    volume = volumeIn(scene, **GEOMETRIES[geometry])
    node = layer(scene, (-30, 5, 25), (60, 60, 60)) if existing else None
    before = []
    if existing:
        transformed(scene, moving(), node)
        before = [snapshot(node, f"s{n}") for n in (0, 1)]
    node, segmentId = saveToSegmentation(
        scene, parted, volume, node, name="Hippocampus", organ="hippocampus"
    )
    requireParts(node, "Hippocampus", "hippocampus")
    # The outline alone is drawn over the parts.
    display = node.GetDisplayNode()
    ids = (segmentId, *partIdsOf(node, segmentId))
    assert [display.GetSegmentVisibility2DFill(found) for found in ids] == [False, True, True]
    assert [snapshot(node, f"s{n}") for n in range(len(before))] == before


def test_saving_again_keeps_the_user_s_colors_and_takes_away_parts_that_went(scene, parted, volume):
    node, segmentId = saveToSegmentation(scene, parted, volume, name="organ")
    content, display = node.GetSegmentation(), node.GetDisplayNode()
    front, back = partIdsOf(node, segmentId)
    content.GetSegment(front).SetColor(1.0, 0.0, 0.0)
    display.SetSegmentVisibility2DFill(segmentId, True)
    parts = vtk_to_numpy(parted.GetPolyData().GetPointData().GetArray("Part"))
    parts[parts == 2] = 4
    saveToSegmentation(scene, parted, volume, node, segmentId)
    again, fourth = partIdsOf(node, segmentId)
    assert (again, content.GetSegment(back)) == (front, None)
    assert content.GetSegment(front).GetColor() == (1.0, 0.0, 0.0)
    assert content.GetSegment(fourth).GetName() == "organ Part 4"
    assert display.GetSegmentVisibility2DFill(segmentId)  # as the user wants it
    display.SetSegmentVisibility2DFill(segmentId, False)
    parted.SetAndObservePolyData(ellipsoid())
    saveToSegmentation(scene, parted, volume, node, segmentId)
    assert list(content.GetSegmentIDs()) == [segmentId]
    assert display.GetSegmentVisibility2DFill(segmentId)


def test_a_segmentation_of_surfaces_takes_no_parts(scene, parted, volume):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surfaces")
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    saveToSegmentation(scene, parted, volume, node, "organ")
    assert list(node.GetSegmentation().GetSegmentIDs()) == ["organ"]


@pytest.mark.parametrize(
    ("organ", "codes"),
    [
        ("hippocampus", "~SCT^5366008^Hippocampus~^^~"),
        ("liver", "~SCT^10200004^Liver~^^~"),
        ("kidney", "~SCT^64033007^Kidney~^^~"),
        ("left kidney", "~SCT^64033007^Kidney~SCT^7771000^Left~"),
        ("Kidney, right", "~SCT^64033007^Kidney~SCT^24028007^Right~"),
        ("pancreas", "~SCT^15776009^Pancreas~^^~"),
        ("spleen", "~SCT^78961009^Spleen~^^~"),
        ("left-atrium", "~SCT^82471001^Left atrium~^^~"),
        ("right parotid", "~SCT^45289007^Parotid gland~SCT^24028007^Right~"),
        ("left submandibular-gland", "~SCT^54019009^Submandibular gland~SCT^7771000^Left~"),
        ("lung-left-lower-lobe", "~SCT^90572001^Lower lobe of lung~SCT^7771000^Left~"),
        ("lung-right-middle-lobe", "~SCT^72481006^Middle lobe of right lung~^^~"),
    ],
)
def test_organs_have_codes(organ, codes):
    entry = terminologyOf(organ)
    assert codes in entry
    assert entry.count("~") == 6
    assert "SCT^123037004^Anatomical Structure" in entry


def test_an_organ_without_a_code_keeps_what_slicer_gave(scene, model, volume):
    node, segmentId = saveToSegmentation(scene, model, volume, organ="left patella")
    segment = node.GetSegmentation().GetSegment(segmentId)
    assert "Tissue" in terminology(segment)
    assert segment.GetName() == "organ"


# --- undo ---------------------------------------------------------------------------------------


def test_saving_a_new_segment_is_undone_and_done_again(scene, model, volume):
    node = layer(scene, (0, 0, 0))
    other = snapshot(node, "s0")
    before = segmentState(node, "organ")
    saveToSegmentation(scene, model, volume, node, "organ", organ="liver")
    after, shown = segmentState(node, "organ"), snapshot(node, "organ")
    for _ in range(2):
        restoreSegment(node, "organ", before)
        assert node.GetSegmentation().GetSegment("organ") is None
        restoreSegment(node, "organ", after)
        assert snapshot(node, "organ") == shown
        segment = node.GetSegmentation().GetSegment("organ")
        assert terminology(segment) == terminologyOf("liver")
    assert snapshot(node, "s0") == other
    assert segmentState(None, None).description is None


def test_replacing_a_segment_of_a_shared_layer_is_undone(scene, model, volume):
    node = layer(scene, (-30, 5, 25), (0, 0, 0), (-20, 5, 25))
    all_ = [snapshot(node, f"s{n}") for n in range(3)]
    node.GetSegmentation().GetSegment("s1").SetTag("Segmentation.Status", "completed")
    state = segmentState(node, "s1")
    saveToSegmentation(
        scene, model, volume, node, "s1", organ="liver", color=(1.0, 0.0, 0.0), name="Liver"
    )
    changed = snapshot(node, "s1")
    redo = segmentState(node, "s1")
    restoreSegment(node, "s1", state)
    assert [snapshot(node, f"s{n}") for n in range(3)] == all_
    segment = node.GetSegmentation().GetSegment("s1")
    assert "Liver" not in terminology(segment)
    value = vtk.reference("")
    assert segment.GetTag("Segmentation.Status", value)
    assert str(value) == "completed"
    restoreSegment(node, "s1", redo)
    assert snapshot(node, "s1") == changed


def test_a_segment_deleted_since_comes_back_in_its_place(scene, model, volume):
    node = layer(scene, (0, 0, 0), (20, 0, 0), (40, 0, 0))
    state, shown = segmentState(node, "s1"), snapshot(node, "s1")
    node.GetSegmentation().RemoveSegment("s1")
    restoreSegment(node, "s1", state)
    content = node.GetSegmentation()
    assert [content.GetNthSegmentID(n) for n in range(3)] == ["s0", "s1", "s2"]
    assert snapshot(node, "s1") == shown


def test_an_empty_segment_becomes_empty_again(scene, model, volume):
    node = layer(scene, (0, 0, 0))
    node.GetSegmentation().AddEmptySegment("empty", "empty")
    state = segmentState(node, "empty")
    saveToSegmentation(scene, model, volume, node, "empty")
    restoreSegment(node, "empty", state)
    image = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation("empty", image)
    scalars = image.GetPointData().GetScalars()
    assert scalars is None or not vtk_to_numpy(scalars).any()
