"""Cross-encoders: each loss learns, and what is saved scores alike in Tamis and in the library that it came from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tamis
import tiny
import tiny_lm
import tiny_training as tt
from tamis.checkpoint import Checkpoint
from tamis.errors import InvalidInput
from tamis.families import resolve
from tamis.families.wordings import NVIDIA
from tamis.options import LoadOptions
from tamis.training import cross_encoder
from tamis.training.calibration import calibrate, head_of, platt
from tamis.training.cross_encoder import Options, split
from tamis.training.ranking_losses import columns, soft, targets
from tamis.training.recipe import from_table, read_recipe
from tamis.training.rows import Example

pytestmark = pytest.mark.peers

ASKED = tt.QUERIES[0]
NO_CUT = {"held_out": 0.0, "max_length": 128, "dropout": 0.0}


def taught(examples):
    """With a teacher's logits, above and below 0."""
    return [replace(e, scores=tuple(3.0 - 4.0 * k for k in range(len(e.passages)))) for e in examples]


def trained(tmp_path, model, options, rows=None, **arguments):
    """A trainer after ten steps, and the folder that it saved."""
    recipe = tt.recipe("cross-encoder", model, tmp_path / "out", {**NO_CUT, **options}, **arguments)
    made, rows = Options(**recipe.options), tt.labelled() if rows is None else rows
    trainer = cross_encoder.prepare(recipe, made, rows, recipe.output / "checkpoints")
    trainer.train()
    cross_encoder.save(trainer, recipe.output, made, rows)
    return trainer, recipe.output


