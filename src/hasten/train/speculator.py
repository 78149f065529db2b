"""Training a speculator (``model.speculator``) on what its model says (``recording``).

Nothing but the target is needed: its own head turns the states that it had into the laws that the network should find, so each
token teaches a whole law (distillation, 1503.02531). The network is trained as it is used: from a state of the target it goes on
for some levels from its own states, along the tokens that were said (training-time test, EAGLE-3, 2503.01840, section 3.1), once it
has learnt the first, and later levels count for less. The model's head and embedding stay as they are.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.core.config import EngineConfig
from hasten.core.errors import HastenError, InvalidRequest
from hasten.core.progress import Progress, silent
from hasten.core.replacement import refusal
from hasten.engine.loading import choose_device
from hasten.model import catalogue, storage
from hasten.model.conversion import checksum
from hasten.model.kernels import set_threads, torch_at_work
from hasten.model.linear import rms_norm
from hasten.model.linear_file import choose_precision, file_runs_best
from hasten.model.loaders import open_source
from hasten.model.speculator import EPS, IDS, SpeculatorWeights, load, save, shapes
from hasten.model.weights import Weights
from hasten.train.alone import alone
from hasten.train.checkpoint import PRODUCTS, Checkpoint
from hasten.train.recording import Recording, record

WIDTH, NARROW_WIDTH, ENOUGH = 4 / 3, 4, 2048  # of the gated layer, over the hidden size; a narrow model has more, up to so many
LEVELS = 3
DECAY = 0.8  # what a level counts, over the one above it
FIRST_PASSES, PASSES = 2, 1  # over all that was said: for the first level alone, which takes a third of the time, then for all
FURTHER_PASSES = 2  # of a network that goes on learning, for all levels
BATCH = 512
RATE, WARM_UP, LAST_RATE = 1e-3, 30, 0.05
CLIPPED = 0.5
HELD_OUT = 0.05  # of the answers
FEWEST_TOKENS = 2000
MOST_CHECKED = 4096
ROWS_AT_ONCE = 16384


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was trained and kept, in ``path``; the ``answers`` that it learnt from stay, so that more questions go on from them.
    ``right[k]``: how often the first k + 1 guesses were all what the target would say, on answers that were not trained on, or
    on any where these are too few."""

    name: str
    path: Path
    answers: Path
    tokens: int
    right: list[float]


def train_speculator(config: EngineConfig, questions: int, progress: Progress = silent) -> Outcome:
    """Train a speculator for ``config.model`` on its answers to so many questions of its own, and keep it where loading finds it.
    What earlier calls were answered is kept and learnt from again, and only what is missing is asked; the network that an earlier
    call trained goes on learning, and a training that was interrupted goes on where it was.

    Raises a HastenError, one sentence, when that cannot be.
    """
    resolved = catalogue.resolve(config.model, fetch=True, progress=progress)
    source = open_source(resolved.path)
    path = storage.speculator_path(source.fingerprint)
    folder = path.with_suffix(".answers")
    with alone(path, source.path, "trained for"):
        recording = record(config, folder, questions, progress)
        if len(recording.tokens) < FEWEST_TOKENS:
            raise InvalidRequest(
                f"'{resolved.name}' said {len(recording.tokens)} tokens and at least {FEWEST_TOKENS} are needed; "
                "ask more --questions."
            )
        device = choose_device(config.device)
        set_threads(config.threads, choose_precision(config.precision, device, file_runs_best(source)))
        with torch_at_work():
            shape = source.description
            kept = load(path, source.fingerprint, shape.hidden_size, source.shape("embedding")[0])
            training = Training(recording, source, device, kept)
            checkpoint = Checkpoint(path.with_suffix(".training"), training.key)
            weights, right = training.run(progress, checkpoint)
        try:
            save(weights, path, source.fingerprint)
        except OSError as problem:
            raise HastenError(refusal(path, problem)) from problem
        checkpoint.remove()
    return Outcome(resolved.name, path, folder, len(recording.tokens), right)


