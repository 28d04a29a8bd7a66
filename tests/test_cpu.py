"""The CPU's shortcuts give what the plain model gives, and are taken back where they would not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel

import tamis
import tiny
from tamis.engine.architectures import ARCHITECTURES
from tamis.engine.attention import registered
from tamis.engine.backbone import Backbone, probe
from tamis.engine.cpu import Tuned
from tamis.engine.prepacked import Joined, PrepackedLinear, can_prepack

needs_onednn = pytest.mark.skipif(not can_prepack(torch.float32), reason="this torch has no oneDNN operators")


@needs_onednn
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 2048])
def test_prepacked_linear_is_linear(rows, gelu):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(48, 96), torch.randn(2, rows, 48)
    expected = torch.nn.functional.gelu(linear(x)) if gelu else linear(x)
    with torch.inference_mode():
        torch.testing.assert_close(PrepackedLinear(linear, gelu=gelu)(x), expected, atol=1e-5, rtol=1e-5)


@needs_onednn
def test_prepacked_bfloat16_is_no_further_from_float32_than_linear():
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(384, 1536), torch.randn(512, 384)
    exact = linear(x)
    half, halved = linear.bfloat16(), x.bfloat16()
    with torch.inference_mode():
        plain = (half(halved).float() - exact).abs().max()
        prepacked = (PrepackedLinear(half)(halved).float() - exact).abs().max()
    assert prepacked <= 1.5 * plain


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_joined_layers_are_themselves_in_whatever_order_they_are_called(dtype, bias):
    torch.manual_seed(0)
    linears = [torch.nn.Linear(48, out, bias=bias).to(dtype) for out in (96, 32, 64)]
    joined = Joined(linears)
    one, other = (torch.randn(2, 7, 48).to(dtype) for _ in range(2))
    near = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 1e-2}
    with torch.inference_mode():
        for number, x in (
            (0, one),
            (1, one),
            (2, one),
            (0, one),
            (1, other),
            (2, one),
            (2, one),
            (0, other),
            (1, other),
        ):
            torch.testing.assert_close(joined.parts[number](x), linears[number](x), **near)
    assert joined._input is other  # its last part was not asked for
    with torch.inference_mode():
        joined.parts[2](other)
    assert joined._input is None, "what nobody will ask for again is kept"


@needs_onednn
def test_one_product_for_layers_of_one_input(monkeypatch):
    linears = [torch.nn.Linear(48, 48) for _ in range(3)]
    joined, x, products = Joined(linears), torch.randn(5, 48), []
    monkeypatch.setattr(PrepackedLinear, "forward", counted(PrepackedLinear.forward, products))
    with torch.inference_mode():
        for part in joined.parts:
            part(x)
    assert len(products) == 1


def counted(run, calls):
    def counts(*arguments):
        calls.append(arguments)
        return run(*arguments)

    return counts


def packed_encoder(folder):
    body = AutoModel.from_pretrained(folder, attn_implementation=registered(), dtype=torch.float32).eval()
    body.pooler = None
    return Backbone(body, ARCHITECTURES[body.config.model_type])


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "camembert", "electra"])
def test_the_last_layer_is_right_where_it_is_read_and_computed_nowhere_else(tmp_path, name):
    encoder = packed_encoder(tiny.save_encoder(tmp_path, name))
    batch = [probe(length, encoder.body.config.vocab_size, encoder.body.config) for length in (5, 31, 31, 2)]
    with torch.inference_mode():
        before, layout = encoder(batch)
        tuned = Tuned(encoder.body, bert_layers=True, first_only=True)
        after, _ = encoder(batch)
        torch.testing.assert_close(after[layout.first], before[layout.first], atol=1e-5, rtol=1e-5)
        others = torch.ones(len(after), dtype=torch.bool)
        others[layout.first] = False
        assert (after[others] == 0).all()
        tuned.take_back()
        torch.testing.assert_close(encoder(batch)[0], before, atol=0, rtol=0)


def test_a_change_that_makes_a_difference_is_taken_back(tmp_path):
    """An encoder with layers like BERT's in all but one thing: its last MLP reads a neighbour's row."""
    encoder = packed_encoder(tiny.save_encoder(tmp_path, "bert"))
    last = encoder.body.encoder.layer[-1]
    plain = last.feed_forward_chunk
    last.feed_forward_chunk = lambda x: plain(x) + torch.roll(x, -1, dims=-2)
    batch = [probe(length, 200, encoder.body.config) for length in (5, 31, 7)]
    with torch.inference_mode():
        before, _ = encoder(batch)
        encoder.tune(vocabulary=200, longest=512, first_only=True)
        torch.testing.assert_close(encoder(batch)[0], before, atol=0, rtol=0)


@needs_onednn
def test_loads_use_it(classifier):
    with tamis.load(classifier("bert"), dtype="float32", device="cpu") as reranker:
        body = reranker._scorer._lease.loaded.engine._devices[0].runner._backbone.body
        first, last = (body.encoder.layer[i].attention.self for i in (0, -1))
        assert first.query._output.func.__self__ is first.value._output.func.__self__
        assert isinstance(last.query, PrepackedLinear)  # of fewer rows than keys and values
        assert last.key._output.func.__self__ is last.value._output.func.__self__
        assert isinstance(body.encoder.layer[0].intermediate.intermediate_act_fn, torch.nn.Identity)
        assert np.isfinite(reranker.logits("zip", ["a zip archive"])).all()
