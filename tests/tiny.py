"""Small random models and the parts around them, so that the engine is tested without files or network."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import torch

from hasten.cache.blocks import BlockManager
from hasten.control.controller import Controller
from hasten.control.cost import CostCurve
from hasten.control.step_costs import StepCosts
from hasten.core.types import Batch, SamplingParams, Segment
from hasten.draft.base import Drafter
from hasten.engine.drafting import Drafting
from hasten.engine.engine import Engine
from hasten.engine.requests import Request
from hasten.engine.scheduler import Scheduler
from hasten.model.decoder import Decoder
from hasten.model.description import ModelDescription, RopeScaling
from hasten.model.executor import Executor
from hasten.model.precision import FP64, INT8, Precision
from hasten.model.weights import load_decoder
from hasten.sampling.choose import choose_row
from hasten.sampling.filters import History

VOCABULARY = 61
CPU = torch.device("cpu")

BASE = ModelDescription(
    family="llama",
    vocabulary_size=VOCABULARY,
    hidden_size=48,
    intermediate_size=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    context_length=512,
    norm_eps=1e-6,
    rope_theta=10000.0,
)

DESCRIPTIONS = {
    "llama": BASE,
    "llama3": replace(BASE, rope_scaling=RopeScaling("llama3", 8.0, 64, 1.0, 4.0), tied_head=True),
    "qwen2": replace(BASE, family="qwen2", qkv_bias=True),
    "qwen3": replace(BASE, family="qwen3", qk_norm=True),
    "mistral": replace(BASE, family="mistral", sliding_window=24, sliding=(True, True)),
    "smollm3": replace(BASE, family="smollm3", unrotated=(True, False), tied_head=True),
    "gemma2": replace(
        BASE,
        family="gemma2",
        activation="gelu_tanh",
        post_norms=True,
        sliding_window=16,
        sliding=(True, False),
        embedding_scale=48**0.5,
        tied_head=True,
        attention_softcap=20.0,
        final_softcap=10.0,
    ),
    "gemma3": replace(
        BASE,
        family="gemma3",
        activation="gelu_tanh",
        qk_norm=True,
        post_norms=True,
        sliding_window=16,
        sliding=(True, False),
        local_rope_theta=1000.0,
        embedding_scale=48**0.5,
        tied_head=True,
        attention_softcap=20.0,
        final_softcap=10.0,
    ),
}


@dataclass
class RandomSource:
    """A weight source of seeded random tensors. ``sharpness`` scales the head, so that choices are clear."""

    description: ModelDescription
    seed: int = 0
    sharpness: float = 3.0
    _tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.description
        generator = torch.Generator().manual_seed(self.seed)

        def matrix(name: str, *size: int, scale: float) -> None:
            self._tensors[name] = torch.randn(*size, generator=generator) * scale

        def norm(name: str, size: int) -> None:
            self._tensors[name] = 1.0 + 0.1 * torch.randn(size, generator=generator)

        matrix("embedding", shape.vocabulary_size, shape.hidden_size, scale=1.0)
        if not shape.tied_head:
            matrix("head", shape.vocabulary_size, shape.hidden_size, scale=self.sharpness * shape.hidden_size**-0.5)
        norm("final_norm", shape.hidden_size)
        for index in range(shape.layers):
            base = f"layers.{index}."
            for part, rows, columns in (
                ("q", shape.query_size, shape.hidden_size),
                ("k", shape.kv_size, shape.hidden_size),
                ("v", shape.kv_size, shape.hidden_size),
                ("o", shape.hidden_size, shape.query_size),
                ("gate", shape.intermediate_size, shape.hidden_size),
                ("up", shape.intermediate_size, shape.hidden_size),
                ("down", shape.hidden_size, shape.intermediate_size),
            ):
                matrix(base + part, rows, columns, scale=1.5 * columns**-0.5)
                if part in "qkv" and shape.qkv_bias:
                    matrix(f"{base}{part}_bias", rows, scale=0.3)
            norms = ["attention_norm", "mlp_norm"] + ["post_attention_norm", "post_mlp_norm"] * shape.post_norms
            for name in norms:
                norm(base + name, shape.hidden_size)
            if shape.qk_norm:
                norm(f"{base}q_norm", shape.head_dim)
                norm(f"{base}k_norm", shape.head_dim)

    @property
    def fingerprint(self) -> str:
        return f"random-{self.seed}"

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self._tensors[name][start:stop]


@cache
def tiny_decoder(
    kind: str, precision: Precision, seed: int, perturbed: float, device: torch.device, head_dim: int | None
) -> Decoder:
    """It is weights that nobody writes to: loaded once for all executors of a process."""
    description = DESCRIPTIONS[kind]
    source = RandomSource(replace(description, head_dim=head_dim or description.head_dim), seed)
    if perturbed:
        generator = torch.Generator().manual_seed(seed + 1)
        for name, tensor in source._tensors.items():
            source._tensors[name] = tensor + perturbed * tensor.std() * torch.randn(tensor.shape, generator=generator)
    return load_decoder(source, precision, device, None)


def tiny_executor(
    kind: str = "llama",
    precision: Precision = FP64,
    num_blocks: int = 16,
    seed: int = 0,
    perturbed: float = 0.0,
    device: torch.device = CPU,
    cache: torch.dtype | None = None,
) -> Executor:
    """An executor of a tiny random model. ``perturbed`` adds noise to its weights: a draft that often agrees with it. Heads are as
    wide as the ``cache`` needs."""
    decoder = tiny_decoder(kind, precision, seed, perturbed, device, 64 if cache is torch.int8 else None)
    return Executor(decoder, num_blocks, device, cache)


LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,;:!?\n"


class LetterTokenizer:
    """One letter a token; the last id ends an answer."""

    vocabulary_size = VOCABULARY
    prefix_ids = ()
    bos_token_id = None
    eos_token_ids = (VOCABULARY - 1,)
    special_ids = frozenset({VOCABULARY - 1})
    strips_space = False
    chat_template = None
    vocabulary_fingerprint = "letters"

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def decode(self, tokens: list[int], skip_special: bool = True) -> str:
        return "".join(self.token_text(token) for token in tokens if not (skip_special and token in self.special_ids))

    def token_text(self, token: int) -> str:
        return "<end>" if token in self.special_ids else LETTERS[token]

    def token_bytes(self, token: int) -> bytes:
        return self.token_text(token).encode()


def tiny_engine(
    kind: str = "llama",
    drafters: list[Drafter] | None = None,
    *,
    precision: Precision = FP64,
    num_blocks: int = 24,
    max_rows: int = 64,
    max_sequences: int = 8,
    prefix_cache: bool = True,
    curve: CostCurve | None = None,
    seed: int = 0,
    device: torch.device = CPU,
    cache: torch.dtype | None = None,
    rule: str = "coupled",
) -> Engine:
    """An engine over a tiny random model, with drafters as given. Without a curve the controller verifies all it gets."""
    executor = tiny_executor(kind, precision, num_blocks, seed, device=device, cache=cache)
    blocks = BlockManager(num_blocks, prefix_cache=prefix_cache)
    controller = Controller(StepCosts(curve or FrozenCurve()))
    return Engine(
        executor=executor,
        scheduler=Scheduler(blocks, executor.decoder.description.context_length, max_rows, max_sequences),
        drafting=Drafting(drafters or [], controller, VOCABULARY, rule=rule),
        controller=controller,
        tokenizer=LetterTokenizer(),  # type: ignore[arg-type]
        eos=frozenset(LetterTokenizer.eos_token_ids),
        vocabulary=VOCABULARY,
        max_rows=max_rows,
        model=f"tiny-{kind}",
    )


class FrozenCurve(CostCurve):
    """A cost that is never learnt, so that schedules are the same in every run."""

    def observe(self, rows: int, seconds: float) -> None:
        pass


def damage_logits(engine: Engine, position: int) -> None:
    """From now on no token can be chosen at ``position`` or behind it: the logits there are NaN."""
    forward = engine.executor.forward

    def damaged(batch: Batch) -> torch.Tensor:
        logits = forward(batch).clone()
        rows = iter(range(len(logits)))
        for segment in batch.segments:
            depths = [*range(1 - len(segment.chain), 1), *segment.tree.depths()]
            for depth in depths[segment.first_logit :]:
                row = next(rows)
                if segment.context + len(segment.chain) + depth >= position:
                    logits[row] = torch.nan
        return logits

    engine.executor.forward = damaged  # type: ignore[method-assign]


def run_all(engine: Engine, requests: list[Request]) -> list[list[int]]:
    """Step until all are finished, checking every invariant after each; the output tokens of each first answer."""
    for _ in range(20_000):
        if engine.idle:
            break
        engine.step()
        engine.scheduler.check_integrity()
    assert engine.idle, "the engine does not come to an end"
    assert engine.scheduler.blocks.available == engine.scheduler.blocks.num_blocks, "blocks leak"
    return [request.answers[0].sequence.output for request in requests]


_naive: dict[str, list[int]] = {}


@dataclass(frozen=True)
class Form:
    """Precision of a tiny model and type of its keys and values."""

    precision: Precision = FP64
    cache: torch.dtype | None = None


DOUBLE = Form()
INT8_CACHE = Form(INT8, torch.int8)


def naive_text(
    kind: str,
    prompt: tuple[int, ...],
    params: SamplingParams,
    seed: int = 0,
    form: Form = DOUBLE,
    guess: list[int] | None = None,
) -> list[int]:
    """What the model says by the plainest means: every token is chosen from a whole fresh pass over all tokens before it.

    Remembered, and a ``guess`` saves passes: one pass over prompt and guess chooses every token up to the first that the guess has
    wrong. It never changes the text, for what follows a row changes nothing in it. None guesses by decoding with a cache.
    """
    if params.greedy:  # engines draw a new seed for each request that names none
        params = replace(params, seed=0)
    key = repr((kind, prompt, params, seed, form))
    if key not in _naive:
        if guess is None:
            guess = _cached_text(kind, prompt, params, seed, form)
        _naive[key] = whole_pass_text(kind, prompt, params, seed, form, guess)
    return _naive[key]


def whole_pass_text(
    kind: str, prompt: tuple[int, ...], params: SamplingParams, seed: int, form: Form, guess: list[int]
) -> list[int]:
    """``naive_text``, not remembered; without a guess it is a whole pass for every token."""
    limit = _length_limit(kind, prompt, params)
    output: list[int] = []
    history = History(prompt)
    executor = _plain_executor(kind, form, seed)
    while True:
        known = [*prompt, *output]
        guessed = guess[len(output) : limit - 1 - len(prompt)]
        rows = executor.forward(Batch([Segment(list(range(8)), 0, known + guessed, first_logit=len(known) - 1)]))
        for logits, expected in zip(rows, [*guessed, None], strict=True):
            token = _choose(logits, params, len(prompt) + len(output), history)
            output.append(token)
            if len(prompt) + len(output) >= limit or _ends(token, params):
                return output
            if token != expected:
                break


def _cached_text(kind: str, prompt: tuple[int, ...], params: SamplingParams, seed: int, form: Form) -> list[int]:
    """Token by token with a cache: as a guess."""
    limit = _length_limit(kind, prompt, params)
    executor = _plain_executor(kind, form, seed)
    output: list[int] = []
    history = History(prompt)
    fresh, context = list(prompt), 0
    while True:
        logits = executor.forward(Batch([Segment(list(range(8)), context, fresh, first_logit=len(fresh) - 1)]))[0]
        context += len(fresh)
        fresh = [_choose(logits, params, context, history)]
        output += fresh
        if context + 1 >= limit or _ends(fresh[0], params):
            return output


@cache
def _plain_executor(kind: str, form: Form, seed: int) -> Executor:
    """For passes that begin at position 0, and so read nothing that an earlier one has left."""
    return tiny_executor(kind, form.precision, 8, seed, cache=form.cache)


def _length_limit(kind: str, prompt: tuple[int, ...], params: SamplingParams) -> int:
    return min(DESCRIPTIONS[kind].context_length, len(prompt) + (params.max_tokens or 10**9))


def _choose(logits: torch.Tensor, params: SamplingParams, position: int, history: History) -> int:
    assert params.seed is not None or params.greedy
    token = choose_row(logits, params, params.seed or 0, position, history, vocabulary_size=VOCABULARY)
    history.extend([token])
    return token


def _ends(token: int, params: SamplingParams) -> bool:
    return token in params.stop_token_ids or (token in LetterTokenizer.eos_token_ids and not params.ignore_eos)