class Training:
    """One training: what is learnt from, and what is learnt. It goes on from the network that is ``kept``, unless that has learnt
    from more answers, so perhaps from those that this one checks with. ``seed`` decides everything that is drawn."""

    def __init__(
        self, recording: Recording, source: Weights, device: torch.device, kept: SpeculatorWeights | None = None, seed: int = 0
    ) -> None:
        shape = source.description
        self._eps = shape.norm_eps
        self._device = device
        self._random = torch.Generator().manual_seed(seed)
        self._states = recording.states.to(device)
        said, self._tokens = torch.unique(recording.tokens, return_inverse=True)
        self._tokens = self._tokens.to(device)
        self._embedding = _rows(source, "embedding", said).to(device)
        self.ids = _most_said(recording.tokens, source.shape("embedding")[0])
        head = _rows(source, "embedding" if shape.tied_head else "head", self.ids)
        self._head_norm = source.read("final_norm").to(device, torch.float32)
        self._head = head.to(device)
        self._trained, self._checked = self._split(recording)
        self.weights = self._begin(shape.hidden_size)
        self._begun_from = kept.identity if kept is not None and self._take(kept) else ""

    @cached_property
    def _dtype(self) -> torch.dtype:
        """What is multiplied in, unless an interrupted training has chosen."""
        return torch.bfloat16 if self._device.type == "cuda" else self._fastest()

    @property
    def key(self) -> str:
        """Tells trainings apart that have not the same to learn, or learn it otherwise."""
        states, tokens, ids = (checksum(tensor.cpu().contiguous()) for tensor in (self._states, self._tokens, self.ids))
        shaped = [(name, *weight.shape) for name, weight in self.weights.items()]
        settings = shaped, self._begun_from, len(self._trained), BATCH, RATE, DECAY, self._plan()
        return f"{states:08x}{tokens:08x}{ids:08x}{zlib.crc32(repr(settings).encode()):08x}"

    def run(self, progress: Progress = silent, checkpoint: Checkpoint | None = None) -> tuple[SpeculatorWeights, list[float]]:
        """The trained network, and how often it is right (see ``Outcome``). With a ``checkpoint`` it goes on from that, and in what
        that was multiplied in."""
        levels_of = self._plan()
        steps, work, done = len(levels_of), sum(levels_of), 0
        optimiser = torch.optim.AdamW(self.weights.values(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
        taken, chosen = (0, None) if checkpoint is None else checkpoint.resume(self.weights, optimiser)
        self._dtype = chosen or self._dtype
        for step, (levels, batch) in enumerate(zip(levels_of, self._batches(), strict=False)):
            progress("training", done, work)
            done += levels
            if step < taken:
                continue
            for group in optimiser.param_groups:
                group["lr"] = RATE * rate_at(step, steps)
            loss = self._loss(batch, levels)
            optimiser.zero_grad()
            torch.autograd.backward([loss])
            torch.nn.utils.clip_grad_norm_(self.weights.values(), CLIPPED)
            optimiser.step()
            if checkpoint is not None:
                checkpoint.keep(self.weights, optimiser, step + 1, self._dtype)
        progress("training", work, work)
        tensors = {name: tensor.detach().float().cpu() for name, tensor in self.weights.items()}
        return SpeculatorWeights(tensors, self.ids.numpy(), len(self._trained)), self.check()

    def _plan(self) -> list[int]:
        """How many levels each step is for."""
        steps = max(1, len(self._trained) // BATCH)
        if self._begun_from:
            return [LEVELS] * (FURTHER_PASSES * steps)
        return [1] * (FIRST_PASSES * steps) + [LEVELS] * (PASSES * steps)

    @torch.no_grad()
    def check(self) -> list[float]:
        """How often the first guesses are right on the answers held out."""
        right = torch.zeros(LEVELS, device=self._device)
        for places in torch.split(self._checked, BATCH):
            all_right = torch.ones(len(places), dtype=torch.bool, device=self._device)
            for level, (wanted, logits) in enumerate(self._guesses(places, LEVELS)):
                all_right &= logits.argmax(-1) == wanted.argmax(-1)
                right[level] += all_right.sum()
        return [float(share) for share in right / len(self._checked)]

    def _loss(self, places: Tensor, levels: int) -> Tensor:
        """Of guesses behind the tokens at ``places``: the mean cross-entropy to the target's laws, levels weighted."""
        loss = torch.zeros((), device=self._device)
        for level, (wanted, logits) in enumerate(self._guesses(places, levels)):
            loss = loss + DECAY**level * F.cross_entropy(logits, wanted.softmax(-1))
        return loss

    def _guesses(self, places: Tensor, levels: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Level by level the target's logits behind the tokens at ``places``, and the network's."""
        matrices = self._matrices()
        hidden = self._states[places]
        for level in range(levels):
            with torch.no_grad():
                wanted = self._logits(self._states[places + level + 1], self._head_norm, self._eps)
            hidden = self._level(matrices, hidden, self._embedding[self._tokens[places + level]])
            yield wanted, self._logits(hidden, self.weights["final_norm"], EPS)

    def _matrices(self) -> dict[str, Tensor]:
        """In what is multiplied in."""
        return {name: weight.to(self._dtype) for name, weight in self.weights.items() if weight.dim() == 2}

    def _level(self, matrices: dict[str, Tensor], hidden: Tensor, embedded: Tensor) -> Tensor:
        """``model.speculator.Speculator`` with gradients."""
        norms = self.weights
        hidden = _linear(rms_norm(hidden.float(), norms["state_norm"], EPS), matrices["state"]) + _linear(
            rms_norm(embedded.float(), norms["token_norm"], EPS), matrices["token"]
        )
        gate, up = _linear(rms_norm(hidden, norms["0.norm"], EPS), matrices["0.gate_up"]).chunk(2, dim=-1)
        return hidden + _linear(F.silu(gate) * up, matrices["0.down"])

    def _logits(self, hidden: Tensor, norm: Tensor, eps: float) -> Tensor:
        return _linear(rms_norm(hidden.float(), norm, eps), self._head.to(self._dtype))

    def _begin(self, hidden: int) -> dict[str, Tensor]:
        """Weights that pass the state on as it is."""
        inner = max(round(WIDTH * hidden / 64) * 64, min(ENOUGH, NARROW_WIDTH * hidden))
        out: dict[str, Tensor] = {}
        for name, shape in shapes(hidden, [inner]).items():
            if len(shape) == 1:
                out[name] = torch.ones(shape)
            else:
                out[name] = torch.normal(0.0, 0.02, shape, generator=self._random)
        out["state"] = torch.eye(hidden)
        out["0.down"] /= math.sqrt(2.0)
        out["final_norm"] = self._head_norm.cpu().clone()
        return {name: tensor.to(self._device).requires_grad_() for name, tensor in out.items()}

    def _take(self, kept: SpeculatorWeights) -> bool:
        """Whether the network that is kept is one to go on from; its weights are taken then."""
        if kept.learnt > len(self._trained):
            return False
        if {name: tensor.shape for name, tensor in kept.tensors.items()} != {name: own.shape for name, own in self.weights.items()}:
            return False
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(kept.tensors[name])
        return True

    def _split(self, recording: Recording) -> tuple[Tensor, Tensor]:
        """Places to train on and places to check, of different answers where there are enough."""
        usable = recording.left >= LEVELS
        held_out = sum(recording.lengths[: len(recording.lengths) - round(HELD_OUT * len(recording.lengths))])
        first = torch.arange(len(usable)) < held_out
        trained, checked = (usable & first).nonzero().flatten(), (usable & ~first).nonzero().flatten()
        checked = checked if len(checked) else trained
        chosen = torch.randperm(len(checked), generator=self._random)[:MOST_CHECKED]
        return trained.to(self._device), checked[chosen].to(self._device)

    def _batches(self) -> Iterator[Tensor]:
        """Places to train on, all of them again and again, each time in another order: the same orders in every training."""
        while True:
            order = torch.randperm(len(self._trained), generator=self._random)
            yield from torch.split(self._trained[order.to(self._device)], BATCH)

    def _fastest(self) -> torch.dtype:
        """Processors without bfloat16 products are slower with it."""
        rows, weight = torch.ones(BATCH, self._head.shape[1]), self._head[:2048]
        spent = {dtype: _seconds(partial(F.linear, rows.to(dtype), weight.to(dtype))) for dtype in PRODUCTS.values()}
        return min(spent, key=spent.__getitem__)


def _linear(rows: Tensor, weight: Tensor) -> Tensor:
    return F.linear(rows.to(weight.dtype), weight).float()


def rate_at(step: int, steps: int) -> float:
    """The learning rate of a step over the largest: up in a line, then down a half cosine."""
    warm = min(1.0, (step + 1) / WARM_UP)
    return warm * (LAST_RATE + (1.0 - LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * step / steps)))


def _seconds(work: Callable[[], Tensor]) -> float:
    """The least of a few tries."""
    out = math.inf
    for _ in range(3):
        started = time.perf_counter()
        work()
        out = min(out, time.perf_counter() - started)
    return out


def _most_said(tokens: Tensor, vocabulary: int) -> Tensor:
    """The ids that were said most, ascending; those never said by number."""
    counts = torch.bincount(tokens, minlength=vocabulary)
    return counts.argsort(descending=True, stable=True)[:IDS].sort().values


def _rows(source: Weights, name: str, ids: Tensor) -> Tensor:
    """Rows ``ids`` (ascending) of a matrix, bfloat16, read in bounded pieces."""
    out, total = [], source.shape(name)[0]
    for start in range(0, total, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, total)
        inside = ids[(ids >= start) & (ids < stop)]
        if len(inside):
            piece = source.read(name, start, stop)
            out.append(piece[inside - start].to(torch.bfloat16))
    return torch.cat(out)
