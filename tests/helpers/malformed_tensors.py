"""Safetensors files whose header lies, made from a whole one."""

import json
import struct
from collections.abc import Iterator


def pack(header: object, body: bytes) -> bytes:
    """A safetensors file of this header, as JSON or as bytes, and body."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def malformed_tensors(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Names, and files that must be refused in one sentence; the network's tensors are those of ``whole``."""
    length = struct.unpack("<Q", whole[:8])[0]
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    name = max(header.keys() - {"__metadata__"}, key=lambda one: header[one]["data_offsets"][1])
    begin, end = header[name]["data_offsets"]
    shape, count = header[name]["shape"], (end - begin) // 4

    def change(**values: object) -> bytes:
        return pack(header | {name: header[name] | values}, body)

    yield "a header of 2^62 bytes", struct.pack("<Q", 2**62) + whole[8:]
    yield "a header longer than the file", struct.pack("<Q", 2 * len(whole)) + whole[8:]
    yield "no header", struct.pack("<Q", 0) + whole[8:]
    yield "nothing", b""
    yield "a header that is a list", pack([], body)
    yield "a header a million deep", pack(b"[" * 1_000_000, body)
    yield "a header that is not UTF-8", pack(b'{"\xff": 1}', body)
    yield "offsets that overlap", change(data_offsets=[begin - 4, end - 4])
    yield "negative offsets", change(data_offsets=[-4, end])
    yield "offsets that run backwards", change(data_offsets=[end, begin])
    yield "offsets beyond the end", change(data_offsets=[begin, end + 2**40])
    yield "a shape that overflows", change(shape=[2**32, 2**32, 2**32])
    yield "a negative shape", change(shape=[-1, -1])
    yield "a shape of nothing", change(shape=[0, 2**62])
    yield "a shape without rows", change(shape=[count])
    yield "a shape of 10,000 sides", change(shape=[1] * 10_000 + shape)
    yield "integers for floats", change(dtype="I32")
    yield "unsigned integers for floats", change(dtype="U32")
    yield "8 bytes a value", change(dtype="F64")
    yield "an unknown type", change(dtype="F7")
    twice = json.dumps(header)[:-1] + f', "{name}": {{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}}}'
    yield "a name twice", pack(twice.encode(), body)
    yield "a tensor too many", pack(header | {"x" * 1000: header[name]}, body)
    yield "a tail", whole + bytes(100)
    yield "no end", whole[:-4]
    for what, value in (("NaN", b"\0\0\xc0\x7f"), ("infinity", b"\0\0\x80\x7f")):
        yield f"{what} in a weight", pack(header, body[:begin] + value + body[begin + 4 :])
