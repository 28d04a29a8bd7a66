"""Encoders that transformers does not know by their own names, against loops written from their published formulas."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu, layer_norm, relu, silu

import tamis
import tiny
from tamis.engine.jina_bert import BLOCK, Bias, slopes
from test_loading import edit

QUERY = "how is a zip archive read?"
PASSAGES = [tiny.text(words, seed) for seed, words in enumerate([1, 2, 3, 8, 21, 34, 55, 110, 150, 21, 21])] + ["", " "]

D, INNER, LAYERS, HEADS = 48, 96, 3, 6  # no power of two heads
HEAD = D // HEADS


def write(folder, config, weights, tokenizer):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


def drawn(shapes, seed=0):
    """Weights that make logits spread: norms near one, biases small."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            weights[name] = 0.1 * noise + (1 if name.endswith("weight") else 0)
        else:
            weights[name] = noise * (0.5 if "embedd" in name else 0.2)
    return weights


def linear(x, weights, name):
    y = x @ weights[name + ".weight"].T
    return y + weights[name + ".bias"] if name + ".bias" in weights else y


def normed(x, weights, name):
    return layer_norm(x, (x.shape[-1],), weights[name + ".weight"], weights[name + ".bias"], 1e-12)


def softmax_attention(q, k, v, bias=0.0):
    """(n, D) each; heads are consecutive columns."""
    q, k, v = (x.view(-1, HEADS, HEAD).transpose(0, 1) for x in (q, k, v))
    return ((q @ k.transpose(1, 2) / math.sqrt(HEAD) + bias).softmax(-1) @ v).transpose(0, 1).reshape(-1, D)


def pair_ids(tokenizer, query, passage):
    encoded = tokenizer([query], [passage], truncation="only_second", max_length=512)  # a bare "" would be no passage
    ids = torch.tensor(encoded["input_ids"][0])
    return ids, torch.tensor(encoded["token_type_ids"][0]) if "token_type_ids" in encoded else torch.zeros_like(ids)


def check_logits(folder, expected, packed=True, **options):
    """Packed, alone, backwards and in small batches, and padded."""
    expected = np.array(expected)
    assert expected.std() > 0.05
    with tamis.load(folder, dtype="float32", batch_tokens=700, **options) as reranker:
        given = np.array(reranker.logits(QUERY, PASSAGES))
        alone = [reranker.logits(QUERY, [passage])[0] for passage in PASSAGES]
        assert reranker.logits(QUERY, PASSAGES[::-1])[::-1] == pytest.approx(given, abs=1e-5)
        assert reranker.stats()["packed"] == packed
    np.testing.assert_allclose(given, expected, atol=1e-4)
    np.testing.assert_allclose(given, alone, atol=1e-5)
    with tamis.load(folder, dtype="float32", attention="padded", **options) as padded:
        np.testing.assert_allclose(padded.logits(QUERY, PASSAGES), expected, atol=1e-4)


def mean_cosines(folder, hidden, tokenizer):
    """Cosines of mean-pooled texts; `hidden` gives the states of one sequence of ids."""

    def vector(text):
        return hidden(torch.tensor(tokenizer(text, truncation=True, max_length=512)["input_ids"])).mean(0)

    asked = vector(QUERY)
    return [float(torch.cosine_similarity(asked, vector(passage), dim=0)) for passage in PASSAGES]


# -- Alibaba's "new" ----------------------------------------------------------------------------------------------

NEW = {
    "architectures": ["NewForSequenceClassification"], "model_type": "new", "hidden_size": D, "hidden_act": "gelu",
    "auto_map": {"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig"}, "hidden_dropout_prob": 0.1,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER, "type_vocab_size": 1,
    "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0, "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-12, "layer_norm_type": "layer_norm", "position_embedding_type": "rope", "rope_theta": 20000,
    "rope_scaling": {"factor": 8.0, "type": "ntk"}, "pack_qkv": True, "pad_token_id": 1, "torch_dtype": "float32",
    "logn_attention_clip1": False, "logn_attention_scale": False, "unpad_inputs": False,
    "use_memory_efficient_attention": False, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
}  # fmt: skip


