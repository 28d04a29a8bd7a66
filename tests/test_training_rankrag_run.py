"""RankRAG's two stages, run: the loss falls, rows that are shared lose nothing, and the result opens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import beir
import tamis
import tiny_lm
import tiny_training as tt
from tamis.errors import InvalidInput
from tamis.training import language_model, rankrag
from tamis.training.rankrag import Options
from tamis.training.recipe import DataOptions, read_recipe
from tamis.training.run import recipe_module, train

pytestmark = pytest.mark.peers

SMALL = {"samples": 48, "contexts": 2, "share": 4, "questions": 2, "max_length": 768, "style": "plain"}
RECIPES = Path(__file__).parents[1] / "cookbook" / "recipes"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_lm.save(tmp_path_factory.mktemp("model"), "llama", "ForCausalLM", bos=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return beir.save_collection(tmp_path_factory.mktemp("data"), split="train")


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    said = [[{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": word}] for word in "abcdef"]
    beir.write_jsonl(path, [{"messages": messages} for messages in said])
    return path


def recipe(model, data, output, options=None, **arguments):
    made = tt.recipe("rankrag", model, output, {**SMALL, **(options or {})}, bf16=False, **arguments)
    return replace(made, data=DataOptions((str(data),), negatives_top=10))


def prepared(made):
    options = Options(**made.options)
    return rankrag.prepare(made, options, rankrag.examples(made, options), made.output / "checkpoints")


@pytest.mark.parametrize(
    "options", [{}, {"tune": "full"}, {"lora": {"rank": 4, "dropout": 0.1, "modules": ["q_proj", "v_proj"]}}], ids=str
)
def test_it_learns_and_opens(tmp_path, model, data, options):
    rate = 5e-3 if options.get("tune") != "full" else 1e-3
    made = recipe(model, data, tmp_path / "out", options, learning_rate=rate, max_steps=12)
    trainer = prepared(made)
    trainer.train()
    assert tt.falls(trainer)
    rankrag.save(trainer, made.output)
    asked, passages = "how do I read a zip archive", list(beir.PASSAGES.values())
    with rankrag.open_rankrag(made.output, Options(**made.options)) as rag:
        answer = rag.answer(asked, passages, max_new_tokens=4)
        logits = rag.reranker.logits(asked, passages)
    assert isinstance(answer.text, str)
    with tamis.load_rankrag(model, style="plain") as before:
        assert np.abs(np.array(before.reranker.logits(asked, passages)) - logits).max() > 0.1
    same = reference(model, made.output, options, asked, passages)
    with (
        tamis.load_rankrag(made.output, style="plain", dtype="float32")
        if options.get("tune") == "full"
        else tamis.load_rankrag(model, adapter=made.output, style="plain", dtype="float32")
    ) as rag:
        np.testing.assert_allclose(rag.reranker.logits(asked, passages), same, atol=1e-3)


def reference(model, folder, options, question, passages):
    """The logit of p(True) by transformers and PEFT alone, whole prompts one at a time."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tamis.rankrag.labels import forms_of

    full = options.get("tune") == "full"
    tuned = AutoModelForCausalLM.from_pretrained(folder if full else model, dtype=torch.float32)
    with language_model.quiet_peft():
        tuned = tuned if full else PeftModel.from_pretrained(tuned, folder)
    start = language_model.begin(str(model))
    prompts = rankrag.SampleEncoder(rankrag.wording_of(start, "plain"), start.text, start.ends, 768)
    (true, _), *_ = forms_of(prompts._prompts, start.text, "tiny")
    found = []
    for passage in passages:
        before, asked = prompts.prompt(rankrag.Sample("ranking", "True", question, (passage,)))
        with torch.no_grad():
            logits = tuned(torch.tensor([[*before, *asked]])).logits[0, -1].double()
        others = torch.cat([logits[:true], logits[true + 1 :]]).logsumexp(0)
        found.append(float(logits[true] - others))
    return found


def test_shared_rows_have_the_loss_and_the_gradient_of_rows_apart(model, data, tmp_path):
    made = recipe(model, data, tmp_path)
    options = Options(**made.options)
    samples = rankrag.examples(made, options)
    found = []
    for share, batch in ((1, 1), (1, 5), (8, 1), (8, 3)):
        trainer = rankrag.prepare(made, replace(options, share=share, tune="full"), samples, tmp_path / "checkpoints")
        rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
        tokens = sum(label != -100 for row in rows for label in row["labels"])
        total = 0.0
        for i in range(0, len(rows), batch):
            inputs = trainer.data_collator(rows[i : i + batch])
            loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(tokens))
            loss.backward()
            total += loss.item()
        gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        found.append((tokens, len(rows), total, gradient))
    assert len({tokens for tokens, *_ in found}) == 1
    assert found[2][1] < found[0][1] == len(samples)
    for _, _, total, gradient in found[1:]:
        assert total == pytest.approx(found[0][2], rel=1e-5)
        torch.testing.assert_close(gradient, found[0][3], rtol=1e-3, atol=1e-6)


