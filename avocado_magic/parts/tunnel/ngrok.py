"""ngrok through pyngrok, with the hazards of both dealt with: deadlines, tokens, old agents, lost sessions.

pyngrok waits without limit in several states, puts the token into argv and believes in sessions that
are gone; each place below that works around one of these says which.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from ...background import in_thread
from ...config import cache_dir
from ...errors import AvocadoError, redact
from ...files import append_line, write_private
from ...process import Identity, end_group, wait_until
from ...sessions import local_session
from ...settings import Settings
from ..base import ANSWER_SECONDS, CHECK_SECONDS, Running, StartContext, TunnelPart, part_error

_ENDPOINTS_SINCE = (3, 30)  # the agent's /api/endpoints; older agents have /api/tunnels alone
_NAME = "avocado"  # always given: pyngrok otherwise makes one out of the address
_CODE = re.compile(r"ERR_NGROK_(\d+)")
_TOKEN_PAGE = "dashboard.ngrok.com/get-started/your-authtoken"
# ngrok.com/docs/errors; message and remedy of those that people meet.
_ERRORS: Mapping[str, tuple[str, str]] = {
    "105": ("ngrok says the authtoken is malformed", f"copy it again from {_TOKEN_PAGE}"),
    "107": ("ngrok says the authtoken is wrong or was revoked", f"copy it again from {_TOKEN_PAGE}"),
    "108": (
        "this ngrok account already has as many agents as it may",
        "end the other one: dashboard.ngrok.com/agents lists them, an old notebook often is one",
    ),
    "120": (
        "this ngrok agent is too old for ngrok's service",
        "update it: `ngrok update`, or unset AVOCADO_NGROK_PATH",
    ),
    "121": (
        "this ngrok agent is too old for ngrok's service",
        "update it: `ngrok update`, or unset AVOCADO_NGROK_PATH",
    ),
    "334": (
        "the ngrok endpoint is already online somewhere else",
        "stop it there (dashboard.ngrok.com/endpoints), or use another --domain",
    ),
    "3200": ("the ngrok endpoint is offline", "run {up} again"),
    "4018": (
        "ngrok wants a verified account and an authtoken",
        f"sign up, verify the e-mail, then set NGROK_AUTHTOKEN from {_TOKEN_PAGE}",
    ),
    "6022": (
        "the plan of this ngrok account does not allow this",
        "see dashboard.ngrok.com/billing, or leave --domain away",
    ),
    "8012": ("ngrok cannot reach the gateway", "{logs gateway} says why"),
}


# Those that another try does not change.
_LASTING = ("105", "107", "120", "121", "4018", "6022")


def has_credentials(settings: Settings) -> bool:
    """True if ngrok can log in: with a token, or with the user's own config file."""
    return settings.ngrok_token is not None or settings.ngrok_config is not None


def explain(text: str) -> tuple[str, str]:
    """Message and remedy for what the agent or pyngrok said."""
    code = _CODE.search(text)
    if code:
        known = _ERRORS.get(code[1])
        return (
            known
            if known
            else (f"ngrok refused: ERR_NGROK_{code[1]}", f"see ngrok.com/docs/errors/err_ngrok_{code[1]}")
        )
    low = text.lower()
    if "no such host" in low or "failed to dial" in low or "network is unreachable" in low or "urlopen error" in low:
        return "ngrok's service cannot be reached", "check the network: the agent needs a way out to port 443"
    if "address already in use" in low:
        return "the agent's own port is in use", "set another web_addr in your ngrok config"
    first = next((line.strip() for line in text.splitlines() if line.strip()), "it said nothing")
    return f"ngrok failed: {first[:300]}", "the log has the rest"


