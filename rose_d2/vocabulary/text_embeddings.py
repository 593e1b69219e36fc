"""Text embeddings of class names: targets of the SigLIP head, and how similar classes are."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from detectron2.config import CfgNode
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast, SiglipTextModel

from rose_d2.files import whole_file

logger = logging.getLogger(__name__)

# SigLIP's zero-shot prompt in transformers, and the only length it was trained with.
SIGLIP_PROMPT = "This is a photo of {}."
SIGLIP_LENGTH = 64


class TextEmbeddingBank:
    """Embeddings of names, each computed once.

    The text tower is not resident: it is loaded for a new vocabulary, its embeddings are cached
    (on disk too, where a folder is given) and it is freed again.
    """

    def __init__(self, source: str, dim: int, cache_dir: str = "") -> None:
        """
        Args:
            source: "ngram", or a folder or hub name of a SigLIP text tower.
            dim: width of the embeddings; must be the tower's.
            cache_dir: folder of cached vocabularies, or "".
        """
        self.source = source
        self.dim = dim
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else None
        self._known: dict[str, torch.Tensor] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> TextEmbeddingBank:
        """Bank of MODEL.SIGLIP_TEXT, as wide as the SigLIP head."""
        text = cfg.MODEL.SIGLIP_TEXT
        return cls(text.SOURCE, cfg.MODEL.PATCH_ANALYZER.SIGLIP_DIM, text.CACHE_DIR)

    def __call__(self, names: tuple[str, ...]) -> torch.Tensor:
        """Unit-length embeddings (C, dim) of C names, on the CPU.

        Raises:
            ValueError: if the text tower's width is not `dim`, or it has no text tower.
        """
        if any(name not in self._known for name in names):
            if self.source == "ngram":
                embeddings = ngram_embeddings(names, self.dim)
            else:
                embeddings = self._from_disk_or_tower(names)
            self.add(names, embeddings)
        return self._stacked(names)

    def embed(self, names: Sequence[str]) -> torch.Tensor:
        """Unit-length embeddings (K, dim) of names that come a few at a time, on the CPU.

        The text tower stays resident from the first call on.

        Raises:
            ValueError: see `__call__`.
        """
        new = tuple(dict.fromkeys(name for name in names if name not in self._known))
        if new:
            if self.source == "ngram":
                self.add(new, ngram_embeddings(new, self.dim))
            else:
                self.add(new, self._embed_with(*self._resident_tower, new))
        return self._stacked(names)

    def add(self, names: Sequence[str], embeddings: torch.Tensor) -> None:
        """Take over embeddings that another bank of the same source has made.

        Args:
            names: C names.
            embeddings: (C, dim), on the CPU.
        """
        self._known.update(zip(names, embeddings, strict=True))

    def _stacked(self, names: Sequence[str]) -> torch.Tensor:
        rows = [self._known[name] for name in names]
        return torch.stack(rows) if rows else torch.zeros(0, self.dim)

    @functools.cached_property
    def _resident_tower(self) -> tuple[SiglipTextModel, Any]:
        return load_text_tower(self.source)

    def _from_disk_or_tower(self, names: tuple[str, ...]) -> torch.Tensor:
        if self.cache_dir is None:
            return self._from_tower(names)
        key = hashlib.sha256("\n".join((self.source, *names)).encode()).hexdigest()[:16]
        path = self.cache_dir / f"{key}.safetensors"
        if not path.is_file():
            embeddings = self._from_tower(names)
            with whole_file(path) as partial:
                save_file({"embeddings": embeddings}, partial)
        return load_file(path)["embeddings"]

    def _from_tower(self, names: tuple[str, ...]) -> torch.Tensor:
        logger.info("Embedding %d class names with %s", len(names), self.source)
        return self._embed_with(*load_text_tower(self.source), names)

    def _embed_with(
        self, tower: SiglipTextModel, tokenizer: Any, names: tuple[str, ...]
    ) -> torch.Tensor:
        # The pooled state is the last position's, padding included: always pad to full length.
        tokens = tokenizer(
            [SIGLIP_PROMPT.format(name) for name in names],
            padding="max_length",
            max_length=SIGLIP_LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            embeddings = tower(input_ids=tokens["input_ids"]).pooler_output
        if embeddings.shape[1] != self.dim:
            raise ValueError(
                f"{self.source} embeds text in {embeddings.shape[1]} numbers but "
                f"MODEL.PATCH_ANALYZER.SIGLIP_DIM is {self.dim}; make them equal."
            )
        return F.normalize(embeddings.float(), dim=-1)


def load_text_tower(source: str) -> tuple[SiglipTextModel, Any]:
    """SigLIP's text tower, of a folder that may have the vision tower too, and its tokenizer.

    Args:
        source: folder or hub name.

    Raises:
        ValueError: the weights are not those of a whole text tower.
        OSError: from transformers, when nothing is found there.
    """
    with _quiet_transformers():  # the vision tower is left out, name by name
        tower, report = SiglipTextModel.from_pretrained(source, output_loading_info=True)
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise ValueError(
            f"{source} (MODEL.SIGLIP_TEXT.SOURCE) is not a whole SigLIP text tower: "
            f"{lacking[0]} and {len(lacking) - 1} more weights are missing or of another size."
        )
    return tower.eval(), load_text_tokenizer(source)


def load_text_tokenizer(source: str) -> Any:
    """Tokenizer of a SigLIP folder, of spiece.model or tokenizer.json, with settings or without.

    Args:
        source: folder or hub name.

    Raises:
        ImportError: SiglipTokenizer reads spiece.model with sentencepiece, which is missing.
        OSError: from transformers, when nothing is found there.
    """
    try:
        return AutoTokenizer.from_pretrained(source)
    except (ImportError, ValueError, AttributeError, TypeError) as error:
        whole = _tokenizer_file(source)
        if whole is not None:
            text = AutoConfig.from_pretrained(source).get_text_config()
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=whole)
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(text.pad_token_id)
            return tokenizer
        if importlib.util.find_spec("sentencepiece") is not None:
            raise
        raise ImportError(
            f"The tokenizer of {source} (MODEL.SIGLIP_TEXT.SOURCE) needs the package "
            "sentencepiece: pip install sentencepiece."
        ) from error


def _tokenizer_file(source: str) -> str | None:
    """Path of tokenizer.json, in the folder or where the hub's client has put it."""
    local = Path(source) / "tokenizer.json"
    found = str(local) if local.is_file() else None
    if found is None and not Path(source).exists():
        found = try_to_load_from_cache(source, local.name)
    return found if isinstance(found, str) else None


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def ngram_embeddings(names: tuple[str, ...], dim: int) -> torch.Tensor:
    """Deterministic stand-in for a text tower: hashed character n-grams.

    Every n-gram of one to three letters (word borders included) adds a sign vector seeded by its
    hash, so names that share letters or words are near each other. It carries no meaning.

    Args:
        names: C names.
        dim: width of the embeddings.

    Returns:
        (C, dim) float32, unit length.
    """
    rows = []
    for name in names:
        text = f" {name} "
        row = torch.zeros(dim)
        for size in (1, 2, 3):
            for start in range(len(text) - size + 1):
                row += _signs(text[start : start + size], dim)
        rows.append(row)
    return F.normalize(torch.stack(rows), dim=-1)


