"""The shapes of the OpenAI HTTP API that our model server speaks, and of its two endpoints for scores.

Knows: which fields a request may have and what an answer looks like. Does not know models, sockets or keys. An unknown
field is refused: a setting that is silently ignored is worse than an error.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol, TypeVar

from cafe_kit.errors import CafeError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.served_model import Sampling, Text

MAX_ROWS = 4096  # texts in one request
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_ROWS)]
NewTokens = Annotated[int, Field(ge=1, le=8192)]


class Request(BaseModel):
    """What every request has in common: strict types, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Generation(Request):
    """Sampling, as OpenAI names it; ``user`` is taken and not used, as there."""

    model: str
    n: Annotated[int, Field(ge=1, le=64)] = 1
    max_tokens: NewTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: dict[str, bool] | None = None
    user: str | None = None

    def sampling(self, default_tokens: int) -> Sampling:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(self.max_tokens or default_tokens, self.temperature, self.top_p, stop, self.seed)

    @property
    def wants_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))


class Completion(Generation):
    """POST /v1/completions. Without ``max_tokens`` 16 new tokens, as OpenAI has it."""

    prompt: str | Texts

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @model_validator(mode="after")
    def _few_enough(self) -> Completion:
        if len(self.prompts) * self.n > MAX_ROWS:
            raise ValueError(f"more than {MAX_ROWS} texts in one request")
        return self


class Message(Request):
    role: Literal["system", "user", "assistant"]
    content: str


class Chat(Generation):
    """POST /v1/chat/completions. Without ``max_tokens`` at most 512 new tokens."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_completion_tokens: NewTokens | None = None

    def sampling(self, default_tokens: int) -> Sampling:
        return super().sampling(self.max_completion_tokens or default_tokens)


class LoadAdapter(Request):
    """POST /v1/load_lora_adapter, as vLLM spells it."""

    lora_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$")]
    lora_path: str


class UnloadAdapter(Request):
    """POST /v1/unload_lora_adapter, as vLLM spells it."""

    lora_name: str


class Labels(Request):
    """POST /cafe/label_logprobs: n prompts, k options -> ``{"logprobs": (n, k)}``."""

    model: str
    prompts: Texts
    options: Texts


class Pairs(Request):
    """POST /cafe/answer_losses: n (prompt, answer) -> ``{"losses": (n,), "tokens": (n,)}``."""

    model: str
    pairs: Annotated[list[Annotated[list[str], Field(min_length=2, max_length=2)]], Field(min_length=1, max_length=MAX_ROWS)]


R = TypeVar("R", bound=Request)


def parse(kind: type[R], body: bytes) -> R:
    """The request in a body. CAFE-509 names the field that does not fit, never its value."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise CafeError("CAFE-509", f"The request was refused: '{where}': {first['msg']}.", "Correct the request.") from None


class Shape(Protocol):
    """How one kind of answer is written down."""

    name: str
    chunk_name: str

    def whole(self, text: str) -> dict[str, Any]: ...

    def piece(self, text: str) -> dict[str, Any]: ...


class CompletionShape:
    name = chunk_name = "text_completion"

    def whole(self, text: str) -> dict[str, Any]:
        return {"text": text}

    piece = whole


class ChatShape:
    name, chunk_name = "chat.completion", "chat.completion.chunk"

    def whole(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def piece(self, text: str) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": text}}


class Answer:
    """One answer in the making: whole, or in server-sent events that share its id."""

    def __init__(self, shape: Shape, model: str, prompt_tokens: int) -> None:
        self._shape, self._prompt_tokens = shape, prompt_tokens
        self._head = {"id": f"cafe-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, texts: Sequence[Text]) -> dict[str, Any]:
        choices = [self._choice(row, text.finish, self._shape.whole(text.text)) for row, text in enumerate(texts)]
        return {**self._head, "object": self._shape.name, "choices": choices, "usage": self._usage(texts)}

    def piece(self, row: int, text: str) -> bytes:
        return self._event([self._choice(row, None, self._shape.piece(text))])

    def end(self, texts: Sequence[Text], usage: bool) -> bytes:
        """Why each text ended, the usage if it was asked for, and the mark of the end."""
        events = self._event([self._choice(row, text.finish, self._shape.piece("")) for row, text in enumerate(texts)])
        return events + (self._event([], {"usage": self._usage(texts)}) if usage else b"") + b"data: [DONE]\n\n"

    def _choice(self, row: int, finish: str | None, content: dict[str, Any]) -> dict[str, Any]:
        return {"index": row, "finish_reason": finish, "logprobs": None, **content}

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        return event({**self._head, "object": self._shape.chunk_name, "choices": choices, **(more or {})})

    def _usage(self, texts: Sequence[Text]) -> dict[str, int]:
        new = sum(text.tokens for text in texts)
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": new, "total_tokens": self._prompt_tokens + new}


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n".encode()


def error_body(error: CafeError) -> dict[str, Any]:
    """A refusal as OpenAI writes it, with our code and hint."""
    return {"error": {"message": error.message, "type": "cafe_error", "param": None, "code": error.code, "hint": error.hint}}