def reference(folder, query, passages):
    """sentence-transformers' logits."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    return model.predict([(query, passage) for passage in passages], activation_fn=torch.nn.Identity())


def given(folder, **options):
    with tamis.load(folder, dtype="float32", **options) as reranker:
        assert reranker.mode == "cross-encoder"
        return reranker.logits(ASKED, tiny.TEXT)


@pytest.mark.parametrize(
    "options, teacher",
    [
        ({"loss": "bce"}, False),
        ({"loss": "mse"}, False),
        ({"loss": "ranknet"}, False),
        ({"loss": "lambda", "mini_batch": 8}, False),
        ({"loss": "listwise"}, False),
        ({"loss": "contrastive"}, False),
        ({"loss": "bce"}, True),
        ({"loss": "mse"}, True),
        ({"loss": "margin-mse"}, True),
        ({"loss": "listwise", "label_weight": 0.0, "temperature": 2.0}, True),
        ({"lora": {"rank": 4}}, False),
        ({"num_layers": 1, "vocabulary": 300}, False),
    ],
    ids=str,
)
def test_it_learns_and_scores_as_in_sentence_transformers(tmp_path, classifier, options, teacher):
    rows = taught(tt.labelled()) if teacher else tt.labelled()
    rate = 1e-2 if "lora" in options else 3e-3
    trainer, folder = trained(tmp_path, classifier("bert"), options, rows, learning_rate=rate)
    assert tt.falls(trainer)
    np.testing.assert_allclose(given(folder), reference(folder, ASKED, tiny.TEXT), atol=1e-4)
    assert np.abs(np.array(given(folder)) - given(classifier("bert"))).max() > 1e-2


def test_a_new_head_on_an_encoder(tmp_path):
    """The start cannot rank; what comes out of it reads as many tokens as its start, not as few as the training."""
    start = tiny.save_encoder(tmp_path / "start", "bert")
    trainer, folder = trained(tmp_path, start, {"dtype": "float16"}, learning_rate=3e-3)
    assert tt.falls(trainer)
    with tamis.load(folder, max_length=512, dtype="float32") as reranker:
        assert len(reranker.logits(ASKED, tiny.TEXT)) == len(tiny.TEXT)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["truncation"] is None


def test_layers_and_pieces_that_are_left_out_are_gone(tmp_path, classifier):
    _, folder = trained(tmp_path, classifier("bert"), {"num_layers": 2, "vocabulary": 250}, max_steps=1)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert config["vocab_size"] == 250
    assert (folder / "model.safetensors").stat().st_size < (classifier("bert") / "model.safetensors").stat().st_size


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"lora": {"rank": 4}}], ids=str)
def test_resuming_gives_the_same_model(tmp_path, classifier, options):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    made = [
        tt.recipe("cross-encoder", classifier("bert"), tmp_path / name, {**NO_CUT, **options}, **saving)
        for name in ("whole", "half")
    ]
    whole, half = (
        cross_encoder.prepare(one, Options(**one.options), tt.labelled(), one.output / "checkpoints") for one in made
    )
    whole.train()
    half.train(resume_from_checkpoint=str(made[0].output / "checkpoints" / "checkpoint-2"))
    for key, weight in whole.model.state_dict().items():
        torch.testing.assert_close(half.model.state_dict()[key], weight, rtol=1e-4, atol=1e-6, msg=key)


def test_a_prompt_that_all_rows_have_is_saved(tmp_path, classifier):
    rows = [replace(e, prompt="query: ") for e in tt.labelled()]
    _, folder = trained(tmp_path, classifier("bert"), {}, rows, max_steps=1)
    with tamis.load(folder, dtype="float32") as reranker, tamis.load(folder, dtype="float32", instruction="") as bare:
        assert reranker.logits("a", ["b"]) == bare.logits("query: a", ["b"])
    np.testing.assert_allclose(given(folder), reference(folder, ASKED, tiny.TEXT), atol=1e-4)


# -- decoders ----------------------------------------------------------------------------------------------------------


def decoder_logits(trainer):
    pairs = [(ASKED, passage) for passage in tiny.TEXT]
    return trainer.model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)


def test_a_llama_as_nemo_retriever_has_it(tmp_path):
    start = tiny_lm.save(tmp_path / "llama", "llama", "ForCausalLM", bos=True)
    trainer, folder = trained(tmp_path, start, {"bidirectional": True}, tt.labelled(4), learning_rate=1e-3)
    assert tt.falls(trainer)
    assert resolve(Checkpoint.find(folder), LoadOptions()).name == "nemotron-rerank"
    assert cross_encoder.usage(folder) == f'tamis.load("{folder}")'
    np.testing.assert_allclose(given(folder), decoder_logits(trainer), atol=1e-4)
    np.testing.assert_allclose(given(folder), by_hand(folder, "mean"), atol=1e-4)
    with cross_encoder.load(folder, Options()) as reranker:
        assert len(reranker.logits(ASKED, tiny.TEXT)) == len(tiny.TEXT)
    more, second = trained(tmp_path / "more", folder, {"lora": {"rank": 4}, "loss": "bce"}, learning_rate=1e-2)
    assert tt.falls(more)
    np.testing.assert_allclose(given(second), decoder_logits(more), atol=1e-4)


@pytest.mark.parametrize("pooling", ["avg", "cls", "last"])
def test_a_llama_keeps_its_pooling_and_temperature(tmp_path, pooling):
    """Not a step was learnt in the first run, so that its result is its start; in the second, steps were."""
    start = tiny_lm.save(tmp_path / "llama", "llama", "ForSequenceClassification", bos=True)
    name = "LlamaBidirectionalForSequenceClassification"
    says = {"pooling": pooling, "temperature": 2.5}
    tiny_lm.edit(start / "config.json", model_type="llama_bidirec", architectures=[name], **says)
    _, same = trained(tmp_path / "same", start, {}, tt.labelled(4), learning_rate=0.0, max_steps=1)
    np.testing.assert_allclose(given(same), given(start), atol=1e-4)
    trainer, folder = trained(tmp_path / "more", start, {}, tt.labelled(4), learning_rate=1e-3)
    assert tt.falls(trainer)
    np.testing.assert_allclose(given(folder), decoder_logits(trainer), atol=1e-4)
    assert np.abs(np.array(given(folder)) - given(start)).max() > 1e-2
    for one in (same, folder):
        assert json.loads((one / "config.json").read_text()).items() >= says.items()


def test_a_causal_llama_that_divides_its_logits(tmp_path):
    """Transformers' own class has no temperature: the head's weight has it then, and the scores are the same."""
    start = tiny_lm.save(tmp_path / "llama", "llama", "ForSequenceClassification", bos=True)
    tiny_lm.edit(start / "config.json", temperature=2.5)
    family = {"family": "rerank-qa-mistral"}
    _, same = trained(tmp_path, start, {}, tt.labelled(4), learning_rate=0.0, max_steps=1)
    np.testing.assert_allclose(given(same, **family), given(start, **family), atol=1e-4)
    assert "temperature" not in json.loads((same / "config.json").read_text())


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"num_layers": 1, "lora": {"rank": 4}}], ids=str)
def test_a_mistral_as_rerank_qa_mistral_has_it(tmp_path, options):
    start = tiny_lm.save(tmp_path / "mistral", "mistral", "ForCausalLM", bos=True, sliding_window=None)
    trainer, folder = trained(tmp_path, start, options, learning_rate=1e-2 if "lora" in options else 1e-3)
    assert tt.falls(trainer)
    with pytest.raises(tamis.UnknownFamily):
        tamis.load(folder)
    found = given(folder, family="rerank-qa-mistral")
    assert 'family="rerank-qa-mistral"' in cross_encoder.usage(folder)
    np.testing.assert_allclose(found, decoder_logits(trainer), atol=1e-4)
    np.testing.assert_allclose(found, by_hand(folder, "last"), atol=1e-4)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == options["num_layers"]


def by_hand(folder, pooling):
    """transformers' own body and head, one prompt at a time, without padding."""
    from transformers import (
        AutoTokenizer,
        LlamaConfig,
        LlamaForSequenceClassification,
        MistralForSequenceClassification,
    )

    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "llama_bidirec":
        assert (config["pooling"], config["temperature"], config["is_causal"]) == ("avg", 1.0, False)
        own = LlamaConfig(**{**config, "model_type": "llama", "temperature": None})
        model = LlamaForSequenceClassification.from_pretrained(folder, config=own)
    else:
        model = MistralForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for passage in tiny.TEXT:
        text = f"question:{ASKED} \n \n passage:{passage}"
        assert text == NVIDIA.render(ASKED, passage)
        with torch.no_grad():
            states = model.model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            found.append(float(model.score(states.mean(0) if pooling == "mean" else states[-1])))
    return found


