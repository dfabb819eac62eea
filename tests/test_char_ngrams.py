"""Likeness by ngrams: what is alike, what is not, and sums over a history."""

import torch

from setrec.scoring.char_ngrams import CharNgrams

TEXTS = ["lego castle knights", "lego castles", "barbie doll", "", "zzz qqq"]


def test_shared_words_and_their_endings_make_texts_alike() -> None:
    similar = CharNgrams(TEXTS).similar(torch.arange(len(TEXTS)))  # (N, N)
    assert torch.allclose(similar, similar.T, atol=1e-6)
    assert similar[0, 1] > 0.4  # "castle" and "castles" share their ngrams, as a whole word they would not
    assert similar[0, 2] == 0
    assert similar[3].eq(0).all()  # without a text
    assert torch.allclose(similar.diagonal()[:2], torch.ones(2), atol=1e-6)
    assert (similar <= 1 + 1e-6).all()


def test_rare_letters_weigh_more() -> None:
    texts = ["common alpha", "common beta", "common alpha", "common beta", "common gamma", "common gamma"]
    similar = CharNgrams(texts).similar(torch.tensor([0]))[0]  # (N,)
    assert similar[2] > 2 * similar[1] > 0


def test_a_history_is_the_weighted_sum_of_its_items() -> None:
    ngrams = CharNgrams(TEXTS)
    items, weight = torch.tensor([[0, 2], [1, 1]]), torch.tensor([[1.0, 0.5], [0.25, 0.0]])
    each = ngrams.similar(items.flatten()).view(2, 2, -1)  # (B, 2, N)
    assert torch.allclose(ngrams.score(items, weight), (each * weight[..., None]).sum(1), atol=1e-6)


def test_texts_that_share_nothing_are_alike_to_nothing() -> None:
    assert CharNgrams(["abc", "", "xyz"]).similar(torch.arange(3)).eq(0).all()
