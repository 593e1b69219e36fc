"""Class-name embeddings: deterministic n-grams, and a SigLIP text tower cached on disk."""

import importlib.util

import pytest
import torch
from mini_7b import TEXT_DIM, write_siglip
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, SiglipTextConfig, SiglipTextModel

from rose_d2.prompts.tokenizer import build_tokenizer
from rose_d2.vocabulary.text_embeddings import (
    TextEmbeddingBank,
    load_text_tokenizer,
    ngram_embeddings,
)

NAMES = ("red car", "blue car", "giraffe")


def test_ngram_embeddings_are_unit_fixed_and_near_for_shared_words():
    embeddings = ngram_embeddings(NAMES, 64)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(embeddings, ngram_embeddings(NAMES, 64))
    similarity = embeddings @ embeddings.T
    assert similarity[0, 1] > similarity[0, 2] + 0.2


def save_tower(folder, width):
    torch.manual_seed(0)
    tokenizer = build_tokenizer("tiny")
    config = SiglipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        projection_size=width,
    )
    SiglipTextModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_tower_is_run_once_and_cached(tmp_path):
    save_tower(tmp_path / "tower", 8)
    source, cache = str(tmp_path / "tower"), str(tmp_path / "cache")
    first = TextEmbeddingBank(source, 8, cache)(NAMES)
    assert first.shape == (3, 8)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(3))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    (tmp_path / "tower" / "model.safetensors").unlink()  # the tower is not needed any more
    torch.testing.assert_close(TextEmbeddingBank(source, 8, cache)(NAMES), first)


def test_names_are_embedded_one_by_one_with_a_resident_tower(tmp_path):
    save_tower(tmp_path, 8)
    bank = TextEmbeddingBank(str(tmp_path), 8)
    first = bank.embed(["giraffe", "red car", "giraffe"])
    (tmp_path / "model.safetensors").unlink()
    together = bank.embed(NAMES)  # "blue car" is new
    torch.testing.assert_close(first, together[[2, 0, 2]])
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    assert bank.embed([]).shape == (0, 8)


def test_embedding_names_agrees_with_embedding_a_vocabulary(tmp_path):
    save_tower(tmp_path, 8)
    for bank in (TextEmbeddingBank(str(tmp_path), 8), TextEmbeddingBank("ngram", 8)):
        torch.testing.assert_close(bank.embed(NAMES), bank(NAMES))


def test_wrong_width_is_refused(tmp_path):
    save_tower(tmp_path, 8)
    with pytest.raises(ValueError, match="SIGLIP_DIM is 16"):
        TextEmbeddingBank(str(tmp_path), 16)(NAMES)


@pytest.mark.parametrize("tokenizer", ["settings", "spiece.model", "tokenizer.json"])
def test_a_folder_as_siglip_is_published_is_read_in_any_layout(tmp_path, tokenizer):
    write_siglip(tmp_path / "siglip", tokenizer=tokenizer)
    embeddings = TextEmbeddingBank(str(tmp_path / "siglip"), TEXT_DIM)(("dog", "red car"))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    assert not torch.allclose(embeddings[0], embeddings[1])


def test_tokenizer_json_alone_gives_the_same_tokens(tmp_path):
    options = {"padding": "max_length", "max_length": 64, "truncation": True}
    tokens = []
    for tokenizer in ("settings", "tokenizer.json"):
        write_siglip(tmp_path / tokenizer, tokenizer=tokenizer)
        read = load_text_tokenizer(str(tmp_path / tokenizer))
        tokens.append(read(["This is a photo of Red-car.", "a dog"], **options)["input_ids"])
    assert tokens[0] == tokens[1] and {len(row) for row in tokens[1]} == {64}


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def refuse(source):
        raise ValueError("no tokenizer class")

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ValueError, match="no tokenizer class"):
        load_text_tokenizer("siglip")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "sentencepiece" else find_spec(n)
    )
    with pytest.raises(ImportError, match="siglip .* needs the package sentencepiece: pip install"):
        load_text_tokenizer("siglip")


def test_a_folder_without_a_whole_text_tower_is_refused(tmp_path):
    save_tower(tmp_path, 8)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if "fc1.weight" in name)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="not a whole SigLIP text tower: .*fc1.weight and 0 more"):
        TextEmbeddingBank(str(tmp_path), 8)(NAMES)


def test_a_bank_takes_over_what_another_has_made(tmp_path):
    bank = TextEmbeddingBank(str(tmp_path / "nothing here"), 4)
    bank.add(NAMES, torch.eye(3, 4))
    assert torch.equal(bank(NAMES[:2]), torch.eye(2, 4))
    assert torch.equal(bank.embed([NAMES[2], NAMES[0]]), torch.eye(3, 4)[[2, 0]])
