"""Where drafters that keep something on disk keep it: ``drafts`` in Hasten's own directory. No torch; creates nothing."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from hasten.model import storage


def memory_path() -> Path:
    """The outputs of all models and tenants."""
    return storage.drafts_directory() / "memory.sqlite"


def database_paths(vocabulary: str, model: str) -> tuple[Path, Path]:
    """The databases of a model's own generations and of any text. Models of one vocabulary share the second."""
    return (
        storage.drafts_directory() / f"{_short(f'{vocabulary} {model}')}-model.ngrams",
        storage.drafts_directory() / f"{_short(vocabulary)}-statistics.ngrams",
    )


def arguments_of(drafter: str, model: str, vocabulary: str) -> dict[str, object]:
    """What the drafter of that name is made with unless the user says otherwise; nothing for those that keep nothing.

    ``vocabulary`` is the tokenizer's fingerprint. Databases that have not been built are None.
    """
    if drafter == "memory":
        return {"path": memory_path(), "vocabulary": vocabulary}
    if drafter == "hierarchy":
        own, common = (path if path.exists() else None for path in database_paths(vocabulary, model))
        return {"model": own, "statistics": common, "vocabulary": vocabulary}
    return {}


def free_drafters(model: str, vocabulary: str) -> tuple[str, ...]:
    """What "auto" takes with any model: hierarchy does what suffix does and more, once the model's own database is built."""
    built = arguments_of("hierarchy", model, vocabulary)["model"] is not None
    return ("prediction", "hierarchy" if built else "suffix", "recycling")


def _short(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
