"""Images for a prompt: from files, from the web within bounds, and from what Python has of them."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..sizes import human_bytes

MOST_BYTES, SECONDS = 20_000_000, 10.0
_KINDS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")


def image_bytes(image: Any) -> bytes:
    """The bytes of an image: a path, a URL (http or https, of a public address), bytes, a PIL image or a matplotlib figure.

    Raises ConfigError for what is none, is larger than 20 MB, or does not come within ten seconds.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        found = bytes(image)
    elif isinstance(image, str) and image.startswith(("http://", "https://")):
        found = _fetched(image)
    elif isinstance(image, (str, Path)):
        found = _read(Path(image).expanduser())
    elif hasattr(image, "savefig"):
        found = _saved(lambda out: image.savefig(out, format="png"))
    elif hasattr(image, "save") and hasattr(image, "size"):
        found = _saved(lambda out: image.save(out, format="PNG"))
    else:
        raise ConfigError(
            f"a {type(image).__name__} is no image", "give a path, a URL, bytes, a PIL image or a matplotlib figure"
        )
    if len(found) > MOST_BYTES:
        raise ConfigError(f"the image has {human_bytes(len(found))}", f"give one of at most {human_bytes(MOST_BYTES)}")
    if not found.startswith(_KINDS):
        raise ConfigError(f"{_short(image)} is no image", "give a PNG, JPEG, GIF, WebP, BMP or TIFF")
    return found


def _short(image: Any) -> str:
    return str(image)[:80] if isinstance(image, (str, Path)) else f"what the {type(image).__name__} holds"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no path"
        raise ConfigError(f"{str(path)[:200]} cannot be read: {why}", "give the path of an image") from None


def _saved(save: Any) -> bytes:
    out = io.BytesIO()
    try:
        save(out)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the image cannot be written as a PNG: {error}", "convert it to RGB first") from None
    return out.getvalue()


def _fetched(url: str) -> bytes:
    """What is at a public URL. The address that was looked at is the one that is asked; redirects are not followed."""
    import urllib3

    parts = urlsplit(url)
    host, tls = parts.hostname or "", parts.scheme == "https"
    try:
        port = parts.port or (443 if tls else 80)
        address = public_address(host, port)
    except ValueError:
        raise ConfigError(f"{url[:80]} is no URL", "write it as in https://example.org/picture.png") from None
    timeout = urllib3.Timeout(total=SECONDS)
    more: dict[str, Any] = {"server_hostname": host, "assert_hostname": host} if tls else {}
    pool_class: Any = urllib3.HTTPSConnectionPool if tls else urllib3.HTTPConnectionPool
    target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    try:
        with pool_class(address, port, timeout=timeout, retries=False, **more) as pool:
            answer = pool.request(
                "GET", target, headers={"Host": parts.netloc, "Accept": "image/*"}, preload_content=False
            )
            try:
                if answer.status != 200:
                    raise ConfigError(f"{url[:80]} answered with status {answer.status}", "give the image's own URL")
                return _within(answer, url)
            finally:
                answer.close()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ConfigError(
            f"{url[:80]} cannot be fetched ({type(error).__name__})", "download it, and give its path"
        ) from None


def _within(answer: Any, url: str) -> bytes:
    """The bytes of an answer, as many as there may be, within the seconds that it may take."""
    until, parts, size = time.monotonic() + SECONDS, [], 0
    for part in answer.stream(1 << 16, decode_content=True):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            break
        if time.monotonic() > until:
            raise ConfigError(f"{url[:80]} did not come within {SECONDS:g} s", "download it, and give its path")
    return b"".join(parts)


def public_address(host: str, port: int) -> str:
    """An address of `host`, all of which are public. Raises ConfigError where one is not, or the name is unknown."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise ConfigError(f"the host name {host[:80]!r} is unknown", "check the URL") from None
    for address in found:
        if not ip_address(address.partition("%")[0]).is_global:
            raise ConfigError(f"{host[:80]} is no public address", "download the image, and give its path")
    return sorted(found)[0]


def require_vision(capabilities: Sequence[str], model: str) -> None:
    """ConfigError if a model that says what it can does not see."""
    if capabilities and "vision" not in capabilities:
        raise ConfigError(f"{model} does not see images", "name a model that does with {:model}, for instance llava")
