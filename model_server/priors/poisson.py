"""Baseline without a prior: screened Poisson reconstruction (Kazhdan and Hoppe 2013)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from model_server.errors import ShapePriorError
from model_server.fitting.baseline import baseline_answer, baseline_card
from model_server.fitting.oriented import oriented_samples
from model_server.fitting.thinning import taken
from model_server.geometry.labels import oriented
from model_server.observations import Observations
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Reconstruction, Surface

SAMPLES = 200.0  # samples along the annotations' extent
DEPTH = 6  # of the octree: sparse samples carry no finer detail


class PoissonBaseline:
    """MeshLab's screened Poisson on samples with in-plane normals; no training."""

    card = baseline_card("poisson")

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield the one surface.

        Raises:
            ShapePriorError: too few annotations, no closed surface, or no pymeshlab.
        """
        del start, settings
        began = time.perf_counter()
        observations = taken(observations)
        yield baseline_answer(self.card, _poisson(observations), observations, began)


def _poisson(observations: Observations) -> Surface:
    import trimesh

    try:
        import pymeshlab
    except ImportError as error:
        raise ShapePriorError(
            "Screened Poisson needs pymeshlab, which is not installed.",
            "Install the extra: pip install 'shape-prior-slicer[evaluate]'.",
        ) from error
    extent = observations.extent_mm() or 100.0
    samples = oriented_samples(observations, extent / SAMPLES)
    meshes = pymeshlab.MeshSet(verbose=False)
    meshes.add_mesh(pymeshlab.Mesh(samples.points, v_normals_matrix=samples.normals))
    meshes.generate_surface_reconstruction_screened_poisson(depth=DEPTH, scale=1.5, threads=1)
    # Where outlines leave an end open the field may run out of its box.
    meshes.meshing_repair_non_manifold_edges()
    meshes.meshing_close_holes(maxholesize=100000)
    found = meshes.current_mesh()
    mesh = trimesh.Trimesh(found.vertex_matrix(), found.face_matrix())
    parts = mesh.split(only_watertight=True)
    if len(parts) == 0:
        raise ShapePriorError(
            "Poisson reconstruction found no closed surface through these annotations.",
            "Add an outline or more points.",
        )
    largest = max(parts, key=lambda part: abs(part.volume))
    return oriented(
        Surface(
            np.asarray(largest.vertices, dtype=np.float64),
            np.asarray(largest.faces, dtype=np.int32),
        )
    )
