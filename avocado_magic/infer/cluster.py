"""What runs on a cluster: models, where and how often, and the gateway before them. Whatever runs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..model_names import is_gguf, name_of_file
from .settings import NO_KEY, InferSettings, load

_SECRET = ("api_key", "database")


class ModelSpec(BaseModel):
    """A model, and where and how often its engine runs. Times in seconds, memory in bytes."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Name of the model, or the path of a *.gguf file on each node.")
    engine: Literal["embedded", "ollama", "vllm", "openai"] = "embedded"
    upstream: str | None = Field(None, description="URL of an engine that runs elsewhere (openai, ollama).")
    upstream_key_file: Path | None = None
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(2.0, gt=0, description="Requests that a replica is to work at.")
    max_ongoing_requests: int = Field(16, ge=1, description="Requests that a replica has at most; others wait.")
    upscale_delay: float = Field(10.0, ge=0)
    downscale_delay: float = Field(120.0, ge=0)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    memory: int | None = Field(None, ge=1)
    resources: dict[str, float] = {}
    small: bool = Field(False, description="Share replicas with the other small models.")
    parallel: int = Field(2, ge=1, le=256)
    context: int | None = Field(None, ge=1)
    gpu_layers: int | None = Field(None, ge=0)
    threads: int | None = Field(None, ge=1)
    options: list[str] = Field([], description="Further arguments of `vllm serve`.")

    @property
    def served_as(self) -> str:
        """The name that clients ask for."""
        return name_of_file(Path(self.name)) if is_gguf(self.name) else self.name

    @model_validator(mode="after")
    def _fits(self) -> ModelSpec:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is less than min_replicas")
        if self.engine == "openai" and self.upstream is None:
            raise ValueError("engine openai needs an upstream")
        if self.upstream is not None and self.engine not in ("openai", "ollama"):
            raise ValueError(f"engine {self.engine} has no upstream: openai and ollama may have one")
        if self.small and self.engine != "embedded":
            raise ValueError("small models run in the embedded engine")
        return self


def _default_models() -> list[ModelSpec]:
    return [ModelSpec(name=os.environ.get("AVOCADO_MODEL") or "smollm2:135m")]


class ClusterSpec(BaseModel):
    """What runs on the cluster. `gateway` are settings of avocado-infer; `config` is a file with more of them, on each node."""

    model_config = ConfigDict(extra="forbid")

    models: list[ModelSpec] = Field(default_factory=_default_models)
    ingress_replicas: int = Field(1, ge=1)
    ingress_cpus: float = Field(1.0, ge=0)
    small_replicas: int = Field(1, ge=1)
    small_cpus: float = Field(1.0, ge=0)
    small_at_once: int = Field(3, ge=1, description="Small models that a replica has in memory.")
    gateway: dict[str, Any] = {}
    config: Path | None = None
    drain: float = Field(600.0, ge=0, description="Seconds that a replica which is to end has for what it answers.")
    open_cluster: bool = Field(False, description="Run although the cluster asks nobody for a token.")

    @model_validator(mode="after")
    def _fits(self) -> ClusterSpec:
        names = [model.served_as for model in self.models]
        if not names or len(set(names)) < len(names):
            raise ValueError("there is one model at least, and each has a name of its own")
        secret = next((name for name in _SECRET if name in self.gateway), None)
        if secret is not None:
            # What is deployed is kept by Serve, and shown by Ray's dashboard.
            raise ValueError(
                f"{secret} is a secret: it stands in the environment of `ray start`, or in a file, see config"
            )
        return self

    def settings(self) -> InferSettings:
        """Those of the gateway, with what this process's environment adds. ValueError for what cannot be."""
        try:
            settings = load({**self.gateway, "backend": "ray"}, self.config)
        except ValueError as error:
            if NO_KEY not in str(error):  # which would lead to --no-auth
                raise
            settings = None
        if settings is None or settings.no_auth:
            raise ValueError(
                "a cluster lets nobody in without a key: give keys_file, api_key_file or cluster in the gateway's settings, or "
                "AVOCADO_INFER_API_KEY_FILE where Ray is started"
            )
        if self.ingress_replicas > 1 and not settings.cluster:
            raise ValueError("more than one ingress share keys and limits: set cluster, and AVOCADO_INFER_DATABASE")
        return settings
