"""The file of keys: what it may hold, and that a change of it is noticed."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from service.__main__ import main
from service.api_keys import KeyFile, KeyFileError, digest_of, make_key, read_keys
from service.settings import SettingsError, load_settings

DIGEST = "ab" * 32


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_names_digests_limits_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(
        f"# of the office\n\nanna {DIGEST} burst=10 rate=0.5 concurrent=4 # since May\n"
        f"ben {'cd' * 32}\n"
    )
    anna, ben = read_keys(file)
    assert (anna.name, anna.digest) == ("anna", bytes.fromhex(DIGEST))
    assert (anna.rate, anna.burst, anna.concurrent) == (0.5, 10, 4)
    assert (ben.rate, ben.burst, ben.concurrent) == (None, None, None)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("anna", "the key's SHA-256"),
        (f"anna {DIGEST[:-1]}", "the key's SHA-256"),
        (f"anna {DIGEST.upper()}", "the key's SHA-256"),
        (f"an/na {DIGEST}", "must be a name"),
        (f"{'a' * 65} {DIGEST}", "must be a name"),
        (f"anna {DIGEST} speed=3", "rate=, burst= and concurrent= only"),
        (f"anna {DIGEST} hello", "rate=, burst= and concurrent= only"),
        (f"anna {DIGEST} rate=0", "rate= must be"),
        (f"anna {DIGEST} rate=nan", "rate= must be"),
        (f"anna {DIGEST} rate=inf", "rate= must be"),
        (f"anna {DIGEST} rate=5 rate=6", "rate= is there twice"),
        (f"anna {DIGEST} rate=5 burst=0", "burst= must be"),
        (f"anna {DIGEST} burst=5", "burst= needs rate="),
        (f"anna {DIGEST} concurrent=1.5", "concurrent= must be"),
        (f"ok {DIGEST}", "another line has the name ok"),
        (f"anna {'ef' * 32}", "another line has the same key"),
    ],
)
def test_every_wrong_line_is_named_and_not_repeated(line: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"ok {'ef' * 32}\n{line}\nnonsense secret\n")
    with pytest.raises(KeyFileError) as caught:
        read_keys(file)
    second, third = caught.value.faults
    assert second.startswith(f"{file}, line 2: ") and told in second
    assert third.startswith(f"{file}, line 3: ")
    assert "secret" not in third and DIGEST[:-1] not in second


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_file_that_cannot_be_read_stops_the_start(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("SEGVLM_API_KEYS_FILE", str(file))
    with pytest.raises(SettingsError) as caught:
        load_settings()
    (line,) = caught.value.faults
    assert line.startswith(f"SEGVLM_API_KEYS_FILE: {file} cannot be read: ")


def test_new_file_holds_within_a_second_of_use(keys: Any) -> None:
    clock = Clock()
    file = KeyFile(keys.path, clock)
    key, line = make_key("cleo")
    keys.write(line + "\n")
    clock.now = 0.99
    assert file.find(key) is None and file.find(keys.key["anna"]) is not None
    clock.now = 1.0
    found = file.find(key)
    assert found is not None and found.name == "cleo"
    assert file.find(keys.key["anna"]) is None


def test_change_of_the_same_size_and_time_is_seen_by_its_inode(keys: Any) -> None:
    clock = Clock()
    before = keys.path.stat()
    file = KeyFile(keys.path, clock)
    keys.write(keys.path.read_text().replace("anna", "otto"))
    os.utime(keys.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    clock.now = 1.0
    found = file.find(keys.key["anna"])
    assert found is not None and found.name == "otto"


@pytest.mark.parametrize("broken", ["anna\n", None])
def test_broken_file_leaves_the_keys_and_a_line_in_the_log(
    broken: str | None, keys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    file = KeyFile(keys.path, clock)
    if broken is None:
        keys.path.unlink()
    else:
        keys.write(broken)
    with caplog.at_level(logging.ERROR, "segvlm.access"):
        for clock.now in (1.0, 2.0, 3.0):
            assert file.find(keys.key["anna"]) is not None
    (record,) = caplog.records  # once, not at every look
    assert "the keys from before still hold" in record.message and str(keys.path) in record.message
    keys.write("# nobody\n")
    clock.now = 4.0
    assert file.find(keys.key["anna"]) is None


def test_file_is_looked_at_once_a_second_whatever_the_load(
    keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    file = KeyFile(keys.path, clock)
    looks: list[float] = []
    monkeypatch.setattr(KeyFile, "_signature", lambda self: looks.append(clock.now))
    for tick in range(300):
        clock.now = tick / 100
        file.find("x")
    assert looks == [1.0, 2.0]


def test_every_entry_is_compared_in_constant_time(
    keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []

    def compare(kept: bytes, brought: bytes) -> bool:
        compared.append(kept)
        return kept == brought

    monkeypatch.setattr("service.api_keys.hmac.compare_digest", compare)
    assert KeyFile(keys.path).find(keys.key["anna"]) is not None  # the first of two
    assert compared == [digest_of(keys.key["anna"]), digest_of(keys.key["ben"])]


def test_command_prints_a_key_once_and_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", "anna"]) == 0
    _, key, _, line = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"[\w-]{43}", key)
    (tmp_path / "keys").write_text(line)
    found = KeyFile(tmp_path / "keys").find(key)
    assert found is not None and found.name == "anna"
    assert main(["key", "anna"]) == 0
    assert key not in capsys.readouterr().out


def test_command_refuses_a_name_that_the_file_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "anna b"]) == 2
    assert capsys.readouterr().err.startswith("error: 'anna b' is no name for a key")
