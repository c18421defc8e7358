"""What one connection may send, and for how long: every way to hold one open, or to fill the memory, ends it."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import uvicorn

from sightline.serving.server import bind_socket
from sightline.serving.worker import MAX_HEADER_BYTES, BoundedHttpProtocol, QuietServer

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


class Hasty(BoundedHttpProtocol):
    header_timeout = 0.3
    refused_body_timeout = 0.3
    unread_answer_timeout = 0.3


async def answer(scope, receive, send):
    """What the headers were, after the body; ``/refuse`` is answered before its body has come."""
    headers = b",".join(name for name, _ in scope["headers"])
    body = headers if scope["path"] != "/large" else bytes(30_000_000)
    if scope["path"] != "/refuse":
        async with asyncio.timeout(10):
            while (message := await receive())["type"] == "http.request" and message["more_body"]:
                pass
        headers = b",".join(name for name, _ in scope["headers"])
        body = headers if scope["path"] != "/large" else body
    status = 401 if scope["path"] == "/refuse" else 200
    length = b"%d" % len(body)
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address():
    listening = bind_socket("127.0.0.1", 0)
    config = uvicorn.Config(
        answer, http=Hasty, ws="none", lifespan="off", log_config=None, timeout_keep_alive=1, server_header=False
    )
    server = QuietServer(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield listening.getsockname()
    server.should_exit = True
    thread.join()
    listening.close()


@contextmanager
def connected(address):
    with socket.create_connection(address, timeout=10) as line:
        yield line


def rest(line):
    """All that comes until the service ends the connection; fails if it does not."""
    found = b""
    with suppress(ConnectionError):
        while part := line.recv(65_536):
            found += part
    return found


@pytest.mark.parametrize(
    "flood",
    [b"X: y\r\n" * 2_000, b"X: " + b"y" * 12_000, b"x" * 12_000],
    ids=["many trailers", "a trailer without end", "a name without end"],
)
def test_trailers_are_bounded(address, flood):
    with connected(address) as line:
        line.sendall(CHUNKED + b"0\r\n")
        sent = 0
        with suppress(ConnectionError):
            while sent < 20_000_000:
                line.sendall(flood)
                sent += len(flood)
                flood = flood if flood.endswith(b"\n") else b"y" * 12_000
        assert sent < 10_000_000


def test_an_extension_of_a_chunk_without_end_is_cut_off(address):
    with connected(address) as line:
        line.sendall(CHUNKED + b"3;")
        with suppress(ConnectionError):
            for _ in range(1_000):
                line.sendall(b"x" * 10_000)
            pytest.fail("the service takes everything")


def test_a_trailer_is_no_header(address):
    with connected(address) as line:
        line.sendall(CHUNKED + b"1\r\nx\r\n0\r\nAuthorization: Bearer stolen\r\n\r\n")
        assert b"authorization" not in line.recv(1000)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"x" * MAX_HEADER_BYTES + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * MAX_HEADER_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * (MAX_HEADER_BYTES // 4) + b"\r\n",
    ],
    ids=["address", "one header", "many headers"],
)
@pytest.mark.parametrize("piece", [1_000, 1_000_000])
def test_headers_are_limited_however_they_come(address, request_, piece):
    with connected(address) as line:
        with suppress(ConnectionError):
            for start in range(0, len(request_), piece):
                line.sendall(request_[start : start + piece])
        found = rest(line)
        assert not found or found.startswith(b"HTTP/1.1 400")


def test_pipelined_requests_are_all_answered(address):
    count = 2 * MAX_HEADER_BYTES // len(GET)
    with connected(address) as line:
        line.sendall(GET * count)
        assert rest(line).count(b"HTTP/1.1 200") == count


def test_a_refused_body_is_not_swallowed_for_ever(address):
    with connected(address) as line:
        line.sendall(b"POST /refuse HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert line.recv(1000).startswith(b"HTTP/1.1 401")
        start = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() < start + 8:
                line.sendall(b"x")
                time.sleep(0.05)
            pytest.fail("the body is read for ever")


def test_after_a_refused_body_that_comes_the_connection_goes_on(address):
    with connected(address) as line:
        for _ in range(3):
            line.sendall(b"POST /refuse HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n")
            assert line.recv(1000).startswith(b"HTTP/1.1 401")
            line.sendall(b"body")
        line.sendall(GET)
        assert line.recv(1000).startswith(b"HTTP/1.1 200")
        assert rest(line) == b""  # and it ends when it is idle


@pytest.mark.parametrize("first", [b"", GET, CHUNKED + b"0\r\n\r\n"])
def test_blank_lines_do_not_keep_a_connection(address, first):
    with connected(address) as line:
        line.sendall(first)
        start = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() < start + 8:
                line.sendall(b"\r\n")
                time.sleep(0.05)
            pytest.fail("blank lines keep the connection")


def test_an_answer_that_is_not_read_ends_the_connection(address):
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(10)
        line.connect(address)
        line.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1.5)
        assert len(rest(line)) < 30_000_000
