"""What memvec reads from the manifest of a finished run.

In: `manifest.json`, which may be anybody's. Out: a `Manifest`, texts and numbers alone.

Why so narrow: a run's folder is passed on, and its configuration names classes and holds references, which would run
code or tell secrets if they were composed, resolved or instantiated. So nothing from a manifest ever is: each value is
taken by its name and only where it has its type, and what is not named here is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memvec.data.kept import names_to_keep
from memvec.errors import ConfigError, RunFolderError
from memvec.fields import JsonObject, Scalar
from memvec.layout import RunLayout, is_manifest
from memvec.prompt.template import Prompt
from memvec.schema import VECTOR_DTYPES, vector_columns

# What the fingerprints of a run and of an encoder both hold, apart from the layer.
IDENTITY = ("model", "adapter", "dtype", "tokenizer", "template", "chat", "max_length")


@dataclass(frozen=True)
class Manifest:
    """A finished run, in texts and numbers.

    Args:
        finished: When, as ISO 8601.
        versions: Of memvec and its libraries, by name.
        computed: How batches were computed, in words.
        rows: Of the result.
        dimension: The length of a vector; None in a run that has generated texts.
        parts: How many rows each Parquet file of the result has, by its name in the run's folder; None in a manifest of
            an earlier version.
        keep_text: Whether the result has the texts.
        keep_columns: Which columns of the input the result has.
        fingerprint: What decided the vectors, as far as an encoder knows it too.
        max_length: Most tokens in a prompt; None is the model's own limit.
        name_or_path: The model.
        revision: Of a Hub model.
        adapter: The LoRA adapter merged into it; None is none.
        layer: Which hidden state; a list where the result has a column for each of several.
        vector_dtype: Of the numbers in the result.
        normalize: Whether its vectors have unit length.
        prefix_cache: As `model.prefix_cache`.
        tune: As `model.tune`.
        probe: As `model.probe`.
        precision: As `trainer.precision`.
        prompt: What each text was put into; None in a run that has generated texts.
    """

    finished: str
    versions: dict[str, str]
    computed: str
    rows: int
    dimension: int | None
    parts: dict[str, int] | None
    keep_text: bool
    keep_columns: tuple[str, ...]
    fingerprint: dict[str, Scalar | list[int]]
    max_length: int | None
    name_or_path: str
    revision: str | None
    adapter: str | None
    layer: int | list[int]
    vector_dtype: str
    normalize: bool
    prefix_cache: str
    tune: str
    probe: str
    precision: str
    prompt: Prompt | None

    def columns(self, layer: int | None = None) -> dict[int, str]:
        """Returns the layers that are asked for, and the column that each has in the result.

        Args:
            layer: One of the run's; None is all of them.

        Raises:
            ConfigError: It is none of the run's.
        """
        columns = vector_columns(self.layer)
        if layer is None:
            return columns
        if type(layer) is not int or layer not in columns:  # true and 1.0 are no layer
            raise ConfigError("layer", layer, found="not one of the run's", allowed=columns)
        return {layer: columns[layer]}


def find_manifest(folder: RunLayout) -> Manifest | None:
    """Reads the manifest of a folder; None where there is none of memvec's.

    Raises:
        RunFolderError: It is damaged.
    """
    if not folder.manifest.exists():
        return None
    found = JsonObject.read(folder.manifest)
    return known_of(found) if is_manifest(found.content) else None


def read_manifest(folder: RunLayout) -> Manifest:
    """Reads the manifest of a finished run.

    Raises:
        RunFolderError: There is no finished run, or its manifest is damaged.
    """
    found = find_manifest(folder)
    if found is None and folder.journal.is_dir():
        advice = "run the same command again to resume it"
        raise RunFolderError(folder.root, found="holds an unfinished run", advice=advice)
    if found is None:
        raise RunFolderError(folder.root, found="holds no run")
    return found


def known_of(manifest: JsonObject) -> Manifest:
    """Takes from a manifest what memvec reads of it.

    Raises:
        RunFolderError: A value is missing or of another type.
    """
    config, fingerprint = manifest.within("config"), manifest.within("fingerprint")
    writer = config.within("writer")
    data, model, trainer = (config.within(group) for group in ("data", "model", "trainer"))
    prompt = _prompt(config.within("prompt")) if config.has("prompt") else None
    told = fingerprint if fingerprint.has("precision") else trainer  # `auto` and the like are resolved in the former
    return Manifest(
        finished=manifest.take("finished", str),
        versions=manifest.within("versions").take_all(str),
        computed=manifest.take("notes.path", str),
        rows=manifest.take("counts.memories" if prompt is None else "counts.entries", int),
        dimension=None if prompt is None else manifest.take("counts.dimension", int),
        parts=manifest.within("parts").take_all(int) if manifest.has("parts") else None,
        keep_columns=_kept(data),
        keep_text=writer.take_or("keep_text", bool) is not False,
        fingerprint={
            **({"layer": _layer(fingerprint)} if "layer" in fingerprint.content else {}),
            **{name: fingerprint.take_any(name) for name in IDENTITY if name in fingerprint.content},
        },
        max_length=data.take_or("max_length", int),
        name_or_path=model.take_text("name_or_path"),
        revision=model.take_text("revision") if model.has("revision") else None,
        adapter=model.take_text("adapter") if model.has("adapter") else None,
        layer=_layer(model),
        vector_dtype=_vector_dtype(writer),
        normalize=writer.take_or("normalize", bool) is True,
        prefix_cache=model.take_or("prefix_cache", str) or "auto",
        tune=model.take_or("tune", str) or "auto",
        probe=model.take_or("probe", str) or "auto",
        precision=told.take_text("precision") if told.has("precision") else "32-true",
        prompt=prompt,
    )


def _kept(group: JsonObject) -> tuple[str, ...]:
    try:
        return names_to_keep(group.take_list("keep_columns", str)) if group.has("keep_columns") else ()
    except ConfigError as error:
        raise RunFolderError.damaged(group.path, str(error)) from error


def _layer(group: JsonObject) -> int | list[int]:
    layer = group.take_one_or_list("layer", int)
    if isinstance(layer, list) and not 0 < len(layer) == len(set(layer)):
        raise group.refusal("layer", layer, "an integer, or a list of different ones")
    return layer


def _vector_dtype(writer: JsonObject) -> str:
    dtype = writer.take_or("dtype", str) or VECTOR_DTYPES[0]
    if dtype not in VECTOR_DTYPES:
        raise writer.refusal("dtype", dtype, " or ".join(VECTOR_DTYPES))
    return dtype


def _prompt(group: JsonObject) -> Prompt:
    words = group.within("chat_template_kwargs") if group.has("chat_template_kwargs") else None
    try:
        return Prompt(
            group.take("template", str),
            chat=bool(group.take_or("chat", bool)),
            turns=[turn.take_all(str) for turn in group.take_objects("turns")] if group.has("turns") else (),
            chat_template_kwargs={} if words is None else {name: words.take_any(name) for name in words.content},
        )
    except ConfigError as error:
        raise RunFolderError.damaged(group.path, str(error)) from error


def run_settings(folder: RunLayout) -> dict[str, Scalar]:
    """Returns every option of a finished run's configuration by the name of its override; a list in words."""
    return dict(_settings(JsonObject.read(folder.manifest).within("config")))


def _settings(config: JsonObject, outer: str = "") -> Iterator[tuple[str, Scalar]]:
    for name, value in config.content.items():
        override = f"{outer}.{name}".strip(".")
        if isinstance(value, dict):
            yield from _settings(config.within(name), override)
        else:
            yield override, config.checked(name, str(value) if isinstance(value, list) else value)
