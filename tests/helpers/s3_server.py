"""An S3 server on this machine (moto's), in a process of its own that tests may kill.

In: nothing; what it holds is in memory. Out: its address, and a few of S3's operations as a user of boto3 has them.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.request import Request, urlopen

from tests.helpers.processes import SECONDS_TO_START, free_port

KEY = "AKIDFORTESTS"
SECRET = "very/secret+0123456789"


@dataclass
class S3Server:
    """A running server.

    Args:
        process: Its process.
        port: Where it listens.
    """

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Returns the environment in which S3's clients find it, and give up at the first error."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    @property
    def client(self) -> Any:
        """boto3's client of it."""
        import boto3  # half a second, and few tests need it

        names = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.url, **names)

    def fill(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Makes a bucket, where there is none, and objects in it."""
        client = self.client
        client.create_bucket(Bucket=bucket)
        for key, content in objects.items():
            client.put_object(Bucket=bucket, Key=key, Body=content)

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Returns what a bucket holds."""
        client = self.client
        found = client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {one["Key"]: client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read() for one in found}

    @contextmanager
    def asks_who_it_is(self) -> Iterator[None]:
        """Lets nobody in whom it does not know, which is everybody."""
        self._post("/moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self._post("/moto-api/reset-auth", b"inf")

    def _post(self, path: str, content: bytes) -> None:
        headers = {"Content-Type": "text/plain"}  # a form would be taken apart
        with urlopen(Request(f"{self.url}{path}", data=content, headers=headers, method="POST")):
            pass

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.wait()


@contextmanager
def s3_server(port: int | None = None) -> Iterator[S3Server]:
    """Serves until it is left."""
    port = port or free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = S3Server(process, port)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not _listens(port):
            assert server.process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
        yield server
    finally:
        server.kill()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
