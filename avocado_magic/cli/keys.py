"""Named API keys."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import api_keys
from ..config import service_name
from ..errors import ConfigError
from ..runtime import client
from .common import (
    HELP,
    Json,
    Name,
    app,
    one_sentence,
)

keys = typer.Typer(
    help="Named API keys of a service: a change counts at once.", no_args_is_help=True, context_settings=HELP
)
app.add_typer(keys, name="key")
KeysFile = Annotated[
    Path | None,
    typer.Option("--keys-file", help="The keys of an avocado-infer that runs alone, instead of a service's."),
]

InDatabase = Annotated[
    bool,
    typer.Option("--in-database", help="The keys that gateways share in PostgreSQL, at AVOCADO_INFER_DATABASE."),
]


@keys.command("create")
def key_create(
    key_name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is called.")],
    role: Annotated[
        str, typer.Option(help=", ".join(api_keys.ROLES), autocompletion=lambda: list(api_keys.ROLES))
    ] = "inference",
    models: Annotated[str, typer.Option(help="Models it may use, separated by commas; all by default.")] = "",
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests per minute.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="Tokens per day (UTC), prompts and answers.")] = None,
    parallel: Annotated[int | None, typer.Option(help="Requests at the same time.")] = None,
    expires: Annotated[str | None, typer.Option(help="30m, 12h, 7d, 4w, or a day as in 2027-01-31.")] = None,
    name: Name = None,
    keys_file: KeysFile = None,
    in_database: InDatabase = False,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    with one_sentence():
        entry, key = api_keys.create(
            _key_book(name, keys_file, in_database), key_name, role=role, models=[m.strip() for m in models.split(",") if m.strip()],
            requests_per_minute=requests_per_minute, tokens_per_day=tokens_per_day, parallel=parallel, expires=expires,
        )  # fmt: skip
    print(json.dumps({**entry.public(), "key": key}, indent=2) if as_json else key)
    if not as_json:
        print(f"note: the key {key_name!r} is shown this once", file=sys.stderr)


@keys.command("list")
def key_list(
    name: Name = None, keys_file: KeysFile = None, in_database: InDatabase = False, as_json: Json = False
) -> None:
    """List the keys, without what opens anything."""
    with one_sentence():
        found = _key_book(name, keys_file, in_database).entries()
    print(json.dumps([entry.public() for entry in found], indent=2) if as_json else api_keys.table(found))


@keys.command("revoke")
def key_revoke(
    key_name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is called.")],
    name: Name = None,
    keys_file: KeysFile = None,
    in_database: InDatabase = False,
) -> None:
    """Take a key away; it opens nothing from now on."""
    with one_sentence():
        api_keys.revoke(_key_book(name, keys_file, in_database), key_name)
    print(f"the key {key_name!r} is revoked")


def _key_book(name: str | None, given: Path | None, in_database: bool) -> api_keys.KeyBook:
    if in_database:
        from ..shared_keys import SharedKeys

        url = os.environ.get("AVOCADO_INFER_DATABASE", "")
        if not url:
            raise ConfigError(
                "--in-database needs AVOCADO_INFER_DATABASE", "set it to postgresql://user:password@host/name"
            )
        return SharedKeys(url)
    return api_keys.KeyFile(given if given is not None else client.keys_file(service_name(name)))
