"""Writes what ``serve deploy`` takes: the gateway and its models on a Ray cluster, bound to loopback, behind Ray's token."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import base_url
from ..errors import ConfigError
from ..model_names import is_gguf
from ..parts.engine.embedded import KNOWN_MODELS, knows
from ..settings import ENGINES as ALL_ENGINES

ENGINES = tuple(engine for engine in ALL_ENGINES if engine != "auto")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_HEAD = """\
# Made by `{command}`.
#
# On the node that is the head, once. Without the token, whoever reaches the cluster may run anything on it:
#   export RAY_AUTH_MODE=token
#   ray get-auth-token --generate
#   ray start --head --node-ip-address 127.0.0.1 --dashboard-host 127.0.0.1
# (more nodes need the head's own address in place of 127.0.0.1, and the same token in ~/.ray/auth_token.)
#
# Then, and again after every change, which takes no request away:
#   serve deploy {file}
#   serve status
{more}"""
_SHARED = "# Keys, limits and usage are shared at AVOCADO_INFER_DATABASE (postgresql://…), set where `ray start` runs:\n#   avocado key create me --in-database\n"
_OWN_KEYS = "# Keys are in {file}:\n#   avocado key create me --keys-file {file}\n"


def config(
    models: Sequence[str],
    *,
    command: Sequence[str],
    file: str = "avocado.yaml",
    engine: str = "embedded",
    upstream: str | None = None,
    replicas: str = "1",
    ingress: int = 1,
    cpus: float | None = None,
    gpus: float | None = None,
    memory: str | None = None,
    parallel: int | None = None,
    context: int | None = None,
    small: bool = False,
    keys_file: Path | None = None,
    shared: bool = False,
    public_url: str | None = None,
    port: int = 8000,
) -> str:
    """The YAML, with how it is used above it; `command` is what made it. ConfigError for what cannot run."""
    if not models:
        raise ConfigError("no model was named", "name one, as in `avocado ray-config smollm2:135m`")
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}", f"choose one of {', '.join(ENGINES)}")
    if (engine == "openai" and upstream is None) or (upstream is not None and engine not in ("openai", "ollama")):
        raise ConfigError(
            "--upstream is the URL of an engine that runs elsewhere", "give it with --engine openai or ollama"
        )
    for model in models if engine == "embedded" else ():
        if not knows(model):
            raise ConfigError(
                f"the embedded engine does not know the model {model!r}",
                f"name {' or '.join(KNOWN_MODELS)} or the path of a *.gguf file, or another --engine",
            )
    if small and engine != "embedded":
        raise ConfigError("small models run in the embedded engine", "leave --small or --engine away")
    if keys_file is None and not shared:
        raise ConfigError("whose keys open it?", "give --keys-file FILE, or --shared for keys in PostgreSQL")
    if ingress > 1 and not shared:
        raise ConfigError(
            "more than one ingress share their keys and limits in PostgreSQL",
            "add --shared, and set AVOCADO_INFER_DATABASE",
        )
    least, most = _range(replicas)
    about: dict[str, Any] = {"engine": engine}
    about |= {"upstream": base_url(upstream, "--upstream")} if upstream else {}
    about |= {"small": True} if small else {"min_replicas": least, "max_replicas": most}
    given = {"cpus": cpus, "gpus": gpus, "memory": _bytes(memory), "parallel": parallel, "context": context}
    about |= {name: value for name, value in given.items() if value is not None}
    gateway: dict[str, Any] = (
        {"cluster": True} if shared else {"keys_file": str(Path(str(keys_file)).expanduser().absolute())}
    )
    if public_url is not None:
        gateway |= {"announce": True, "public_url": base_url(public_url, "--public-url")}
    names = [str(Path(model).expanduser().absolute()) if is_gguf(model) else model for model in models]
    args = {"models": [{"name": name, **about} for name in names], "ingress_replicas": ingress, "gateway": gateway}
    application = {"name": "avocado", "route_prefix": "/", "import_path": "avocado_magic.infer.ray:app", "args": args}
    whole = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }
    more = _SHARED if shared else _OWN_KEYS.format(file=keys_file)
    return _HEAD.format(command=shlex.join(command), file=file, more=more) + "\n".join(_lines(whole, 0)) + "\n"


def _range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:[:-](\d+))?", text)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if most < max(1, least):
        raise ConfigError(
            f"{text!r} is no number of replicas", "write it as in 2, or 1:4 for what Serve scales between"
        )
    return least, most


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise ConfigError(f"{text!r} is no size", "write it as in 8GiB or 500MB")
    return int(float(found[1]) * _UNITS[(found[2] or "").lower()])


def _lines(value: Mapping[str, Any], depth: int) -> Sequence[str]:
    """A mapping as YAML; scalars are as JSON has them, which YAML reads alike."""
    lines: list[str] = []
    for name, item in value.items():
        indent = "  " * depth
        if isinstance(item, Mapping):
            lines += [f"{indent}{name}:", *_lines(item, depth + 1)]
        elif isinstance(item, list):
            lines.append(f"{indent}{name}:")
            for each in item:
                first, *rest = _lines(each, depth + 1)
                lines += [f"{indent}- {first.lstrip()}", *rest]
        else:
            lines.append(f"{indent}{name}: {json.dumps(item, ensure_ascii=False)}")
    return lines
