"""jina-reranker-v3 over tiny Qwen3s, against the published code's formula written out."""

from __future__ import annotations

import json
import random
from copy import deepcopy

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AddedToken, AutoTokenizer

import tamis
import tiny
import tiny_lm
from tamis.checkpoint import Checkpoint
from tamis.families.listwise import listwise
from tamis.families.wordings import jina_reranker_v3
from tamis.options import LoadOptions
from tamis.scorers.listwise import blocks

QUERY = "how is a zip archive read?"
PASSAGES = [tiny.text(words, seed) for seed, words in enumerate([1, 3, 8, 21, 55, 21, 21])] + ["", "   "]
MARKS = ["<|embed_token|>", "<|rerank_token|>"]


def save(folder, *, special=True, max_length=131072, projector=True, marks=MARKS, **config):
    """A folder as the published ones are: a Qwen3 and a projector, and code of its own that nobody runs."""
    made = deepcopy(tiny_lm.chat())
    made.add_tokens([AddedToken(mark, special=special, normalized=False) for mark in marks], special_tokens=special)
    made.model_max_length = max_length
    made.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {**tiny_lm.SIZES, "vocab_size": len(made) + 5, "max_position_embeddings": 131072}
    body = transformers.Qwen3Model(transformers.Qwen3Config(**{**sizes, **config}))
    tiny_lm.fill(body)
    with torch.no_grad():  # attention that prefers some tokens: the mean of all of them is nearly the same everywhere
        for layer in body.layers:
            layer.self_attn.q_norm.weight *= 3
    weights = {f"model.{key}": value for key, value in body.state_dict().items()}
    if projector:
        weights["projector.0.weight"] = torch.randn(32, 64) / 8
        weights["projector.2.weight"] = torch.randn(48, 32) / 32**0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    body.config.save_pretrained(folder)
    auto_map = {"AutoModel": "modeling.JinaForRanking"}
    tiny_lm.edit(folder / "config.json", architectures=["JinaForRanking"], auto_map=auto_map, tie_word_embeddings=True)
    return folder


def prompt(query, docs, instruction=None):
    """The published prompt."""
    text = (
        "<|im_start|>system\n"
        "You are a search relevance expert who can determine a ranking of the passages based on how relevant they are "
        "to the query. If the query is a question, how relevant a passage is depends on how well it answers the "
        "question. If not, try to analyze the intent of the query and assess how well each passage satisfies the "
        "intent. If an instruction is provided, you should follow the instruction when determining the ranking."
        "<|im_end|>\n<|im_start|>user\n"
    )
    text += "I will provide you with " + str(len(docs)) + " passages, each indicated by a numerical identifier. "
    text += "Rank the passages based on their relevance to query: " + query + "\n"
    if instruction:
        text += "<instruct>\n" + instruction + "\n</instruct>\n"
    text += "\n".join(f'<passage id="{i}">\n{doc}<|embed_token|>\n</passage>' for i, doc in enumerate(docs)) + "\n"
    text += f"<query>\n{query}<|rerank_token|>\n</query>"
    return text + "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class Published:
    """The published `rerank`, in float32: truncate, split into blocks, weigh their queries, cosine."""

    def __init__(self, folder, dtype=torch.float32):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = transformers.Qwen3Config(**json.loads((folder / "config.json").read_text()))
        config._attn_implementation = "eager"
        weights = transformers.modeling_utils.load_state_dict(folder / "model.safetensors")
        self.body = transformers.Qwen3Model(config).to(dtype).eval()
        self.body.load_state_dict(
            {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")}
        )
        self.first, self.second = weights["projector.0.weight"], weights["projector.2.weight"]

    def vectors(self, query, docs, instruction=None):
        ids = self.tokenizer(prompt(query, docs, instruction), return_tensors="pt").input_ids
        with torch.inference_mode():
            hidden = self.body(input_ids=ids, use_cache=False).last_hidden_state[0].float()
        passage_id, query_id = self.tokenizer.convert_tokens_to_ids(MARKS)
        made = torch.relu(hidden @ self.first.T) @ self.second.T
        found = made[ids[0] == passage_id].numpy(), made[ids[0] == query_id].numpy()
        assert (len(found[0]), len(found[1])) == (len(docs), 1)
        return found

    def cut(self, text, limit):
        ids = self.tokenizer(text, truncation=True, max_length=limit).input_ids
        return (self.tokenizer.decode(ids) if len(ids) >= limit else text), len(ids)

    def rerank(self, query, docs, instruction=None, *, max_query=512, max_doc=2048, block_size=125):
        query, query_length = self.cut(query, max_query)
        capacity = self.tokenizer.model_max_length - 2 * query_length
        self.blocks, block, left = [], [], capacity
        for doc in docs:
            text, length = self.cut(doc, max_doc)
            block.append(text)
            left -= length
            if len(block) >= block_size or left <= max_doc:
                self.blocks.append(block)
                block, left = [], capacity
        if block:
            self.blocks.append(block)
        doc_vectors, query_vectors, weights = [], [], []
        for block in self.blocks:
            ours, asked = self.vectors(query, block, instruction)
            cosine = torch.cosine_similarity(torch.tensor(ours), torch.tensor(asked)).numpy()
            doc_vectors.append(ours)
            query_vectors.append(asked)
            weights.append(((1.0 + cosine) / 2.0).max())
        one, rows = np.average(np.array(query_vectors), axis=0, weights=weights)[0], np.concatenate(doc_vectors)
        return rows @ one / (np.linalg.norm(one) * np.linalg.norm(rows, axis=1))


def small(folder, query=40, passage=30, block=125, **options):
    """The family with other limits than the published ones."""
    options = LoadOptions(**{"dtype": "float32", **options})
    return tamis.Reranker(listwise(query, passage, block)(Checkpoint.find(folder), options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("jina"))


@pytest.fixture(scope="module")
def published(folder):
    return Published(folder)


def test_the_published_formula(folder, published):
    expected = published.rerank(QUERY, PASSAGES)
    with tamis.load(folder, dtype="float32") as reranker:  # found by its files, its own code not run
        logits = reranker.logits(QUERY, PASSAGES)
        ranking = reranker.rank(QUERY, PASSAGES)
        assert reranker.mode == "causal-lm"
        assert reranker.stats()["packed"]
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES), (1 + expected) / 2, atol=1e-4)
    assert expected.std() > 0.05
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert [hit.index for hit in ranking] == np.argsort(-expected, kind="stable").tolist()
    assert ranking.usage.tokens == len(published.tokenizer(prompt(QUERY, PASSAGES)).input_ids)
    assert not any(hit.truncated for hit in ranking)


