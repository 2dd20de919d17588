"""What the Hugging Face Hub's client says while it waits for an answer, once.

In: whatever asks the Hub for a model or a dataset. Out: one line in memvec's log, at the first attempt that fails.

Why: huggingface_hub tries six times for each of several files and warns twice each time, by a handler of its own on
stderr and, under Hydra, on stdout too; the error that ends it all says the same once more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

HUB_LOGGER = "huggingface_hub.utils._http"

log = logging.getLogger(__name__)


@contextmanager
def hub_warns_once() -> Iterator[None]:
    """Passes on the first warning of the Hub's client, and no other."""
    warned = False

    def pass_on(record: logging.LogRecord) -> bool:
        nonlocal warned
        if record.levelno != logging.WARNING:
            return True
        if not warned:
            log.warning("the Hub: %s; trying again (HF_HUB_OFFLINE=1 takes what is cached)", record.getMessage())
        warned = True
        return False

    logger = logging.getLogger(HUB_LOGGER)
    logger.addFilter(pass_on)
    try:
        yield
    finally:
        logger.removeFilter(pass_on)
