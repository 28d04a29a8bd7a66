"""What cannot be scored honestly is refused, whatever the caller forces."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tamis
import tiny
import tiny_lm
from golden import checkpoints
from tamis.checkpoint import Checkpoint
from tamis.families import _FAMILIES, families, resolve
from tamis.options import LoadOptions

QUERY, PASSAGES = "how is a zip archive read?", [tiny.text(n, n) for n in (3, 20, 60)]


def t5(folder):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**sizes, vocab_size=len(tiny.unigram()), decoder_start_token_id=1)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    tiny.unigram().save_pretrained(folder)
    return folder


def nemotron(folder, **config):
    tiny_lm.save(folder, "llama", "ForSequenceClassification", bos=True, template=None)
    name = "LlamaBidirectionalForSequenceClassification"
    tiny_lm.edit(folder / "config.json", model_type="llama_bidirec", architectures=[name], **config)
    return folder


RERANKERS = {
    "classifier": lambda folder: tiny.save_classifier(folder, "bert"),
    "language model": lambda folder: tiny_lm.save(folder, "qwen3", "ForCausalLM"),
    "decoder with a head": lambda folder: tiny_lm.save(folder, "qwen2", "ForSequenceClassification", bos=True),
    "bidirectional": nemotron,
    "layerwise": checkpoints.save_bge_minicpm,
    "lightweight": checkpoints.save_bge_gemma2_lightweight,
    "encoder-decoder": t5,
}


@pytest.mark.parametrize("kind", RERANKERS)
def test_no_reranker_is_a_bi_encoder(tmp_path, kind):
    """Pooling a reranker's states gives numbers, and they mean nothing."""
    folder = RERANKERS[kind](tmp_path)
    with pytest.raises(tamis.UnknownFamily, match="'bi-encoder'"):
        tamis.load(folder, mode="bi-encoder")
    with pytest.raises(tamis.LoadError):
        tamis.load(folder, mode="late-interaction")


@pytest.mark.parametrize("kind", ["classifier", "decoder with a head", "bidirectional", "layerwise", "lightweight"])
def test_what_has_a_head_is_not_asked_zero_shot(tmp_path, kind):
    folder = RERANKERS[kind](tmp_path)
    with pytest.raises(tamis.UnknownFamily, match="'causal-lm'"):
        tamis.load(folder, mode="causal-lm")


@pytest.mark.parametrize("kind", ["language model", "encoder-decoder", "layerwise"])
def test_what_has_no_head_is_no_cross_encoder(tmp_path, kind):
    with pytest.raises(tamis.UnknownFamily, match="no classification head"):
        tamis.load(RERANKERS[kind](tmp_path), mode="cross-encoder")


def test_nvidias_embedder_without_its_modules_is_a_bi_encoder(tmp_path):
    """It has the reranker's model type. What the refusal advises is what loads it: both ways, and the mean."""
    folder = nemotron(tmp_path)
    tiny_lm.edit(folder / "config.json", architectures=["LlamaBidirectionalModel"])
    for advised in ({}, {"mode": "cross-encoder"}):
        with pytest.raises(tamis.UnknownFamily, match='mode="bi-encoder"'):
            tamis.load(folder, **advised)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config = transformers.LlamaConfig(**{k: v for k, v in config.items() if k not in ("model_type", "architectures")})
    model = transformers.LlamaModel.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    def vector(text):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            mean = model(ids, attention_mask=torch.zeros(1, 1, ids.shape[1], ids.shape[1]))[0][0].mean(0)
        return mean / mean.norm()

    expected = [float(vector(QUERY) @ vector(passage)) for passage in PASSAGES]
    with tamis.load(folder, mode="bi-encoder", dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, atol=1e-4)


@pytest.mark.parametrize(
    "architecture",
    [
        "GPT2LMHeadModel",
        "Gemma3ForConditionalGeneration",
        "T5Gemma2ForConditionalGeneration",
        "JinaVLForRanking",
        "Qwen3ForCausalLM",
        "BertModel",
    ],
)
def test_no_advice_leads_to_a_refusal(tmp_path, architecture):
    """A mode that is advised is one that takes the checkpoint."""
    folder = tiny_lm.save(tmp_path, "qwen3", "ForCausalLM")
    tiny_lm.edit(folder / "config.json", architectures=[architecture])
    checkpoint = Checkpoint.find(folder)
    with pytest.raises(tamis.UnknownFamily) as refused:
        resolve(checkpoint, LoadOptions())
    modes = re.findall(r'mode="([\w-]+)"', str(refused.value))
    assert modes == {"Qwen3ForCausalLM": ["causal-lm"], "BertModel": ["bi-encoder"]}.get(architecture, [])
    for mode in modes:
        assert resolve(checkpoint, LoadOptions(mode=mode)).mode == mode
    if not modes:
        assert "docs/families.md names what is not supported" in str(refused.value)


def test_a_classifier_that_glues_its_texts_together_is_not_guessed_at(tmp_path):
    """Qwen's tokenizers put nothing between the texts of a pair: such a model was trained on a prompt."""
    folder = tiny_lm.save(tmp_path, "qwen2", "ForSequenceClassification", template=None)
    with pytest.raises(tamis.UnknownFamily, match="nothing between query and passage"):
        tamis.load(folder)
    with tamis.load(folder, family="sequence-classification", dtype="float32") as reranker:
        assert len(reranker.logits(QUERY, PASSAGES)) == 3
    with tamis.load(folder, family="qwen3-reranker-seq-cls", dtype="float32") as reranker:
        assert len(reranker.logits(QUERY, PASSAGES)) == 3


