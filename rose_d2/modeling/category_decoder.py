"""Names from category embeddings, written by the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from rose_d2.layers.losses import text_cross_entropy
from rose_d2.layers.token_trie import TokenTrie
from rose_d2.modeling.backbone.lmm import LMMBackbone
from rose_d2.prompts.conversation import encode_category_prompt, encode_name
from rose_d2.prompts.special_tokens import IGNORE_INDEX
from rose_d2.prompts.templates import CATEGORY_DECODING_ASSISTANT, CATEGORY_DECODING_USER
from rose_d2.structures.category_names import CategoryNames


@dataclass
class DecodedNames:
    """Names of K candidates.

    Attributes:
        names: K generated names.
        scores: (K,) mean log-probability of each name's tokens, at most 0.
    """

    names: CategoryNames
    scores: torch.Tensor


class CandidateTrie(TokenTrie):
    """Allowed names as a trie of their tokens.

    Attributes:
        names: the allowed names.
        longest: tokens of the longest one, its final period included.
    """

    def __init__(self, names: Sequence[str], sequences: Sequence[Sequence[int]]) -> None:
        """
        Args:
            names: V names; of names that are spelled alike the first one is meant.
            sequences: their tokens, each with its final period.
        """
        super().__init__(sequences)
        self.names = tuple(names)
        self.longest = max(len(sequence) for sequence in sequences)

    def spell(self, tokens: Sequence[int]) -> str:
        """The name that tokens complete, as it was given."""
        leaf = self.leaf(tokens)
        assert leaf is not None, f"The tokens {list(tokens)} complete no candidate."
        return self.names[leaf]


class CategoryDecoder:
    """Splices category embeddings into a fixed prompt and lets the LMM spell the nouns.

    "USER: <CATEGORY> Please decode this linguistic embedding into a noun concept. ASSISTANT: Sure,
    it is {name}." (paper section 3.3). Sequences of their own: no image, causal, positions from
    0, the same in training and inference. It has no weights; the LMM is handed to it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        """
        Args:
            tokenizer: the LMM's.
            max_tokens: longest generated name, its final period included.

        Raises:
            ValueError: if the tokenizer has no token of its own for the period.
        """
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.prompt = encode_category_prompt(
            tokenizer, CATEGORY_DECODING_USER, CATEGORY_DECODING_ASSISTANT
        )
        *_, period, end = encode_name(tokenizer, "dog")
        if tokenizer.decode([period]).strip() != ".":
            raise ValueError(
                "The tokenizer writes the period together with the name before it, so the end of "
                "a name could not be told; use another tokenizer."
            )
        self.stop_tokens = (period, end)

    def loss(
        self, lmm: LMMBackbone, embeddings: torch.Tensor, names: CategoryNames
    ) -> torch.Tensor:
        """Cross entropy of the true names.

        Args:
            lmm: the language model.
            embeddings: (K, D), K at least 1.
            names: K true names.

        Returns:
            (K,) mean over each name's tokens: its letters, the period and the end token.
        """
        targets = [torch.tensor(encode_name(self.tokenizer, name)) for name in names]
        labels = nn.utils.rnn.pad_sequence(targets, True, IGNORE_INDEX).to(embeddings.device)
        words = lmm.embed_tokens(labels[:, :-1].clamp(min=0))  # the end token is never read
        prompt = self._splice(lmm, embeddings)
        states = lmm.run_text(torch.cat([prompt, words.to(prompt.dtype)], dim=1))
        states = states[:, prompt.shape[1] - 1 :]  # (K, L, D): each predicts the next token
        is_word = labels != IGNORE_INDEX
        name_of_word = is_word.nonzero()[:, 0]
        return text_cross_entropy(
            lmm.logits(states[is_word]), labels[is_word], name_of_word, len(labels)
        )

    @torch.no_grad()
    def generate(
        self, lmm: LMMBackbone, embeddings: torch.Tensor, trie: CandidateTrie | None = None
    ) -> DecodedNames:
        """Greedy names of all candidates at once, with a KV cache whose prefix is shared.

        Args:
            lmm: the language model.
            embeddings: (K, D), K may be 0.
            trie: allowed names (`candidate_trie`), or None for free generation. Every name is
                then one of them, spelled as it was given, however long.
        """
        if not len(embeddings):
            return DecodedNames(CategoryNames([]), embeddings.new_zeros(0, dtype=torch.float32))
        cache = self._shared_prefix(lmm, len(embeddings))
        states = lmm.run_text(self._behind_prefix(lmm, embeddings), cache)[:, -1]
        count = len(embeddings)
        tokens = torch.empty(count, 0, dtype=torch.long, device=embeddings.device)
        log_probs = torch.zeros(count, device=embeddings.device)
        running = torch.ones(count, dtype=torch.bool, device=embeddings.device)
        lengths = torch.zeros_like(log_probs)
        for _ in range(self.max_tokens if trie is None else trie.longest):
            choices = self._log_probs(lmm, states, tokens, trie)  # (K, V)
            best, token = choices.max(dim=1)
            log_probs += torch.where(running, best, 0)
            lengths += running
            token = torch.where(running, token, self.stop_tokens[1])
            tokens = torch.cat([tokens, token[:, None]], dim=1)
            running &= ~self._complete(tokens, trie)
            if not running.any():
                break
            words = lmm.embed_tokens(token[:, None]).to(states.dtype)
            states = lmm.run_text(words, cache)[:, -1]
        return DecodedNames(self._spell(tokens, trie), log_probs / lengths)

    def candidate_trie(self, candidates: Sequence[str]) -> CandidateTrie:
        """Trie of allowed names, for constrained generation."""
        sequences = [encode_name(self.tokenizer, name)[:-1] for name in candidates]
        return CandidateTrie(candidates, sequences)

    def _splice(self, lmm: LMMBackbone, embeddings: torch.Tensor) -> torch.Tensor:
        """Whole prompts (K, L, D)."""
        before = self._words(lmm, self.prompt.before, embeddings)
        return torch.cat([before, self._behind_prefix(lmm, embeddings)], dim=1)

    def _behind_prefix(self, lmm: LMMBackbone, embeddings: torch.Tensor) -> torch.Tensor:
        after = self._words(lmm, self.prompt.after, embeddings)
        return torch.cat([embeddings[:, None].to(after.dtype), after], dim=1)

    def _words(
        self, lmm: LMMBackbone, ids: tuple[int, ...], embeddings: torch.Tensor
    ) -> torch.Tensor:
        tokens = torch.tensor(ids, device=embeddings.device)
        return lmm.embed_tokens(tokens).expand(len(embeddings), -1, -1)  # (K, L, D)

    def _shared_prefix(self, lmm: LMMBackbone, count: int) -> DynamicCache:
        """The words before the slot are the same for all: run them once, repeat the cache."""
        cache = DynamicCache()
        ids = torch.tensor([self.prompt.before], device=next(lmm.parameters()).device)
        lmm.run_text(lmm.embed_tokens(ids), cache)
        cache.batch_repeat_interleave(count)
        return cache

    def _log_probs(
        self,
        lmm: LMMBackbone,
        states: torch.Tensor,
        tokens: torch.Tensor,
        trie: CandidateTrie | None,
    ) -> torch.Tensor:
        logits = lmm.logits(states).float()
        # Rows beyond the tokenizer's own are padding of the embedding, never a word.
        logits[:, len(self.tokenizer) :] = -torch.inf
        if trie is not None:
            allowed = trie.allowed_mask(
                tokens.tolist(), logits.shape[1], self.stop_tokens[1], device=logits.device
            )
            logits = logits.masked_fill(~allowed, -torch.inf)
        return logits.log_softmax(dim=1)

    def _complete(self, tokens: torch.Tensor, trie: CandidateTrie | None) -> torch.Tensor:
        """Which names are finished, bool (K,). A candidate may have a period in its middle."""
        if trie is not None:
            finished = [not trie.allowed(row) for row in tokens.tolist()]
            return torch.tensor(finished, device=tokens.device)
        return torch.isin(tokens[:, -1], torch.tensor(self.stop_tokens, device=tokens.device))

    def _spell(self, tokens: torch.Tensor, trie: CandidateTrie | None) -> CategoryNames:
        if trie is not None:
            return CategoryNames([trie.spell(row) for row in tokens.tolist()])
        names = []
        for row in tokens.tolist():
            stop = next((i for i, t in enumerate(row) if t in self.stop_tokens), len(row))
            names.append(self.tokenizer.decode(row[:stop], skip_special_tokens=True).strip())
        return CategoryNames(names)
