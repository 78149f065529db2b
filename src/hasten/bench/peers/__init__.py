"""Other engines on the same weights, each in an environment of its own: its best plain mode and its speculative ones."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hasten.bench.peers.environment import Recipe, Say, peers_directory, python_of
from hasten.bench.peers.process import WORKERS, Peer, Worker
from hasten.bench.session import ContestantFailed
from hasten.core.errors import ConfigError
from hasten.core.registry import nearest

# llama.cpp's flags by what the processor reports; its own detection of the build machine has produced programs that crash.
LLAMA_FLAGS = {
    "avx": ("AVX",),
    "avx2": ("AVX2",),
    "fma": ("FMA",),
    "f16c": ("F16C",),
    "bmi2": ("BMI2",),
    "avx_vnni": ("AVX_VNNI",),
    "avx512f": ("AVX512",),
    "avx512vbmi": ("AVX512_VBMI",),
    "avx512_vnni": ("AVX512_VNNI",),
    "avx512_bf16": ("AVX512_BF16",),
    "amx_tile": ("AMX_TILE",),
    "amx_int8": ("AMX_INT8",),
    "amx_bf16": ("AMX_BF16",),
}

# Engines that cannot be had from the package index, and why: a row of the comparison says so.
UNAVAILABLE = {
    "vllm": "vLLM's builds on the package index are for CUDA; there is none for processors, and this makes none from source."
}


@dataclass(frozen=True, slots=True)
class Engine:
    """One other engine: how it is installed, the script that runs it, and its modes as (name, settings); "draft" ones need a draft
    model. ``shared``: all modes take turns on one copy of the weights, in one process."""

    recipe: Recipe
    script: Path
    modes: tuple[tuple[str, dict[str, Any]], ...]
    shared: bool = False


def engines() -> dict[str, Engine]:
    """Every engine that can be compared with, by the name that --against takes."""
    llama = Recipe("llama.cpp", (("llama-cpp-python",),), llama_variables(processor_flags()))
    torch = f"torch=={version('torch').partition('+')[0]}"  # the same everywhere; what "torch" alone fetches differs by platform
    dense = Recipe("transformers", ((torch,), ("transformers", "accelerate", "gguf")))
    # optimum-intel 2.2 brings torchvision, whose build for CUDA breaks transformers beside a CPU build of torch.
    converter = "optimum-intel[openvino]<2.2"
    openvino = Recipe("openvino", ((torch,), (torch, "openvino-genai", converter, "nncf", "accelerate", "gguf")))
    ways: tuple[tuple[str, dict[str, Any]], ...] = (
        ("", {"mode": "plain"}),
        (" prompt lookup", {"mode": "lookup"}),
        (" draft model", {"mode": "draft"}),
    )
    both = tuple((f" {p}{name}", {"precision": p, **way}) for p in ("int8", "int4") for name, way in ways)
    kind = dense_type(processor_flags())
    dense_ways = tuple((f" {kind}{name}", {"precision": kind, **way}) for name, way in ways)
    return {
        "llama.cpp": Engine(llama, WORKERS / "llama_cpp_worker.py", ways),
        "openvino": Engine(openvino, WORKERS / "openvino_worker.py", both),
        "transformers": Engine(dense, WORKERS / "transformers_worker.py", dense_ways, True),
    }


def processor_flags() -> set[str]:
    """Instruction sets that the processor reports (Linux)."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


def dense_type(present: set[str]) -> str:
    """What transformers computes fastest in: without AVX-512, x86 emulates bf16 so slowly that float32 wins."""
    return "fp32" if present and "avx512f" not in present else "bf16"


def llama_arguments(present: set[str]) -> str:
    """CMake arguments of llama.cpp for a processor that reports ``present``; empty elsewhere, where it detects for itself."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not present:
        return ""
    chosen = [flag for name, flags in LLAMA_FLAGS.items() if name in present for flag in flags]
    return " ".join(["-DGGML_NATIVE=OFF", *(f"-DGGML_{flag}=ON" for flag in chosen)])


def llama_variables(present: set[str], more: str = "") -> dict[str, str]:
    """What llama.cpp is built with on a processor that reports ``present``; ``more``: CMake arguments. With AMX, GCC must be kept
    from leaving out the stores of a tile configuration, which it takes for dead: programs would stop at an illegal instruction."""
    found = {"CMAKE_ARGS": f"{llama_arguments(present)} {more}".strip()}
    return found | ({"CXXFLAGS": "-fno-dse -fno-tree-dse"} if "AMX" in found["CMAKE_ARGS"] else {})


def check_names(text: str) -> list[str]:
    """The engines of a list with commas. Raises ConfigError for one that is not known."""
    names, known = [name.strip() for name in text.split(",")], [*engines(), *UNAVAILABLE]
    for name in names:
        if name not in known:
            raise ConfigError(f"There is no engine called '{name}' to compare with{nearest(name, known)}")
    return names


def make_peers(
    names: list[str], gguf: Path, draft_gguf: Path | None, threads: int, context: int, say: Say, stack: ExitStack
) -> list[Peer]:
    """Every mode of the engines named, in order. One that does not install is there all the same, and fails when it is asked.

    ``stack`` ends their processes. Modes with a draft model are left out where there is none.
    """
    out = []
    for name in names:
        if name in UNAVAILABLE:
            out.append(Peer(name, "plain", Worker(None, WORKERS, {"name": name}, UNAVAILABLE[name])))
            continue
        engine = engines()[name]
        python, failure = _installed(lambda engine=engine: python_of(engine.recipe, say))  # type: ignore[misc]
        shared: Worker | None = None
        for mode, extra in engine.modes:
            if extra["mode"] == "draft" and draft_gguf is None:
                continue
            settings = {
                "name": name if engine.shared else name + mode,
                "gguf": str(gguf),
                "draft_gguf": None if draft_gguf is None else str(draft_gguf),
                "threads": threads,
                "context": context,
                "models": str(peers_directory() / name / "models"),
                **extra,
            }
            worker = shared or Worker(python, engine.script, settings, failure)
            shared = worker if engine.shared else None
            stack.callback(worker.close)
            out.append(Peer(name + mode, extra["mode"], worker))
    return out


def _installed(make: Callable[[], Path]) -> tuple[Path | None, str | None]:
    try:
        return make(), None
    except ContestantFailed as problem:
        return None, str(problem)
