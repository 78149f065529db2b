"""What clients send, field by field. A field that is not here is refused by name; one that is here is honoured.

The names and meanings are OpenAI's where it has them, vLLM's for further sampling parameters and structured
outputs, llama.cpp's for ``reasoning_format``, and Hasten's own for ``speculation``, ``provenance``, ``priority`` and ``deadline``.
Ranges of sampling parameters are checked by ``SamplingParams``; here are those that belong to an interface, under its own names.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from hasten.core.config import MOST_NODES, SpeculationParams
from hasten.core.errors import InvalidRequest
from hasten.core.types import SamplingParams
from hasten.serve.errors import invalid, unsupported
from hasten.serve.limits import Limits

MOST_TOKENS = 2**31 - 1
MOST_NAME = 128  # characters of a function's name: Anthropic's length; OpenAI has half of it


def _between(low: float, high: float, number: str) -> Any:
    """A range whose refusal names both its ends."""

    def check(value: float) -> float:
        if not low <= value <= high:
            said = {"number": number, "low": f"{low:g}", "high": str(high), "given": repr(value)[:40]}
            raise PydanticCustomError("range", "must be a {number} from {low} to {high}, not {given}", said)
        return value

    return AfterValidator(check)


TemplateValue = str | int | float | bool
Priority = Literal["interactive", "batch"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high"]  # taken and without effect: no model here has levels between which to choose
Name = Annotated[str, Field(min_length=1, max_length=256)]
Identifier = Annotated[str, Field(max_length=512)]
FunctionName = Annotated[str, Field(pattern=rf"^[A-Za-z0-9_.-]{{1,{MOST_NAME}}}$")]
Temperature = Annotated[float, _between(0, 2, "number"), Field(json_schema_extra={"minimum": 0, "maximum": 2})]
AnthropicTemperature = Annotated[float, _between(0, 1, "number"), Field(json_schema_extra={"minimum": 0, "maximum": 1})]
Length = Annotated[int, _between(1, MOST_TOKENS, "whole number"), Field(json_schema_extra={"minimum": 1, "maximum": MOST_TOKENS})]


def _at_the_first_mistake(schema: Any) -> Any:
    """A core schema whose lists and objects are refused at their first mistake: a client's million wrong entries would be a million
    complaints."""
    if isinstance(schema, dict):
        for value in schema.values():
            _at_the_first_mistake(value)
        if schema.get("type") in ("list", "dict"):
            schema["fail_fast"] = True
    elif isinstance(schema, list | tuple):
        for value in schema:
            _at_the_first_mistake(value)
    return schema


class Wire(BaseModel):
    """Base of everything that comes in: no coercion between types, no unknown names; null leaves out what may be left out. Of lists
    the first mistake is told. ``elsewhere``: names that the interface has and this server has not, of which null holds as well."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)
    elsewhere: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        found: CoreSchema = _at_the_first_mistake(handler(source))
        return found

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, value: Any) -> Any:
        if not isinstance(value, dict) or None not in value.values():
            return value
        optional = {field.alias or name for name, field in cls.model_fields.items() if not field.is_required()} | cls.elsewhere
        return {name: given for name, given in value.items() if given is not None or name not in optional}


class Speculation(Wire):
    """How one request is drafted for; never changes its text."""

    mode: Literal["auto", "off", "on"] = "auto"
    nodes: Annotated[int, Field(ge=0, le=MOST_NODES)] = MOST_NODES


class StreamOptions(Wire):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class JsonSchema(Wire):
    name: Annotated[str, Field(max_length=64)] = "answer"
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Wire):
    """Exactly one of these."""

    json_: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    regex: Annotated[str, Field(max_length=16384)] | None = None
    choice: Annotated[list[Annotated[str, Field(min_length=1, max_length=4096)]], Field(min_length=1, max_length=1024)] | None = (
        None
    )
    grammar: Annotated[str, Field(max_length=65536)] | None = None


