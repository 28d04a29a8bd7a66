"""`RankRAGLLM`: texts, conversations and streams as LlamaIndex wants them, and what it dumps."""

import asyncio
import copy
import gc
import pickle
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.prompts import PromptTemplate
from packaging.version import Version

import tamis
from llama_index.postprocessor.tamis import RankRAGLLM
from standstill import watched
from tamis.rankrag.prompts import Wording

LONG = 1000  # tokens; the tiny model goes on that far
ASKED = "how do I read a zip archive"
TALK = [
    ChatMessage(role="system", content="You know archives."),
    ChatMessage(role="user", content="What is a tar file?"),
    ChatMessage(role="assistant", content="An archive."),
    ChatMessage(role="user", content=ASKED),
]
PAIRS = [(message.role.value, message.content) for message in TALK]


@pytest.fixture
def llm(rag):
    return RankRAGLLM(rag=rag, max_new_tokens=12)


@pytest.fixture(params=["sync", "async"])
def call(request):
    """`call(llm, "chat", ...)`, or its asynchronous twin; a list if it streams."""

    async def later(llm, name, *args, **kwargs):
        result = await getattr(llm, f"a{name}")(*args, **kwargs)
        return [response async for response in result] if name.startswith("stream") else result

    def run(llm, name, *args, **kwargs):
        if request.param == "async":
            return asyncio.run(later(llm, name, *args, **kwargs))
        result = getattr(llm, name)(*args, **kwargs)
        return list(result) if name.startswith("stream") else result

    return run


def test_complete(call, llm, rag):
    asked = rag.complete([("user", ASKED)], max_new_tokens=12)
    response = call(llm, "complete", ASKED)
    assert response.text == asked.text != ""
    usage = {"prompt_tokens": asked.usage.prompt_tokens, "completion_tokens": asked.usage.completion_tokens}
    assert response.raw == {"usage": usage}
    assert call(llm, "complete", ASKED, formatted=True).text == rag.complete(ASKED, max_new_tokens=12).text
    short = call(llm, "complete", ASKED, max_new_tokens=2)
    assert short.raw["usage"]["completion_tokens"] == 2
    assert call(llm, "complete", ASKED, stop=[asked.text[3]]).text == asked.text[: asked.text.index(asked.text[3])]
    with pytest.raises(tamis.InvalidInput, match="stop=None; pass a list"):
        call(llm, "complete", ASKED, stop=None)


def test_chat(call, llm, rag):
    asked = rag.complete(PAIRS, max_new_tokens=12)
    response = call(llm, "chat", TALK)
    assert (response.message.role, response.message.content) == (MessageRole.ASSISTANT, asked.text)
    assert response.message.additional_kwargs == {}
    assert response.raw["usage"]["prompt_tokens"] == asked.usage.prompt_tokens


@pytest.mark.parametrize("what", ["complete", "chat"])
def test_streams(call, llm, what):
    given = ASKED if what == "complete" else TALK
    whole = call(llm, what, given)
    responses = call(llm, f"stream_{what}", given)
    assert len(responses) > 5
    assert "".join(response.delta for response in responses) == str(whole).removeprefix("assistant: ")
    texts = [str(response).removeprefix("assistant: ") for response in responses]
    assert all(b.startswith(a) for a, b in pairwise(texts))
    assert (texts[-1], responses[-1].delta) == (str(whole).removeprefix("assistant: "), "")
    assert [response.raw for response in responses[:-1]] == [None] * (len(responses) - 1)
    assert responses[-1].raw == whole.raw


def test_the_chat_template_words_a_conversation(rag, tiny_llama):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    messages = [{"role": role, "content": text} for role, text in PAIRS]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    llm = RankRAGLLM(rag=rag, max_new_tokens=8)
    assert llm.chat(TALK).message.content == llm.complete(text, formatted=True).text.strip()
    usage = llm.chat(TALK).raw["usage"]
    assert usage["prompt_tokens"] == len(tokenizer(text)["input_ids"])


def test_roles(llm):
    told = [ChatMessage(role="developer", content="Be brief."), ChatMessage(role="tool", content="42")]
    same = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="42")]
    assert llm.chat(told).message.content == llm.chat(same).message.content


def test_prompts_of_the_callers_own(rag):
    def worded(messages):
        return " / ".join(message.content for message in messages)

    llm = RankRAGLLM(rag=rag, max_new_tokens=6, messages_to_prompt=worded, completion_to_prompt=str.upper)
    assert llm.chat(TALK[1:]).message.content == rag.complete(worded(TALK[1:]), max_new_tokens=6).text
    assert llm.complete(ASKED).text == rag.complete(ASKED.upper(), max_new_tokens=6).text


