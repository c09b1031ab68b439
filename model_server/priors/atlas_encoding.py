"""A full label volume as pose and latents of an atlas (ImplicitAtlas, section 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.cases.canonical import standardization
from model_server.fitting import engine
from model_server.fitting.field_form import FieldForm
from model_server.fitting.gauss_newton import Prior, settle, solve
from model_server.fitting.leftover import Leftover
from model_server.fitting.model import FitState
from model_server.fitting.terms import ClickTerm, Evidence, SideTerm
from model_server.geometry.labels import largest_component, spline_surface
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations, Volume
from model_server.pose import Pose
from model_server.priors.atlas_field import AtlasSettings
from model_server.priors.implicit_atlas import ImplicitAtlasPrior
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
DENSE_POINTS = 4000  # of a label volume's surface
SIDED_POINTS = 2000  # in the box around a label volume, inside or outside
SIDED_NOISE = 0.02  # their standard deviation, canonical units
SIDED_GAP = 0.1  # so far from the surface, in RMS radii
QUICK_MODES = 30  # latent axes with which templates are tried on a label volume
FINE_GRID = 64  # nodes along the shortest edge of the box for the surface of a label volume
# A few latents too many, and D carries places far from the surface into the template: hence their
# weight.
DENSE = AtlasSettings(
    steps=6, renew=2, noise_start=0.04, noise=0.02, latent_weight=10.0, grid=FINE_GRID,
    samples=DENSE_POINTS, held=False, at_mean=False,
)  # fmt: skip
LEFTOVER = Leftover(0.03, 0.06, 0.005)  # dense data tell finer detail
# A label volume tells center and size: so far may they be off (mm in RMS radii, log, radians).
DENSE_POSE = np.array([0.1, 0.1, 0.1, 0.05, 0.15, 0.15, 0.15])


@dataclass(frozen=True)
class Encoded:
    """A label volume as pose and latents.

    Attributes:
        state: pose (of the unmirrored world), whitened latent, template, and what it leaves over.
        latents: (c,).
        surface: RAS mm, leftovers included.
        plain: RAS mm, of pose and latent alone.
    """

    state: FitState
    latents: Array
    surface: Surface
    plain: Surface


def encode(prior: ImplicitAtlasPrior, label: Volume) -> Encoded:
    """The latents of a full label volume (the reconstruction of known and unknown shapes).

    Args:
        prior: trained.
        label: any non-zero voxel of the largest component is organ.

    Raises:
        ShapePriorError: the volume is empty.
    """
    surface = spline_surface(label)
    found = standardization(surface)
    pose = Pose(found.center, found.rms_radius / prior.rms_radius)
    evidence = dense_evidence(prior, label, surface, pose)
    units = DENSE_POSE * np.array([found.rms_radius] * 3 + [1.0] * 4)
    spread = np.diag(units**2)
    guessed = _guess(prior, label, pose)
    start = FitState(pose, guessed, np.zeros(7))
    few = dense_evidence(prior, label, surface, pose, every=10)
    state = _best_template(prior, start, few, spread)
    form = _form(prior, replace(DENSE, modes=prior.size))
    known = Prior.of(form, spread, 1.0)
    state = solve(form, [state], evidence, known, form.noises(warm=False))
    form.leftover = LEFTOVER
    whole = settle(form, state, evidence, False, DENSE_POINTS + SIDED_POINTS)

    def placed(one: FitState) -> Surface:
        canonical = form.shape(one)
        return Surface(one.pose.apply(canonical.points), canonical.triangles)

    return Encoded(whole, form.latents(state), placed(whole), placed(state))


def _form(prior: ImplicitAtlasPrior, settings: AtlasSettings) -> FieldForm:
    return FieldForm(prior.field(settings), settings, leftover=Leftover(spread=0.0))


def dense_evidence(
    prior: ImplicitAtlasPrior, label: Volume, surface: Surface, pose: Pose, every: int = 1
) -> Evidence:
    """A label volume's border, and places clear of it inside and outside; each ``every``-th.

    All over the box: with many latent axes D could carry places far from the surface into the
    template.
    """
    rng = np.random.default_rng(0)
    border = sample_surface(surface, DENSE_POINTS, rng)
    box = prior.decoder.box.double().cpu().numpy()
    points = pose.apply(rng.uniform(-box, box, (SIDED_POINTS, 3)))
    clear = cKDTree(border).query(points)[0] > SIDED_GAP * pose.scale * prior.rms_radius
    points = points[clear]
    organ = largest_component(np.asarray(label.array) > 0)
    index = np.round(label.to_ijk(points)).astype(int)[:, ::-1]
    known = ((index >= 0) & (index < organ.shape)).all(axis=1)
    inside = np.zeros(len(points), dtype=bool)
    inside[known] = organ[tuple(index[known].T)]
    own = SIDED_NOISE / prior.rms_radius
    within, beyond = points[inside][::every], points[~inside][::every]
    return Evidence(
        (
            ClickTerm(border[::every]),
            SideTerm(within, -1, trust=1.0, own=own),
            SideTerm(beyond, 1, trust=1.0, own=own),
        )
    )


def _guess(prior: ImplicitAtlasPrior, label: Volume, pose: Pose) -> Array:
    """(K,) whitened latents from the quick look at a label volume in a pose."""
    assert prior.quick is not None
    given = replace(pose, scale=pose.scale * prior.rms_radius / prior.quick.rms_radius)
    found = engine.place(prior.quick, Observations(label_map=label), FitSettings(pose=given))
    return prior.from_modes(found.latents)


def _best_template(
    prior: ImplicitAtlasPrior, start: FitState, evidence: Evidence, spread: Array
) -> FitState:
    """A few steps with few latents and a part of the evidence, all templates side by side."""
    count = min(QUICK_MODES, len(start.latent))
    form = _form(prior, replace(DENSE, steps=3, renew=3, modes=count))
    starts = [
        replace(start, latent=start.latent[:count], template=number)
        for number in range(prior.template_count)
    ]
    known = Prior.of(form, spread, 1.0)
    best = solve(form, starts, evidence, known, form.noises(warm=False))
    return replace(best, latent=np.concatenate([best.latent, start.latent[count:]]))
