"""Transformers, plain, with prompt lookup, or with a draft model. Runs in that engine's own environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from talk import serve, settings
from transformers import AutoModelForCausalLM, __version__

ASKED = settings()
DTYPE = {"bf16": torch.bfloat16, "fp32": torch.float32}[ASKED["precision"]]
torch.set_num_threads(ASKED["threads"])


def load(gguf: str) -> Any:
    """The GGUF's weights, dequantised."""
    path = Path(gguf).resolve()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=DTYPE).eval()
    model.generation_config.eos_token_id = None  # answers have the length that was asked for, whatever is in them
    return model


class Heard:
    """A streamer that only tells when tokens arrive; the first call is the prompt."""

    def __init__(self, heard: Callable[[int], None]) -> None:
        self.heard, self.begun = heard, False

    def put(self, value: torch.Tensor) -> None:
        if self.begun:
            self.heard(int(value.numel()))
        self.begun = True

    def end(self) -> None:
        pass


MODEL = load(ASKED["gguf"])

# What each mode gives ``generate`` besides; all share the weights.
WAYS: dict[str, dict[str, Any]] = {"plain": {}, "lookup": {"prompt_lookup_num_tokens": 8}}
if ASKED["draft_gguf"] is not None:
    WAYS["draft"] = {"assistant_model": load(ASKED["draft_gguf"])}


def answer(mode: str, prompt: list[int], count: int, heard: Callable[[int], None]) -> list[int]:
    """Greedy, exactly ``count`` tokens."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = MODEL.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=0,
            streamer=Heard(heard),
            **WAYS[mode],
        )
    return [int(token) for token in out[0, len(prompt) :][:count]]


def losses(chunk: list[int]) -> list[float]:
    """Of tokens 1.. of the chunk."""
    with torch.inference_mode():
        logits = MODEL(torch.tensor([chunk])).logits[0, :-1].float()
    found: list[float] = torch.nn.functional.cross_entropy(logits, torch.tensor(chunk[1:]), reduction="none").tolist()
    return found


serve({"engine": f"transformers {__version__}"}, answer, losses)
