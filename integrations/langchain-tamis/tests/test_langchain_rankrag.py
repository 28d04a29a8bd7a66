"""What `RankRAG` returns, however it is called, and what it refuses."""

import inspect
import json
import math

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import Runnable
from pydantic import ValidationError

import tamis
from langchain_tamis import RankRAG
from langchain_tamis.rankrag import CALL, RankRAGOutput


def make(rag, **options):
    return RankRAG(rag=rag, **{"max_new_tokens": 8, **options})


def test_is_a_runnable():
    assert issubclass(RankRAG, Runnable)
    assert RankRAG().get_name() == "RankRAG"
    assert RankRAG(name="answer").get_name() == "answer"


def test_fields_are_the_arguments_of_load_rankrag_and_answer(rag):
    of_load = {name: p.default for name, p in inspect.signature(tamis.load_rankrag).parameters.items()}
    of_answer = {name: p.default for name, p in inspect.signature(type(rag)._check).parameters.items()}
    for name in ("self", "question", "passages", "history"):
        del of_answer[name]
    assert sorted(CALL) == sorted([*of_answer, "timeout"])
    own = {"name": None, "rag": None, "needs_rag": False, "timeout": None, "extras": ()}
    fields = {name: field.default for name, field in RankRAG.model_fields.items()}
    assert fields == {**of_load, **of_answer, **own}


async def test_every_way_to_call_says_what_the_model_says(rag, asked, texts):
    expected = rag.answer(asked["input"], texts, top_k=2, max_new_tokens=8)
    assert expected.text
    runnable = make(rag, top_k=2)
    whole = None
    async for chunk in runnable.astream(asked):
        whole = chunk if whole is None else whole + chunk
    for output in (
        runnable.invoke(asked),
        await runnable.ainvoke(asked),
        runnable.batch([asked])[0],
        (await runnable.abatch([asked]))[0],
        sum(runnable.stream(asked), {}),
        whole,
    ):
        assert output["answer"] == expected.text
        assert type(output["answer"]) is str
        assert [document.page_content for document in output["context"]] == [
            hit.passage.text for hit in expected.contexts
        ]
        assert [document.metadata["relevance_score"] for document in output["context"]] == pytest.approx(
            [hit.score for hit in expected.contexts], rel=1e-4
        )
        assert set(output) == {"answer", "context"}


async def test_batches_keep_their_order(rag, asked):
    runnable = make(rag)
    inputs = [{**asked, "input": f"{n} zip files?"} for n in range(9)]
    alone = [runnable.invoke(one)["answer"] for one in inputs]
    assert len(set(alone)) > 1
    assert [output["answer"] for output in runnable.batch(inputs)] == alone
    assert [output["answer"] for output in await runnable.abatch(inputs)] == alone
    assert [output["answer"] for output in runnable.batch(inputs, {"max_concurrency": 1})] == alone
    assert runnable.batch([]) == []


@pytest.mark.parametrize("native", [False, True])
async def test_batches_share_the_models_steps(rag, asked, native):
    runnable = make(rag, max_new_tokens=16)
    inputs = [{**asked, "input": f"{n} archives?"} for n in range(10)]

    def batches():
        return rag.stats()["batches"]

    start = batches()
    for one in inputs:
        runnable.invoke(one)
    in_turn = batches() - start
    start = batches()
    if native:
        await runnable.abatch(inputs)
    else:
        runnable.batch(inputs)
    assert batches() - start < in_turn / 2


async def test_one_bad_input_of_a_batch(rag, asked):
    runnable = make(rag)
    inputs = [asked, {**asked, "input": " "}, asked]
    for outputs in (
        runnable.batch(inputs, return_exceptions=True),
        await runnable.abatch(inputs, return_exceptions=True),
    ):
        assert [type(output) for output in outputs] == [dict, tamis.InvalidInput, dict]
    with pytest.raises(tamis.InvalidInput):
        runnable.batch(inputs)


def test_best_first_as_copies_with_scores(rag, asked):
    before = [document.model_copy(deep=True) for document in asked["context"]]
    output = make(rag).invoke(asked)
    scores = [document.metadata["relevance_score"] for document in output["context"]]
    assert scores == sorted(scores, reverse=True)
    assert {type(score) for score in scores} == {float}
    assert sorted(document.id for document in output["context"]) == ["0", "1", "2"]
    assert all(document.metadata["page"] == int(document.id) for document in output["context"])
    assert asked["context"] == before
    assert not any(copy is document for copy in output["context"] for document in asked["context"])
    assert not any(copy.metadata is document.metadata for copy in output["context"] for document in asked["context"])
    json.dumps([document.model_dump() for document in output["context"]])
    assert "not_implemented" not in dumps(output)


