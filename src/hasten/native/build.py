"""Build the kernels: one plain shared library from the C++ files beside this one, in seconds, with whatever compiler is there.

``python -m hasten.native.build [--sanitize]`` builds beside this file, or in the user's cache where that is not writable. Needs the
standard library only, because the package's own build runs this file before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
LIBRARY = "libhasten_native.so"
SANITIZED_LIBRARY = "libhasten_native_sanitized.so"

# Bits must not depend on what the compiler contracts or reorders; traps and errno are not used.
COMMON: tuple[str, ...] = (
    "-std=c++17",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
)
COMMON += ("-fvisibility-inlines-hidden", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-ignored-attributes", "-pthread")
OPTIMIZED = ("-O3",)
# Tiles are emulated there, so that AMX's kernels are checked wherever AVX-512 is.
SANITIZED = (
    "-DHASTEN_EMULATED_TILES",
    "-O1",
    "-g1",  # lines for the traces; all that -g keeps takes half as long again to compile
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
)

AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
AMX = (*AVX512, "-mamx-tile", "-mamx-int8", "-mamx-bf16")


class BuildError(Exception):
    """The library could not be built; the text says why, with the compiler's last lines."""


@dataclass(frozen=True)
class Unit:
    """One object file: a source, its flags, and the level its namespace is named after (None where it has none)."""

    source: str
    flags: tuple[str, ...] = ()
    level: str | None = None


def units() -> list[Unit]:
    """What to compile for this processor family; the longest first."""
    kernels = (
        "attention_kernels",
        "attention8_kernels",
        "rows_kernels",
        "products8",
        "read_kernels",
        "feedback_kernels",
        "grouped_rows",
        "sketch_pack_kernels",
        "sketch_look_kernels",
    )
    floats = [f"{name}.cpp" for name in kernels]
    shared = (
        "attention",
        "threads",
        "linear",
        "top",
        "progressive_round",
        "feedback",
        "rows",
        "layers",
        "api",
        "isa",
        "sketch",
        "sketch_pack",
        "drawn",
        "speculator",
    )
    codes = ("grouped", "grouped_pack", "grouped_api")
    plain = [Unit(f"{name}.cpp") for name in (*shared, *codes)]
    generic = [Unit(name, (), "generic") for name in floats]
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return [*generic, *plain]
    wide = [Unit(name, flags, level) for name in floats for flags, level in ((AVX512, "avx512"), (AVX2, "avx2"))]
    integer = [
        Unit("grouped_vnni.cpp", AVX512),
        Unit("linear_vnni.cpp", AVX512),
        Unit("progressive_vnni.cpp", AVX512),
        Unit("linear_amx.cpp", AMX, "avx512"),
        Unit("panels_amx.cpp", AMX, "avx512"),
        Unit("products8_amx.cpp", AMX),
        Unit("attention_amx.cpp", AMX, "avx512"),
        Unit("linear_avx2.cpp", AVX2),
        Unit("progressive_avx2.cpp", AVX2),
        Unit("grouped_avx2_panel.cpp", AVX2),
        Unit("grouped_avx2.cpp", AVX2),
    ]
    return [*wide, *generic, *integer, *plain]


def source_digest() -> str:
    """Names the state of the sources: a library built from others is not loaded from the cache."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"), SOURCES / "build.py"]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where the library goes when the package's own folder cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "hasten" / "native" / source_digest()


def find_compiler() -> list[str]:
    """The C++ compiler's command. Raises BuildError when there is none."""
    asked = os.environ.get("CXX")
    if asked:
        return shlex.split(asked)
    for name in ("g++", "clang++", "c++"):
        found = shutil.which(name)
        if found:
            return [found]
    raise BuildError("There is no C++ compiler; install g++ or clang++, or set CXX.")


def build(folder: Path, *, sanitize: bool = False) -> Path:
    """Compile and link into ``folder`` and return the library's path. The old library is replaced in one move, so that a process
    that has it loaded is not disturbed. Raises BuildError."""
    compiler = find_compiler()
    mode = SANITIZED if sanitize else OPTIMIZED
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (SANITIZED_LIBRARY if sanitize else LIBRARY)
    with tempfile.TemporaryDirectory() as scratch:
        jobs = [(unit, Path(scratch) / f"{index}.o") for index, unit in enumerate(units())]

        def compile_one(job: tuple[Unit, Path]) -> None:
            unit, output = job
            level = [f"-DHASTEN_LEVEL={unit.level}"] if unit.level else []
            _run([*compiler, *COMMON, *mode, *unit.flags, *level, "-c", str(SOURCES / unit.source), "-o", str(output)])

        with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 2)) as workers:
            list(workers.map(compile_one, jobs))
        linked = Path(scratch) / LIBRARY
        _run([*compiler, *mode, "-shared", "-pthread", *(str(output) for _, output in jobs), "-o", str(linked)])
        fresh = target.with_suffix(f".{os.getpid()}.new")
        shutil.copyfile(linked, fresh)
        fresh.chmod(0o755)
        fresh.replace(target)
    return target


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as problem:
        raise BuildError(f"The compiler '{command[0]}' did not start: {problem.strerror}.") from problem
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise BuildError(f"The compiler failed ({' '.join(command)}):\n{tail}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hasten.native.build", description="Build Hasten's native kernels.")
    parser.add_argument("--sanitize", action="store_true", help="a second library that checks addresses and undefined behaviour")
    asked = parser.parse_args()
    folder = SOURCES if os.access(SOURCES, os.W_OK) else cache_folder()
    try:
        print(build(folder, sanitize=asked.sanitize))
    except BuildError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
