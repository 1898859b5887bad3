"""A backend with what else its bundle holds for the service. No torch."""

from __future__ import annotations

from typing import Any

from model.bundle import Bundle
from service.backends.base import Backend, LoadedModel, ModelSpec


def complete(bundle: Bundle, backend: Backend[Any]) -> LoadedModel:
    """Raises BundleError if the bundle's tokenizer or probe cannot be read."""
    config = bundle.config
    spec = ModelSpec(
        name=config.name,
        version=config.version,
        image_size=config.image_size,
        word_length=config.word_length,
        threshold=config.threshold,
        score_map=config.score_map,
    )
    return LoadedModel(spec, backend, bundle.tokenizer(), bundle.probe())
