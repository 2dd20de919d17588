"""What libraries say that does not help a user of memvec, silenced here and nowhere else.

In: a library's warnings, tips, reports and progress bars. Out: nothing of them, or one line in memvec's own log. Each
is named with the reason why it does not apply; whatever is not named here is shown.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

HUB_LOGGER = "huggingface_hub.utils._http"

log = logging.getLogger(__name__)


@contextmanager
def hub_warns_once() -> Iterator[None]:
    """Passes on the first warning of the Hub's client, and no other.

    huggingface_hub tries six times for each of several files and warns twice each time, by a handler of its own on
    stderr and, under Hydra, on stdout too; the error that ends it all says the same once more.
    """
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


def ignore_lightning_warnings() -> None:
    """Silences what Lightning warns of where it does not apply to a run that computes vectors."""
    for message in (
        ".*custom batch sampler .* for prediction.*",  # it returns every row, and finalising counts them
        ".*does not have many workers.*",  # batches are built from flat arrays in less time than a worker costs
        ".*Total length of `DataLoader` across ranks is zero.*",  # all was computed before; finalising is left
        ".*isinstance\\(treespec, LeafSpec\\).*is deprecated.*",  # inside Lightning
    ):
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def without_lightning_tips() -> Iterator[None]:
    """Keeps Lightning from telling which accelerators it does not use, and what else could be installed."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def without_loading_report() -> Iterator[None]:
    """Keeps transformers from reporting that the head's weights are not used, which is what is wanted here."""
    import transformers  # seconds to import, and asked for when a model is loaded

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    """Keeps peft from warning of what it does itself, while an adapter is merged."""
    with warnings.catch_warnings():
        for message in (
            ".*fan_in_fan_out.*",  # how a layer's matrix lies in memory, which it finds out
            ".*is_gradient_checkpointing.*deprecated.*",  # which it asks for
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


@contextmanager
def without_dataset_bars() -> Iterator[None]:
    """Keeps `datasets` from drawing progress bars."""
    import datasets  # a second to import, and asked for when a dataset is made

    enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()