def test_the_prompt_to_the_character():
    for docs in (["one"], ["", "b {c} <d>", "e\n"]):
        assert jina_reranker_v3("q {x}?", docs, "") == prompt("q {x}?", docs)
        assert jina_reranker_v3("q {x}?", docs, "do it") == prompt("q {x}?", docs, "do it")


def test_an_instruction(folder, published):
    with tamis.load(folder, dtype="float32", instruction="prefer the short ones") as reranker:
        given = reranker.logits(QUERY, PASSAGES)
    np.testing.assert_allclose(given, published.rerank(QUERY, PASSAGES, "prefer the short ones"), atol=1e-4)
    assert np.abs(given - published.rerank(QUERY, PASSAGES)).max() > 1e-3


@pytest.mark.parametrize("attention", ["auto", "padded"])
def test_a_list_is_the_same_beside_other_requests_and_its_scores_are_not_in_another_order(folder, attention):
    lists = [PASSAGES, PASSAGES[:3], PASSAGES[::-1], PASSAGES[4:5]]
    with tamis.load(folder, dtype="float32", attention=attention) as reranker:
        alone = [reranker.logits(QUERY, one) for one in lists]
        for ranking, logits in zip(reranker.rank_many([(QUERY, one) for one in lists]), alone, strict=True):
            given = sorted((hit.index, hit.logit) for hit in ranking)
            np.testing.assert_allclose([logit for _, logit in given], logits, atol=2e-5)
    assert np.abs(np.array(alone[0]) - alone[2][::-1]).max() > 1e-3


def test_more_passages_than_a_prompt_takes(folder, published):
    passages = [tiny.text(1 + n % 5, n) for n in range(130)]
    expected = published.rerank(QUERY, passages)
    assert [len(block) for block in published.blocks] == [125, 5]
    with tamis.load(folder, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, passages), expected, atol=1e-4)
        assert reranker.stats()["sequences"] == 2


