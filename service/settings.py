"""Every knob of the service. The only file that reads the environment (prefix `SEGVLM_`)."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.bundle import DEFAULT_BUNDLE
from service.api_keys import KeyFileError, read_keys
from service.backends import BACKENDS

_PREFIX = "SEGVLM_"
_MIB = 1024 * 1024

_RENAMED = {
    "SEGVLM_BATCH_DELAY": "SEGVLM_MAX_DELAY",
    "SEGVLM_MAX_IMAGES": "SEGVLM_MAX_QUEUE",
    "SEGVLM_REQUEST_TIMEOUT": "SEGVLM_TIMEOUT",
}
"""What settings were called in earlier versions, and are called now."""

# Kubernetes gives every container such variables for each Service whose name begins with segvlm.
_LINK_NAME = re.compile(
    r"SEGVLM_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)"
)
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://.*")


# As browsers write it: in small letters, and the port only where it is not the scheme's own.
_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]+)?")

# A name with a dot in it, in ASCII; its last part has a letter, so it is no address.
_HOST_PATTERN = re.compile(r"(\*\.)?([a-z0-9-]+\.)+[a-z0-9-]*[a-z][a-z0-9-]*")


def _not_a_service_link(value: Any) -> Any:
    """Refuse what Kubernetes sets for a Service called `segvlm` or `segvlm-admin`."""
    if isinstance(value, str) and _LINK_VALUE.fullmatch(value):
        raise ValueError(
            "Kubernetes set this for a Service that is named so; put enableServiceLinks: false "
            "into the pod's spec"
        )
    return value


def _known_backend(value: str) -> str:
    if value not in BACKENDS:
        raise ValueError(f"must be {_choice(BACKENDS)}")
    return value


def _known_origins(value: str) -> str:
    origins = [origin.strip() for origin in value.split(",")] if value else []
    if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError(
            "must be origins with commas between them, such as https://photos.example.org or "
            "http://localhost:3000, without a path or a slash at the end; or *"
        )
    return ",".join(origins)


def _known_hosts(value: str) -> str:
    hosts = [host.strip().lower() for host in value.split(",")] if value else []
    if not all(_HOST_PATTERN.fullmatch(host) for host in hosts):
        raise ValueError(
            "must be names of hosts with commas between them, such as images.example.org or "
            "*.example.org, without https:// or a port; write a name in another script as xn--..."
        )
    return ",".join(hosts)


_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most"}


class Settings(BaseSettings):
    """Each field is read from `SEGVLM_<FIELD>`; durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,  # as files of variables write what is not set
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
    )

    host: str = Field("0.0.0.0", description="address to listen on")
    port: Annotated[int, BeforeValidator(_not_a_service_link)] = Field(
        8000, ge=0, le=65535, description="port to listen on; 0 takes a free one"
    )
    admin_host: str = Field("127.0.0.1", description="address of the second port")
    admin_port: Annotated[int, BeforeValidator(_not_a_service_link)] = Field(
        0, ge=0, le=65535, description="second port, to which docs and metrics move; 0 is none"
    )
    api_keys_file: Path | None = Field(
        None, description="file of the API keys that are let in; without it everybody is"
    )
    cors_origins: Annotated[str, AfterValidator(_known_origins)] = Field(
        "", description="origins whose pages may call the service, with commas, or *; none if empty"
    )
    url_hosts: Annotated[str, AfterValidator(_known_hosts)] = Field(
        "", description="hosts from which images are fetched by URL, with commas; none if empty"
    )
    access_log: bool = Field(True, description="log a line for each request")
    log_format: Literal["text", "json"] = Field(
        "text", description="form of the log: text for people, json for programs"
    )
    traces: Literal["off", "otlp"] = Field(
        "off",
        description="otlp sends OpenTelemetry traces to where its own OTEL_ variables say",
    )

    backend: Annotated[str, AfterValidator(_known_backend)] = Field(
        "onnx", description="what runs the model: onnx, torch, torchscript, fake"
    )
    bundle: Path = Field(DEFAULT_BUNDLE, description="directory of the model bundle")
    device: str = Field(
        "auto",
        description="where: auto, cpu, cuda, tensorrt (with onnx); cuda:1 is the second GPU",
    )
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = Field(
        "auto", description="what the model computes in; auto suits the device and the bundle"
    )
    compile: bool = Field(
        True, description="compile the model with the torch backend on a GPU; a slower start"
    )
    model_threads: int = Field(
        0, ge=0, description="cores for the model on a CPU; 0 = all that the process may run on"
    )
    image_threads: int = Field(
        min(4, os.cpu_count() or 1),
        ge=1,
        description="threads that decode images and encode masks; each may hold one large image",
    )

    max_batch_size: int | None = Field(
        None, ge=1, description="most (image, expression) pairs in a batch"
    )
    max_delay: float = Field(
        0.0, ge=0, description="longest that the oldest pair waits for company; 0 adds no delay"
    )
    max_queue: int = Field(
        64, ge=1, description="images accepted and not yet answered; one more gets a 503"
    )
    image_cache_bytes: int = Field(256 * _MIB, ge=0, description="features of recent images")
    text_cache_bytes: int = Field(16 * _MIB, ge=0, description="features of recent expressions")

    max_body_bytes: int = Field(32 * _MIB, ge=1, description="longest request body")
    max_buffered_bytes: int = Field(
        512 * _MIB, ge=1, description="all bodies and frames in memory together; beyond it a 503"
    )
    max_pixels: int = Field(50_000_000, ge=1, description="most pixels of an image")
    max_expressions: int = Field(32, ge=1, description="most expressions of a request")
    max_expression_length: int = Field(256, ge=1, description="most characters of an expression")

    max_streams: int = Field(16, ge=0, description="streams that are open at a time")
    stream_frames: int = Field(
        2, ge=1, description="frames of one stream that are worked on at a time"
    )
    stream_idle_timeout: float = Field(
        60.0, gt=0, description="a stream ends if its client sends, or takes, nothing for so long"
    )

    upload_timeout: float = Field(60.0, gt=0, description="for the whole body to arrive")
    timeout: float = Field(
        30.0,
        gt=0,
        description="from the whole body to the answer; X-Request-Timeout can only shorten it",
    )
    batch_timeout: float = Field(
        60.0, gt=0, description="a batch that takes longer means a hung device: the process ends"
    )
    warm_up_timeout: float = Field(900.0, gt=0, description="the same for the warm-up")
    shutdown_timeout: float = Field(
        35.0, gt=0, description="from SIGTERM until what still runs is cut off"
    )
    drain_seconds: float = Field(
        0.0,
        ge=0,
        description="after SIGTERM keep answering 503 this long, so that balancers notice",
    )


