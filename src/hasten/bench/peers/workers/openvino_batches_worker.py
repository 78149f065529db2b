"""OpenVINO GenAI's continuous batching: all prompts of a line at once. Runs in that engine's own environment.

The model is the one of openvino_worker.py, which converts it where it is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from talk import say, settings

ASKED = settings()


def model() -> str:
    """The folder with the converted model."""
    folder = Path(ASKED["models"]) / f"{Path(ASKED['gguf']).resolve().stem}-{ASKED['precision']}"
    if not (folder / "openvino_model.xml").exists():
        converting = [sys.executable, str(Path(__file__).with_name("openvino_worker.py")), json.dumps(ASKED)]
        done = subprocess.run(converting, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["the conversion failed"])[-1])
    return str(folder)


SCHEDULER = genai.SchedulerConfig()
SCHEDULER.enable_prefix_caching = False  # no prompt profits from an earlier one
SCHEDULER.max_num_seqs = ASKED["parallel"]
PIPELINE = genai.ContinuousBatchingPipeline(model(), SCHEDULER, "CPU", {"INFERENCE_NUM_THREADS": ASKED["threads"]})


def answer(prompts: list[list[int]], count: int) -> list[dict[str, Any]]:
    """Greedy, exactly ``count`` tokens each."""
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
    started = time.perf_counter()
    handles = [PIPELINE.add_request(at, ov.Tensor(np.array([prompt], dtype=np.int64)), config) for at, prompt in enumerate(prompts)]
    tokens: list[list[int]] = [[] for _ in prompts]
    heard: list[list[float]] = [[] for _ in prompts]
    while PIPELINE.has_non_finished_requests():
        PIPELINE.step()
        now = time.perf_counter() - started
        for at, handle in enumerate(handles):
            while handle.can_read():
                for output in handle.read().values():
                    tokens[at] += [int(token) for token in output.generated_ids]
                    heard[at].append(now)
    return [
        {"tokens": own, "first_s": times[0], "decode_s": times[-1] - times[0]} for own, times in zip(tokens, heard, strict=True)
    ]


say({"about": {"engine": f"openvino-genai {genai.__version__}, continuous batching"}})
for line in sys.stdin:
    question = json.loads(line)
    try:
        say({"samples": answer(question["prompts"], question["max_tokens"])})
    except Exception as problem:
        say({"error": f"{type(problem).__name__}: {problem}"})
