"""What a chat server replies: the answer in it, or why there is none.

In: the response to a request, from a server that may say anything. Out: an `Answer`, or a `Failure` that says whether
the same request may be answered later and whether the text is to blame.

How: a body is read up to `MOST_BYTES`; what does not look like a chat completion is a failure, never an error of
memvec. What the server says is shown short, in one line, and without the key, which it may have repeated.
"""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from memvec.errors import on_one_line

MOST_BYTES = 16 * 2**20
MOST_TOKENS = 2**31 - 1
MOST_CHARACTERS_SHOWN = 300
# Statuses, besides 5xx, that may be others in a moment: timeout, conflict, too early, too many requests.
TRANSIENT = frozenset({408, 409, 425, 429})


@dataclass(frozen=True)
class Answer:
    """What the server's model wrote.

    Args:
        text: As it came.
        is_cut: Whether it was stopped before it came to its end.
        prompt_tokens: Tokens it read, as the server counts; 0 where it does not.
        completion_tokens: Tokens it wrote, likewise.
    """

    text: str
    is_cut: bool
    prompt_tokens: int
    completion_tokens: int


class Failure(Exception):  # noqa: N818 - the client's own; what leaves it is a `ServerError`
    """Says why a request has no answer.

    Args:
        reason: In words that may be shown.
        status: Of HTTP; None where there was none.
        is_transient: Whether the same request may be answered later.
        is_of_text: Whether the server has answered, and has said that the text is why there is nothing.
        wait: Seconds that the server wants to be left alone; None where it does not say.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        is_transient: bool = False,
        is_of_text: bool = False,
        wait: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.is_transient = is_transient
        self.is_of_text = is_of_text
        self.wait = wait


def shown(text: str, *, key: str) -> str:
    """Returns something that a server has said as it may be shown.

    Args:
        text: What it said.
        key: The key, which goes; empty where there is none.
    """
    if key:
        text = text.replace(key, "***")
    line = on_one_line(" ".join(text.split()))
    return line if len(line) <= MOST_CHARACTERS_SHOWN else f"{line[:MOST_CHARACTERS_SHOWN]}…"


def read_answer(content: bytes, *, key: str) -> Answer:
    """Reads the body of a response with status 200.

    Args:
        content: The body.
        key: The key, which no message shows.

    Raises:
        Failure: There is no answer in it.
    """
    try:
        completion = json.loads(content)
        choice = completion["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
        if not isinstance(text, str | None):
            raise TypeError("the content is not a text")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        beginning = shown(content.decode("utf-8", "replace"), key=key)[:80]
        raise Failure(f"the reply is no chat completion: {beginning!r}", is_transient=True) from error
    if finish == "content_filter":
        raise Failure("its content filter stopped the answer", is_of_text=True)
    if not text and refusal:
        raise Failure(f"its model refused: {shown(str(refusal), key=key)}", is_of_text=True)
    return Answer(
        (text or "").encode("utf-8", "replace").decode(),  # JSON can spell halves of characters
        is_cut=finish == "length",
        prompt_tokens=_tokens(completion.get("usage"), "prompt_tokens"),
        completion_tokens=_tokens(completion.get("usage"), "completion_tokens"),
    )


def _tokens(usage: Any, name: str) -> int:
    """Returns how many tokens a server says there were; 0 where it says nothing that makes sense."""
    tokens = usage.get(name) if isinstance(usage, dict) else None
    return min(tokens, MOST_TOKENS) if isinstance(tokens, int) and tokens > 0 else 0


def refusal(response: httpx2.Response, *, key: str) -> Failure:
    """Returns what a response means whose status is not 200.

    Args:
        response: It has been read.
        key: The key, which no message shows.
    """
    status = response.status_code
    said = shown(_message(response), key=key)
    if response.is_redirect:
        target = shown(response.headers.get("location", "nowhere"), key=key)
        said = f"redirects to {target}, which is not followed; name the address that answers by itself"
    return Failure(
        f"{status} {said}",
        status=status,
        is_transient=status in TRANSIENT or status >= 500,
        wait=_retry_after(response.headers),
    )


def _message(response: httpx2.Response) -> str:
    """Returns what a server says about a refusal, in the places where servers say it."""
    text = response.content.decode("utf-8", "replace")
    try:
        said: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text or response.reason_phrase
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(name):
            said = said[name]
    return said if isinstance(said, str) else json.dumps(said)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that a server wants to be left alone, which it says in seconds or as a time."""
    given = headers.get("retry-after", "")
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(given).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(0.0, seconds)


async def bound(response: httpx2.Response) -> None:
    """Has the body of a response end with an error where it is too long."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx2.DecodingError("the reply is compressed, though that was not asked for", request=response.request)
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _BoundedStream(response.stream, response.request)


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, request: httpx2.Request) -> None:
        self.stream = stream
        self.request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for piece in self.stream:
            read += len(piece)
            if read > MOST_BYTES:
                raise httpx2.ReadError(f"the reply is longer than {MOST_BYTES:,} bytes", request=self.request)
            yield piece

    async def aclose(self) -> None:
        await self.stream.aclose()
