"""docker-compose.yml: valid, guarded, and true about the service and its neighbours."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from service.settings import Settings, load_settings
from tests.deploy import compose_files as files

ROOT = files.ROOT
FIXED = {"SEGVLM_HOST", "SEGVLM_PORT", "SEGVLM_BUNDLE"}  # in docker-compose.yml itself
OURS = {"segvlm": "service", "segvlm-gpu": "service-gpu"}
PROJECTS = files.projects()
SERVICES = [
    pytest.param(name, service, id=f"{project}-{name}")
    for project, document in PROJECTS.items()
    for name, service in document["services"].items()
]
every_service = pytest.mark.parametrize(("name", "service"), SERVICES)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that the person who runs the tests has set are not the example's."""
    for name in [name for name in os.environ if name.upper().startswith("SEGVLM_")]:
        monkeypatch.delenv(name)


def binds(service: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Source, target and whether it is read-only, of each directory or file of this machine."""
    for volume in service.get("volumes", []):
        if isinstance(volume, dict):
            yield volume["source"], volume["target"], volume.get("read_only", False)
        elif volume.startswith((".", "/")):
            source, target, *options = volume.split(":")
            yield source, target, options == ["ro"]


# -- valid ------------------------------------------------------------------------------------


def complaints(document: dict[str, Any]) -> list[str]:
    schema = get_builtin_schema("vendor.compose-spec")
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize("path", [files.BASE, files.REPLICAS], ids=lambda path: path.name)
def test_file_fits_the_compose_specification(path: Any) -> None:
    assert complaints(files.read(path)) == []
    broken = files.read(path)
    broken["services"]["segvlm"]["prots"] = []
    assert complaints(broken)


@pytest.mark.parametrize("project", PROJECTS)
def test_merged_project_fits_the_compose_specification(project: str) -> None:
    assert complaints(PROJECTS[project]) == []


@pytest.mark.parametrize("profile", [[], ["--profile", "gpu"]], ids=["cpu", "gpu"])
@pytest.mark.parametrize("paths", [[files.BASE], [files.BASE, files.REPLICAS]], ids=PROJECTS)
def test_compose_itself_takes_it(paths: list[Any], profile: list[str]) -> None:
    command = compose_command()
    for path in paths:
        command += ["-f", str(path)]
    done = subprocess.run([*command, *profile, "config", "-q"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compose_command() -> list[str]:
    """Docker Compose 2, which reads files without an engine."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            asked = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            if re.match(r"v?[2-9]\.", asked.stdout):
                return command
    pytest.skip("Docker Compose 2 is missing; it needs no engine for this")


# -- what it mounts and runs ------------------------------------------------------------------


@every_service
def test_what_is_mounted_exists_and_is_read_only(name: str, service: dict[str, Any]) -> None:
    for source, target, read_only in binds(service):
        assert (ROOT / source).exists(), source
        assert read_only, target


@every_service
def test_image_has_a_version(name: str, service: dict[str, Any]) -> None:
    tag = service["image"].partition(":")[2]
    assert re.search(r"\d+\.\d+", tag), service["image"]
    if name in OURS:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert service["image"] == f"segvlm-{OURS[name]}:{project['version']}"
        assert service["build"]["args"]["VERSION"] == project["version"]
        assert service["build"]["dockerfile"] == f"docker/{OURS[name]}.Dockerfile"
        assert (ROOT / service["build"]["dockerfile"]).is_file()


@every_service
def test_service_is_guarded_and_limited(name: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["deploy"]["resources"]["limits"].keys() >= {"memory", "pids"}
    assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys()


@every_service
def test_nothing_is_published_to_the_network_unasked(name: str, service: dict[str, Any]) -> None:
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_monitoring_cannot_be_published_at_all() -> None:
    opened = files.projects(dict.fromkeys(files.used_variables(), "0.0.0.0"))
    for name in ("prometheus", "grafana"):
        (port,) = opened["base"]["services"][name]["ports"]
        assert port.startswith("127.0.0.1:")


@every_service
def test_start_waits_for_health(name: str, service: dict[str, Any]) -> None:
    services = PROJECTS["replicas"]["services"]
    for other, how in service.get("depends_on", {}).items():
        assert how["condition"] == "service_healthy"
        assert how.get("required", True) is ("profiles" not in services[other])
    if name in OURS:
        dockerfile = ROOT / "docker" / f"{OURS[name]}.Dockerfile"
        assert "\nHEALTHCHECK" in dockerfile.read_text(encoding="utf-8")
    else:
        assert service["healthcheck"]["test"][0] == "CMD"


def test_a_replica_is_the_service_without_its_port() -> None:
    alone, replica = (PROJECTS[project]["services"]["segvlm"] for project in PROJECTS)
    assert "ports" not in replica
    assert replica["deploy"].pop("replicas") == "2"
    assert alone["deploy"].pop("replicas") == "1"
    assert {**alone, "ports": None} == {**replica, "ports": None}
    nginx = PROJECTS["replicas"]["services"]["nginx"]
    assert nginx["ports"][0].split(":")[:2] == alone["ports"][0].split(":")[:2]


def test_gpu_service_is_found_under_the_same_name() -> None:
    service = PROJECTS["base"]["services"]["segvlm-gpu"]
    assert service["profiles"] == ["gpu"]
    assert service["networks"]["default"]["aliases"] == ["segvlm"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    cache = next(v for v in service["volumes"] if isinstance(v, str))
    dockerfile = (ROOT / "docker" / "service-gpu.Dockerfile").read_text(encoding="utf-8")
    assert f"HOME={cache.partition(':')[2]} " in dockerfile


# -- what it says to its neighbours -----------------------------------------------------------


def test_prometheus_finds_the_service() -> None:
    services = PROJECTS["base"]["services"]
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "segvlm"]
    (discovery,) = job["dns_sd_configs"]
    assert set(discovery["names"]) <= services.keys()
    assert str(discovery["port"]) == services["segvlm"]["environment"]["SEGVLM_PORT"]
    options = dict(option.split("=", 1) for option in services["prometheus"]["command"])
    targets = {target: source for source, target, _ in binds(services["prometheus"])}
    mount, _, name = options["--config.file"].rpartition("/")
    assert (ROOT / targets[mount] / name).is_file()
    # The rules look back 30 days.
    assert int(options["--storage.tsdb.retention.time"].removesuffix("d")) > 30


def test_prometheus_knows_the_options_that_it_is_given() -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing; Debian's package prometheus has it")
    asked = subprocess.run(["prometheus", "--help"], capture_output=True, text=True, check=True)
    for option in PROJECTS["base"]["services"]["prometheus"]["command"]:
        assert f"{option.partition('=')[0]}=" in asked.stdout + asked.stderr


def test_grafana_finds_its_source_and_its_dashboards() -> None:
    service = PROJECTS["base"]["services"]["grafana"]
    targets = {target: ROOT / source for source, target, _ in binds(service)}
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text("utf-8"))
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "segvlm.yml").read_text("utf-8"))[
        "providers"
    ]
    dashboards = targets[provider["options"]["path"]]
    home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    directory, _, name = home.rpartition("/")
    assert targets[directory] == dashboards
    assert (dashboards / name).is_file()


