"""memvec: memory texts in, LLM hidden-state vectors out, in bulk.

encoder = memvec.Encoder("Qwen/Qwen3-0.6B")                         # holds the model; cheap to make, loads at first use
vectors = encoder.encode(["likes tea", "moved to Lisbon in 2021"])  # [2, D]
memvec.predict(memvec.compose(["data.path=memories.jsonl", "output_dir=runs/a"]))
memvec.extract(memvec.compose(["data.path=conversations.jsonl", "output_dir=runs/b"], config_name="extract"))
dataset = memvec.load("runs/a")
memvec.search("runs/a", ["what does she drink?"], k=3)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from memvec.errors import ConfigError, ExtraError, InputError, MemvecError, ModelError, RunFolderError, WriterError

if TYPE_CHECKING:
    from memvec.config.compose import compose as compose
    from memvec.encoder import Encoder as Encoder
    from memvec.encoding import encode as encode
    from memvec.extract import extract as extract
    from memvec.generate import generate as generate
    from memvec.predict import predict as predict
    from memvec.retrieval.searcher import Searcher as Searcher
    from memvec.run.result import load as load
    from memvec.search import search as search

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "Encoder",
    "ExtraError",
    "InputError",
    "MemvecError",
    "ModelError",
    "RunFolderError",
    "Searcher",
    "WriterError",
    "compose",
    "encode",
    "extract",
    "generate",
    "load",
    "predict",
    "search",
]

# Loaded when first used: `python -m memvec.predict --help` should not wait for torch.
_LAZY = {
    "compose": "memvec.config.compose",
    "Encoder": "memvec.encoder",
    "encode": "memvec.encoding",
    "extract": "memvec.extract",
    "generate": "memvec.generate",
    "load": "memvec.run.result",
    "predict": "memvec.predict",
    "search": "memvec.search",
    "Searcher": "memvec.retrieval.searcher",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'memvec' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    setattr(sys.modules[__name__], name, value)
    return value


class _Package(ModuleType):
    """Keeps `memvec.predict` and its like functions: importing a module of that name would put it in their place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _LAZY and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
