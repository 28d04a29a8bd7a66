"""The bodies of requests. They are made for a server's limits, so that its schema tells them.

What a vendor's client sends beside these fields is ignored, as vendors ignore each other's; images are refused.
"""

# Annotations are values here: pydantic reads them, and they name what is made inside a function.

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from tamis.rankrag.prompts import TASKS
from tamis_ray.web.limits import Limits

NOT_BLANK = (  # what str.strip leaves: JSON Schema's own \s is another set
    r"[^\t\n\x0b\x0c\r\x1c-\x1f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
)


def _asks_something(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; send the question that the passages should answer")
    return text


def _whole(number: Any) -> Any:
    """JSON has one kind of number: 3.0 is 3."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


class Lenient(BaseModel):
    """Takes no wrong type for a right one, and ignores fields that it does not know."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Exact(BaseModel):
    """Refuses fields that it does not know: they would change what is scored."""

    model_config = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True)
class Shapes:
    """The request bodies of one server."""

    rerank: Any
    tei: Any
    nim: Any
    answer: Any


def shapes(limits: Limits) -> Shapes:
    """The request bodies under some limits."""
    Text = Annotated[str, StringConstraints(max_length=limits.characters)]  # noqa: N806
    Question = Annotated[  # noqa: N806
        str,
        StringConstraints(min_length=1, max_length=limits.characters),
        AfterValidator(_asks_something),
        Field(json_schema_extra={"pattern": NOT_BLANK}),
    ]
    Name = Annotated[str, StringConstraints(max_length=500)]  # noqa: N806
    Count = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_whole)]  # noqa: N806
    CountOrAll = Annotated[  # noqa: N806
        int, Field(ge=0, le=2**31 - 1), BeforeValidator(_whole), AfterValidator(lambda count: count or None)
    ]
    many = Field(max_length=limits.passages)

    class Document(Lenient):
        """A document with its text; what else it has is ignored."""

        text: Text

    class RerankRequest(Lenient):
        """Cohere's and Jina's shape, and vLLM's."""

        query: Question
        documents: Annotated[list[Text | Document], many]
        model: Name | None = None
        top_n: CountOrAll | None = Field(None, description="All of them if null, or 0 as vLLM has it.")
        return_documents: bool | None = False
        use_activation: bool | None = Field(True, description="vLLM: false gives logits; /v1/rerank only.")

    class TeiRequest(Lenient):
        """text-embeddings-inference's shape."""

        query: Question
        texts: Annotated[list[Text], many]
        raw_scores: bool | None = False
        return_text: bool | None = False
        truncate: bool | None = Field(True, description="Whether a long text may be cut; null is true.")
        truncation_direction: Literal["right", "Right"] | None = "Right"

    class NimQuery(Exact):
        """A question."""

        text: Question

    class NimPassage(Exact):
        """A passage; images are refused."""

        text: Text

    class NimRequest(Lenient):
        """NVIDIA NIM's shape."""

        query: NimQuery
        passages: Annotated[list[NimPassage], many]
        model: Name | None = None
        truncate: Literal["NONE", "END"] | None = Field("NONE", description="NONE refuses a passage that is too long.")

    class Exchange(Exact):
        """What was said before: a question and its answer."""

        user: Text
        assistant: Text

    class AnswerRequest(Exact):
        """A question to a RankRAG model, and the passages to answer it from."""

        question: Question
        passages: Annotated[list[Text | Document], many]
        model: Name | None = None
        top_k: Count = 5
        min_score: Annotated[float, Field(ge=0, le=1)] | None = None
        answer_anyway: bool = False
        task: Literal[tuple(TASKS)] | None = None  # type: ignore[valid-type]
        history: Annotated[list[Exchange], Field(max_length=64)] = []
        max_new_tokens: Annotated[int, Field(ge=1, le=limits.new_tokens), BeforeValidator(_whole)] | None = None
        stop: Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=100)]], Field(max_length=8)] = []
        stream: bool = Field(False, description="Answer as server-sent events: ranking, piece ..., answer.")

    return Shapes(RerankRequest, TeiRequest, NimRequest, AnswerRequest)


def texts_of(documents: list[Any]) -> list[str]:
    """Their texts, whichever way they were written."""
    return [document if isinstance(document, str) else document.text for document in documents]
