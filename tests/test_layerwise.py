"""Layerwise rerankers: the reference's scores at every layer and compression, and what must hold besides."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2Model
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer
from transformers.models.granite.modeling_granite import GraniteDecoderLayer

import tamis
import tiny
from golden import checkpoints
from tamis.checkpoint import Checkpoint
from tamis.engine.architectures import ARCHITECTURES
from tamis.engine.attention import registered
from tamis.engine.compression import Compressing, Compression, compressed, group_sizes, pooled
from tamis.engine.packing import Layout
from tamis.engine.segments import segments_of
from tamis.engine.sequences import Tokens
from tamis.families import resolve
from tamis.families.wordings import BGE, BGE_LIGHTWEIGHT
from tamis.options import LoadOptions
from tamis.prompts import BoundPrompt
from tamis.transformer import load_tokenizer

MINICPM, LIGHTWEIGHT = "bge_minicpm", "bge_gemma2_lightweight"
PROMPTS = {MINICPM: BGE, LIGHTWEIGHT: BGE_LIGHTWEIGHT}
LAYERS = range(3, 9)  # the tiny checkpoints have heads after these
COMPRESSED = {"compress_ratio": 2, "compress_layers": [2, 4]}
MORE = {"compress_ratio": 8, "compress_layers": [2]}
FORMS = [(MINICPM, {}), (LIGHTWEIGHT, {}), (LIGHTWEIGHT, COMPRESSED), (LIGHTWEIGHT, MORE)]
QUERY = "how many stairs does the lighthouse have?"
WORDS = tiny.text(700).split()
PASSAGES = [" ".join(WORDS[7 * n : 7 * n + n]) for n in (1, 2, 3, 5, 8, 13, 21, 34, 55, 21, 8)] + ["", "199"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: checkpoints.save(name, tmp_path_factory.mktemp(name)) for name in PROMPTS}


@pytest.fixture(scope="module")
def load(folders):
    """`load(name, **options)`, in float32; one reranker of each engine stays open, so that it is loaded once."""
    kept = {}

    def made(name, **options):
        options = {"dtype": "float32", "device": "cpu", **options}
        key = name, repr(sorted((k, v) for k, v in options.items() if k not in ("layer", "max_length")))
        if key not in kept:
            kept[key] = tamis.load(folders[name], **{k: v for k, v in options.items() if k != "layer"})
        return tamis.load(folders[name], **options)

    yield made
    for reranker in kept.values():
        reranker.close()


def golden(name):
    return json.loads(Path(__file__).with_name("golden").joinpath(f"{name}.json").read_text())


def bound(folders, name, max_length):
    tokenizer, _ = load_tokenizer(Checkpoint.find(folders[name]), LoadOptions())
    return BoundPrompt(PROMPTS[name], tokenizer, max_length=max_length)


def our_lengths(folders, name, one):
    """For each pair of a golden set the max_length with which we cut where the reference does; None if we never do.

    Its passage's piece has at most max_length tokens, the query and it at most max_length and the tail's tokens, and
    then comes the tail. A query of more than three quarters is cut in the text by us, and in the ids by it.
    """
    prompt = bound(folders, name, 1024)
    tail = sum(map(len, prompt.encode(prompt.after)))
    lengths = []
    for pair in one["pairs"]:
        query = len(prompt.encode([f"A: {pair['query']}"])[0])
        head = prompt.ask(pair["query"]).sequences([""]).tokens[0].passage[0]
        fits = query <= 0.75 * one["max_length"]
        lengths.append(one["max_length"] + tail + min(tail, head) if fits else None)
    return lengths


@pytest.mark.parametrize("name", PROMPTS)
def test_ids_are_the_references(folders, name):
    for one in golden(name)["sets"]:
        lengths = our_lengths(folders, name, one)
        assert [i for i, length in enumerate(lengths) if length is None] == ([8, 9] if one["max_length"] == 128 else [])
        for pair, length in zip(one["pairs"], lengths, strict=True):
            if length is None:
                continue
            (made,) = bound(folders, name, length).ask(pair["query"]).sequences([pair["passage"]]).tokens
            assert made.ids.tolist() == pair["input_ids"]
            if "query_length" in pair:
                assert made.passage == (pair["query_length"], len(made) - pair["prompt_length"])


def settings_of(name):
    """The recorded settings that Tamis has, each with its engine: (options, {layer: (set, scores)})."""
    cases = {}
    for number, one in enumerate(golden(name)["sets"]):
        for run in one["runs"]:
            asked = run["settings"]
            cutoffs = [layer for layer in asked["cutoff_layers"] or [8] if layer in LAYERS]
            if cutoffs != sorted(cutoffs):
                continue  # the reference then pairs heads with other layers
            columns = run["scores"] if isinstance(run["scores"][0], list) else [run["scores"]]
            options = {}
            if name == LIGHTWEIGHT:
                ratio, layers = asked["compress_ratio"], [layer for layer in asked["compress_layers"] if layer]
                options = {"compress_ratio": ratio, "compress_layers": layers} if ratio > 1 else {}
                if len(cutoffs) == len(LAYERS):
                    options["head_index"] = "layer"  # each rank is the layer's own
                else:
                    cutoffs, columns = cutoffs[:1], columns[:1]  # the second is read by the second head
            found = cases.setdefault(json.dumps(options), {})
            for layer, scores in zip(cutoffs, columns, strict=True):
                found.setdefault((number, layer), []).append(scores)
    return cases


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in PROMPTS for options in settings_of(name)])
def test_scores_are_the_references(folders, load, name, options):
    cases = settings_of(name)[options]
    sets = golden(name)["sets"]
    lengths = [our_lengths(folders, name, one) for one in sets]
    compared = 0
    for (number, layer), recorded in cases.items():
        for i, (pair, length) in enumerate(zip(sets[number]["pairs"], lengths[number], strict=True)):
            if length is None or not pair["query"]:
                continue
            with load(name, layer=layer, max_length=length, **json.loads(options)) as reranker:
                logit = reranker.logits(pair["query"], [pair["passage"]])[0]
            for scores in recorded:
                assert logit == pytest.approx(scores[i], abs=1e-4)
                compared += 1
    assert compared >= 18


def test_every_setting_is_compared():
    assert len(settings_of(MINICPM)) == 1
    assert {layer for _, layer in settings_of(MINICPM)["{}"]} == set(LAYERS)
    assert len(settings_of(LIGHTWEIGHT)) == 12  # six compressions, heads by rank and by layer


def test_a_rank_is_the_head_of_the_reference(folders, load, tmp_path):
    """Its second cutoff layer is read by the second head: the same number as ours with that head in the first place."""
    weights = load_file(folders[LIGHTWEIGHT] / "model.safetensors")
    first, second = (f"lm_head.{i}.linear_head.weight" for i in (0, 1))
    checkpoints.save(LIGHTWEIGHT, tmp_path)
    save_file({**weights, first: weights[second], second: weights[first]}, tmp_path / "model.safetensors")
    one = golden(LIGHTWEIGHT)["sets"][0]
    (run,) = (run for run in one["runs"] if run["settings"]["cutoff_layers"] == [4, 6])
    with tamis.load(tmp_path, layer=6, dtype="float32", max_length=562) as reranker:
        pair = one["pairs"][0]
        assert reranker.logits(pair["query"], [pair["passage"]])[0] == pytest.approx(run["scores"][1][0], abs=1e-4)


@pytest.mark.parametrize(("name", "options"), FORMS)
@pytest.mark.parametrize("layer", [3, 8])
def test_alone_or_in_any_batch(load, name, options, layer):
    with load(name, layer=layer, **options) as reranker:
        before = reranker.stats()["prefix_tokens_reused"]
        together = reranker.logits(QUERY, PASSAGES)
        assert reranker.stats()["prefix_tokens_reused"] > before
        assert reranker.stats()["packed"]
        alone = [reranker.logits(QUERY, [passage])[0] for passage in PASSAGES]
        order = np.random.default_rng(0).permutation(len(PASSAGES))
        permuted = reranker.logits(QUERY, [PASSAGES[i] for i in order])
    assert together == pytest.approx(alone, abs=2e-5)
    assert permuted == pytest.approx([together[i] for i in order], abs=2e-5)
    assert np.ptp(together) > 0.1


@pytest.mark.parametrize("name", PROMPTS)
def test_padded_gives_the_same(load, name):
    with load(name, layer=5) as packed, load(name, layer=5, attention="padded") as padded:
        assert padded.logits(QUERY, PASSAGES) == pytest.approx(packed.logits(QUERY, PASSAGES), abs=2e-5)
        assert not padded.stats()["packed"]
        assert padded.stats()["prefix_tokens_reused"] == 0


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_small_batches_give_the_same(load, name, options):
    with load(name, **options) as large, load(name, batch_tokens=90, **options) as small:
        assert small.logits(QUERY, PASSAGES) == pytest.approx(large.logits(QUERY, PASSAGES), abs=2e-5)


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_bfloat16(load, name, options):
    """Within two hundredths of the logits' size over all layers; what is further apart keeps its order."""

    def logits(dtype):
        rows = []
        for layer in LAYERS:
            with load(name, layer=layer, dtype=dtype, **options) as reranker:
                rows.append(reranker.logits(QUERY, PASSAGES))
        return np.array(rows)

    expected, given = logits("float32"), logits("bfloat16")
    assert np.linalg.norm(given - expected) <= 2e-2 * np.linalg.norm(expected)
    clear = 4e-2 * np.sqrt((expected**2).mean())
    before, after = (values[:, :, None] - values[:, None, :] for values in (expected, given))
    assert (after[before > clear] > 0).all()
    assert (before > clear).sum() > 100


