"""A chat server's client, against a server that does its worst."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import httpx2
import pytest

from memvec.errors import ConfigError, ServerError
from memvec.generation import client as client_module
from memvec.generation.build import build_generator
from memvec.generation.client import ChatClient, RequestCounts
from memvec.generation.replies import Answer, refusal
from memvec.generation.server import ChatServer
from tests.helpers.chat_server import (
    KEY,
    ChatServerDouble,
    Trouble,
    chat_server,
    completion,
    drips,
    endless,
    half,
    hangs,
    hangs_up,
    refuses,
    replies,
)
from tests.helpers.configs import compose
from tests.helpers.processes import SLOWNESS
from tests.helpers.refusals import refused, refused_as

TEXT = "Ann: This is number 7.\nBo: So it is"
PATIENCE = round(2 * SLOWNESS, 1)  # seconds in which this machine answers for certain
ANSWER = '{"memories": ["Ann has the number 7.", "Bo agrees with everything."]}'


@pytest.fixture(autouse=True)
def _asks_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about how long it waits for a server that says nothing of it."""
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.02)


def configured(base_url: str, *overrides: str) -> ChatServer:
    given = [f"generation.base_url={base_url}", "generation.model=m", "generation.retries=1", *overrides]
    server = build_generator(compose(["generation=server", *given], config_name="generate"))
    assert isinstance(server, ChatServer)
    return server


def asked(double: ChatServerDouble, *overrides: str, text: str = TEXT) -> tuple[Answer | str, ChatClient]:
    """Returns what is answered about a text, behind a greeting, and the client."""

    async def run() -> tuple[Answer | str, ChatClient]:
        async with ChatClient(configured(double.base_url, *overrides), RequestCounts()) as client:
            await client.greet()
            return await client.ask(text, client.server.sampling(3, attempt=0)), client

    with chat_server(double):
        return asyncio.run(run())


def test_a_request_has_model_prompt_sampling_and_schema() -> None:
    double = ChatServerDouble()
    answer, client = asked(double, "generation.temperature=0.5", "generation.extra_body={top_k: 5}")
    assert answer == Answer(ANSWER, is_cut=False, prompt_tokens=100, completion_tokens=10)
    request = double.asked[-1]
    assert request.path == "/v1/chat/completions"
    body = request.body
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("m", 0.5, 1.0, 512)
    assert (body["top_k"], body["chat_template_kwargs"]) == (5, {"enable_thinking": False})
    assert 0 <= body["seed"] < 2**31
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["memories"]
    assert [message["role"] for message in body["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert body["messages"][-1]["content"].endswith(f"Conversation:\n{TEXT}")
    assert client.counts == RequestCounts(requests=2, retries=0, prompt_tokens=200, completion_tokens=20)


def test_the_seed_depends_on_window_attempt_and_run_alone() -> None:
    servers = [configured("http://a/v1", f"generation.seed={seed}") for seed in (0, 1)]
    places = [(seed, row, attempt) for seed in (0, 1) for row in (0, 1) for attempt in (0, 1)]
    seeds = [servers[seed].sampling(row, attempt=attempt)["seed"] for seed, row, attempt in places]
    assert len(set(seeds)) == 8
    assert servers[0].sampling(1, attempt=1)["seed"] == seeds[places.index((0, 1, 1))]
    assert [servers[0].sampling(0, attempt=attempt)["temperature"] for attempt in (0, 1)] == [0.0, 0.7]


@pytest.mark.parametrize(
    ("unknown", "left_out"),
    [
        (("response_format",), ["response_format"]),
        (("seed",), ["seed"]),
        (("chat_template_kwargs", "seed"), ["chat_template_kwargs", "seed"]),
        (("max_tokens",), ["max_tokens"]),
    ],
)
def test_a_field_that_the_server_refuses_is_left_out(unknown: tuple[str, ...], left_out: list[str]) -> None:
    double = ChatServerDouble(unknown=unknown)
    answer, client = asked(double)
    assert isinstance(answer, Answer)
    assert client.left_out == left_out
    body = double.asked[-1].body
    assert not set(unknown) & set(body)
    assert body.get("max_tokens") == (None if "max_tokens" in unknown else 512)
    assert body.get("max_completion_tokens") == (512 if "max_tokens" in unknown else None)
    assert len(double.asked) == 2 + len(unknown)


TROUBLES: dict[str, tuple[Trouble, str]] = {
    "429": (refuses(429, "slow down"), "429 slow down"),
    "500": (refuses(500, "oops"), "500 oops"),
    "503 in HTML": (replies("<h1>busy</h1>", 503, Content_Type="text/html"), "503 <h1>busy</h1>"),
    "hangs up": (hangs_up, "disconnected without sending a response"),
    "half a body": (half, "without sending complete message body"),
    "hangs": (hangs(4 * PATIENCE), f"no reply within {PATIENCE:g} s"),
    "drips": (drips, f"no reply within {PATIENCE:g} s"),
    "endless": (endless, "longer than 16,777,216 bytes"),
    "a zip bomb": (replies(gzip.compress(bytes(2**20)), Content_Encoding="gzip"), "compressed, though"),
    "no JSON": (replies("{"), "no chat completion: '{'"),
    "other JSON": (replies([]), "no chat completion: '[]'"),
    "no choice": (replies({"choices": []}), "no chat completion"),
    "no text": (replies(completion(["a"])), "no chat completion"),  # type: ignore[arg-type]
    "deep JSON": (replies("[" * 100_000), "no chat completion"),
    "not UTF-8": (replies(b"\xff\xfe{"), "no chat completion"),
}

WAITED_FOR = {"hangs", "drips"}
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in WAITED_FOR else ()) for name in TROUBLES]


