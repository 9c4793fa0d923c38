"""A minute of the fuzz; `make fuzz MINUTES=…` goes on for as long as asked, with other seeds. And the reference under test."""

from __future__ import annotations

import asyncio
from pathlib import Path

import fuzz
import pytest
import reference_http

POST = b"POST /x HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.timeout(150)
def test_half_a_minute_of_fuzz_finds_nothing(tmp_path: Path) -> None:
    report = asyncio.run(fuzz.fuzz(25, 8, tmp_path))
    assert report.failures == []
    assert report.cases > 120
    assert {200, 400, 401, 403, 404} <= set(report.statuses)


@pytest.mark.parametrize(
    ("data", "bodies", "bad"),
    [
        (POST + b"Content-Length: 2\r\n\r\nabPOST", [b"ab"], False), (POST + b"Content-Length: 2\r\n\r\na", [], False),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX: y\r\n\r\n", [b"ab"], False),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n", [], True), (POST + b"Transfer-Encoding: x\r\n\r\n", [], True),
        (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab", [], True), (POST + b"Content-Length: +2\r\n\r\nab", [], True),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nab", [], True), (POST + b" folded\r\n\r\n", [], True),
        (b"GET /x HTTP/2.0\r\n\r\n", [], True), (b"GET  /x HTTP/1.1\r\n\r\n", [], True), (b"GET /x HTTP/1.1\nHost: x\n\n", [], False),
        (POST + b"Connection: close\r\n\r\nGET /y HTTP/1.1\r\n\r\n", [b""], False),
    ],
)  # fmt: skip
def test_the_reference_is_strict(data: bytes, bodies: list[bytes], bad: bool) -> None:
    reading = reference_http.read(data)
    assert [request.body for request in reading.requests if request.whole] == bodies
    assert reading.bad is bad
