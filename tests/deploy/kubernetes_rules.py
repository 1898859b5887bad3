"""What must hold between manifests, service and image. A rule yields what offends it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from service.routes import health
from service.settings import SettingsError
from tests.deploy.kubernetes_manifests import (
    Manifests,
    number_of_bytes,
    promised_seconds,
    selects,
)

Rule = Callable[[Manifests], Iterator[str]]

PATHS = {getattr(route, "path", "") for route in health.router.routes}
PROBES = {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
CLUSTER_WIDE = {"Namespace"}
# Kubernetes' Pod Security Standards, profile "restricted".
RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
# Seconds: for a process to end after its last answer; to read and check a bundle.
TO_END, TO_LOAD = 10, 30
# A process whose loop is late by this long is full, not dead.
PATIENCE = 60
# Bytes: the process without what settings bound (312 MiB when ready on two cores; with torch
# and CUDA an estimate), and what decoding a pixel takes: 16.1 for a WebP with transparency.
AT_REST = {"cpu": 448 * 2**20, "gpu": 4 * 2**30}
FOR_A_PIXEL = 17


def probes_reach_the_service(manifests: Manifests) -> Iterator[str]:
    """Probes, Service, ServiceMonitor and NetworkPolicy name a port that is listened on."""
    listened = manifests.settings().port
    ports = {port["name"]: port["containerPort"] for port in manifests.container["ports"]}
    for probe, path in PROBES.items():
        asked = manifests.container.get(probe, {}).get("httpGet", {})
        if asked.get("path") != path or path not in PATHS:
            yield f"{probe} asks {asked.get('path')}, not {path}"
        if ports.get(asked.get("port")) != listened:
            yield f"{probe} asks port {asked.get('port')}"
    (service,) = manifests.of("Service")
    for port in service["spec"]["ports"]:
        if ports.get(port["targetPort"]) != listened:
            yield f"the Service leads to port {port['targetPort']}"
    for rule in manifests.one("NetworkPolicy")["spec"]["ingress"]:
        for port in rule["ports"]:
            if ports.get(port["port"]) != listened:
                yield f"the NetworkPolicy lets through to port {port['port']}"
    names = {port["name"] for port in service["spec"]["ports"]}
    for monitor in manifests.of("ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint["port"] not in names or endpoint["path"] not in PATHS:
                yield f"the ServiceMonitor asks {endpoint['path']} at port {endpoint['port']}"


def a_busy_process_is_left_alone(manifests: Manifests) -> Iterator[str]:
    """The kubelet kills only what has not answered at all for a long time."""
    probe = manifests.container["livenessProbe"]
    if promised_seconds(probe) < PATIENCE or probe["timeoutSeconds"] < 5:
        yield f"livenessProbe kills after {promised_seconds(probe)} s"


def a_start_may_take_its_time(manifests: Manifests) -> Iterator[str]:
    """A hung warm-up is the service's own to report, and a slow one no failed roll-out."""
    starting = promised_seconds(manifests.container["startupProbe"])
    needed = manifests.settings().warm_up_timeout + TO_LOAD
    if starting < needed:
        yield f"startupProbe waits {starting} s; loading and warming up may take {needed} s"
    if manifests.deployment["progressDeadlineSeconds"] <= starting:
        yield "a roll-out is called failed while its first pod may still start"


def a_stop_answers_everybody(manifests: Manifests) -> Iterator[str]:
    """The kubelet kills after everything that was accepted could be answered."""
    settings = manifests.settings()
    pause = manifests.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
    needed = pause.get("seconds", 0) + settings.shutdown_timeout + TO_END
    if not pause:
        yield "nothing gives balancers time before SIGTERM"
    if manifests.pod["terminationGracePeriodSeconds"] < needed:
        yield f"terminationGracePeriodSeconds is less than {needed}"
    if settings.shutdown_timeout <= settings.timeout:
        yield "an accepted request may take longer than the stop"


def a_roll_out_keeps_the_capacity(manifests: Manifests) -> Iterator[str]:
    """A new pod is ready before an old one goes, and nodes are drained one pod at a time."""
    rolling = manifests.deployment["strategy"]["rollingUpdate"]
    if rolling["maxUnavailable"] != 0 or not rolling["maxSurge"]:
        yield f"a roll-out takes {rolling['maxUnavailable']} pods away first"
    if manifests.one("PodDisruptionBudget")["spec"].get("maxUnavailable") != 1:
        yield "a drained node may take several pods"


