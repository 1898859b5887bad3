"""Images built and run for real: by a Docker engine, or by buildah where there is none.

Both run an image as its own configuration says, with a read-only root file system, without
capabilities and without new privileges.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE, wait_until

ROOT = Path(__file__).resolve().parents[2]
BASE = "python:3.11-slim-bookworm"
_BUILD_IMAGE = ROOT.parent / "shared" / "tools" / "build-image"

# In a mount and a process namespace of its own: what `docker run --read-only` does, without a /tmp.
_ENTER = """
set -e
root=$1; shift
mount --bind "$root" "$root"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
"""


def output(command: Sequence[str], **options: Any) -> str:
    """What a command that must succeed prints."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return str(done.stdout).strip()


class Container(ABC):
    """A running container of the service; `url` is where it answers."""

    url: str

    @abstractmethod
    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as its user and with its environment."""

    @abstractmethod
    def terminate(self) -> int:
        """SIGTERM to process 1, and the exit status that it ends with."""


class Engine(ABC):
    @abstractmethod
    def build(self, dockerfile: str, tag: str) -> None: ...

    @abstractmethod
    def config(self, tag: str) -> dict[str, Any]:
        """The image's configuration, by Docker's names."""

    @abstractmethod
    def files(self, tag: str) -> dict[str, int]:
        """Every path in the image with its size; directories and links count as 0."""

    @abstractmethod
    def run(self, tag: str) -> AbstractContextManager[Container]:
        """A container of the image until the block ends."""


class DockerEngine(Engine):
    """The `docker` command, whose engine answers."""

    def build(self, dockerfile: str, tag: str) -> None:
        output(["docker", "build", "-f", dockerfile, "-t", tag, "."], cwd=ROOT)

    def config(self, tag: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(output(["docker", "image", "inspect", tag]))[0]
        return dict(config["Config"])

    def files(self, tag: str) -> dict[str, int]:
        made = output(["docker", "create", tag, "true"])
        try:
            with subprocess.Popen(["docker", "export", made], stdout=subprocess.PIPE) as export:
                assert export.stdout is not None
                with tarfile.open(fileobj=export.stdout, mode="r|") as archive:
                    return {f"/{member.name}": member.size for member in archive}
        finally:
            output(["docker", "rm", made])

    @contextmanager
    def run(self, tag: str) -> Iterator[Container]:
        options = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true"]
        name = output(["docker", "run", "-d", *options, "-p", "127.0.0.1::8000", tag])
        try:
            yield _DockerContainer(name)
        finally:
            output(["docker", "rm", "-f", name])


class _DockerContainer(Container):
    def __init__(self, name: str) -> None:
        self._name = name
        self.url = f"http://{output(['docker', 'port', name, '8000/tcp']).splitlines()[0]}"

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        command = ("docker", "exec", self._name, *command)
        return subprocess.run(command, capture_output=True, text=True)

    def terminate(self) -> int:
        output(["docker", "kill", "--signal", "TERM", self._name])
        return int(output(["docker", "wait", self._name], timeout=PATIENCE))


class Buildah(Engine):
    """`build-image` beside the checkout, which stands in for the base image. As root only."""

    def __init__(self) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        cache = Path(os.environ.get("SEGVLM_IMAGE_CACHE") or Path(home) / "segvlm-images")
        # Docker's format, because OCI's has no HEALTHCHECK.
        self._environment = {
            **os.environ,
            "CONTAINERS_REGISTRIES_CONF": str(cache / "registries.conf"),
            "BUILDAH_ISOLATION": "chroot",
            "BUILDAH_FORMAT": "docker",
        }
        self._buildah = ["buildah", "--storage-driver", "vfs", "--root", str(cache / "root")]
        self._buildah += ["--runroot", str(cache / "run")]

    def _ask(self, *arguments: str) -> str:
        return output([*self._buildah, *arguments], env=self._environment)

    def build(self, dockerfile: str, tag: str) -> None:
        before = self._images(tag)
        output([str(_BUILD_IMAGE), dockerfile, tag, "."], cwd=ROOT, env=self._environment)
        for replaced in before - self._images(tag):
            self._ask("rmi", replaced)

    def _images(self, tag: str) -> set[str]:
        """Of this tag: one, or none yet."""
        command = [*self._buildah, "images", "-q", tag]
        asked = subprocess.run(command, capture_output=True, text=True, env=self._environment)
        return set(asked.stdout.split())

    def config(self, tag: str) -> dict[str, Any]:
        image = json.loads(self._ask("inspect", "--type", "image", tag))
        return dict(image["Docker"]["config"])

    @contextmanager
    def _mounted(self, tag: str) -> Iterator[Path]:
        name = self._ask("from", "--pull-never", tag)
        try:
            yield Path(self._ask("mount", name))
        finally:
            self._ask("rm", name)

    def files(self, tag: str) -> dict[str, int]:
        with self._mounted(tag) as root:
            return {
                f"/{path.relative_to(root)}": path.stat().st_size
                if path.is_file() and not path.is_symlink()
                else 0
                for path in root.rglob("*")
            }

    @contextmanager
    def run(self, tag: str) -> Iterator[Container]:
        with self._mounted(tag) as root:
            container = _ChrootContainer(root, self.config(tag))
            try:
                yield container
            finally:
                container.kill()


class _ChrootContainer(Container):
    """An image's root file system and configuration, entered with util-linux alone.

    On the network of this machine, so it is given a port.
    """

    def __init__(self, root: Path, config: dict[str, Any]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        user, group = config["User"].split(":")
        self._as_user = ["setpriv", "--reuid", user, "--regid", group, "--clear-groups"]
        self._as_user += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        self._as_user += ["env", "-i", "-C", config["WorkingDir"]]
        self._as_user += [*config["Env"], f"SEGVLM_PORT={port}"]
        command = ["unshare", "--mount", "--pid", "--fork"]
        command += ["sh", "-c", _ENTER, "enter", str(root), *self._as_user]
        self._process = subprocess.Popen([*command, *config["Entrypoint"], *config["Cmd"]])
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        wait_until(lambda: children.read_text(encoding="ascii"), "the container's first process")
        self._first = int(children.read_text(encoding="ascii"))

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "--target", str(self._first), "--mount", "--pid", "--root"]
        return subprocess.run([*enter, *self._as_user, *command], capture_output=True, text=True)

    def terminate(self) -> int:
        os.kill(self._first, signal.SIGTERM)
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        if self._process.poll() is None:
            os.kill(self._first, signal.SIGKILL)  # and with it all that runs in the container
            self._process.wait()


def engine() -> Engine | str:
    """Whatever builds images here, or why nothing does."""
    if shutil.which("docker"):
        asked = subprocess.run(["docker", "version"], capture_output=True)
        if asked.returncode == 0:
            return DockerEngine()
    if not _BUILD_IMAGE.is_file():
        return f"no Docker engine answers, and {_BUILD_IMAGE} is not there to stand in for one"
    if os.geteuid() != 0:
        return "no Docker engine answers, and build-image needs root"
    return Buildah()
