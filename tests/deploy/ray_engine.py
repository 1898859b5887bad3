"""An engine whose speed and faults a test chooses, for the replicas of a Ray cluster.

`DECODE_SECONDS` in their environment is what each batch takes. The word "lost" in an expression
takes the device away, as a broken GPU would.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import serve

from deploy.ray.application import application
from service.backends.arrays import ArrayFeatures
from service.backends.base import PendingLogits
from service.backends.fake import FakeBackend, FakeTokenizer, load_fake
from service.device import DeviceLost
from service.engine import Engine
from service.metrics import Metrics
from service.settings import Settings

_LOST = FakeTokenizer().encode(["lost"], 3).tokens[0, 1]


class _SlowBackend(FakeBackend):
    def decode(
        self, images: Sequence[ArrayFeatures], texts: Sequence[ArrayFeatures]
    ) -> PendingLogits:
        time.sleep(float(os.environ["DECODE_SECONDS"]))
        if any(_LOST in text.arrays[1] for text in texts):
            raise DeviceLost("taken away by a test")
        return super().decode(images, texts)


def load_slow_engine(settings: Settings) -> Engine:
    """The fake with its backend replaced."""
    return Engine(replace(load_fake(), backend=_SlowBackend()), settings, Metrics())


def build(options: Mapping[str, Any]) -> serve.Application:
    """`deploy.ray.application:build` with that engine."""
    return application(load_slow_engine, options)
