"""The bodies of requests, checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from lmlab.endpoints.server.errors import ApiError
from lmlab.errors import did_you_mean

_MOST_SAMPLES = 128  # OpenAI's bound
_MOST_TOP = 20  # OpenAI's bound
_MOST_PROMPTS = 256  # of one request; more would hold up everybody else's
_MOST_INPUTS = 2048  # OpenAI's bound of `/v1/embeddings`
_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
TokenId = Annotated[int, Field(ge=0)]
Zero = Annotated[float, Field(ge=0, le=0)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(_Body):
    """`include_usage`: the last event of the stream counts tokens."""

    include_usage: bool = False
    include_obfuscation: bool = False  # what is sent has no padding in either case


class JsonSchema(_Body):
    """A JSON schema by a name; `strict` changes nothing, as every schema is kept to."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    """Plain text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("the type json_schema, and no other, needs 'json_schema'")
        return self


class Function(_Body):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body):
    """A tool, which is a function."""

    type: Literal["function"]
    function: Function


class FunctionName(_Body):
    """A function by its name."""

    name: str


class ToolChoice(_Body):
    """The function that has to be called."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(_Body):
    """A call: the arguments are JSON as text."""

    name: str
    arguments: str


class ToolCall(_Body):
    """A call that an earlier answer was."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class _Asked(_Body):
    """What every request has: the model's name, and what clients send that means nothing here."""

    model: str
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None


class _Sampling(_Asked):
    """What both kinds of generating requests have; `top_k`, `min_p` and `repetition_penalty` are not OpenAI's, but
    other servers take them too. `context` names vectors that the server holds, to be read before the prompt.
    """

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: PositiveInt | None = None
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    n: int | None = Field(default=None, ge=1, le=_MOST_SAMPLES)
    context: str | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=1024)] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings; empty ones say nothing."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(string for string in given if string)


class TextPart(_Body):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """One turn of a conversation."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """With its content as one text, and what tools have to do with it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        found: dict[str, Any] = {"role": self.role, "content": content}
        if self.tool_calls:
            found["tool_calls"] = [call.model_dump(exclude_none=True) for call in self.tool_calls]
        return found | ({"tool_call_id": self.tool_call_id} if self.role == "tool" and self.tool_call_id else {})


class ChatBody(_Sampling):
    """Of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=_MOST_TOP)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def several_calls(self) -> bool:
        """Whether an answer may be more than one call: as the protocol has it, unless that is refused."""
        return self.parallel_tool_calls is not False


class CompletionBody(_Sampling):
    """Of `/v1/completions`: a text or token ids, or several of them."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    max_tokens: NonNegativeInt | None = None
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=_MOST_TOP)
    best_of: int | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several.

        Raises:
            ApiError: there are too many or none.
        """
        return _several(self.prompt, "prompt", _MOST_PROMPTS)


class EmbeddingBody(_Asked):
    """Of `/v1/embeddings`: a text or token ids, or several of them. `input_type` is not OpenAI's: it says whether texts
    are queries or documents, for encoders that tell them apart.
    """

    input: str | list[str] | list[TokenId] | list[list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: PositiveInt | None = None
    input_type: Literal["query", "document"] | None = None

    def inputs(self) -> list[str | list[int]]:
        """The inputs, one or several.

        Raises:
            ApiError: there are too many or none.
        """
        return _several(self.input, "input", _MOST_INPUTS)


def _several(given: Any, name: str, most: int) -> list[str | list[int]]:
    """One or several texts or lists of ids as a list."""
    several = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
    found: list[str | list[int]] = given if several else [given]
    if len(found) > most:
        raise ApiError(400, f"'{name}' has {len(found)} {name}s; a request may have {most}.", param=name)
    return found


B = TypeVar("B", bound=_Asked)
_ONLY_ZERO = ("presence_penalty", "frequency_penalty")  # what clients send by default, and no more
# How pydantic calls the alternatives of a field within the place of an error; they are no part of the body.
_ALTERNATIVES = ("list[", "constrained-", "function-", "literal[", "ToolChoice")


def parse(kind: type[B], content: bytes) -> B:
    """Read a body.

    Raises:
        ApiError: it is not JSON, or not what the protocol asks for.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or not part.startswith(_ALTERNATIVES))
    if first["type"] == "json_invalid":
        raise ApiError(400, "The body is not valid JSON.", "invalid_json")
    if place in _ONLY_ZERO and first["type"] in ("greater_than_equal", "less_than_equal"):
        raise ApiError(400, f"'{place}' is not supported by this server, but for 0.", "unsupported_parameter", place)
    if first["type"] == "extra_forbidden":
        known = [name for name in kind.model_fields if name not in _IGNORED]
        remedy = did_you_mean(place, known) if "." not in place else ""
        raise ApiError(
            400, f"'{place}' is not supported by this server. {remedy}".strip(), "unsupported_parameter", place
        )
    raise ApiError(400, f"'{place or 'body'}': {first['msg']}.", "invalid_value", place or None)
