"""The compiled parts against torch in float32, at every level that this machine has, and what they refuse."""

from __future__ import annotations

import resource
import threading
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention, silu

import tamis_kernels
from tamis_kernels import LEVELS, Packed, add_norm, attention, compiled, gate, layer, rms_norm, rotary

needs_library = pytest.mark.skipif(tamis_kernels.why_not() is not None, reason=tamis_kernels.why_not() or "")
needs_amx = pytest.mark.skipif(tamis_kernels.level() != "amx", reason="this machine has no AMX")
HERE = LEVELS[1 : LEVELS.index(tamis_kernels.level()) + 1]
FORMS = [(torch.float32, None), *((torch.bfloat16, level) for level in HERE)]  # a dtype, and a level that differs in it
HEADS = [(12, 12, 32), (4, 4, 64), (8, 2, 128), (4, 4, 80), (2, 1, 24), (2, 2, 8), (3, 1, 3)]
LENGTHS = {
    "one": ([1], [1]),
    "mixed": ([5, 17, 33, 100, 16, 32], [5, 17, 33, 100, 16, 32]),
    "long": ([600, 1300], [600, 1300]),
    "one query each": ([1, 1, 1], [5, 33, 300]),
    "a beginning before": ([2, 7, 40], [900, 9, 95]),
}


def made(heads, groups, dim, asked, known, seed=0, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(sum(asked), heads, dim, generator=generator).to(dtype) * 2
    key, value = (torch.randn(sum(known), groups, dim, generator=generator).to(dtype) for _ in range(2))
    edges = [torch.tensor([0, *accumulate(lengths)], dtype=torch.int32) for lengths in (asked, known)]
    return query, key, value, *edges


def expected(query, key, value, asked, known, *, scale, causal=False, window=None):
    """Sequence by sequence, float32, by torch."""
    outs = []
    for i in range(len(asked) - 1):
        q = query[asked[i] : asked[i + 1]].float().transpose(0, 1)[None]
        k, v = (x[known[i] : known[i + 1]].float().transpose(0, 1)[None] for x in (key, value))
        queries, keys = q.shape[2], k.shape[2]
        ahead = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
        seen = torch.ones_like(ahead, dtype=torch.bool)
        if causal:
            seen &= ahead >= 0
        if window:
            seen &= ahead.abs() < window
        gqa = q.shape[1] != k.shape[1]
        out = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=gqa)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


@needs_library
@pytest.mark.parametrize(("dtype", "level"), FORMS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 5, 64, 300])
def test_attention_is_that_of_torch(heads, lengths, causal, window, dtype, level):
    parts = made(*heads, *LENGTHS[lengths], dtype=dtype)
    how = {"scale": heads[2] ** -0.5, "causal": causal, "window": window}
    given = attention(*parts, **how, level=level)
    wanted = expected(*parts, **how)
    assert given.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(given, wanted, atol=5e-6, rtol=0)
        return
    torch.testing.assert_close(given.float(), wanted, atol=0.02, rtol=0)
    assert (given.float() - wanted).pow(2).mean().sqrt() < 0.004  # bfloat16's own rounding is 0.002 to 0.003 of these


@needs_library
def test_float32_is_no_further_from_float64_than_torch():
    query, key, value, asked, known = made(12, 12, 32, [200] * 4, [200] * 4, dtype=torch.float32)
    own = attention(query, key, value, asked, known, scale=0.2)
    q, k, v = (x.unflatten(0, (4, 200)).transpose(1, 2) for x in (query, key, value))
    wanted, torchs = (
        scaled_dot_product_attention(*(x.to(dtype) for x in (q, k, v)), scale=0.2).transpose(1, 2).flatten(0, 1)
        for dtype in (torch.float64, torch.float32)
    )
    assert (own - wanted).abs().mean() <= 1.5 * (torchs - wanted).abs().mean()