def everything_selects_the_pods(manifests: Manifests) -> Iterator[str]:
    """What has a selector selects our pods, and Prometheus finds them under their job's name."""
    spread = manifests.pod["topologySpreadConstraints"]
    selectors: list[tuple[str, Any]] = [
        ("Deployment", manifests.deployment["selector"]),
        ("Service", manifests.one("Service")["spec"]["selector"]),
        ("PodDisruptionBudget", manifests.one("PodDisruptionBudget")["spec"]["selector"]),
        ("NetworkPolicy", manifests.one("NetworkPolicy")["spec"]["podSelector"]),
        *(("topologySpreadConstraints", each["labelSelector"]) for each in spread),
    ]
    for name, selector in selectors:
        if not selects(selector, manifests.pod_labels):
            yield f"{name} does not select the pods"
    service = manifests.one("Service")["metadata"]["labels"]
    for monitor in manifests.of("ServiceMonitor"):
        if not selects(monitor["spec"]["selector"], service):
            yield "ServiceMonitor does not select the Service"
        if service.get(monitor["spec"]["jobLabel"]) != "segvlm":
            yield "the job is not called segvlm, as rules and dashboards have it"


def settings_are_ours(manifests: Manifests) -> Iterator[str]:
    """The service starts with these variables, and Kubernetes adds none."""
    try:
        settings = manifests.settings()
    except SettingsError as error:
        yield from error.faults
        return
    cores = float(manifests.container["resources"]["requests"]["cpu"])
    if settings.model_threads != cores:
        yield f"the model counts on {settings.model_threads} cores, the pod is given {cores}"
    if manifests.pod.get("enableServiceLinks", True):
        yield "Kubernetes puts the Service's address into SEGVLM_PORT"


def memory_suffices(manifests: Manifests) -> Iterator[str]:
    """The limit is above what the settings allow the process to hold at once."""
    settings, limits = manifests.settings(), manifests.container["resources"]["limits"]
    most = (
        AT_REST["gpu" if "nvidia.com/gpu" in limits else "cpu"]
        + settings.image_cache_bytes
        + settings.text_cache_bytes
        + settings.max_buffered_bytes
        + settings.image_threads * settings.max_pixels * FOR_A_PIXEL
    )
    if number_of_bytes(limits["memory"]) < most:
        yield f"limit {limits['memory']}, but the settings allow {most / 2**20:.0f} MiB"


def pods_are_restricted(manifests: Manifests) -> Iterator[str]:
    """The Pod Security Standard `restricted`, and a read-only root beyond it."""
    pod, own = manifests.pod, manifests.container.get("securityContext", {})
    context = pod.get("securityContext", {}) | own
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "has no seccomp profile"
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield "may gain privileges"
    if own.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "may write its root file system"
    if {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & set(pod):
        yield "shares the node, or has containers that were not looked at"
    if any("hostPort" in port for port in manifests.container["ports"]):
        yield "takes a port of the node"
    for volume in pod.get("volumes", ()):
        if kinds := set(volume) - {"name"} - RESTRICTED_VOLUMES:
            yield f"volume {volume['name']} is a {', '.join(kinds)}"
    if pod.get("automountServiceAccountToken") is not False:
        yield "gets a token of the cluster"


def one_namespace(manifests: Manifests) -> Iterator[str]:
    """Everything lies in the one namespace that is made, and the queries ask for it."""
    name = manifests.one("Namespace")["metadata"]["name"]
    labels = manifests.one("Namespace")["metadata"]["labels"]
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace admits pods that are not restricted"
    for document in manifests.documents:
        if document["kind"] not in CLUSTER_WIDE and document["metadata"].get("namespace") != name:
            yield f"{document['kind']} {document['metadata']['name']} is not in {name}"
    for scaled in manifests.of("ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            if f'{{namespace="{name}"}}' not in trigger["metadata"]["query"]:
                yield f"{trigger['name']} asks for another namespace"


def image_is_this_version(manifests: Manifests) -> Iterator[str]:
    """The tag is the version of this checkout."""
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    version = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["version"]
    name, _, tag = manifests.container["image"].rpartition(":")
    if tag != version or "segvlm-service" not in name:
        yield f"runs {manifests.container['image']}, this is version {version}"


def one_sets_the_replicas(manifests: Manifests) -> Iterator[str]:
    """The Deployment or the ScaledObject; and never fewer than two, so that one may go."""
    fewest = manifests.deployment.get("replicas")
    for scaled in manifests.of("ScaledObject"):
        if fewest is not None:
            yield "every apply sets the autoscaler's number of replicas back"
        if (
            scaled["spec"]["scaleTargetRef"]["name"]
            != manifests.one("Deployment")["metadata"]["name"]
        ):
            yield "the ScaledObject scales something else"
        fewest = scaled["spec"]["minReplicaCount"]
    if fewest is None or fewest < 2:
        yield f"there may be {fewest} replicas"


RULES: tuple[Rule, ...] = (
    probes_reach_the_service,
    a_busy_process_is_left_alone,
    a_start_may_take_its_time,
    a_stop_answers_everybody,
    a_roll_out_keeps_the_capacity,
    everything_selects_the_pods,
    settings_are_ours,
    memory_suffices,
    pods_are_restricted,
    one_namespace,
    image_is_this_version,
    one_sets_the_replicas,
)
