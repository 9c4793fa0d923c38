"""A PostgreSQL of the tests' own: Debian's programs, a folder of its own, a port of loopback, ended with the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil
from conftest import free_port, until

PASSWORD = "pg-Secret_0123456789"


def programs() -> Path | None:
    """The folder of initdb and postgres; None where they are not installed."""
    found = shutil.which("initdb")
    places = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        *([Path(found).parent] if found else []),
    ]
    return next((place for place in places if (place / "postgres").exists()), None)


class Postgres:
    """A server with the database ``postgres``; it runs as its own user where we are root, for it refuses to run as that."""

    def __init__(self) -> None:
        where = programs()
        assert where is not None
        self._programs = where
        self._folder = Path(tempfile.mkdtemp(prefix="avocado-pg-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
        password = self._folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        data = str(self._folder / "data")
        argv = [
            str(where / "initdb"),
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            f"--pwfile={password}",
            "-N",
        ]
        subprocess.run(argv, check=True, capture_output=True, **self._as_user())  # type: ignore[call-overload]

    def _as_user(self) -> dict[str, object]:
        return {"user": self._user, "cwd": str(self._folder)} if os.getuid() == 0 else {}

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, again where it was stopped."""
        options = [
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            f"unix_socket_directories={self._folder}",
            "-c",
            "fsync=off",
        ]
        argv = [str(self._programs / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port), *options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, **self._as_user())  # type: ignore[call-overload]
        until(self._answers, 30, "PostgreSQL")

    def _answers(self) -> bool:
        import psycopg  # not in every environment that collects the tests

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(2)  # at once, its sessions broken off
            self._process.wait(20)
            self._process = None

    def pause(self) -> None:
        """Have it take connections and answer nothing."""
        for process in self._all():
            process.suspend()

    def go_on(self) -> None:
        for process in self._all():
            process.resume()

    def _all(self) -> list[psutil.Process]:
        assert self._process is not None
        head = psutil.Process(self._process.pid)
        return [head, *head.children(recursive=True)]

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
