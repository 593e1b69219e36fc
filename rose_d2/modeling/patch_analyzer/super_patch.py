"""Super-patches: every patch of the grid has one detecting role."""

from __future__ import annotations

import torch

from rose_d2.structures.patch_grid import PatchGrid

# Index = role id. "any" serves the ablation without super-patches.
ROLES = ("small", "medium", "large", "stuff", "any")
STUFF_ROLE = ROLES.index("stuff")
ANY_ROLE = ROLES.index("any")
LETTERS = {"s": 0, "m": 1, "l": 2, "t": 3, "a": 4}


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
