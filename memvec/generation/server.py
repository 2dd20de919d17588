"""A server that writes memory texts: which one, what it is asked, and how.

In: `generation=server` of the configuration. Out: the messages of a request, and what identifies them.

How: any server with the OpenAI-compatible `/v1/chat/completions`. What travels is in `memvec.generation.client`, and
asking about all windows in `memvec.generation.asking`. The key comes from the environment and stays in the client.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from memvec.config.values import at_least, number, one_of, one_text
from memvec.errors import ConfigError
from memvec.extras import import_extra
from memvec.generation.completions import ATTEMPTS
from memvec.generation.prompt import MemoryPrompt
from memvec.generation.sampling import row_seed
from memvec.generation.window import Span, estimated_spans
from memvec.model.checkpoint import Checkpoint, locate_model
from memvec.prompt.template import FIELD

SEEDS = 2**31  # llama.cpp's are of 32 bits
# What a request has for memvec's own sake, so `extra_body` must not.
OWN_FIELDS = frozenset({"model", "messages", "stream", "n", "response_format", "seed", "temperature", "top_p"})


class ChatServer:
    """What is asked of which server; conf/generation/server.yaml explains the options.

    Args:
        base_url: Its address, to which `/chat/completions` is added.
        model: The name under which it serves the model.
        prompt: What the model is asked.
        key_variable: The environment variable that holds the key; unset where the server asks for none.
        concurrency: Requests at a time.
        timeout: Seconds for a request.
        retries: How often a request is sent again that was not answered.
        tokenizer: Model folder, `.gguf` file, `gguf:<package>` or Hub name whose tokens windows are measured in; None
            estimates them by characters.
        max_new_tokens: Most tokens of an answer.
        temperature: 0 takes the likeliest token each time; else tokens are drawn, the more evenly the higher it is.
        top_p: Draw from the likeliest tokens that together have this probability.
        attempts: 2 tries an answer that could not be understood once more; 1 does not.
        retry_temperature: The temperature of that second time, where it is higher than that of the first.
        seed: Of each request, with its window and attempt, for servers that heed one.
        extra_body: Further fields of each request, which this server takes.

    Raises:
        ConfigError: An option does not make sense.
        ExtraError: The client is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        prompt: MemoryPrompt,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 32,
        timeout: float = 300.0,
        retries: int = 8,
        tokenizer: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        attempts: int = ATTEMPTS,
        retry_temperature: float = 0.7,
        seed: int = 0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self.base_url = _address(base_url)
        self.model = one_text("generation.model", model)
        self.prompt = prompt
        self.key_variable = key_variable
        self.concurrency = at_least("generation.concurrency", concurrency, 1)
        self.timeout = number("generation.timeout", timeout, least=0.001)
        self.retries = at_least("generation.retries", retries, 0)
        self.tokenizer = tokenizer
        self.max_new_tokens = at_least("generation.max_new_tokens", max_new_tokens, 1)
        self.temperature = number("generation.temperature", temperature, least=0.0)
        self.top_p = number("generation.top_p", top_p, least=0.0, most=1.0)
        self.attempts = one_of("generation.attempts", attempts, range(1, ATTEMPTS + 1))
        self.retry_temperature = number("generation.retry_temperature", retry_temperature, least=0.01)
        self.seed = at_least("generation.seed", seed, 0)
        self.extra_body = dict(extra_body or {})
        if taken := sorted(OWN_FIELDS.intersection(self.extra_body)):
            raise ConfigError(f"generation.extra_body.{taken[0]}", found="memvec sets it", allowed="other fields")
        import_extra("openai", extra="server", purpose="generation=server")

    @property
    def key(self) -> str:
        """What the environment variable holds; empty where it is not set."""
        return os.environ.get(self.key_variable, "")

    @cached_property
    def _backend(self) -> Any:
        """The tokenizer that windows are measured with."""
        tokenizer = Checkpoint(locate_model(str(self.tokenizer))).load_tokenizer()
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        return tokenizer.backend_tokenizer

    @property
    def spans(self) -> Callable[[Sequence[str]], list[list[Span]]]:
        """Returns where the tokens of texts stand, in characters."""
        return estimated_spans if self.tokenizer is None else self._token_spans

    def _token_spans(self, texts: Sequence[str]) -> list[list[Span]]:
        return [encoding.offsets for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def messages(self, text: str) -> list[dict[str, str]]:
        """Returns the chat that asks about a window: the examples as turns, then the window."""
        prompt = self.prompt.to_prompt()
        return [*map(dict, prompt.turns), {"role": "user", "content": prompt.template.replace(FIELD, text)}]

    def sampling(self, row: int, *, attempt: int) -> dict[str, Any]:
        """Returns how the answer about a window is drawn, as fields of the request."""
        temperature = max(self.temperature, self.retry_temperature) if attempt else self.temperature
        seed = row_seed(self.seed, attempt=attempt, row=row) % SEEDS
        return {"temperature": temperature, "top_p": self.top_p, "seed": seed}

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the answers, for the run's fingerprint; not where the server is."""
        measured_in = None
        if self.tokenizer is not None:
            measured_in = hashlib.sha256(self._backend.to_str().encode()).hexdigest()
        return {
            "model": self.model,
            "template": self.prompt.template,
            **self.prompt.fingerprint(),
            "tokenizer": measured_in,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "attempts": self.attempts,
            "retry_temperature": self.retry_temperature,
            "seed": self.seed,
            "extra_body": self.extra_body,
        }


def _address(base_url: Any) -> str:
    """Returns the address of a server without a slash at its end.

    Raises:
        ConfigError: It is none, or holds a key; it is not repeated then.
    """
    try:
        parts = urlsplit(str(base_url))
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # for one, a port that is no number
        is_address = False
    allowed = "an address such as http://127.0.0.1:8000/v1"
    if is_address and ("@" in parts.netloc or parts.query or parts.fragment):
        advice = "a key goes into the environment"
        raise ConfigError("generation.base_url", allowed=f"{allowed}, without a user, a key or a query", advice=advice)
    if not is_address:
        raise ConfigError("generation.base_url", base_url, allowed=allowed)
    return str(base_url).rstrip("/")
