"""The laws of the house: who imports whom, what stays light to import, how long files and functions may be.

The checker is itself tested on a planted tree that breaks every law.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import hasten

SOURCE = Path(hasten.__file__).parent
MOST_LINES = 400
MOST_FUNCTION_LINES = 60

# A room may import itself and the rooms of lower rank; the edges share one.
RANKS = {
    "core": 0, "native": 1, "sampling": 2, "cache": 3, "model": 4, "draft": 5, "control": 6, "engine": 7,
    "serve": 8, "bench": 8, "train": 8, "cli": 9,
}  # fmt: skip
STRANGERS = ({"draft", "control"},)  # rooms that do not know each other, whatever their rank
EDGES = ("serve", "bench", "train", "cli")
KERNEL_CALLERS = (
    "model.attention",
    "model.linear",
    "model.layers",
    "model.sketch",
    "model.speculator",
    "model.kernels",
    "sampling.contenders",
    "sampling.likeliest",
    "cli.doctor",
)  # the doctor only asks whether they are there
ONLY_CALLERS = f"only {', '.join(name.replace('.', '/') for name in KERNEL_CALLERS[:-1])} call kernels"
WEB = {
    "aiohttp", "django", "fastapi", "flask", "granian", "h11", "h2", "httptools", "hypercorn", "litestar", "multipart",
    "pydantic", "quart", "sanic", "sse_starlette", "starlette", "tornado", "uvicorn", "uvloop", "websockets", "werkzeug",
}  # fmt: skip

# Modules and packages that must be importable without torch; a package stands for all its modules.
LIGHT = (
    "__init__", "core", "cache.blocks", "engine.scheduler", "model.catalogue", "model.storage", "cli.main", "cli.settings",
    "cli.options", "cli.prompts", "cli.show_errors", "cli.screen", "cli.generate", "cli.conversation", "cli.chat", "cli.doctor",
    "cli.machine", "cli.models",
)  # fmt: skip


class Import(NamedTuple):
    """``module`` (dotted, below the package; "__init__" for the package itself) imports ``target`` (absolute) in ``line``."""

    module: str
    target: str
    line: int
    top_level: bool


def modules(source: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts), path


def imports(source: Path) -> Iterator[Import]:
    """Every import statement, under functions and TYPE_CHECKING too; relative ones made absolute."""
    package = source.name
    for module, path in modules(source):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = set(map(id, tree.body))
        here = [package, *([] if module == "__init__" else module.split("."))]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for name in node.names:
                    yield Import(module, name.name, node.lineno, id(node) in top)
            elif isinstance(node, ast.ImportFrom):
                is_package = path.name == "__init__.py"
                base = here[: len(here) - node.level + is_package] if node.level else []
                stem = ".".join([*base, *([node.module] if node.module else [])])
                for name in node.names:
                    yield Import(module, f"{stem}.{name.name}", node.lineno, id(node) in top)


def room(target: str, package: str) -> str | None:
    """The room that an absolute name lies in; "" for the package's own front door, None for other packages."""
    parts = target.split(".")
    if parts[0] != package:
        return None
    return parts[1] if len(parts) > 1 and parts[1] in RANKS else ""


def broken_laws(source: Path) -> list[str]:
    """One line for each import that breaks a law."""
    return [
        f"{found.module}:{found.line} imports {found.target}: {law}" for found in imports(source) if (law := judge(found, source))
    ]


def judge(found: Import, source: Path) -> str | None:
    home = found.module.split(".")[0]
    if home in ("__init__", "__main__"):
        return judge_front_door(found, source)
    if home not in RANKS:
        return f"'{home}' is no room of the house"
    if found.target.split(".")[0] in WEB and home != "serve":
        return "only serve imports web packages"
    there = room(found.target, source.name)
    if there is None:
        return None
    if there == "":
        known = found.target in (source.name, f"{source.name}.__version__") or home in EDGES
        return None if known else "the front door is for users and edges"
    return judge_rooms(found, home, there, source)


def judge_rooms(found: Import, home: str, there: str, source: Path) -> str | None:
    memory = found.target.startswith(f"{source.name}.native.memory")  # no kernel, and of use to whoever keeps much of it
    if there == "native" and home != "native" and not memory and not found.module.startswith(KERNEL_CALLERS):
        return ONLY_CALLERS
    if home == there:
        return None
    if any({home, there} == pair for pair in STRANGERS):
        return f"{home} and {there} do not know each other"
    if RANKS[there] >= RANKS[home]:
        return f"{home} stands below {there}" if RANKS[there] > RANKS[home] else f"{home} and {there} are both edges"
    return None


def judge_front_door(found: Import, source: Path) -> str | None:
    there = room(found.target, source.name)
    lazy = there in (None, "", "core") or not found.top_level or found.module == "__main__"
    return None if lazy else "the front door imports lazily"


