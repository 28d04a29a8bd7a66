"""Which loads of one checkpoint share an engine: all but those that differ in what makes a difference."""

from __future__ import annotations

import json
import textwrap

import pytest

import tamis
import tiny
import tiny_lm


def loaded(reranker):
    """What it shares with others."""
    scorer = reranker._scorer
    lease = scorer.passage.lease if reranker.mode == "bi-encoder" else scorer._lease
    return lease.loaded


def shares(folder, one, other):
    """Whether two loads of a checkpoint, both alive, are one in memory."""
    with tamis.load(folder, **one) as first, tamis.load(folder, **other) as second:
        assert first.logits("zip", ["a"]) == pytest.approx(second.logits("zip", ["a"]), abs=1e-5)
        return loaded(first) is loaded(second)


NO_DIFFERENCE = [
    {"head": "new"},
    {"trust_remote_code": True},
    {"batch_tokens": 4096},  # as on a CPU without it
    {"max_length": 400},
    {"weight": 2.0, "overload": "wait"},
]
DIFFERENCE = [
    {"batch_tokens": 500},
    {"queue_tokens": 10_000},
    {"score_cache_bytes": 1000},
    {"attention": "padded"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint for each mode."""
    new = tmp_path_factory.mktemp
    return {
        "cross-encoder": tiny.save_classifier(new("classifier"), "bert"),
        "causal-lm": tiny_lm.save(new("decoder"), "qwen3", "ForCausalLM"),
        "bi-encoder": tiny.sentence_layout(tiny.save_encoder(new("encoder"), "bert"), "mean"),
        "late-interaction": tiny.save_stanford(new("colbert")),
    }


@pytest.mark.parametrize("mode", ["cross-encoder", "causal-lm", "bi-encoder", "late-interaction"])
def test_what_means_nothing_loads_no_second_copy(folders, mode):
    usual = {"mode": mode, "device": "cpu", "dtype": "float32"}
    for option in NO_DIFFERENCE:
        assert shares(folders[mode], usual, {**usual, **option}), option
    keeps_vectors = mode in ("bi-encoder", "late-interaction")
    assert shares(folders[mode], usual, {**usual, "cache_bytes": 0}) == (not keeps_vectors)


@pytest.mark.parametrize("option", DIFFERENCE)
def test_what_makes_a_difference_does(folders, option):
    usual = {"device": "cpu", "dtype": "float32"}
    assert not shares(folders["cross-encoder"], usual, {**usual, **option})


def test_the_fusions_cross_encoder_has_no_vectors_to_keep():
    """`cache_bytes` is its bi-encoder's, whose cache is of that size."""
    with (
        tamis.load(dtype="float32") as usual,
        tamis.load(dtype="float32", cache_bytes=0, trust_remote_code=True) as other,
        tamis.load(dtype="float32", mode="cross-encoder", cache_bytes=7) as cross,
        tamis.load(dtype="float32", mode="bi-encoder", cache_bytes=0) as similar,
    ):
        alone = {id(one._scorer._cross._lease.loaded) for one in (usual, other)}
        assert alone == {id(loaded(cross))}
        assert other._scorer._similar.passage.lease.loaded is loaded(similar)
        assert usual._scorer._similar.passage.lease.loaded is not loaded(similar)


def headless(folder):
    tiny.save_encoder(folder, "bert")
    labels = {"num_labels": 1, "id2label": {"0": "x"}, "label2id": {"x": 0}}
    tiny_lm.edit(folder / "config.json", architectures=["BertForSequenceClassification"], **labels)
    return folder


def test_a_new_head_is_not_given_to_who_wants_a_trained_one(tmp_path):
    folder = headless(tmp_path)
    with tamis.load(folder, head="new") as first, tamis.load(folder, head="new") as second:
        assert loaded(first) is loaded(second)
        with pytest.raises(tamis.UntrainedHead):
            tamis.load(folder)
    with pytest.raises(tamis.UntrainedHead):
        tamis.load(folder)


def test_code_that_nobody_needs_is_not_run_and_loads_no_second_copy(tmp_path):
    """A BERT whose config names code of its own, as copies of published models do."""
    ran = tmp_path / "ran"
    folder = tiny.save_classifier(tmp_path / "model", "bert")
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    tiny_lm.edit(folder / "config.json", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})
    assert shares(folder, {"dtype": "float32"}, {"dtype": "float32", "trust_remote_code": True})
    assert not ran.exists()


def test_a_tokenizer_of_its_own_is_another_model(tmp_path):
    folder = tiny.save_classifier(tmp_path, "bert")
    code = """
        from transformers import PreTrainedTokenizerFast
        class Own(PreTrainedTokenizerFast):
            pass
    """
    (folder / "own.py").write_text(textwrap.dedent(code))
    tiny_lm.edit(folder / "config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    tiny_lm.edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    assert "auto_map" in json.loads((folder / "tokenizer_config.json").read_text())
    assert not shares(folder, {"dtype": "float32"}, {"dtype": "float32", "trust_remote_code": True})
