"""A load of HTTP requests: so many connections that stay open, each asking again as soon as it is answered.

    python benchmarks/load.py --port 8000 --bodies FOLDER --kind raw --connections 8 --seconds 2

One thread, epoll and finished bytes: what it costs a request (about 30 us of one core) is the same for everyone
who is asked. Prints one JSON object: answers a second, latencies in milliseconds, and whatever was not a 200.
"""

import argparse
import base64
import json
import select
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 30.0
"""Seconds without any answer after which a load is given up."""

KINDS = {
    "raw": lambda data: ("application/octet-stream", data),
    "json": lambda data: ("application/json", json.dumps({"image": base64.b64encode(data).decode()}).encode()),
    "json-list": lambda data: (
        "application/json",
        json.dumps({"images": [base64.b64encode(data).decode()]}).encode(),
    ),
    "form": lambda data: (
        "multipart/form-data; boundary=b0undary",
        b'--b0undary\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n" + data + b"\r\n--b0undary--\r\n",
    ),
    "form-list": lambda data: (
        "multipart/form-data; boundary=b0undary",
        b'--b0undary\r\nContent-Disposition: form-data; name="images"; filename="x.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n" + data + b"\r\n--b0undary--\r\n",
    ),
}
"""How an image is sent: content type and body."""


def request(data: bytes, kind: str, path: str = "/predict", headers: Sequence[str] = ()) -> bytes:
    """The bytes of a whole request for one image."""
    content, body = KINDS[kind](data)
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {content}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


@dataclass
class Connection:
    """One of the connections: what it waits for."""

    address: tuple[str, int]
    wire: socket.socket = field(init=False)
    got: bytearray = field(default_factory=bytearray)
    sent: float = 0.0

    def __post_init__(self) -> None:
        """Connect."""
        self.wire = socket.create_connection(self.address, timeout=PATIENCE)
        self.wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, data: bytes) -> None:
        """Send a request."""
        self.sent = time.perf_counter()
        self.wire.sendall(data)

    def answer(self) -> tuple[int, bytes] | None:
        """Status and body once they are whole; raises ConnectionError where the other side hangs up."""
        part = self.wire.recv(1 << 18)
        if not part:
            raise ConnectionResetError("the connection was closed")
        self.got += part
        return self._whole()

    def _whole(self) -> tuple[int, bytes] | None:
        end = self.got.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(self.got[:end]).lower()
        at = head.find(b"\r\ncontent-length:")
        if at < 0:  # chunked
            if not self.got.endswith(b"0\r\n\r\n"):
                return None
            stop = len(self.got)
        else:
            stop = end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])
            if len(self.got) < stop:
                return None
        body = bytes(self.got[end + 4 : stop])
        del self.got[:stop]
        return int(head[9:12]), body


@dataclass
class Load:
    """Requests sent to one address, each connection's next one when it has its answer."""

    port: int
    requests: Sequence[bytes]
    connections: int
    answered: Callable[[int, bytes, float], None] | None = None
    """Called with status, body and latency of each answer."""
    host: str = "127.0.0.1"
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    def run(self, *, seconds: float = float("inf"), count: int | None = None, warm: float = 0.0) -> dict[str, Any]:
        """Ask for so long, or so often; what was measured after ``warm`` seconds. Raises OSError."""
        began = time.perf_counter()
        poll, open_ones = select.epoll(), {}
        self.left, self.next = count if count is not None else 1 << 62, 0
        self.starts, self.ends = began + warm, began + warm + seconds
        for _ in range(min(self.connections, self.left)):
            one = Connection((self.host, self.port))
            open_ones[one.wire.fileno()] = one
            poll.register(one.wire.fileno(), select.EPOLLIN)
            self._ask(one)
        while open_ones:
            ready = poll.poll(PATIENCE)
            if not ready:
                raise TimeoutError(f"no answer in {PATIENCE:g} seconds")
            for number, _ in ready:
                if not self._took(open_ones[number]):
                    poll.unregister(number)
                    open_ones.pop(number).wire.close()
        poll.close()
        return self.result()

    def _ask(self, one: Connection) -> None:
        one.ask(self.requests[self.next % len(self.requests)])
        self.next += 1
        self.left -= 1

    def _took(self, one: Connection) -> bool:
        """Whether the connection goes on."""
        found = one.answer()
        if found is None:
            return True
        now = time.perf_counter()
        if one.sent >= self.starts and now <= self.ends:
            self.statuses[found[0]] += 1
            self.latencies.append(now - one.sent)
        if self.answered is not None:
            self.answered(*found, now - one.sent)
        if self.left <= 0 or now >= self.ends:
            return False
        self._ask(one)
        return True

    def result(self) -> dict[str, Any]:
        """Rates and latencies of what was answered in the measured time."""
        took = min(time.perf_counter(), self.ends) - self.starts
        found = sorted(self.latencies) or [float("nan")]
        at = {f"p{q}_ms": round(1e3 * found[min(len(found) - 1, len(found) * q // 100)], 3) for q in (50, 90, 99)}
        bad = {str(status): n for status, n in self.statuses.items() if status != 200}
        rate = self.statuses[200] / took
        mean = round(1e3 * statistics.fmean(found), 3)
        return {"per_second": round(rate, 1), **at, "mean_ms": mean, "answers": self.statuses[200], "bad": bad}


def main() -> None:
    """Run one load and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bodies", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--kind", choices=list(KINDS), default="raw")
    parser.add_argument("--path", default="/predict")
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--warm", type=float, default=0.5, help="seconds before that are not counted")
    asked = parser.parse_args()
    images = [path.read_bytes() for path in sorted(asked.bodies.iterdir())]
    requests = [request(data, asked.kind, asked.path, asked.header) for data in images]
    load = Load(asked.port, requests, asked.connections)
    print(json.dumps(load.run(seconds=asked.seconds, warm=asked.warm)))


if __name__ == "__main__":
    main()
