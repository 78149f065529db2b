"""Hasten: exactly the text the model would have given, sooner.

    from hasten import LLM, SamplingParams

    with LLM("smollm2-135m") as llm:
        print(llm.chat([{"role": "user", "content": "Why is the sky blue?"}], SamplingParams(max_tokens=64)).text)

Importing this package is light: each name brings its module, and ``LLM`` torch, when it is first asked for.
"""

# Nothing is imported before the command line can take a Ctrl-C, not even typing: that alone takes longer than Python's own start.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from hasten.core.config import EngineConfig, SpeculationParams
    from hasten.core.errors import HastenError
    from hasten.core.results import Completion, StreamEvent
    from hasten.core.types import SamplingParams
    from hasten.engine.grammar import Form
    from hasten.engine.llm import LLM

__version__ = "0.1.0"
__all__ = [
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

_MODULES = {
    "LLM": "hasten.engine.llm",
    "Completion": "hasten.core.results",
    "EngineConfig": "hasten.core.config",
    "Form": "hasten.engine.grammar",
    "HastenError": "hasten.core.errors",
    "SamplingParams": "hasten.core.types",
    "SpeculationParams": "hasten.core.config",
    "StreamEvent": "hasten.core.results",
}


def __getattr__(name: str) -> "Any":
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'hasten' has no attribute {name!r}")
