"""A Hub that does not answer is told of once, by a client that really asks one."""

from __future__ import annotations

import logging

import pytest
from huggingface_hub.utils import http_backoff

from memvec.quiet import hub_warns_once


def ask(port: int) -> None:
    url = f"http://127.0.0.1:{port}/model"
    with pytest.raises(Exception, match="refused"):
        http_backoff("HEAD", url, max_retries=3, base_wait_time=0, max_wait_time=0)


def test_attempts_that_fail_are_told_of_once(
    closed_port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with caplog.at_level(logging.INFO):
        ask(closed_port)
        loud = [record for record in caplog.records if record.name.startswith("huggingface_hub")]
        caplog.clear()
        with hub_warns_once():
            ask(closed_port)
        said = [(record.name, record.getMessage()) for record in caplog.records]
    assert len(loud) > 2
    assert [name for name, _ in said] == ["memvec.quiet"]
    assert "refused" in said[0][1]
    assert said[0][1].endswith("; trying again (HF_HUB_OFFLINE=1 takes what is cached)")


def test_the_clients_own_warnings_are_as_before_afterwards(
    closed_port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with hub_warns_once():
        pass
    ask(closed_port)
    assert any(record.name.startswith("huggingface_hub") for record in caplog.records)
