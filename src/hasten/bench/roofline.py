"""What a step must cost: bytes that have to be read, operations that have to be done, and the time that a machine needs for both.

After LLM-Viewer (arXiv:2402.16363): each part takes the longer of reading and computing. Different from it: a causal chunk is
counted as half a square, keys and values by key-value heads, the head is counted, 8-bit speed only where activations are 8-bit too,
and every layer has a fixed cost of its own, measured where the machine is this one. Of a head that Hasten sketches
(docs/exactness.md) a step is taken to read the sketch, as greedy steps of few rows do.

    step = layers x layer_s + max(weights / read_bytes_s, operations / operations_s)
         + cache / cache_bytes_s + attention operations / attention_operations_s

A sum stands for the maximum where a machine does not read while it multiplies, which measuring it tells.

The idealised run time of a request (arXiv:2305.02440) is then its prompt's steps and one step a token, whose cost grows by a little
with each position of context. It is what a machine would take that does nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.bench.hardware import DENSE, INT8, Machine
from hasten.core.errors import ConfigError
from hasten.core.types import BLOCK_SIZE
from hasten.engine.profiling import timed_passes
from hasten.model.description import ModelDescription
from hasten.model.executor import Executor
from hasten.model.linear_file import BLOCK_INPUTS, BlockSource, has_codes
from hasten.model.loaders import WeightSource
from hasten.model.sketch import sketch_bytes


@dataclass(frozen=True, slots=True)
class Form:
    """How a precision counts: bytes a weight, with its scales; bytes a number of the cache; which speed of the machine."""

    precision: str
    weight_bytes: float
    cache_bytes: float
    speed: str


FORMS = {
    form.precision: form
    for form in (
        Form("int8", 1.003, 2.0, INT8),
        Form("int4", 0.57, 2.0, INT8),  # of its head, which has eight bits, a step reads the sketch
        Form("int3", 0.46, 2.0, INT8),  # as int4; the sketch has four bits
        Form("bf16", 2.0, 2.0, DENSE),
        Form("fp32", 4.0, 4.0, DENSE),
    )
}
CODES = ("file", "q4_0")  # precisions whose bytes depend on what the weights lie in
Q4_0_BYTES, Q8_0_BYTES = 18 / 32, 34 / 32
PROMPT_CHUNK = 512
Point = tuple[int, int]  # rows and context
Counted = tuple[ModelDescription, Form]  # a model, and how its precision counts
CALIBRATED: tuple[Point, ...] = ((1, 64), (8, 64), (64, 64), (1, 1024), (64, 1024))


@dataclass(frozen=True, slots=True)
class Work:
    """One step. ``weights`` and ``cache`` are bytes read; ``linear`` and ``attention`` count operations."""

    weights: float
    cache: float
    linear: float
    attention: float
    layers: int
    speed: str

    @property
    def bytes(self) -> float:
        return self.weights + self.cache

    @property
    def operations(self) -> float:
        return self.linear + self.attention

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.bytes


def weights_of(shape: ModelDescription) -> tuple[int, int]:
    """Numbers of weights that a step reads: all layers', and the head's."""
    attention = shape.hidden_size * (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return shape.layers * (attention + 3 * shape.hidden_size * shape.intermediate_size), shape.hidden_size * shape.vocabulary_size


def form_of(precision: str, source: WeightSource | BlockSource) -> Form:
    """How that precision counts for these weights. In ``file`` every matrix takes the bytes that it has in the file, or those of
    int8 where it holds no codes; in ``q4_0`` those that rounding gives it. Raises ConfigError for a precision that has no such
    account."""
    if precision in CODES:
        return Form(precision, _code_bytes(precision, source), 2.0, INT8)
    if precision not in FORMS:
        raise ConfigError(f"The roofline knows the precisions {', '.join([*FORMS, *CODES])}, not '{precision}'.")
    return FORMS[precision]


def _code_bytes(precision: str, source: WeightSource | BlockSource) -> float:
    """Bytes a weight of all matrices that a step reads: those of the layers and the head, which may be the embedding's. Of a head
    that is sketched, the sketch's."""
    if precision == "file" and not isinstance(source, BlockSource):
        raise ConfigError("precision file counts the codes of a GGUF file, and this model is a folder of safetensors; give int8.")
    names = [name for name in source.names() if len(source.shape(name)) > 1]
    head = "head" if "head" in names else "embedding"
    read = [name for name in names if name not in ("embedding", "head")]
    weights = sum(rows * columns for rows, columns in map(source.shape, [*read, head]))
    own = _matrix_bytes(precision, source, head)
    outputs, inputs = source.shape(head)
    sketch = sketch_bytes(outputs, inputs, own) if precision == "file" else 0
    return (sum(_matrix_bytes(precision, source, name) for name in read) + (sketch or own)) / weights


