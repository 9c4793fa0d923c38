"""Settings: flag > trait > environment > notebook secret > default.

Every setting is one field of `Settings`; its metadata names the environment variables that carry
it, so the README's table, the traits and the resolver cannot disagree.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .errors import ConfigError

ENGINES = ("auto", "ollama", "embedded")
TUNNELS = ("auto", "ngrok", "cloudflared", "none")
DEFAULT_PORT = 11435
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# a number of seconds, or a Go duration (Ollama's envconfig.KeepAlive)
_PERIOD = re.compile(r"-?(\d+|((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+)")
# host name labels, so that a domain cannot smuggle options or paths into the agent's configuration
_DOMAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)+")


class Secret:
    """A string that never shows itself: not in a repr, a traceback, a log or a JSON document."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> Any:
        raise TypeError("a Secret is not pickled")


def _setting(default: Any, help: str, *env: str, secret: bool = False, kind: type | None = None) -> Any:
    kind = kind or (str if default is None else type(default))
    return field(default=default, metadata={"help": help, "env": env, "secret": secret, "kind": kind})


@dataclass(frozen=True)
class Settings:
    """Everything `up` may be told. Checked by `validate`; times in the unit their help names."""

    model: str | None = _setting(None, "model to serve: a name, or the path of a *.gguf file", "AVOCADO_MODEL")
    more_models: tuple[str, ...] = _setting((), "models to have ready besides it", "AVOCADO_MORE_MODELS")
    engine: str = _setting("auto", f"what runs the model: {', '.join(ENGINES)}", "AVOCADO_ENGINE")
    tunnel: str = _setting("auto", f"how the world reaches it: {', '.join(TUNNELS)}", "AVOCADO_TUNNEL")
    public_url: str | None = _setting(None, "the URL the world uses, when the way in is yours", "AVOCADO_PUBLIC_URL")
    port: int = _setting(DEFAULT_PORT, "port of the gateway on 127.0.0.1; 0 picks a free one", "AVOCADO_PORT")
    name: str = _setting("default", "name of the service, when you run several", "AVOCADO_NAME")
    domain: str | None = _setting(None, "your ngrok domain, for a URL that stays the same", "AVOCADO_DOMAIN")
    grace: float = _setting(10.0, "minutes a service outlives its last notebook", "AVOCADO_GRACE")
    announce: bool = _setting(True, "publish the URL when a broker is configured", "AVOCADO_ANNOUNCE")
    timeout: float = _setting(600.0, "seconds until `up` gives up; a moving download extends it", "AVOCADO_TIMEOUT")
    max_lifetime: float = _setting(24.0, "hours a service without an owner lives", "AVOCADO_MAX_LIFETIME")
    url_check: float = _setting(60.0, "seconds between looks at the public URL from outside", "AVOCADO_URL_CHECK")
    context: int | None = _setting(
        None, "tokens of a request, prompt and answer", "AVOCADO_CONTEXT", "OLLAMA_CONTEXT_LENGTH", kind=int
    )
    keep_alive: str | None = _setting(
        None,
        "how long a model stays in memory: 30s, 5m, 24h; -1 is for ever",
        "AVOCADO_KEEP_ALIVE",
        "OLLAMA_KEEP_ALIVE",
    )
    parallel: int | None = _setting(
        None, "requests a model works at side by side", "AVOCADO_PARALLEL", "OLLAMA_NUM_PARALLEL", kind=int
    )
    gpu_layers: int | None = _setting(
        None, "layers on the GPU, 0 for none; with Ollama 0 alone", "AVOCADO_GPU_LAYERS", kind=int
    )
    threads: int | None = _setting(
        None, "threads to compute with; the embedded engine's alone", "AVOCADO_THREADS", kind=int
    )
    ollama_host: str = _setting("127.0.0.1:11434", "where an Ollama of yours listens", "OLLAMA_HOST")
    ollama_models: str | None = _setting(None, "folder in which Ollama keeps its models", "OLLAMA_MODELS")
    ollama_download: str | None = _setting(
        None, "mirror to install Ollama from, in place of its official releases", "AVOCADO_OLLAMA_DOWNLOAD"
    )
    ngrok_path: str | None = _setting(None, "an ngrok agent of yours, used as it is", "AVOCADO_NGROK_PATH")
    ngrok_config: str | None = _setting(None, "an ngrok config file of yours, used as it is", "AVOCADO_NGROK_CONFIG")
    gateway_config: str | None = _setting(
        None, "TOML file for the gateway: presets, aliases, limits, cache", "AVOCADO_GATEWAY_CONFIG"
    )
    admin_routes: bool = _setting(
        False, "let admin keys pull, push, create, copy and delete models", "AVOCADO_ADMIN_ROUTES"
    )
    ngrok_token: Secret | None = _setting(None, "ngrok authtoken", "NGROK_AUTHTOKEN", "NGROK_AUTH_TOKEN", secret=True)
    broker_url: Secret | None = _setting(
        None, "AMQP URL of RabbitMQ, amqp:// or amqps://", "RABBITMQ_URL", "AMQP_URL", "CLOUDAMQP_URL", secret=True
    )
    api_key: Secret | None = _setting(
        None, "API key of the gateway; made when not given", "AVOCADO_API_KEY", secret=True
    )

    def secrets(self) -> tuple[str, ...]:
        """The values that must never be shown, a broker password on its own among them."""
        values = [value.reveal() for value in (self.ngrok_token, self.broker_url, self.api_key) if value]
        if self.broker_url:
            password = _password_of(self.broker_url.reveal())
            values += [password] if password else []
        return tuple(values)

    def to_wire(self) -> dict[str, Any]:
        """A JSON object with the secrets in clear: only ever for the pipe to the supervisor's stdin."""
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value.reveal() if isinstance(value, Secret) else value for name, value in pairs}

    @staticmethod
    def from_wire(data: Mapping[str, Any]) -> Settings:
        values: dict[str, Any] = {}
        for f in fields(Settings):
            if f.name in data:
                value = data[f.name]
                if f.metadata["secret"] and value is not None:
                    value = Secret(value)
                values[f.name] = tuple(value) if f.metadata["kind"] is tuple else value  # JSON has lists
        return Settings(**values)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model to have ready, the one that is loaded first."""
        return (*((self.model,) if self.model else ()), *self.more_models)


SECRET_VARIABLES = tuple(name for f in fields(Settings) if f.metadata["secret"] for name in f.metadata["env"])


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
    return validate(Settings(**lookup([f.name for f in fields(Settings)], flags, traits, environ, notebook_secret)))


def lookup(
    names: Collection[str],
    flags: Mapping[str, Any],
    traits: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    notebook_secret: Callable[[str], str | None] | None = None,
) -> dict[str, Any]:
    """The settings `names` alone, those that have a value; what `resolve` does, without looking at the others."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for f in fields(Settings):
        if f.name not in names:
            continue
        for source in (flags, traits or {}):
            if source.get(f.name) not in (None, "", (), []):
                origin = f"--{f.name.replace('_', '-')}" if source is flags else f"c.AvocadoMagics.{f.name}"
                values[f.name] = _typed(f, source[f.name], origin)
                break
        else:
            named = _from_environment(f, environ, notebook_secret)
            if named is not None:
                values[f.name] = _typed(f, named[1], named[0])
    return values


