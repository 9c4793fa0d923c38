"""What a user may set, declared once: traits, flags of the magic and of the command, environment and README come from here.

Imports nothing heavy, for `%load_ext` reads it. How the values are found and checked is in `config`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

ENGINES = ("auto", "ollama", "embedded", "vllm", "openai")
TUNNELS = ("auto", "ngrok", "cloudflared", "none")
DEFAULT_PORT = 11435


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


class Option:
    """One setting: its kind, default and help, the variables of the environment that carry it, and what it may be.

    `metavar` is how a flag's value is shown, for a setting that `up` takes as a flag; `on` and `off` are flags without a
    value. `least` and `most` bound numbers. `unset` says in words what is there without it, where the default does not.
    `lasting` is what a service keeps for its life: an `up` that asks a running one for another value is refused. `path`: it
    names a file or a folder.
    """

    __slots__ = (
        "choices", "default", "env", "help", "kind", "lasting", "least", "metavar", "most", "name", "off", "on", "path",
        "secret", "unset",
    )  # fmt: skip

    def __init__(
        self,
        default: Any,
        help: str,
        *env: str,
        kind: type | None = None,
        metavar: str = "",
        choices: tuple[str, ...] = (),
        least: float | None = None,
        most: float | None = None,
        on: str = "",
        off: str = "",
        secret: bool = False,
        unset: str = "",
        lasting: bool = False,
        path: bool = False,
    ) -> None:
        self.name = ""
        self.default, self.help, self.env, self.secret = default, help, env, secret
        self.kind = kind or (str if default is None else type(default))
        self.metavar, self.choices, self.on, self.off = metavar, choices, on, off
        self.least, self.most, self.unset, self.lasting, self.path = least, most, unset, lasting, path

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def flag(self) -> str:
        """The flag of `up`; empty for a setting that has none."""
        return self.on or self.off or (f"--{self.name.replace('_', '-')}" if self.metavar else "")

    @property
    def explained(self) -> str:
        """The help, with what may be chosen and what is there without it."""
        chosen = f": {', '.join(self.choices)}" if self.choices else ""
        unset = self.unset
        if not unset and self.default not in (None, (), "", True, False):
            unset = f"default {self.default:g}" if self.kind is float else f"default {self.default}"
        return f"{self.help}{chosen}" + (f" ({unset})" if unset else "")


def _option(*given: Any, **more: Any) -> Any:
    return Option(*given, **more)


class Settings:
    """Everything `up` may be told, checked by `config.resolve`; times in the unit their help names. Never changed."""

    OPTIONS: ClassVar[Mapping[str, Option]]

    model: str | None = _option(
        None,
        "model to serve: a name, or the path of a `*.gguf` file",
        "AVOCADO_MODEL",
        unset="what the engine has by default; smollm2:135m where it is embedded",
    )
    more_models: tuple[str, ...] = _option(
        (), "models to have ready besides it: name them after the first", "AVOCADO_MORE_MODELS"
    )
    engine: str = _option(
        "auto",
        "what runs the model",
        "AVOCADO_ENGINE",
        metavar="ENGINE",
        choices=ENGINES,
        unset="auto is what runs at --upstream, a running Ollama, an installed one, the embedded engine where it knows the model, a fresh Ollama",
        lasting=True,
    )
    upstream: str | None = _option(
        None,
        "an engine elsewhere that speaks OpenAI's API: vLLM, SGLang, LM Studio, llama-server, a hosted one",
        "AVOCADO_UPSTREAM",
        metavar="URL",
        lasting=True,
    )
    tunnel: str = _option(
        "auto",
        "how the world reaches it",
        "AVOCADO_TUNNEL",
        metavar="TUNNEL",
        choices=TUNNELS,
        unset="auto is ngrok with a token, else cloudflared where it is installed, else none; cloudflared is fetched where it is asked for",
        lasting=True,
    )
    public_url: str | None = _option(
        None,
        "the URL the world uses, when the way in is yours: a LAN address, an ingress, a tunnel run elsewhere",
        "AVOCADO_PUBLIC_URL",
        metavar="URL",
        lasting=True,
    )
    port: int | None = _option(
        None,
        "port of the gateway on 127.0.0.1; 0 picks a free one",
        "AVOCADO_PORT",
        kind=int,
        metavar="N",
        least=0,
        unset=f"{DEFAULT_PORT}, else the next free one",
        lasting=True,
    )
    name: str = _option("default", "name of the service, when you run several", "AVOCADO_NAME", metavar="NAME")
    domain: str | None = _option(
        None, "your ngrok domain, for a URL that stays the same", "AVOCADO_DOMAIN", metavar="D", lasting=True
    )
    grace: float = _option(
        10.0,
        "minutes a service outlives its last notebook",
        "AVOCADO_GRACE",
        metavar="MINUTES",
        least=0,
        most=10 * 365 * 24 * 60,
        lasting=True,
    )
    announce: bool = _option(
        True, "publish the URL when a broker is configured", "AVOCADO_ANNOUNCE", off="--no-announce", lasting=True
    )
    timeout: float = _option(
        600.0, "seconds until `up` gives up; a moving download extends it", "AVOCADO_TIMEOUT", metavar="S", least=0
    )
    max_lifetime: float = _option(
        24.0,
        "hours a service without an owner lives",
        "AVOCADO_MAX_LIFETIME",
        metavar="HOURS",
        least=0,
        most=10 * 365 * 24,
        lasting=True,
    )
    until: str | None = _option(
        None,
        "when it ends: 18:00, or as in 2027-01-31T18:00; five minutes before, it is withdrawn and takes no new requests",
        "AVOCADO_UNTIL",
        metavar="TIME",
        lasting=True,
    )
    idle_stop: float | None = _option(
        None,
        "minutes without a request after which the service ends, and with it the GPU is free",
        "AVOCADO_IDLE_STOP",
        metavar="MINUTES",
        least=0,
        most=10 * 365 * 24 * 60,
        kind=float,
        unset="never by default",
        lasting=True,
    )
    url_check: float = _option(
        60.0,
        "seconds between looks at the public URL from outside",
        "AVOCADO_URL_CHECK",
        least=0,
        unset="60 by default; each is a request on your tunnel's plan",
    )
    context: int | None = _option(
        None,
        "tokens of a request, prompt and answer",
        "AVOCADO_CONTEXT",
        "OLLAMA_CONTEXT_LENGTH",
        kind=int,
        metavar="N",
        least=1,
        most=100_000_000,
        unset="the engine's own by default; embedded 4096",
        lasting=True,
    )
    keep_alive: str | None = _option(
        None,
        "how long a model stays in memory: 30s, 5m, 24h; -1 is for ever",
        "AVOCADO_KEEP_ALIVE",
        "OLLAMA_KEEP_ALIVE",
        metavar="TIME",
        unset="5m by default",
        lasting=True,
    )
    parallel: int | None = _option(
        None,
        "requests a model works at side by side",
        "AVOCADO_PARALLEL",
        "OLLAMA_NUM_PARALLEL",
        kind=int,
        metavar="N",
        least=1,
        most=256,
        unset="the engine's own by default; embedded 2",
        lasting=True,
    )
    gpu_layers: int | None = _option(
        None,
        "layers on the GPU, 0 for none; Ollama takes 0 alone here, and a number with a request (num_gpu)",
        "AVOCADO_GPU_LAYERS",
        kind=int,
        metavar="N",
        least=0,
        most=10_000,
        unset="as many as fit by default",
        lasting=True,
    )
    threads: int | None = _option(
        None,
        "threads to compute with; the embedded engine's alone, Ollama takes them with a request (num_thread)",
        "AVOCADO_THREADS",
        kind=int,
        metavar="N",
        least=1,
        most=1024,
        unset="the cores that may be used by default",
        lasting=True,
    )
    vllm_args: str | None = _option(
        None,
        "further arguments of `vllm serve`, as in `--enable-auto-tool-choice --tool-call-parser hermes`",
        "AVOCADO_VLLM_ARGS",
        lasting=True,
    )
    ollama_host: str = _option(
        "127.0.0.1:11434",
        "where an Ollama of yours listens; one that answers there is used, never stopped",
        "OLLAMA_HOST",
    )
    ollama_models: str | None = _option(
        None, "folder in which Ollama keeps its models", "OLLAMA_MODELS", unset="Ollama's own by default", path=True
    )
    ollama_download: str | None = _option(
        None, "mirror to install Ollama from, in place of its official releases", "AVOCADO_OLLAMA_DOWNLOAD"
    )
    cloudflared_download: str | None = _option(
        None,
        "where cloudflared is fetched from: the URL of a release as GitHub's API describes it",
        "AVOCADO_CLOUDFLARED_DOWNLOAD",
        unset="Cloudflare's own release by default",
    )
    ngrok_path: str | None = _option(
        None,
        "an ngrok agent of yours, used as it is",
        "AVOCADO_NGROK_PATH",
        unset="`ngrok` on PATH by default, else pyngrok's",
        path=True,
    )
    ngrok_config: str | None = _option(
        None,
        "an ngrok config file of yours, used as it is",
        "AVOCADO_NGROK_CONFIG",
        unset="one of our own by default, 0600, removed by `down`",
        path=True,
    )
    gateway_config: str | None = _option(
        None,
        "TOML file for the gateway: presets, aliases, limits, cache",
        "AVOCADO_GATEWAY_CONFIG",
        metavar="FILE",
        lasting=True,
        path=True,
    )
    admin_routes: bool = _option(
        False,
        "let admin keys pull, push, create, copy and delete models",
        "AVOCADO_ADMIN_ROUTES",
        on="--admin-routes",
        lasting=True,
    )
    ngrok_token: Secret | None = _option(None, "ngrok authtoken", "NGROK_AUTHTOKEN", "NGROK_AUTH_TOKEN", secret=True)
    upstream_key: Secret | None = _option(
        None, "key of the engine at --upstream, where it asks for one", "AVOCADO_UPSTREAM_KEY", kind=Secret, secret=True
    )
    discovery_secret: Secret | None = _option(
        None,
        "secret by which messages are signed, shared with consumers: whoever can verify can also sign",
        "AVOCADO_DISCOVERY_SECRET",
        kind=Secret,
        secret=True,
    )
    broker_url: Secret | None = _option(
        None,
        "AMQP URL of RabbitMQ, amqp:// or amqps://",
        "RABBITMQ_URL",
        "AMQP_URL",
        "CLOUDAMQP_URL",
        secret=True,
        unset="without one nothing is announced",
    )
    api_key: Secret | None = _option(None, "API key of the gateway; made at the first `up` when not given, and kept in a 0600 file", "AVOCADO_API_KEY", secret=True)  # fmt: skip

    def __init__(self, **given: Any) -> None:
        unknown = given.keys() - self.OPTIONS.keys()
        if unknown:
            raise TypeError(f"there is no setting {', '.join(sorted(unknown))}")
        self.__dict__.update({name: given.get(name, option.default) for name, option in self.OPTIONS.items()})

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("settings are never changed")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def secrets(self) -> tuple[str, ...]:
        """The values that must never be shown, a broker password on its own among them."""
        values = [value.reveal() for value in vars(self).values() if isinstance(value, Secret)]
        # Not urlsplit: a malformed URL must still give its password up to be hidden.
        urls = re.split(r"[,\s]+(?=amqps?://)", self.broker_url.reveal()) if self.broker_url else []
        found = [re.search(r"://[^:/@]*:(?P<password>.+)@", url) for url in urls]
        return (*values, *(match["password"] for match in found if match))

    def to_wire(self) -> dict[str, Any]:
        """A JSON object with the secrets in clear: only ever for the pipe to the supervisor's stdin."""
        return {name: value.reveal() if isinstance(value, Secret) else value for name, value in self.__dict__.items()}

    @staticmethod
    def from_wire(data: Mapping[str, Any]) -> Settings:
        values: dict[str, Any] = {}
        for name, option in Settings.OPTIONS.items():
            if name in data:
                value = data[name]
                if option.secret and value is not None:
                    value = Secret(value)
                values[name] = tuple(value) if option.kind is tuple else value  # JSON has lists
        return Settings(**values)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model to have ready, the one that is loaded first."""
        return (*((self.model,) if self.model else ()), *self.more_models)


Settings.OPTIONS = {name: value for name, value in vars(Settings).items() if isinstance(value, Option)}
SECRET_VARIABLES = tuple(name for option in Settings.OPTIONS.values() if option.secret for name in option.env)
