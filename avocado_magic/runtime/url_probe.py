"""Proves a public URL: a request that went out through it and came back, with and without the key."""

from __future__ import annotations

import time

import requests

from ..sessions import service_session

_TIMEOUT = (5, 120)


class NotProved(Exception):
    """Why the URL is not a way to this service, in a few words."""


def prove(url: str, key: str, model: str | None) -> float:
    """The seconds that a small request takes. Raises NotProved unless `url` leads to our gateway, which lets in who has `key` and streams.

    The key is sent only after the other end has refused a request without one, as our gateway does.
    """
    with service_session(url) as session:
        refused = _get(session, f"{url}/api/tags")
        if refused.status_code != 401:
            raise NotProved(_why(refused))
        session.headers["Authorization"] = f"Bearer {key}"
        begun = time.monotonic()
        allowed = _get(session, f"{url}/api/tags")
        seconds = time.monotonic() - begun
        if allowed.status_code != 200:
            raise NotProved(
                f"the key of this service was refused (status {allowed.status_code}): another gateway answers there"
            )
        if model:
            _stream(session, url, model)
        return seconds


def answers(url: str) -> str | None:
    """None if the gateway's open health route comes back through `url`, else what is wrong."""
    try:
        with service_session(url) as session:
            answer = _get(session, f"{url}/healthz", timeout=(5, 10))
    except NotProved as error:
        return str(error)
    return None if answer.status_code == 200 else _why(answer)


def _get(session: requests.Session, url: str, timeout: tuple[float, float] = (5, 20)) -> requests.Response:
    try:
        return session.get(url, timeout=timeout, allow_redirects=False)
    except requests.RequestException as error:
        raise NotProved(f"no answer from {url.rpartition('/api')[0] or url} ({type(error).__name__})") from None


def _why(answer: requests.Response) -> str:
    code = answer.headers.get("ngrok-error-code")
    return f"status {answer.status_code}{f', {code}' if code else ''}, which is not this service's gateway"


def _stream(session: requests.Session, url: str, model: str) -> None:
    body = {"model": model, "prompt": "Hi", "options": {"num_predict": 1}}
    try:
        with session.post(
            f"{url}/api/generate", json=body, stream=True, timeout=_TIMEOUT, allow_redirects=False
        ) as answer:
            if answer.status_code == 400:
                return  # an embedding model: it cannot generate, and it did answer
            line = next(answer.iter_lines(chunk_size=1), b"")
            if answer.status_code != 200 or not line.startswith(b"{") or line.startswith(b'{"error'):
                raise NotProved(f"a generation through it failed (status {answer.status_code})")
    except requests.RequestException as error:
        raise NotProved(f"a generation through it broke off ({type(error).__name__})") from None