def service_name(name: str | None, traits: Mapping[str, Any] | None = None) -> str:
    """The service that is meant: by flag, trait, AVOCADO_NAME or default. Raises ConfigError."""
    return check_name(lookup(["name"], {"name": name}, traits).get("name", "default"))


def _from_environment(
    f: Field[Any], environ: Mapping[str, str], notebook_secret: Callable[[str], str | None] | None
) -> tuple[str, str] | None:
    for name in f.metadata["env"]:
        if environ.get(name, "").strip():
            return name, environ[name].strip()
    if notebook_secret and (f.metadata["secret"] or f.name == "model"):
        for name in f.metadata["env"]:
            value = notebook_secret(name)
            if value:
                return name, value.strip()
    return None


def _typed(f: Field[Any], value: Any, origin: str) -> Any:
    if f.metadata["secret"]:
        return value if isinstance(value, Secret) else Secret(str(value))
    kind = f.metadata["kind"]
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
    if s.engine not in ENGINES:
        raise ConfigError(f"unknown engine {s.engine!r}", f"choose one of {', '.join(ENGINES)}")
    if s.tunnel not in TUNNELS:
        raise ConfigError(f"unknown tunnel {s.tunnel!r}", f"choose one of {', '.join(TUNNELS)}")
    check_name(s.name)
    if not 0 <= s.port <= 65535:
        raise ConfigError(f"port {s.port} does not exist", "choose 1 to 65535, or 0 for any free one")
    for label, number in (
        ("grace", s.grace),
        ("timeout", s.timeout),
        ("max_lifetime", s.max_lifetime),
        ("url_check", s.url_check),
    ):
        if not (number >= 0 and number != float("inf")) or (number == 0 and label != "grace"):
            raise ConfigError(f"{label.replace('_', '-')} {number:g} is not possible", "give a positive number")
    for label, number, longest in (
        ("grace", s.grace, 10 * 365 * 24 * 60),
        ("max-lifetime", s.max_lifetime, 10 * 365 * 24),
    ):
        if number > longest:
            raise ConfigError(f"{label} {number:g} is longer than ten years", "give a smaller number")
    for model in s.models:
        if not model.strip() or (any(c.isspace() for c in model) and not is_gguf(model)):
            raise ConfigError(f"{model!r} is not a model name", "write it as in `llama3` or `smollm2:135m`")
    for label, count, least, most in (
        ("context", s.context, 1, 100_000_000),
        ("parallel", s.parallel, 1, 256),
        ("gpu-layers", s.gpu_layers, 0, 10_000),
        ("threads", s.threads, 1, 1024),
    ):
        if count is not None and not least <= count <= most:
            raise ConfigError(f"{label} {count} is not possible", f"give a number from {least} to {most}")
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
    changes: dict[str, Any] = {}
    # The supervisor works in another folder: what is relative here must not be read there.
    for label in ("ollama_models", "ngrok_path", "ngrok_config", "gateway_config"):
        if getattr(s, label) is not None:
            changes[label] = _absolute(getattr(s, label))
    changes["model"] = _absolute(s.model) if s.model and is_gguf(s.model) else s.model
    changes["more_models"] = tuple(_absolute(model) if is_gguf(model) else model for model in s.more_models)
    if "gateway_config" in changes and not os.access(changes["gateway_config"], os.R_OK):
        raise ConfigError(f"{changes['gateway_config']} cannot be read", "give --gateway-config a TOML file")
    if s.public_url:
        changes |= {"public_url": base_url(s.public_url, "--public-url"), "tunnel": "none"}
    if s.api_key and not re.fullmatch(r"[\x21-\x7e]{16,512}", s.api_key.reveal()):
        raise ConfigError("the API key is not usable", "AVOCADO_API_KEY takes 16 to 512 visible ASCII characters")
    return Settings(**{f.name: changes.get(f.name, getattr(s, f.name)) for f in fields(s)})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def check_name(name: str) -> str:
    """`name` if it can be a service's; it becomes a folder, so nothing that a path could read differently."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a service name", "use letters, digits, '.', '_' and '-', at most 64")
    return name


def is_gguf(model: str) -> bool:
    """True if `model` names a file rather than a model of a library."""
    return model.lower().endswith(".gguf")


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


def _password_of(url: str) -> str:
    # Not urlsplit alone: a malformed URL must still give its password up to be hidden.
    match = re.search(r"://[^:/@]*:(?P<password>.*)@", url)
    return match["password"] if match else ""


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
