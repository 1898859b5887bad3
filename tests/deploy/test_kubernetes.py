"""deploy/kubernetes as a cluster would get it: valid, and true about the service."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy import kubernetes_rules as rules
from tests.deploy.kubernetes_manifests import Manifests, render
from tests.deploy.kubernetes_rules import RULES, Rule

OVERLAYS = ("cpu", "gpu", "example")
# The oldest version that has all that is used (the preStop pause), and the newest that is known.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
OURS = ("ServiceMonitor", "PrometheusRule", "ScaledObject")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that the person who runs the tests has set are not the manifests'."""
    for name in [name for name in os.environ if name.upper().startswith("SEGVLM_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def kubernetes(repo_root: Path) -> Path:
    return repo_root / "deploy" / "kubernetes"


@pytest.fixture(scope="module")
def rendered(kubernetes: Path) -> dict[str, Manifests]:
    return {name: render(kubernetes / "overlays" / name) for name in OVERLAYS}


@pytest.fixture(scope="module")
def combined(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Manifests]:
    """Renders an overlay with components, as somebody's own overlay outside of this repository."""
    root = tmp_path_factory.mktemp("overlays")
    shutil.copytree(repo_root / "deploy", root / "deploy")

    def render_with(overlay: str, *components: str) -> Manifests:
        own = root / "-".join((overlay, *components))
        own.mkdir()
        kustomization = {
            "namespace": "segvlm",
            "resources": [f"../deploy/kubernetes/overlays/{overlay}"],
            "components": [f"../deploy/kubernetes/components/{each}" for each in components],
        }
        (own / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
        return render(own)

    return render_with


def schema_faults(document: dict[str, Any], version: str) -> str | None:
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_documents_fit_the_schemas_of_kubernetes(
    overlay: str, version: str, rendered: dict[str, Manifests]
) -> None:
    checked = [each for each in rendered[overlay].documents if each["kind"] not in OURS]
    assert {each["kind"] for each in checked} >= {"Deployment", "Service", "NetworkPolicy"}
    assert [fault for each in checked if (fault := schema_faults(each, version))] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rule_holds(overlay: str, rule: Rule, rendered: dict[str, Manifests]) -> None:
    assert list(rule(rendered[overlay])) == []


@pytest.mark.parametrize(
    ("components", "bundle"),
    [(["bundle-claim"], "/bundles/segvlm-lite"), (["bundle-image"], "/bundle")],
)
def test_bundle_of_ones_own(
    components: list[str], bundle: str, combined: Callable[..., Manifests]
) -> None:
    manifests = combined("gpu", *components, "monitoring", "autoscaling")
    assert [fault for rule in RULES for fault in rule(manifests)] == []
    assert schema_faults(manifests.one("Deployment"), VERSIONS[-1]) is None
    assert manifests.settings().bundle == Path(bundle)
    (mount,) = [
        each for each in manifests.container["volumeMounts"] if bundle.startswith(each["mountPath"])
    ]
    assert mount["readOnly"] is True
    # What the overlay and the other components said is still there.
    assert manifests.settings().device == "cuda"
    assert "resourceFieldRef" in str(manifests.container["env"])


def test_base_needs_no_custom_resources(kubernetes: Path) -> None:
    builtin = re.compile(r"v1|(apps|policy|networking\.k8s\.io)/v1")
    assert all(
        builtin.fullmatch(each["apiVersion"]) for each in render(kubernetes / "base").documents
    )


def test_pods_run_as_the_user_of_the_images(
    repo_root: Path, rendered: dict[str, Manifests]
) -> None:
    dockerfiles = sorted((repo_root / "docker").glob("service*.Dockerfile"))
    assert dockerfiles
    for path in dockerfiles:
        last = re.findall(r"^USER\s+(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)[-1]
        for manifests in rendered.values():
            context = manifests.pod["securityContext"]
            assert f"{context['runAsUser']}:{context['runAsGroup']}" == last, path.name


def test_a_changed_setting_rolls_the_pods(rendered: dict[str, Manifests]) -> None:
    names = {str(rendered[each].container["envFrom"]) for each in ("cpu", "gpu")}
    assert len(names) == 2


# -- the rules notice --------------------------------------------------------------------------


def put(path: str, value: Any) -> Callable[[Manifests], None]:
    """Sets what is at `path`, whose first part is a kind: "Service|spec|ports|0|port"."""

    def change(manifests: Manifests) -> None:
        kind, *steps, last = path.split("|")
        where: Any = manifests.one(kind)
        for step in steps:
            where = where[int(step)] if step.isdecimal() else where[step]
        where[last] = value

    return change


POD = "Deployment|spec|template|spec"
CONTAINER = f"{POD}|containers|0"


def setting(name: str, value: str) -> Callable[[Manifests], None]:
    def change(manifests: Manifests) -> None:
        manifests.container["env"].append({"name": name, "value": value})

    return change


OFFENCES: list[tuple[Rule, Callable[[Manifests], None]]] = [
    (rules.probes_reach_the_service, put(f"{CONTAINER}|readinessProbe|httpGet|path", "/ready")),
    (rules.probes_reach_the_service, put(f"{CONTAINER}|livenessProbe|httpGet|path", "/readyz")),
    (rules.probes_reach_the_service, put(f"{CONTAINER}|ports|0|containerPort", 8080)),
    (rules.probes_reach_the_service, put("Service|spec|ports|0|targetPort", "web")),
    (rules.probes_reach_the_service, put("ServiceMonitor|spec|endpoints|0|path", "/metric")),
    (rules.probes_reach_the_service, setting("SEGVLM_PORT", "9000")),
    (rules.a_busy_process_is_left_alone, put(f"{CONTAINER}|livenessProbe|failureThreshold", 2)),
    (rules.a_start_may_take_its_time, setting("SEGVLM_WARM_UP_TIMEOUT", "900")),
    (rules.a_start_may_take_its_time, put("Deployment|spec|progressDeadlineSeconds", 120)),
    (rules.a_stop_answers_everybody, put(f"{POD}|terminationGracePeriodSeconds", 30)),
    (rules.a_stop_answers_everybody, put(f"{CONTAINER}|lifecycle", {})),
    (rules.a_stop_answers_everybody, setting("SEGVLM_SHUTDOWN_TIMEOUT", "20")),
    (
        rules.a_roll_out_keeps_the_capacity,
        put("Deployment|spec|strategy|rollingUpdate|maxUnavailable", 1),
    ),
    (rules.a_roll_out_keeps_the_capacity, put("PodDisruptionBudget|spec|maxUnavailable", 2)),
    (
        rules.everything_selects_the_pods,
        put("PodDisruptionBudget|spec|selector|matchLabels", {"app": "segvlm"}),
    ),
    (rules.everything_selects_the_pods, put("NetworkPolicy|spec|podSelector", {})),
    (
        rules.everything_selects_the_pods,
        put("ServiceMonitor|spec|selector|matchLabels", {"app": "segvlm"}),
    ),
    (rules.everything_selects_the_pods, put("ServiceMonitor|spec|jobLabel", "app")),
    (rules.settings_are_ours, setting("SEGVLM_MAX_IMAGES", "9")),
    (rules.settings_are_ours, setting("SEGVLM_LOG_FORMAT", "xml")),
    (rules.settings_are_ours, setting("SEGVLM_MODEL_THREADS", "16")),
    (rules.settings_are_ours, put(f"{POD}|enableServiceLinks", True)),
    (rules.memory_suffices, put(f"{CONTAINER}|resources|limits|memory", "1Gi")),
    (rules.memory_suffices, setting("SEGVLM_IMAGE_THREADS", "8")),
    (rules.pods_are_restricted, put(f"{POD}|securityContext|runAsUser", 0)),
    (rules.pods_are_restricted, put(f"{POD}|securityContext|runAsNonRoot", False)),
    (rules.pods_are_restricted, put(f"{POD}|securityContext|seccompProfile", {})),
    (rules.pods_are_restricted, put(f"{CONTAINER}|securityContext|capabilities", {})),
    (rules.pods_are_restricted, put(f"{CONTAINER}|securityContext", {})),
    (rules.pods_are_restricted, put(f"{CONTAINER}|securityContext|readOnlyRootFilesystem", False)),
    (rules.pods_are_restricted, put(f"{POD}|hostNetwork", True)),
    (rules.pods_are_restricted, put(f"{CONTAINER}|ports|0|hostPort", 80)),
    (
        rules.pods_are_restricted,
        put(f"{POD}|volumes", [{"name": "tmp", "hostPath": {"path": "/tmp"}}]),
    ),
    (rules.pods_are_restricted, put(f"{POD}|automountServiceAccountToken", True)),
    (rules.one_namespace, put("Service|metadata|namespace", "default")),
    (rules.one_namespace, put("Namespace|metadata|labels", {})),
    (
        rules.one_namespace,
        put("ScaledObject|spec|triggers|1|metadata|query", "sum(rate(x[2m]))"),
    ),
    (rules.image_is_this_version, put(f"{CONTAINER}|image", "segvlm-service:latest")),
    (rules.image_is_this_version, put(f"{CONTAINER}|image", "segvlm-service")),
    (rules.one_sets_the_replicas, put("Deployment|spec|replicas", 3)),
    (rules.one_sets_the_replicas, put("ScaledObject|spec|minReplicaCount", 1)),
    (rules.one_sets_the_replicas, put("ScaledObject|spec|scaleTargetRef", {"name": "other"})),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "offend"), OFFENCES)
def test_rule_notices_an_offence(
    rule: Rule, offend: Callable[[Manifests], None], rendered: dict[str, Manifests]
) -> None:
    manifests = copy.deepcopy(rendered["example"])
    offend(manifests)
    assert list(rule(manifests)) != []


def test_every_rule_has_an_offence() -> None:
    assert {rule for rule, _ in OFFENCES} == set(RULES)


def test_schemas_notice_a_wrong_name(rendered: dict[str, Manifests]) -> None:
    deployment = copy.deepcopy(rendered["cpu"].one("Deployment"))
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    assert all("readynessProbe" in (schema_faults(deployment, each) or "") for each in VERSIONS)
