import pytest
import torch

from rose_d2.modeling.category_decoder import TokenTrie

END = 9


@pytest.fixture
def trie():
    return TokenTrie([[1, 2, END], [1, 3, END], [1, 2, 3, END], [4, END]])


def test_allowed_tokens_follow_the_sequences(trie):
    assert trie.allowed([]) == [1, 4]
    assert trie.allowed([1]) == [2, 3]
    assert trie.allowed([1, 2]) == [END, 3]
    assert trie.allowed([1, 2, END]) == []
    assert trie.allowed([4, END, 0, 0]) == []


def test_every_sequence_has_its_leaf(trie):
    assert [trie.leaf(s) for s in ([1, 2, END], [1, 3, END], [1, 2, 3, END], [4, END])] == [
        0,
        1,
        2,
        3,
    ]
    assert trie.leaf([1, 2]) is None
    assert trie.leaf([4, END, 0]) == 3


def test_equal_sequences_share_the_first_leaf():
    assert TokenTrie([[1, END], [2, END], [1, END]]).leaf([1, END]) == 0


def test_a_path_off_the_trie_is_refused(trie):
    with pytest.raises(ValueError, match="token 7"):
        trie.allowed([1, 7])


def test_a_sequence_that_starts_another_is_refused():
    with pytest.raises(ValueError, match="end token"):
        TokenTrie([[1, 2], [1, 2, 3]])


@pytest.mark.parametrize("sequences", [[], [[1], []]])
def test_empty_sequences_are_refused(sequences):
    with pytest.raises(ValueError, match="at least one"):
        TokenTrie(sequences)


def test_mask_allows_the_finished_token_after_a_leaf(trie):
    mask = trie.allowed_mask([[], [1], [4, END], [4, END, 0]], vocab_size=10, finished_token=0)
    assert mask.dtype == torch.bool
    assert [row.nonzero().flatten().tolist() for row in mask] == [[1, 4], [2, 3], [0], [0]]


def test_constrained_greedy_decoding_always_ends_at_a_leaf(trie):
    generator = torch.Generator().manual_seed(0)
    prefixes = [[] for _ in range(8)]
    for _ in range(4):
        logits = torch.randn(8, 10, generator=generator)
        mask = trie.allowed_mask(prefixes, 10, 0)
        for prefix, token in zip(prefixes, logits.masked_fill(~mask, -torch.inf).argmax(-1)):
            prefix.append(token.item())
    assert all(trie.leaf(prefix) is not None for prefix in prefixes)
