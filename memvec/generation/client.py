"""The client of a chat server: one text in, one answer out, whatever the server and the network do.

In: a `ChatServer`, and texts. Out: for each an `Answer`, or why there is none.

How: OpenAI's own client sends; what it may not do is decided here. A request that was not answered (a connection that
broke, 429, 5xx, a reply that is no chat completion) is sent again, later each time, and no earlier than the server
says. When that is in vain, or the server refuses, one more request with a text that nobody can mind tells whose fault
it is: where that is answered, the text has no answer; else the server is gone, and the run ends.

Servers differ in the fields they take. At the beginning those that are not essential are left out, one by one, as long
as the server refuses a request because of its fields.

Redirects are not followed, since conversations and key would go to whoever is named there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai

from memvec.errors import ServerError, one_line
from memvec.generation.replies import Answer, Failure, bound, read_answer, refusal, shown
from memvec.generation.server import ChatServer

# Seconds before a request is sent again: doubled each time.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
LONGEST_RETRY_AFTER = 300.0
# Statuses with which servers refuse a field they do not know.
REFUSES_FIELDS = frozenset({400, 415, 422, 501})
# Fields that a server may do without, the least essential first.
OPTIONAL = ("response_format", "chat_template_kwargs", "seed", "max_tokens")
NO_KEY = "none"  # the client wants one
GREETING = "A: Good morning!"
SCHEMA = {
    "type": "object",
    "properties": {"memories": {"type": "array", "items": {"type": "string"}}},
    "required": ["memories"],
    "additionalProperties": False,
}

log = logging.getLogger(__name__)


@dataclass
class RequestCounts:
    """What was asked, and what the server says it took.

    Args:
        requests: Sent, those that were sent again counted each time.
        retries: Sent again.
        prompt_tokens: Of all answers, as the server counts.
        completion_tokens: Of all answers, as the server counts.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatClient:
    """Asks a server; to be used within one event loop, as an asynchronous context.

    Args:
        server: Which, and how.
        counts: Are added to.
        left_out: The optional fields that are known not to be taken.
    """

    def __init__(self, server: ChatServer, counts: RequestCounts, *, left_out: Sequence[str] = ()) -> None:
        self.server = server
        self.counts = counts
        self.left_out = list(left_out)
        self._key = server.key
        self._not_before = 0.0  # on the monotonic clock
        self._is_waiting = False
        self._one_at_a_time = asyncio.Lock()
        self._client = openai.AsyncOpenAI(
            base_url=server.base_url,
            api_key=self._key or NO_KEY,
            timeout=server.timeout,
            max_retries=0,
            default_headers={"Accept-Encoding": "identity"},  # so that the bytes that come are those that are kept
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, event_hooks={"response": [bound]}),
        )

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def greet(self) -> None:
        """Finds out which fields the server takes.

        Raises:
            ServerError: It answers no request at all.
        """
        first: Failure | None = None
        while True:
            try:
                await self._insist(GREETING, self.server.sampling(0, attempt=0))
                break
            except Failure as failure:
                if failure.is_of_text:  # it has answered
                    break
                first = first or failure
                unknown = self._field_to_leave_out(failure)
                if unknown is None:
                    raise self._gone(first) from failure
                self.left_out.append(unknown)
        if self.left_out:
            log.info("%s takes no %s", self.server.base_url, ", ".join(self.left_out))

    async def ask(self, text: str, sampling: Mapping[str, Any]) -> Answer | str:
        """Returns the answer about a text, or why there is none.

        Args:
            text: Of the window.
            sampling: How the answer is drawn, as fields of the request.

        Raises:
            ServerError: The server does not answer anything any more.
        """
        try:
            return await self._insist(text, sampling)
        except Failure as failure:
            if not failure.is_of_text:
                async with self._one_at_a_time:
                    await self._check_that_it_answers()
            return f"the server gave no answer: {failure.reason}"

    async def _check_that_it_answers(self) -> None:
        try:
            await self._send(GREETING, self.server.sampling(0, attempt=0))
        except Failure as failure:
            if not failure.is_of_text:
                raise self._gone(failure) from failure

    def _gone(self, failure: Failure) -> ServerError:
        found, advice = failure.reason, ""
        if failure.status in (401, 403):
            state = "set" if self._key else "not set"
            advice = f"the key is what {self.server.key_variable} holds, which is {state}"
        elif failure.is_transient:
            found += f" (after {self.server.retries} retries)"
        return ServerError("generation.base_url", self.server.base_url, found=found, advice=advice)

    def _field_to_leave_out(self, failure: Failure) -> str | None:
        """Returns the field that a server may have refused a request for: one that it names, else the next."""
        if failure.status not in REFUSES_FIELDS:
            return None
        fields = self._fields(GREETING, self.server.sampling(0, attempt=0))
        others = [name for name in OPTIONAL if name in {**fields, **fields["extra_body"]}]
        return next((name for name in others if name in failure.reason), next(iter(others), None))

    async def _insist(self, text: str, sampling: Mapping[str, Any]) -> Answer:
        """Sends a request until it is answered, or as often as it may be."""
        retry = 0
        while True:
            try:
                answer = await self._send(text, sampling)
                self._is_waiting = False
                return answer
            except Failure as failure:
                if not failure.is_transient or retry == self.server.retries:
                    raise
                await self._wait(retry, failure)
                retry += 1
                self.counts.retries += 1

    async def _wait(self, retry: int, failure: Failure) -> None:
        """Waits until a request may be sent again."""
        if not self._is_waiting:  # of all requests of an outage, the first one says so
            log.info("%s: %s; trying again", self.server.base_url, failure.reason)
        self._is_waiting = True
        if failure.wait is not None:  # all requests will wait
            until = time.monotonic() + min(failure.wait, LONGEST_RETRY_AFTER)
            self._not_before = max(self._not_before, until)
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2**retry)
        await asyncio.sleep(random.uniform(longest / 2, longest))  # not all at the same moment

    async def _send(self, text: str, sampling: Mapping[str, Any]) -> Answer:
        """Sends one request."""
        while (seconds := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(seconds)
        self.counts.requests += 1
        try:
            async with asyncio.timeout(self.server.timeout):
                response = await self._client.chat.completions.with_raw_response.create(**self._fields(text, sampling))
        except openai.APIStatusError as error:
            raise refusal(error.response, key=self._key) from error
        except (TimeoutError, openai.APITimeoutError) as error:
            raise Failure(f"no reply within {self.server.timeout:g} s", is_transient=True) from error
        except openai.OpenAIError as error:  # what the connection broke with stands behind it
            reason = shown(one_line(error.__cause__ or error), key=self._key)
            raise Failure(reason, is_transient=True) from error
        answer = read_answer(response.content, key=self._key)
        self.counts.prompt_tokens += answer.prompt_tokens
        self.counts.completion_tokens += answer.completion_tokens
        return answer

    def _fields(self, text: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a request, as arguments of the client's method."""
        schema = {"name": "memories", "strict": True, "schema": SCHEMA}
        taken = {
            **sampling,
            "max_tokens": self.server.max_new_tokens,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        extra: dict[str, Any] = {"chat_template_kwargs": dict(self.server.prompt.chat_template_kwargs)}
        if not extra["chat_template_kwargs"]:
            extra = {}
        for name in self.left_out:
            taken.pop(name, None)
            extra.pop(name, None)
        if "max_tokens" in self.left_out:  # OpenAI's reasoning models know it by another name
            taken["max_completion_tokens"] = self.server.max_new_tokens
        extra_body = {**extra, **self.server.extra_body}
        return {"model": self.server.model, "messages": self.server.messages(text), **taken, "extra_body": extra_body}
