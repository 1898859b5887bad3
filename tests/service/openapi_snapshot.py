"""Write docs/openapi.json, the OpenAPI document of a service as it comes: run it to renew the file.

    .venv/bin/python -m tests.service.openapi_snapshot

Nothing of the environment, of a model's weights or of a machine is in it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from service.app import create_app
from service.backends.base import LoadOptions
from service.backends.fake import load_fake
from service.engine import Engine
from service.metrics import Metrics
from service.settings import Settings

SNAPSHOT = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


def describe_default_service() -> str:
    """The document as text: of the settings' defaults, and under the bundled model's name."""
    described = ("max_expressions", "max_expression_length", "api_keys_file")
    defaults = {name: Settings.model_fields[name].default for name in described}
    settings = Settings(backend="fake", **defaults)
    fake = load_fake(64, 17, LoadOptions(max_batch_size=1))
    model = replace(fake, spec=replace(fake.spec, name="segvlm-lite"))
    app = create_app(settings, Engine(model, settings, Metrics()))
    return json.dumps(app.openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(describe_default_service(), encoding="utf-8")
    print(SNAPSHOT)
