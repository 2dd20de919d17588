"""Packages that only some of memvec needs, which `pip install 'memvec[EXTRA]'` brings."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from memvec.errors import ExtraError


def import_extra(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Imports a module of an optional package.

    Args:
        module: Its name, such as `sklearn.manifold`.
        extra: The extra of pyproject.toml that brings it.
        purpose: What needs it, for the message.

    Raises:
        ExtraError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        advice = f"pip install 'memvec[{extra}]'"
        raise ExtraError(purpose, found=f"needs {package}, which is missing", advice=advice) from error
