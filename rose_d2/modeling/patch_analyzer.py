"""The patch analyzer, its contract, and the super-patches that give every patch a role."""

from __future__ import annotations

from typing import Protocol

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from rose_d2.modeling.backbone.lmm import LMMOutput
from rose_d2.structures.patches import PatchGrid, PatchPredictions, QueryProposals

ROLE_CONDITIONINGS = ("embedding", "separate_heads", "none")
# Index = role id. "any" serves the ablation without super-patches.
ROLES = ("small", "medium", "large", "stuff", "any")
STUFF_ROLE = ROLES.index("stuff")
ANY_ROLE = ROLES.index("any")
LETTERS = {"s": 0, "m": 1, "l": 2, "t": 3, "a": 4}


class PatchAnalyzer(Protocol):
    """What proposes the candidates; a registered class is an `nn.Module`.

    It is called with (cfg, input_shape, prompt_dim), see `build_patch_analyzer`.
    """

    def propose(self, lmm_output: LMMOutput) -> QueryProposals:
        """Features, objectness logits and roles of all candidates.

        Args:
            lmm_output: with patch_features (B, P, D).
        """

    def embed(
        self, proposals: QueryProposals, image_index: int, patches: torch.Tensor
    ) -> PatchPredictions:
        """Embeddings of chosen candidates of one image.

        Args:
            proposals: of the batch.
            image_index: which image.
            patches: (K,) long, may repeat.
        """


PATCH_ANALYZER_REGISTRY = Registry("PATCH_ANALYZER")
PATCH_ANALYZER_REGISTRY.__doc__ = (
    "Modules that turn the LMM's patch features into candidates; `PatchAnalyzer` is the contract."
)


def build_patch_analyzer(cfg: CfgNode, input_shape: ShapeSpec, prompt_dim: int) -> PatchAnalyzer:
    """Build MODEL.PATCH_ANALYZER.NAME.

    Args:
        cfg: the config.
        input_shape: channels D and grid side S of the patch features.
        prompt_dim: E, width of the mask head's prompt embeddings.
    """
    name = cfg.MODEL.PATCH_ANALYZER.NAME
    return PATCH_ANALYZER_REGISTRY.get(name)(cfg, input_shape, prompt_dim)


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
        names_patches: bool = True,
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
            names_patches: with a projector for category embeddings; without it, they are the
                features.

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
        self.category: nn.Module | None = None
        if names_patches:
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
            "names_patches": cfg.MODEL.ROSE.CLASSIFY_UNIT == "decode",
        }

    def propose(self, lmm_output: LMMOutput) -> QueryProposals:
        """See `PatchAnalyzer.propose`: every patch, its role added to its features."""
        features = lmm_output.patch_features.to(self.objectness.copies[0].layers[0].weight.dtype)
        if self.role_embedding is not None:
            features = features + self.role_embedding[self.roles]
        roles = self.roles.expand(len(features), -1)
        logits = self.objectness(features.flatten(0, 1), roles.flatten()).view(roles.shape)
        return QueryProposals(features, logits, self.roles)

    def embed(
        self, proposals: QueryProposals, image_index: int, patches: torch.Tensor
    ) -> PatchPredictions:
        """See `PatchAnalyzer.embed`."""
        features = proposals.features[image_index, patches]  # (K, D)
        roles = self.roles[patches]
        return PatchPredictions(
            patches=patches,
            centres=self.centres[patches],
            objectness_logits=proposals.objectness_logits[image_index, patches],
            mask_embeddings=self.mask(features, roles),
            category_embeddings=self.category(features, roles) if self.category else features,
            siglip_embeddings=self.siglip(features, roles),
        )


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


class MLP(nn.Module):
    """Two linear layers with a ReLU between them, the projector of the paper's section 4.1."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int) -> None:
        """
        Args:
            input_dim: size of the last axis of the input.
            hidden_dim: width between the two layers (3584 in the paper).
            output_dim: size of the last axis of the output.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_dim, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, output_dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        """
        Args:
            features: (..., input_dim).

        Returns:
            (..., output_dim), unbounded.
        """
        return self.layers(features)


class SuperPatchLayout:
    """A small square of roles tiled over the patch grid (paper sections 3.2 and 6.2).

    The paper's 3 x 3 layout has four patches for small, three for medium and one each for large
    objects and stuff. Any window as large as the tile contains each role exactly as often as the
    tile does, wherever it lies.
    """

    def __init__(self, rows: list[str], scale_bounds: tuple[float, float]) -> None:
        """
        Args:
            rows: one string a row, letters s m l t (stuff) and a (any): ["sms", "mlm", "sts"].
            scale_bounds: sqrt(area) in LMM-view pixels below which an object is small, medium.

        Raises:
            ValueError: if the rows are not a square of known letters, "a" is mixed with other
                roles, or the bounds do not ascend.
        """
        self.rows = list(rows)
        self.scale_bounds = (float(scale_bounds[0]), float(scale_bounds[1]))
        if not rows or any(len(row) != len(rows) for row in rows):
            raise ValueError(
                f"MODEL.SUPER_PATCH.LAYOUT {self.rows} is not a square; write one string a row, "
                'such as ["sms", "mlm", "sts"].'
            )
        letters = set("".join(rows))
        if not letters <= set(LETTERS) or ("a" in letters and len(letters) > 1):
            raise ValueError(
                f"MODEL.SUPER_PATCH.LAYOUT {self.rows} has letters {sorted(letters)}; allowed are "
                's, m, l, t together, or "a" alone.'
            )
        if not 0 < self.scale_bounds[0] <= self.scale_bounds[1]:
            raise ValueError(f"MODEL.SUPER_PATCH.SCALE_BOUNDS {scale_bounds} must ascend from 0.")

    @property
    def roles(self) -> list[int]:
        """Role ids that occur in the layout, ascending."""
        return sorted({LETTERS[letter] for row in self.rows for letter in row})

    def role_of_patches(self, grid: PatchGrid) -> torch.Tensor:
        """Role of every patch, (P,) long indices into `ROLES`."""
        tile = torch.tensor([[LETTERS[letter] for letter in row] for row in self.rows])
        rows, columns = grid.rows_and_columns()
        return tile[rows % len(self.rows), columns % len(self.rows)]

    def role_of_objects(self, areas: torch.Tensor, is_stuff: torch.Tensor) -> torch.Tensor:
        """Role that detects each object.

        Args:
            areas: (N,) mask areas in square LMM-view pixels.
            is_stuff: (N,) bool.

        Returns:
            (N,) long; all "any" under a layout without roles. An object whose role has no patch
            in the layout (a 2 x 2 layout may lack one) takes the next smaller role present.
        """
        if self.rows[0][0] == "a":
            return torch.full_like(areas, ANY_ROLE, dtype=torch.long)
        scale = areas.float().sqrt()
        bounds = torch.tensor(self.scale_bounds, device=areas.device)
        roles = torch.bucketize(scale, bounds, right=True)
        roles = torch.where(is_stuff, STUFF_ROLE, roles)
        return self._fall_back(roles)

    def _fall_back(self, roles: torch.Tensor) -> torch.Tensor:
        present = self.roles
        table = torch.arange(len(ROLES))
        for role in range(STUFF_ROLE + 1):
            if role not in present:
                smaller = [r for r in range(role) if r in present]
                table[role] = smaller[-1] if smaller else min(present)
        return table.to(roles.device)[roles]
