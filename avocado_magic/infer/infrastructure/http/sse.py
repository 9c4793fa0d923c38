"""Server-sent events, as they are read off an answer (HTML, "Interpreting an event stream")."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

# A longer line is no event of any engine's, in bytes.
LONGEST_LINE = 16 << 20


async def fields(read: Callable[[], Awaitable[bytes]]) -> AsyncIterator[tuple[str, bytes]]:
    """Names and values of the fields as they come, comments left out. ValueError for a line that has no end.

    `read` gives the next bytes of the body, none at its end.
    """
    buffer = b""
    while data := await read():
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        if len(buffer) > LONGEST_LINE:
            raise ValueError(f"a line is longer than {LONGEST_LINE} bytes")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").partition(b":")
            if name:
                yield name.decode("latin-1"), value.removeprefix(b" ")