def _matrix_bytes(precision: str, source: WeightSource | BlockSource, name: str) -> float:
    """As ``model.weights`` makes it: q4_0 keeps codes of four bits, and any of the head, whose rounded ones have eight."""
    rows, columns = source.shape(name)
    stored, head = source.stored_dtype(name).upper(), name in ("embedding", "head")
    if isinstance(source, BlockSource) and has_codes(stored) and (precision == "file" or head or stored.startswith("Q4")):
        return float(rows * source.read_blocks(name, 0, 1).numel())
    if precision == "file" or columns % BLOCK_INPUTS:
        return FORMS["int8"].weight_bytes * rows * columns
    return (Q8_0_BYTES if head else Q4_0_BYTES) * rows * columns


def step_work(shape: ModelDescription, form: Form, rows: int, context: int, sequences: int = 1, logits: int | None = None) -> Work:
    """A step of ``rows`` new tokens in all, of ``sequences`` that each have ``context`` before; ``logits`` of them choose a token
    (default all)."""
    body, head = weights_of(shape)
    own = rows / sequences
    seen = sum(min(context + own / 2, window) for window in windows(shape))  # keys that a row sees, over all layers
    read = sum(min(context + own, window + own) for window in windows(shape)) * sequences
    linear = 2.0 * body * rows + 2.0 * head * (rows if logits is None else logits)
    attention = 4.0 * shape.heads * shape.head_dim * seen * rows
    head_bytes = form.weight_bytes * head
    if form.precision == "int8":
        head_bytes = sketch_bytes(shape.vocabulary_size, shape.hidden_size, head_bytes) or head_bytes
    return Work(
        form.weight_bytes * body + head_bytes,
        2.0 * shape.kv_heads * shape.head_dim * form.cache_bytes * read,
        linear,
        attention,
        shape.layers,
        form.speed,
    )


def windows(shape: ModelDescription) -> list[float]:
    """How far back each layer sees, in positions."""
    sliding = shape.sliding or (False,) * shape.layers
    return [float(shape.sliding_window) if layer and shape.sliding_window else float("inf") for layer in sliding]


def cache_bytes(shape: ModelDescription, form: Form, positions: int) -> float:
    """Memory of the keys and values of so many positions."""
    return 2.0 * shape.layers * shape.kv_heads * shape.head_dim * form.cache_bytes * positions


def seconds(work: Work, machine: Machine) -> float:
    """The step on that machine."""
    reading, computing = work.weights / machine.read_bytes_s, work.linear / machine.operations_s[work.speed]
    attention = work.cache / (machine.cache_bytes_s or machine.read_bytes_s)
    attention += work.attention / (machine.attention_operations_s or machine.operations_s[DENSE])
    linear = max(reading, computing) if machine.overlapping else reading + computing
    return work.layers * machine.layer_s + linear + attention


def floor_seconds(work: Work, machine: Machine) -> float:
    """What reading the step's bytes takes, if nothing else took time."""
    return work.bytes / machine.read_bytes_s


