"""A RabbitMQ of the tests' own: real, on loopback ports of its own, in a folder of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

from conftest import free_port

# Debian's own scripts in /usr/sbin change to another user; these do not.
_FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/local/sbin", "/opt/rabbitmq/sbin")
VHOST = "av%2Fo"
PASSWORD = "br0ker-PASSWORD-that-must-not-be-seen"


def find(program: str = "rabbitmq-server") -> str | None:
    for folder in _FOLDERS:
        path = Path(folder) / program
        if path.exists():
            return str(path)
    return shutil.which(program)


class Broker:
    """Started with `start`; `url` is for a user who may do everything, `guest_url` for one who may not declare."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.tls_port = free_port(), free_port()
        self.node = f"avocado{secrets.token_hex(3)}@localhost"
        self._epmd = free_port()
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2",
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://avocado:{PASSWORD}@127.0.0.1:{self.port}/{VHOST}"

    @property
    def reader_url(self) -> str:
        """A user who may write to the exchange and declare nothing."""
        return f"amqp://writer:{PASSWORD}@127.0.0.1:{self.port}/{VHOST}"

    def start(self) -> None:
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "rabbitmq.conf").write_text("log.file.level = info\n" + self._tls())
        with (self.folder / "out").open("wb") as out:
            self._server = subprocess.Popen(
                [str(find())], env=self._environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + 90
        while self.control("await_startup", check=False) != 0:
            if time.monotonic() > deadline or self._server.poll() is not None:
                raise RuntimeError("RabbitMQ did not start:\n" + (self.folder / "out").read_text())
            time.sleep(0.2)
        vhost = VHOST.replace("%2F", "/")
        self.control("add_vhost", vhost)
        for user, configure in (("avocado", ".*"), ("writer", "^$")):
            self.control("add_user", user, PASSWORD)
            self.control("set_permissions", "-p", vhost, user, configure, ".*", ".*")

    @property
    def certificate(self) -> Path:
        return self.folder / "cert.pem"

    def _tls(self) -> str:
        """Settings for a TLS listener, with a certificate that only `certificate` vouches for."""
        key = self.folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(self.certificate),
             "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"],
            check=True, capture_output=True,
        )  # fmt: skip
        return (
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\nssl_options.certfile = {self.certificate}\n"
            f"ssl_options.keyfile = {key}\nssl_options.cacertfile = {self.certificate}\nssl_options.verify = verify_none\n"
        )

    def blocked(self) -> bool:
        """Whether a connection is held up, for want of memory for one."""
        program = find("rabbitmqctl")
        assert program is not None
        listing = [program, "-n", self.node, "-q", "list_connections", "state"]
        done = subprocess.run(listing, env=self._environment, capture_output=True, timeout=90, check=False)
        return b"block" in done.stdout

    def stall(self, queue: str, how: str = "suspend") -> None:
        """Have the process that leads `queue` do nothing, or ``resume``."""
        vhost = VHOST.replace("%2F", "/")
        found = f'rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>))'
        self.control("eval", f"{{ok, Q}} = {found}, sys:{how}(amqqueue:get_pid(Q)).")

    def control(self, *arguments: str, check: bool = True) -> int:
        """rabbitmqctl; its exit status."""
        program = find("rabbitmqctl")
        assert program is not None
        done = subprocess.run(
            [program, "-n", self.node, "-q", *arguments],
            env=self._environment,
            capture_output=True,
            timeout=90,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"rabbitmqctl {arguments[0]}: {done.stderr.decode()}{done.stdout.decode()}")
        return done.returncode

    def stop(self) -> None:
        if self._server is None:
            return
        group = self._server.pid
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(group, number)
                self._server.wait(15)
                break
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        # The port mapper that Erlang started for this node alone.
        subprocess.run(
            ["epmd", "-port", str(self._epmd), "-kill"],
            env=self._environment,
            capture_output=True,
            timeout=20,
            check=False,
        )