def test_predict(rag):
    llm = RankRAGLLM(rag=rag, max_new_tokens=6, system_prompt="You know archives.")
    asked = rag.complete([("system", "You know archives."), ("user", f"Say: {ASKED}")], max_new_tokens=6).text
    prompt = PromptTemplate("Say: {what}")
    assert llm.predict(prompt, what=ASKED) == asyncio.run(llm.apredict(prompt, what=ASKED)) == asked
    assert llm.complete(f"Say: {ASKED}").text == asked
    assert "".join(llm.stream(prompt, what=ASKED)) == asked


def test_bad_calls(call, llm):
    with pytest.raises(tamis.InvalidInput, match="not temperature"):
        call(llm, "complete", ASKED, temperature=1.0)
    with pytest.raises(tamis.InvalidInput, match="no message"):
        call(llm, "chat", [])
    with pytest.raises(tamis.InvalidInput, match="prompt is empty"):
        call(llm, "complete", "", formatted=True)
    picture = ChatMessage(role="user", blocks=[TextBlock(text="See"), ImageBlock(image=b"x")])
    with pytest.raises(tamis.InvalidInput, match="Message 0 has a ImageBlock"):
        call(llm, "stream_chat", [picture])
    with pytest.raises(tamis.InputTooLong, match="reads and writes 8192"):
        call(llm, "complete", "zip " * 9000)
    with pytest.raises(tamis.ModelNotFound):
        call(RankRAGLLM(model="/no/such/folder"), "stream_complete", ASKED)
    with pytest.raises(tamis.DeadlineExceeded):
        call(llm, "stream_complete", ASKED, timeout=0.001)


# -- going away ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["acomplete", "achat", "astream_complete", "astream_chat"])
async def test_cancelling_ends_the_text(llm, idle, what):
    given = ASKED if what.endswith("complete") else TALK
    before = await idle()

    async def read():
        result = await getattr(llm, what)(given, max_new_tokens=LONG)
        if what.startswith("astream"):
            async for _ in result:
                pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    del reading
    gc.collect()
    assert await idle() - before < LONG / 2
    assert (await llm.acomplete(ASKED)).text


@pytest.mark.parametrize("what", ["stream_complete", "stream_chat"])
async def test_leaving_a_stream_ends_the_text(llm, idle, what):
    given = ASKED if what.endswith("complete") else TALK
    before = await idle()
    for _ in getattr(llm, what)(given, max_new_tokens=LONG):
        break
    stream = await getattr(llm, f"a{what}")(given, max_new_tokens=LONG)
    async for _ in stream:
        break
    await stream.aclose()
    del stream
    gc.collect()
    assert await idle() - before < LONG / 2


async def test_async_methods_block_no_loop_and_share_batches(llm, slow):
    rag = slow(0.1)  # a call that blocked would hold the loop for four batches
    before = rag.stats()["batches"]

    async def streamed():
        return [piece.delta async for piece in await llm.astream_chat(TALK, max_new_tokens=4)]

    async with watched() as seen:
        texts = await asyncio.gather(
            *(llm.acomplete(f"{ASKED} {i}", max_new_tokens=4) for i in range(4)),
            *(llm.achat(TALK, max_new_tokens=4) for _ in range(2)),
            *(streamed() for _ in range(2)),
        )
    assert seen.held() < 0.25
    assert len(texts) == 8
    assert "".join(texts[-1]) == texts[4].message.content
    assert rag.stats()["batches"] - before < 8 * 4 / 2


# -- what tracing sees -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["complete", "chat", "stream_complete", "stream_chat"])
def test_events(call, rag, events, what):
    counter = TokenCountingHandler()
    llm = RankRAGLLM(rag=rag, max_new_tokens=4, callback_manager=CallbackManager([counter]))
    call(llm, what, TALK if what.endswith("chat") else ASKED)
    kind = "LLMChat" if what.endswith("chat") else "LLMCompletion"
    start, end = events.named(
        "LLMChatStartEvent", "LLMChatEndEvent", "LLMCompletionStartEvent", "LLMCompletionEndEvent"
    )
    assert (start.class_name(), end.class_name()) == (f"{kind}StartEvent", f"{kind}EndEvent")
    assert start.span_id == end.span_id
    if Version(version("llama-index-core")) > Version("0.14.18"):  # before, LlamaIndex left a model's metadata out
        assert start.model_dict["model_name"] == rag.model
        assert start.model_dict["context_window"] == 8192
    assert bool(events.named(f"{kind}InProgressEvent")) == what.startswith("stream")
    assert counter.completion_llm_token_count == 4


# -- fields, loading, copies ---------------------------------------------------------------------------------------


def test_metadata(rag, tiny_llama):
    llm = RankRAGLLM(rag=rag, max_new_tokens=7)
    assert llm.metadata.context_window == 8192
    assert (llm.metadata.num_output, llm.metadata.is_chat_model, llm.metadata.model_name) == (7, True, rag.model)
    assert llm.to_payload().items() <= {**llm.metadata.model_dump(), "class_name": "RankRAGLLM"}.items()
    unloaded = RankRAGLLM(model="/no/such/folder", max_length=512)
    assert unloaded.metadata.context_window == 512
    assert "context_window" not in RankRAGLLM(model="/no/such/folder").to_payload()
    with pytest.raises(tamis.ModelNotFound):
        _ = RankRAGLLM(model="/no/such/folder").metadata
    assert RankRAGLLM(model=tiny_llama, dtype="float32").metadata.context_window == 8192


