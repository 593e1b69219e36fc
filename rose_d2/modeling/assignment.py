"""Which patches speak: those that learn an object or that there is none, and those that answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Instances

from rose_d2.layers.masks import mask_centre
from rose_d2.modeling.patch_analyzer import STUFF_ROLE, SuperPatchLayout
from rose_d2.structures.patches import PatchGrid
from rose_d2.structures.segments import BOX_SCALE, NormalisedBox


class PatchAssigner:
    """Assigns objects to the patches around their centre whose role fits.

    The positives of an object are the patches of the window around its centre that have the
    object's role (paper section 3.2: "that patch and its surrounding patches"). The smaller of
    two objects that claim a patch gets it; an object left with none takes the nearest free patch
    of its role at most two windows away.
    """

    def __init__(
        self,
        grid: PatchGrid,
        layout: SuperPatchLayout,
        window: int,
        negative_counts: NegativeCounts,
    ) -> None:
        """
        Args:
            grid: patches of the LMM's view.
            layout: roles and scale bounds.
            window: side of the window in patches.
            negative_counts: how many negatives of each kind to sample.
        """
        self.grid = grid
        self.layout = layout
        self.window = window
        self.negative_counts = negative_counts
        with torch.device("cpu"):  # whatever the model is made on
            self.patch_roles = layout.role_of_patches(grid)

    def __call__(
        self,
        instances: Instances,
        negative_points: torch.Tensor,
        ignore_mask: torch.Tensor,
    ) -> PatchAssignment:
        """Assign one image's objects, on the CPU, where annotations are.

        Args:
            instances: with gt_masks (N, I, I) and gt_is_stuff (N,), on the CPU. gt_centres (N, 2)
                and gt_areas (N,), which data workers add, spare the masks being read again.
            negative_points: (M, 2) x, y in view pixels: centres of objects not asked for.
            ignore_mask: (I, I) bool: crowd and unlabelled pixels, where nothing is negative.
        """
        masks = instances.gt_masks.tensor
        if instances.has("gt_centres"):
            centres, areas = instances.gt_centres.tolist(), instances.gt_areas
        else:
            centres, areas = [mask_centre(mask) for mask in masks], masks.flatten(1).sum(1)
        roles = self.layout.role_of_objects(areas, instances.gt_is_stuff)
        owner = self._claim(centres, roles.tolist(), areas.argsort(stable=True).tolist())
        patches = (owner >= 0).nonzero().flatten()
        windows = self._covered(centres)
        not_asked = self._covered(negative_points.tolist())
        free = (owner < 0) & ~self._ignored(ignore_mask)
        return PatchAssignment(
            patches=patches,
            objects=owner[patches],
            negatives=self._sample_negatives(free, windows, not_asked),
            num_unassigned=len(centres) - len(owner[patches].unique()),
            rivals=(free & ~windows).nonzero().flatten(),
        )

    def _claim(
        self, centres: list[list[float]], roles: list[int], by_area: list[int]
    ) -> torch.Tensor:
        """Owner of each patch, (P,) long, -1 for none; smaller objects claim first."""
        # Numbers of a few dozen patches, once for each object: NumPy's calls cost a fraction.
        side = self.grid.side
        role_of, owner = self.patch_roles.numpy().reshape(side, side), np.full((side, side), -1)
        homeless = []
        for index in by_area:
            block = self.grid.block(centres[index], self.window)
            free = (role_of[block] == roles[index]) & (owner[block] < 0)
            if free.any():
                owner[block][free] = index
            else:
                homeless.append(index)
        flat = torch.from_numpy(owner).flatten()
        for index in homeless:
            nearest = self._nearest_free(centres[index], roles[index], flat)
            if nearest is not None:
                flat[nearest] = index
        return flat

    def _nearest_free(self, centre: list[float], role: int, owner: torch.Tensor) -> int | None:
        rows, columns = self.grid.rows_and_columns()
        size = self.grid.patch_size
        across = (columns + 0.5) - centre[0] / size
        down = (rows + 0.5) - centre[1] / size
        reach = 2 * self.window
        fits = (self.patch_roles == role) & (owner < 0)
        fits &= (across.abs() <= reach) & (down.abs() <= reach)
        if not fits.any():
            return None
        distance = (across.square() + down.square()).masked_fill(~fits, float("inf"))
        return int(distance.argmin())

    def _covered(self, points: list[list[float]]) -> torch.Tensor:
        """Whether each patch lies in the window of any point, (P,) bool."""
        covered = np.zeros((self.grid.side, self.grid.side), dtype=bool)
        for point in points:
            covered[self.grid.block(point, self.window)] = True
        return torch.from_numpy(covered).flatten()

    def _ignored(self, ignore_mask: torch.Tensor) -> torch.Tensor:
        """Whether at least half of each patch is ignored, (P,) bool."""
        share = F.avg_pool2d(ignore_mask[None, None].float(), self.grid.patch_size).flatten()
        return share >= 0.5

    def _sample_negatives(
        self, free: torch.Tensor, windows: torch.Tensor, not_asked: torch.Tensor
    ) -> torch.Tensor:
        counts = self.negative_counts
        kinds = (
            (free & windows & ~not_asked, counts.wrong_role),
            (free & not_asked, counts.not_asked),
            (free & ~windows & ~not_asked, counts.random),
        )
        return torch.cat([_sample(kind.nonzero().flatten(), count) for kind, count in kinds])


@dataclass
class PatchAssignment:
    """Supervision of one image's patches, on the CPU.

    Attributes:
        patches: (M,) long, positive patches; a patch appears once.
        objects: (M,) long, the object each of them learns.
        negatives: (Q,) long, sampled patches that learn "nothing asked for is here".
        num_unassigned: objects for which no patch was free.
        rivals: (R,) long, all patches outside the objects' windows where nothing is ignored.
    """

    patches: torch.Tensor
    objects: torch.Tensor
    negatives: torch.Tensor
    num_unassigned: int
    rivals: torch.Tensor


@dataclass(frozen=True)
class NegativeCounts:
    """Most negatives of each kind per image (MODEL.ROSE.NEGATIVES_*)."""

    wrong_role: int
    not_asked: int
    random: int


def sample_pairs(objects: torch.Tensor, max_pairs: int, per_object: int = 0) -> torch.Tensor:
    """Choose patch-object pairs at random, one per object before any gets its second.

    Args:
        objects: (M,) long, object of each pair.
        max_pairs: pairs to keep at most.
        per_object: pairs to keep of each object at most; 0 keeps all.

    Returns:
        At most `max_pairs` long positions in `objects`.
    """
    shuffled = torch.randperm(len(objects))
    same = objects[shuffled][:, None] == objects[shuffled][None, :]
    turn = same.tril(diagonal=-1).sum(1)  # how many pairs of the same object come before
    order = turn.argsort(stable=True)
    if per_object:
        order = order[turn[order] < per_object]
    return shuffled[order[:max_pairs]]


def pair_weights(objects: torch.Tensor) -> torch.Tensor:
    """Weights by which the pairs of one object share 1, (M,) float."""
    same = objects[:, None] == objects[None, :]
    return 1.0 / same.sum(1).clamp(min=1).float()


def _sample(candidates: torch.Tensor, count: int) -> torch.Tensor:
    return candidates[torch.randperm(len(candidates))[:count]]


def select_patches(
    objectness_logits: torch.Tensor,
    roles: torch.Tensor | None,
    top_k: int,
    top_k_stuff: int = 0,
) -> torch.Tensor:
    """The patches with the highest objectness of one image (paper section 3.3).

    Args:
        objectness_logits: (P,).
        roles: (P,) long, or None where candidates have none.
        top_k: patches kept in all.
        top_k_stuff: of these, slots filled first from patches of the stuff role.

    Returns:
        (min(top_k, P),) long, by descending objectness; ties keep the lower index first.

    Raises:
        ValueError: if the reserved slots do not fit.
    """
    if not 0 <= top_k_stuff <= top_k:
        raise ValueError(
            f"TEST.TOP_K_STUFF {top_k_stuff} must be between 0 and TEST.TOP_K {top_k}."
        )
    order = objectness_logits.float().argsort(descending=True, stable=True)
    if not top_k_stuff or roles is None:
        return order[:top_k]
    is_stuff = roles[order] == STUFF_ROLE
    reserved = is_stuff & (is_stuff.cumsum(0) <= top_k_stuff)
    free = ~reserved
    kept = reserved | (free & (free.cumsum(0) <= top_k - int(reserved.sum())))
    return order[kept]


def patches_touching(grid: PatchGrid, box: NormalisedBox) -> torch.Tensor:
    """The patches that a box covers or touches, at least one.

    Args:
        grid: of the view.
        box: (x1, y1, x2, y2), integers 0-999, as instructions write it.

    Returns:
        bool (P,).
    """
    centres = grid.centres() * BOX_SCALE  # (P, 2)
    reach = BOX_SCALE / grid.side / 2
    first, last = centres.new_tensor(box[:2]) - reach, centres.new_tensor(box[2:]) + reach
    return ((centres >= first) & (centres <= last)).all(dim=1)