def test_nobody_can_log_in_with_what_everybody_knows() -> None:
    environment = PROJECTS["base"]["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    texts = [path.read_text("utf-8") for path in (files.BASE, files.REPLICAS, files.EXAMPLE)]
    assert not re.search(r"(?i)(password|secret|token)\w*\s*[=:]", "".join(texts))


# -- .env -------------------------------------------------------------------------------------


def test_example_has_what_compose_uses_and_the_services_settings() -> None:
    settings = {f"SEGVLM_{name.upper()}" for name in Settings.model_fields}
    shown, used = set(files.example()), set(files.used_variables())
    theirs = {name for name in shown if name.startswith(("COMPOSE_", "OTEL_"))}
    assert shown - theirs == (used | settings) - FIXED
    fixed = PROJECTS["base"]["services"]["segvlm"]["environment"]
    assert set(fixed) == FIXED


def test_example_shows_the_values_that_hold_without_it() -> None:
    shown, used = files.example(), files.used_variables()
    own = {name for name in used if not name.startswith("SEGVLM_")}
    assert {name: shown[name] for name in own} == {name: used[name] for name in own}


def test_example_explains_each_variable() -> None:
    lines = files.EXAMPLE.read_text(encoding="utf-8").splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"#?[A-Z_]+=", line):
            assert before.startswith("#"), f"nothing explains {line}"
            assert line.startswith("#"), f"{line} is not commented out, so a copy is no empty one"


def test_settings_in_the_example_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    default = load_settings()
    for name, value in files.example().items():
        if name.startswith("SEGVLM_"):
            monkeypatch.setenv(name, value)
    shown = load_settings().model_dump()
    # The image's own; the machine's; the backend's.
    elsewhere = {"log_format", "image_threads", "max_batch_size"}
    assert {k: v for k, v in default.model_dump().items() if shown[k] != v}.keys() <= elsewhere


@pytest.mark.parametrize("project", PROJECTS)
def test_grace_outlasts_the_services_own_shutdown(project: str) -> None:
    for name, service in PROJECTS[project]["services"].items():
        if name in (*OURS, "nginx"):
            grace = files.seconds(service["stop_grace_period"])
            assert grace >= load_settings().shutdown_timeout + 5
