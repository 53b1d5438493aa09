"""Requests that mean harm, each with the bytes that give it away and the statuses that may answer it."""

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

INDEX = "/v1/indexes/pictures"
ROW = {"type": "row", "row": 1}
BODY_BYTES = 16 * 2**20  # the default of max_body_bytes
BODY_VALUES = 1_000_000  # the default of max_body_values

NAMES = (
    "../canary.txt",
    "../../../../../../etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "..\\..\\etc\\passwd",
    "pictures/../../canary.txt",
    "pictures\0.txt",
    "\0",
    ".",
    "..",
    "~root",
    "file:///etc/passwd",
    "\u2025/\uff0e\uff0e\uff0fetc\uff0fpasswd",
    "p\u0456ctures",
    "pictures\u202e",
    "x" * 8000,
)


@dataclass(frozen=True)
class Hostile:
    """A request that is to be refused.

    Attributes:
        name: What is wrong with it.
        before: Its bytes before the offending ones.
        offending: The bytes that give it away, and what follows at once.
        statuses: The statuses that may answer it.
        code: The code of the problem, None where several may be.
    """

    name: str
    before: bytes
    offending: bytes
    statuses: tuple[int, ...]
    code: str | None = None


def post(resource: str, body: bytes, length: int | None = None) -> tuple[bytes, bytes]:
    """The head and the body of a POST."""
    size = len(body) if length is None else length
    lines = (
        f"POST {resource} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {size}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n", body


def chunked(resource: str) -> bytes:
    """The head of a POST of unknown length."""
    lines = (f"POST {resource} HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join((*lines, "Transfer-Encoding: chunked")).encode() + b"\r\n\r\n"


def get(target: str, *lines: str) -> bytes:
    """A GET, whatever its target."""
    return "\r\n".join((f"GET {target} HTTP/1.1", "Host: localhost", *lines)).encode() + b"\r\n\r\n"


def whole(name: str, resource: str, body: bytes, statuses: tuple[int, ...], code: str | None = None) -> Hostile:
    """A body that is judged when its last byte is there."""
    head, body = post(resource, body)
    return Hostile(name, head + body[:-1], body[-1:], statuses, code)


def asked(**fields: object) -> bytes:
    """An attribution request; text that is no JSON, 1e400 for one, is given as bytes."""
    parts = (
        f'"{name}": '.encode() + (value if isinstance(value, bytes) else json.dumps(value).encode())
        for name, value in fields.items()
    )
    return b"{" + b", ".join(parts) + b"}"


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, *extra: bytes) -> str:
    """A grey PNG whose data need not be those of its size, in base64."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def bombs() -> Iterator[tuple[str, str]]:
    """Images of some kilobytes that want to be hundreds of megabytes."""
    zeros = zlib.compress(b"\0" * 200_000_000, 9)
    good = zlib.compress(b"\0" * 20, 9)
    yield "a PNG of 30000 x 30000", png(30000, 30000, zeros)
    yield "a PNG of 2³¹ x 2³¹", png(2**31 - 1, 2**31 - 1, zeros)
    yield "a PNG of the right size with too much in it", png(3, 4, zeros)
    yield "a PNG with a text that swells", png(4, 4, good, chunk(b"zTXt", b"a\0\0" + zeros))
    yield "a PNG with a profile that swells", png(3, 4, good, chunk(b"iCCP", b"a\0\0" + zeros))


def bodies() -> Iterator[Hostile]:
    """Bodies that are no question."""
    attributions, scores = f"{INDEX}/attributions", f"{INDEX}/scores"
    yield whole("a budget of 10⁹", attributions, asked(query=ROW, budget=10**9), (422,), "limit_exceeded")
    yield whole("a budget of 10¹⁹", attributions, asked(query=ROW, budget=10**19), (422,), "out_of_range")
    digits = b"9" * 10**6
    yield whole("a budget of 10⁶ digits", attributions, asked(query=ROW, budget=digits), (400,), "invalid_json")
    yield whole("a row of 2⁶³ - 1", attributions, asked(query={"type": "row", "row": 2**63 - 1}), (422,), "unknown_row")
    for value in (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"1" + b"0" * 4000 + b".0"):
        named = f"a noise of {value[:9].decode()}"
        yield whole(named, attributions, asked(query=ROW, noise_variance=value), (422,), "not_finite")
    deep = b"[" * 10**5
    yield whole("nested 10⁵ deep", attributions, asked(query=deep + b"]" * 10**5), (400,), "invalid_json")
    yield whole("nested 10⁵ deep, unclosed", attributions, b'{"query":' + deep, (400,), "invalid_json")
    yield whole("not UTF-8", attributions, b'{"query": "\xff\xfe"}', (400,), "invalid_json")
    yield whole(
        "half a character", attributions, asked(query={"type": "train_id", "id": "\ud800"}), (422,), "invalid_value"
    )
    yield whole(
        "a key twice", attributions, b'{"query": {"type": "row", "row": 1}, "budget": 3, "budget": 1000000000}', (422,)
    )
    yield whole("20,000 unknown fields", attributions, asked(query=ROW, **{f"f{n}": n for n in range(20000)}), (422,))
    ids = [f"train:{number}" for number in range(10**4 + 1)]
    yield whole("10,001 ids", scores, asked(query=ROW, ids=ids), (422,), "limit_exceeded")
    half = [f"train:{number}" for number in range(BODY_VALUES // 2)]
    yield whole("5·10⁵ ids", scores, asked(query=ROW, ids=half), (422,), "limit_exceeded")
    many = asked(query=ROW, ids=[f"train:{number}" for number in range(BODY_VALUES + 10)])
    place = 0
    left = BODY_VALUES + 1
    for position, byte in enumerate(many):  # the comma too many
        left -= byte in b",[{"
        if not left:
            place = position
            break
    head, _ = post(scores, many)
    yield Hostile("10⁶ ids", head + many[:place], many[place:], (413,), "too_many_values")
    head, _ = post(attributions, b"", 2 * BODY_VALUES)
    yield Hostile("10⁶ brackets", head + b"[" * BODY_VALUES, b"[", (413,), "too_many_values")
    for name, image in bombs():
        question = asked(query={"type": "example", "content": {"image": image}})
        yield whole(name, attributions, question, (422,), "invalid_example")


def lengths() -> Iterator[Hostile]:
    """Requests of more bytes than are read."""
    resource = f"{INDEX}/attributions"
    head, _ = post(resource, b"", BODY_BYTES + 1)
    yield Hostile("a body of a byte too many", head[:-2], head[-2:], (413,), "body_too_large")
    head, _ = post(resource, b"", 10**19)
    yield Hostile("a body of 10¹⁹ bytes", head[:-2], head[-2:], (413,), "body_too_large")
    for length in ("-1", "0x10", "1, 2", "9" * 30):
        head = post(resource, b"")[0].replace(b"Length: 0", f"Length: {length}".encode())
        yield Hostile(f"a length of {length}", head[:-2], head[-2:], (400, 413))
    piece = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    yield Hostile("an endless body", chunked(resource) + piece * 16, b"1\r\n \r\n" * 100, (413,), "body_too_large")
    yield Hostile("a chunk of 10³⁰ bytes", chunked(resource), b"f" * 25 + b"\r\n", (400,), "malformed_request")
    yield Hostile("a chunk without an end to its length", chunked(resource), b"0" * 20000, (400, 431))
    yield Hostile("headers without an end", get("/livez")[:-2] + b"X-Long: " + b"x" * 15000, b"x" * 3000, (431,))
    yield Hostile("a thousand headers", get("/livez")[:-2] + b"X: 1\r\n" * 2600, b"X: 1\r\n" * 300, (431,))
    yield Hostile("a URL without an end", b"GET /" + b"x" * 16000, b"x" * 1000, (431,), "headers_too_large")
    yield Hostile("no HTTP", b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400,), "malformed_request")
    yield Hostile("another coding", chunked(resource).replace(b"chunked", b"gzip")[:-2], b"\r\n", (400, 501))


def names() -> Iterator[Hostile]:
    """Paths, ids and names that lead elsewhere."""
    for number, name in enumerate(NAMES):
        told = f"name {number}"
        for spelt in dict.fromkeys(
            (quote(name, safe=""), quote(name, safe="/.~:\\"), quote(name, safe="").replace(".", "%2e"))
        ):
            if "\\" in spelt:
                continue
            for target in (
                f"/v1/indexes/{spelt}",
                f"/v1/indexes/{spelt}/examples",
                f"{INDEX}/examples/{spelt}",
                f"{INDEX}/examples/{spelt}/content",
                f"{INDEX}/examples?split={spelt}",
                f"/v1/jobs/{spelt}",
                f"/v1/jobs/{spelt}/result",
                f"/v1/jobs/{spelt}/events",
                f"/docs/assets/{spelt}",
                f"/{spelt}",
            ):
                if target not in ("/v1/indexes/.", "/v1/indexes/~root"):
                    yield Hostile(f"{told} in {target[:60]}", get(target)[:-2], b"\r\n", (400, 404, 405, 422))
        if len(name) > 1024:
            continue
        for place, question in {
            "id": {"query": {"type": "train_id", "id": name}},
            "filter": {"query": ROW, "filter": {"ids": [name]}},
            "where": {"query": ROW, "filter": {"where": {name: name}}},
            "image": {"query": {"type": "example", "content": {"image": name}}},
            "field": {"query": {"type": "example", "content": {name: name}}},
            "method": {"query": ROW, "method": name},
        }.items():
            yield whole(f"{told} as {place}", f"{INDEX}/attributions", json.dumps(question).encode(), (422,))
        job = {"type": "coreset", "index": name, "budget": 3}
        yield whole(f"{told} as a job's index", "/v1/jobs", json.dumps(job).encode(), (404, 422))
