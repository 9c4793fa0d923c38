"""A Ray cluster of the tests' own on this machine: one node, on loopback, with a token, ended with all its processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import requests

BIN = Path(sys.executable).parent


def _ports(count: int) -> list[int]:
    """Ports of loopback that are free now, all of them different."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        with closing(each):
            pass
    return found


class RayCluster:
    """`folder` is the home of its processes, in which their token is; `environment` is added to theirs."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None, cpus: int = 8) -> None:
        self.folder = folder
        gcs, self._dashboard, client, agent, self.port = _ports(5)
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AVOCADO_", "RAY_"))}
        self.environment = {
            **kept,
            "HOME": str(folder),
            "AVOCADO_HOME": str(folder / "home"),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{self._dashboard}",
            "RAY_ADDRESS": f"127.0.0.1:{gcs}",
            "PYTHONWARNINGS": "ignore",
            **(environment or {}),
        }
        (folder / "home").mkdir(exist_ok=True)
        self._run("ray", "get-auth-token", "--generate")
        argv = [
            str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", str(cpus), "--node-ip-address", "127.0.0.1",
            "--port", str(gcs), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(self._dashboard),
            "--ray-client-server-port", str(client), "--dashboard-agent-listen-port", str(agent),
            "--min-worker-port", "0", "--max-worker-port", "0", "--temp-dir", _short(folder),
        ]  # fmt: skip
        with (folder / "ray.log").open("wb") as log:
            environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
            self._process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.wait(lambda: self._run("serve", "status", well=None).returncode == 0, 60, "the cluster")

    def _run(self, program: str, *arguments: str, well: int | None = 0) -> subprocess.CompletedProcess[str]:
        argv = [str(BIN / program), *arguments]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=120, check=False)
        assert well is None or done.returncode == well, done.stderr
        return done

    @staticmethod
    def wait(condition: Any, seconds: float, what: str) -> Any:
        until = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < until, f"{what} did not come within {seconds} s"
            time.sleep(0.1)
        return value

    def configured(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """What `serve deploy` takes, for the application with these `args`."""
        application = {
            "name": "avocado",
            "route_prefix": "/",
            "import_path": "avocado_magic.infer.ray:app",
            "args": args,
        }
        http = {"host": "127.0.0.1", "port": self.port}
        return {"proxy_location": "HeadOnly", "http_options": http, "applications": [application]}

    def deploy(self, config: Mapping[str, Any] | str, seconds: float = 90) -> None:
        """Have it run so; AssertionError with Serve's own words where it does not."""
        file = self.folder / "serve.yaml"
        file.write_text(config if isinstance(config, str) else json.dumps(config))
        self._run("serve", "deploy", str(file))
        before = time.monotonic()

        def runs() -> bool:
            state = self.application()
            if state.get("status") == "DEPLOY_FAILED" and time.monotonic() > before + 1:
                raise AssertionError(state.get("message"))
            return state.get("status") == "RUNNING"

        self.wait(runs, seconds, "the application")

    def application(self) -> dict[str, Any]:
        """What Serve says of the application."""
        token = (self.folder / ".ray" / "auth_token").read_text().strip()
        answer = requests.get(
            f"http://127.0.0.1:{self._dashboard}/api/serve/applications/",
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
        )
        found: dict[str, Any] = answer.json()["applications"].get("avocado", {})
        return found

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of the replicas of a deployment that run."""
        listed = self.application()["deployments"][deployment]["replicas"]
        return [
            psutil.Process(each["pid"])
            for each in listed
            if each["state"] == "RUNNING" and psutil.pid_exists(each["pid"])
        ]

    def processes(self) -> Iterator[psutil.Process]:
        """Everything that belongs to it."""
        with suppress(psutil.NoSuchProcess):
            head = psutil.Process(self._process.pid)
            yield from head.children(recursive=True)
            yield head

    def close(self) -> None:
        left = list(self.processes())
        self._process.terminate()
        _, left = psutil.wait_procs(left, 5)
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(left, 10)
        self._process.wait(10)


def _short(folder: Path) -> str:
    """A folder for Ray's sockets, whose paths may have 107 bytes."""
    import tempfile

    return tempfile.mkdtemp(prefix="avr-")
