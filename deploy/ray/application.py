"""What Ray Serve deploys: `serve run deploy/ray/serve.yaml` calls `build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray import serve

from deploy.ray.replica import Replica
from service.engine import Engine
from service.loading import load_engine
from service.settings import Settings, load_settings

DEPLOYMENT = "segvlm"

# Seconds that Ray gives a replica beyond SEGVLM_SHUTDOWN_TIMEOUT, to stop the engine when all
# requests are answered.
_STOP_ENGINE = 5.0


def build(options: Mapping[str, Any]) -> serve.Application:
    """The application; `options` of Ray's deployments win over those that are chosen here."""
    return application(load_engine, options)


def application(
    load: Callable[[Settings], Engine], options: Mapping[str, Any]
) -> serve.Application:
    """The same with another way to make the replicas' engines.

    Reads the settings where Ray builds the application, which has the same SEGVLM_ variables as
    the replicas, so that Ray's limits follow ours. Raises SettingsError.
    """
    settings = load_settings()
    chosen = {
        "ray_actor_options": {"num_cpus": 1, "num_gpus": _gpus(settings.device)},
        **_limits(settings),
        **options,
    }
    deployment: Any = serve.deployment(serve.ingress()(Replica), name=DEPLOYMENT, **chosen)
    made: serve.Application = deployment.bind(load)
    return made


def _limits(settings: Settings) -> dict[str, Any]:
    """Ray's limits, so wide that ours decide."""
    return {
        # A full replica refuses with our 503 and its Retry-After; below that Ray would queue.
        "max_ongoing_requests": 2 * settings.max_queue,
        # Only while no replica takes requests do they wait in Ray's proxy.
        "max_queued_requests": 4 * settings.max_queue,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1},
        "graceful_shutdown_timeout_s": settings.shutdown_timeout + _STOP_ENGINE,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 2.0,
        "logging_config": {"enable_access_log": False},  # ours has the time of each stage
    }


def _gpus(device: str) -> int:
    """How many each replica gets; Ray shows it no other."""
    return int(device.startswith(("cuda", "tensorrt")))
