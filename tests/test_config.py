"""Settings: where they come from, what is refused, and what never shows."""

from __future__ import annotations

import json
import pickle
import traceback
from typing import Any

import pytest

from avocado_magic.config import base_url, ollama_base_url, resolve
from avocado_magic.errors import AvocadoError, ConfigError, StartError, redact
from avocado_magic.notebook.arguments import without_note
from avocado_magic.notebook.magics import AvocadoMagics
from avocado_magic.settings import Secret, Settings


def test_flag_then_trait_then_environment_then_notebook_secret_then_default() -> None:
    def stored(name: str) -> str | None:
        return "from-the-notebook" if name == "AVOCADO_MODEL" else None

    everything: dict[str, Any] = {
        "flags": {"model": "a"},
        "traits": {"model": "b"},
        "environ": {"AVOCADO_MODEL": "c"},
        "notebook_secret": stored,
    }
    assert resolve(**everything).model == "a"
    everything["flags"] = {"model": None}
    assert resolve(**everything).model == "b"
    everything["traits"] = {}
    assert resolve(**everything).model == "c"
    everything["environ"] = {}
    assert resolve(**everything).model == "from-the-notebook"
    everything["notebook_secret"] = None
    assert resolve(**everything).model is None


@pytest.mark.parametrize("name", ["RABBITMQ_URL", "AMQP_URL", "CLOUDAMQP_URL"])
def test_every_name_of_the_broker_is_honoured(name: str) -> None:
    assert resolve({}, environ={name: "amqp://h"}).broker_url == Secret("amqp://h")


@pytest.mark.parametrize("name", ["NGROK_AUTHTOKEN", "NGROK_AUTH_TOKEN"])
def test_both_names_of_the_token_are_honoured(name: str) -> None:
    assert resolve({}, environ={name: " token "}).ngrok_token == Secret("token")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"), ("0.0.0.0", "http://127.0.0.1:11434"), ("0.0.0.0:1234", "http://127.0.0.1:1234"),
        (":1234", "http://127.0.0.1:1234"), ("example.org", "http://example.org:11434"), ("http://example.org", "http://example.org:80"),
        ("https://example.org", "https://example.org:443"), ("[::]:99", "http://[::1]:99"), ("https://h:1/path/", "https://h:1/path"),
    ],
)  # fmt: skip
def test_ollama_host_is_read_as_ollama_reads_it(host: str, url: str) -> None:
    assert ollama_base_url(host) == url


@pytest.mark.parametrize("host", ["h:notaport", "ftp://h", "user:pw@h"])
def test_an_ollama_host_that_cannot_be_read(host: str) -> None:
    with pytest.raises(ConfigError, match="OLLAMA_HOST") as caught:
        ollama_base_url(host)
    assert "pw" not in caught.value.message or "@" not in host


def test_base_urls_are_normal() -> None:
    assert base_url("https://X.example:8443/a/", "x") == "https://x.example:8443/a"


def test_secrets_show_nowhere() -> None:
    settings = resolve(
        {},
        environ={
            "NGROK_AUTHTOKEN": "tok-en-value",
            "RABBITMQ_URL": "amqp://u:pass-word@h",
            "AVOCADO_API_KEY": "k" * 20,
        },
    )
    for shown in (repr(settings), str(settings), f"{settings.ngrok_token}", repr(vars(settings))):
        assert "tok-en-value" not in shown
        assert "pass-word" not in shown
        assert "kkkk" not in shown
    with pytest.raises(TypeError):
        json.dumps(settings.ngrok_token)
    with pytest.raises(TypeError):
        pickle.dumps(settings.ngrok_token)
    try:
        raise AvocadoError("x")
    except AvocadoError:
        assert "tok-en-value" not in traceback.format_exc()
    assert set(settings.secrets()) == {"tok-en-value", "amqp://u:pass-word@h", "k" * 20, "pass-word"}
    assert Settings.from_wire(json.loads(json.dumps(settings.to_wire()))) == settings


def test_redaction_takes_secrets_and_users_of_urls_out() -> None:
    assert redact("a tok-en b https://me:pw@host/x", ["tok-en"]) == "a *** b https://***@host/x"


def test_errors_survive_the_way_from_the_supervisor() -> None:
    error = StartError("it broke", "mend it", part="engine", log=["line"], log_file="/x/engine.log")
    back = AvocadoError.from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(back) is StartError
    assert back.lines() == error.lines()
    assert back.sentence() == "engine: it broke — mend it"


def test_every_setting_has_a_trait_but_the_secrets() -> None:
    wanted = {name for name, option in Settings.OPTIONS.items() if not option.secret}
    assert set(AvocadoMagics.class_trait_names(config=True)) == wanted
    for name in wanted:
        assert AvocadoMagics.class_traits()[name].help, name


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("llama3 # a note", "llama3"), ("llama3 #note", "llama3"), ("# all of it", ""), ("'a # b' # c", "'a # b'"),
        ('--name "x#y" z#w', '--name "x#y" z#w'), ("C# is a language", "C# is a language"), ("what's up # doc", "what's up"),
        ('--name="a # b" # c', '--name="a # b"'),
    ],
)  # fmt: skip
def test_trailing_notes_are_dropped(line: str, kept: str) -> None:
    assert without_note(line) == kept
