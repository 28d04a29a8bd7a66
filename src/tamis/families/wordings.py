"""The prompts of published rerankers, to the character."""

from __future__ import annotations

from collections.abc import Sequence

from tamis.prompts import Prompt

# NVIDIA's collator and serving code: one string, no space after the colons.
NVIDIA = Prompt(("question:{query} \n \n passage:{passage}",), around="tokenizer")

# FlagEmbedding, FlagLLMReranker and its layerwise sister: five pieces, each tokenised apart.
_BGE = ("A: {query}", "\n", "B: {passage}", "\n")
BGE = Prompt(
    (
        *_BGE,
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing "
        "a prediction of either 'Yes' or 'No'.",
    ),
    around="bos",
)
BGE_LIGHTWEIGHT = Prompt((*_BGE, "Predict whether passage B contains an answer to query A."), around="bos")

# Qwen3-Reranker's card: prefix and suffix apart, the body as one string.
QWEN3 = Prompt(
    (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {passage}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    instruction="Given a web search query, retrieve relevant passages that answer the query",
)

# The mxbai-rerank package: seven pieces, each tokenised apart; an instruction is one piece with the query.
_MXBAI_OPENING = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n"
)
_MXBAI_REST = (
    "\n",
    "document: {passage}",
    "\n",
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:",
    "<|im_end|>\n<|im_start|>assistant\n",
)
MXBAI = Prompt(
    (_MXBAI_OPENING, "query: {query}", *_MXBAI_REST),
    instructed=(_MXBAI_OPENING, "instruction: {instruction}\nquery: {query}", *_MXBAI_REST),
)

# ctxl-rerank-v2's card: one string, the document first; its tokenizers add what they add.
_CTXL = (
    "Check whether a given document contains information helpful to answer the query.\n"
    "<Document> {passage}\n<Query> {query}"
)
CTXL = Prompt((_CTXL + " ??",), instructed=(_CTXL + " {instruction} ??",), around="tokenizer")

# zerank's code: the query is the system's turn and the document the user's, both stripped.
_ZERANK = "<|im_end|>\n<|im_start|>user\n{passage}<|im_end|>\n<|im_start|>assistant\n"
ZERANK = Prompt(
    ("<|im_start|>system\n{query}" + _ZERANK,),
    instructed=("<|im_start|>system\n<query>{query}</query>\n<instruction>{instruction}</instruction>" + _ZERANK,),
    strip=True,
)

# monoT5: one string, and the end of text that the tokenizer adds.
MONOT5 = Prompt(("Query: {query} Document: {passage} Relevant:",), around="tokenizer")

# A chat model that was never trained to rank; the words around these are its own chat template's.
ZERO_SHOT_TASK = "You judge whether a passage answers a query. Answer with one word, yes or no."
ZERO_SHOT_TURN = "Query: {query}\nPassage: {passage}\nDoes the passage answer the query? Answer yes or no."

# jina-reranker-v3's format_docs_prompts_func: one string with all passages. The vectors are read at the two marks.
JINA_PASSAGE_MARK, JINA_QUERY_MARK = "<|embed_token|>", "<|rerank_token|>"
_JINA_OPENING = (
    "<|im_start|>system\nYou are a search relevance expert who can determine a ranking of the passages based on how "
    "relevant they are to the query. If the query is a question, how relevant a passage is depends on how well it "
    "answers the question. If not, try to analyze the intent of the query and assess how well each passage satisfies "
    "the intent. If an instruction is provided, you should follow the instruction when determining the ranking."
    "<|im_end|>\n<|im_start|>user\n"
)


def jina_reranker_v3(query: str, passages: Sequence[str], instruction: str = "") -> str:
    r"""A list of passages in jina-reranker-v3's prompt.

    >>> jina_reranker_v3("q", ["a"]).split("query: q\n")[1].split("<|im_end|>")[0]
    '<passage id="0">\na<|embed_token|>\n</passage>\n<query>\nq<|rerank_token|>\n</query>'
    """
    listed = (f'<passage id="{i}">\n{text}{JINA_PASSAGE_MARK}\n</passage>\n' for i, text in enumerate(passages))
    return "".join(
        (
            _JINA_OPENING,
            f"I will provide you with {len(passages)} passages, each indicated by a numerical identifier. "
            f"Rank the passages based on their relevance to query: {query}\n",
            f"<instruct>\n{instruction}\n</instruct>\n" if instruction else "",
            *listed,
            f"<query>\n{query}{JINA_QUERY_MARK}\n</query>",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        )
    )