def test_texts_instead_of_documents_and_a_subclass(rag, texts):
    class Page(Document):
        number: int

    page = Page(page_content="a page", number=7)
    output = make(rag).invoke({"input": "zip?", "context": (page, *texts)})
    assert {type(document) for document in output["context"]} == {Document, Page}
    assert {document.page_content for document in output["context"]} == {"a page", *texts}
    same = make(rag).invoke({"input": "zip?", "context": iter([page, *texts])})
    assert same["answer"] == output["answer"]


def test_other_keys_are_left_alone(rag, asked, alike):
    given = {**asked, "user": "me", "chat_history": None}
    assert alike(make(rag).invoke(given), make(rag).invoke(asked))
    assert set(given) == {"input", "context", "user", "chat_history"}


async def test_nothing_to_read(rag):
    runnable = make(rag, extras=["found", "ranking"])
    computed = rag.stats()["tokens_computed"]
    nothing = {"answer": "", "context": [], "found": False, "ranking": []}
    given = {"input": "anything?", "context": []}
    assert runnable.invoke(given) == await runnable.ainvoke(given) == sum(runnable.stream(given), {}) == nothing
    assert rag.stats()["tokens_computed"] == computed


async def test_nothing_good_enough(rag, asked, alike):
    runnable = make(rag, min_score=0.99)
    assert runnable.invoke(asked) == await runnable.ainvoke(asked) == {"answer": "", "context": []}
    chunks = list(runnable.stream(asked))
    assert chunks == [{"context": []}, {"answer": ""}]
    anyway = make(rag, min_score=0.99, answer_anyway=True).invoke(asked)
    assert alike(anyway, make(rag).invoke(asked))
    assert make(rag, min_score=0.99, extras=["ranking"]).invoke(asked)["ranking"] == []


def test_extras(rag, asked, alike):
    output = make(rag, top_k=1, extras=("found", "ranking")).invoke(asked)
    assert set(output) == RankRAGOutput.__annotations__.keys()
    assert output["found"] is True
    assert len(output["context"]) == 1
    assert len(output["ranking"]) == 3
    assert output["ranking"][:1] == output["context"]
    assert set(make(rag, extras=["found"]).invoke(asked)) == {"answer", "context", "found"}
    assert alike(sum(make(rag, top_k=1, extras=("found", "ranking")).stream(asked), {}), output)


def test_fields_of_a_call(rag, asked, texts):
    long = rag.answer(asked["input"], texts, max_new_tokens=30).text
    ends = make(rag, max_new_tokens=30, stop=[" &"]).invoke(asked)["answer"]
    assert " &" in long
    assert ends == long.partition(" &")[0].strip()
    claim = rag.answer(asked["input"], texts, task="claim").text
    assert RankRAG(rag=rag, task="claim").invoke(asked)["answer"] == claim
    bound = make(rag).bind(task="claim", max_new_tokens=None, top_k=1)
    assert len(bound.invoke(asked)["context"]) == 1
    assert bound.invoke(asked)["answer"] == rag.answer(asked["input"], texts, task="claim", top_k=1).text
    with pytest.raises(tamis.InvalidInput, match=r"top_k, .*not temperature"):
        make(rag).bind(temperature=1).invoke(asked)


async def test_timeout(rag, asked, idle):
    runnable = make(rag, timeout=0.05, max_new_tokens=1000)
    with pytest.raises(tamis.DeadlineExceeded):
        runnable.invoke(asked)
    with pytest.raises(tamis.DeadlineExceeded):
        await runnable.ainvoke(asked)
    with pytest.raises(tamis.DeadlineExceeded):
        list(runnable.stream(asked))
    with pytest.raises(tamis.DeadlineExceeded):
        async for _ in runnable.astream(asked):
            pass
    await idle()


# -- conversations ---------------------------------------------------------------------------------------------------

TURNS = [("user", "What is a zip archive?"), ("assistant", "A file with files.")]
HISTORIES = [
    [HumanMessage(TURNS[0][1]), AIMessage(TURNS[1][1])],
    [("human", TURNS[0][1]), ("ai", TURNS[1][1])],
    [("user", TURNS[0][1]), ("assistant", TURNS[1][1])],
    ({"role": "user", "content": TURNS[0][1]}, {"type": "ai", "content": TURNS[1][1]}),
    [
        HumanMessage([{"type": "text", "text": TURNS[0][1]}]),
        AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": TURNS[1][1]}]),
    ],
]


@pytest.mark.parametrize("history", HISTORIES)
async def test_chat_history(rag, asked, texts, history):
    expected = rag.answer(asked["input"], texts, history=TURNS, max_new_tokens=8)
    assert expected.text != rag.answer(asked["input"], texts, max_new_tokens=8).text
    given = {**asked, "chat_history": history}
    assert make(rag).invoke(given)["answer"] == expected.text
    assert (await make(rag).ainvoke(given))["answer"] == expected.text
    assert sum(make(rag).stream(given), {})["answer"] == expected.text


