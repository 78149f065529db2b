"""llama.cpp through llama-cpp-python, plain, with prompt lookup, or with a draft model. Runs in that engine's own environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding
from talk import serve, settings

ASKED = settings()
DRAFTED = 3  # tokens, llama.cpp's own default


def load(gguf: str, **named: Any) -> Llama:
    count = ASKED["threads"]
    return Llama(gguf, n_ctx=ASKED["context"], n_threads=count, n_threads_batch=count, verbose=False, **named)


class SmallModel(LlamaDraftModel):  # type: ignore[misc]
    """Greedy guesses of a smaller model, which keeps what it has read of the same text."""

    def __init__(self, gguf: str) -> None:
        self.model = load(gguf)

    def __call__(self, input_ids: Any, /, **named: Any) -> Any:
        out = []
        for token in self.model.generate([int(token) for token in input_ids], temp=0.0, repeat_penalty=1.0):
            out.append(token)
            if len(out) == DRAFTED:
                break
        return np.array(out, dtype=np.intc)


# With a draft model llama-cpp-python computes logits everywhere, but has room for those of long prompts only when it is told to.
MODE: dict[str, Any] = {} if ASKED["mode"] == "plain" else {"logits_all": True}
if ASKED["mode"] == "lookup":
    MODE["draft_model"] = LlamaPromptLookupDecoding(num_pred_tokens=2)  # what its authors advise on processors
elif ASKED["mode"] == "draft":
    MODE["draft_model"] = SmallModel(ASKED["draft_gguf"])
MODEL = load(ASKED["gguf"], **MODE)


def answer(mode: str, prompt: list[int], count: int, heard: Callable[[int], None]) -> list[int]:
    """Greedy, exactly ``count`` tokens; nothing of an earlier prompt is reused."""
    MODEL.reset()
    out: list[int] = []
    for token in MODEL.generate(prompt, temp=0.0, repeat_penalty=1.0, reset=True):
        out.append(int(token))
        heard(1)
        if len(out) == count:
            return out
    return out


def losses(chunk: list[int]) -> list[float]:
    """Of tokens 1.. of the chunk, from a model of its own that keeps all logits."""
    model = load(ASKED["gguf"], logits_all=True)
    model.eval(chunk)
    logits = np.array(model.scores[: len(chunk) - 1], dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = shifted[np.arange(len(chunk) - 1), chunk[1:]]
    found: list[float] = (np.log(np.exp(shifted).sum(axis=-1)) - chosen).tolist()
    return found


serve({"engine": f"llama-cpp-python {llama_cpp.__version__}"}, answer, losses)
