"""The dashboard that answers: how long do callers wait, and where does the time go?"""

from __future__ import annotations

from deploy.grafana.layout import Place, dashboard
from deploy.grafana.panels import Json, Query, heatmap, stat, time_series
from deploy.grafana.queries import (
    ERRORS,
    REFUSED,
    ROUTE,
    TOO_LATE,
    quantile,
    rate,
    requests,
    series,
    total,
)

REQUEST = "segvlm_request_seconds"
QUANTILES = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
STAGES = ("decode", "preprocess", "queue", "inference", "postprocess")


def latency() -> Json:
    """Numbers on top, the whole request below, then its stages, then what they wait for."""
    places = [
        *(Place(4 * i, 0, 4, 3, panel) for i, panel in enumerate(_numbers())),
        *(Place(6 * i, 3, 6, 6, panel) for i, panel in enumerate(_whole())),
        *(Place(8 * i, 9, 8, 6, _stages(q, name)) for i, (q, name) in enumerate(QUANTILES)),
        Place(0, 15, 9, 6, _heatmap()),
        *(Place(9 + 5 * i, 15, 5, 6, panel) for i, panel in enumerate(_waiting())),
    ]
    description = "How long requests take, and in which stage."
    return dashboard("Latency", description, places, by_route=True)


def _numbers() -> list[Json]:
    errors = f"{total(requests(ERRORS))} / {total(requests())}"
    return [
        stat(
            "Ready",
            "Replicas whose model is warmed up and accepts requests.",
            "none",
            Query(total(series("segvlm_model_ready")), "ready"),
            ((0, "red"), (1, "green")),
        ),
        stat(
            "Requests",
            "Requests to the chosen routes that ended, in a second.",
            "reqps",
            Query(total(requests()), "requests"),
        ),
        stat(
            "Errors",
            "Share of the requests that got a 5xx.",
            "percentunit",
            Query(errors, "errors"),
            ((0, "green"), (0.01, "orange"), (0.05, "red")),
        ),
        stat(
            "p99",
            "99 of 100 requests took less.",
            "s",
            Query(quantile(0.99, REQUEST, ROUTE), "p99"),
            ((0, "green"), (1, "orange"), (2, "red")),
        ),
        stat(
            "In flight",
            "Requests that are being handled now, uploads and Prometheus's own included.",
            "none",
            Query(total(series("segvlm_inflight_requests")), "in flight"),
        ),
        stat(
            "Error budget left",
            "Of what may fail in 30 days by the objective, all instances and routes together.",
            "percentunit",
            Query("segvlm:error_budget_left:ratio30d", "left"),
            ((0, "red"), (0.000001, "orange"), (0.25, "green")),
        ),
    ]


def _whole() -> list[Json]:
    everything = total(requests())
    return [
        time_series(
            "Request rate",
            "Requests to the chosen routes that ended, by instance.",
            "reqps",
            Query(total(requests(), "instance"), "{{instance}}"),
            stacked=True,
        ),
        time_series(
            "Error ratio",
            "Share of the requests that got a 5xx; of them those refused (503) and given up "
            "(504); and what the objective allows.",
            "percentunit",
            Query(f"{total(requests(ERRORS))} / {everything}", "all 5xx"),
            Query(f"{total(requests(REFUSED))} / {everything}", "503"),
            Query(f"{total(requests(TOO_LATE))} / {everything}", "504"),
            Query("segvlm:error_budget:ratio", "allowed"),
        ),
        time_series(
            "Request time",
            "From the first header to the last byte of the answer, refused requests included.",
            "s",
            *(Query(quantile(q, REQUEST, ROUTE), name) for q, name in QUANTILES),
        ),
        time_series(
            "Request time by route, p99",
            "99 of 100 requests to the route took less. Label Studio's hold several images.",
            "s",
            Query(quantile(0.99, REQUEST, ROUTE, by="route"), "{{route}}"),
        ),
    ]


def _stages(q: float, name: str) -> Json:
    return time_series(
        f"Stages, {name}",
        f"{name} of each stage, frames of streams included: queue for each pair of image and "
        "expression, inference for each batch, the others for each image.",
        "s",
        *(Query(quantile(q, f"segvlm_{stage}_seconds"), stage) for stage in STAGES),
        logarithmic=True,
    )


def _heatmap() -> Json:
    buckets = total(rate(f"{REQUEST}_bucket", ROUTE), "le")
    return heatmap(
        "Request time, all of it",
        "How many requests took how long; the darker the more.",
        "s",
        Query(buckets, "{{le}}"),
        cells="reqps",
    )


def _waiting() -> list[Json]:
    return [
        time_series(
            "Batch size",
            "Mean number of (image, expression) pairs in a batch.",
            "none",
            Query(
                f"{total(rate('segvlm_batch_size_sum'), 'instance')} / "
                f"{total(rate('segvlm_batch_size_count'), 'instance')}",
                "{{instance}}",
            ),
        ),
        time_series(
            "Queue",
            "Images accepted and not yet answered, and pairs that wait for the device.",
            "none",
            Query(total(series("segvlm_admitted_images")), "images accepted"),
            Query(total(series("segvlm_queue_depth")), "pairs waiting"),
        ),
        time_series(
            "Wait for the device",
            "From a pair's place in the queue to the start of its batch.",
            "s",
            *(Query(quantile(q, "segvlm_queue_seconds"), name) for q, name in QUANTILES),
        ),
    ]