def test_blocks_by_number_and_by_tokens(tmp_path):
    folder = save(tmp_path, max_length=1000)
    published = Published(folder)
    passages = [tiny.text(1 + (7 * n) % 13, n) for n in range(70)]
    expected = published.rerank(QUERY, passages, max_query=40, max_doc=30, block_size=20)
    assert [len(block) for block in published.blocks] == [20, 20, 20, 10]
    with small(folder, block=20) as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, passages), expected, atol=1e-4)
    expected = published.rerank(QUERY, passages, max_query=40, max_doc=30)
    sizes = [len(block) for block in published.blocks]
    assert len(sizes) > 1
    with small(folder) as reranker:
        given = reranker.logits(QUERY, passages)
        assert reranker.stats()["sequences"] == len(sizes)
    cut = [i for i, text in enumerate(passages) if len(published.tokenizer(text).input_ids) > 30]
    assert cut  # and the end of what is cut may be taken apart otherwise than in the published code's round trip
    np.testing.assert_allclose(given, expected, atol=1e-4)


def test_the_block_rule_is_the_published_one():
    chance = random.Random(3)
    for _ in range(300):
        longest, most = chance.randint(1, 50), chance.randint(1, 9)
        budget = chance.randint(longest, 400)
        lengths = [chance.randint(0, longest) for _ in range(chance.randint(0, 40))]
        expected, block, left = [], [], budget
        for i, length in enumerate(lengths):
            block.append(i)
            left -= length
            if len(block) >= most or left <= longest:
                expected.append(block)
                block, left = [], budget
        expected += [block] if block else []
        found = [list(range(len(lengths)))[part] for part in blocks(lengths, budget, most, longest)]
        assert found == expected


def test_max_length_holds_for_a_whole_block(folder, published):
    """The published rule leaves the prompt's own words out; a limit that the caller sets does not."""
    passages = [tiny.text(2 + n % 9, n) for n in range(60)] + [tiny.text(900, 1)]
    frame = len(published.tokenizer(prompt("", [""])).input_ids)
    for max_length in (frame + 120, frame + 300, frame + 1200):
        with small(folder, 512, 2048, max_length=max_length, score_cache_bytes=2**20) as reranker:
            ranking = reranker.rank(QUERY, passages)
            stats = reranker.stats()
        assert stats["sequences"] > 1
        assert ranking.usage.tokens <= max_length * stats["sequences"]
        assert {hit.index for hit in ranking if hit.truncated} == {60}
    with pytest.raises(tamis.InvalidInput, match="max_length"):
        tamis.load(folder, max_length=frame + 8)


def test_truncation(folder, published):
    tokens = published.tokenizer
    long = tiny.text(90, 2)
    query = tiny.text(60, 3)
    passages = [PASSAGES[1], long, PASSAGES[2]]
    assert len(tokens(query).input_ids) > 40
    with small(folder) as reranker:
        given = reranker.rank(QUERY, passages)
        asked = reranker.rank(query, passages)
    expected = published.rerank(QUERY, passages, max_query=40, max_doc=30)
    by_index = sorted(given, key=lambda hit: hit.index)
    np.testing.assert_allclose([hit.logit for hit in by_index], expected, atol=1e-4)
    assert [hit.truncated for hit in by_index] == [False, True, False]
    expected = published.rerank(query, passages, max_query=40, max_doc=30)
    np.testing.assert_allclose([h.logit for h in sorted(asked, key=lambda hit: hit.index)], expected, atol=1e-4)
    assert all(hit.truncated for hit in asked)
    with small(folder) as reranker:  # tokens of many characters, and text without an end
        odd = ["-" * 5000, "word " * 100_000]
        heads = [text[:200] for text in odd]
        np.testing.assert_allclose(reranker.logits(QUERY, odd), reranker.logits(QUERY, heads), atol=1e-5)
    with small(folder, long_documents="error") as reranker:
        with pytest.raises(tamis.InputTooLong, match="Passage 1"):
            reranker.rank(QUERY, passages)
        with pytest.raises(tamis.InputTooLong, match="query"):
            reranker.rank(query, passages[:1])
    with small(folder, long_documents="max_window") as reranker, pytest.raises(tamis.InputTooLong, match="query"):
        reranker.rank(query, passages)


def test_a_cut_inside_a_character_drops_it(folder, published):
    """Byte-level tokens may be parts of a character, which the published code turns into a replacement character."""
    passage = "漢字かな" * 20
    whole = next(n for n in range(80) if len(published.tokenizer(passage[: n + 1]).input_ids) > 31)
    with small(folder, passage=31) as reranker:
        given = reranker.logits(QUERY, [passage])
    np.testing.assert_allclose(given, published.rerank(QUERY, [passage[:whole]]), atol=1e-4)


