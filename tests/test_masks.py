"""Masks and positions against drawings."""

import torch

from setrec.backbones.masks import history_mask, packed_mask, packed_positions


def test_packed_mask_and_positions_are_as_drawn() -> None:
    prefix = torch.tensor([[0, 2], [1, -1]])
    drawn = """
        x.... ......
        xx... ......
        x.x.. ......
        xxxx. ......
        xxx.x ......
        x.... x.....
        x.... xx....
        x.... x.x...
        xxxxx ...x..
        xxxxx ...xx.
        xxxxx ...x.x
    """
    rows = [[letter == "x" for letter in line.replace(" ", "")] for line in drawn.split("\n") if line.strip()]
    see = packed_mask(prefix, n_text=1, n_items=2, n_slots=2, n_response=1, n_queries=2)
    assert see[0].tolist() == rows
    assert see[1, 5, :5].tolist() == [True, True, True, False, False]  # one item
    assert see[1, 8, :5].tolist() == [True, False, False, False, False]  # padding: as the empty history
    assert see.diagonal(dim1=1, dim2=2).all()
    positions = packed_positions(prefix, n_text=1, n_items=2, n_slots=2, n_response=1, n_queries=2)
    assert positions.tolist() == [[0, 1, 1, 2, 2, 1, 2, 2, 3, 4, 4], [0, 1, 1, 2, 2, 2, 3, 3, 1, 2, 2]]
    causal = packed_mask(torch.tensor([[0]]), n_text=3, n_items=0, n_slots=1, n_response=2, n_queries=1)[0]
    assert torch.equal(causal, torch.ones(6, 6, dtype=torch.bool).tril())  # no items: a plain text


def test_masks_of_ablations_by_hand() -> None:
    """One text token, two items of two slots; then a prefix of one item with a response token and two queries."""

    def drawn(picture: str) -> list[list[bool]]:
        return [[letter == "x" for letter in line.replace(" ", "")] for line in picture.split("\n") if line.strip()]

    text_and_items = """
        x....
        xxx..
        xxx..
        xxxxx
        xxxxx
    """
    assert history_mask(1, 2, 2, own_item=True).tolist() == drawn(text_and_items)
    assert history_mask(3, 0, 2, own_item=True).all()  # the text sees all of itself, as without
    causal = """
        x.... ...
        xx... ...
        xxx.. ...
        xxxx. ...
        xxxxx ...
        xxx.. x..
        xxx.. xxx
        xxx.. xxx
    """
    see = packed_mask(torch.tensor([[1]]), 1, 2, 2, 1, 2, items_see="causal", isolate_queries=False)
    assert see[0].tolist() == drawn(causal)
    see = packed_mask(torch.tensor([[1]]), 1, 2, 2, 1, 2, items_see="items")
    assert see[0, :5, :5].tolist() == drawn(text_and_items)
    assert see[0, 5:, 5:].tolist() == drawn("x..\nxx.\nx.x")
