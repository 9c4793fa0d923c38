"""Settings of avocado-infer: flag > environment (AVOCADO_INFER_*) > configuration file > default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from ..settings import DEFAULT_PORT

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

NO_KEY = "give --api-key-file FILE or --keys-file FILE, or --cluster, or --no-auth on loopback"


class InferSettings(BaseSettings):
    """How one gateway process runs. Sizes in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="AVOCADO_INFER_", extra="forbid", protected_namespaces=())

    # where it listens, and what is behind it
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(DEFAULT_PORT, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    fd: int | None = Field(None, ge=3, description="Descriptor of a socket that listens already, instead of a port.")
    watcher: int | None = Field(
        None,
        ge=3,
        description="Descriptor of a socket on which the supervisor of this service beats; unwatched, it ends.",
    )
    socket: Path | None = Field(None, description="Unix socket to listen on, for its owner alone, instead of a port.")
    backend: Literal["ollama", "llamacpp", "openai", "remote", "discovery", "ray"] = Field(
        "ollama",
        description="ollama (pass through), llamacpp (run the model here), openai (an engine that speaks OpenAI: vLLM, SGLang, llama-server, a hosted one), remote (a service elsewhere, with a key), discovery (all that announce themselves) or ray (the deployments of a Ray Serve application).",
    )
    upstream: str = Field(
        "http://127.0.0.1:11434",
        description="URL of the engine behind the gateway; with its path where OpenAI's routes are not below /v1.",
    )
    upstream_key_file: Path | None = Field(
        None,
        description="File with the key for --upstream, or lines HOST KEY or INSTANCE KEY (openai, remote, discovery).",
    )
    ray_app: str = Field("avocado", description="Name of the Ray Serve application (ray backend).")
    upstream_capabilities: list[str] = Field(
        ["completion", "tools"],
        description="What a model can do of which the engine says nothing: completion, tools, vision, thinking, insert, embedding; may be repeated (openai backend).",
    )
    discover: bool = Field(
        False,
        description="Follow the services that announce themselves at RABBITMQ_URL, this machine's where that is not set (remote backend).",
    )
    trust: list[str] = Field(
        [], description="Pattern of hosts to which a key alone may go; may be repeated (remote backend)."
    )
    remote_wait: float = Field(
        60.0, ge=0, description="Seconds that requests wait while no service is there (remote, discovery)."
    )
    trust_unsigned: bool = Field(False, description="Take instances whose messages are not signed (discovery backend).")
    allow_private: bool = Field(
        False, description="Take instances at addresses that are not public (discovery backend)."
    )

    # how the llama.cpp backend runs models
    model: str | list[str] | None = Field(
        None, description="Model of the llama.cpp backend, a name or a *.gguf path; may be repeated."
    )
    cache: Path | None = Field(None, description="Folder for models of the llama.cpp backend.")
    context: int = Field(4096, ge=1, description="Tokens of a request, prompt and answer (llama.cpp backend).")
    keep_alive: str = Field(
        "5m", description="How long a model stays in memory: 30s, 5m, 24h; -1 is for ever (llama.cpp backend)."
    )
    parallel: int = Field(2, ge=1, le=256, description="Requests a model works at side by side (llama.cpp backend).")
    gpu_layers: int | None = Field(
        None, ge=0, description="Layers on the GPU; as many as fit by default (llama.cpp backend)."
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="Threads to compute with; the usable cores by default (llama.cpp backend)."
    )

    # who may do what
    api_key: SecretStr | None = Field(None, description="The API key itself (environment only).")
    api_key_file: Path | None = Field(None, description="File with the API key.")
    keys_file: Path | None = Field(None, description="File of named keys, which `avocado key` writes.")
    admin_key_file: Path | None = Field(None, description="File with an admin key; switches admin routes on.")
    admin_routes: bool = Field(False, description="Let admin keys pull, push, create, copy and delete models.")
    no_auth: bool = Field(False, description="Let everybody in; loopback only.")
    cors_origins: list[str] = Field([], description="Origin whose pages may use the gateway; may be repeated.")

    # how much
    max_parallel: int = Field(1024, ge=1, description="Requests at the engine at the same time.")
    max_queue: int = Field(1024, ge=0, description="Requests that may wait for a place.")
    max_body: int = Field(64 * 1024 * 1024, gt=0, description="Bytes of the largest request body.")
    first_byte_timeout: float = Field(
        1800.0, ge=0, description="Seconds the engine may say nothing to a request; 0 for ever."
    )
    engine_wait: float = Field(
        15.0,
        ge=0,
        description="Seconds that requests wait for an engine that was there and is gone, as while it restarts.",
    )
    sse_comments: float = Field(
        15.0,
        ge=0,
        description="Seconds between comments in an SSE stream that waits, the first after twice that; 0 for none.",
    )
    drain: float = Field(5.0, ge=0, description="Seconds that open streams get to finish at TERM.")

    # models
    default_model: str = Field("", description="Model of requests that name none.")
    vision_model: str = Field("", description="Model that gets images sent to one that reads none.")
    aliases: dict[str, str] = Field({}, description="NAME=MODEL; may be repeated.")
    fallbacks: dict[str, list[str]] = Field({}, description="MODEL=OTHER,OTHER to try in turn; may be repeated.")
    presets: dict[str, Any] = Field({}, description="Presets by name (configuration file only).")
    allow_cloud: bool = Field(False, description="Let requests for Ollama's cloud models pass.")

    allow_fragile_schemas: bool = Field(
        False, description="Pass on schemas that end an Ollama before 0.30 (look-around in patterns, for one)."
    )

    # answers that are kept
    answer_cache: int = Field(0, ge=0, description="Bytes for answers to deterministic requests; 0 keeps none.")
    answer_cache_age: float = Field(3600.0, gt=0, description="Seconds an answer is kept.")
    answer_cache_shared: bool = Field(False, description="Let all keys share the answers that are kept.")

    # usage
    state_dir: Path | None = Field(None, description="Folder for usage.db; Avocado's own by default.")
    database: SecretStr | None = Field(
        None,
        description="SQLAlchemy URL for usage, and with --cluster PostgreSQL's for keys, limits and metrics as well (environment or file only).",
    )

    cluster: bool = Field(
        False,
        description="Share keys (avocado key --in-database), limits, usage and metrics with all gateways at the same database, a PostgreSQL.",
    )

    # seen from outside
    service_state: Path | None = Field(None, description="state.json of the service this gateway is part of.")
    service_name: str = Field("avocado-infer", description="Name of this gateway in /avocado/v1/service.")
    announce: bool = Field(False, description="Publish --public-url over RabbitMQ (RABBITMQ_URL).")
    public_url: str | None = Field(None, description="What the world calls this gateway.")
    log_json: bool = Field(False, description="Write logs as JSON, a line each.")
    access_log: bool = Field(True, description="Log every request, not only those that went wrong.")

    @field_validator("fallbacks", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: [t] if isinstance(t, str) else t for name, t in value.items()}

    @model_validator(mode="after")
    def _together(self) -> InferSettings:
        if self.fd is not None and self.socket is not None:
            raise ValueError("--fd and --socket exclude each other")
        keyed = self.api_key or self.api_key_file or self.keys_file or self.cluster
        if self.cluster and self.database is None:
            raise ValueError(
                "--cluster needs a database: set AVOCADO_INFER_DATABASE to postgresql://user:password@host/name"
            )
        if self.no_auth and keyed:
            raise ValueError("--no-auth and a key exclude each other")
        if self.no_auth and self.fd is not None:
            raise ValueError("--no-auth and --fd exclude each other: who can reach that socket is not known")
        if self.no_auth and self.socket is None and self.host not in _LOOPBACK:
            raise ValueError(f"--no-auth on {self.host} would let the whole network in: use 127.0.0.1")
        if not self.no_auth and not keyed:
            raise ValueError(NO_KEY)
        remote = self.backend == "remote"
        if remote and not self.discover and "upstream" not in self.model_fields_set:
            raise ValueError("--backend remote needs --upstream URL, or --discover")
        if self.backend == "openai" and "upstream" not in self.model_fields_set:
            raise ValueError("--backend openai needs --upstream URL: where is the engine?")
        if self.backend == "openai" and self.admin_routes:
            raise ValueError("--backend openai changes no models: leave --admin-routes away")
        if remote and not self.discover and self.upstream_key_file is None:
            raise ValueError("--backend remote needs --upstream-key-file: which key opens it?")
        if self.backend == "discovery" and self.admin_routes:
            raise ValueError("--backend discovery changes no models: leave --admin-routes away")
        if self.discover and not remote:
            raise ValueError("--discover needs --backend remote")
        if self.announce and not self.public_url:
            raise ValueError("--announce needs --public-url: what should be announced?")
        return self


def _reading(choose: Callable[..., tuple[PydanticBaseSettingsSource, ...]]) -> type[InferSettings]:
    """Settings that are read where `choose`, of what was given and the environment, says."""

    class Reading(InferSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return choose(settings_cls, init_settings, env_settings)

    return Reading


# Settings that are given, all of them: neither environment nor file adds to them.
OwnSettings = _reading(lambda settings, given, environment: (given,))


def load(flags: Mapping[str, Any], config: Path | None) -> InferSettings:
    """The settings; ValueError (pydantic's) for what is not possible, OSError for a file that cannot be read."""
    if config is None:
        return InferSettings(**flags)
    config.read_bytes()  # pydantic-settings passes over a file that is missing
    read = _reading(
        lambda settings, given, environment: (given, environment, TomlConfigSettingsSource(settings, config))
    )
    return read(**flags)
