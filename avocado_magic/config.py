"""Where settings come from (flag > trait > environment > notebook secret > default), what they may be, and where things are kept."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .client_env import theirs
from .errors import ConfigError
from .model_names import is_gguf
from .settings import Option, Secret, Settings
from .timestamps import written

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# a number of seconds, or a Go duration (Ollama's envconfig.KeepAlive)
_PERIOD = re.compile(r"-?(\d+|((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+)")
# host name labels, so that a domain cannot smuggle options or paths into the agent's configuration
_DOMAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)+")


def resolve(
    flags: Mapping[str, Any],
    traits: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    notebook_secret: Callable[[str], str | None] | None = None,
) -> Settings:
    """Settings from their sources, the first that has a value winning.

    `flags` and `traits` map field names to values, None meaning "not given". `notebook_secret` looks
    a name up in the notebook host's secret store; it is asked for secrets and the model only, because
    on Colab every question may open a dialog. Raises ConfigError naming the source of a bad value.
    """
    return validate(Settings(**lookup(Settings.OPTIONS, flags, traits, environ, notebook_secret)))


def lookup(
    names: Collection[str],
    flags: Mapping[str, Any],
    traits: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    notebook_secret: Callable[[str], str | None] | None = None,
) -> dict[str, Any]:
    """The settings `names` alone, those that have a value; what `resolve` does, without looking at the others."""
    environ = theirs(os.environ if environ is None else environ)
    values: dict[str, Any] = {}
    for name, option in Settings.OPTIONS.items():
        if name not in names:
            continue
        for source in (flags, traits or {}):
            if source.get(name) not in (None, "", (), []):
                origin = f"--{name.replace('_', '-')}" if source is flags else f"c.AvocadoMagics.{name}"
                values[name] = _typed(option, source[name], origin)
                break
        else:
            named = _from_environment(option, environ, notebook_secret)
            if named is not None:
                values[name] = _typed(option, named[1], named[0])
    return values


def service_name(name: str | None, traits: Mapping[str, Any] | None = None) -> str:
    """The service that is meant: by flag, trait, AVOCADO_NAME or default. Raises ConfigError."""
    return check_name(lookup(["name"], {"name": name}, traits).get("name", "default"))


def _from_environment(
    option: Option, environ: Mapping[str, str], notebook_secret: Callable[[str], str | None] | None
) -> tuple[str, str] | None:
    for name in option.env:
        if environ.get(name, "").strip():
            return name, environ[name].strip()
    if notebook_secret and (option.secret or option.name == "model"):
        for name in option.env:
            value = notebook_secret(name)
            if value:
                return name, value.strip()
    return None


def _typed(option: Option, value: Any, origin: str) -> Any:
    if option.secret:
        return value if isinstance(value, Secret) else Secret(str(value))
    kind = option.kind
    if kind is tuple:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else tuple(value)
        )
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("1", "true", "yes", "on"):
            return True
        if str(value).lower() in ("0", "false", "no", "off"):
            return False
        raise ConfigError(f"{origin} is {value!r}", "use true or false")
    if kind in (int, float):
        try:
            return kind(value)
        except (TypeError, ValueError):
            raise ConfigError(
                f"{origin} is {value!r}", f"it must be a {'whole number' if kind is int else 'number'}"
            ) from None
    return str(value)


def validate(s: Settings) -> Settings:
    """`s`, with URLs in their normal form; raises ConfigError with one sentence for the first bad value."""
    for name, option in s.OPTIONS.items():
        _check(option, name.replace("_", "-"), getattr(s, name))
    check_name(s.name)
    if s.port is not None and s.port > 65535:
        raise ConfigError(f"port {s.port} does not exist", "choose 1 to 65535, or 0 for any free one")
    for model in s.models:
        if not model.strip() or (any(c.isspace() for c in model) and not is_gguf(model)):
            raise ConfigError(f"{model!r} is not a model name", "write it as in `llama3` or `smollm2:135m`")
    if s.keep_alive is not None and not _PERIOD.fullmatch(s.keep_alive):
        raise ConfigError(
            f"keep-alive {s.keep_alive!r} is no time", "write it as in 30s, 5m or 24h; 0 is at once and -1 for ever"
        )
    if s.domain is not None and not _DOMAIN.fullmatch(s.domain):
        raise ConfigError(f"{s.domain!r} is not a domain", "write the host name alone, as in my-name.ngrok-free.app")
    if s.domain and s.tunnel not in ("auto", "ngrok"):
        raise ConfigError(f"--domain needs ngrok, not --tunnel {s.tunnel}", "leave one of the two out")
    if s.public_url and s.tunnel not in ("auto", "none"):
        raise ConfigError(
            f"--public-url is for a way in of your own, and --tunnel {s.tunnel} makes another",
            "leave one of the two out",
        )
    ollama_base_url(s.ollama_host)
    changes: dict[str, Any] = {"until": _moment(s.until) if s.until else None}
    # The supervisor works in another folder: what is relative here must not be read there.
    paths = {name: getattr(s, name) for name, option in s.OPTIONS.items() if option.path}
    changes |= {name: _absolute(path) for name, path in paths.items() if path is not None}
    changes["model"] = _absolute(s.model) if s.model and is_gguf(s.model) else s.model
    changes["more_models"] = tuple(_absolute(model) if is_gguf(model) else model for model in s.more_models)
    if "gateway_config" in changes and not os.access(changes["gateway_config"], os.R_OK):
        raise ConfigError(f"{changes['gateway_config']} cannot be read", "give --gateway-config a TOML file")
    if s.public_url:
        changes |= {"public_url": base_url(s.public_url, "--public-url"), "tunnel": "none"}
    try:
        shlex.split(s.vllm_args or "")
    except ValueError:
        raise ConfigError("AVOCADO_VLLM_ARGS has a quote that does not end", "write it as in a shell") from None
    if s.upstream:
        changes["upstream"] = base_url(s.upstream, "--upstream")
    if s.api_key and not re.fullmatch(r"[\x21-\x7e]{16,512}", s.api_key.reveal()):
        raise ConfigError("the API key is not usable", "AVOCADO_API_KEY takes 16 to 512 visible ASCII characters")
    return Settings(**{**vars(s), **changes})


def _moment(text: str) -> str:
    """The moment that a time of day, or a date and time (local where it has no zone), names, in UTC. Raises ConfigError."""
    now = datetime.now().astimezone()
    hint = "write it as in 18:00 or 2027-01-31T18:00"
    try:
        if re.fullmatch(r"\d{1,2}:\d\d", text):
            hour, minute = map(int, text.split(":"))
            moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
            moment += timedelta(days=moment <= now)
        else:
            moment = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"until {text!r} is no time", hint) from None
    if moment <= now:
        raise ConfigError(f"until {text} is over", "name a time to come")
    return written(moment.astimezone(timezone.utc))


def _check(option: Option, label: str, value: Any) -> None:
    """Refuse a `value` that is none of the choices, or out of bounds."""
    if option.choices and value not in option.choices:
        raise ConfigError(f"unknown {label} {value!r}", f"choose one of {', '.join(option.choices)}")
    if option.least is None or value is None:
        return
    most = option.most
    if option.kind is int and most is not None and not option.least <= value <= most:
        raise ConfigError(f"{label} {value} is not possible", f"give a number from {option.least} to {most}")
    # Only a grace may be none at all.
    if option.kind is float and (not 0 <= value < float("inf") or (value == 0 and label != "grace")):
        raise ConfigError(f"{label} {value:g} is not possible", "give a positive number")
    if option.kind is float and most is not None and value > most:
        raise ConfigError(f"{label} {value:g} is longer than ten years", "give a smaller number")
    if value < option.least:
        raise ConfigError(f"{label} {value} does not exist", "choose 1 to 65535, or 0 for any free one")


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def check_name(name: str) -> str:
    """`name` if it can be a service's; it becomes a folder, so nothing that a path could read differently."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a service name", "use letters, digits, '.', '_' and '-', at most 64")
    return name


