"""Copies a finished run to where others read it: a folder, a folder at an address, or a dataset on the Hub.

In: a finished run's folder, and `publish=`. Out: its vectors, metrics and manifest there.

How: all or nothing, and resumable. The manifest, which makes a folder a run, is written last; until then a
file of the place's own says whose files are there and which are whole, by their SHA-256, so that the same command
copies what is missing alone. A place that holds anything else is refused, and so is a folder with another run in it.

What is not published: the journal, logs, the profile, the page and the index; `rejected.jsonl`, since it is about the
input; and of the manifest's configuration where input and folder were. The texts go along unless `writer.keep_text` was
false: they are in the vectors' files.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from memvec.errors import ConfigError, MemvecError, RunFolderError
from memvec.fields import JsonObject
from memvec.files import MOST_BYTES
from memvec.layout import MANIFEST, RunLayout
from memvec.remote import local_path, open_remote
from memvec.run.card import shown_name
from memvec.run.hub import HUB, HubDataset
from memvec.run.manifest import Manifest, read_manifest
from memvec.run.parts import check_parts, part_rows
from memvec.run.places import FolderHere, FolderThere, Place
from memvec.run.remote import FILES, sha256_of
from memvec.urls import WEB, is_url

OPTION = "publish"
HUB_PROTOCOL = "hf://"
# What has been copied while not all is: the run, and the checksums of files that are whole.
UNFINISHED = ".publishing.json"
# Options of the configuration that say where something was: they keep its name.
PLACES_OF_INPUT = ("path", "output_dir", "publish", "reuse", "queries")

log = logging.getLogger(__name__)


def open_place(publish: Any, folder: RunLayout) -> Place | HubDataset:
    """Returns where a run is to be copied, having asked it what it holds, so that what is wrong is said early.

    Args:
        publish: The option: a folder, an address, or `hf://datasets/NAME`.
        folder: The run's folder, which need not exist yet.

    Raises:
        ConfigError: It is none of these, or lies in the run's folder, or the run's folder in it.
        ExtraError: The package of its protocol is not installed.
        RunFolderError: The place cannot be reached, or lets nobody in, or holds something else.
    """
    if not isinstance(publish, str) or not publish:
        raise ConfigError("publish", publish, allowed=f"a folder, an address such as s3://bucket/run, or {HUB}NAME")
    if publish.startswith(HUB):
        dataset = HubDataset(publish)
        dataset.check()
        if dataset.read_manifest() is not None:
            _refuse_other_run(dataset, folder)
        return dataset
    url = local_path(publish)
    if url.lower().startswith(WEB):
        raise ConfigError("publish", url, found="the web is only read", allowed=f"a folder, s3://, gs://, {HUB}NAME, …")
    if url.lower().startswith(HUB_PROTOCOL):
        raise ConfigError("publish", url, allowed=f"on the Hub {HUB}NAME")
    place: Place
    if is_url(url):
        place = FolderThere(*open_remote(url, option=OPTION), url)
    else:
        place = FolderHere(RunLayout(url).root)
        for inner, outer in ((place.root, folder.root), (folder.root, place.root)):
            if inner.is_relative_to(outer):
                advice = "name a place beside the run's folder"
                raise ConfigError("publish", url, found=f"{inner} lies in {outer}", advice=advice)
    there = place.sizes()
    refuse_other_files(place, there)
    if MANIFEST in there:
        _refuse_other_run(place, folder)
    return place


def _refuse_other_run(place: Place | HubDataset, folder: RunLayout) -> None:
    """Refuses a place that holds a finished run, unless that may be a copy of the one in the run's folder.

    Raises:
        RunFolderError: There is none in that folder yet.
    """
    if not folder.manifest.is_file():
        raise RunFolderError(place.name, found="holds another run", advice="name another place")


def refuse_other_files(place: Place, there: dict[str, int]) -> None:
    """Refuses a place in which something else lies.

    Args:
        place: Where.
        there: The bytes of its files, by name.

    Raises:
        RunFolderError: There are files, of neither a published run nor one that is being published.
    """
    if there and MANIFEST not in there and UNFINISHED not in there:
        shown = ", ".join(sorted(there)[:5])
        raise RunFolderError(place.name, found=f"holds other files ({shown})", advice="name an empty or new place")


def publish_run(folder: RunLayout, place: Place | HubDataset) -> None:
    """Copies a finished run, or what is missing of it.

    Args:
        folder: The run's folder.
        place: As `open_place` returns it.

    Raises:
        RunFolderError: The place holds something else, or cannot be written; the run is left as it is.
        WriterError: The same, of a folder here.
    """
    try:
        manifest = read_manifest(folder)
        files = published_files(folder, manifest)
        checksums = {name: sha256_of(path) for name, path in files.items()}
        content = published_manifest(folder, files, checksums, keeps_paths=not isinstance(place, HubDataset))
        if isinstance(place, HubDataset):
            is_new = place.commit(files, content, manifest)
        else:
            is_new = _copy(folder, files, checksums, content, place)
    except MemvecError as error:
        error.advise(f"the run in {folder.root} is complete, and the same command publishes it")
        raise
    log.info("published in %s%s", place.name, "" if is_new else " already; nothing to do")


def published_files(folder: RunLayout, manifest: Manifest) -> dict[str, Path]:
    """Returns what is published of a run but its manifest: paths by their names in it."""
    parts = {path.relative_to(folder.root).as_posix(): path for path in check_parts(folder, manifest)}
    beside = {path.name: path for path in (folder.metrics, folder.history) if path.is_file()}
    return {**parts, **beside}


def published_manifest(
    folder: RunLayout, files: dict[str, Path], checksums: dict[str, str], *, keeps_paths: bool
) -> bytes:
    """Returns the manifest as it is published: with the files' checksums, without where things were on this machine.

    Args:
        folder: The run's folder.
        files: What is published, by name.
        checksums: Their SHA-256.
        keeps_paths: Whether the path of a model or adapter here stays, with which the owner can search; else only its
            name does.
    """
    content = JsonObject.read(folder.manifest).content
    content["config"] = _without_places(content["config"])
    notes = JsonObject(folder.manifest, content).within("notes")
    if notes.has("reused"):
        reused = notes.within("reused").take_all(int)
        content["notes"]["reused"] = {Path(name).name: rows for name, rows in reused.items()}
    model = content["config"]["model"]
    if not keeps_paths:
        model |= {name: shown_name(str(model[name])) for name in ("name_or_path", "adapter") if model.get(name)}
    content["parts"] = part_rows(folder)  # an earlier version did not note them
    content[FILES] = {name: {"bytes": path.stat().st_size, "sha256": checksums[name]} for name, path in files.items()}
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8", "backslashreplace")


def _without_places(config: Any, name: str = "") -> Any:
    if isinstance(config, dict):
        return {key: _without_places(value, str(key)) for key, value in config.items()}
    if name in PLACES_OF_INPUT and isinstance(config, list):
        return [_without_places(value, name) for value in config]
    if name in PLACES_OF_INPUT and isinstance(config, str) and not is_url(config):
        return Path(config).name
    return config


def _copy(folder: RunLayout, files: dict[str, Path], checksums: dict[str, str], content: bytes, place: Place) -> bool:
    """Copies what is not there; returns whether there was anything."""
    there = place.sizes()
    sizes = {name: path.stat().st_size for name, path in files.items()}
    refuse_other_files(place, there)
    run = JsonObject.read(folder.manifest).content["fingerprint"]
    if MANIFEST in there:
        if place.read(MANIFEST) != content:
            raise RunFolderError(place.name, found="holds another run", advice="name another place")
        whole = dict(checksums)
    else:
        whole = _whole_files(place, there, run)
    missing = [name for name in files if whole.get(name) != checksums[name] or there.get(name) != sizes[name]]
    if MANIFEST in there and not missing:
        if UNFINISHED in there:
            _remove_note(place)
        return False
    note = {"run": run, "files": whole}
    if UNFINISHED not in there:
        place.write(UNFINISHED, json.dumps(note).encode())
    for name in missing:
        log.info("publishing %s in %s", name, place.name)
        place.put(name, files[name])
        whole[name] = checksums[name]
        place.write(UNFINISHED, json.dumps(note).encode())
    there = place.sizes()
    for name, size in sizes.items():
        if there.get(name) != size:
            found = f"{name} has {there.get(name)} bytes there and {size} here"
            raise RunFolderError(place.name, found=found, advice="try again")
    place.write(MANIFEST, content)
    _remove_note(place)
    return True


def _whole_files(place: Place, there: dict[str, int], run: Any) -> dict[str, str]:
    """Returns the checksums of what an earlier attempt has copied whole.

    Raises:
        RunFolderError: What is there is something else's.
    """
    found = place.read(UNFINISHED) if UNFINISHED in there else None
    if found is None:
        return {}
    try:
        note = json.loads(found[:MOST_BYTES])
        if note["run"] != run:
            raise RunFolderError(place.name, found="another run is being published there", advice="name another place")
        return {name: checksum for name, checksum in note["files"].items() if isinstance(checksum, str)}
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return {}  # damaged: all is copied again


def _remove_note(place: Place) -> None:
    with suppress(MemvecError, OSError):  # it may be allowed to write and not to delete; nobody reads it any more
        place.remove(UNFINISHED)
