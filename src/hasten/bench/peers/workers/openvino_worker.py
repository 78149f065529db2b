"""OpenVINO GenAI, plain, with prompt lookup, or with a draft model. Runs in that engine's own environment.

The GGUF's weights are dequantised by transformers, then converted and rounded to int8 or int4 by optimum-intel, once. int4 has a
scale for every 64 weights, which divides the widths of small models too (the converter's own 128 does not).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from talk import serve, settings

ASKED = settings()
PROPERTIES = {"INFERENCE_NUM_THREADS": ASKED["threads"]}
WEIGHTS = {"int8": ("--weight-format", "int8"), "int4": ("--weight-format", "int4", "--group-size", "64")}


def converted(gguf: str) -> str:
    """A folder with the model in OpenVINO's form; made where it is missing."""
    path, precision = Path(gguf).resolve(), ASKED["precision"]
    done = Path(ASKED["models"]) / f"{path.stem}-{precision}"
    if not (done / "openvino_model.xml").exists():
        dense = Path(ASKED["models"]) / f"{path.stem}-dense"
        part = done.with_suffix(".partial")
        shutil.rmtree(part, ignore_errors=True)
        if not (dense / "done").exists():
            dequantise(path, dense)
        command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", str(dense)]
        made = subprocess.run(
            [*command, "--task", "text-generation-with-past", *WEIGHTS[precision], str(part)],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise RuntimeError((made.stderr.strip().splitlines() or ["the conversion failed"])[-1])
        part.rename(done)
    return str(done)


def dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    (folder / "done").touch()


MODEL = converted(ASKED["gguf"])
CONFIG = genai.GenerationConfig()
SCHEDULER = genai.SchedulerConfig()
SCHEDULER.enable_prefix_caching = False  # no prompt profits from an earlier one
SCHEDULER.max_num_batched_tokens = 1 << 20  # a prompt in one piece, as the engine's own default for one user
EXTRA: dict[str, Any] = {"scheduler_config": SCHEDULER}
if ASKED["mode"] == "lookup":
    EXTRA["prompt_lookup"] = True
    CONFIG.num_assistant_tokens, CONFIG.max_ngram_size = 5, 3
elif ASKED["mode"] == "draft":
    EXTRA["draft_model"] = genai.draft_model(converted(ASKED["draft_gguf"]), "CPU", **PROPERTIES)
    CONFIG.num_assistant_tokens = 4
PIPELINE = genai.LLMPipeline(MODEL, "CPU", **EXTRA, **PROPERTIES)


class Heard(genai.StreamerBase):  # type: ignore[misc]
    """Tells when tokens arrive."""

    def __init__(self, heard: Callable[[int], None]) -> None:
        super().__init__()
        self.heard = heard

    def write(self, token: Any) -> Any:
        self.heard(len(token) if isinstance(token, list) else 1)
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


def answer(mode: str, prompt: list[int], count: int, heard: Callable[[int], None]) -> list[int]:
    """Greedy, exactly ``count`` tokens."""
    CONFIG.max_new_tokens, CONFIG.ignore_eos, CONFIG.do_sample = count, True, False
    ids = np.array([prompt], dtype=np.int64)
    out = PIPELINE.generate(genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids))), CONFIG, Heard(heard))
    return [int(token) for token in out.tokens[0]]


@cache
def scored() -> Any:
    """The model with the logits of every token."""
    from optimum.intel import OVModelForCausalLM

    return OVModelForCausalLM.from_pretrained(MODEL)


def losses(chunk: list[int]) -> list[float]:
    """Of tokens 1.. of the chunk."""
    import torch

    logits = scored()(torch.tensor([chunk]), attention_mask=torch.ones(1, len(chunk), dtype=torch.int64)).logits[0, :-1].float()
    found: list[float] = torch.nn.functional.cross_entropy(logits, torch.tensor(chunk[1:]), reduction="none").tolist()
    return found


serve({"engine": f"openvino-genai {genai.__version__}"}, answer, losses)
