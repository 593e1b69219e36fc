"""What the language model writes: names of category embeddings, and the response to a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from rose_d2.layers.losses import text_cross_entropy
from rose_d2.modeling.backbone.lmm import LMMBackbone
from rose_d2.prompts.conversation import (
    IGNORE_INDEX,
    EncodedPrompt,
    encode_category_prompt,
    encode_name,
)
from rose_d2.prompts.instructions import CATEGORY_DECODING_ASSISTANT, CATEGORY_DECODING_USER
from rose_d2.structures.category_names import CategoryNames

_Node: TypeAlias = "dict[int, _Node]"


class CategoryDecoder:
    """Splices category embeddings into a fixed prompt and lets the LMM spell the nouns.

    "USER: <CATEGORY> Please decode this linguistic embedding into a noun concept. ASSISTANT: Sure,
    it is {name}." (paper section 3.3). Sequences of their own: no image, causal, positions from
    0, the same in training and inference. It has no weights of its own.
    """

    def __init__(self, lmm: LMMBackbone, max_tokens: int) -> None:
        """
        Args:
            lmm: reads the embeddings and writes the names.
            max_tokens: longest generated name, its final period included.

        Raises:
            ValueError: if the tokenizer has no token of its own for the period.
        """
        self.lmm = lmm
        self.tokenizer = lmm.tokenizer
        self.max_tokens = max_tokens
        self.prompt = encode_category_prompt(
            self.tokenizer, CATEGORY_DECODING_USER, CATEGORY_DECODING_ASSISTANT
        )
        *_, period, end = encode_name(self.tokenizer, "dog")
        if self.tokenizer.decode([period]).strip() != ".":
            raise ValueError(
                "The tokenizer writes the period together with the name before it, so the end of "
                "a name could not be told; use another tokenizer."
            )
        self.stop_tokens = (period, end)

    def loss(self, embeddings: Tensor, names: CategoryNames) -> Tensor:
        """Cross entropy of the true names.

        Args:
            embeddings: (K, D), K at least 1.
            names: K true names.

        Returns:
            (K,) mean over each name's tokens: its letters, the period and the end token.
        """
        # Where the words are is known on the CPU, so that no device is asked for it.
        targets = [torch.tensor(encode_name(self.tokenizer, n), device="cpu") for n in names]
        padded = nn.utils.rnn.pad_sequence(targets, True, IGNORE_INDEX)
        name_of_word, place = (padded != IGNORE_INDEX).nonzero().T.to(embeddings.device)
        labels = padded.to(embeddings.device)
        words = self.lmm.embed_tokens(labels[:, :-1].clamp(min=0))  # the end token is never read
        prompt = self.prompts(embeddings)
        states = self.lmm.run_text(torch.cat([prompt, words.to(prompt.dtype)], dim=1))
        states = states[:, prompt.shape[1] - 1 :]  # (K, L, D): each predicts the next token
        return text_cross_entropy(
            self.lmm.logits(states[name_of_word, place]),
            labels[name_of_word, place],
            name_of_word,
            len(labels),
        )

    @torch.no_grad()
    def generate(self, embeddings: Tensor, trie: CandidateTrie | None = None) -> DecodedNames:
        """Greedy names of all candidates at once, with a KV cache whose prefix is shared.

        Args:
            embeddings: (K, D), K may be 0.
            trie: allowed names (`candidate_trie`), or None for free generation. Every name is
                then one of them, spelled as it was given, however long.
        """
        if not len(embeddings):
            return DecodedNames(CategoryNames([]), embeddings.new_zeros(0, dtype=torch.float32))
        cache = self._shared_prefix(len(embeddings))
        states = self.lmm.run_text(self._behind_prefix(embeddings), cache)[:, -1]
        longest = self.max_tokens if trie is None else trie.longest
        tokens = embeddings.new_full(
            (len(embeddings), longest), self.stop_tokens[1], dtype=torch.long
        )
        log_probs = torch.zeros(len(embeddings), device=embeddings.device)
        lengths = torch.zeros_like(log_probs)
        rows = torch.arange(len(embeddings), device=embeddings.device)  # unfinished names
        for place in range(longest):
            choices = self._log_probs(states, tokens[rows, :place], trie)  # (R, V)
            best, tokens[rows, place] = choices.max(dim=1)
            log_probs[rows] += best
            lengths[rows] += 1
            running = ~self._complete(tokens[rows, : place + 1], trie)
            if not running.any():
                break
            if not running.all():  # what is finished leaves the batch
                (left,) = running.nonzero(as_tuple=True)
                cache.batch_select_indices(left)
                rows = rows[left]
            words = self.lmm.embed_tokens(tokens[rows, place, None]).to(states.dtype)
            states = self.lmm.run_text(words, cache)[:, -1]
        return DecodedNames(self.spell(tokens, trie), log_probs / lengths)

    def candidate_trie(self, candidates: Sequence[str]) -> CandidateTrie:
        """Trie of allowed names, for constrained generation."""
        sequences = [encode_name(self.tokenizer, name)[:-1] for name in candidates]
        return CandidateTrie(candidates, sequences)

    def prompts(self, embeddings: Tensor) -> Tensor:
        """What the language model reads of K embeddings (K, D) before it writes, (K, L, D)."""
        before = self._words(self.prompt.before, embeddings)
        return torch.cat([before, self._behind_prefix(embeddings)], dim=1)

    def _behind_prefix(self, embeddings: Tensor) -> Tensor:
        after = self._words(self.prompt.after, embeddings)
        return torch.cat([embeddings[:, None].to(after.dtype), after], dim=1)

    def _words(self, ids: tuple[int, ...], embeddings: Tensor) -> Tensor:
        tokens = torch.tensor(ids, device=embeddings.device)
        return self.lmm.embed_tokens(tokens).expand(len(embeddings), -1, -1)  # (K, L, D)

    def _shared_prefix(self, count: int) -> DynamicCache:
        """The words before the slot are the same for all: run them once, repeat the cache."""
        cache = DynamicCache()
        ids = torch.tensor([self.prompt.before], device=next(self.lmm.parameters()).device)
        self.lmm.run_text(self.lmm.embed_tokens(ids), cache)
        cache.batch_repeat_interleave(count)
        return cache

    def _log_probs(self, states: Tensor, tokens: Tensor, trie: CandidateTrie | None) -> Tensor:
        logits = self.lmm.logits(states).float()
        # Rows beyond the tokenizer's own are padding of the embedding, never a word.
        logits[:, len(self.tokenizer) :] = -torch.inf
        if trie is not None:
            allowed = trie.allowed_mask(tokens, logits.shape[1], self.stop_tokens[1])
            logits = logits.masked_fill(~allowed, -torch.inf)
        return logits.log_softmax(dim=1)

    def _complete(self, tokens: Tensor, trie: CandidateTrie | None) -> Tensor:
        """Which names are finished, bool (K,). A candidate may have a period in its middle."""
        if trie is not None:
            finished = [not trie.allowed(row) for row in tokens.tolist()]
            return torch.tensor(finished, device=tokens.device)
        return torch.isin(tokens[:, -1], torch.tensor(self.stop_tokens, device=tokens.device))

    def spell(self, tokens: Tensor, trie: CandidateTrie | None = None) -> CategoryNames:
        """Names of generated tokens (K, L), each up to its end."""
        if trie is not None:
            return CategoryNames([trie.spell(row) for row in tokens.tolist()])
        names = []
        for row in tokens.tolist():
            stop = next((i for i, t in enumerate(row) if t in self.stop_tokens), len(row))
            names.append(self.tokenizer.decode(row[:stop], skip_special_tokens=True).strip())
        return CategoryNames(names)


@dataclass
class DecodedNames:
    """Names of K candidates.

    Attributes:
        names: K generated names.
        scores: (K,) mean log-probability of each name's tokens, at most 0.
    """

    names: CategoryNames
    scores: Tensor

    def __getitem__(self, item: Tensor) -> DecodedNames:
        """Choose names with a boolean mask (K,) or long positions."""
        return DecodedNames(self.names[item], self.scores[item])


class CandidateTrie:
    """The names that decoding may spell, as a trie of their tokens; every name ends in a leaf.

    A name that continues another one ("car" and "car park") would leave no place to stop, so the
    sequences must include the token that ends them (the period of the template).

    Attributes:
        names: the allowed names.
        longest: tokens of the longest one, its final period included.
    """

    def __init__(self, names: Sequence[str], sequences: Sequence[Sequence[int]]) -> None:
        """
        Args:
            names: V names; of names that are spelled alike the first one is meant.
            sequences: their token ids, each with the token that ends it.

        Raises:
            ValueError: if there is no sequence, an empty one, or one that is the start of another.
        """
        if not sequences or not all(len(sequence) for sequence in sequences):
            raise ValueError(
                f"Got {len(sequences)} sequences of lengths {[len(s) for s in sequences]}; a trie "
                "needs at least one, each with at least one token."
            )
        self.names = tuple(names)
        self.longest = max(len(sequence) for sequence in sequences)
        self._root: _Node = {}
        self._leaves: dict[tuple[int, ...], str] = {}
        for name, sequence in zip(names, sequences, strict=True):
            node = self._root
            for token in sequence:
                node = node.setdefault(token, {})
            self._leaves.setdefault(tuple(sequence), name)
        for leaf in self._leaves:
            if self.allowed(leaf):
                raise ValueError(
                    f"Got the sequence {list(leaf)}, which is the start of another one; append "
                    "the end token to every sequence."
                )

    def allowed(self, prefix: Sequence[int]) -> list[int]:
        """Tokens that may follow a prefix.

        Args:
            prefix: tokens generated so far; what follows a complete name is not looked at.

        Returns:
            token ids in the order of the sequences; empty when the prefix is complete.

        Raises:
            ValueError: if no sequence starts like this.
        """
        node = self._root
        for token in prefix:
            if not node:
                break
            if token not in node:
                raise ValueError(
                    f"Got the prefix {list(prefix)}, which no sequence of this trie starts with; "
                    f"token {token} is not one of {list(node)}."
                )
            node = node[token]
        return list(node)

    def allowed_mask(self, tokens: Tensor, vocab_size: int, finished_token: int) -> Tensor:
        """Allowed next tokens of a batch of prefixes.

        Args:
            tokens: (N, L) long, generated so far.
            vocab_size: V, width of the token logits.
            finished_token: the only token allowed after a complete name, so that no row is empty.

        Returns:
            bool (N, V), at least one True per row.
        """
        mask = torch.zeros(len(tokens), vocab_size, dtype=torch.bool, device="cpu")
        for row, prefix in enumerate(tokens.tolist()):
            mask[row, self.allowed(prefix) or [finished_token]] = True
        return mask.to(tokens.device)

    def spell(self, tokens: Sequence[int]) -> str:
        """The name that tokens complete, as it was given; what follows it is not looked at."""
        starts = (tuple(tokens[:length]) for length in range(1, len(tokens) + 1))
        name = next((self._leaves[start] for start in starts if start in self._leaves), None)
        assert name is not None, f"The tokens {list(tokens)} complete no candidate."
        return name


class ResponseDecoder:
    """Greedy generation of the counting sentence (paper section 3.5), one image at a time.

    The response is an auxiliary task of training and changes no mask or name; it is written only
    when TEST.GENERATE_RESPONSE asks for it.
    """

    def __init__(self, lmm: LMMBackbone, max_tokens: int = 128) -> None:
        """
        Args:
            lmm: sees the image and writes.
            max_tokens: longest response.
        """
        self.lmm = lmm
        self.max_tokens = max_tokens

    @torch.no_grad()
    def __call__(
        self, images: Tensor, prior_masks: Tensor, prompts: list[EncodedPrompt]
    ) -> list[str]:
        """Responses to B prompts.

        Args:
            images: (B, 3, I, I), RGB in 0..255.
            prior_masks: (B, 1, I, I), 0 or 1.
            prompts: B prompts; their responses, if any, are not shown to the model.
        """
        return [
            self._respond(image[None], mask[None], prompt)
            for image, mask, prompt in zip(images, prior_masks, prompts, strict=True)
        ]

    def _respond(self, image: Tensor, prior_mask: Tensor, prompt: EncodedPrompt) -> str:
        writing = Writing(self.lmm, image, prior_mask, prompt)
        tokens: list[int] = []
        while len(tokens) < self.max_tokens:
            token, _ = writing.choose()
            if token == self.lmm.tokenizer.eos_token_id:
                break
            tokens.append(token)
            writing.read(token)
        return self.lmm.tokenizer.decode(tokens, skip_special_tokens=True).strip()


class Writing:
    """A response in progress: the language model has read a prompt and what was written so far.

    Attributes:
        state: (1, 1, D), predicts the next token.
    """

    def __init__(
        self, lmm: LMMBackbone, image: Tensor, prior_mask: Tensor, prompt: EncodedPrompt
    ) -> None:
        """
        Args:
            lmm: sees the image and writes.
            image: (1, 3, I, I), RGB in 0..255.
            prior_mask: (1, 1, I, I), 0 or 1.
            prompt: its response, if any, is not read.
        """
        self._lmm = lmm
        self._cache = DynamicCache()
        self.state = lmm.read_prompt(image, prior_mask, prompt, self._cache)

    def choose(self) -> tuple[int, float]:
        """The most probable next token and its log-probability."""
        # Rows beyond the tokenizer's own are padding of the embedding, never a word.
        logits = self._lmm.logits(self.state)[0, 0, : len(self._lmm.tokenizer)].float()
        log_prob, token = logits.log_softmax(dim=0).max(dim=0)
        return int(token), float(log_prob)

    def read(self, token: int) -> None:
        """Write a token."""
        ids = torch.tensor([[token]], device=self.state.device)
        words = self._lmm.embed_tokens(ids).to(self.state.dtype)
        self.state = self._lmm.run_text(words, self._cache)
