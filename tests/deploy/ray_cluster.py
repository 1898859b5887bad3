"""A Ray cluster of this process's own, and the service on it by `serve.yaml`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tests.waiting import PATIENCE, wait_until

_FAREWELL = 30
_STARTS = 3
_TOKEN = uuid.uuid4().hex  # Ray reads it once in a process


class Cluster:
    """What a test does with it: deploy, ask for its state, find its processes."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = directory
        self._config = config

    def deploy(
        self, environment: dict[str, str], import_path: str | None = None, **options: Any
    ) -> None:
        """`serve run` the file of the repository with these changes; wait until it is done.

        `options` are those of the deployment, such as num_replicas.
        """
        from ray.serve.scripts import cli

        (application,) = self._config["applications"]
        (deployment,) = application["deployments"]
        cores = {"ray_actor_options": {"num_cpus": 1}}
        changed = {
            **self._config,
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [
                {
                    **application,
                    "import_path": import_path or application["import_path"],
                    "runtime_env": {"env_vars": environment},
                    "deployments": [{"name": deployment["name"], **cores, **options}],
                }
            ],
        }
        file = self._directory / "serve.yaml"
        file.write_text(yaml.safe_dump(changed))
        done = CliRunner().invoke(cli, ["run", "--non-blocking", str(file)])
        assert done.exit_code == 0 and done.exception is None, done.output
        wait_until(self._settled, "the deployment")

    def status(self) -> Any:
        """Ray's view of the deployment; None before there is one."""
        from ray import serve

        application = serve.status().applications.get("segvlm")
        assert application is None or application.status != "DEPLOY_FAILED", application
        return application and application.deployments.get("segvlm")

    def runs(self, replicas: int) -> bool:
        """Exactly so many replicas, all of them taking requests."""
        status = self.status()
        return status.status == "HEALTHY" and status.replica_states == {"RUNNING": replicas}

    def _settled(self) -> bool:
        from ray import serve

        return self.status() is not None and (
            serve.status().applications["segvlm"].status == "RUNNING"
        )

    def replicas(self) -> set[int]:
        """The process ids of the replicas that are alive."""
        return set(_processes(self._directory, "ray::ServeReplica"))


@contextmanager
def local_cluster(root: Path) -> Iterator[Cluster]:
    """Needs the Python package ray, or skips. Nothing of it is left when the block ends."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'segvlm[ray]'")
    from ray import serve

    directory = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets need a short path
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE", raising=False)  # Ray sets it
        for name, value in {
            "PYTHONPATH": str(root),
            "RAY_AUTH_TOKEN": _TOKEN,  # or Ray would leave one in the home directory
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "40",  # 30 are too few on a busy machine
            "RAY_worker_register_timeout_seconds": f"{PATIENCE}",
            "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
        }.items():
            patch.setenv(name, value)
        try:
            _start(ray, directory)
            config = yaml.safe_load((root / "deploy/ray/serve.yaml").read_text())
            yield Cluster(directory, config)
        finally:
            if ray.is_initialized():  # or Serve would start another Ray to shut down
                with suppress(Exception):
                    serve.shutdown()
            ray.shutdown()
            _end(directory)


def _start(ray: Any, directory: Path) -> None:
    """On a very busy machine Ray can give up one of its own processes, so there are some tries."""
    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                num_cpus=3,
                include_dashboard=False,
                object_store_memory=80 * 1024 * 1024,
                log_to_driver=False,
                _temp_dir=str(directory),
            )
            return
        except Exception:
            if not left:
                raise
            ray.shutdown()
            _kill(_processes(directory))


def _processes(directory: Path, title: str = "") -> Iterator[int]:
    """Those of the cluster, which log into its directory, if their command line begins so."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):  # ended meanwhile
                if (entry / "cmdline").read_text().startswith(title):
                    opened = [file.readlink() for file in (entry / "fd").iterdir()]
                    if any(file.is_relative_to(directory) for file in opened):
                        yield int(entry.name)


def _end(directory: Path) -> None:
    """Give Ray a moment to end what it started; end the rest, and complain about it."""
    end = time.monotonic() + _FAREWELL
    while (left := list(_processes(directory))) and time.monotonic() < end:
        time.sleep(0.1)
    _kill(left)
    shutil.rmtree(directory, ignore_errors=True)
    assert not left, f"Ray left processes behind: {left}"


def _kill(processes: Iterable[int]) -> None:
    for process in processes:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)