def patience(name: str) -> str:
    """Returns the override of how long a reply is waited for."""
    return f"generation.timeout={PATIENCE if name in WAITED_FOR else 60 * SLOWNESS}"


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_answered_is_asked_again(name: str) -> None:
    trouble, _ = TROUBLES[name]
    answer, client = asked(ChatServerDouble(troubles={"number 7": (trouble, 1)}), patience(name))
    assert answer == Answer(ANSWER, is_cut=False, prompt_tokens=100, completion_tokens=10)
    assert (client.counts.requests, client.counts.retries) == (3, 1)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_never_answered_is_one_failed_text(name: str) -> None:
    trouble, reason = TROUBLES[name]
    answer, client = asked(ChatServerDouble(troubles={"number 7": (trouble, None)}), patience(name))
    assert isinstance(answer, str)
    assert answer.startswith("the server gave no answer: ")
    assert reason in answer
    assert (client.counts.requests, client.counts.retries) == (4, 1)  # the last one asks whether it is there


@pytest.mark.parametrize("name", ["500", "hangs up", "no JSON"])
def test_a_server_that_answers_nothing_is_one_line(name: str) -> None:
    trouble, reason = TROUBLES[name]
    with refused(ServerError, "generation.base_url", found=reason) as caught:
        asked(ChatServerDouble(always=trouble))
    assert str(caught.value).endswith("(after 1 retries)")
    assert str(caught.value).startswith("generation.base_url=http://127.0.0.1:")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message", "body"),
    [
        (400, "maximum context length is 4096", {"error": {"message": "maximum context length is 4096"}}),
        (413, "too long", "too long"),
        (422, "too many tokens", {"detail": "too many tokens"}),
        (403, "flagged", {"error": "flagged"}),
        (400, '["a", "b"]', {"message": ["a", "b"]}),
    ],
)
def test_a_text_that_is_refused_is_not_asked_again(status: int, message: str, body: Any) -> None:
    double = ChatServerDouble(troubles={"number 7": (replies(body, status), None)})
    answer, client = asked(double)
    assert answer == f"the server gave no answer: {status} {message}"
    assert (client.counts.requests, client.counts.retries, client.left_out) == (3, 0, [])


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (completion("half an ans", finish="content_filter"), "its content filter stopped the answer"),
        (completion(None, refusal="I can't\nhelp"), "its model refused: I can't help"),
    ],
)
def test_a_filter_or_a_refusal_is_one_failed_text(reply: Any, reason: str) -> None:
    answer, client = asked(ChatServerDouble(troubles={"number 7": (replies(reply), None)}))
    assert answer == f"the server gave no answer: {reason}"
    assert client.counts.requests == 2


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (completion(None), Answer("", is_cut=False, prompt_tokens=100, completion_tokens=10)),
        (completion("- a", finish="length"), Answer("- a", is_cut=True, prompt_tokens=100, completion_tokens=10)),
        ({**completion("a"), "usage": None}, Answer("a", is_cut=False, prompt_tokens=0, completion_tokens=0)),
        (
            {**completion("a"), "usage": {"prompt_tokens": 10**30, "completion_tokens": "9"}},
            Answer("a", is_cut=False, prompt_tokens=2**31 - 1, completion_tokens=0),
        ),
        (completion("a\ud800b"), Answer("a?b", is_cut=False, prompt_tokens=100, completion_tokens=10)),
    ],
)
def test_an_unusual_answer_is_taken_as_it_is(reply: Any, expected: Answer) -> None:
    body = json.dumps(reply)
    assert asked(ChatServerDouble(troubles={"number 7": (replies(body), None)}))[0] == expected


@pytest.mark.slow
@pytest.mark.parametrize("given", ["seconds", "date"])
def test_retry_after_is_heeded_by_all_requests(given: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="memvec")
    until = int(time.time()) + 3
    after = "1" if given == "seconds" else formatdate(until, usegmt=True)
    double = ChatServerDouble(troubles={"number 7": (refuses(429, Retry_After=after), 1)})

    async def run() -> None:
        async with ChatClient(configured(double.base_url), RequestCounts()) as client:
            sampling = client.server.sampling(0, attempt=0)
            first = asyncio.create_task(client.ask(TEXT, sampling))
            while "trying again" not in caplog.text:  # until the client knows when it may
                await asyncio.sleep(0.01)
            await client.ask("Ann: This is number 8.", sampling)
            assert isinstance(await first, Answer)

    with chat_server(double):
        asyncio.run(run())
    refused, *later = [request for request in double.asked if "number" in request.text]
    assert len(later) == 2
    assert min(request.at for request in later) > (refused.at + 1 if given == "seconds" else until) - 0.05


