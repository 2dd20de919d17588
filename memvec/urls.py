"""Addresses of remote files (`s3://bucket/key`): told apart from paths, and shown without what is secret in them.

In: what a user has typed, a message, a configuration. Out: the same, with `…` in the place of a name and password
before the host, and of the query of a web address, which may hold a signature.

Why every message: a library's error repeats the address that it was given. `memvec.errors` passes all of them through
here, and what is kept (manifest, `rejected.jsonl`) holds addresses in this form.
"""

from __future__ import annotations

import re
from typing import Any

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
ANYWHERE = re.compile(rf"{ADDRESS.pattern}\S+")
WEB = ("http://", "https://")
# Before a web host all is secret, a token too; elsewhere a name alone is none (`abfs://container@account`,
# `hf://datasets/NAME@revision`), and a secret key may have slashes.
USER_OF_WEB = re.compile(r"(?<=://)[^/\s?#]*@")
USER = re.compile(r"(?<=://)[^/\s@:]*:\S*@")
QUERY = re.compile(r"\?(?!…).+", re.DOTALL)  # but one that is masked already, and what a message says behind it
# Options that hold addresses, by the last part of their names.
OPTIONS = frozenset({"path", "publish", "reuse", "output_dir"})


def is_url(path: object) -> bool:
    """Whether a path is an address, such as `https://host/a.jsonl`."""
    return isinstance(path, str) and ADDRESS.match(path) is not None


def has_secret_user(url: str) -> bool:
    """Whether an address, of anything but the web, holds a name and password."""
    return not url.lower().startswith(WEB) and USER.search(url) is not None


def masked(url: str) -> str:
    """Returns an address as it may be shown; anything else as it is."""
    if not is_url(url):
        return url
    if url.lower().startswith(WEB):
        return QUERY.sub("?…", USER_OF_WEB.sub("…@", url, count=1))
    return USER.sub("…@", url, count=1)


def masked_text(text: str) -> str:
    """Returns a text with every address in it as it may be shown."""
    return ANYWHERE.sub(lambda found: masked(found[0]), text) if "://" in text else text


def masked_config(config: Any, name: str = "") -> Any:
    """Returns a configuration, of plain dictionaries and lists, with the addresses of its options as they may be shown.

    Args:
        config: The whole, or what stands under a name.
        name: That name.
    """
    if isinstance(config, dict):
        return {key: masked_config(value, str(key)) for key, value in config.items()}
    if isinstance(config, list):
        return [masked_config(value, name) for value in config]
    return masked(config) if name in OPTIONS and isinstance(config, str) else config