def too_long(source: Path, most_lines: int = MOST_LINES, most_function_lines: int = MOST_FUNCTION_LINES) -> list[str]:
    """The table of files and functions over the limits, longest first."""
    rows: list[tuple[int, str]] = []
    for module, path in modules(source):
        text = path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        if lines >= most_lines:
            rows.append((lines, f"{module} (file)"))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length >= most_function_lines:
                    rows.append((length, f"{module}.{node.name} (function)"))
    return [f"{lines:5} {name}" for lines, name in sorted(rows, reverse=True)]


def test_imports_keep_the_law() -> None:
    broken = broken_laws(SOURCE)
    assert not broken, "\n" + "\n".join(broken)


def test_files_and_functions_are_short() -> None:
    table = too_long(SOURCE)
    assert not table, f"\nlimits: files under {MOST_LINES} lines, functions under {MOST_FUNCTION_LINES}\n" + "\n".join(table)


def test_every_module_of_the_house_says_what_it_is() -> None:
    silent = [module for module, path in modules(SOURCE) if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent


def test_light_modules_import_no_torch() -> None:
    wanted = [module for module, _ in modules(SOURCE) if module.startswith(tuple(f"{name}." for name in LIGHT)) or module in LIGHT]
    names = ["hasten" if module == "__init__" else f"hasten.{module}" for module in wanted]
    assert len(names) > 15
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(f'{name} imports torch')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names() -> None:
    assert hasten.__all__ == [
        "LLM",
        "Completion",
        "EngineConfig",
        "Form",
        "HastenError",
        "SamplingParams",
        "SpeculationParams",
        "StreamEvent",
        "__version__",
    ]
    assert all(getattr(hasten, name) is not None for name in hasten.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = hasten.nonsense


PLANTED = {
    "__init__.py": "from house.engine import LLM\nfrom house.core.types import X\n",
    "__main__.py": "from house.cli.main import main\n",
    "core/types.py": "from house.model import decoder\n",
    "core/fine.py": "import torch\nfrom . import types\nfrom house import __version__\n",
    "native/__init__.py": "from house.core import types\nfrom house import cache\n",
    "sampling/verify.py": "def f():\n    from house.draft.suffix import Suffix\n",
    "cache/pool.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.native\n",
    "cache/blocks.py": "from house.native.memory import zeros\n",
    "model/linear.py": "from house import native\nfrom house.native import gemm\n",
    "model/decoder.py": "from house.native import gemm\nimport starlette.routing\n",
    "draft/suffix.py": "from ..control import cost\n",
    "control/cost.py": "from house.draft.base import Drafter\n",
    "engine/step.py": "from house.control import cost\nfrom house.draft import base\nfrom house import LLM\n",
    "serve/app.py": "import uvicorn\nfrom house import LLM\nfrom house.bench import plots\nfrom house.cli import main\n",
    "bench/run.py": "from house.engine.llm import LLM\n",
    "cli/main.py": "from house.serve import app\nfrom house import LLM, native\n",
    "cellar/wine.py": "import os\n",
}
REPORTED = [
    "__init__:1 imports house.engine.LLM: the front door imports lazily",
    f"cache.pool:3 imports house.native: {ONLY_CALLERS}",
    "cellar.wine:1 imports os: 'cellar' is no room of the house",
    f"cli.main:2 imports house.native: {ONLY_CALLERS}",
    "control.cost:1 imports house.draft.base.Drafter: control and draft do not know each other",
    "core.types:1 imports house.model.decoder: core stands below model",
    "draft.suffix:1 imports house.control.cost: draft and control do not know each other",
    "engine.step:3 imports house.LLM: the front door is for users and edges",
    f"model.decoder:1 imports house.native.gemm: {ONLY_CALLERS}",
    "model.decoder:2 imports starlette.routing: only serve imports web packages",
    "native:2 imports house.cache: native stands below cache",
    "sampling.verify:2 imports house.draft.suffix.Suffix: sampling stands below draft",
    "serve.app:3 imports house.bench.plots: serve and bench are both edges",
    "serve.app:4 imports house.cli.main: serve stands below cli",
]


def test_the_checker_reports_every_planted_violation_and_no_other(tmp_path: Path) -> None:
    house = tmp_path / "house"
    for name, text in PLANTED.items():
        path = house / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert sorted(broken_laws(house)) == REPORTED


def test_the_checker_reports_long_files_and_functions(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n" * 9, encoding="utf-8")
    (tmp_path / "b.py").write_text("def f():\n" + "    x = 1\n" * 4 + "async def g():\n    x = 1\n", encoding="utf-8")
    assert too_long(tmp_path, most_lines=9, most_function_lines=5) == ["    9 a (file)", "    5 b.f (function)"]
    assert too_long(tmp_path, most_lines=10, most_function_lines=6) == []
