"""The patch analyzer: four projectors over the LMM's patch features."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn

from rose_d2.layers.mlp import MLP
from rose_d2.modeling.backbone.lmm import LMMOutput
from rose_d2.modeling.patch_analyzer.build import PATCH_ANALYZER_REGISTRY
from rose_d2.modeling.patch_analyzer.super_patch import ROLES, SuperPatchLayout
from rose_d2.structures.patch_grid import PatchGrid
from rose_d2.structures.patch_predictions import PatchPredictions
from rose_d2.structures.query_proposals import QueryProposals

ROLE_CONDITIONINGS = ("embedding", "separate_heads", "none")


class RoleProjector(nn.Module):
    """A projector shared by all roles, or one per role."""

    def __init__(
        self, input_dim: int, hidden_dim: int, output_dim: int, own_roles: list[int]
    ) -> None:
        """
        Args:
            input_dim: D.
            hidden_dim: width of the hidden layer.
            output_dim: width of the result.
            own_roles: role ids with a projector of their own; [] for one shared by all.
        """
        super().__init__()
        self.output_dim = output_dim
        self.own_roles = own_roles
        self.copies = nn.ModuleList(
            MLP(input_dim, hidden_dim, output_dim) for _ in own_roles or [None]
        )

    def forward(self, features: torch.Tensor, roles: torch.Tensor) -> torch.Tensor:
        """Project (K, D) features of patches with roles (K,) to (K, output_dim)."""
        if not self.own_roles:
            return self.copies[0](features)
        outputs = features.new_zeros(len(features), self.output_dim)
        for role, mlp in zip(self.own_roles, self.copies, strict=True):
            # Every copy runs on every batch, if on zero rows, so that no rank skips one.
            chosen = (roles == role).nonzero().flatten()
            outputs = outputs.index_copy(0, chosen, mlp(features[chosen]).to(outputs.dtype))
        return outputs


@PATCH_ANALYZER_REGISTRY.register()
class StandardPatchAnalyzer(nn.Module):
    """Objectness of every patch, and mask, category and SigLIP embeddings of chosen ones.

    Each is a two-layer MLP with ReLU (paper sections 3.2 and 4.1). A shared MLP cannot easily
    tell a patch's role from interpolated positions, so the role is given to it.
    """

    @configurable
    def __init__(
        self,
        *,
        grid: PatchGrid,
        layout: SuperPatchLayout,
        input_dim: int,
        hidden_dim: int,
        prompt_dim: int,
        siglip_dim: int,
        role_conditioning: str = "embedding",
    ) -> None:
        """
        Args:
            grid: patches of the LMM's view.
            layout: roles of the patches.
            input_dim: D, width of the patch features and of the category embeddings.
            hidden_dim: width of the projectors' hidden layer.
            prompt_dim: E, width of the mask embeddings.
            siglip_dim: width of the SigLIP embeddings.
            role_conditioning: "embedding" adds a learned, zero-initialised vector per role to
                the features; "separate_heads" has projectors per role; "none" does neither.

        Raises:
            ValueError: for another `role_conditioning`.
        """
        super().__init__()
        if role_conditioning not in ROLE_CONDITIONINGS:
            raise ValueError(
                f"MODEL.PATCH_ANALYZER.ROLE_CONDITIONING is {role_conditioning!r}; allowed are "
                f"{', '.join(ROLE_CONDITIONINGS)}."
            )
        own = layout.roles if role_conditioning == "separate_heads" else []
        self.register_buffer("roles", layout.role_of_patches(grid), persistent=False)
        self.register_buffer("centres", grid.centres(), persistent=False)
        self.role_embedding = None
        if role_conditioning == "embedding":
            self.role_embedding = nn.Parameter(torch.zeros(len(ROLES), input_dim))
        self.objectness = RoleProjector(input_dim, hidden_dim, 1, own)
        self.mask = RoleProjector(input_dim, hidden_dim, prompt_dim, own)
        self.category = RoleProjector(input_dim, hidden_dim, input_dim, own)
        self.siglip = RoleProjector(input_dim, hidden_dim, siglip_dim, own)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, prompt_dim: int) -> dict:
        super_patch = cfg.MODEL.SUPER_PATCH
        return {
            "grid": PatchGrid(input_shape.height, input_shape.stride),
            "layout": SuperPatchLayout(super_patch.LAYOUT, super_patch.SCALE_BOUNDS),
            "input_dim": input_shape.channels,
            "hidden_dim": cfg.MODEL.PATCH_ANALYZER.HIDDEN_DIM,
            "prompt_dim": prompt_dim,
            "siglip_dim": cfg.MODEL.PATCH_ANALYZER.SIGLIP_DIM,
            "role_conditioning": cfg.MODEL.PATCH_ANALYZER.ROLE_CONDITIONING,
        }

    def propose(self, lmm_output: LMMOutput) -> QueryProposals:
        """Objectness of every patch.

        Args:
            lmm_output: with patch_features (B, P, D).

        Returns:
            Features (B, P, D) with their roles added, logits (B, P), roles (P,).
        """
        features = lmm_output.patch_features.to(self.objectness.copies[0].layers[0].weight.dtype)
        if self.role_embedding is not None:
            features = features + self.role_embedding[self.roles]
        roles = self.roles.expand(len(features), -1)
        logits = self.objectness(features.flatten(0, 1), roles.flatten()).view(roles.shape)
        return QueryProposals(features, logits, self.roles)

    def embed(
        self, proposals: QueryProposals, image_index: int, patches: torch.Tensor
    ) -> PatchPredictions:
        """Embeddings of chosen patches of one image.

        Args:
            proposals: of the batch.
            image_index: which image.
            patches: (K,) long, may repeat.
        """
        features = proposals.features[image_index, patches]  # (K, D)
        roles = self.roles[patches]
        return PatchPredictions(
            patches=patches,
            centres=self.centres[patches],
            objectness_logits=proposals.objectness_logits[image_index, patches],
            mask_embeddings=self.mask(features, roles),
            category_embeddings=self.category(features, roles),
            siglip_embeddings=self.siglip(features, roles),
        )
