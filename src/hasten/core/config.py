"""Settings of an engine: one frozen dataclass. Flags, environment variables and TOML keys are all read off its fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hasten.core.errors import ConfigError, InvalidRequest
from hasten.core.registry import Spec, nearest, parse_specs
from hasten.core.types import BLOCK_SIZE

PRECISIONS = ("auto", "int8", "int4", "int3", "file", "q4_0", "bf16", "fp32", "fp64")
KV_CACHE_DTYPES = ("auto", "fp32", "fp16", "bf16", "int8")
VERIFY_RULES = ("coupled", "rejection", "block")
CONTROLS = ("auto", "fixed", "goodput", "threshold", "entropy")
MODEL_DRAFTERS = ("lm", "foreign")  # those that need a model of their own
SPECULATION_MODES = ("auto", "off", "on")
DEEPEST_CHAIN = 24
MOST_NODES = 512
GAMMA = 0.2  # AdaEDL's (2410.18351): a draw from a law of entropy H (nats) is accepted with at least 1 - sqrt(GAMMA * H)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine runs. Every default works; nothing here has to be touched.

    ``draft``: "auto", "none" or a spec such as "suffix+lm". ``draft_model`` names the model the lm drafter uses where the
    catalogue names none. ``cache_tokens`` is the size of the key-value pool in positions, rounded up to whole blocks of 64
    (0: chosen from the model's context, at least one full context up to 8192), ``kv_cache_dtype`` the type of its elements ("auto":
    what the precision says; int8 is smaller and rounds). ``max_rows`` bounds the rows of one step (prefill chunks and trees
    together); ``max_sequences`` bounds how many sequences run at once. ``threads=0`` uses every physical core.
    ``context_length=0`` takes the model's own. ``verify`` is the rule by which drafts are checked: "coupled" gives the text of
    plain decoding, "rejection" and "block" accept more and give a text of the same law (see ``sampling.rules``). ``control`` says
    how much is drafted: "auto", or "fixed(k)", "goodput", "threshold" or "entropy" for comparison (see ``control.rules``).
    ``explain`` adds to each answer why every drafter was on or off.

    Raises ConfigError, one sentence, when a value is out of range.
    """

    model: str = "smollm2-135m"
    draft: str = "auto"
    draft_model: str | None = None
    precision: str = "auto"
    kv_cache_dtype: str = "auto"
    device: str = "auto"
    threads: int = 0
    context_length: int = 0
    cache_tokens: int = 0
    max_rows: int = 512
    max_sequences: int = 16
    prefix_cache: bool = True
    verify: str = "coupled"
    control: str = "auto"
    explain: bool = False

    def __post_init__(self) -> None:
        for name in ("model", "draft", "precision", "kv_cache_dtype", "device", "verify", "control"):
            _text(name, getattr(self, name))
        if self.draft_model is not None:
            _text("draft_model", self.draft_model)
        for name in ("prefix_cache", "explain"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, not {getattr(self, name)!r}.")
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        _one_of("verify", self.verify, VERIFY_RULES)
        parse_control(self.control)
        if self.device != "auto" and self.device != "cpu" and not self.device.startswith("cuda"):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, not '{self.device}'.")
        for name, low, high in (
            ("threads", 0, 1024),
            ("context_length", 0, 2**24),
            ("cache_tokens", 0, 2**28),
            ("max_rows", 16, 2**16),
            ("max_sequences", 1, 4096),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {value!r}.")
        if 0 < self.cache_tokens < BLOCK_SIZE:
            raise ConfigError(f"cache_tokens must be at least {BLOCK_SIZE}, or 0 to have it chosen, not {self.cache_tokens}.")

    def model_drafters(self, natural: str | None = None) -> list[Spec]:
        """The drafters with a model of their own, each with the ``model`` that it takes (``model_of``); ``natural`` is the one that
        the catalogue names. Those that find none are left out. Raises ConfigError where ``draft`` is no spec."""
        specs = draft_specs(self.draft)
        names = [spec.name for spec in specs]
        automatic = [Spec("lm")] if "auto" in names and "lm" not in names else []
        found = [*automatic, *(spec for spec in specs if spec.name in MODEL_DRAFTERS)]
        models = [self.model_of(spec, natural) for spec in found]
        return [Spec(spec.name, {**spec.arguments, "model": model}) for spec, model in zip(found, models, strict=True) if model]

    def model_of(self, spec: Spec, natural: str | None) -> str | None:
        """The draft model of one of ``MODEL_DRAFTERS``: the one that its spec names, else ``draft_model``, else ``natural``."""
        model = spec.arguments.get("model") or self.draft_model or natural
        return None if model is None else str(model)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> EngineConfig:
        """Build from names and values; an unknown name is a ConfigError that offers the nearest one."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"There is no setting called '{name}'{nearest(name, known)}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class SpeculationParams:
    """How one request is drafted for; never changes its text. ``mode``: "auto" drafts where it pays, "off" not at all, "on" in
    every round, whatever it costs. ``nodes`` bounds the drafted tokens of a round.

    Raises InvalidRequest, one sentence, when a value is out of range.
    """

    mode: str = "auto"
    nodes: int = MOST_NODES

    def __post_init__(self) -> None:
        if self.mode not in SPECULATION_MODES:
            raise InvalidRequest(f"speculation must be one of {', '.join(SPECULATION_MODES)}, not {self.mode!r}.")
        if not isinstance(self.nodes, int) or isinstance(self.nodes, bool) or not 0 <= self.nodes <= MOST_NODES:
            raise InvalidRequest(f"the nodes of a round must be a whole number from 0 to {MOST_NODES}, not {self.nodes!r}.")


def draft_specs(text: str) -> list[Spec]:
    """The drafters that the setting ``draft`` names; "auto" and "none" are such names. Raises ConfigError where it is no spec, or
    names do not go together."""
    specs = parse_specs(text)
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"The drafter '{name}' is named twice; name each drafter once.")
    if "none" in names and len(names) > 1:
        others = "+".join(str(spec) for spec in specs if spec.name != "none")
        raise ConfigError(f"none stands for plain decoding and goes with no other drafter; give none, or {others}.")
    return specs


def parse_control(text: object) -> tuple[str, int]:
    """The rule's name and, for "fixed(k)", k (else 0). Raises ConfigError when it is none of them."""
    found = re.fullmatch(r"fixed\(([0-9]{1,3})\)", text) if isinstance(text, str) else None
    if found and 1 <= int(found[1]) <= DEEPEST_CHAIN:
        return "fixed", int(found[1])
    if text in CONTROLS and text != "fixed":
        return str(text), 0
    names = ", ".join(name for name in CONTROLS if name != "fixed")
    raise ConfigError(f"control must be one of {names} or fixed(k) with k from 1 to {DEEPEST_CHAIN}, not {text!r}.")


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a text, not {value!r}.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}.")
