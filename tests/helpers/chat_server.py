"""A chat server that does what a test wants, to the conversations that are marked for it.

How: a threaded HTTP server in the test's own process. What it answers follows from the conversation alone: of one
without marks a memory that names its number, of one with a mark of `tests.helpers.scripted` nothing, or what cannot be
understood. A conversation with a word of `Trouble` gets that trouble, so many times, before it gets its answer.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.helpers.scripted import FAILS, NOTHING, UNDECIDED
from tests.helpers.serving import serving

KEY = "sk-test-very-secret-0123456789"
Trouble = Callable[["_Handler"], None]


@dataclass
class Asked:
    """A request that came."""

    body: dict[str, Any]
    headers: dict[str, str]
    path: str
    at: float = field(default_factory=time.time)

    @property
    def text(self) -> str:
        """The conversation."""
        return str(self.body["messages"][-1]["content"])


@dataclass
class ChatServerDouble:
    """The server's state, which tests look at and change while it runs.

    Args:
        troubles: By a word of the conversation: what happens, and how often; None is always.
        always: What happens to every request.
        seconds: How long each answer takes.
        unknown: Fields that it refuses.
    """

    troubles: dict[str, tuple[Trouble, int | None]] = field(default_factory=dict)
    always: Trouble | None = None
    seconds: float = 0.0
    unknown: tuple[str, ...] = ()
    asked: list[Asked] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    at_a_time: int = 0
    most_at_a_time: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    base_url: str = ""

    def conversations(self) -> list[int]:
        """Returns the numbers of the conversations it was asked about, in order."""
        numbers = (re.search(r"This is number (\d+)", request.text) for request in self.asked)
        return [int(number[1]) for number in numbers if number is not None]


@contextmanager
def chat_server(double: ChatServerDouble) -> Iterator[ChatServerDouble]:
    """Serves until it is left."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.double = double
    with serving(server) as address:
        double.base_url = f"{address}/v1"
        yield double


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    double: ChatServerDouble

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing where a client has hung up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name for it
        """Says nothing."""

    def do_POST(self) -> None:
        """Answers a request, or makes the trouble that it is marked for."""
        double = self.server.double
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = Asked(body, {name.lower(): value for name, value in self.headers.items()}, self.path)
        with double.lock:
            double.asked.append(request)
            double.at_a_time += 1
            double.most_at_a_time = max(double.most_at_a_time, double.at_a_time)
            self.trouble = double.always
            for word, (trouble, times) in double.troubles.items():
                if word in request.text:
                    double.seen[word] += 1
                    if times is None or double.seen[word] <= times:
                        self.trouble = trouble
        try:
            time.sleep(double.seconds)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._answer(request, double)
        finally:
            with double.lock:
                double.at_a_time -= 1

    def _answer(self, request: Asked, double: ChatServerDouble) -> None:
        if refused := [name for name in double.unknown if name in request.body]:
            refuses(400, f"Unknown parameter: '{refused[0]}'")(self)
        elif self.trouble is not None:
            self.trouble(self)
        else:
            self.send(200, json.dumps(completion(answer(request))))

    def send(self, status: int, body: str | bytes, **headers: str) -> None:
        """Sends a whole response."""
        content = body if isinstance(body, bytes) else body.encode()
        self.begin(status, {"Content-Length": str(len(content)), **headers})
        self.wfile.write(content)

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Sends the head of a response."""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


def answer(request: Asked) -> str:
    """Returns what is written about a conversation; drawn, the undecided ones are decided by their seed."""
    text = request.text.rpartition("Conversation:")[2]
    number = re.search(r"This is number (\d+)", text)
    is_drawn = request.body.get("temperature", 0) > 0
    if NOTHING in text or number is None:
        return '{"memories": []}'
    if FAILS in text or (UNDECIDED in text and not (is_drawn and request.body["seed"] % 2)):
        return "#"
    return json.dumps({"memories": [f"Ann has the number {number[1]}.", "Bo agrees with everything."]})


def completion(text: str | None, *, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """Returns the body of an answer."""
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    said = {"role": "assistant", "content": text, **message}
    return {
        "id": "a",
        "object": "chat.completion",
        "choices": [{"message": said, "finish_reason": finish}],
        "usage": usage,
    }


def replies(body: Any, status: int = 200, **headers: str) -> Trouble:
    """Sends a body, as JSON unless it is a text."""
    return lambda handler: handler.send(status, body if isinstance(body, str | bytes) else json.dumps(body), **headers)


def refuses(status: int, message: str = "no", **headers: str) -> Trouble:
    """Refuses, as servers do."""
    return replies({"error": {"message": message, "type": "invalid_request_error"}}, status, **headers)


def hangs(seconds: float) -> Trouble:
    """Keeps the client waiting, and then answers."""

    def trouble(handler: _Handler) -> None:
        time.sleep(seconds)
        handler.send(200, json.dumps(completion("too late")))

    return trouble


def half(handler: _Handler) -> None:
    """Sends half a body and hangs up."""
    content = json.dumps(completion("half")).encode()
    handler.begin(200, {"Content-Length": str(len(content))})
    handler.wfile.write(content[: len(content) // 2])
    hangs_up(handler)


def hangs_up(handler: _Handler) -> None:
    """Closes the connection without a word."""
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)


def endless(handler: _Handler) -> None:
    """Sends a body that never ends, as fast as it is read."""
    handler.begin(200, {"Transfer-Encoding": "chunked"})
    piece = b" " * 2**16
    while True:
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))


def drips(handler: _Handler) -> None:
    """Sends a body that never ends, a byte at a time."""
    handler.begin(200, {"Transfer-Encoding": "chunked"})
    while True:
        handler.wfile.write(b"1\r\n \r\n")
        time.sleep(0.05)
