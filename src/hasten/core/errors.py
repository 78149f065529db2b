"""Every error a user of Hasten can meet.

    HastenError                    base: one sentence that says what was wrong, what is allowed, what to do
    ├── InvalidRequest             a parameter or prompt that can never be served (HTTP 400)
    │   └── PromptTooLong          prompt and output cannot fit the context or the pool
    ├── ConfigError                a flag, environment variable or TOML key that is unknown or out of range
    ├── ModelError                 a model that cannot be used
    │   ├── ModelNotFound          no file, folder, catalogue name or hub id of that name
    │   ├── CorruptModel           truncated, malformed or hostile file, or a checksum that does not match
    │   ├── UnsupportedModel       an architecture, tensor type or tokenizer that Hasten does not read
    │   └── VocabularyMismatch     a draft model whose vocabulary differs from the target's
    ├── DownloadError              network, index or disk trouble while fetching; a repeated call resumes
    └── OutOfBlocks                the cache pool has no free block (internal: answered by preemption)

Wrong input raises one of these before any work starts. ``assert`` is for Hasten's own mistakes only.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "CorruptModel",
    "DownloadError",
    "HastenError",
    "InvalidRequest",
    "ModelError",
    "ModelNotFound",
    "OutOfBlocks",
    "PromptTooLong",
    "UnsupportedModel",
    "VocabularyMismatch",
]


class HastenError(Exception):
    """Base of every error that is shown to the user as one sentence."""


class InvalidRequest(HastenError, ValueError):
    """A parameter or prompt that can never be served."""


class PromptTooLong(InvalidRequest):
    """Prompt and requested output cannot fit the model's context or the cache pool."""


class ConfigError(HastenError, ValueError):
    """An unknown or out-of-range setting."""


class ModelError(HastenError):
    """A model that cannot be used."""


class ModelNotFound(ModelError):
    """Nothing of that name: no file, no folder, no catalogue entry, no hub id."""


class CorruptModel(ModelError):
    """A truncated, malformed or hostile model file, or one whose checksum does not match."""


class UnsupportedModel(ModelError):
    """An architecture, tensor type or tokenizer that Hasten does not read."""


class VocabularyMismatch(ModelError):
    """A draft model whose vocabulary differs from the target's."""


class DownloadError(HastenError):
    """Network, index or disk trouble while fetching a model; a repeated call resumes."""


class OutOfBlocks(HastenError):
    """The cache pool has no free block; the engine answers by preempting a sequence."""