def test_an_empty_chat_history_is_none(rag, asked, alike):
    assert alike(make(rag).invoke({**asked, "chat_history": []}), make(rag).invoke(asked))


CALLED = AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}])


@pytest.mark.parametrize(
    "history, message",
    [
        ("who are you?", "chat_history is a str; pass a list of HumanMessage"),
        ({"role": "user", "content": "q"}, "chat_history is a dict"),
        (HumanMessage("q"), "chat_history is a HumanMessage"),
        (["q"], r"chat_history\[0\] is 'q'; pass a HumanMessage"),
        ([5], r"chat_history\[0\] is 5; pass a HumanMessage"),
        ([("human", "q", "?")], r"chat_history\[0\] is \('human', 'q', '\?'\)"),
        ([("robot", "q")], r"chat_history\[0\] is \('robot', 'q'\)"),
        ([{"role": "user"}], r"chat_history\[0\] is {'role': 'user'}"),
        ([("human", 5)], r"chat_history\[0\] is \('human', 5\)"),
        ([SystemMessage("be kind")], r"chat_history\[0\] is a SystemMessage; a RankRAG model reads"),
        ([HumanMessage("q"), ToolMessage("r", tool_call_id="1")], r"chat_history\[1\] is a ToolMessage"),
        ([HumanMessage("q"), CALLED], r"chat_history\[1\] is an AIMessage with tool calls"),
        ([HumanMessage([{"type": "image_url", "image_url": {"url": "u"}}])], r"chat_history\[0\] holds image_url"),
        ([HumanMessage("q")], "ends with the user's turn"),
        ([AIMessage("a"), HumanMessage("q")], "'user' is due"),
    ],
)
async def test_other_histories_are_refused(rag, asked, history, message):
    with pytest.raises(tamis.InvalidInput, match=message):
        make(rag).invoke({**asked, "chat_history": history})
    with pytest.raises(tamis.InvalidInput, match=message):
        await make(rag).ainvoke({**asked, "chat_history": history})


# -- what is refused ---------------------------------------------------------------------------------------------------

INPUTS = [
    ("a question", 'given a str; pass a dict with "input"'),
    (None, "given a NoneType"),
    ({"context": []}, "it needs 'input', the question"),
    ({"input": "q", "documents": []}, r"given \['documents', 'input'\]; it needs 'context'"),
    ({"input": HumanMessage("q"), "context": []}, '"input" is a HumanMessage; pass the question as a str'),
    ({"input": "q", "context": "a text"}, '"context" is a str; pass a list'),
    ({"input": "q", "context": Document("a")}, '"context" is a Document'),
    ({"input": "q", "context": None}, '"context" is a NoneType'),
    ({"input": "q", "context": ["a", 5]}, r"context\[1\] is a int"),
    ({"input": " \n", "context": ["a"]}, "query is empty"),
]


@pytest.mark.parametrize("given, message", INPUTS)
async def test_wrong_input_is_refused_however_it_comes(rag, given, message):
    runnable = make(rag)
    with pytest.raises(tamis.InvalidInput, match=message):
        runnable.invoke(given)
    with pytest.raises(tamis.InvalidInput, match=message):
        await runnable.ainvoke(given)
    with pytest.raises(tamis.InvalidInput, match=message):
        list(runnable.stream(given))
    with pytest.raises(tamis.InvalidInput, match=message):
        async for _ in runnable.astream(given):
            pass


@pytest.mark.parametrize(
    "wrong",
    [
        {"topk": 3},
        {"top_k": 0},
        {"top_k": True},
        {"top_k": None},
        {"min_score": 1.5},
        {"min_score": math.nan},
        {"task": "poem"},
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"stop": "end"},
        {"stop": ["end", ""]},
        {"timeout": 0},
        {"extras": ["score"]},
        {"style": "paper"},
        {"relevance": "rank"},
        {"max_length": 1},
        {"dtype": "int4"},
        {"device": ["cuda:0", "cuda:1"]},
        {"long_documents": "drop"},
        {"passage_bytes": -1},
        {"disk_bytes": True},
        {"wording": "Question: {question}"},
        {"rag": "a model's name"},
    ],
)
def test_refused_at_construction_and_on_assignment(wrong):
    with pytest.raises(ValidationError):
        RankRAG(**wrong)
    runnable = RankRAG()
    before = runnable.model_dump()
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError):
        setattr(runnable, name, value)
    assert runnable.model_dump() == before


def test_a_reranker_is_no_rag(reranker):
    with pytest.raises(ValidationError, match=r"rag= is a Reranker; pass what tamis\.load_rankrag"):
        RankRAG(rag=reranker)


def test_schemas():
    assert set(RankRAG().get_input_jsonschema()["$defs"]["RankRAGInput"]["required"]) == {"input", "context"}
    assert set(RankRAG().get_output_jsonschema()["$defs"]["RankRAGOutput"]["required"]) == {"answer", "context"}