def save_new(folder, *, prefix="new.", head=True, **changes):
    tokenizer = tiny.unigram()
    config = {**NEW, "vocab_size": len(tokenizer), **changes}
    shapes = {"embeddings.word_embeddings.weight": (len(tokenizer), D)}
    if config["type_vocab_size"]:
        shapes["embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], D)
    norms = ["embeddings.LayerNorm"]
    for i in range(LAYERS):
        p = f"encoder.layer.{i}."
        shapes |= {p + "attention.qkv_proj.weight": (3 * D, D), p + "attention.qkv_proj.bias": (3 * D,)}
        shapes |= {p + "attention.o_proj.weight": (D, D), p + "attention.o_proj.bias": (D,)}
        shapes |= {p + "mlp.up_gate_proj.weight": (2 * INNER, D)}
        shapes |= {p + "mlp.down_proj.weight": (D, INNER), p + "mlp.down_proj.bias": (D,)}
        norms += [p + "attn_ln", p + "mlp_ln"]
    shapes |= {f"{norm}.{part}": (D,) for norm in norms for part in ("weight", "bias")}
    if head:
        shapes |= {"pooler.dense.weight": (D, D), "pooler.dense.bias": (D,)}
    weights = {prefix + name: weight for name, weight in drawn(shapes).items()}
    if head:
        weights |= drawn({"classifier.weight": (1, D), "classifier.bias": (1,)}, 1)
    return write(folder, config, weights, tokenizer)


def new_hidden(ids, weights, config, prefix="new."):
    """NewModel, one sequence: (n, D)."""
    scaling, base = config["rope_scaling"], config["rope_theta"]
    factor = scaling["factor"] if scaling else 1.0
    inverse = (base * factor) ** (-torch.arange(0, HEAD, 2) / HEAD) / factor ** (2 / HEAD)
    angles = torch.outer(torch.arange(len(ids)), inverse).repeat(1, 2)[:, None]  # (n, 1, HEAD)

    def rotated(x):
        x = x.view(-1, HEADS, HEAD)
        half = torch.cat([-x[..., HEAD // 2 :], x[..., : HEAD // 2]], -1)
        return (x * angles.cos() + half * angles.sin()).view(-1, D)

    x = weights[prefix + "embeddings.word_embeddings.weight"][ids]
    if config["type_vocab_size"]:
        x = x + weights[prefix + "embeddings.token_type_embeddings.weight"][0]
    x = normed(x, weights, prefix + "embeddings.LayerNorm")
    for i in range(LAYERS):
        p = f"{prefix}encoder.layer.{i}."
        q, k, v = linear(x, weights, p + "attention.qkv_proj").split(D, -1)
        attended = softmax_attention(rotated(q), rotated(k), v)
        x = normed(x + linear(attended, weights, p + "attention.o_proj"), weights, p + "attn_ln")
        up, gate = linear(x, weights, p + "mlp.up_gate_proj").split(INNER, -1)
        x = normed(x + linear(gelu(gate) * up, weights, p + "mlp.down_proj"), weights, p + "mlp_ln")
    return x


@pytest.mark.parametrize("changes", [{}, {"rope_scaling": None}, {"type_vocab_size": 0}], ids=str)
def test_new_classifier_is_read_as_gte(tmp_path, changes):
    folder = save_new(tmp_path / "m", **changes)
    weights, config, tokenizer = load_file(folder / "model.safetensors"), {**NEW, **changes}, tiny.unigram()

    def logit(passage):
        first = new_hidden(pair_ids(tokenizer, QUERY, passage)[0], weights, config)[0]
        return linear(torch.tanh(linear(first, weights, "new.pooler.dense")), weights, "classifier").item()

    check_logits(folder, [logit(passage) for passage in PASSAGES])


@pytest.mark.parametrize("prefix", ["", "new."])
def test_new_encoder_is_read_as_gte(tmp_path, prefix):
    folder = save_new(tmp_path / "m", prefix=prefix, head=False, architectures=["NewModel"])
    weights = load_file(folder / "model.safetensors")
    expected = mean_cosines(folder, lambda ids: new_hidden(ids, weights, NEW, prefix), tiny.unigram())
    check_logits(folder, expected, mode="bi-encoder")
    tiny.sentence_layout(folder, "mean", ("Normalize", None))
    check_logits(folder, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"logn_attention_scale": True},
        {"position_embedding_type": "absolute"},
        {"layer_norm_type": "rms_norm"},
        {"pack_qkv": False},
        {"rope_scaling": {"factor": 8.0, "type": "linear"}},
        {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 20000}},
        {"rope_scaling": {"factor": 8.0, "type": "ntk", "mixed_b": 0.5}},
    ],
    ids=str,
)
def test_what_gte_does_not_compute_is_refused(tmp_path, changes):
    with pytest.raises(tamis.UnknownFamily, match="computes"):
        tamis.load(save_new(tmp_path / "m", **changes))


# -- Nomic BERT by its published names ----------------------------------------------------------------------------

NOMIC = {
    "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "activation_function": "swiglu", "causal": False,
    "layer_norm_epsilon": 1e-12, "max_trained_positions": 2048, "mlp_fc1_bias": False, "mlp_fc2_bias": False,
    "n_embd": D, "n_head": HEADS, "n_inner": INNER, "n_layer": LAYERS, "n_positions": 8192, "pad_token_id": 0,
    "pad_vocab_size_multiple": 64, "parallel_block": False, "parallel_block_tied_norm": False, "prenorm": False,
    "qkv_proj_bias": False, "rotary_emb_base": 5000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None, "rotary_scaling_factor": None, "type_vocab_size": 2, "use_rms_norm": False,
    "auto_map": {"AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig"},
}  # fmt: skip


def save_nomic(folder, **changes):
    tokenizer = tiny.wordpiece()
    size = -(-len(tokenizer) // 64) * 64
    shapes = {"embeddings.word_embeddings.weight": (size, D), "embeddings.token_type_embeddings.weight": (2, D)}
    norms = ["emb_ln"]
    for i in range(LAYERS):
        p = f"encoder.layers.{i}."
        shapes |= {p + "attn.Wqkv.weight": (3 * D, D), p + "attn.out_proj.weight": (D, D)}
        shapes |= {p + "mlp.fc11.weight": (INNER, D), p + "mlp.fc12.weight": (INNER, D)}
        shapes |= {p + "mlp.fc2.weight": (D, INNER)}
        norms += [p + "norm1", p + "norm2"]
    shapes |= {f"{norm}.{part}": (D,) for norm in norms for part in ("weight", "bias")}
    folder = write(folder, {**NOMIC, "vocab_size": len(tokenizer), **changes}, drawn(shapes), tokenizer)
    return tiny.sentence_layout(folder, "mean") if "hidden_size" in changes else folder


def nomic_hidden(ids, weights):
    inverse = NOMIC["rotary_emb_base"] ** (-torch.arange(0, HEAD, 2) / HEAD)
    angles = torch.outer(torch.arange(len(ids)), inverse).repeat(1, 2)[:, None]

    def rotated(x):
        x = x.view(-1, HEADS, HEAD)
        half = torch.cat([-x[..., HEAD // 2 :], x[..., : HEAD // 2]], -1)
        return (x * angles.cos() + half * angles.sin()).view(-1, D)

    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = normed(x, weights, "emb_ln")
    for i in range(LAYERS):
        p = f"encoder.layers.{i}."
        q, k, v = linear(x, weights, p + "attn.Wqkv").split(D, -1)
        attended = softmax_attention(rotated(q), rotated(k), v)
        x = normed(x + linear(attended, weights, p + "attn.out_proj"), weights, p + "norm1")
        y = linear(x, weights, p + "mlp.fc11") * silu(linear(x, weights, p + "mlp.fc12"))
        x = normed(x + linear(y, weights, p + "mlp.fc2"), weights, p + "norm2")
    return x


def test_nomic_by_its_published_names(tmp_path):
    folder = save_nomic(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    expected = mean_cosines(folder, lambda ids: nomic_hidden(ids, weights), tiny.wordpiece())
    check_logits(folder, expected, mode="bi-encoder")


def test_nomic_with_scaled_positions_reads_what_it_was_trained_on(tmp_path):
    folder = save_nomic(tmp_path / "m", rotary_scaling_factor=2.0, max_trained_positions=256)
    with pytest.raises(tamis.InvalidInput, match="256 tokens"):
        tamis.load(folder, mode="bi-encoder", max_length=300)


@pytest.mark.parametrize(
    "changes",
    [
        {"prenorm": True},
        {"qkv_proj_bias": True},
        {"rotary_emb_fraction": 0.5},
        {"activation_function": "gelu"},
        {"num_experts": 8, "moe_every_n_layers": 2},
        {"use_rms_norm": True},
        {"rotary_emb_interleaved": True},
    ],
    ids=str,
)
def test_what_nomic_does_not_compute_is_refused(tmp_path, changes):
    with pytest.raises(tamis.UnknownFamily, match="computes"):
        tamis.load(save_nomic(tmp_path / "m", **changes), mode="bi-encoder")


# -- JinaBERT -----------------------------------------------------------------------------------------------------

JINA = {
    "architectures": ["JinaBertModel"], "model_type": "bert", "position_embedding_type": "alibi",
    "feed_forward_type": "geglu", "emb_pooler": "mean", "attn_implementation": "torch", "hidden_act": "gelu",
    "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
    "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER,
    "max_position_embeddings": 8192, "type_vocab_size": 2, "pad_token_id": 1, "layer_norm_eps": 1e-12,
    "classifier_dropout": None, "torch_dtype": "float32",
}  # fmt: skip


def save_jina(folder, *, prefix="bert.", labels=1, tokenizer=None, **changes):
    tokenizer = tokenizer or tiny.byte_level()
    shapes = {"embeddings.word_embeddings.weight": (len(tokenizer), D)}
    shapes |= {"embeddings.token_type_embeddings.weight": (2, D)}
    norms, layers = ["embeddings.LayerNorm"], {"pooler.dense": (D, D)}
    for i in range(LAYERS):
        p = f"encoder.layer.{i}."
        layers |= {f"{p}attention.self.{name}": (D, D) for name in ("query", "key", "value")}
        layers |= {p + "attention.output.dense": (D, D), p + "mlp.wo": (D, INNER)}
        shapes |= {p + "mlp.gated_layers.weight": (2 * INNER, D)}
        norms += [p + "attention.output.LayerNorm", p + "mlp.layernorm"]
    for name, shape in layers.items():
        shapes |= {name + ".weight": shape, name + ".bias": shape[:1]}
    shapes |= {f"{norm}.{part}": (D,) for norm in norms for part in ("weight", "bias")}
    weights = {prefix + name: weight for name, weight in drawn(shapes).items()}
    if labels:
        weights |= drawn({"classifier.weight": (labels, D), "classifier.bias": (labels,)}, 1)
    return write(folder, {**JINA, "vocab_size": len(tokenizer), **changes}, weights, tokenizer)


def jina_hidden(ids, types, weights, prefix="bert.", act=gelu):
    """JinaBERT, one sequence: (n, D). The slopes of 6 heads are those of 4, and two of those of 8."""
    slope = torch.tensor([2**-2.0, 2**-4.0, 2**-6.0, 2**-8.0, 2**-1.0, 2**-3.0])
    place = torch.arange(len(ids))
    bias = -slope[:, None, None] * (place[:, None] - place).abs()
    words, kinds = (weights[f"{prefix}embeddings.{name}_embeddings.weight"] for name in ("word", "token_type"))
    x = normed(words[ids] + kinds[types], weights, prefix + "embeddings.LayerNorm")
    for i in range(LAYERS):
        p = f"{prefix}encoder.layer.{i}."
        q, k, v = (linear(x, weights, f"{p}attention.self.{name}") for name in ("query", "key", "value"))
        attended = linear(softmax_attention(q, k, v, bias), weights, p + "attention.output.dense")
        x = normed(x + attended, weights, p + "attention.output.LayerNorm")
        both = linear(x, weights, p + "mlp.gated_layers")
        gated = linear(act(both[:, :INNER]) * both[:, INNER:], weights, p + "mlp.wo")
        x = normed(x + gated, weights, p + "mlp.layernorm")
    return x


@pytest.mark.parametrize("tokenizer", [tiny.byte_level, tiny.wordpiece])
@pytest.mark.parametrize(("labels", "kind"), [(1, "geglu"), (2, "reglu")])
def test_jina_reranker(tmp_path, tokenizer, labels, kind):
    tokenizer = tokenizer()
    folder = save_jina(tmp_path / "m", labels=labels, tokenizer=tokenizer, feed_forward_type=kind)
    weights = load_file(folder / "model.safetensors")

    def logit(passage):
        ids, types = pair_ids(tokenizer, QUERY, passage)
        hidden = jina_hidden(ids, types, weights, act=gelu if kind == "geglu" else relu)
        rows = linear(torch.tanh(linear(hidden[0], weights, "bert.pooler.dense")), weights, "classifier")
        return (rows[0] if labels == 1 else rows[1] - rows[0]).item()

    assert max(len(pair_ids(tokenizer, QUERY, passage)[0]) for passage in PASSAGES) > BLOCK
    check_logits(folder, [logit(passage) for passage in PASSAGES])
    with tamis.load(folder, dtype="bfloat16") as low:
        assert low.mode == "cross-encoder"
        given = low.logits(QUERY, PASSAGES)
    assert np.corrcoef(given, [logit(passage) for passage in PASSAGES])[0, 1] > 0.99


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_jina_embeddings(tmp_path, prefix):
    folder = tiny.sentence_layout(save_jina(tmp_path / "m", prefix=prefix, labels=0), "mean")
    weights = load_file(folder / "model.safetensors")

    def hidden(ids):
        return jina_hidden(ids, torch.zeros_like(ids), weights, prefix)

    check_logits(folder, mean_cosines(folder, hidden, tiny.byte_level()))


def test_a_bert_with_alibi_never_loads_as_plain_bert(tmp_path):
    from transformers import AutoModel

    folder = tiny.save_encoder(tmp_path / "plain", "bert")  # weights of a BERT, config of a JinaBERT
    edit(folder / "config.json", position_embedding_type="alibi")
    assert type(AutoModel.from_pretrained(folder)).__name__ == "BertModel"
    with pytest.raises(tamis.CorruptCheckpoint, match="lacks"):
        tamis.load(folder, mode="bi-encoder")


def test_variants_of_jina_are_refused(tmp_path):
    with pytest.raises(tamis.UnknownFamily, match="feed_forward_type='original'"):
        tamis.load(save_jina(tmp_path / "original", feed_forward_type="original"))
    folder = save_jina(tmp_path / "qk")
    weights = load_file(folder / "model.safetensors")
    for i in range(LAYERS):
        weights[f"bert.encoder.layer.{i}.attention.self.layer_norm_q.weight"] = torch.ones(D)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for options in ({}, {"family": "plain-encoder"}):
        with pytest.raises(tamis.UnknownFamily, match="qk-post-norm"):
            tamis.load(folder, **options)


def test_jina_reranker_v2_is_refused(classifier, tmp_path):
    import shutil

    folder = shutil.copytree(classifier("xlm-roberta"), tmp_path / "v2")
    edit(folder / "config.json", auto_map={"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig"})
    weights = load_file(folder / "model.safetensors")
    weights = {name.replace("attention.self.query", "mixer.Wqkv"): weight for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(tamis.UnknownFamily, match="jina-reranker-v2"):
        tamis.load(folder)


@pytest.mark.parametrize(("name", "kind"), [("xlm-roberta", "rotary"), ("bert", "relative_key_query")])
def test_positions_that_transformers_ignores_are_refused(classifier, tmp_path, name, kind):
    import shutil

    folder = shutil.copytree(classifier(name), tmp_path / "m")
    edit(folder / "config.json", position_embedding_type=kind)
    with pytest.raises(tamis.UnknownFamily, match=kind):
        tamis.load(folder)


def test_slopes_and_bias():
    twelve = [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    assert slopes(12) == pytest.approx(twelve)
    length = 2 * BLOCK + 17
    place = torch.arange(length)
    expected = -torch.tensor(slopes(3))[:, None, None] * (place[:, None] - place).abs()
    for longest in (length, length + 40):
        bias = Bias(3, longest, torch.zeros(1))
        blocks = [bias.block(start, min(start + BLOCK, length), length) for start in range(0, length, BLOCK)]
        torch.testing.assert_close(torch.cat(blocks, 1), expected)