# -- rows --------------------------------------------------------------------------------------------------------------


def test_targets_by_hand():
    """Labels 1 and 0 by 4, and scores 0.8 and 0.6 over 0.1: 4 + 8 and 0 + 6."""
    both = Example("q", ("a", "b"), (1.0, 0.0), (0.8, 0.6))
    assert targets(both, Options(label_weight=4.0, temperature=0.1)) == [12.0, 6.0]
    assert targets(replace(both, scores=()), Options(label_weight=4.0)) == [4.0, 0.0]
    assert targets(replace(both, labels=()), Options(temperature=2.0)) == [0.4, 0.3]
    assert targets(both, Options(loss="ranknet")) == [0.8, 0.6]
    assert targets(replace(both, scores=()), Options(loss="lambda")) == [1.0, 0.0]


def test_columns_of_each_loss():
    rows = [
        Example("q", ("a", "b", "c"), (1.0, 0.5, 0.0), prompt="p: ", source="x"),
        Example("r", ("d", "e"), scores=(2.0, -2.0), source="y"),
        Example("s", ("f", "g"), scores=(0.9, 0.2), source="z"),
        Example("t", ("h", "i"), (0.0, 0.0), source="x"),
    ]
    pointwise = columns(rows, Options(loss="bce"))
    assert pointwise["query"] == ["p: q"] * 3 + ["r"] * 2 + ["s"] * 2 + ["t"] * 2
    assert pointwise["label"][:3] == [1.0, 0.5, 0.0]
    assert pointwise["label"][3:5] == pytest.approx([0.880797, 0.119203], abs=1e-6)  # logits: their sigmoid
    assert pointwise["label"][5:7] == [0.9, 0.2]  # probabilities: as they are
    lists = columns(rows, Options())
    assert lists["passages"] == [["a", "b", "c"], ["d", "e"], ["f", "g"]]  # equal labels tell nothing apart
    assert lists["labels"] == [[10.0, 5.0, 0.0], [2.0, -2.0], [0.9, 0.2]]
    margins = columns(rows, Options(loss="margin-mse"))
    assert margins["label"] == pytest.approx([4.0, 0.7])
    contrasts = columns(rows, Options(loss="contrastive"))
    assert contrasts == {"query": ["p: q"], "positive": ["a"], "negative_0": ["c"]}
    with pytest.raises(InvalidInput, match="teacher"):
        columns(rows[:1], Options(loss="margin-mse"))
    with pytest.raises(InvalidInput, match="different relevance"):
        columns(rows[3:], Options())


