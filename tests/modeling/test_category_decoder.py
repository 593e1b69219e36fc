"""Name decoding: the cache, the trie and the loss."""

import pytest
import torch
import torch.nn.functional as F

from rose_d2.modeling.category_decoder import CandidateTrie, CategoryDecoder, ResponseDecoder
from rose_d2.prompts.conversation import encode_name
from rose_d2.structures.category_names import CategoryNames

END = 9


@pytest.fixture
def trie():
    return CandidateTrie("abcd", [[1, 2, END], [1, 3, END], [1, 2, 3, END], [4, END]])


def test_allowed_tokens_follow_the_sequences(trie):
    assert trie.allowed([]) == [1, 4]
    assert trie.allowed([1]) == [2, 3]
    assert trie.allowed([1, 2]) == [END, 3]
    assert trie.allowed([1, 2, END]) == []
    assert trie.allowed([4, END, 0, 0]) == []


def test_every_sequence_spells_its_name(trie):
    sequences = ([1, 2, END], [1, 3, END], [1, 2, 3, END], [4, END], [4, END, 0])
    assert [trie.spell(sequence) for sequence in sequences] == ["a", "b", "c", "d", "d"]
    with pytest.raises(AssertionError, match="complete no candidate"):
        trie.spell([1, 2])


def test_of_names_spelled_alike_the_first_is_meant():
    assert CandidateTrie("abc", [[1, END], [2, END], [1, END]]).spell([1, END]) == "a"


def test_a_path_off_the_trie_is_refused(trie):
    with pytest.raises(ValueError, match="token 7"):
        trie.allowed([1, 7])


def test_a_sequence_that_starts_another_is_refused():
    with pytest.raises(ValueError, match="end token"):
        CandidateTrie("ab", [[1, 2], [1, 2, 3]])


@pytest.mark.parametrize("sequences", [[], [[1], []]])
def test_empty_sequences_are_refused(sequences):
    with pytest.raises(ValueError, match="at least one"):
        CandidateTrie("ab"[: len(sequences)], sequences)


def test_mask_allows_the_finished_token_after_a_leaf(trie):
    tokens = torch.tensor([[1, 2], [4, END]])
    mask = trie.allowed_mask(tokens, vocab_size=10, finished_token=0)
    assert mask.dtype == torch.bool
    assert [row.nonzero().flatten().tolist() for row in mask] == [[3, END], [0]]


def test_constrained_greedy_decoding_always_ends_at_a_leaf(trie):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.empty(8, 0, dtype=torch.long)
    for _ in range(4):
        logits = torch.randn(8, 10, generator=generator)
        mask = trie.allowed_mask(tokens, 10, 0)
        chosen = logits.masked_fill(~mask, -torch.inf).argmax(-1)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    assert {trie.spell(row) for row in tokens.tolist()} <= set("abcd")


@pytest.fixture
def lmm(tiny_model):
    return tiny_model.backbone.eval()


@pytest.fixture
def decoder(lmm):
    return CategoryDecoder(lmm, max_tokens=6)


def states_without_cache(lmm, decoder, embedding, tokens):
    """Logits after prompt and tokens, one sequence in one pass."""
    ids = torch.tensor(decoder.prompt.after + tuple(tokens))
    before = lmm.embed_tokens(torch.tensor(decoder.prompt.before))
    sequence = torch.cat([before, embedding[None], lmm.embed_tokens(ids)])[None]
    return lmm.logits(lmm.run_text(sequence)[0, -1])


def greedy_without_cache(lmm, decoder, embedding):
    tokens, log_probs = [], []
    while len(tokens) < decoder.max_tokens:
        logits = states_without_cache(lmm, decoder, embedding, tokens)
        logits = logits[: len(lmm.tokenizer)].log_softmax(0)
        tokens.append(int(logits.argmax()))
        log_probs.append(float(logits.max()))
        if tokens[-1] in decoder.stop_tokens:
            break
    spelled = [t for t in tokens if t not in decoder.stop_tokens]
    text = lmm.tokenizer.decode(spelled, skip_special_tokens=True).strip()
    return text, sum(log_probs) / len(log_probs)


def test_cached_batch_equals_uncached_single_sequences(lmm, decoder):
    torch.manual_seed(0)
    embeddings = torch.randn(4, lmm.hidden_size) * 3
    with torch.no_grad():
        decoded = decoder.generate(embeddings)
        expected = [greedy_without_cache(lmm, decoder, row) for row in embeddings]
    assert list(decoded.names) == [name for name, _ in expected]
    torch.testing.assert_close(
        decoded.scores, torch.tensor([score for _, score in expected]), atol=1e-4, rtol=1e-4
    )


def test_no_candidates_give_no_names(lmm, decoder):
    decoded = decoder.generate(torch.zeros(0, lmm.hidden_size))
    assert len(decoded.names) == 0
    assert decoded.scores.shape == (0,)


