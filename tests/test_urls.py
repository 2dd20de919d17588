"""Addresses: what is one, and what of it is shown."""

from __future__ import annotations

import logging

import pytest

from memvec.errors import InputError, OneLineFormatter, one_line
from memvec.urls import has_secret_user, is_url, masked, masked_config, masked_text

SECRET = "s3cr/et+"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a b.jsonl", "s3://bucket/a b.jsonl"),
        (f"s3://AKIA:{SECRET}@bucket/a@b.jsonl", "s3://…@b.jsonl"),
        (f"https://ann:{SECRET.replace('/', '')}@host:8000/a.jsonl", "https://…@host:8000/a.jsonl"),
        ("https://token@host/a.jsonl", "https://…@host/a.jsonl"),
        ("https://host/a.jsonl?X-Amz-Signature=abc&b=c d", "https://host/a.jsonl?…"),
        ("hf://datasets/ann/set@main/a.jsonl", "hf://datasets/ann/set@main/a.jsonl"),
        ("abfs://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net/a"),
        ("s3://bucket/at=12:30/a@b", "s3://bucket/at=12:30/a@b"),
        ("runs/a?b=c@d", "runs/a?b=c@d"),
    ],
)
def test_what_is_secret_in_an_address_is_not_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_an_address_is_told_from_a_path() -> None:
    assert [
        name for name in ("s3://bucket", "HTTPS://host/a", "a://b", "C:\\data", "/s3://x", None) if is_url(name)
    ] == [
        "s3://bucket",
        "HTTPS://host/a",
    ]


def test_name_and_password_are_told_from_what_looks_alike() -> None:
    assert has_secret_user(f"s3://AKIA:{SECRET}@bucket/a")
    assert not has_secret_user("hf://datasets/a@b:c")
    assert not has_secret_user("s3://bucket/at=12:30/a@b")
    assert not has_secret_user("https://ann:word@host/a")  # which the web's client takes from there


def test_no_message_shows_what_is_secret() -> None:
    said = f"403, message='no', url='https://ann:{SECRET.replace('/', '')}@host/a?sig=abc' and s3://A:{SECRET}@bucket"
    record = logging.LogRecord("memvec", logging.WARNING, __file__, 1, "%s", (said,), None)
    for shown in (masked_text(said), str(InputError(said)), one_line(OSError(said)), OneLineFormatter().format(record)):
        assert "host/a" in shown
        assert "s3cr" not in shown
        assert "abc" not in shown


def test_a_configuration_keeps_addresses_without_what_is_secret() -> None:
    config = {
        "data": {"path": ["https://host/a?sig=abc", "b.jsonl"], "limit": 3},
        "publish": f"s3://A:{SECRET}@bucket/run",
        "prompt": {"template": "https://host/?q={text}"},
    }
    assert masked_config(config) == {
        "data": {"path": ["https://host/a?…", "b.jsonl"], "limit": 3},
        "publish": "s3://…@bucket/run",
        "prompt": {"template": "https://host/?q={text}"},
    }
