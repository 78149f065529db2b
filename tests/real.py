"""Real models and shared data for tests: found by catalogue name or variable, else the test is skipped with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hasten.core.errors import HastenError
from hasten.model.catalogue import resolve
from hasten.model.tokenizer import load_tokenizer


def model_path(name: str) -> Path:
    """The file of a catalogue model. Only what is on disk is used, unless HASTEN_TEST_FETCH=1 allows downloads."""
    try:
        return resolve(name, fetch=os.environ.get("HASTEN_TEST_FETCH") == "1").path
    except HastenError as problem:
        pytest.skip(f"needs the model {name}: {problem}")


def shared_data(name: str) -> Path:
    """A file of the shared measuring data: HASTEN_SHARED_DATA, or ../shared/data beside the repository."""
    root = Path(__file__).resolve().parent.parent
    path = Path(os.environ.get("HASTEN_SHARED_DATA", root.parent / "shared" / "data")) / name
    if not path.exists():
        pytest.skip(f"needs {name}; set HASTEN_SHARED_DATA to the folder that holds it")
    return path


def text_tokens(path: Path, count: int) -> list[int]:
    """The first tokens of the shared text in a model's own vocabulary."""
    text = shared_data("wikitext2_test_part.txt").read_text()[: 12 * count]
    return load_tokenizer(path).encode(text, add_bos=False)[:count]
