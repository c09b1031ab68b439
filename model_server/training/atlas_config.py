"""Hyperparameters of an ImplicitAtlas."""

from __future__ import annotations

from dataclasses import dataclass, field

from model_server.training.pointwolf import PointWolf


@dataclass(frozen=True)
class AtlasTraining:
    """Hyperparameters.

    Attributes:
        latent_size: c.
        templates: m; the paper's is 5.
        base: nodes of the coarsest feature map; by default from the box.
        channels: of the feature maps, coarse to fine.
        hidden: width of the MLP.
        network, deforms: for baselines, see ``AtlasSizes``.
        controls: control points of D's linear part, at most; 0 for none.
        steps: optimizer steps.
        batch: shapes in a step.
        near_points: of each shape in each step, near its surface, beside the sub-grid.
        augmentations: warped copies of each training shape.
        softness: of the occupancy, in RMS radii: how far it takes from 0.73 to 0.27 across the
            surface. A voxel half filled is half occupied.
        latent_weight, smooth_weight, deformation_weight: of L2, L_LS, L_DP (section 4.3).
        learning_rate: peak, of the networks; latents use ``latent_rate``.
        half: bfloat16 convolutions.
        seed: of everything random.
    """

    latent_size: int = 384
    templates: int = 5
    base: tuple[int, int, int] | None = None
    channels: tuple[int, ...] = (16, 32, 16)
    hidden: int = 32
    network: str = "conv"
    deforms: bool = True
    controls: int = 1000
    steps: int = 6000
    batch: int = 16
    near_points: int = 3072
    augmentations: int = 0
    softness: float = 0.02
    latent_weight: float = 1e-3
    smooth_weight: float = 1e-3
    deformation_weight: float = 1e-2
    learning_rate: float = 2e-3
    latent_rate: float = 1e-3
    half: bool = True
    seed: int = 0
    wolf: PointWolf = field(default_factory=PointWolf)

    @property
    def linear(self) -> bool:
        """Whether D has a linear part."""
        return self.network == "conv" and self.templates > 0 and self.deforms and self.controls > 0


# For a handful of shapes: warped copies of them teach the networks how such shapes deform.
FEW_SHOT = AtlasTraining(steps=400, augmentations=40, deformation_weight=3e-3)
