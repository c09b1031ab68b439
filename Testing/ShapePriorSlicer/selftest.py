"""The module's self test, in a real Slicer: see ShapePriorSlicerTest and Testing/run_in_slicer.py.

It ships with the extension, so that Slicer's own ways to test a module find it.
"""

import time
from pathlib import Path

import slicer
from scipy.spatial import cKDTree
from ShapePriorSlicerLib.files.sample_data import (
    EXAMPLE_PRIOR,
    OUTLINES,
    exampleOutline,
    exampleTruth,
)
from ShapePriorSlicerLib.scene.structure import OUTLINE
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest


class SelfTest(ScriptedLoadableModuleTest):
    """The whole job on the bundled case, in a real Slicer with a real server process."""

    SECONDS = 120.0  # until a step that hangs is given up

    def setUp(self):
        """An empty scene, and the logic of the module's own panel."""
        slicer.mrmlScene.Clear(0)
        self.logic = slicer.util.getModuleWidget("ShapePriorSlicer").logic

    def runTest(self):
        """All tests."""
        self.setUp()
        try:
            self.test_outlinesToFiles()
        finally:
            self.logic.restartServer()

    def test_outlinesToFiles(self):
        """Three outlines to a surface, exported, undone, saved and loaded again."""
        session = self._reconstructed()
        folder = Path(slicer.util.tempDirectory())
        self.delayDisplay("Comparing with the truth")
        self.assertGreater(self._dice(folder / "hippocampus.nrrd"), 0.9)
        surface = slicer.util.loadModel(str(self.logic.export(folder / "hippocampus.stl")))
        mine = slicer.util.arrayFromModelPoints(session.model.node)
        self.assertLess(_farthest(slicer.util.arrayFromModelPoints(surface), mine), 0.01)
        segmentation = self.logic.saveSegment(None)
        # The hippocampus, its anterior and its posterior part.
        self.assertEqual(segmentation.GetSegmentation().GetNumberOfSegments(), 3)
        self._undoAndRedo(session)
        self._saveAndReload(folder / "scene.mrb", mine.copy())
        self.delayDisplay("All passed")

    def _reconstructed(self):
        self.delayDisplay("Three outlines of the bundled case")
        volume = self.logic.loadExample()
        session = self.logic.newSession(EXAMPLE_PRIOR, volume)
        for name in OUTLINES:
            session.add(OUTLINE, slicer.util.loadMarkups(str(exampleOutline(name))))
            session.save()  # one step of undo for each
        self._wait(lambda: session.status.phase in ("done", "failed") and not session.isActive())
        self.assertEqual(session.status.phase, "done", session.status.text)
        self.assertGreater(session.figures.volumeMl, 1.0)
        return session

    def _dice(self, path):
        self.logic.export(path)
        found = slicer.util.arrayFromVolume(slicer.util.loadLabelVolume(str(path))) > 0
        truth = slicer.util.arrayFromVolume(slicer.util.loadLabelVolume(str(exampleTruth()))) > 0
        return 2.0 * (found & truth).sum() / (found.sum() + truth.sum())

    def _undoAndRedo(self, session):
        self.delayDisplay("Undo and redo")
        self.assertEqual(self.logic.workspace.undo(), "Save as segment")
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"), [])
        self.assertEqual(self.logic.workspace.undo(), "Draw outline")
        self.assertEqual(len(session.outlines()), len(OUTLINES) - 1)
        self.assertEqual(self.logic.workspace.redo(), "Draw outline")
        self.assertEqual(len(session.outlines()), len(OUTLINES))
        self._wait(lambda: not session.isActive())

    def _saveAndReload(self, path, points):
        self.delayDisplay("Saving and loading the scene")
        self.assertTrue(slicer.util.saveScene(str(path)))
        slicer.mrmlScene.Clear(0)
        self.assertEqual(self.logic.workspace.sessions, [])
        slicer.util.loadScene(str(path))
        session = self.logic.workspace.current
        self.assertEqual(len(session.outlines()), len(OUTLINES))
        self.assertTrue(session.canUndo)
        again = slicer.util.arrayFromModelPoints(session.model.node)
        self.assertLess(_farthest(again, points), 0.01)

    def _wait(self, condition):
        end = time.monotonic() + self.SECONDS
        while not condition():
            self.assertLess(time.monotonic(), end, "waited for too long")
            slicer.app.processEvents()
            time.sleep(0.01)


def _farthest(points, others):
    """Largest distance from one of (N, 3) points to the nearest of (M, 3) others, mm."""
    return cKDTree(others).query(points)[0].max()
