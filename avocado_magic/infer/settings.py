"""Settings of avocado-infer: flag > environment (AVOCADO_INFER_*) > default."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class InferSettings(BaseSettings):
    """How one gateway process runs. Sizes in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="AVOCADO_INFER_", extra="forbid", protected_namespaces=())

    host: str = "127.0.0.1"
    port: int = Field(11435, ge=0, le=65535)
    backend: Literal["ollama", "llamacpp"] = "ollama"
    upstream: str = "http://127.0.0.1:11434"
    model: str | None = None
    api_key_file: Path | None = None
    admin_key_file: Path | None = None
    no_auth: bool = False
    cache: Path | None = None
    max_body: int = Field(128 * 1024 * 1024, gt=0)
    drain: float = Field(5.0, ge=0)