class Ngrok(TunnelPart):
    """Part `tunnel`, by the ngrok agent."""

    def __init__(self, settings: Settings, port: int, folder: Path, log: Path, before: Running | None = None) -> None:
        self._settings = settings
        self._port = port
        self._config_file = folder / "ngrok.yml"
        self.log = log
        self._identity: Identity | None = None
        self._agent: Any = None  # pyngrok's object for the process
        self._api_url: str | None = None
        self._path = ""
        self._lost: str | None = None
        self._said: list[str] = []
        self._output: int | None = None  # the agent's, where an earlier supervisor started it
        if before is not None:
            self.url, self._identity, self._api_url = (
                before.about.get("url"),
                before.identity,
                before.about.get("api_url"),
            )
            self._output = before.held.get("output")
            if self._output is not None:
                threading.Thread(target=self._follow, args=(self._output,), name="ngrok-output", daemon=True).start()

    def _follow(self, output: int) -> None:
        """Take what the agent prints, as pyngrok does for one that it started: an agent that nobody reads stalls."""
        from pyngrok.process import NgrokLog

        _quiet()
        with os.fdopen(output, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self._on_log(NgrokLog(line))
            self._output = None

    # starting

    def start(self, context: StartContext) -> None:
        _quiet()
        # The calls to the agent's own API must not take the way through a proxy; they hang there.
        given = [os.environ.get(name, "").split(",") for name in ("no_proxy", "NO_PROXY")]
        hosts = dict.fromkeys([*filter(None, [*given[0], *given[1]]), "127.0.0.1", "localhost"])
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
        self.url = self._identity = self._api_url = self._lost = None
        self._said = []
        context.report("starting ngrok")
        try:
            self._path = self._program(context)
            version = agent_version(self._path)
            config = self._pyngrok_config(version)
            self.url = self._connect(config, version, context).rstrip("/")
        except AvocadoError:
            self.stop(4)
            raise
        context.report("open")

    def _program(self, context: StartContext) -> str:
        from pyngrok import conf

        if self._settings.ngrok_path:
            return str(Path(self._settings.ngrok_path).expanduser().absolute())
        found = find_agent()
        if found:
            return found
        path: str = conf.PyngrokConfig().ngrok_path
        if not Path(path).exists():
            path = str(cache_dir() / "ngrok" / "ngrok")
        if not Path(path).exists():
            context.report("installing ngrok")
            self._install(path, context)
        return path

    def _install(self, path: str, context: StartContext) -> None:
        from pyngrok import installer

        installed = in_thread(lambda: installer.install_ngrok(path), "ngrok-install")
        context.wait_until(installed.done, "installing ngrok", self.name, self.log)
        error = installed.exception()
        if error:
            raise part_error(
                self.name,
                f"ngrok cannot be installed ({type(error).__name__})",
                "check the network, or install it yourself and set AVOCADO_NGROK_PATH",
            )

    def _pyngrok_config(self, version: tuple[int, ...]) -> Any:
        from pyngrok import conf

        if self._settings.ngrok_config:
            path = str(Path(self._settings.ngrok_config).expanduser().absolute())
            if self._settings.ngrok_token and version[:1] >= (3,):
                os.environ["NGROK_AUTHTOKEN"] = self._settings.ngrok_token.reveal()
            elif self._settings.ngrok_token:
                path = self._with_token(Path(path))
        else:
            self._write_config(version)
            path = str(self._config_file)
        config = conf.PyngrokConfig(
            ngrok_path=self._path,
            config_path=path,
            config_version="3" if version >= _ENDPOINTS_SINCE else "2",
            ngrok_version="3" if version[:1] >= (3,) else "2",  # decides whether bind_tls is rewritten
            start_new_session=True,  # else a cell's interrupt, which goes to the group, ends the agent
            monitor_thread=True,  # else nobody drains the agent's output and it stalls
            log_event_callback=self._on_log,
            startup_timeout=10_000,  # ours is the deadline; pyngrok looks at its own between log lines only
            request_timeout=30,
        )
        # The constructor reads NGROK_AUTHTOKEN and would put the token into argv, where `ps` shows it.
        config.auth_token = None
        config.api_key = None
        return config

    def _with_token(self, theirs: Path) -> str:
        """A copy of the user's config with the token in it: agents before 3 read it nowhere else. Raises StartError."""
        import yaml  # type: ignore[import-untyped]  # it comes with pyngrok

        assert self._settings.ngrok_token is not None
        try:
            config = yaml.safe_load(theirs.read_text("utf-8")) or {}
            config["authtoken"] = self._settings.ngrok_token.reveal()
        except (OSError, yaml.YAMLError, TypeError):
            said = f"AVOCADO_NGROK_CONFIG names {theirs}, which is no configuration of ngrok's"
            raise part_error(self.name, said, "mend it, or unset it") from None
        self._config_file = write_private(self._config_file, yaml.safe_dump(config))
        return str(self._config_file)

    def _write_config(self, version: tuple[int, ...]) -> None:
        token = json.dumps(self._settings.ngrok_token.reveal() if self._settings.ngrok_token else "")
        if version >= _ENDPOINTS_SINCE:
            text = f'version: "3"\nagent:\n  authtoken: {token}\n  update_check: false\n'
        else:
            head = 'version: "2"\n' if version[:1] >= (3,) else ""  # the 2.x agent knows no version line
            text = f"{head}authtoken: {token}\nupdate_check: false\n"
        self._config_file = write_private(self._config_file, text)

    def _connect(self, config: Any, version: tuple[int, ...], context: StartContext) -> str:
        from pyngrok import ngrok

        options: dict[str, Any] = {}
        if self._settings.domain:
            if version >= _ENDPOINTS_SINCE:
                options["url"] = f"https://{self._settings.domain}"
            else:
                options["domain" if version[:1] >= (3,) else "hostname"] = self._settings.domain
        if version < _ENDPOINTS_SINCE:
            options["bind_tls"] = True  # https alone, not an http tunnel beside it
        address = f"http://127.0.0.1:{self._port}"
        # In a thread of its own: connect blocks for ever on a silent agent.
        opened = in_thread(lambda: ngrok.connect(address, "http", _NAME, config, **options), "ngrok-connect")
        context.wait_until(
            lambda: self._settled(opened), "opening the ngrok tunnel", self.name, self.log, ANSWER_SECONDS
        )
        self._remember_agent()
        # The agent says why it cannot log in, and pyngrok goes on waiting for it.
        error = opened.exception() if opened.done() else RuntimeError(self._refusal())
        if error is not None:
            raise self._error(error)
        return str(opened.result().public_url)

    def _settled(self, opened: Future[Any]) -> bool:
        self._remember_agent()
        return opened.done() or self._refusal() is not None

    def _refusal(self) -> str | None:
        tries = [line for line in self._said if "failed to reconnect" in line or "failed to dial" in line]
        return tries[-1] if len(tries) >= 4 else None

    def _remember_agent(self) -> None:
        from pyngrok import process

        # Read without pyngrok's lock, which a stuck connect holds; there is no other way to the pid.
        current = getattr(process, "_current_processes", {}).get(self._path)
        if current is not None:
            self._agent = current
        if current is not None and current.proc.poll() is None:
            if self._identity is None or self._identity.pid != current.proc.pid:
                self._identity = Identity.of(current.proc.pid)
            self._api_url = current.api_url or self._api_url

    def _error(self, error: BaseException) -> AvocadoError:
        said = " ".join(str(getattr(error, attribute, "") or "") for attribute in ("ngrok_error", "body")) + f" {error}"
        code = self._code()
        text = said if _CODE.search(said) or code is None else f"{said} {code}"
        message, hint = explain(redact(text.strip(), self._settings.secrets()))
        named = _CODE.search(text)
        return part_error(self.name, message, hint, self.log, lasting=named is not None and named[1] in _LASTING)

    def _on_log(self, entry: Any) -> None:
        append_line(self.log, redact(str(entry.line), self._settings.secrets()))
        if entry.lvl in ("ERROR", "CRITICAL"):
            self._said = [*self._said[-50:], f"{entry.msg} {entry.err}"]
        message = str(entry.msg or "")
        if "failed to reconnect session" in message or "session closed" in message or "heartbeat timeout" in message:
            self._lost = "the agent lost its session with ngrok"
        elif "client session established" in message or "tunnel session started" in message:
            self._lost = None

    # running

    def check(self) -> str | None:
        # healthy() of pyngrok stays true when the session is lost, and blocks on a stopped agent.
        ended = self.ended()
        if ended is not None:
            return ended
        try:
            with local_session() as session:
                status = session.get(f"{self._api_url}/api/status", timeout=CHECK_SECONDS)
        except requests.RequestException:
            return "the ngrok agent does not answer"
        try:
            online = status.json().get("status") if status.status_code == 200 else "online"
        except (ValueError, AttributeError):
            online = "online"
        return None if online == "online" else f"the ngrok agent is {online}"

    def ended(self) -> str | None:
        if self._identity is not None and self._identity.alive():
            return None
        code = self._code()
        return "the ngrok agent ended" if code is None else f"the ngrok agent ended: {explain(code)[0]}"

    def _code(self) -> str | None:
        """The last error of ngrok's that the agent named."""
        return next((found[0] for line in reversed(self._said) if (found := _CODE.search(line))), None)

    def lost(self) -> str | None:
        return self._lost

    def stop(self, budget: float) -> None:
        self._remember_agent()
        if self._identity:
            # Not ngrok.kill(): it waits for the lock that a stuck connect holds.
            end_group(self._identity, budget)
        self._forget()
        self._config_file.unlink(missing_ok=True)

    def _forget(self) -> None:
        """Have pyngrok drop and reap the ended agent, so that a next start makes a new one, and close what it read from."""
        from pyngrok import process

        agent, self._agent = self._agent, None
        if agent is None or not wait_until(lambda: agent.proc.poll() is not None, 2):
            return
        if getattr(process, "_current_processes", {}).get(self._path) is agent:
            process._current_processes.pop(self._path)
        reader = getattr(agent, "_monitor_thread", None)
        if reader is not None:
            reader.join(2)
        if reader is None or not reader.is_alive():
            agent.proc.stdout.close()

    def identity(self) -> Identity | None:
        return self._identity if self._identity and self._identity.alive() else None

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "ngrok", "url": self.url, "api_url": self._api_url}

    def held(self) -> Mapping[str, int]:
        agent = self._agent
        if agent is not None and agent.proc.stdout is not None:
            with suppress(ValueError):  # it is being closed: the agent has ended
                return {"output": agent.proc.stdout.fileno()}
        return {"output": self._output} if self._output is not None else {}