class TextPart(Wire):
    type: Literal["text"]
    text: str


class Prediction(Wire):
    type: Literal["content"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Sampled(Wire):
    """Fields that every way of generating shares."""

    model: Name | None = None
    temperature: Temperature | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    speculation: Literal["auto", "off", "on"] | Speculation | None = None
    provenance: bool = False
    priority: Priority = "interactive"
    deadline: Annotated[float, Field(gt=0, le=86400)] | None = None
    user: Identifier | None = None  # accepted and not used: they have no effect on an answer
    metadata: Annotated[dict[str, str], Field(max_length=64)] | None = None

    @property
    def speculation_params(self) -> SpeculationParams:
        if self.speculation is None:
            return SpeculationParams()
        if isinstance(self.speculation, str):
            return SpeculationParams(self.speculation)
        return SpeculationParams(self.speculation.mode, self.speculation.nodes)


class ToolFunction(Wire):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Wire):
    type: Literal["function"]
    function: ToolFunction


class NamedFunction(Wire):
    name: str


class NamedTool(Wire):
    type: Literal["function"]
    function: NamedFunction


class AllowedFunctions(Wire):
    mode: Literal["auto", "required"]
    tools: Annotated[list[Tool], Field(min_length=1)]


class AllowedTools(Wire):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedFunctions


class ChatRequest(Sampled):
    """``/v1/chat/completions``."""

    elsewhere = frozenset(
        {
            "audio",
            "function_call",
            "functions",
            "moderation",
            "prompt_cache_options",
            "prompt_cache_retention",
            "web_search_options",
        }
    )

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)]
    max_tokens: Length | None = None
    max_completion_tokens: Length | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    prediction: Prediction | None = None
    reasoning_effort: Effort | None = None  # "none" is honoured; no model here has levels between which to choose
    verbosity: Verbosity | None = None
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None  # llama.cpp's names; "none" leaves thoughts in the content
    chat_template_kwargs: Annotated[dict[str, TemplateValue], Field(max_length=16)] | None = None
    store: bool | None = None
    service_tier: str | None = None
    modalities: list[str] | None = None
    safety_identifier: Identifier | None = None
    prompt_cache_key: Identifier | None = None

    @property
    def length(self) -> str:
        """The field that says how long an answer may be."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def with_allowed_tools(self) -> ChatRequest:
        """The same request with only those tools that its choice allows, so that no other is shown, called or read. Raises ApiError
        (400) where one is allowed that there is not."""
        if not isinstance(self.tool_choice, AllowedTools):
            return self
        choice = self.tool_choice.allowed_tools
        allowed = {tool.function.name for tool in choice.tools}
        kept = [tool for tool in self.tools or [] if tool.function.name in allowed]
        missing = allowed - {tool.function.name for tool in kept}
        if missing:
            raise invalid(f"tool_choice allows the function {min(missing)!r}, which is not among the tools.", "tool_choice")
        return self.model_copy(update={"tools": kept, "tool_choice": choice.mode})

    def check_supported(self) -> None:
        """Raise ApiError for values that OpenAI's service knows and this server does not."""
        if self.store:
            raise unsupported("store", "is not supported: this server keeps no answers; leave it out or send false")
        if self.service_tier not in (None, "auto", "default"):
            raise unsupported("service_tier", "has to be auto or default here")
        if self.modalities not in (None, ["text"]):
            raise unsupported("modalities", 'has to be ["text"]: this server answers in text')
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise invalid("Give max_tokens or max_completion_tokens, not both.", "max_completion_tokens")


