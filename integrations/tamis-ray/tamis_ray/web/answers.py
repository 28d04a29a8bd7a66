"""The bodies of answers."""

from __future__ import annotations

from pydantic import BaseModel, Field

from tamis.rankrag.answers import Answer
from tamis.types import Hit


class Text(BaseModel):
    """A text, as it was sent."""

    text: str


class Result(BaseModel):
    """A document's place, best first."""

    index: int = Field(ge=0, description="Where it stood in the request, from 0.")
    relevance_score: float = Field(description="In [0, 1]; a logit with use_activation=false.")
    logit: float = Field(
        description="The model's own value, which the order is made from. Not part of the vendors' API."
    )
    truncated: bool = Field(description="Whether the model read only a part. Not part of the vendors' API.")
    document: Text | None = None


class TokenCount(BaseModel):
    """Tokens that went through the model."""

    total_tokens: int


class Reranked(BaseModel):
    """Jina's answer, vLLM's, and what Cohere's first version had."""

    id: str
    object: str = "list"
    model: str
    usage: TokenCount
    results: list[Result]


class ApiVersion(BaseModel):
    """Which shape this is."""

    version: str = "2"


class BilledUnits(BaseModel):
    """Nothing is billed."""

    search_units: int = 0


class InputTokens(BaseModel):
    """Tokens that went through the model."""

    input_tokens: int
    output_tokens: int = 0


class Meta(BaseModel):
    """What Cohere's clients read beside the results."""

    api_version: ApiVersion = ApiVersion()
    billed_units: BilledUnits = BilledUnits()
    tokens: InputTokens


class CohereReranked(BaseModel):
    """Cohere's answer."""

    id: str
    results: list[Result]
    meta: Meta


class TeiResult(BaseModel):
    """TEI's answer is a list of these, best first."""

    index: int = Field(ge=0)
    score: float
    text: str | None = None


class NimRanking(BaseModel):
    """A passage's logit."""

    index: int = Field(ge=0)
    logit: float


class NimRankings(BaseModel):
    """NIM's answer, best first."""

    rankings: list[NimRanking]
    usage: TokenCount


class ServedModel(BaseModel):
    """A name that requests may have under `model`."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "tamis"


class ServedModels(BaseModel):
    """All of them."""

    object: str = "list"
    data: list[ServedModel]


class Read(BaseModel):
    """A ranked passage of a RankRAG answer."""

    index: int = Field(ge=0)
    score: float = Field(ge=0, le=1)
    logit: float
    truncated: bool
    window: tuple[int, int] | None = None

    @classmethod
    def of(cls, hit: Hit) -> Read:
        """It, from a hit."""
        return cls(index=hit.index, score=hit.score, logit=hit.logit, truncated=hit.truncated, window=hit.window)


class RankRAGUsage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    ranking_tokens: int


class RankRAGAnswer(BaseModel):
    """A whole answer."""

    id: str
    model: str
    answer: str = Field(description="Empty where no passage was good enough.")
    found: bool = Field(description="Whether there is an answer in the passages.")
    contexts: list[Read] = Field(description="What the answer was written from.")
    ranking: list[Read] = Field(description="All that was ranked and kept, best first.")
    usage: RankRAGUsage

    @classmethod
    def of(cls, answer: Answer, id: str, model: str) -> RankRAGAnswer:  # noqa: A002
        """It, from a library's answer."""
        used = answer.usage
        return cls(
            id=id,
            model=model,
            answer=answer.text,
            found=answer.found,
            contexts=[Read.of(hit) for hit in answer.contexts],
            ranking=[Read.of(hit) for hit in answer.ranking],
            usage=RankRAGUsage(
                prompt_tokens=used.prompt_tokens,
                reused_tokens=used.reused_tokens,
                completion_tokens=used.completion_tokens,
                ranking_tokens=used.ranking_tokens,
            ),
        )
