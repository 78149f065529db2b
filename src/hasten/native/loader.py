"""Finding and loading the kernels' library. Knows nothing of tensors: pointers and sizes only.

``HASTEN_NATIVE=off`` keeps the kernels out; ``auto`` (the default) uses them where the library is found and loads.
``HASTEN_NATIVE_ISA`` holds them to an instruction set: ``amx``, ``vnni``, ``avx2`` or ``generic``. ``HASTEN_NATIVE_LIBRARY`` names
another library file to load (one built with ``--sanitize``).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path

from hasten.core.errors import ConfigError
from hasten.native.build import LIBRARY, SOURCES, cache_folder
from hasten.native.processors import usable_cores

INTERFACE_VERSION = 14
LEVELS = ("generic", "avx2", "vnni", "amx")
MODES = ("auto", "off")

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float

# Name: result type, argument types; as in api.cpp.
_PROTOTYPES: dict[str, tuple[type, tuple[type, ...]]] = {
    "hst_version": (_INT, ()),
    "hst_best_isa": (_INT, ()),
    "hst_isa": (_INT, ()),
    "hst_set_isa": (_INT, (_INT,)),
    "hst_threads": (_INT, ()),
    "hst_set_threads": (_INT, (_INT,)),
    "hst_read": (_INT, (_POINTER, _LONG, _INT)),
    "hst_w8_pack": (_INT, (_POINTER, _LONG, _LONG, _POINTER)),
    "hst_packed_bytes": (_LONG, (_INT, _LONG, _LONG)),
    "hst_progressive_pack": (_INT, (_INT, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _POINTER)),
    "hst_progressive_round": (_INT, (_INT, _POINTER, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _POINTER)),
    "hst_progressive_fit": (_INT, (_INT,) + (_POINTER,) * 4 + (_LONG, _LONG, _INT) + (_POINTER,) * 5),
    "hst_progressive_descend": (_INT, (_INT,) + (_POINTER,) * 4 + (_LONG,) * 3 + (_POINTER,) * 2),
    "hst_w8_join": (_INT, (_POINTER, _LONG, _LONG, _LONG, _POINTER)),
    "hst_w8_rows": (_INT, (_POINTER, _POINTER, _LONG, _POINTER, _LONG, _POINTER)),
    "hst_linear": (_INT, (_POINTER,) * 5 + (_LONG,)),
    "hst_rows": (_INT, (_POINTER, _POINTER, _FLOAT, _INT, _LONG, _LONG, _LONG, _POINTER, _POINTER, _POINTER)),
    "hst_rows_linear": (_INT, (_POINTER, _POINTER, _POINTER, _FLOAT, _INT, _POINTER, _POINTER, _LONG)),
    "hst_rows_linear_top": (_INT, (_POINTER, _POINTER, _POINTER, _FLOAT, _INT, _LONG, _LONG, _POINTER, _POINTER)),
    "hst_largest": (_INT, (_POINTER,) + (_LONG,) * 4 + (_POINTER,) * 2),
    "hst_largest_and_mass": (_INT, (_POINTER, *(_LONG,) * 3, *(_POINTER,) * 2, _LONG, _FLOAT, *(_POINTER,) * 3)),
    "hst_drawn": (_INT, (_POINTER, _POINTER, _LONG, _POINTER, _LONG, _POINTER, _POINTER)),
    "hst_sketch_pack": (_INT, (_POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER, _POINTER, _POINTER)),
    "hst_sketched_head": (_INT, (*(_POINTER,) * 3, _FLOAT, *(_POINTER,) * 3, *(_LONG,) * 2, _POINTER)),
    "hst_mlp": (_INT, (*(_POINTER,) * 4, _FLOAT, _INT, _POINTER, _POINTER, _LONG)),
    "hst_grouped_packed_bytes": (_LONG, (_INT, _LONG, _LONG)),
    "hst_grouped_pack": (_INT, (_INT, _POINTER, _LONG, _LONG, _POINTER)),
    "hst_grouped_pick": (_INT, (_INT, _POINTER, _LONG, _POINTER, _LONG, _POINTER)),
    "hst_grouped_rows": (_INT, (_INT, _POINTER, _LONG, _POINTER, _LONG, _POINTER)),
    "hst_grouped_linear": (_INT, (_POINTER, _POINTER, _POINTER, _FLOAT, _INT, _POINTER, _POINTER, _LONG)),
    "hst_rope_write": (_INT, (_POINTER,) * 9),
    "hst_paged_attention": (_INT, (_POINTER,) * 4 + (_LONG, _POINTER)),
    "hst_attention": (_INT, (_POINTER,) * 8 + (_LONG, _POINTER)),
    "hst_attention8": (_INT, (_POINTER,) * 7 + (_LONG, _POINTER)),
    "hst_speculator": (_INT, (*(_POINTER,) * 3, _LONG, *(_POINTER,) * 2)),
    "hst_layers": (_INT, (_POINTER, _POINTER, _LONG, _POINTER, _FLOAT, _POINTER, _LONG, _LONG, _POINTER, _LONG)),
}


class NativeLibrary:
    """The loaded library. ``call[name]`` are its functions with argument types set; most return 0 or a code, see ``check``."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when the file does not load or is of another version."""
        self.path = path
        library = ctypes.CDLL(str(path))
        self.call: dict[str, Callable[..., int]] = {}
        for name, (result, arguments) in _PROTOTYPES.items():
            try:
                function = getattr(library, name)
            except AttributeError as problem:
                raise OSError(f"{path} lacks {name}; build it again with python -m hasten.native.build") from problem
            function.restype = result
            function.argtypes = arguments
            self.call[name] = function
        if self.call["hst_version"]() != INTERFACE_VERSION:
            raise OSError(f"{path} is of another version; build it again with python -m hasten.native.build")

    @cached_property
    def fingerprint(self) -> str:
        """Of the library's file, when it is first asked for."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]

    @property
    def isa(self) -> str:
        """The level in use; ``best_isa`` is the processor's."""
        return LEVELS[self.call["hst_isa"]()]

    @property
    def best_isa(self) -> str:
        return LEVELS[self.call["hst_best_isa"]()]

    def set_isa(self, name: str) -> None:
        """Hold the kernels to a level. Raises ConfigError when it is unknown or the processor lacks it."""
        if name not in LEVELS:
            raise ConfigError(f"HASTEN_NATIVE_ISA must be one of {', '.join(LEVELS)}, not '{name}'.")
        if self.call["hst_set_isa"](LEVELS.index(name)) != 0:
            raise ConfigError(f"This processor has no {name} for the native kernels; its best level is {self.best_isa}.")

    @property
    def threads(self) -> int:
        return self.call["hst_threads"]()

    def set_threads(self, count: int) -> None:
        """Threads that share a kernel's work, the caller included. Changes no result."""
        self.call["hst_set_threads"](count)

    def available_isas(self) -> list[str]:
        """Every level that this processor runs, the plainest first."""
        return list(LEVELS[: LEVELS.index(self.best_isa) + 1])