class CompletionRequest(Sampled):
    """``/v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Length | None = None
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
    prediction: Prediction | None = None
    return_token_ids: bool = False

    def check_supported(self) -> None:
        """Raise ApiError for values that OpenAI's service knows and this server does not."""
        if self.suffix:
            raise unsupported("suffix")
        if self.best_of not in (None, self.n or 1):
            raise unsupported("best_of", "has to be equal to n here")
        if self.echo and self.logprobs is not None:
            raise unsupported("logprobs", "together with echo is not supported: a prompt's log-probabilities are not computed")

    def output_limit(self, limits: Limits) -> int:
        """``max_tokens``; left out, OpenAI's 16, or what this server allows where that is less."""
        return min(16, limits.max_output_tokens or 16) if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)  # type: ignore[arg-type]


def sampling_params(
    wire: Sampled, limits: Limits, max_tokens: int | None, logprobs: int | None, length: str = "max_tokens"
) -> SamplingParams:
    """The engine's parameters; those left out are as OpenAI has them, temperature 1 among them. ``length`` is the client's name of
    ``max_tokens``. Raises ApiError (400)."""
    check_range("n", wire.n, 1, limits.max_n)
    check_range("logprobs", logprobs, 0, limits.max_logprobs)
    stop = [wire.stop] if isinstance(wire.stop, str) else wire.stop or []
    if len(stop) > limits.max_stop:
        raise invalid(f"A request takes at most {limits.max_stop} stop strings here, not {len(stop)}.", "stop")
    if any(len(text) > limits.max_stop_length for text in stop):
        raise invalid(f"A stop string has at most {limits.max_stop_length} characters here.", "stop")
    if len(wire.stop_token_ids or []) > 1024:
        raise invalid("stop_token_ids takes at most 1024 entries.", "stop_token_ids")
    named = {
        "temperature": 1.0 if wire.temperature is None else wire.temperature,
        "top_p": wire.top_p,
        "top_k": 0 if wire.top_k == -1 else wire.top_k,  # vLLM's way of saying "no limit"
        "min_p": wire.min_p,
        "repetition_penalty": wire.repetition_penalty,
        "presence_penalty": wire.presence_penalty,
        "frequency_penalty": wire.frequency_penalty,
        "logit_bias": _logit_bias(wire.logit_bias or {}, limits),
        "stop": tuple(stop),
        "stop_token_ids": tuple(wire.stop_token_ids or ()),
        "ignore_eos": wire.ignore_eos,
        "seed": None if wire.seed is None else wire.seed % 2**64 if -(2**63) <= wire.seed < 2**64 else wire.seed,
        "n": wire.n,
    }
    try:
        return SamplingParams(
            **{name: value for name, value in named.items() if value is not None},  # type: ignore[arg-type]
            max_tokens=_output_limit(max_tokens, limits, length),
            logprobs=logprobs,
        )
    except InvalidRequest as problem:
        blamed = set(re.findall(r"\w+", str(problem).split(" must be ")[0])) & {*named, "max_tokens", "logprobs"}
        raise invalid(str(problem), min(blamed, default=None)) from None


def _output_limit(asked: int | None, limits: Limits, name: str) -> int | None:
    most = limits.max_output_tokens
    if asked is None or not most:
        return asked if asked is not None else most or None
    if asked > most:
        raise invalid(f"An answer has at most {most} tokens here, not {asked}.", name)
    return asked


def check_range(name: str, value: int | None, low: int, high: int) -> None:
    """Raise ApiError (400) where a whole number is out of what this server allows."""
    if value is not None and not low <= value <= high:
        raise invalid(f"{name} must be a whole number from {low} to {high} here, not {repr(value)[:40]}.", name)


def _logit_bias(bias: dict[str, float], limits: Limits) -> dict[int, float]:
    if len(bias) > limits.max_logit_bias:
        raise invalid(f"logit_bias takes at most {limits.max_logit_bias} entries here, not {len(bias)}.", "logit_bias")
    out: dict[int, float] = {}
    for token, value in bias.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise invalid(f"logit_bias is keyed by token ids, not {token[:40]!r}.", "logit_bias")
        out[int(token)] = value
    return out