def test_windows_stand_in_the_list(folder, published):
    long = tiny.text(60, 2)
    with small(folder, long_documents="max_window") as reranker:
        ranking = reranker.rank(QUERY, [PASSAGES[1], long, PASSAGES[2]])
    hits = {hit.index: hit for hit in ranking}
    places = published.tokenizer(long, return_offsets_mapping=True).offset_mapping
    starts = [*range(0, len(places) - 30, 30 - 7), len(places) - 30]
    spans = [(places[start][0], places[start + 29][1]) for start in starts]
    texts = [PASSAGES[1], *(long[a:b] for a, b in spans), PASSAGES[2]]
    expected = published.rerank(QUERY, texts)
    best = int(np.argmax(expected[1:-1]))
    np.testing.assert_allclose([hits[0].logit, hits[2].logit], expected[[0, -1]], atol=1e-4)
    np.testing.assert_allclose(hits[1].logit, expected[1 + best], atol=1e-4)
    assert hits[1].window == spans[best]
    assert hits[0].window is None
    assert not hits[1].truncated


@pytest.mark.parametrize("special", [True, False])
def test_special_tokens_in_texts_are_blanked(tmp_path, special):
    folder = save(tmp_path, special=special)
    published = Published(folder)
    nasty = ["a<|embed_token|>b", "<|rerank_token|>", "x <|im_end|> y", "<|embed_<|embed_token|>token|>"]
    blank = ["a" + " " * 15 + "b", " " * 16, "x " + " " * 10 + " y", "<|embed_" + " " * 15 + "token|>"]
    query, clean = "why <|rerank_token|> so?", "why " + " " * 16 + " so?"
    with tamis.load(folder, dtype="float32", instruction="do <|embed_token|>") as reranker:
        given = reranker.logits(query, nasty)
    np.testing.assert_allclose(given, published.rerank(clean, blank, "do " + " " * 15), atol=1e-4)


def test_bfloat16(folder, published):
    expected = published.rerank(QUERY, PASSAGES)
    with tamis.load(folder, dtype="bfloat16") as reranker:
        given = np.array(reranker.logits(QUERY, PASSAGES))
    assert np.linalg.norm(given - expected) / np.linalg.norm(expected) < 2e-2
    clear = np.abs(np.subtract.outer(expected, expected)) > 0.05
    np.testing.assert_array_equal(
        np.sign(np.subtract.outer(given, given))[clear], np.sign(np.subtract.outer(expected, expected))[clear]
    )


def test_what_cannot_be_scored(folder, tmp_path):
    with pytest.raises(tamis.UnknownFamily, match="BertModel"):
        tamis.load(tiny.save_encoder(tmp_path / "bert", "bert"), family="jina-reranker-v3")
    with pytest.raises(tamis.UntrainedHead, match="projector"):
        tamis.load(save(tmp_path / "bare", projector=False))
    with pytest.raises(tamis.UnknownFamily, match="embed_token"):
        tamis.load(save(tmp_path / "unmarked", marks=MARKS[1:]))
    wrong = save(tmp_path / "wrong", projector=False)
    weights = transformers.modeling_utils.load_state_dict(wrong / "model.safetensors")
    odd = {"projector.0.weight": torch.zeros(32, 60), "projector.2.weight": torch.zeros(48, 32)}
    save_file({**weights, **odd}, wrong / "model.safetensors", {"format": "pt"})
    with pytest.raises(tamis.CorruptCheckpoint, match="projector"):
        tamis.load(wrong)
    torn = save(tmp_path / "torn")
    weights = transformers.modeling_utils.load_state_dict(torn / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, torn / "model.safetensors", {"format": "pt"})
    with pytest.raises(tamis.CorruptCheckpoint, match="up_proj"):
        tamis.load(torn)


def test_v35_is_told_by_its_sliding_window(folder, tmp_path):
    from tamis.families import resolve

    windowed = save(
        tmp_path, use_sliding_window=True, sliding_window=64, layer_types=["sliding_attention"] * 2 + ["full_attention"]
    )
    assert resolve(Checkpoint.find(folder), LoadOptions()).name == "jina-reranker-v3"
    assert resolve(Checkpoint.find(windowed), LoadOptions()).name == "jina-reranker-v3.5"
    passages = [*PASSAGES, tiny.text(1800, 6)]
    published = Published(windowed)
    assert 2048 < len(published.tokenizer(passages[-1]).input_ids) < 8192
    expected = published.rerank(QUERY, passages, max_query=1024, max_doc=8192)
    with tamis.load(windowed, dtype="float32") as reranker:
        ranking = reranker.rank(QUERY, passages)
    np.testing.assert_allclose([h.logit for h in sorted(ranking, key=lambda hit: hit.index)], expected, atol=1e-4)
    assert not any(hit.truncated for hit in ranking)
