"""Hasten: exactly the text the model would have given, several times sooner.

    from hasten import LLM, SamplingParams

    with LLM("smollm2-135m") as llm:
        print(llm.chat([{"role": "user", "content": "Why is the sky blue?"}], SamplingParams(max_tokens=64)).text)

Importing this package is light: torch is loaded when ``LLM`` is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hasten.core.config import EngineConfig
from hasten.core.errors import HastenError
from hasten.core.results import Completion, StreamEvent
from hasten.core.types import SamplingParams

if TYPE_CHECKING:
    from hasten.engine.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "Completion", "EngineConfig", "HastenError", "SamplingParams", "StreamEvent", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from hasten.engine.llm import LLM

        return LLM
    raise AttributeError(f"module 'hasten' has no attribute {name!r}")
