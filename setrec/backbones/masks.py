"""Attention masks and positions: which token sees which, and at which position it stands.

T5's encoder reads the sequence  instruction and response text | items, K slots each.  T5's decoder reads the queries: query
set p sees the text and the first prefix[p] items (see `queries_see`). The decoder-only backbone has one sequence, in which
every prefix's response text and queries follow the items (see `packed_mask` and `packed_positions`):

    instruction | item 0 | item 1 | ...  | response, K queries of prefix 0 | response, K queries of prefix 1 | ...

All masks are booleans (True: sees). `additive` turns them into numbers that attention adds to its logits.
"""

from typing import Literal

import torch
from torch import Tensor


def history_positions(n_text: int, n_items: int, n_slots: int, device: torch.device | None = None) -> Tensor:
    """Positions of the history's tokens: one for each text token, then one for each item, shared by its slots.

    Because they share a position, an item's slots are a set: only their content differs (paper, section 3.2).
    Text comes first, so that its positions do not depend on the length of the history. Returns (T,) int64.
    """
    text = torch.arange(n_text, device=device)  # (n_text,)
    items = n_text + torch.arange(n_items, device=device)  # (L,)
    return torch.cat([text, items.repeat_interleave(n_slots)])  # (T,), T = n_text + L * K


def history_mask(
    n_text: int, n_items: int, n_slots: int, device: torch.device | None = None, own_item: bool = False
) -> Tensor:
    """The paper's sparse mask: a token of an item sees the text, itself and every token of earlier items.

    It never sees the other slots of its own item, nor later items; the text sees only text, or it would carry later items
    into earlier prefixes. With 2 text tokens and 2 items of 2 slots (x: row sees column):

                 text   item 0  item 1
               t0  t1   a   b   a   b
        t0      x   x   .   .   .   .
        t1      x   x   .   .   .   .
        0 a     x   x   x   .   .   .
        0 b     x   x   .   x   .   .
        1 a     x   x   x   x   x   .
        1 b     x   x   x   x   .   x

    Padding is at the end, where no real token sees it, so the mask does not depend on it.

    Args:
        n_text: Text tokens.
        n_items: Items of the history, L.
        n_slots: Slots of an item, K.
        device: Where the mask is made.
        own_item: The slots of an item see each other too (not the paper's); they are still a set.

    Returns:
        (T, T) bool.
    """
    order = torch.cat(
        [torch.full((n_text,), -1, device=device), torch.arange(n_items, device=device).repeat_interleave(n_slots)]
    )  # (T,): the item that a token belongs to, -1 for text
    row, column = order[:, None], order[None, :]  # (T, 1), (1, T)
    earlier = (column <= row) & (row >= 0) if own_item else column < row  # (T, T)
    text = (column < 0) & (row < 0)  # (T, T)
    itself = torch.eye(order.shape[0], dtype=torch.bool, device=device)  # (T, T)
    return earlier | text | itself  # (T, T)


def bidirectional_mask(n_text: int, n_slots: int, real: Tensor) -> Tensor:
    """The mask of the released code for T5's encoder: every token sees every token but padding.

    Use it with one prefix per row only, since a history token sees all items of the row.

    Args:
        n_text: Text tokens.
        n_slots: Slots of an item, K.
        real: (B, L) bool, which items are not padding.

    Returns:
        (B, T, T) bool.
    """
    n_batch, n_items = real.shape
    keys = torch.cat([real.new_ones(n_batch, n_text), real.repeat_interleave(n_slots, dim=1)], dim=1)  # (B, T)
    n_tokens = n_text + n_items * n_slots
    return keys[:, None, :].expand(n_batch, n_tokens, n_tokens)  # (B, T, T)


