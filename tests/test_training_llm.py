"""LLM rerankers that say yes or no: what is trained scores alike in Tamis and in sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tamis
import tiny
import tiny_lm
import tiny_training as tt
from tamis.errors import InvalidInput, UnknownFamily
from tamis.training import yes_no
from tamis.training.recipe import from_table, read_recipe
from tamis.training.run import recipe_module
from tamis.training.yes_no import Options, roles_template

pytestmark = pytest.mark.peers

RECIPES = Path(__file__).parents[1] / "cookbook" / "recipes"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_lm.save(tmp_path_factory.mktemp("model"), "qwen3", "ForCausalLM")


def trained(model, output, options, examples=None, **arguments):
    made = tt.recipe("llm-reranker", model, output, options, **{"learning_rate": 5e-3, "max_steps": 8, **arguments})
    options = Options(**options)
    trainer = yes_no.prepare(made, options, examples or tt.labelled(), output / "checkpoints")
    trainer.train()
    yes_no.save(trainer, output, options)
    return trainer


def reference(folder, query, passages):
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu").predict([(query, passage) for passage in passages])


@pytest.mark.parametrize(
    "options",
    [{}, {"loss": "bce", "lora": {"rank": 4, "modules": ["q_proj", "v_proj"]}}, {"tune": "full", "loss": "ranknet"}],
    ids=str,
)
def test_it_learns_and_scores_as_in_sentence_transformers(tmp_path, model, options):
    rate = {"learning_rate": 2e-4} if options.get("tune") == "full" else {}
    trainer = trained(model, tmp_path / "out", options, **rate)
    assert tt.falls(trainer)
    expected = reference(tmp_path / "out", tt.QUERIES[0], tiny.TEXT)
    with tamis.load(tmp_path / "out", dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(tt.QUERIES[0], tiny.TEXT), expected, atol=1e-3)
    with yes_no.load(tmp_path / "out", Options(**options)) as after, yes_no.load(model, Options()) as before:
        assert after.mode == before.mode == "causal-lm"
        changed = np.array(before.logits(tt.QUERIES[0], tiny.TEXT)) - after.logits(tt.QUERIES[0], tiny.TEXT)
    assert np.abs(changed).max() > 1e-2


def test_it_begins_where_the_chat_model_stands(tmp_path, model):
    """The layout that it is trained in asks what `mode="causal-lm"` asks."""
    instruction = 'Say "yes" or no; {{ nothing }} and {% raw %} are plain.'
    for options in (Options(), Options(instruction=instruction)):
        made = tt.recipe("llm-reranker", model, tmp_path)
        yes_no.start(made, options, tmp_path / "start")
        with (
            tamis.load(tmp_path / "start", dtype="float32") as ours,
            tamis.load(model, mode="causal-lm", instruction=options.instruction, dtype="float32") as plain,
        ):
            texts = [*tiny.TEXT, "{query}", "{{ passage }}"]
            expected = plain.logits(tt.QUERIES[1], texts)
            np.testing.assert_allclose(ours.logits(tt.QUERIES[1], texts), expected, atol=1e-4)
        np.testing.assert_allclose(reference(tmp_path / "start", tt.QUERIES[1], texts), expected, atol=1e-3)


def test_what_was_tuned_can_be_tuned_on(tmp_path, model):
    trained(model, tmp_path / "one", {}, max_steps=2)
    trainer = trained(tmp_path / "one", tmp_path / "two", {}, max_steps=2)
    assert tt.losses(trainer)
    with yes_no.load(tmp_path / "two", Options()) as reranker:
        assert len(reranker.rank(tt.QUERIES[0], tiny.TEXT)) == len(tiny.TEXT)


def test_the_first_layers_of_a_deeper_model(tmp_path, model):
    options = {"num_layers": 2}
    trained(model, tmp_path / "out", options, max_steps=2)
    expected = reference(tmp_path / "out", tt.QUERIES[0], tiny.TEXT)
    with tamis.load(tmp_path / "out", dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(tt.QUERIES[0], tiny.TEXT), expected, atol=1e-3)


def test_roles_template():
    import jinja2

    text = 'He said "{query}"\n\\n {% if %} {{ x }} ü 日 {passage} end'
    template = jinja2.Environment(autoescape=False).from_string(roles_template(text))
    messages = [{"role": "query", "content": " a{passage} "}, {"role": "document", "content": "b"}]
    expected = 'He said " a{passage} "\n\\n {% if %} {{ x }} ü 日 b end'
    assert template.render(messages=messages) == expected


def test_what_cannot_be(tmp_path, model):
    with pytest.raises(InvalidInput, match="loss = 'odd'"):
        Options(loss="odd")
    with pytest.raises(InvalidInput, match="tune = 'some'"):
        Options(tune="some")
    plain = tiny_lm.save(tmp_path / "plain", "qwen3", "ForCausalLM", template=None)
    with pytest.raises(UnknownFamily, match="no chat template"):
        trained(plain, tmp_path / "out", {})


def test_the_cookbook_s_recipe():
    made = read_recipe(RECIPES / "llm-reranker.toml")
    assert from_table(recipe_module(made).Options, made.options, "x").loss == "listwise"
