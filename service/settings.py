"""Every knob of the service. The only file that reads the environment (prefix `SEGVLM_`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.bundle import DEFAULT_BUNDLE

_MIB = 1024 * 1024


def _not_a_service_link(value: Any) -> Any:
    """Refuse what Kubernetes puts into SEGVLM_PORT when a Service is called `segvlm`."""
    if isinstance(value, str) and value.startswith("tcp://"):
        raise ValueError(
            "Kubernetes set this for a Service named segvlm; put enableServiceLinks: false into "
            "the pod's spec"
        )
    return value


class Settings(BaseSettings):
    """Each field is read from `SEGVLM_<FIELD>`; durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(env_prefix="SEGVLM_", frozen=True, extra="forbid")

    host: str = Field("0.0.0.0", description="address to listen on")
    port: Annotated[int, BeforeValidator(_not_a_service_link)] = Field(
        8000, ge=0, le=65535, description="port to listen on; 0 takes a free one"
    )
    access_log: bool = Field(True, description="log a line for each request")
    log_format: Literal["text", "json"] = Field(
        "text", description="form of the log: text for people, json for programs"
    )
    traces: Literal["off", "otlp"] = Field(
        "off",
        description="otlp sends OpenTelemetry traces to where its own OTEL_ variables say",
    )

    backend: str = Field("onnx", description="what runs the model: onnx, torch, torchscript, fake")
    bundle: Path = Field(DEFAULT_BUNDLE, description="directory of the model bundle")
    device: str = Field(
        "auto",
        description="where: auto, cpu, cuda, tensorrt (with onnx); cuda:1 is the second GPU",
    )
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = Field(
        "auto", description="what the model computes in; auto suits the device"
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
        512 * _MIB, ge=1, description="all request bodies in memory together; beyond it a 503"
    )
    max_pixels: int = Field(50_000_000, ge=1, description="most pixels of an image")
    max_expressions: int = Field(32, ge=1, description="most expressions of a request")
    max_expression_length: int = Field(256, ge=1, description="most characters of an expression")

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


def load_settings(**overrides: Any) -> Settings:
    """Read the environment; `overrides` that are not None win over it.

    Raises ValueError that names each wrong variable, its value and what is allowed.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            name = str(fault["loc"][0])
            source = f"--{name}" if name in given else f"SEGVLM_{name.upper()}"
            faults.append(f"{source}={fault['input']}: {fault['msg']}")
        raise ValueError("; ".join(faults)) from error