def queries_see(prefix: Tensor, n_text: int, n_items: int, n_slots: int) -> Tensor:
    """Which history tokens each query set sees: the text, and every slot of the first prefix[b, p] items.

    For prefixes 0, 1, 2 of two items with one text token and two slots:

                 text  item 0  item 1
        0         x     .  .    .  .
        1         x     x  x    .  .
        2         x     x  x    x  x

    Args:
        prefix: (B, P) int64; padding (-1) sees the text only, like the empty history.
        n_text: Text tokens.
        n_items: Items of the history, L.
        n_slots: Slots of an item, K.

    Returns:
        (B, P, T) bool.
    """
    item = torch.arange(n_items, device=prefix.device).repeat_interleave(n_slots)  # (L * K,)
    items = item < prefix[..., None]  # (B, P, L * K)
    text = items.new_ones(*prefix.shape, n_text)  # (B, P, n_text)
    return torch.cat([text, items], dim=-1)  # (B, P, T)


def _response_sees(n_response: int, n_queries: int, isolate_queries: bool, device: torch.device) -> Tensor:
    """What the response and the queries of one prefix see of each other, (R + K, R + K) bool; see `packed_mask`."""
    own = torch.eye(n_response + n_queries, dtype=torch.bool, device=device)  # queries see themselves
    if not isolate_queries:
        own[n_response:, n_response:] = True  # and each other
    own[:, :n_response] = True  # and the response
    own[:n_response, :n_response].tril_()  # the response is causal
    return own  # (R + K, R + K)


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
    """The mask of all prefixes of a history in one sequence; each prefix gives the same outputs as in a row of its own.

    The instruction is causal, as a language model reads it. Items see as in `history_mask`. A response token of prefix t
    sees the instruction, the first t items and the response up to itself. A query of prefix t sees the instruction, the
    first t items, its whole response and itself, but no other query. No token sees a response or query of another prefix,
    and no item sees any response or query. With 1 instruction token, 2 items of 2 slots, 1 response token (r), 2 queries
    (q) and the prefixes 0 and 2:

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

    Every token sees itself, padding included, so no row of the softmax is empty. Padded items come after all real items,
    and no prefix counts them, so no real token sees them.

    Args:
        prefix: (B, P) int64, how many items each prefix shows; padding (-1) sees the same as the empty history.
        n_text: Tokens of the instruction.
        n_items: Items of the history, L.
        n_slots: Slots of an item, K.
        n_response: Tokens of the response, R.
        n_queries: Queries of a prefix: K, or fewer where one is left out.
        items_see: `set`, as drawn (the paper); `items`, a token sees the other slots of its own item too; `causal`, it sees
            every token before it, so that the slots of an item are a sequence and no set.
        isolate_queries: False: the queries of a prefix see each other.

    Returns:
        (B, T, T) bool with T = n_text + L * K + P * (R + K): for 50 items, 7 slots and 5 response tokens about a million
        entries a user.
    """
    n_batch, n_prefix = prefix.shape
    n_history, block = n_text + n_items * n_slots, n_response + n_queries
    history = history_mask(n_text, n_items, n_slots, prefix.device, items_see != "set")  # (S, S), S = n_text + L * K
    history[:n_text, :n_text].tril_()  # the instruction is causal
    if items_see == "causal":
        history.tril_()
    own = _response_sees(n_response, n_queries, isolate_queries, prefix.device)  # (R + K, R + K)
    each = torch.eye(n_prefix, dtype=torch.bool, device=prefix.device)  # (P, P)
    prefixes = (each[:, None, :, None] & own[:, None]).flatten(2).flatten(0, 1)  # (P * (R + K), P * (R + K))

    see = prefix.new_zeros(n_batch, n_history + n_prefix * block, n_history + n_prefix * block, dtype=torch.bool)
    see[:, :n_history, :n_history] = history
    see[:, n_history:, :n_history] = queries_see(prefix, n_text, n_items, n_slots).repeat_interleave(block, dim=1)
    see[:, n_history:, n_history:] = prefixes
    return see  # (B, T, T)


