"""A trie of token sequences that constrains decoding to a given set of names."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

_Node: TypeAlias = "dict[int, _Node]"


class TokenTrie:
    """The set of allowed token sequences; every sequence ends in a leaf.

    A sequence that continues another one ("car" and "car park") would leave no place to stop, so
    sequences must include the token that ends them (the period or end token of the template).
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        """
        Args:
            sequences: token ids per name, end token included; equal sequences share the leaf of
                the first one.

        Raises:
            ValueError: if there is no sequence, an empty one, or one that is the start of another.
        """
        if not sequences or not all(len(sequence) for sequence in sequences):
            raise ValueError(
                f"Got {len(sequences)} sequences of lengths {[len(s) for s in sequences]}; a trie "
                "needs at least one, each with at least one token."
            )
        self._root: _Node = {}
        self._leaves: dict[tuple[int, ...], int] = {}
        for index, sequence in enumerate(sequences):
            node = self._root
            for token in sequence:
                node = node.setdefault(int(token), {})
            self._leaves.setdefault(tuple(int(token) for token in sequence), index)
        for sequence in self._leaves:
            if self._node_at(sequence):
                raise ValueError(
                    f"Got the sequence {list(sequence)}, which is the start of another one; "
                    "append the end token to every sequence."
                )

    def allowed(self, prefix: Sequence[int]) -> list[int]:
        """Tokens that may follow a prefix.

        Args:
            prefix: tokens generated so far; what follows a complete sequence is not looked at.

        Returns:
            token ids in the order of the sequences; empty when the prefix is complete.

        Raises:
            ValueError: if no sequence starts like this.
        """
        return list(self._node_at(prefix))

    def leaf(self, prefix: Sequence[int]) -> int | None:
        """Index of the sequence that a prefix completes, or None while it is unfinished."""
        for length in range(1, len(prefix) + 1):
            index = self._leaves.get(tuple(int(token) for token in prefix[:length]))
            if index is not None:
                return index
        return None

    def allowed_mask(
        self,
        prefixes: Sequence[Sequence[int]],
        vocab_size: int,
        finished_token: int,
        device: torch.device | None = None,
    ) -> Tensor:
        """Allowed next tokens of a batch of prefixes.

        Args:
            prefixes: N lists of tokens generated so far.
            vocab_size: V, width of the token logits.
            finished_token: the only token allowed after a complete sequence (the padding token),
                so that no row is empty.
            device: device of the result.

        Returns:
            bool (N, V), at least one True per row.
        """
        mask = torch.zeros(len(prefixes), vocab_size, dtype=torch.bool)
        for row, prefix in enumerate(prefixes):
            mask[row, self.allowed(prefix) or [finished_token]] = True
        return mask.to(device) if device is not None else mask

    def _node_at(self, prefix: Sequence[int]) -> _Node:
        node = self._root
        for token in prefix:
            if not node:
                return node
            if int(token) not in node:
                raise ValueError(
                    f"Got the prefix {list(prefix)}, which no sequence of this trie starts with; "
                    f"token {int(token)} is not one of {list(node)}."
                )
            node = node[int(token)]
        return node
