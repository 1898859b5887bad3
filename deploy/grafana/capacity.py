"""The dashboard that answers: how much more can these replicas take, and what will run out?"""

from __future__ import annotations

from deploy.grafana.layout import dashboard, ninths
from deploy.grafana.panels import Json, Query, table, time_series
from deploy.grafana.queries import rate, series, total

BY_INSTANCE = "{{instance}}"


def capacity() -> Json:
    """Three rows: the device, the process, the places."""
    rows = (_device(), _process(), _replicas())
    return dashboard("Capacity", "What is used of what there is.", ninths(rows))


def _device() -> list[Json]:
    hits, misses = rate("segvlm_cache_hits_total"), rate("segvlm_cache_misses_total")
    found = total(hits, "cache")
    return [
        time_series(
            "Device time",
            "Share of the time in which the device works on a batch. At 100 % it is full.",
            "percentunit",
            Query(rate("segvlm_device_busy_seconds_total"), BY_INSTANCE),
            maximum=1,
        ),
        time_series(
            "Work",
            "Images answered, frames included, those that had to be encoded, pairs of image and "
            "expression, and batches, in a second.",
            "suffix:/s",
            Query(total(rate("segvlm_postprocess_seconds_count")), "images answered"),
            Query(total(rate("segvlm_cache_misses_total", 'cache="image"')), "images encoded"),
            Query(total(rate("segvlm_batch_size_sum")), "pairs"),
            Query(total(rate("segvlm_batch_size_count")), "batches"),
        ),
        time_series(
            "Found in a cache",
            "Share of the look-ups of an image's or an expression's features that found them.",
            "percentunit",
            Query(f"{found} / ({found} + {total(misses, 'cache')})", "{{cache}}"),
            maximum=1,
        ),
    ]


def _process() -> list[Json]:
    return [
        time_series(
            "Main memory",
            "Of each process, and what its caches hold together (on a GPU: in its memory).",
            "bytes",
            Query(series("process_resident_memory_bytes", 'job="segvlm"'), BY_INSTANCE),
            Query(total(series("segvlm_cache_bytes"), "instance"), "caches {{instance}}"),
        ),
        time_series(
            "GPU memory",
            "allocated: live tensors; reserved: kept by torch; used: by all processes; total: what "
            "there is. No data where the device has no memory of its own.",
            "bytes",
            Query(series("segvlm_gpu_memory_bytes"), "{{kind}} {{instance}}"),
        ),
        time_series(
            "Processor",
            "Cores that each process keeps busy.",
            "suffix: cores",
            Query(rate("process_cpu_seconds_total", 'job="segvlm"'), BY_INSTANCE),
        ),
    ]


def _replicas() -> list[Json]:
    seconds, pairs = "segvlm_inference_seconds_sum", "segvlm_batch_size_sum"
    info = series("segvlm_model_info")
    started = series("process_start_time_seconds", 'job="segvlm"')
    return [
        time_series(
            "Places taken",
            "Images accepted and not yet answered, of those that may be. At 100 % new requests "
            "get a 503.",
            "percentunit",
            Query(
                f"{series('segvlm_admitted_images')} / {series('segvlm_admitted_images_limit')}",
                BY_INSTANCE,
            ),
            maximum=1,
        ),
        time_series(
            "Model time for a pair",
            "Seconds of the model, shared out among the pairs of its batches.",
            "s",
            Query(
                f"{total(rate(seconds), 'instance')} / {total(rate(pairs), 'instance')}",
                BY_INSTANCE,
            ),
        ),
        table(
            "Replicas",
            "What each instance serves, and since when it runs.",
            "s",
            Query(
                f"max by (instance, name, version, backend) ((time() - {started}) "
                f"* on (job, instance) group_left (name, version, backend) {info})",
                BY_INSTANCE,
                instant=True,
            ),
            {
                "instance": "Instance",
                "name": "Model",
                "version": "Version",
                "backend": "Backend",
                "Value": "Up for",
            },
        ),
    ]