def test_logits_that_are_no_numbers_are_told_in_a_cascade_too(folders, tmp_path):
    folder = shutil.copytree(folders["bge_minicpm"], tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    heads = {name: torch.full_like(tensor, math.nan) for name, tensor in weights.items() if "lm_head" in name}
    assert heads
    save_file({**weights, **heads}, folder / "model.safetensors", metadata={"format": "pt"})
    for layer in (8, [4, 8]):
        with tamis.load(folder, dtype="float32", layer=layer) as reranker, pytest.raises(tamis.InvalidScore):
            reranker.logits(QUERY, PASSAGES)


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_a_cascade_never_mixes_layers(load, name, options):
    different = list(dict.fromkeys(PASSAGES))  # equal ones would go on together
    with (
        load(name, layer=[3, 8], **options) as cascade,
        load(name, layer=3, **options) as early,
        load(name, layer=8, **options) as late,
    ):
        ranking = cascade.rank(QUERY, different)
        screened, exact = early.logits(QUERY, different), late.logits(QUERY, different)
    n = len(different)
    half = n - n // 2
    best = sorted(range(n), key=lambda i: -screened[i])
    survivors = sorted(best[:half], key=lambda i: -exact[i])
    assert survivors != best[:half]  # the layers disagree
    assert [hit.index for hit in ranking] == survivors + best[half:]
    assert [hit.logit for hit in ranking[:half]] == pytest.approx([exact[i] for i in survivors], abs=2e-5)
    assert all(hit.score > 0 for hit in ranking[:half])
    assert [hit.score for hit in ranking[half:]] == [0.0] * (n - half)
    assert all(a.logit > b.logit for a, b in pairwise(ranking[half:]))


def test_a_cascade_over_three_layers(load):
    with load(MINICPM, layer=(3, 5, 8)) as cascade, load(MINICPM, layer=8) as late:
        ranking = cascade.rank(QUERY, PASSAGES)
        exact = late.logits(QUERY, PASSAGES)
    through = [hit for hit in ranking if hit.score > 0]
    assert len(through) == 4  # 13, 7, 4
    assert [hit.logit for hit in through] == pytest.approx([exact[hit.index] for hit in through], abs=2e-5)


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_deeper_layers_are_not_run(load, monkeypatch, name, options):
    kind = GraniteDecoderLayer if name == MINICPM else Gemma2DecoderLayer
    calls = Counter()
    original = kind.forward

    def counted(self, *args, **kwargs):
        calls[self.self_attn.layer_idx] += 1
        return original(self, *args, **kwargs)

    with load(name, layer=5, **options) as reranker, load(name, layer=[3, 6], **options) as cascade:
        monkeypatch.setattr(kind, "forward", counted)
        reranker.logits(QUERY, PASSAGES)
        assert calls == dict.fromkeys(range(5), 1)
        cascade.logits(QUERY, PASSAGES)
        assert calls == {0: 3, 1: 3, 2: 3, 3: 2, 4: 2, 5: 1}


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_windows_of_a_long_document(folders, load, name, options):
    text = " ".join(WORDS[:300])
    options = {"layer": 6, "max_length": 220, **options}
    with (
        load(name, **options, long_documents="max_window") as reranker,
        load(name, **options) as cut,
        load(name, **options, long_documents="error") as strict,
    ):
        hit = reranker.rank(QUERY, [text, "199"])
        hit = next(one for one in hit if one.index == 0)
        assert cut.rank(QUERY, [text])[0].truncated
        with pytest.raises(tamis.errors.InputTooLong):
            strict.rank(QUERY, [text])
        prompt = bound(folders, name, 220)
        prompt.policy = "max_window"
        made = prompt.ask(QUERY).sequences([text])
        assert len(made.spans) > 3
        apart = cut.logits(QUERY, [text[start:stop] for start, stop in made.spans])
    assert not hit.truncated
    assert hit.logit == pytest.approx(max(apart), abs=2e-5)
    assert hit.window == made.spans[int(np.argmax(apart))]


def test_layers_share_one_engine(load):
    with load(MINICPM, layer=3) as early, load(MINICPM) as late, load(MINICPM, layer=(4, 6)) as cascade:
        before = early.stats()["sequences"]
        late.logits(QUERY, PASSAGES[:4])
        cascade.logits(QUERY, PASSAGES[:4])
        assert early.stats()["sequences"] == before + 4 + 4 + 2
        early.logits(QUERY, PASSAGES[:4])
        assert late.stats()["sequences"] == cascade.stats()["sequences"] == before + 14


def test_layers_of_one_passage_run_at_the_same_time(load):
    """One engine, one passage, several layers: none takes another's row, not even out of the cache of scores."""
    options = {"score_cache_bytes": 2**20}
    rerankers = [load(MINICPM, layer=layer, **options) for layer in LAYERS]
    first = [reranker.logits(QUERY, PASSAGES[:3]) for reranker in rerankers]
    again = [reranker.logits(QUERY, PASSAGES[:3]) for reranker in rerankers]
    assert first == again
    assert len({tuple(logits) for logits in first}) == len(LAYERS)
    for reranker in rerankers:
        reranker.close()


def test_the_last_layer_is_the_default(load):
    for name in PROMPTS:
        with load(name) as default, load(name, layer=8) as last:
            assert default.logits(QUERY, PASSAGES) == last.logits(QUERY, PASSAGES)


def test_num_layers_keeps_the_first(load):
    """MiniCPM's factor on residuals is the one of the whole model."""
    for name in PROMPTS:
        with load(name, num_layers=5) as short, load(name, layer=5) as whole:
            assert short.logits(QUERY, PASSAGES) == pytest.approx(whole.logits(QUERY, PASSAGES), abs=2e-5)


def test_a_ratio_of_one_compresses_nothing(load):
    with load(LIGHTWEIGHT) as plain, load(LIGHTWEIGHT, compress_ratio=1, compress_layers=[2, 4]) as one:
        assert one.logits(QUERY, PASSAGES) == plain.logits(QUERY, PASSAGES)


def test_families_are_found_by_their_config(folders):
    found = {name: resolve(Checkpoint.find(folders[name]), LoadOptions()).name for name in PROMPTS}
    assert found == {
        MINICPM: "bge-reranker-v2-minicpm-layerwise",
        LIGHTWEIGHT: "bge-reranker-v2.5-gemma2-lightweight",
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (MINICPM, {"layer": 2}, "layer=2, but .* after layers 3 to 8"),
        (MINICPM, {"layer": 9}, "layer=9, but .* after layers 3 to 8"),
        (MINICPM, {"layer": [2, 8]}, "layer=2"),
        (MINICPM, {"layer": 7, "num_layers": 6}, "layer=7, but .* after layers 3 to 6"),
        (MINICPM, {"num_layers": 2}, "num_layers=2, but the first head .* is after layer 3"),
        (MINICPM, {"num_layers": 9}, "num_layers=9, but .* has 8 layers"),
        (MINICPM, {"compress_ratio": 2}, "compress_ratio= is for bge-reranker-v2.5"),
        (MINICPM, {"head_index": "layer"}, "head_index= is for"),
        (MINICPM, {"instruction": "x"}, "instruction= means nothing in layerwise mode"),
        (MINICPM, {"dim": 8}, "dim= means nothing in layerwise mode"),
        (MINICPM, {"mode": "layerwise", "family": "bge-reranker-v2-gemma"}, "is a causal-lm family"),
        (LIGHTWEIGHT, {"compress_layers": [2]}, "compress_layers= does nothing without compress_ratio="),
        (LIGHTWEIGHT, {"compress_ratio": 2, "compress_layers": [2, 8]}, "before layers 1 to 7"),
        (LIGHTWEIGHT, {"compress_ratio": 2}, r"compress_layers=\[8\], but .* has 8 layers"),
        (LIGHTWEIGHT, {"compress_ratio": 2, "compress_layers": [0, 2]}, "at least 1"),
        (LIGHTWEIGHT, {"compress_ratio": 3, "compress_layers": [2]}, "compress_ratio=3"),
        (LIGHTWEIGHT, {**COMPRESSED, "attention": "padded"}, "exclude each other"),
    ],
)
def test_arguments_that_are_refused(folders, name, options, message):
    with pytest.raises(tamis.errors.InvalidInput, match=message):
        tamis.load(folders[name], **options)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (MINICPM, {"head_type": "raw"}, "head_type='raw'"),
        (MINICPM, {"head_multi": False}, "head_multi=False"),
        (LIGHTWEIGHT, {"layer_wise": False}, "layer_wise=False"),
    ],
)
def test_heads_of_another_kind_are_refused(tmp_path, name, changes, message):
    checkpoints.save(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(tamis.errors.UnknownFamily, match=message):
        tamis.load(tmp_path)


def test_another_series_is_refused(folders):
    with pytest.raises(tamis.errors.UnknownFamily, match="LayerWiseMiniCPMForCausalLM"):
        tamis.load(folders[LIGHTWEIGHT], family="bge-reranker-v2-minicpm-layerwise")


def test_missing_weights_are_refused(folders, tmp_path):
    checkpoints.save(MINICPM, tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    head = "lm_head.5.linear_head.weight"
    save_file({key: value for key, value in weights.items() if key != head}, file)
    with pytest.raises(tamis.errors.UntrainedHead, match="lacks 1 of its 6 heads"):
        tamis.load(tmp_path, layer=3)
    save_file({**weights, head: torch.zeros(2, 64)}, file)
    with pytest.raises(tamis.errors.CorruptCheckpoint, match="shape"):
        tamis.load(tmp_path)
    save_file({key: value for key, value in weights.items() if key != "model.norm.weight"}, file)
    with pytest.raises(tamis.errors.CorruptCheckpoint, match="lacks 1 weights of its body"):
        tamis.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["start_layer"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(tamis.errors.CorruptCheckpoint, match="lacks start_layer"):
        tamis.load(tmp_path)


def test_a_stray_language_head_is_ignored(folders, load, tmp_path):
    checkpoints.save(MINICPM, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "lm_head.weight": torch.ones(480, 64)}, tmp_path / "model.safetensors")
    with load(MINICPM) as plain, tamis.load(tmp_path, dtype="float32", device="cpu") as stray:
        assert stray.logits(QUERY, PASSAGES[:3]) == plain.logits(QUERY, PASSAGES[:3])


@pytest.mark.parametrize("length", [*range(5, 14)])
@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_groups_and_their_means(length, ratio):
    passage = (2, length - 1)
    sizes = group_sizes(length, passage, ratio)
    rows = torch.arange(length, dtype=torch.float32)[:, None]
    expected = [0.0, 1.0]
    for start in range(2, length - 1, ratio):
        members = range(start, min(start + ratio, length - 1))
        expected.append(sum(members) / len(members))
    expected.append(length - 1.0)
    assert pooled(rows, torch.from_numpy(sizes))[:, 0].tolist() == pytest.approx(expected)


def test_where_compressed_sequences_lie():
    """Two sequences share four tokens and have passages of five and two; a third has a passage of three."""
    opening, other = np.arange(20, 30), np.arange(9)
    batch = [
        Tokens(np.concatenate([opening, np.arange(7)]), shared=10, passage=(10, 15)),
        Tokens(np.concatenate([opening, np.arange(4)]), shared=10, passage=(10, 12)),
        Tokens(other, passage=(5, 8)),
    ]
    layout, sizes = compressed(Layout(segments_of(batch, share=True), torch.device("cpu")), 2)
    assert sizes.tolist() == [1] * 10 + [2, 2, 1, 1, 1] + [2, 1, 1] + [1] * 5 + [2, 1, 1]
    assert layout.edges == [0, 10, 15, 18, 26]
    assert layout.place.tolist() == [*range(10), *range(10, 15), *range(10, 13), *range(8)]
    again, sizes = compressed(layout, 2)
    assert sizes.tolist() == [1] * 10 + [2, 1, 1, 1] + [1, 1, 1] + [1] * 5 + [2, 1]
    assert again.edges == [0, 10, 14, 17, 24]
    shared = [Tokens(t.ids, shared=11, passage=t.passage) for t in (batch[0], batch[0])]
    with pytest.raises(ValueError, match="share a part of a passage"):
        compressed(Layout(segments_of(shared, share=True), torch.device("cpu")), 2)


def decoder(kind=Gemma2Model):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=100, hidden_size=32, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        intermediate_size=48, sliding_window=8, max_position_embeddings=512, attn_logit_softcapping=None,
        attn_implementation=registered(),
    )  # fmt: skip
    return kind(config).eval().requires_grad_(False)


@torch.inference_mode()
def test_where_packing_is_no_option_sequences_run_one_at_a_time():
    backbone = Compressing(decoder(), ARCHITECTURES["gemma2"], 0, Compression(2, (1, 4)))
    backbone.check(100, 512)
    batch = [Tokens(np.arange(1, n, dtype=np.int32), passage=(5, n - 6)) for n in (40, 12, 25)]
    packed, before = backbone(batch)
    backbone.packed = False
    alone, after = backbone(batch)
    assert before.lengths == after.lengths == [18, 11, 14]  # passages of 29, 1 and 14 become 8, 1 and 4
    assert torch.allclose(packed, alone, atol=1e-5)


def test_a_body_that_cannot_be_interrupted_is_refused():
    class Odd(Gemma2Model):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.last_hidden_state += 1.0
            return out

    backbone = Compressing(decoder(Odd), ARCHITECTURES["gemma2"], 0, Compression(2, (1,)))
    with torch.inference_mode(), pytest.raises(tamis.errors.LoadError, match="without compress_ratio="):
        backbone.check(100, 512)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("name", "options"), FORMS)
def test_cuda_equals_the_cpu(folders, load, name, options, dtype):
    for layer in (5, 8):
        with (
            load(name, layer=layer, **options) as exact,
            tamis.load(folders[name], layer=layer, dtype=dtype, device="cuda", **options) as reranker,
        ):
            expected = np.array(exact.logits(QUERY, PASSAGES))
            given = np.array(reranker.logits(QUERY, PASSAGES))
            assert reranker.stats()["packed"]
            assert reranker.stats()["prefix_tokens_reused"] > 0
        np.testing.assert_allclose(given, expected, atol=1e-3 if dtype == "float32" else 0.15)