def idealised_seconds(shape: ModelDescription, form: Form, machine: Machine, prompt: int, answer: int) -> tuple[float, float]:
    """Prompt and decoding of a request that is alone on the machine (the idealised run time of 2305.02440, from shapes)."""
    reading = 0.0
    for start in range(0, prompt, PROMPT_CHUNK):
        rows = min(PROMPT_CHUNK, prompt - start)
        reading += seconds(step_work(shape, form, rows, start, logits=1 if start + rows == prompt else 0), machine)
    middle = step_work(shape, form, 1, prompt + answer // 2)  # the cost grows linearly with the context
    return reading, (answer - 1) * seconds(middle, machine)


def expected_tokens(acceptance: float, depth: int) -> float:
    """Tokens a round of a chain of ``depth`` guesses that are each accepted with that chance (arXiv:2211.17192, equation 1)."""
    return float(depth + 1) if acceptance >= 1.0 else (1.0 - acceptance ** (depth + 1)) / (1.0 - acceptance)


def speedup(
    shape: ModelDescription,
    draft: Counted | None,
    form: Form,
    machine: Machine,
    acceptance: float,
    depth: int,
    context: int,
) -> float:
    """Speed over plain decoding with chains of ``depth`` guesses: tokens a round over what a round costs in plain steps
    (2211.17192, theorem 3.8, with the cost of verification not taken for that of one row). Without ``draft`` guesses are free."""
    plain = seconds(step_work(shape, form, 1, context), machine)
    verify = seconds(step_work(shape, form, depth + 1, context), machine)
    level = 0.0 if draft is None else seconds(step_work(*draft, 1, context), machine)
    return expected_tokens(acceptance, depth) * plain / (verify + depth * level)


def best_depth(
    shape: ModelDescription, draft: Counted | None, form: Form, machine: Machine, acceptance: float, context: int
) -> tuple[int, float]:
    """The depth from 0 to 16 that gains most, and its speed-up."""
    found = [(speedup(shape, draft, form, machine, acceptance, depth, context), -depth) for depth in range(17)]
    gain, depth = max(found)
    return -depth, gain


def calibrated(executor: Executor, text: list[int], form: Form, read_bytes_s: float) -> Machine:
    """This machine, from its memory's speed and five passes of a loaded model over ``text``. Every other number of rows, every
    other context and every other model is then a prediction."""
    return solved(executor.decoder.description, form, read_bytes_s, step_times(executor, text, CALIBRATED))


def solved(shape: ModelDescription, form: Form, read_bytes_s: float, measured: dict[Point, float]) -> Machine:
    """The machine on which the passes ``CALIBRATED`` take that long.

    Attention's speeds come first, from what context adds to one row and to many. Then, with and without overlap, one row says what
    a layer costs besides, many rows how fast is multiplied; the pass between them says which of both is true.
    """
    works = {point: step_work(shape, form, *point) for point in CALIBRATED}
    (one, few, many), (far_one, far_many) = CALIBRATED[:3], CALIBRATED[3:]
    cache_s, operation_s = _attention(
        [
            (works[far].cache - works[near].cache, works[far].attention - works[near].attention)
            for near, far in ((one, far_one), (many, far_many))
        ],
        [max(0.0, measured[far] - measured[near]) for near, far in ((one, far_one), (many, far_many))],
        1.0 / read_bytes_s,
    )
    left = {point: measured[point] - cache_s * works[point].cache - operation_s * works[point].attention for point in CALIBRATED}
    found = []
    for overlapping in (True, False):
        reading = works[one].weights / read_bytes_s
        if overlapping:
            layer = max(0.0, left[one] - reading) / shape.layers
            speed = works[many].linear / max(left[many] - shape.layers * layer, 1e-9)
        else:
            speed = (works[many].linear - works[one].linear) / max(left[many] - left[one], 1e-9)
            layer = max(0.0, left[one] - reading - works[one].linear / speed) / shape.layers
        machine = Machine(
            "here", read_bytes_s, {DENSE: speed, INT8: speed}, layer, f"measured with {len(CALIBRATED)} passes in {form.precision}",
            overlapping, 1.0 / cache_s, 1.0 / operation_s,
        )  # fmt: skip
        found.append((abs(seconds(works[few], machine) - measured[few]), not overlapping, machine))
    return min(found)[2]


def _attention(added: list[tuple[float, float]], took: list[float], least: float) -> tuple[float, float]:
    """Seconds a byte of cache and an operation, of which ``added`` (bytes, operations) took that long; never free."""
    (bytes1, operations1), (bytes2, operations2) = added
    determinant = bytes1 * operations2 - bytes2 * operations1
    a_byte = (took[0] * operations2 - took[1] * operations1) / determinant
    an_operation = (bytes1 * took[1] - bytes2 * took[0]) / determinant
    return max(a_byte, least), max(an_operation, 1e-15)


def step_times(executor: Executor, text: list[int], points: Sequence[Point], rounds: int = 9) -> dict[Point, float]:
    """Seconds of a pass over ``text`` of each point, in turns, so that no point has a slow moment of the machine to itself; the
    best of all rounds, for noise only ever adds. The pool must hold the largest and not be in use."""
    timed = timed_passes(executor, text)
    for point in points:
        timed(*point)
    turns = [[timed(*point) for point in points] for _ in range(rounds)]
    return dict(zip(points, map(min, zip(*turns, strict=True)), strict=True))


@dataclass(frozen=True, slots=True)
class Checked:
    """One prediction beside what was measured."""

    rows: int
    context: int
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        return abs(self.predicted_s / self.measured_s - 1.0)


def check(
    executor: Executor,
    text: list[int],
    form: Form,
    read_bytes_s: float,
    rows: Sequence[int],
    contexts: Sequence[int],
    rounds: int = 9,
) -> tuple[Machine, list[Checked]]:
    """Calibrate, then predict every combination that was not calibrated with and that the pool holds. All are measured in turns."""
    most = executor.pool.num_blocks * BLOCK_SIZE
    wanted = [(count, context) for count in rows for context in contexts if count + context <= most]
    others = [point for point in wanted if point not in CALIBRATED]
    measured = step_times(executor, text, [*CALIBRATED, *others], rounds)
    shape = executor.decoder.description
    machine = solved(shape, form, read_bytes_s, measured)
    return machine, [Checked(*point, seconds(step_work(shape, form, *point), machine), measured[point]) for point in others]