@needs_library
@pytest.mark.parametrize("level", HERE)
def test_it_is_no_further_from_float32_than_torch_in_bfloat16(level):
    query, key, value, asked, known = made(12, 12, 32, [200] * 4, [200] * 4)
    wanted = expected(query, key, value, asked, known, scale=0.2)
    own = attention(query, key, value, asked, known, scale=0.2, level=level)
    q, k, v = (x.unflatten(0, (4, 200)).transpose(1, 2) for x in (query, key, value))
    torchs = scaled_dot_product_attention(q, k, v, scale=0.2).transpose(1, 2).flatten(0, 1)
    assert (own.float() - wanted).abs().mean() <= 1.1 * (torchs.float() - wanted).abs().mean()


@needs_library
def test_a_window_wider_than_a_number_of_c_holds_sees_all():
    parts = made(2, 2, 32, [40], [40])
    wanted = attention(*parts, scale=0.2)
    for window in (40, 2**31, 2**40):
        assert torch.equal(attention(*parts, scale=0.2, window=window), wanted)


@needs_library
@pytest.mark.parametrize(("dtype", "level"), FORMS, ids=str)
def test_strides_of_views_are_followed(dtype, level):
    """One product for queries, keys and values; and heads in front, as rotary positions leave them."""
    _, _, _, asked, known = made(4, 4, 32, [40, 70], [40, 70])
    together = torch.randn(110, 3 * 4 * 32).to(dtype)
    views = [x.view(110, 4, 32) for x in together.chunk(3, dim=1)]
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in views]
    plain = attention(*(x.contiguous() for x in views), asked, known, scale=0.2, level=level)
    for parts in (views, heads_first):
        assert torch.equal(attention(*parts, asked, known, scale=0.2, level=level), plain)


@needs_library
@pytest.mark.parametrize(("dtype", "level"), FORMS, ids=str)
def test_scores_of_any_size_give_weights_that_sum_to_one(dtype, level):
    """A score of thousands overflows exp(); keys that score alike share the weight whatever the score."""
    query, key, value, asked, known = made(2, 2, 32, [300], [300], dtype=dtype)
    value.fill_(1.0)
    for factor in (0.0, 1.0, 1e4):
        out = attention(query, key, value, asked, known, scale=factor, level=level)
        torch.testing.assert_close(out.float(), torch.ones_like(out.float()), atol=0.01, rtol=0)


@needs_library
@pytest.mark.parametrize(("dtype", "level"), FORMS, ids=str)
def test_what_is_not_a_number_stays_so_and_stays_where_it_is(dtype, level):
    query, key, value, asked, known = made(2, 2, 32, [40, 40], [40, 40], dtype=dtype)
    key[3, 0, 5] = torch.nan
    out = attention(query, key, value, asked, known, scale=0.2, level=level)
    assert out[:40, 0].isnan().all()
    assert not out[:40, 1].isnan().any()
    assert not out[40:].isnan().any()