async def test_aload(rag, tiny_llama):
    llm = RankRAGLLM(model=tiny_llama, dtype="float32")
    loaded = await asyncio.gather(*(llm.aload() for _ in range(5)), llm.model_copy().aload())
    assert len(set(map(id, loaded))) == 1
    assert llm.load() is loaded[0]
    assert await RankRAGLLM(rag=rag).aload() is rag


RESTORED = {
    "pickle": lambda llm: pickle.loads(pickle.dumps(llm)),
    "dict": lambda llm: RankRAGLLM.from_dict(llm.to_dict()),
    "json": lambda llm: RankRAGLLM.from_json(llm.to_json()),
    "model_dump_json": lambda llm: RankRAGLLM.model_validate_json(llm.model_dump_json()),
    "exclude_unset": lambda llm: RankRAGLLM(**llm.model_dump(exclude_unset=True)),
    "exclude_defaults": lambda llm: RankRAGLLM(**llm.model_dump(exclude_defaults=True)),
}
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda llm: llm.model_copy(),
    "model_copy deep": lambda llm: llm.model_copy(deep=True),
}


@pytest.mark.parametrize("restore", RESTORED.values(), ids=RESTORED)
def test_restored(restore, tiny_llama, caplog):
    wording = Wording(turn="Q: {text}\n", reply="A: {text}\n", closing="A:", stop=("\n",))
    llm = RankRAGLLM(
        model=Path(tiny_llama), dtype="float32", wording=wording, task="claim", max_new_tokens=5, stop=["x"],
        max_length=512, passage_bytes=1 << 20, system_prompt="Be brief.",
    )  # fmt: skip
    twin = restore(llm)
    assert twin.to_dict() == llm.to_dict()
    assert (twin.wording, twin.stop, twin.task) == (wording, ("x",), "claim")
    assert twin.complete(ASKED).text == llm.complete(ASKED).text
    assert restore(RankRAGLLM()).to_dict() == RankRAGLLM().to_dict()
    # Random weights may say neither label, of which a load warns.
    assert not [record for record in caplog.records if record.name != "tamis.rankrag.labels"]


@pytest.mark.parametrize("restore", RESTORED.values(), ids=RESTORED)
def test_restored_without_its_rag(restore, llm, rag, tiny_llama):
    twin = restore(restore(llm))
    assert twin.rag is None
    with pytest.raises(tamis.InvalidInput, match="restored from a dump or a pickle"):
        twin.complete(ASKED)
    with pytest.raises(tamis.InvalidInput, match="restored from a dump or a pickle"):
        asyncio.run(twin.acomplete(ASKED))
    twin.rag = rag
    assert twin.complete(ASKED).text == llm.complete(ASKED).text
    assert llm.rag is rag, "the original lost what its pickle cannot hold"
    named = restore(RankRAGLLM(rag=rag, model=tiny_llama, dtype="float32", max_new_tokens=12))
    assert named.complete(ASKED).text == llm.complete(ASKED).text


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_share_what_is_loaded(duplicate, llm, rag, tiny_llama, callbacks):
    llm.callback_manager = CallbackManager([callbacks])
    twin = duplicate(llm)
    assert twin.rag is rag
    assert twin.callback_manager.handlers == [callbacks]
    twin.max_new_tokens = 1
    assert llm.max_new_tokens == 12
    named = RankRAGLLM(model=tiny_llama, dtype="float32")
    assert duplicate(named).load() is named.load()


def test_assigned_fields_count(llm, tiny_llama):
    llm.max_new_tokens = 2
    assert llm.complete(ASKED).raw["usage"]["completion_tokens"] == 2
    named = RankRAGLLM(model="/no/such/folder")
    named.model, named.dtype = tiny_llama, "float32"
    assert named.complete(ASKED, max_new_tokens=1).text is not None
    with pytest.raises(ValueError, match="style"):
        llm.style = "loud"


@pytest.mark.parametrize(
    "wrong",
    [
        {"modle": "x"},
        {"style": "loud"},
        {"relevance": "odds"},
        {"task": "songs"},
        {"dtype": "float31"},
        {"passage_bytes": -1},
        {"max_length": 3},
        {"max_new_tokens": 0},
        {"stop": "x"},
        {"stop": [""]},
        {"stop": None},
        {"timeout": 0},
        {"timeout": True},
        {"timeout": float("inf")},
        {"rag": "x"},
    ],
    ids=str,
)
def test_bad_fields(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RankRAGLLM(**wrong)