def new_tokens_see(
    read: Tensor,
    new: Tensor,
    most_read: int,
    n_new: int,
    n_text: int,
    n_slots: int,
    n_response: int,
    n_queries: int,
    items_see: Literal["set", "items", "causal"] = "set",
    isolate_queries: bool = True,
) -> Tensor:
    """The mask of new items and of the queries after them, where keys of the text and of earlier items are kept.

    The same rows as in `packed_mask` for one prefix, all items of the history, without the rows of what was read before. With 1
    text token, item 0 read before, item 1 new, slots a and b, 1 response token and 2 queries:

                 text  item 0  item 1  response, queries
                  t0    a   b   a   b   r  q0 q1
        1 a       x     x   x   x   .   .  .  .
        1 b       x     x   x   .   x   .  .  .
        r         x     x   x   x   x   x  .  .
        q0        x     x   x   x   x   x  x  .
        q1        x     x   x   x   x   x  .  x

    Args:
        read: (B,) int64, items read before.
        new: (B,) int64, new items.
        most_read: The largest of `read` that the keys have room for.
        n_new: The largest of `new`.
        n_text: Tokens of the instruction.
        n_slots: Slots of an item, K.
        n_response: Tokens of the response, R.
        n_queries: Queries, K; 0: no rows and columns for response and queries.
        items_see: see `packed_mask`.
        isolate_queries: False: the queries see each other.

    Returns:
        (B, n_new * K + R + n_queries, n_text + most_read * K + n_new * K + R + n_queries) bool.
    """
    device, block = read.device, n_response + n_queries
    n_tokens = n_new * n_slots
    among = history_mask(0, n_new, n_slots, device, items_see != "set")  # (n_new * K, n_new * K)
    if items_see == "causal":
        among.tril_()
    own = _response_sees(n_response, n_queries, isolate_queries, device)  # (R + K, R + K)
    place = torch.arange(max(most_read, n_new), device=device).repeat_interleave(n_slots)  # (any,)
    before = n_text + most_read * n_slots
    see = read.new_zeros(len(read), n_tokens + block, before + n_tokens + block, dtype=torch.bool)
    see[:, :, :n_text] = True
    see[:, :, n_text:before] = (place[: most_read * n_slots] < read[:, None])[:, None]  # (B, 1, most_read * K)
    see[:, :n_tokens, before : before + n_tokens] = among
    see[:, n_tokens:, before : before + n_tokens] = (place[:n_tokens] < new[:, None])[:, None]  # (B, 1, n_new * K)
    see[:, n_tokens:, before + n_tokens :] = own
    return see  # (B, n_new * K + R + K, n_text + most_read * K + n_new * K + R + K)


def packed_positions(
    prefix: Tensor, n_text: int, n_items: int, n_slots: int, n_response: int, n_queries: int
) -> Tensor:
    """Positions of the packed sequence: those that each prefix would have in a row of its own.

    Instruction tokens have the positions 0, 1, 2 ...; all slots of item i have n_text + i; token j of the response of
    prefix t has n_text + t + j; the queries of a prefix share the position after its response. For the drawing of
    `packed_mask`:

        t0   0 a 0 b   1 a 1 b   r q0 q1   r q0 q1
         0    1   1     2   2    1  2  2   3  4  4

    Args:
        prefix: (B, P) int64, see `packed_mask`.
        n_text: Tokens of the instruction.
        n_items: Items of the history, L.
        n_slots: Slots of an item, K.
        n_response: Tokens of the response, R.
        n_queries: Queries of a prefix.

    Returns:
        (B, T) int64.
    """
    n_batch = prefix.shape[0]
    history = history_positions(n_text, n_items, n_slots, prefix.device).expand(n_batch, -1)  # (B, S)
    step = torch.arange(n_response + n_queries, device=prefix.device).clamp(max=n_response)  # (R + K,): 0 1 .. R R R
    prefixes = n_text + prefix.clamp(min=0)[..., None] + step  # (B, P, R + K)
    return torch.cat([history, prefixes.flatten(1)], dim=1)  # (B, T)


def additive(see: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as numbers that attention adds to its logits: 0 where True, the lowest number of `dtype` elsewhere.

    Returns the same shape, `dtype`. Every attention path of transformers reads floats correctly; the eager one misreads booleans.
    """
    return torch.zeros(see.shape, dtype=dtype, device=see.device).masked_fill(~see, torch.finfo(dtype).min)
