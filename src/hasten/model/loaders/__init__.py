"""Reading models from disk: GGUF files and Hugging Face folders, hostile until checked.

``open_source`` gives a ``WeightSource``: what the model is (``ModelDescription``) and its weights as canonical float32.
"""

from __future__ import annotations

from pathlib import Path

from hasten.core.errors import ModelNotFound
from hasten.model.loaders.folder_source import open_folder
from hasten.model.loaders.gguf_source import open_gguf
from hasten.model.loaders.source import WeightSource

__all__ = ["WeightSource", "open_source"]


def open_source(path: Path | str) -> WeightSource:
    """Open a ``*.gguf`` file or a folder with ``config.json`` and safetensors weights.

    Reads and checks every header, no weights. Raises ModelNotFound, CorruptModel or UnsupportedModel.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return open_folder(path)
    except OSError as problem:
        raise ModelNotFound(f"{path} cannot be read ({problem.strerror}); give a folder that holds a model.") from problem
    if path.name in ("config.json", "model.safetensors", "model.safetensors.index.json"):
        raise ModelNotFound(f"{path} is one file of a model; give the folder that holds it, {path.parent}.")
    return open_gguf(path)
