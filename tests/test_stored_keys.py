"""Attention over keys of other passes: many segments that each read their own, taken as one, against one at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tamis.engine import attention
from tamis.engine.keyvalues import KeyValues
from tamis.engine.packing import Layout
from tamis.engine.segments import Segment
from tamis.engine.sequences import Tokens, cut

HEADS, GROUPS, SIZE = 4, 2, 8
CPU = torch.device("cpu")


def kept(tokens):
    return KeyValues([(torch.randn(GROUPS, tokens, SIZE), torch.randn(GROUPS, tokens, SIZE))], tokens)


def rows(heads, count):
    return torch.randn(1, heads, count, SIZE)


@pytest.mark.parametrize("window", [None, 3, 7, 20, 200])
@pytest.mark.parametrize("lengths", [(9, 9, 9), (8, 15, 12, 9), (5, 40, 17, 1, 31, 30), (6,)])
def test_many_at_once_equal_one_at_a_time(lengths, window):
    torch.manual_seed(len(lengths))
    system, own = kept(4), 5
    passages = [kept(n) for n in lengths]
    segments = [
        Segment(Tokens(np.zeros(4 + n + own, np.int32)), 4 + n, 4 + n + own, i, stored=(system, passage))
        for i, (n, passage) in enumerate(zip(lengths, passages, strict=True))
    ]
    layout = Layout(segments, CPU, rounded=True)
    query, key, value = (rows(h, layout.rows + layout.tail) for h in (HEADS, GROUPS, GROUPS))
    got = attention._by_runs(layout, query, key, value, None, True, window, 0)
    assert got.shape == (1, layout.rows + layout.tail, HEADS, SIZE)
    for i, passage in enumerate(passages):
        mine = slice(i * own, (i + 1) * own)
        k, v = (
            torch.cat([system.layers[0][w], passage.layers[0][w], own_rows[0, :, mine]], dim=1).repeat_interleave(2, 0)
            for w, own_rows in enumerate((key, value))
        )
        places = torch.arange(k.shape[1])
        distance = places[-own:, None] - places
        seen = (distance >= 0) & (distance < (window or 1000))
        products = (query[0, :, mine] @ k.transpose(1, 2) * SIZE**-0.5).masked_fill(~seen, -torch.inf)
        torch.testing.assert_close(got[0, mine], (products.softmax(-1) @ v).transpose(0, 1), atol=1e-5, rtol=1e-5)


def test_passages_of_about_one_length_are_one_run():
    system = kept(4)
    segments = [
        Segment(Tokens(np.zeros(4 + n + 5, np.int32)), 4 + n, 4 + n + 5, i, stored=(system, kept(n)))
        for i, n in enumerate([100, 90, 70, 20, 17])
    ]
    assert [run.n for run in Layout(segments, CPU).runs] == [3, 2]  # filled up to at most twice their length


def test_a_batch_is_cut_by_what_is_run():
    batch = [Tokens(np.zeros(100, np.int32))] * 10
    assert len(cut(batch, 200)) == 5
    assert len(cut(batch, 200, cost=lambda tokens: 20)) == 1
