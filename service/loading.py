"""From settings to an engine: what every way of running the service begins with."""

from __future__ import annotations

from service.backends import load_model
from service.backends.base import LoadOptions
from service.engine import Engine
from service.metrics import Metrics
from service.settings import Settings


def load_engine(settings: Settings) -> Engine:
    """Load the model that `settings` name. The engine has metrics of its own and is not started.

    Raises ValueError that names the remedy, as `service.backends.load_model` does.
    """
    options = LoadOptions(
        device=settings.device,
        precision=settings.precision,
        threads=settings.model_threads,
        max_batch_size=settings.max_batch_size,
        compile=settings.compile,
    )
    return Engine(load_model(settings.backend, settings.bundle, options), settings, Metrics())