def test_a_teacher_s_scores_are_softened_once():
    rows = [Example("q", ("a", "b"), (1.0, 0.0), (30.0, -0.5), source="x"), Example("r", ("c",), (1.0,), source="x")]
    once = soft(rows)
    assert once[0].scores == pytest.approx((1.0, 0.377541), abs=1e-6)
    assert soft(once) == once
    assert once[1] == rows[1]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"loss": "hinge"}, "loss = 'hinge'"),
        ({"dtype": "int8"}, "dtype = 'int8'"),
        ({"held_out": 0.7}, "held_out = 0.7"),
        ({"temperature": 0}, "temperature = 0"),
        ({"loss": "bce", "mini_batch": 8}, "mini_batch is for"),
        ({"patience": 2, "held_out": 0.0}, "patience"),
        ({"lora": {"rnk": 4}}, "did you mean 'rank'"),
        ({"lora": {"rank": 0}}, "rank = 0"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(InvalidInput, match=said):
        Options(**options)


@pytest.mark.parametrize(
    "options, arguments, said",
    [
        ({"num_layers": 4}, {}, "has 3 layers"),
        ({"max_length": 1000}, {}, "reads 512 tokens"),
        ({"vocabulary": 20}, {}, "pass a number from"),
        ({"bidirectional": True}, {}, "is for decoders"),
        ({}, {"learning_rat": 1}, "does not fit CrossEncoderTrainingArguments"),
    ],
)
def test_what_does_not_fit_the_model(tmp_path, classifier, options, arguments, said):
    recipe = tt.recipe("cross-encoder", classifier("bert"), tmp_path, {**NO_CUT, **options}, **arguments)
    with pytest.raises(InvalidInput, match=said):
        cross_encoder.prepare(recipe, Options(**recipe.options), tt.labelled(), tmp_path / "checkpoints")


# -- calibration -------------------------------------------------------------------------------------------------------


def test_platt_is_scikit_learn_s_fit_to_platt_s_targets():
    """Each passage once for either class, weighted by its target: 4/5 and 1/5 for a relevant one of three, ..."""
    from sklearn.linear_model import LogisticRegression

    logits = np.array([3.0, 1.0, 0.5, -0.2, -1.0, -4.0, 0.1])
    relevant = np.array([True, True, False, True, False, False, False])
    weights = [4 / 5, 4 / 5, 1 / 6, 4 / 5, 1 / 6, 1 / 6, 1 / 6]
    fit = LogisticRegression(C=1e6).fit(
        np.repeat(logits, 2)[:, None], [1, 0] * 7, [w for t in weights for w in (t, 1 - t)]
    )
    a, b = platt(logits, relevant)
    assert (a, b) == pytest.approx((fit.coef_[0, 0], fit.intercept_[0]), abs=1e-3)
    separated, _ = platt(np.array([1.0, -1.0]), np.array([True, False]))
    assert separated == pytest.approx(np.log(2), abs=1e-3)  # targets 2/3 and 1/3


def test_calibration_multiplies_the_head_and_keeps_the_order(tmp_path, classifier):
    """Fitted to the tail that was held out, in evaluation mode, whatever the training left the model in."""
    rows = tt.labelled() * 3
    recipe = tt.recipe("cross-encoder", classifier("bert"), tmp_path, {"held_out": 0.4, "max_length": 128})
    options = Options(**recipe.options)
    train, unseen = split(rows, options)
    assert (len(train), len(unseen)) == (13, 8)
    trainer = cross_encoder.prepare(recipe, options, rows, tmp_path / "checkpoints")
    assert trainer.train_dataset["query"] == [e.query for e in train]
    assert trainer.eval_dataset["query"] == [e.query for e in unseen]
    pairs = [(e.query, p) for e in unseen for p in e.passages]
    before = trainer.model.predict(pairs, activation_fn=torch.nn.Identity())
    weight, bias = (p.detach().clone() for p in head_of(trainer.model).parameters())
    trainer.model.train()  # with dropout, as after a step
    cross_encoder.save(trainer, tmp_path, options, rows)
    a, b = platt(before.astype(np.float64), np.array([label > 0.5 for e in unseen for label in e.labels]))
    if a <= 0:  # an untrained model may rank the wrong way round; then nothing is done
        a, b = 1.0, 0.0
    after = trainer.model.predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(after, a * before + b, atol=1e-3)
    assert np.array_equal(np.argsort(after), np.argsort(before))
    torch.testing.assert_close(head_of(trainer.model).weight, weight * a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head_of(trainer.model).bias, bias * a + b, rtol=1e-4, atol=1e-4)


def test_calibration_leaves_alone_what_it_cannot_fit(classifier):
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(classifier("bert")), device="cpu")
    weight = head_of(model).weight.detach().clone()
    assert calibrate(model, [Example("q", ("a", "b"), (1.0, 1.0))]) == (1.0, 0.0)
    logits = model.predict([("q", "a"), ("q", "b c d")], activation_fn=torch.nn.Identity())
    worse = (0.0, 1.0) if logits[0] > logits[1] else (1.0, 0.0)
    assert calibrate(model, [Example("q", ("a", "b c d"), worse)]) == (1.0, 0.0)
    assert torch.equal(head_of(model).weight, weight)


@pytest.mark.parametrize(
    "name", ["cross-encoder", "cross-encoder-mistral", "cross-encoder-nemo", "distillation", "tamis-mini"]
)
def test_the_recipe_files(tmp_path, name):
    made = read_recipe(Path(__file__).parents[1] / "cookbook" / "recipes" / f"{name}.toml")
    assert made.recipe == cross_encoder.NAME
    options = from_table(Options, made.options, "[options]")
    here = {**made.arguments, "bf16": False}
    arguments = cross_encoder.arguments(replace(made, arguments=here), options, tmp_path, evaluates=True)
    assert arguments.output_dir == str(tmp_path)
    assert arguments.seed == made.seed