def base_url(url: str, origin: str) -> str:
    """An absolute http(s) URL without user, query, fragment and trailing slash; else ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{origin} is not a URL", "write it as in https://llm.example.org") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in url):
        raise ConfigError(f"{origin} is not an http or https URL", "write it as in https://llm.example.org")
    if "@" in parts.netloc:
        raise ConfigError(f"{origin} carries a user or password", "the URL is public: leave them out")
    if parts.query or parts.fragment:
        raise ConfigError(f"{origin} has a query or fragment", "give the base URL alone")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def ollama_base_url(host: str) -> str:
    """OLLAMA_HOST as a URL to connect to, read as Ollama reads it (envconfig.Host).

    Port 11434 without a scheme, 80 and 443 with one; an address that means "every interface" is
    reached over loopback.
    """
    text = host.strip().strip("\"'")
    scheme, sep, rest = text.partition("://")
    if not sep:
        scheme, rest = "http", text
    default = {"http": 80 if sep else 11434, "https": 443}.get(scheme)
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port or default
    except ValueError:
        port = None
        parts = urlsplit("//")
    if default is None or port is None or "@" in rest:
        raise ConfigError(
            f"OLLAMA_HOST is {host!r}" if "@" not in rest else "OLLAMA_HOST has a user in it",
            "write it as in 127.0.0.1:11434 or http://host:port",
        )
    name = parts.hostname or "127.0.0.1"
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}{parts.path.rstrip('/')}"


def home() -> Path | None:
    """AVOCADO_HOME, the one folder for everything, or None for the platform's own places."""
    value = os.environ.get("AVOCADO_HOME", "").strip()
    return Path(value).expanduser().absolute() if value else None


def services_dir() -> Path:
    """Folder that holds one folder per service."""
    root = home()
    if root is None:
        from platformdirs import user_state_path

        root = user_state_path("avocado", appauthor=False)
    return root / "services"


def cache_dir() -> Path:
    """Folder for what can be fetched again: models and engines."""
    root = home()
    if root is not None:
        return root / "cache"
    from platformdirs import user_cache_path

    return user_cache_path("avocado", appauthor=False)