def test_the_loss_is_transformers_own_over_the_answers(model, data, tmp_path):
    """With all logits computed, right-padded, by the model's own loss."""
    from transformers import AutoModelForCausalLM

    made = recipe(model, data, tmp_path, {"share": 1, "tune": "full"})
    trainer = prepared(made)
    rows = [trainer.train_dataset[i] for i in range(6)]
    given = trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()
    longest = max(len(row["input_ids"]) for row in rows)
    padded = {
        "input_ids": torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]),
        "labels": torch.tensor([row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows]),
    }
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    plain = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        assert given == pytest.approx(plain(**padded, attention_mask=mask).loss.item(), rel=1e-5)


def test_stage_one_then_stage_two(tmp_path, model, data, chats):
    options = {"stage": "both", "sft": [str(chats)], "sft_arguments": {"max_steps": 3, "learning_rate": 5e-3}}
    made = recipe(model, data, tmp_path / "out", options, learning_rate=5e-3, save_strategy="steps", save_steps=4)
    done = train(made, progress=False)
    assert (done.folder / "stage-one" / "adapter_model.safetensors").exists()
    assert (done.folder / "stage-one" / "done").exists()
    assert (done.folder / "adapter_model.safetensors").exists()
    with tamis.load_rankrag(model, adapter=done.folder, style="plain") as rag:
        assert len(rag.rank("zip?", list(beir.PASSAGES.values()))) == len(beir.PASSAGES)
    again = prepared(made)  # stage two begins with what stage one left
    started = dict(again.model.named_parameters())
    assert any(p.abs().max() > 0 for name, p in started.items() if "lora_B" in name)
    first = replace(made, options={**made.options, "stage": "sft"}, output=tmp_path / "sft")
    assert {len(row["parts"]) for row in prepared(first).train_dataset} == {2}


def test_resuming_gives_the_same_adapter(tmp_path, model, data):
    whole = prepared(recipe(model, data, tmp_path / "whole", save_strategy="steps", save_steps=5))
    whole.train()
    half = prepared(recipe(model, data, tmp_path / "half", save_strategy="steps", save_steps=5))
    half.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoints" / "checkpoint-5"))
    for (name, one), (_, other) in zip(whole.model.named_parameters(), half.model.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_the_adapter_names_its_base_and_no_path_of_this_machine(tmp_path, model, data):
    made = recipe(model, data, tmp_path / "out", max_steps=1)
    trainer = prepared(made)
    trainer.train()
    rankrag.save(trainer, made.output)
    assert language_model.base_of(made.output) == str(model)
    assert language_model.base_of(model) is None


@pytest.mark.parametrize(
    "options, said",
    [
        ({"stage": "both"}, "needs chats"),
        ({"stage": "first"}, "stage = 'first'"),
        ({"style": "odd"}, "style = 'odd'"),
        ({"tune": "some"}, "tune = 'some'"),
        ({"dtype": "int8"}, "dtype = 'int8'"),
        ({"tune": "full", "adapter": "x"}, "adapter"),
        ({"lora": {"rnk": 4}}, "did you mean 'rank'"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(InvalidInput, match=said):
        Options(**options)


def test_arguments_and_adapters_that_do_not_fit(tmp_path, model, data):
    with pytest.raises(InvalidInput, match="SFTConfig"):
        prepared(recipe(model, data, tmp_path, learning_rat=1))
    with pytest.raises(InvalidInput, match="holds no adapter_config"):
        prepared(recipe(model, data, tmp_path, {"adapter": str(tmp_path)}))
    with pytest.raises(InvalidInput, match="No sample fits"):
        prepared(recipe(model, data, tmp_path, {"max_length": 16}))


@pytest.mark.parametrize("name", ["rankrag", "rankrag-8b", "rankrag-70b"])
def test_the_cookbook_s_recipes(name):
    from tamis.training.recipe import from_table

    made = read_recipe(RECIPES / f"{name}.toml")
    options = from_table(recipe_module(made).Options, made.options, name)
    if name != "rankrag":
        large = name == "rankrag-70b"
        assert options.ratios == rankrag.Mix().ratios
        assert made.arguments["learning_rate"] == (2e-7 if large else 3e-7)
        assert made.arguments["max_steps"] == 3300
        assert options.sft_arguments["learning_rate"] == 5e-6
        assert options.sft_arguments["max_steps"] == 1000
        assert options.contexts == 5
        assert (options.questions, options.tune, options.style) == (1, "full", "plain")
