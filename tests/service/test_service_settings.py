"""Settings come from `SEGVLM_*`, and each wrong one gets a line that says which, why and what is
allowed."""

from __future__ import annotations

import os

import pytest

from service.__main__ import main
from service.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the person who runs the tests has set is not what is tested."""
    for name in [name for name in os.environ if name.upper().startswith("SEGVLM_")]:
        monkeypatch.delenv(name)


def faults(**overrides: object) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    return caught.value.faults


def test_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGVLM_PORT", "9000")
    monkeypatch.setenv("SEGVLM_MAX_PIXELS", "1000")
    settings = load_settings(port=9001, host=None)
    assert (settings.port, settings.max_pixels, settings.host) == (9001, 1000, "0.0.0.0")


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("SEGVLM_PORT", "70000", "must be a whole number, at least 0, at most 65535"),
        ("SEGVLM_PORT", "http", "must be a whole number, at least 0, at most 65535"),
        ("SEGVLM_MAX_BATCH_SIZE", "0", "must be a whole number, at least 1"),
        ("SEGVLM_MAX_BODY_BYTES", "32M", "must be a whole number, at least 1"),
        ("SEGVLM_TIMEOUT", "soon", "must be a number, more than 0"),
        ("SEGVLM_TIMEOUT", "inf", "must be a number, more than 0"),
        ("SEGVLM_MAX_DELAY", "nan", "must be a number, at least 0"),
        ("SEGVLM_ACCESS_LOG", "maybe", "must be true or false"),
        ("SEGVLM_LOG_FORMAT", "JSON", "must be text or json"),
        ("SEGVLM_PRECISION", "fp8", "must be auto, fp32, fp16, bf16 or int8"),
        ("SEGVLM_BACKEND", "onx", "must be onnx, torch, torchscript or fake"),
        ("SEGVLM_PORT", "tcp://10.0.0.1:8000", "enableServiceLinks: false"),
    ],
)
def test_wrong_value_is_named_with_what_is_allowed(
    variable: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    (line,) = faults()
    assert line.startswith(f"{variable}={value}: ")
    assert allowed in line


def test_wrong_argument_is_named_as_one() -> None:
    (line,) = faults(port=-1)
    assert line.startswith("--port=-1: must be a whole number")


def test_empty_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGVLM_BUNDLE", "")
    monkeypatch.setenv("SEGVLM_MAX_BATCH_SIZE", "")
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        ("SEGVLM_REQUEST_TIMEOUT", "is called SEGVLM_TIMEOUT now"),
        ("SEGVLM_BATCH_DELAY", "is called SEGVLM_MAX_DELAY now"),
        ("SEGVLM_MAX_IMAGES", "is called SEGVLM_MAX_QUEUE now"),
        ("SEGVLM_BATCH_SIZE", "did you mean SEGVLM_MAX_BATCH_SIZE?"),
        ("segvlm_prot", "did you mean SEGVLM_PORT?"),
        ("SEGVLM_QUX", "is no setting; docs/api.md"),
    ],
)
def test_unknown_variable_is_refused_without_its_value(
    variable: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "hunter2")
    (line,) = faults()
    assert line.startswith(variable)
    assert remedy in line
    assert "hunter2" not in line


def service_links(service: str, port: int) -> dict[str, str]:
    """What Kubernetes puts into every container for a Service of that name."""
    name, address = service.upper().replace("-", "_"), "10.96.0.7"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP": str(port),
        f"{name}_PORT": f"tcp://{address}:{port}",
        f"{name}_PORT_{port}_TCP": f"tcp://{address}:{port}",
        f"{name}_PORT_{port}_TCP_PROTO": "tcp",
        f"{name}_PORT_{port}_TCP_PORT": str(port),
        f"{name}_PORT_{port}_TCP_ADDR": address,
    }


def test_links_of_other_services_are_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service_links("segvlm-canary", 80).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == Settings()


def test_links_of_a_service_named_segvlm_get_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service_links("segvlm", 80).items():
        monkeypatch.setenv(name, value)
    (line,) = faults()
    assert line.startswith("SEGVLM_PORT=tcp://")
    assert "enableServiceLinks: false" in line


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"drain_seconds": 40}, "SEGVLM_SHUTDOWN_TIMEOUT=35.0"),
        ({"max_body_bytes": 2, "max_buffered_bytes": 1}, "SEGVLM_MAX_BUFFERED_BYTES=1"),
    ],
)
def test_contradictions_are_refused(values: dict[str, int], named: str) -> None:
    (line,) = faults(**values)
    assert named in line


def test_every_fault_gets_a_line_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGVLM_PORT", "http")
    monkeypatch.setenv("SEGVLM_TIMEOUT", "soon")
    monkeypatch.setenv("SEGVLM_MAX_IMAGES", "9")
    assert main(["serve"]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == ""
    assert all(line.startswith("error: SEGVLM_") for line in lines)
    assert sorted(line.split()[1].split("=")[0] for line in lines) == [
        "SEGVLM_MAX_IMAGES",
        "SEGVLM_PORT",
        "SEGVLM_TIMEOUT",
    ]


def test_what_a_library_says_in_several_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**arguments: object) -> None:
        raise ValueError("first\n    second\n")

    monkeypatch.setattr("service.__main__.load_settings", refuse)
    assert main(["segment", __file__, "the dog"]) == 2
    assert capsys.readouterr().err == "error: first second\n"


def test_unknown_names_in_code_are_refused() -> None:
    with pytest.raises(ValueError, match="prot"):
        Settings(prot=1)  # type: ignore[call-arg]


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_answering_fits_into_the_time_to_stop() -> None:
    """Otherwise an accepted request can be cut off by a graceful stop."""
    assert Settings().shutdown_timeout > Settings().timeout
