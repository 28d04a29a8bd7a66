"""RankRAG's training data: the paper's five tasks, from collections with answers, in inference's own prompts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import beir
import tamis
import tiny_lm
from tamis.errors import InvalidData, InvalidInput
from tamis.evaluation import bm25_run, read_collection
from tamis.evaluation.rows import Problems
from tamis.rankrag.answers import says_nothing
from tamis.rankrag.labels import ends_of, forms_of
from tamis.rankrag.prompts import NOT_FOUND, PAPER, chat_wording
from tamis.tokenizing import TextTokenizer
from tamis.training.rankrag import Options, examples
from tamis.training.rankrag_chats import collection_chats, read_chats
from tamis.training.rankrag_data import blend
from tamis.training.rankrag_drawing import NOT_THERE
from tamis.training.rankrag_passages import shortened
from tamis.training.rankrag_samples import RATIOS, Mix, Sample, read_back, write_jsonl
from tamis.training.rankrag_tokens import IGNORED, SampleEncoder, end_of_turn
from tamis.training.recipe import DataOptions, Recipe

LONG = " ".join(f"word{i}" for i in range(200)) + " it was begun in the year 1887 and not before " + "x " * 120
PASSAGES = {
    **beir.PASSAGES,
    "tower": "The tower\n" + LONG,
    "copy": "The module csv: rows of a table are read with csv.",
}
QUERIES = {
    **beir.QUERIES,
    "q5": ("when was the tower begun, the word20 one", {"tower": 1}, ["begun in the year 1887"]),
    "q6": ("where is the smallest item", {"heap": 1}, None),
}
CHATS = [[("user", "Hello"), ("assistant", "Hello, too.")], [("user", "Count."), ("assistant", "One, two.")]]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection")
    return read_collection(beir.save_collection(folder, passages=PASSAGES, queries=QUERIES, split="train"), "train")


def blended(collection, seed=0, chats=CHATS, **mix):
    run = bm25_run(collection, top=20)
    return blend([collection], [run], chats, Mix(**{"contexts": 3, **mix}), np.random.default_rng(seed))


def by_kind(made, kind):
    return [sample for sample in made.samples if sample.kind == kind]


def test_the_paper_s_ratios_are_the_default():
    assert sum(RATIOS.values()) == pytest.approx(1.331)  # as the published table sums
    share = RATIOS["sft"] / sum(RATIOS.values()) * 211_200
    assert share == pytest.approx(31_700, rel=0.01)
    assert Mix().ratios == RATIOS


def test_the_blend_has_the_ratios_over_what_has_a_source(collection):
    made = blended(collection, samples=400)
    assert not made.left_out
    for kind, count in made.counts.items():
        assert count == round(400 * RATIOS[kind] / sum(RATIOS.values())), kind
    without = blended(collection, samples=400, chats=[])
    assert without.left_out == {"sft": "no source"}
    total = sum(ratio for kind, ratio in RATIOS.items() if kind != "sft")
    assert without.counts["retrieval_qa"] == round(400 * RATIOS["retrieval_qa"] / total)


def test_ablations_and_the_data_efficiency_curve(collection):
    whole = blended(collection, samples=400)
    tenth = blended(collection, samples=400, ranking_share=0.1)
    assert tenth.counts["ranking"] == round(0.1 * whole.counts["ranking"])
    assert tenth.counts["retrieval_qa"] == whole.counts["retrieval_qa"]
    assert blended(collection, samples=400, ranking_share=0.0).counts["ranking"] == 0
    few = blended(collection, samples=400, ranking_pairs=7).counts
    assert few["ranking"] + few["pseudo_ranking"] == 7
    left = blended(collection, samples=400, leave_out=["ranking", "pseudo_ranking", "retrieval_ranking"])
    assert left.left_out["ranking"] == "asked for"
    assert {sample.kind for sample in left.samples} == {"sft", "context_qa", "retrieval_qa"}


def test_the_same_seed_draws_the_same(collection):
    assert blended(collection, 3, samples=60).samples == blended(collection, 3, samples=60).samples
    assert blended(collection, 3, samples=60).samples != blended(collection, 4, samples=60).samples


def test_context_qa_has_the_passage_that_answers(collection):
    for sample in by_kind(blended(collection, samples=400, passage_words=60), "context_qa"):
        (passage,) = sample.passages
        assert len(passage.split()) <= 60
        if sample.target == NOT_THERE:
            assert sample.question == QUERIES["q4"][0]
            assert passage == PASSAGES["zip"]  # the one that it was asked about
        else:
            assert sample.target in ("zipfile", "csv", "sqlite3", "begun in the year 1887")
            assert sample.target in passage


def test_context_qa_of_several_relevant_passages_has_one_that_holds_the_answer(tmp_path):
    """Of two that are read together; where neither holds a short answer there is nothing to learn."""
    long = "because it was read by " + " and ".join(f"reader{i}" for i in range(10))
    both = {"zip": 1, "tar": 1}
    queries = {
        "one": ("which is the second module", both, ["Tarfile"]),
        "none": ("who wrote them", both, ["Ada"]),
        "yes": ("are both modules", both, ["Yes"]),
        "long": ("why is it read", both, [long]),
    }
    folder = beir.save_collection(tmp_path / "hops", queries=queries, split="train")
    made = by_kind(blended(read_collection(folder, "train"), samples=300, contexts=2), "context_qa")
    read = {target: {one.passages[0] for one in made if one.target == target} for target in ("Tarfile", "Yes", long)}
    assert read["Tarfile"] == {PASSAGES["tar"]}
    assert read["Yes"] == read[long] == {PASSAGES["zip"], PASSAGES["tar"]}
    assert {one.target for one in made} == set(read)


def test_what_cannot_be_answered_is_said_in_words_that_are_recognised(collection):
    assert says_nothing(NOT_THERE, NOT_FOUND)
    made = by_kind(blended(collection, samples=400, unanswerable=0.25), "context_qa")
    share = sum(sample.target == NOT_THERE for sample in made) / len(made)
    assert share == pytest.approx(0.25, abs=0.01)


def test_retrieval_qa_has_exactly_the_contexts_and_the_answer_among_them(collection):
    made = by_kind(blended(collection, samples=600, contexts=3), "retrieval_qa")
    places = Counter()
    for sample in made:
        assert len(set(sample.passages)) == 3
        if sample.question == QUERIES["q1"][0]:
            places[sample.passages.index(PASSAGES["zip"])] += 1
    assert set(places) == {0, 1, 2}  # shuffled


def test_ranking_pairs_are_relevant_or_what_bm25_takes_for_it(collection):
    made = by_kind(blended(collection, samples=900), "ranking")
    said = Counter(sample.target for sample in made)
    assert abs(said["True"] - said["False"]) <= 2
    gold = {text: {PASSAGES[one] for one, grade in judged.items() if grade} for text, judged, _ in QUERIES.values()}
    for sample in made:
        whole = next(text for text in PASSAGES.values() if sample.passages[0] in text)
        assert (whole in gold[sample.question]) == (sample.target == "True")
    read = [sample.passages[0] for sample in made if sample.question == QUERIES["q2"][0] and sample.target == "False"]
    assert PASSAGES["copy"] not in read  # it holds the answer, judged or not
    assert PASSAGES["tar"] in read
    unanswered = {sample.target for sample in made if sample.question == QUERIES["q4"][0]}
    assert unanswered == {"False"}


def test_more_negatives_for_each_positive(collection):
    said = Counter(sample.target for sample in by_kind(blended(collection, samples=900, negatives=3), "ranking"))
    assert said["False"] / said["True"] == pytest.approx(3, rel=0.2)


def test_pseudo_pairs_are_chunks_told_apart_by_the_answer_s_4_grams(collection):
    made = by_kind(blended(collection, samples=900), "pseudo_ranking")
    assert made
    for sample in made:
        assert sample.question == QUERIES["q5"][0]  # the only long document
        assert len(sample.passages[0].split()) <= 150
        assert ("begun in the year 1887" in sample.passages[0]) == (sample.target == "True")


def test_retrieval_ranking_names_the_relevant_passages(collection):
    made = by_kind(blended(collection, samples=2000), "retrieval_ranking")
    for sample in made:
        named = [sample.passages[int(one.removeprefix("Passage ")) - 1] for one in sample.target.split(", ")]
        judged = next(judged for text, judged, _ in QUERIES.values() if text == sample.question)
        gold = {PASSAGES[one] for one, grade in judged.items() if grade}
        assert set(named) == {text for text in sample.passages if any(text in whole for whole in gold)}
    assert any("," in sample.target for sample in made)  # q2 has two


def test_several_questions_about_the_same_contexts(collection):
    alone = by_kind(blended(collection, samples=200, contexts=4), "retrieval_qa")
    shared = by_kind(blended(collection, samples=200, contexts=4, questions=4), "retrieval_qa")
    assert len(alone) == len(shared)
    assert len({sample.passages for sample in shared}) < len({sample.passages for sample in alone})
    for sample in shared:
        if sample.target != NOT_THERE:
            assert any(sample.target.casefold() in text.casefold() for text in sample.passages)


def test_a_claim_is_asked_for_as_one(collection):
    made = blended(collection, samples=200, tasks={collection.name: "claim"})
    assert {sample.task for sample in by_kind(made, "ranking")} == {"claim"}


@pytest.mark.parametrize(
    "wrong", [{"ratios": {"rankin": 1.0}}, {"leave_out": ["qa"]}, {"ratios": {"sft": -1.0}}, {"samples": 0},
              {"contexts": 1}, {"ranking_share": 1.5}, {"unanswerable": -0.1}, {"ratios": {"sft": 0.0}}],
    ids=str,
)  # fmt: skip
def test_a_blend_that_cannot_be(collection, wrong):
    with pytest.raises(InvalidInput):
        blended(collection, **wrong)


def test_samples_survive_a_file(tmp_path, collection):
    made = blended(collection, samples=50).samples
    write_jsonl(made, tmp_path / "rows.jsonl")
    assert tuple(read_back(tmp_path / "rows.jsonl")) == made


def test_limits_are_drawn_with_the_seed_of_collections_and_chats(tmp_path):
    chats = tmp_path / "chats.jsonl"
    said = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"chat {i}"}] for i in range(30)]
    beir.write_jsonl(chats, [{"messages": messages} for messages in said])
    queries = {f"q{i}": (f"which module is number {i}", {"zip": 1}, ["zipfile"]) for i in range(30)}
    folder = beir.save_collection(tmp_path / "set", queries=queries, split="train")
    data = DataOptions((str(folder), str(chats)), limit=4, limits={"chats": 3})

    def found(seed, **options):
        made = examples(Recipe("rankrag", "embedded", tmp_path, data, seed), Options(samples=80, contexts=2, **options))
        asked = {sample.question for sample in made if sample.kind == "context_qa"}
        return asked, {sample.target for sample in made if sample.kind == "sft"}

    first, second = found(1), found(2)
    assert (len(first[0]), len(first[1])) == (len(second[0]), len(second[1])) == (4, 3)
    assert first[0] != second[0]
    assert first[1] != second[1]
    data = DataOptions((str(folder),), limit=4)
    assert len(found(1, sft=(str(chats),))[1]) > 4  # which is none of train


def test_bad_rows_of_all_files_at_once(tmp_path, collection):
    chats = tmp_path / "chats.jsonl"
    hello = {"role": "user", "content": "Hi"}
    wrong = [[hello], [], [hello, {"role": "bot", "content": "x"}]]
    beir.write_jsonl(chats, [{"messages": messages} for messages in wrong])
    folder = beir.save_collection(tmp_path / "bad", passages=PASSAGES, queries=QUERIES, split="train")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tnowhere\t1\n")
    recipe = Recipe("rankrag", "embedded", tmp_path, DataOptions((str(folder),)))
    with pytest.raises(InvalidData) as error:
        examples(recipe, Options(sft=(str(chats),)))
    said = "\n".join(error.value.problems)
    assert all(f"chats.jsonl:{line}:" in said for line in (1, 2, 3))
    assert "train.tsv:2:" in said


def test_chats_end_with_what_is_to_be_learnt(tmp_path):
    path = tmp_path / "chats.jsonl"
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]
    beir.write_jsonl(path, [{"messages": [{"role": role, "content": text} for role, text in turns]}])
    problems = Problems()
    assert read_chats(path, problems) == [tuple(turns[:3])]
    problems.check()


def test_a_collection_s_long_answers_are_chats(collection):
    chats = collection_chats(collection)
    assert (("user", QUERIES["q5"][0]), ("assistant", "begun in the year 1887")) in chats
    assert (("user", QUERIES["q6"][0]), ("assistant", PASSAGES["heap"])) in chats  # the passage is the answer
    assert all(question != QUERIES["q4"][0] for (_, question), _ in chats)


# -- tokens ------------------------------------------------------------------------------------------------------------

STYLES = ["chat", "plain"]
SAMPLES = [
    Sample("ranking", "True", "How is it read?", ("With zipfile {passage}.",)),
    Sample("retrieval_qa", "zipfile", "How is it read?", ("With zipfile.", "A tarfile <|im_end|> is not.", "None")),
    Sample("context_qa", NOT_THERE, "How is it read?", ("With zipfile.",), task="full"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_lm.save(tmp_path_factory.mktemp("model"), "llama", "ForCausalLM", bos=True)


@pytest.fixture(scope="module", params=STYLES)
def rag(request, model):
    with tamis.load_rankrag(model, style=request.param, dtype="float32") as rag:
        yield rag


@pytest.fixture
def encoder(rag):
    loaded = rag._scorer.lease.loaded
    return SampleEncoder(loaded.prompts.wording, loaded.tokenizer, loaded.ends, 2048)


def test_what_is_trained_is_what_is_asked(rag, encoder):
    """The ids before the answer are those that ranking and answering send to the engine."""
    scorer = rag._scorer
    ranked, answered, alone = ([*parts[0], *parts[1]] for parts in map(encoder.parts, SAMPLES))
    pieces, _ = scorer._fitted(SAMPLES[0].passages, 400, 0)
    asked = scorer.prompts.asking(SAMPLES[0].question, "short", ())
    assert ranked == scorer._ranked(pieces[0][1], asked).ids.tolist()
    question = rag._asked(SAMPLES[1].question, SAMPLES[1].passages, {})
    ranking = rag.rank(SAMPLES[1].question, SAMPLES[1].passages)
    best = sorted(ranking, key=lambda hit: hit.index)
    assert answered == rag._prompt(question, best).ids.tolist()
    text = scorer.lease.loaded.tokenizer.decode(alone)
    assert "Passage: With zipfile." in text
    assert "Please give a full and complete answer" in text


def test_the_answer_is_what_inference_reads_and_stops_at(rag, encoder):
    loaded = rag._scorer.lease.loaded
    _, _, said = encoder.parts(SAMPLES[0])
    forms = forms_of(loaded.prompts, loaded.tokenizer, "tiny")
    assert int(said[0]) in [true for true, _ in forms]
    assert int(said[-1]) in loaded.ends
    assert loaded.tokenizer.decode(said.tolist()).strip() == "True"


def test_the_end_of_turn_is_the_chat_template_s():
    text = TextTokenizer(tiny_lm.chat())
    wording = chat_wording(text, "tiny")
    assert end_of_turn(wording, text, [0, text.entry("<|im_end|>")]) == text.entry("<|im_end|>")
    assert end_of_turn(PAPER, text, [0, text.eos_id]) == text.eos_id
    assert end_of_turn(PAPER, text, [0]) == 0
    with pytest.raises(InvalidInput, match="ends a text"):
        end_of_turn(PAPER, text, [])


def test_the_loss_is_on_the_answer_alone(encoder):
    for sample in SAMPLES:
        before, asked, said = encoder.parts(sample)
        (row,) = encoder.rows([sample])
        assert row["input_ids"] == [*before, *asked, *said]
        assert row["labels"] == [IGNORED] * (len(before) + len(asked)) + said.tolist()
        assert row["length"] == sum(row["parts"]) == len(row["input_ids"])


def test_samples_about_the_same_passages_share_a_row(encoder):
    asked = [Sample("ranking", "True", f"question {i}", ("the passage",)) for i in range(5)]
    mixed = [*asked, Sample("context_qa", "a", "what?", ("the passage",)), Sample("ranking", "False", "q", ("other",))]
    rows = encoder.rows(mixed, share=4)
    assert sorted(len(row["parts"]) - 1 for row in rows) == [1, 2, 4]
    apart = encoder.rows(mixed)
    assert len(apart) == len(mixed)
    for rowset in (rows, apart):
        tails = Counter()
        for row in rowset:
            prefix, *sizes = row["parts"]
            at = prefix
            for size in sizes:
                tails[tuple(row["input_ids"][:prefix] + row["input_ids"][at : at + size])] += 1
                at += size
        assert tails == Counter(tuple(row["input_ids"]) for row in apart)
    assert sum(row["length"] for row in rows) < sum(row["length"] for row in apart)


def test_passages_give_way_until_a_sample_fits(rag):
    loaded = rag._scorer.lease.loaded
    encoder = SampleEncoder(loaded.prompts.wording, loaded.tokenizer, loaded.ends, 1400)
    answer = "begun in the year 1887"
    long = Sample("context_qa", answer, "when?", (LONG,))
    (row,) = encoder.rows([long])
    assert row["length"] <= 1400
    assert answer in loaded.tokenizer.decode(row["input_ids"][: row["parts"][0]])
    assert not encoder.rows([Sample("ranking", "True", "why " * 2000, ("short",))])


def test_shortened_keeps_the_part_with_the_answer():
    assert "1887" in shortened(LONG, 40, "the year 1887")
    assert shortened(LONG, 40, "not in there").startswith("word0 word1")
    assert all(len(shortened(LONG, n, "1887").split()) == n for n in (16, 40, 100))


def test_a_chat_has_the_prompt_of_complete(rag, encoder):
    from tamis.rankrag.conversations import prompt_ids

    loaded = rag._scorer.lease.loaded
    messages = (("user", "Hello there"), ("assistant", "Hello."), ("user", "Bye"))
    (row,) = encoder.rows([Sample("sft", "Good bye.", messages=messages)])
    expected = prompt_ids(messages, loaded.prompts.wording, loaded.tokenizer).tolist()
    assert row["input_ids"][: len(expected)] == expected
    assert row["labels"][: len(expected)] == [IGNORED] * len(expected)
    assert ends_of(None, loaded.tokenizer)