class SettingsError(ValueError):
    """Settings that cannot be; `faults` has one line for each, written for an operator."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


def load_settings(**overrides: Any) -> Settings:
    """Read the environment; `overrides` that are not None win over it.

    Raises SettingsError: for values that are not allowed, values that contradict each other, and
    variables of our prefix that are no setting, because whoever set one believes that it works.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    faults = list(_unknown_variables(os.environ))
    try:
        settings = Settings(**given)
    except ValidationError as error:
        for fault in error.errors():
            name = str(fault["loc"][0])
            source = f"--{name}" if name in given else _variable(name)
            faults.append(f"{source}={fault['input']}: {_complaint(name, fault)}")
    else:
        faults.extend(_contradictions(settings))
        faults.extend(_key_file_faults(settings))
    if faults:
        raise SettingsError(faults)
    return settings


def _variable(name: str) -> str:
    return f"{_PREFIX}{name.upper()}"


def _field(variable: str) -> str:
    return variable.removeprefix(_PREFIX).lower()


def _unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable of our prefix that is no setting. Never its value: it may be secret.

    Service links are harmless, but for SEGVLM_PORT, whose value is refused where it is read.
    """
    for variable, value in sorted(environment.items()):
        name = variable.upper()  # names are read in any case
        if not name.startswith(_PREFIX) or _field(name) in Settings.model_fields:
            continue
        if _LINK_NAME.fullmatch(name) or _LINK_VALUE.fullmatch(value):
            continue
        if name in _RENAMED:
            yield f"{variable} is called {_RENAMED[name]} now; rename it"
        elif near := difflib.get_close_matches(_field(name), Settings.model_fields, n=1):
            yield f"{variable} is no setting; did you mean {_variable(near[0])}?"
        else:
            yield f"{variable} is no setting; docs/api.md lists all"


def _contradictions(settings: Settings) -> Iterator[str]:
    """A line for each pair of values that are never right together."""
    if settings.drain_seconds >= settings.shutdown_timeout:
        yield (
            f"SEGVLM_DRAIN_SECONDS={settings.drain_seconds}: must be less than "
            f"SEGVLM_SHUTDOWN_TIMEOUT={settings.shutdown_timeout}, which ends the stop"
        )
    if settings.admin_port and settings.admin_port == settings.port:
        yield (
            f"SEGVLM_ADMIN_PORT={settings.admin_port}: must not be SEGVLM_PORT, which answers "
            "everybody"
        )
    if settings.max_body_bytes > settings.max_buffered_bytes:
        yield (
            f"SEGVLM_MAX_BODY_BYTES={settings.max_body_bytes}: must not be more than "
            f"SEGVLM_MAX_BUFFERED_BYTES={settings.max_buffered_bytes}, which holds all bodies"
        )


def _key_file_faults(settings: Settings) -> Iterator[str]:
    """A line for each fault of the file of keys, before minutes are spent on the model."""
    try:
        if settings.api_keys_file is not None:
            read_keys(settings.api_keys_file)
    except KeyFileError as error:
        yield from (f"SEGVLM_API_KEYS_FILE: {fault}" for fault in error.faults)


def _complaint(name: str, fault: Mapping[str, Any]) -> str:
    """What is allowed instead, and what the setting is for."""
    field = Settings.model_fields.get(name)
    if field is None:
        return "there is no such setting"
    if own := fault.get("ctx", {}).get("error"):  # what a validator of this file raised
        return str(own)
    return f"must be {_allowed(field)} ({field.description})"


def _allowed(field: FieldInfo) -> str:
    """The values that a field takes, in words."""
    kind = field.annotation
    if get_origin(kind) is Literal:
        return _choice(get_args(kind))
    if kind is bool:
        return "true or false"
    if kind is Path:
        return "a path"
    words = ["a number" if kind is float else "a whole number"]
    for limit in field.metadata:
        for attribute, phrase in _LIMITS.items():
            if (bound := getattr(limit, attribute, None)) is not None:
                words.append(f"{phrase} {bound}")
    return ", ".join(words)


def _choice(values: Sequence[str]) -> str:
    *first, last = values
    return f"{', '.join(first)} or {last}"
