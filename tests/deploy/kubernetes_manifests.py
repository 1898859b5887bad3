"""The documents that kustomize makes of deploy/kubernetes, and short ways to what is in them."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings, load_settings

Document = dict[str, Any]

_SUFFIXES = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


class Manifests:
    """What one overlay applies to a cluster. Exactly one Deployment and one container in it."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = list(documents)

    def of(self, kind: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] == kind]

    def one(self, kind: str) -> Document:
        (document,) = self.of(kind)
        return document

    @property
    def deployment(self) -> Document:
        spec: Document = self.one("Deployment")["spec"]
        return spec

    @property
    def pod(self) -> Document:
        spec: Document = self.deployment["template"]["spec"]
        return spec

    @property
    def pod_labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.deployment["template"]["metadata"]["labels"]
        return labels

    @property
    def container(self) -> Document:
        container: Document
        (container,) = self.pod["containers"]
        return container

    def environment(self) -> dict[str, str]:
        """What the process finds, whatever it comes from. KeyError for a ConfigMap that is not."""
        maps = {each["metadata"]["name"]: each["data"] for each in self.of("ConfigMap")}
        found: dict[str, str] = {}
        for source in self.container.get("envFrom", ()):
            found |= maps[source["configMapRef"]["name"]]
        for variable in self.container.get("env", ()):
            if "value" in variable:
                found[variable["name"]] = variable["value"]
            else:
                where, what = variable["valueFrom"]["resourceFieldRef"]["resource"].split(".")
                cores = float(self.container["resources"][where][what])
                found[variable["name"]] = str(math.ceil(cores))
        return found

    def settings(self) -> Settings:
        """What the service makes of it. Raises SettingsError as the service would."""
        ours = {
            name.removeprefix("SEGVLM_").lower(): value
            for name, value in self.environment().items()
            if name.startswith("SEGVLM_")
        }
        return load_settings(**ours)


def render(directory: Path) -> Manifests:
    """What `kubectl apply -k` would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl renders the overlays: install it, or Debian's kubernetes-client")
    finished = subprocess.run(
        [kubectl, "kustomize", str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "deprecated" not in finished.stderr, finished.stderr
    return Manifests(list(yaml.safe_load_all(finished.stdout)))


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether `matchLabels`, or a Service's plain selector, selects something with `labels`."""
    wanted = selector.get("matchLabels", selector)
    return bool(wanted) and wanted.items() <= labels.items()


def number_of_bytes(quantity: str) -> int:
    """A quantity of memory such as 512Mi."""
    digits = quantity.rstrip("KMGi")
    return int(digits) * _SUFFIXES[quantity.removeprefix(digits)]


def promised_seconds(probe: Mapping[str, Any]) -> float:
    """How long a probe may fail before the kubelet acts."""
    seconds: float = probe.get("initialDelaySeconds", 0) + (
        probe["periodSeconds"] * probe["failureThreshold"]
    )
    return seconds


def names_in(value: Any) -> Iterator[str]:
    """Every key of a document, at any depth."""
    if isinstance(value, dict):
        yield from value
        for each in value.values():
            yield from names_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from names_in(each)