def check(status: int) -> None:
    """Raise on a code other than 0: MemoryError, or ValueError for sizes that the wrappers should have refused."""
    if status == 0:
        return
    if status == 2:
        raise MemoryError("The native kernels ran out of memory.")
    raise ValueError(f"A native kernel refused its arguments (code {status}).")


def load() -> NativeLibrary | None:
    """The library, loaded once, or None where it is off, not built or does not load (``status`` says which)."""
    mode = os.environ.get("HASTEN_NATIVE", "auto")
    if mode not in MODES:
        raise ConfigError(f"HASTEN_NATIVE must be one of {', '.join(MODES)}, not '{mode}'.")
    if mode == "off":
        return None
    library, _ = _load_once()
    return library


@lru_cache(maxsize=1)
def _load_once() -> tuple[NativeLibrary | None, str]:
    reason = "not built; python -m hasten.native.build builds it where a C++ compiler is"
    asked = os.environ.get("HASTEN_NATIVE_LIBRARY")
    for path in (Path(asked),) if asked else (SOURCES / LIBRARY, cache_folder() / LIBRARY):
        if not path.exists():
            continue
        try:
            library = NativeLibrary(path)
        except OSError as problem:
            reason = str(problem)
            continue
        library.set_threads(usable_cores())
        level = os.environ.get("HASTEN_NATIVE_ISA")
        if level:
            library.set_isa(level)
        return library, ""
    return None, reason


def status() -> dict[str, object]:
    """For ``hasten doctor``: ``available``, ``reason`` (why not), ``path``, ``threads``, ``best_isa``, ``isa`` by function."""
    library = load()
    if library is None:
        off = os.environ.get("HASTEN_NATIVE") == "off"
        return {"available": False, "reason": "switched off by HASTEN_NATIVE" if off else _load_once()[1]}
    level = library.isa
    floats = "avx512" if level in ("vnni", "amx") else level
    codes = "vnni" if level == "amx" else level  # of GGUF files; no tiles are written for them
    attention = "amx" if level == "amx" else floats  # over pools of 16 bits and less, heads of 64 times; else AVX-512's
    return {
        "available": True,
        "path": str(library.path),
        "threads": library.threads,
        "best_isa": library.best_isa,
        "isa": {"linear": level, "file_codes": codes, "rows": floats, "rope": floats, "attention": attention},
    }