@needs_library
@pytest.mark.parametrize("dim", [32, 24])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_of_an_out_that_is_given_are_filled_and_no_others(dtype, dim):
    query, key, value, asked, known = made(4, 4, dim, [40, 7], [40, 7], dtype=dtype)
    whole = torch.full((50, 4, dim), 7.0, dtype=dtype)
    attention(query, key, value, asked, known, scale=0.2, out=whole[:47])
    assert (whole[47:] == 7).all()
    assert torch.equal(whole[:47], attention(query, key, value, asked, known, scale=0.2))


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_threads_of_all_kinds_get_the_same(dtype):
    """Torch's one or two, and several of Python's at once, each with what it lays out."""
    parts = made(6, 6, 32, [30, 200, 90], [30, 200, 90], dtype=dtype)
    wanted = attention(*parts, scale=0.2)
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(attention(*parts, scale=0.2), wanted)
    finally:
        torch.set_num_threads(before)
    given = []
    workers = [threading.Thread(target=lambda: given.append(attention(*parts, scale=0.2))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(given) == 4
    assert all(torch.equal(one, wanted) for one in given)


@needs_library
def test_what_a_thread_laid_out_goes_with_it():
    """1.5 MB each, of a sequence of 2,000 keys."""
    parts = made(1, 1, 128, [1], [2000])

    def work():
        torch.set_num_threads(1)
        attention(*parts, scale=0.1)

    def in_threads(count):
        for _ in range(count):
            worker = threading.Thread(target=work)
            worker.start()
            worker.join()

    in_threads(5)
    before = resident()
    in_threads(100)
    assert resident() - before < 30e6


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@needs_library
def test_products_of_torch_are_right_afterwards():
    """Tile registers are configured for each user; torch's own products configure them in another way."""
    x, weight = torch.randn(300, 96).bfloat16(), torch.randn(200, 96).bfloat16()
    before = x @ weight.T
    for _ in range(3):
        attention(*made(4, 4, 32, [40, 7], [40, 7]), scale=0.2)
        assert torch.equal(x @ weight.T, before)


@needs_library
@pytest.mark.parametrize("dim", [1, 7, 16, 33, 384, 1024])
@pytest.mark.parametrize("rows", [1, 15, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_sum_and_norm_are_those_of_torch(dtype, rows, dim):
    generator = torch.Generator().manual_seed(dim)
    x, residual = (torch.randn(rows, dim, generator=generator).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(dim, generator=generator).to(dtype) for _ in range(2))
    wanted = layer_norm(x.float() + residual.float(), (dim,), weight.float(), bias.float(), 1e-5)
    given = add_norm(x, residual, weight, bias, 1e-5)
    assert given.dtype == dtype
    near = {"atol": 1e-3, "rtol": 4e-3} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(given.float(), wanted, **near)


def half(*shape, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def linears(dim, inner):
    """Weight and bias of an MLP's two layers, whose outputs are about as large as their inputs."""
    return (
        (half(inner, dim, seed=1, scale=dim**-0.5), half(inner, seed=2)),
        (half(dim, inner, seed=3, scale=inner**-0.5), half(dim, seed=4)),
    )


@needs_amx
@pytest.mark.parametrize("rows", [1, 31, 33, 700])
@pytest.mark.parametrize("dim, inner", [(32, 64), (96, 32), (384, 1536)])
def test_a_layer_is_that_of_torch(dim, inner, rows):
    """In float32, of the same numbers: one product, an MLP, and both with the residual and the norm behind them."""
    first, second = linears(dim, inner)
    x, residual, norm = half(1, rows, dim, seed=5), half(1, rows, dim, seed=6), (half(dim, seed=7), half(dim, seed=8))
    once = linear(x.float(), *(part.float() for part in first))
    twice = linear(gelu(once), *(part.float() for part in second))
    normed = layer_norm(twice + residual.float(), (dim,), *(part.float() for part in norm), 1e-5)
    packed = Packed(*first), Packed(*second)
    for given, wanted in (
        (layer(x, packed[0]), once),
        (layer(x, *packed), twice),
        (layer(x, *packed, residual=residual, norm=(*norm, 1e-5)), normed),
    ):
        torch.testing.assert_close(given.float(), wanted, atol=0.03, rtol=0.01)
        assert (given.float() - wanted).norm() < 0.004 * wanted.norm()


@needs_amx
def test_gelu_is_that_of_the_error_function_wherever_it_is_read():
    """An MLP whose two products are the identity."""
    identity = Packed(torch.eye(32).bfloat16(), torch.zeros(32).bfloat16())
    x = torch.linspace(-20, 20, 32 * 400).view(400, 32).bfloat16()
    wanted = gelu(x.double())
    given = layer(x, identity, identity).double()
    assert ((given - wanted).abs() <= 1e-3 + 2**-8 * wanted.abs()).all()
    near = x.abs() < 4
    assert ((given - wanted).abs()[near] <= 1e-4 + 2**-8 * wanted.abs()[near]).all()


@needs_amx
def test_a_layer_is_the_same_in_any_number_of_threads():
    first, second = linears(64, 96)
    packed, x = (Packed(*first), Packed(*second)), half(500, 64)
    before = torch.get_num_threads()
    wanted = layer(x, *packed)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(layer(x, *packed), wanted)
    finally:
        torch.set_num_threads(before)


def test_weights_that_fill_no_tiles_are_refused():
    for weight, bias in (
        (half(32, 40), half(32)),
        (half(20, 32), half(20)),
        (half(32, 32).float(), half(32)),
        (half(32, 32), half(16)),
        (half(32), half(32)),
        (half(0, 32), half(0)),
    ):
        with pytest.raises(ValueError):
            Packed(weight, bias)


@needs_amx
@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.zeros(2, 64)},
        {"x": torch.zeros(2, 32).bfloat16()},
        {"x": torch.zeros(64, 2).bfloat16().T},
        {"residual": None},
        {"norm": None},
        {"residual": torch.zeros(3, 64).bfloat16()},
        {"norm": (torch.zeros(32).bfloat16(), torch.zeros(64).bfloat16(), 1e-5)},
        {"norm": (torch.zeros(64), torch.zeros(64), 1e-5)},
        {"second": Packed(torch.zeros(64, 32).bfloat16(), torch.zeros(64).bfloat16())},
    ],
    ids=lambda change: ", ".join(change),
)
def test_a_layer_of_what_does_not_fit_is_refused(change):
    first, second = linears(64, 96)
    norm = (half(64), half(64), 1e-5)
    fine = {"x": half(2, 64), "first": Packed(*first), "second": Packed(*second), "residual": half(2, 64), "norm": norm}
    layer(**fine)
    with pytest.raises(ValueError):
        layer(**{**fine, **change})


@needs_library
def test_a_machine_without_tiles_says_so(monkeypatch):
    code = compiled.code()._replace(level=1)
    monkeypatch.setattr(compiled, "code", lambda: code)
    with pytest.raises(RuntimeError, match="AMX"):
        layer(half(2, 32), Packed(half(32, 32), half(32)))


@needs_library
@pytest.mark.parametrize(
    "change",
    [
        {"query": torch.zeros(10, 4, 32)},
        {"query": torch.zeros(10, 4, 64, dtype=torch.bfloat16)[..., ::2]},
        {"query": torch.zeros(10, 3, 32, dtype=torch.bfloat16)},
        {"key": torch.zeros(10, 2, 16, dtype=torch.bfloat16)},
        {"value": torch.zeros(9, 2, 32, dtype=torch.bfloat16)},
        {"out": torch.zeros(9, 4, 32, dtype=torch.bfloat16)},
        {"asked": torch.tensor([0, 10])},
        {"asked": torch.tensor([0, 4, 10], dtype=torch.int32)},
        {"asked": torch.tensor([0, 11], dtype=torch.int32)},
        {"asked": torch.tensor([1, 10], dtype=torch.int32)},
        {"known": torch.tensor([0, 9], dtype=torch.int32)},
        {"asked": torch.tensor([0, 10, 10], dtype=torch.int32), "known": torch.tensor([0, 5, 10], dtype=torch.int32)},
        {"asked": torch.tensor([0, 12, 10], dtype=torch.int32), "known": torch.tensor([0, 5, 10], dtype=torch.int32)},
        {
            "asked": torch.tensor([0, 6, 10], dtype=torch.int32),
            "known": torch.tensor([0, 5, 10], dtype=torch.int32),
            "causal": True,
        },
        {"level": "avx1024"},
        {"level": "none"},
        {"scale": -1.0},
        {"window": 0},
        {"window": -5},
        {name: torch.zeros(10, 4, 32, dtype=torch.float16) for name in ("query", "key", "value")},
        {"key": torch.zeros(10, 0, 32, dtype=torch.bfloat16), "value": torch.zeros(10, 0, 32, dtype=torch.bfloat16)},
        {"scale": float("nan")},
    ],
    ids=lambda change: ", ".join(change),
)
def test_what_does_not_fit_is_refused_before_it_is_read(change):
    half = {"dtype": torch.bfloat16}
    fine = {
        "query": torch.zeros(10, 4, 32, **half),
        "key": torch.zeros(10, 2, 32, **half),
        "value": torch.zeros(10, 2, 32, **half),
        "asked": torch.tensor([0, 10], dtype=torch.int32),
        "known": torch.tensor([0, 10], dtype=torch.int32),
    }
    attention(**fine, scale=1.0)
    with pytest.raises(ValueError):
        attention(**{**fine, "scale": 1.0, **change})


@needs_library
def test_a_norm_of_what_does_not_fit_is_refused():
    x, weight = torch.zeros(2, 8, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.bfloat16)
    for parts in (
        (x.float(), x, weight, weight),
        (x, x[:1], weight, weight),
        (x, x, weight[:4], weight),
        (x.half(), x.half(), weight.half(), weight.half()),
    ):
        with pytest.raises(ValueError):
            add_norm(*parts, 1e-5)
    wide = torch.zeros(1, 8193, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="8,192"):
        add_norm(wide, wide, wide[0], wide[0], 1e-5)


# -- decoders ---------------------------------------------------------------------------------------------------------

BOTH = [torch.bfloat16, torch.float32]


def near(given, exact):
    """Within one rounding of float64, or a few of float32."""
    step = 2**-8 if given.dtype == torch.bfloat16 else 4e-7
    torch.testing.assert_close(given.double(), exact, rtol=step, atol=step * max(1e-3, float(exact.abs().mean())))


@needs_library
@pytest.mark.parametrize("dim", [1, 7, 16, 33, 576, 9000])
@pytest.mark.parametrize("rows", [1, 17, 300])
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_rms_norm_is_its_formula(dtype, rows, dim):
    torch.manual_seed(dim)
    x, weight = (3 * torch.randn(rows, dim)).to(dtype), torch.randn(dim)
    exact = weight.double() * x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-5)
    near(rms_norm(x.view(rows, 1, dim), weight, 1e-5).view(rows, dim), exact)


@needs_library
@pytest.mark.parametrize("dim", [1, 7, 16, 33, 1536])
@pytest.mark.parametrize("rows", [1, 17, 300])
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_a_gate_is_its_formula(dtype, rows, dim):
    torch.manual_seed(dim)
    x = (4 * torch.randn(rows, 2 * dim)).to(dtype)
    a, b = x.double().chunk(2, dim=-1)
    near(gate(x), silu(a) * b)
    near(gate(x[None], gelu=True)[0], gelu(a, approximate="tanh") * b)


@needs_library
def test_no_rows_are_no_rows():
    x = torch.empty(0, 3, 8)
    assert rms_norm(x, torch.ones(8), 1e-6).shape == (0, 3, 8)
    assert gate(x).shape == (0, 3, 4)
    rotary(x[:, 0].contiguous(), torch.empty(0, 4), torch.empty(0, 4), 1, 1)


@needs_library
def test_gates_of_numbers_far_out_are_what_they_tend_to():
    far = torch.tensor([-1e4, -200.0, -90.0, 90.0, 200.0, 1e4])
    both = torch.stack([far, torch.ones(6)], dim=-1)
    for form in (False, True):
        torch.testing.assert_close(gate(both, gelu=form).flatten(), torch.relu(far))
    assert gate(torch.tensor([[torch.nan, 1.0]])).isnan().all()


@needs_library
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("queries, keys, others", [(9, 3, 3), (1, 1, 0), (4, 0, 2)])
@pytest.mark.parametrize("dim", [2, 8, 40, 64, 128])
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_queries_and_keys_are_turned_and_nothing_else_is(dtype, dim, queries, keys, others, normed):
    torch.manual_seed(dim)
    x = torch.randn(29, (queries + keys + others) * dim).to(dtype)
    cosine, sine = (torch.randn(29, dim).to(dtype) for _ in range(2))
    norms = (torch.randn(dim), torch.randn(dim), 1e-6) if normed else None
    heads = x.double().view(29, -1, dim)
    turned = heads[:, : queries + keys]
    if norms is not None:
        weights = torch.cat([norms[0].expand(queries, dim), norms[1].expand(keys, dim)]).double()
        turned = weights * turned * torch.rsqrt(turned.pow(2).mean(-1, keepdim=True) + 1e-6)
    half = torch.cat([-turned[..., dim // 2 :], turned[..., : dim // 2]], dim=-1)
    exact = turned * cosine.double()[:, None] + half * sine.double()[:, None]
    given = x.clone()
    rotary(given, cosine, sine, queries, keys, norms)
    given = given.view(29, -1, dim)
    step = 2**-8 if dtype == torch.bfloat16 else 1e-6  # of what cancels, more than of the rest
    size = (turned * cosine.double()[:, None]).abs() + (half * sine.double()[:, None]).abs()
    assert ((given[:, : queries + keys].double() - exact).abs() <= step * size + 1e-30).all()
    assert torch.equal(given[:, queries + keys :], x.view(29, -1, dim)[:, queries + keys :])


@needs_library
@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda x, w: rms_norm(x.half(), w, 1e-6), "float16"),
        (lambda x, w: rms_norm(x, w.bfloat16(), 1e-6), "weight is torch.bfloat16"),
        (lambda x, w: rms_norm(x, w[:4], 1e-6), "weight is"),
        (lambda x, w: rms_norm(x.T, w, 1e-6), "contiguous"),
        (lambda x, w: rms_norm(x[:, :0], w[:0], 1e-6), "x is"),
        (lambda x, w: gate(x[:, :7].contiguous()), "as many numbers"),
        (lambda x, w: gate(x[:, :6]), "contiguous"),
        (lambda x, w: gate(x.double()), "float64"),
        (lambda x, w: rotary(x, x.clone(), x.clone(), 1, 1), "no room for 1 and 1 heads of 8"),
        (lambda x, w: rotary(x, x[:, :3].contiguous(), x[:, :3].contiguous(), 1, 1), "no room"),
        (lambda x, w: rotary(x, x[:4, :4].contiguous(), x[:4, :4].contiguous(), 1, 1), "cosine is"),
        (lambda x, w: rotary(x, x[:, :4].contiguous(), x[:, :4].bfloat16(), 1, 1), "sine is torch.bfloat16"),
        (lambda x, w: rotary(x[None], x.clone(), x.clone(), 1, 0), "no room"),
        (lambda x, w: rotary(x, x[:, :4].contiguous(), x[:, :4].contiguous(), 1, 1, (w, w, 1e-6)), "a norm is"),
        (lambda x, w: rotary(x, x[:, :4].contiguous(), x[:, :4].contiguous(), -1, 1), "no room"),
    ],
)
def test_parts_of_decoders_that_do_not_fit_are_refused(run, message):
    with pytest.raises(ValueError, match=message):
        run(torch.randn(5, 8), torch.randn(8))


@pytest.fixture
def looks_again():
    """What is here is looked for again, and once more afterwards."""
    compiled.code.cache_clear()
    yield
    compiled.code.cache_clear()


@pytest.mark.usefixtures("looks_again")
def test_without_its_library_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "LIBRARY", tmp_path / "none.so")
    assert "without its library" in tamis_kernels.why_not()
    assert tamis_kernels.level() == "none"
    with pytest.raises(RuntimeError, match="compiler"):
        attention(*made(1, 1, 8, [1], [1]), scale=1.0)
    x = torch.zeros(1, 8, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="compiler"):
        add_norm(x, x, x[0], x[0], 1e-5)


@needs_library
@pytest.mark.usefixtures("looks_again")
def test_a_torch_on_other_threads_is_left_alone(monkeypatch):
    monkeypatch.setattr(compiled, "_parallel", lambda: None)
    assert "OpenMP" in tamis_kernels.why_not()
