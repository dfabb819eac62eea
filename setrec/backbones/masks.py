"""Who sees whom, and where everything stands: the masks and positions of SETRec as pure functions.

The sequence of a history is  instruction and response text | items, K slots each.  Queries stand outside it: query set
p of a user reads the text and the first prefix[p] items (see `queries_see`). The decoder-only backbone has no outside:
it packs every prefix's response text and queries behind the items (see `packed_mask` and `packed_positions`):

    instruction | item 0 | item 1 | ...  | response, K queries of prefix 0 | response, K queries of prefix 1 | ...

Everything here returns booleans (True: may see). `additive` turns them into what attention adds to its logits.
"""

from typing import Literal

import torch
from torch import Tensor


def history_positions(n_text: int, n_items: int, n_slots: int, device: torch.device | None = None) -> Tensor:
    """Positions of the history's tokens: text counts up, then one position an item, shared by its slots.

    Sharing makes an item's slots a set: nothing tells them apart but their content (paper, section 3.2).
    Text comes first so that its positions do not depend on the length of the history. Returns (T,) int64.
    """
    text = torch.arange(n_text, device=device)  # (n_text,)
    items = n_text + torch.arange(n_items, device=device)  # (L,)
    return torch.cat([text, items.repeat_interleave(n_slots)])  # (T,) with T = n_text + L * K


def history_mask(
    n_text: int, n_items: int, n_slots: int, device: torch.device | None = None, own_item: bool = False
) -> Tensor:
    """The paper's sparse mask: a token of an item sees the text, itself and every token of earlier items.

    It never sees the other slots of its own item, nor anything later; the text sees only text, so that no item leaks
    through it into earlier prefixes. With 2 text tokens and 2 items of 2 slots (row sees column: x):

                 text   item 0  item 1
               t0  t1   a   b   a   b
        t0      x   x   .   .   .   .
        t1      x   x   .   .   .   .
        0 a     x   x   x   .   .   .
        0 b     x   x   .   x   .   .
        1 a     x   x   x   x   x   .
        1 b     x   x   x   x   .   x

    Padding stands at the end, where no real token looks: the mask needs no knowledge of it.

    Args:
        n_text, n_items, n_slots: lengths of the text, the history and an item.
        device: of the result.
        own_item: the slots of an item see each other as well (not the paper); they are still a set.

    Returns (T, T) bool.
    """
    order = torch.cat(
        [
            torch.full((n_text,), -1, device=device),
            torch.arange(n_items, device=device).repeat_interleave(n_slots),
        ]
    )  # (T,) which item a token belongs to, -1 for text
    earlier = (
        (order[None, :] <= order[:, None]) & (order[:, None] >= 0) if own_item else order[None, :] < order[:, None]
    )
    text = (order[None, :] < 0) & (order[:, None] < 0)  # (T, T)
    itself = torch.eye(len(order), dtype=torch.bool, device=device)  # (T, T)
    return earlier | text | itself  # (T, T)


def bidirectional_mask(n_text: int, n_slots: int, real: Tensor) -> Tensor:
    """What the released code gives T5's encoder: every token sees every real token, its own item's slots included.

    Only right with one prefix per row: a history token sees all the items of the row.

    Args:
        real: (B, L) bool, which items are not padding.

    Returns (B, T, T) bool.
    """
    n_batch, n_items = real.shape
    keys = torch.cat([real.new_ones(n_batch, n_text), real.repeat_interleave(n_slots, dim=1)], dim=1)  # (B, T)
    n_tokens = n_text + n_items * n_slots
    return keys[:, None, :].expand(n_batch, n_tokens, n_tokens)  # (B, T, T)


def queries_see(prefix: Tensor, n_text: int, n_items: int, n_slots: int) -> Tensor:
    """What each query set sees of the history's tokens: the text, and every slot of the first prefix[b, p] items.

    For prefixes 0, 1, 2 of two items with one text token and two slots:

                 text  item 0  item 1
        0         x     .  .    .  .
        1         x     x  x    .  .
        2         x     x  x    x  x

    Args:
        prefix: (B, P) int64; padding (-1) sees the text only, as the empty history does.

    Returns (B, P, T) bool.
    """
    item = torch.arange(n_items, device=prefix.device).repeat_interleave(n_slots)  # (L * K,)
    items = item < prefix[..., None]  # (B, P, L * K)
    text = items.new_ones(*prefix.shape, n_text)  # (B, P, n_text)
    return torch.cat([text, items], dim=-1)  # (B, P, T)