def find_agent() -> str | None:
    """An ngrok agent on PATH. Not pyngrok's console script of the same name: a wrapper that starts another process."""
    for folder in os.get_exec_path():
        found = shutil.which("ngrok", path=folder)
        if found and not _is_wrapper(Path(found)):
            return found
    return None


def _is_wrapper(program: Path) -> bool:
    try:
        with program.open("rb") as file:
            head = file.read(1000)
    except OSError:
        return False
    return head.startswith(b"#!") and b"pyngrok" in head


def agent_version(path: str) -> tuple[int, ...]:
    """The version of the agent at `path`. Raises AvocadoError if it does not say one within 10 s."""
    try:
        out = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = "it does not answer" if isinstance(error, subprocess.TimeoutExpired) else error.strerror
        raise part_error(
            "tunnel", f"{path} is not a usable ngrok agent: {reason}", "set AVOCADO_NGROK_PATH to one"
        ) from None
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", out.stdout + out.stderr)
    if not match:
        raise part_error("tunnel", f"{path} is not an ngrok agent: it says no version", "set AVOCADO_NGROK_PATH to one")
    return tuple(int(part or 0) for part in match.groups())


def _quiet() -> None:
    # pyngrok's warnings and errors go to stderr by default, and ERR_NGROK_105 echoes the token.
    log = logging.getLogger("pyngrok")
    if not any(isinstance(handler, logging.NullHandler) for handler in log.handlers):
        log.addHandler(logging.NullHandler())
        log.propagate = False