def _signs(ngram: str, dim: int) -> torch.Tensor:
    digest = hashlib.shake_256(ngram.encode()).digest((dim + 7) // 8)
    bits = [(byte >> shift) & 1 for byte in digest for shift in range(8)][:dim]
    return torch.tensor(bits, dtype=torch.float32) * 2 - 1


@dataclass(frozen=True)
class ClassSimilarity:
    """The nearest class embedding, if it is near enough.

    Attributes:
        bank: (C, d) class embeddings, any norm.
        threshold: smallest cosine similarity that counts as a match.
        embed_names: maps names to (K, d) embeddings; None if predicted embeddings are always given.
    """

    bank: Tensor
    threshold: float
    embed_names: Callable[[Sequence[str]], Tensor] | None = None

    @classmethod
    def from_bank(
        cls, bank: TextEmbeddingBank, class_names: Sequence[str], threshold: float, *, embed: bool
    ) -> ClassSimilarity:
        """Similarity to the names of C classes.

        Args:
            bank: makes the embeddings of the classes.
            class_names: C names, possibly none.
            threshold: smallest cosine similarity that counts as a match.
            embed: names are embedded with the bank too; False: their embeddings are predicted.
        """
        classes = bank(tuple(class_names)) if class_names else torch.zeros(0, bank.dim)
        return cls(classes, threshold, bank.embed if embed else None)

    def nearest(self, names: Sequence[str], embeddings: Tensor | None) -> list[int]:
        """Class of each name, -1 below the threshold.

        Args:
            names: K names.
            embeddings: (K, d) embeddings predicted for them; None embeds the names.

        Raises:
            ValueError: if there are neither embeddings nor a function to make them.
        """
        if embeddings is None:
            if self.embed_names is None:
                raise ValueError(
                    "Got no embeddings for the similarity rule; pass them to map_names, or "
                    "construct ClassSimilarity with embed_names."
                )
            embeddings = self.embed_names(names)
        if not len(self.bank):
            return [-1] * len(names)
        bank = F.normalize(self.bank.float(), dim=-1)
        cosines = F.normalize(embeddings.float(), dim=-1) @ bank.T.to(embeddings.device)  # (K, C)
        best, class_ids = cosines.max(dim=-1)
        return torch.where(best >= self.threshold, class_ids, -1).tolist()