def packed_mask(
    prefix: Tensor,
    n_text: int,
    n_items: int,
    n_slots: int,
    n_response: int,
    n_queries: int,
    items_see: Literal["set", "items", "causal"] = "set",
    isolate_queries: bool = True,
) -> Tensor:
    """All prefixes of a history in one sequence: who sees whom, so that each prefix answers as if it were alone.

    The instruction is causal, as a language model reads it. Items see as in `history_mask`. A response token of prefix
    t sees the instruction, the items before t and the response up to itself; a query of prefix t sees the instruction,
    the items before t, its whole response and itself, never another query. Nothing sees anything of another prefix, and
    no item sees any prefix. With 1 instruction token, 2 items of 2 slots, 1 response token (r), 2 queries (q) and the
    prefixes 0 and 2:

                 text  item 0  item 1  prefix 0   prefix 2
                  t0    a   b   a   b   r  q0 q1   r  q0 q1
        t0        x     .   .   .   .   .  .  .    .  .  .
        0 a       x     x   .   .   .   .  .  .    .  .  .
        0 b       x     .   x   .   .   .  .  .    .  .  .
        1 a       x     x   x   x   .   .  .  .    .  .  .
        1 b       x     x   x   .   x   .  .  .    .  .  .
        0 r       x     .   .   .   .   x  .  .    .  .  .
        0 q0      x     .   .   .   .   x  x  .    .  .  .
        0 q1      x     .   .   .   .   x  .  x    .  .  .
        2 r       x     x   x   x   x   .  .  .    x  .  .
        2 q0      x     x   x   x   x   .  .  .    x  x  .
        2 q1      x     x   x   x   x   .  .  .    x  .  x

    Every token sees itself, padding included, so no row of the softmax is empty; padded items stand behind every real
    prefix of their row, where nothing real looks.

    Args:
        prefix: (B, P) int64, how many items each prefix shows; padding (-1) sees what the empty history does.
        n_text, n_items, n_slots, n_response: lengths of the instruction, the history, an item and the response.
        n_queries: queries of a prefix: K, fewer where one is left out.
        items_see: `set`, as drawn (the paper); `items`, a token sees the other slots of its own item as well; `causal`, it
            sees everything before it, as in any text: the slots of an item are then no set, but a sequence.
        isolate_queries: False: the queries of a prefix see each other.

    Returns (B, T, T) bool with T = n_text + L * K + P * (n_response + K): the square of a long packed row is what it
    costs, for 50 items, 7 slots and 5 response tokens about a million entries a user.
    """
    n_batch, n_prefix = prefix.shape
    n_history, block = n_text + n_items * n_slots, n_response + n_queries
    history = history_mask(
        n_text, n_items, n_slots, prefix.device, items_see != "set"
    )  # (S, S) with S = n_text + L * K
    history[:n_text, :n_text].tril_()  # the instruction is causal
    if items_see == "causal":
        history.tril_()
    own = torch.eye(block, dtype=torch.bool, device=prefix.device)  # (R + K, R + K): queries see themselves ...
    if not isolate_queries:
        own[n_response:, n_response:] = True  # ... or each other ...
    own[:, :n_response] = True  # ... and the response,
    own[:n_response, :n_response].tril_()  # which is causal
    each = torch.eye(n_prefix, dtype=torch.bool, device=prefix.device)  # (P, P)
    answers = (each[:, None, :, None] & own[:, None]).flatten(2).flatten(0, 1)  # (P * (R + K), P * (R + K))

    see = prefix.new_zeros(n_batch, n_history + n_prefix * block, n_history + n_prefix * block, dtype=torch.bool)
    see[:, :n_history, :n_history] = history
    see[:, n_history:, :n_history] = queries_see(prefix, n_text, n_items, n_slots).repeat_interleave(block, dim=1)
    see[:, n_history:, n_history:] = answers
    return see  # (B, T, T)


def packed_positions(
    prefix: Tensor, n_text: int, n_items: int, n_slots: int, n_response: int, n_queries: int
) -> Tensor:
    """Positions of the packed sequence: each prefix counts on from its own last item, wherever it stands in the row.

    The instruction counts up, item i stands at n_text + i with all its slots, token j of the response of prefix t at
    n_text + t + j, and the queries of a set share the position after it. For the drawing of `packed_mask`:

        t0   0 a 0 b   1 a 1 b   r q0 q1   r q0 q1
         0    1   1     2   2    1  2  2   3  4  4

    Args:
        prefix: (B, P) int64, see `packed_mask`.

    Returns (B, T) int64.
    """
    n_batch = prefix.shape[0]
    history = history_positions(n_text, n_items, n_slots, prefix.device).expand(n_batch, -1)  # (B, S)
    step = torch.arange(n_response + n_queries, device=prefix.device).clamp(max=n_response)  # (R + K,) 0 1 .. R R R
    answers = n_text + prefix.clamp(min=0)[..., None] + step  # (B, P, R + K)
    return torch.cat([history, answers.flatten(1)], dim=1)  # (B, T)


def additive(see: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as numbers to add to attention logits: 0 where seen, the type's lowest number where not.

    Floats are right on every attention path of transformers; booleans are not on the eager one. Same shape, `dtype`.
    """
    return torch.zeros(see.shape, dtype=dtype, device=see.device).masked_fill(~see, torch.finfo(dtype).min)
