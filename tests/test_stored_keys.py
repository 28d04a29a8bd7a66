"""Attention over keys of other passes: many segments that each read their own, taken as one, against one at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tamis.engine import attention, kernels
from tamis.engine.keyvalues import Home, KeyValues
from tamis.engine.packing import Layout
from tamis.engine.reads import read_by_segments
from tamis.engine.segments import Segment
from tamis.engine.sequences import Tokens, cut

HEADS, GROUPS, SIZE = 4, 2, 8
CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(kernels.compiled() is None, reason="tamis-kernels has nothing for this machine")


def kept(tokens):
    return KeyValues([(torch.randn(GROUPS, tokens, SIZE), torch.randn(GROUPS, tokens, SIZE))], tokens)


def rows(heads, count):
    return torch.randn(1, heads, count, SIZE)


@pytest.mark.parametrize("form", ["torch", pytest.param("compiled", marks=needs_kernels)])
@pytest.mark.parametrize("window", [None, 3, 7, 20, 200])
@pytest.mark.parametrize("lengths", [(9, 9, 9), (8, 15, 12, 9), (5, 40, 17, 1, 31, 30), (6,)])
def test_many_at_once_equal_one_at_a_time(lengths, window, form):
    torch.manual_seed(len(lengths))
    system, own = kept(4), 5
    passages = [kept(n) for n in lengths]
    segments = [
        Segment(Tokens(np.zeros(4 + n + own, np.int32)), 4 + n, 4 + n + own, i, stored=(system, passage))
        for i, (n, passage) in enumerate(zip(lengths, passages, strict=True))
    ]
    layout = Layout(segments, CPU, rounded=True)
    query, key, value = (rows(h, layout.rows + layout.tail) for h in (HEADS, GROUPS, GROUPS))
    run = attention._by_runs if form == "torch" else kernels.by_segments
    got = run(layout, query, key, value, None, True, window, 0)
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


def test_what_segments_read_stands_in_the_order_of_places():
    """Stored tokens first, then a beginning that several share, then their own; what is at home grows there."""
    system, passage, home = kept(4), kept(6), Home((kept(3),))
    tokens = [Tokens(np.zeros(n, np.int32)) for n in (5, 9, 9, 4)]
    segments = [
        Segment(tokens[0], 0, 5, -1, stored=(system,)),
        Segment(tokens[1], 5, 7, 0, before=0, stored=(system, passage)),
        Segment(tokens[2], 7, 9, 1, before=1, itself=False),
        Segment(tokens[3], 3, 4, 2, home=home),
    ]
    layout = Layout(segments, CPU)
    key, value = rows(GROUPS, layout.rows), rows(GROUPS, layout.rows)
    parts, counts = read_by_segments(layout, key, value, 0)
    assert counts == [4 + 5, 4 + 6 + 5 + 2, 2, 3 + 1]
    for which, own in enumerate((key[0], value[0])):
        stored = [system.layers[0][which], passage.layers[0][which], home._beginnings[0].layers[0][which]]
        expected = [
            stored[0],
            own[:, :5],
            stored[0],
            stored[1],
            own[:, :5],
            own[:, 5:7],
            own[:, 5:7],
            stored[2],
            own[:, 9:],
        ]
        assert torch.equal(torch.cat([pair[which] for pair in parts], dim=1), torch.cat(expected, dim=1))
    assert len(home) == 3  # it is said to have grown once all layers have


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
