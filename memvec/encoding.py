"""`memvec.encode`: texts to vectors in one call, by an encoder that is kept for the next call with the same settings.

In: texts, a model's name, settings in the words of `memvec.predict`. Out: a tensor, row i for text i.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from memvec.config.values import PRECISIONS, one_of
from memvec.data.texts import as_values
from memvec.encoder import EMBEDDED, Encoder
from memvec.errors import InputError

_kept: list[tuple[tuple[Any, ...], Encoder]] = []
_kept_lock = threading.Lock()


def encode(
    texts: Sequence[str],
    *,
    model: str | Path | None = None,
    adapter: str | Path | None = None,
    prompt: str = "one_token_zh",
    layer: int | Sequence[int] = -1,
    precision: str = "32-true",
    accelerator: str = "auto",
    batch_size: int = 1024,
    max_tokens: int | Literal["auto"] | None = None,
    max_length: int | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Returns the supervision vectors of texts, by an `Encoder` that is kept for the next call with the same settings.

    Args:
        texts: N texts; each must be a string with something in it.
        model: Model folder, GGUF file or Hub name; None is the embedded default.
        adapter: Folder or Hub name (`owner/name@revision`) of a LoRA adapter that is merged into the weights.
        prompt: A name from conf/prompt, or a template of one's own that contains `{text}`.
        layer: Which hidden state, as in `hidden_states[layer]`; -1 is after the final norm. A list gives several.
        precision: As `trainer.precision`.
        accelerator: As `trainer.accelerator`.
        batch_size: Most texts in a batch.
        max_tokens: Most tokens in a batch; None chooses by the device.
        max_length: Most tokens in one prompt; None is the model's own limit.
        progress: Whether to show a progress bar.

    Returns:
        `[N, D]` float32 on the CPU, row i for `texts[i]`; `[N, L, D]` where `layer` is a list of L.

    Raises:
        ConfigError: An option does not make sense.
        InputError: A text cannot be used, or there is none.
        ModelError: There is no such model.
    """
    if not as_values(texts, name="texts"):
        raise InputError("texts", found="found none", allowed="a list of texts")
    dtype, autocast = precision_dtypes(precision)
    layers = layer if isinstance(layer, int) else tuple(layer)
    settings = (str(model), str(adapter), prompt, layers, precision, accelerator, batch_size, max_tokens, max_length)
    with _kept_lock:
        if not _kept or _kept[0][0] != settings:
            encoder = Encoder(
                EMBEDDED if model is None else model,
                adapter=adapter,
                prompt=prompt,
                layer=layer,
                dtype=dtype,
                autocast=autocast,
                device=device_of(accelerator),
                batch_size=batch_size,
                max_tokens=max_tokens,
                max_length=max_length,
            )
            _kept[:] = [(settings, encoder)]  # the encoder before goes, with its model, when its calls have ended
        encoder = _kept[0][1]
    return encoder.encode(texts, progress=progress)


def precision_dtypes(precision: str) -> tuple[str, str | None]:
    """Returns the dtypes of the weights and of autocast that a `trainer.precision` stands for.

    Raises:
        ConfigError: It is none of Lightning's that an encoder computes in.
    """
    return PRECISIONS[one_of("precision", precision, tuple(PRECISIONS))]


def device_of(accelerator: str) -> str:
    """Returns the device that a `trainer.accelerator` stands for."""
    return {"gpu": "cuda"}.get(accelerator, accelerator)