@pytest.mark.peers
def test_a_classifier_with_a_chat_template_equals_sentence_transformers(tmp_path):
    from sentence_transformers import CrossEncoder

    roles = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    plain, folder = tmp_path / "plain", tmp_path / "saved"
    tiny_lm.save(plain, "qwen3", "ForSequenceClassification", template=roles)
    peer = CrossEncoder(str(plain), activation_fn=torch.nn.Identity(), device="cpu")
    peer.save_pretrained(str(folder))
    expected = peer.predict([(QUERY, passage) for passage in PASSAGES])
    with tamis.load(folder, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, atol=1e-4)


def test_other_models_of_the_minicpm_series(tmp_path):
    folder = checkpoints.save_bge_minicpm(tmp_path)
    tiny_lm.edit(folder / "config.json", architectures=["MiniCPMForCausalLM"])
    with pytest.raises(tamis.UnknownFamily, match="layerwise reranker only"):
        tamis.load(folder, mode="causal-lm")


def test_nvidias_reranker_reads_no_more_than_it_was_trained_for(tmp_path):
    folder = nemotron(tmp_path, max_position_embeddings=131072)
    tiny_lm.edit(folder / "tokenizer_config.json", model_max_length=131072)
    with tamis.load(folder, dtype="float32") as reranker:
        hit = reranker.rank(QUERY, [tiny.text(4500, 1)])[0]
        assert hit.truncated
        assert reranker.rank(QUERY, [tiny.text(4500, 1)]).usage.tokens == 8192


@pytest.mark.parametrize("temperature", [None, "1.0", -1, True])
def test_a_temperature_that_is_none(tmp_path, temperature):
    with pytest.raises(tamis.CorruptCheckpoint, match="temperature"):
        tamis.load(nemotron(tmp_path, temperature=temperature))


def wordless(folder):
    """A chat model for which yes and no are several tokens, and which has no marks of turns."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<pad>", "</s>"],
    )  # fmt: skip
    core.train_from_iterator(["zip archive"], trainer)
    tiny_lm.save(folder, "llama", "ForCausalLM")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", chat_template=template, model_max_length=4096
    ).save_pretrained(folder)
    return folder


def test_answers_and_marks_that_are_not_one_token(tmp_path):
    folder = wordless(tmp_path)
    with pytest.raises(tamis.InvalidInput, match="one token each"):
        tamis.load(folder, mode="causal-lm")
    with pytest.raises(tamis.InvalidInput, match="'yes' is not one token"):
        tamis.load(folder, family="qwen3-reranker")
    with pytest.raises(tamis.UnknownFamily, match="no token of this model"):
        tamis.load(checkpoints.save_bge_gemma(tmp_path / "gemma"), family="zerank")


def test_a_network_of_its_own_under_a_known_name(tmp_path):
    folder = tiny_lm.save(tmp_path, "qwen2", "Model")
    tiny.sentence_layout(folder, "lasttoken")
    tiny_lm.edit(folder / "config.json", auto_map={"AutoModel": "modeling_qwen.Qwen2Model"})
    with pytest.raises(tamis.RemoteCode, match="another network"):
        tamis.load(folder)


def test_monot5_words_belong_to_the_name_not_to_the_files(tmp_path):
    """A hub id and its snapshot folder have the same files, and may answer with different words."""
    from tamis.checkpoint import Checkpoint
    from tamis.families.seq2seq import pieces_of

    folder = t5(tmp_path)
    assert pieces_of(Checkpoint("unicamp-dl/mt5-base-mmarco-v2", folder)) == ("▁yes", "▁no")
    assert pieces_of(Checkpoint(str(folder), folder)) == ("▁true", "▁false")


def test_a_registered_family_in_lexical_mode_is_built():
    before = {family.name: family for family in families()}
    bm25 = before["bm25"]

    class Shouting(type(bm25.build(None, tamis.options.LoadOptions()))):
        model = "shouting"

    try:
        tamis.register(replace(bm25, name="shouting", build=lambda checkpoint, options: Shouting()))
        with tamis.load(family="shouting") as reranker:
            assert reranker.model == "shouting"
    finally:
        _FAMILIES.clear()
        _FAMILIES.update(before)


def test_dates_in_templates_do_not_change_scores_overnight(tmp_path):
    dated = "{% if not date_string %}{{ raise_exception('no date') }}{% endif %}{{ date_string }}\n" + tiny_lm.CHATML
    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM", template=dated)
    with tamis.load(folder, mode="causal-lm", dtype="float32") as reranker:
        assert reranker._scorer._prompt.piece.startswith("26 Jul 2024\n")


def test_templates_that_fail_in_any_way(tmp_path):
    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM", template="{{ 1 // 0 }}")
    with pytest.raises(tamis.UnknownFamily, match="no chat template") as refused:
        tamis.load(folder, mode="causal-lm")
    assert isinstance(refused.value.__cause__, ZeroDivisionError)


def test_a_registry_survives_a_folder_that_is_gone(tmp_path):
    folder = tiny_lm.save(tmp_path / "x", "llama", "ForCausalLM")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(tamis.UnknownFamily):
        tamis.load(folder)
    shutil.rmtree(folder)
    with pytest.raises(tamis.ModelNotFound):
        tamis.load(folder)
