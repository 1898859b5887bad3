"""Settings come from `SEGVLM_*`, and a wrong one says which and why."""

from __future__ import annotations

import pytest

from service.settings import Settings, load_settings


def test_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGVLM_PORT", "9000")
    monkeypatch.setenv("SEGVLM_MAX_PIXELS", "1000")
    settings = load_settings(port=9001, host=None)
    assert (settings.port, settings.max_pixels, settings.host) == (9001, 1000, "0.0.0.0")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SEGVLM_PORT", "70000", "SEGVLM_PORT=70000"),
        ("SEGVLM_MAX_BATCH_SIZE", "0", "SEGVLM_MAX_BATCH_SIZE=0"),
        ("SEGVLM_TIMEOUT", "soon", "SEGVLM_TIMEOUT=soon"),
        ("SEGVLM_PORT", "tcp://10.0.0.1:8000", "enableServiceLinks"),
    ],
)
def test_wrong_variable_is_named(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        load_settings()


def test_wrong_argument_is_named_as_one() -> None:
    with pytest.raises(ValueError, match="--port=-1"):
        load_settings(port=-1)


def test_unknown_names_in_code_are_refused() -> None:
    with pytest.raises(ValueError, match="prot"):
        Settings(prot=1)  # type: ignore[call-arg]


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_answering_fits_into_the_time_to_stop() -> None:
    """Otherwise an accepted request can be cut off by a graceful stop."""
    assert Settings().shutdown_timeout > Settings().timeout