@pytest.mark.parametrize("given", ["-5", "nan", "soon", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_retry_after_without_sense_holds_nothing_up(given: str) -> None:
    answer, _ = asked(ChatServerDouble(troubles={"number 7": (refuses(503, Retry_After=given), 1)}))
    assert isinstance(answer, Answer)
    assert not refusal(httpx2.Response(503, headers={"Retry-After": given}), key="").wait


def test_a_redirect_is_not_followed_and_named() -> None:
    elsewhere = ChatServerDouble()
    with chat_server(elsewhere):
        target = f"{elsewhere.base_url}/chat/completions"
        with refused(ServerError, "generation.base_url", found=f"307 redirects to {target}, which is not followed"):
            asked(ChatServerDouble(always=replies("", 307, Location=target)))
    assert elsewhere.asked == []


@pytest.mark.parametrize(("variable", "state"), [("OPENAI_API_KEY", "set"), ("MY_KEY", "set"), ("ANOTHER", "not set")])
def test_the_key_is_sent_and_never_shown(
    variable: str, state: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if state == "set":
        monkeypatch.setenv(variable, KEY)
    double = ChatServerDouble()
    with caplog.at_level("DEBUG"):
        asked(double, f"generation.key_variable={variable}")
        sent = double.asked[-1].headers["authorization"]
        assert sent == ("Bearer none" if state == "not set" else f"Bearer {KEY}")
        advice = f"the key is what {variable} holds, which is {state}"
        with refused(ServerError, found="401 Wrong key: Bearer ", advice=advice) as caught:
            asked(ChatServerDouble(always=refuses(401, f"Wrong key: {sent}")), f"generation.key_variable={variable}")
    assert KEY not in str(caught.value) + str(vars(caught.value)) + caplog.text


def test_nobody_listening_is_one_line(closed_port: int) -> None:
    async def run() -> None:
        async with ChatClient(configured(f"http://127.0.0.1:{closed_port}/v1"), RequestCounts()) as client:
            await client.greet()

    with refused(ServerError, "generation.base_url", f"http://127.0.0.1:{closed_port}/v1", found="(after 1 retries)"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("base_url=127.0.0.1:8000", ConfigError("generation.base_url", "127.0.0.1:8000", allowed="an address such as")),
        ("base_url=ftp://a/v1", ConfigError("generation.base_url", "ftp://a/v1", allowed="an address such as")),
        (
            "base_url=http://a:port/v1",
            ConfigError("generation.base_url", "http://a:port/v1", allowed="an address such as"),
        ),
        (f"base_url='https://me:{KEY}@a/v1'", ConfigError("generation.base_url", allowed="an address")),
        (f"base_url='https://a/v1?key={KEY}'", ConfigError("generation.base_url", allowed="an address")),
        ("model=''", ConfigError("generation.model", "", allowed="one name")),
        ("concurrency=0", ConfigError("generation.concurrency", 0, allowed="an integer of at least 1")),
        ("timeout=0", ConfigError("generation.timeout", 0, allowed="a number of at least 0.001")),
        ("retries=-1", ConfigError("generation.retries", -1, allowed="an integer of at least 0")),
        ("max_new_tokens=0", ConfigError("generation.max_new_tokens", 0, allowed="an integer of at least 1")),
        ("temperature=-1", ConfigError("generation.temperature", -1, allowed="a number of at least 0.0")),
        ("top_p=2", ConfigError("generation.top_p", 2, allowed="a number from 0.0 to 1.0")),
        ("attempts=3", ConfigError("generation.attempts", 3, allowed="1, 2")),
        ("extra_body={seed: 1}", ConfigError("generation.extra_body.seed", found="memvec sets it")),
    ],
)
def test_a_wrong_option_is_one_line_without_the_key(override: str, expected: ConfigError) -> None:
    with refused_as(expected) as caught:
        configured("http://a/v1", f"generation.{override}")
    assert KEY not in str(caught.value) + str(vars(caught.value))


@pytest.mark.parametrize("missing", ["base_url", "model"])
def test_an_option_that_must_be_given_is_named(missing: str) -> None:
    given: dict[str, Callable[[], str]] = {"base_url": lambda: "http://a/v1", "model": lambda: "m"}
    overrides = [f"generation.{name}={value()}" for name, value in given.items() if name != missing]
    with refused(ConfigError, f"generation.{missing}", found="not set"):
        build_generator(compose(["generation=server", *overrides], config_name="generate"))