def test_constrained_names_are_always_candidates(lmm, decoder):
    """Also those longer than max_tokens, with a period inside, or spelled like another."""
    candidates = ["dog", "red car", "red", "St. Bernard", "a very long name of a dog", "other"]
    trie = decoder.candidate_trie(candidates)
    assert trie.longest > decoder.max_tokens
    torch.manual_seed(1)
    decoded = decoder.generate(torch.randn(40, lmm.hidden_size) * 5, trie)
    assert set(decoded.names) <= set(candidates)
    for name in candidates:
        decoded = decoder.generate(torch.zeros(2, lmm.hidden_size), decoder.candidate_trie([name]))
        assert list(decoded.names) == [name, name]
        # Nothing else was possible.
        torch.testing.assert_close(decoded.scores, torch.zeros(2))


def test_a_constrained_name_is_scored_among_the_candidates(lmm, decoder):
    torch.manual_seed(3)
    embedding = torch.randn(lmm.hidden_size)
    dog, cat = (encode_name(lmm.tokenizer, name)[:-1] for name in ("dog", "cat"))
    # The first token decides; the others and the period are certain.
    assert dog[0] != cat[0] and len(dog) == len(cat)
    with torch.no_grad():
        decoded = decoder.generate(embedding[None], decoder.candidate_trie(["dog", "cat"]))
        logits = states_without_cache(lmm, decoder, embedding, [])
    shares = logits[[dog[0], cat[0]]].log_softmax(0)
    assert decoded.names[0] == ("dog", "cat")[int(shares.argmax())]
    torch.testing.assert_close(decoded.scores[0], shares.max() / len(dog), atol=1e-5, rtol=1e-4)


def test_loss_is_the_mean_cross_entropy_of_name_period_and_end(lmm, decoder):
    torch.manual_seed(2)
    embeddings = torch.randn(2, lmm.hidden_size)
    names = CategoryNames(["dog", "traffic light"])
    with torch.no_grad():
        losses = decoder.loss(embeddings, names)
        for embedding, name, loss in zip(embeddings, names, losses, strict=True):
            tokens = encode_name(lmm.tokenizer, name)
            terms = [
                F.cross_entropy(
                    states_without_cache(lmm, decoder, embedding, tokens[:i]),
                    torch.tensor(tokens[i]),
                )
                for i in range(len(tokens))
            ]
            torch.testing.assert_close(loss, torch.stack(terms).mean(), atol=1e-5, rtol=1e-4)


def test_gradient_reaches_the_category_embedding(lmm, decoder):
    embeddings = torch.randn(1, lmm.hidden_size, requires_grad=True)
    decoder.loss(embeddings, CategoryNames(["dog"])).sum().backward()
    assert embeddings.grad.abs().sum() > 0


def pad_vocabulary(lmm, monkeypatch, rows=8):
    """Give the LMM rows of logits that belong to no word, and let them win."""
    logits = lmm.logits
    monkeypatch.setattr(lmm, "logits", lambda states: F.pad(logits(states), (0, rows), value=1e3))


@pytest.mark.parametrize("candidates", [None, ["dog", "red car"]])
def test_padding_of_the_vocabulary_is_never_a_word(lmm, decoder, monkeypatch, candidates):
    torch.manual_seed(0)
    embeddings = torch.randn(3, lmm.hidden_size) * 3
    trie = decoder.candidate_trie(candidates) if candidates else None
    expected = decoder.generate(embeddings, trie)
    assert any(expected.names)
    pad_vocabulary(lmm, monkeypatch)
    assert lmm.logits(embeddings).shape[1] == len(lmm.tokenizer) + 8
    decoded = decoder.generate(embeddings, trie)
    assert list(decoded.names) == list(expected.names)
    torch.testing.assert_close(decoded.scores, expected.scores)


def test_a_response_has_no_padding_of_the_vocabulary(tiny_model, make_input, monkeypatch):
    tiny_model.eval().response_decoder = ResponseDecoder(tiny_model.backbone, 6)
    with torch.no_grad():
        (expected,) = tiny_model([make_input()])
        pad_vocabulary(tiny_model.backbone, monkeypatch)
        (found,) = tiny_model([make_input()])
    assert found["text"] == expected["text"] != ""


def test_finished_names_leave_the_batch(decoder, monkeypatch):
    names = ["a", "bee", "cow", "dog park", "elk", "fox", "gnu", "ox", "pig", "zebra crossing"]
    trie = decoder.candidate_trie(names)
    torch.manual_seed(3)
    embeddings = 3 * torch.randn(40, decoder.lmm.hidden_size)
    sizes = []
    run_text = decoder.lmm.run_text

    def counted(words, cache=None):
        sizes.append(len(words))
        return run_text(words, cache)

    monkeypatch.setattr(decoder.lmm, "run_text", counted)
    together = decoder.generate(embeddings, trie)
    spelled = [encode_name(decoder.tokenizer, name)[:-1] for name in together.names]
    lengths = {len(tokens) for tokens in spelled}
    assert len(lengths) >= 2
    running = [sum(len(tokens) > place for tokens in spelled) for place in range(max(lengths))]
    assert sizes == [1, *running]  # the shared prefix, and one pass a token
    alone = [decoder.generate(row[None], trie) for row in embeddings]
    assert list(together.names) == [name for part in alone for name in part.names]
    torch.testing.assert_close(together.scores, torch.cat([part.scores for part in alone]))
