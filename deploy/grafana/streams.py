"""The dashboard that answers: do streams get their masks, and how old are these?"""

from __future__ import annotations

from deploy.grafana.layout import dashboard, ninths
from deploy.grafana.panels import Json, Query, bar_gauge, heatmap, time_series
from deploy.grafana.queries import quantile, rate, rates_that_occur, series, total

LAG = "segvlm_frame_seconds"
QUANTILES = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
ENDS = ("answered", "dropped", "failed")
COLOURS = (
    ("^received$", "blue"),
    ("^answered$", "green"),
    ("^dropped$", "yellow"),
    ("^failed$", "red"),
)


def streams() -> Json:
    """Streams on the left, their frames in the middle, the lag on the right."""
    rows = (
        (_open(), _frames(), _lag()),
        (_answered(), _shares(), _all_lags()),
        (_ended(), _failed(), _sums()),
    )
    return dashboard("Streams", "What became of every frame, and how soon.", ninths(rows))


def _frames_total(end: str) -> str:
    return f"segvlm_frames_{end}_total"


def _open() -> Json:
    return time_series(
        "Open streams",
        "WebSockets at /stream, by instance; how many there may be is SEGVLM_MAX_STREAMS.",
        "none",
        Query(total(series("segvlm_streams_open"), "instance"), "{{instance}}"),
        stacked=True,
    )


def _frames() -> Json:
    return time_series(
        "Frames",
        "Frames that arrived, in a second. Each is answered, dropped for a newer one, or fails.",
        "suffix:/s",
        *(Query(total(rate(_frames_total(end))), end) for end in ("received", *ENDS)),
        colours=COLOURS,
    )


def _lag() -> Json:
    return time_series(
        "Lag",
        "From a frame's arrival until its masks were sent, less its wait for its API key's rate.",
        "s",
        *(Query(quantile(q, LAG), name) for q, name in QUANTILES),
    )


def _answered() -> Json:
    frames = total(rate(_frames_total("answered")), "instance")
    opened = total(series("segvlm_streams_open"), "instance")
    return time_series(
        "Answered for each stream",
        "Frames answered in a second, shared out among the streams that are open.",
        "suffix:/s",
        Query(f"{frames} / ({opened} > 0)", "{{instance}}"),
    )


def _shares() -> Json:
    received = total(rate(_frames_total("received")))
    return time_series(
        "What became of frames",
        "Shares of what arrived. Cameras send more than is answered: dropping is no fault.",
        "percentunit",
        *(Query(f"{total(rate(_frames_total(end)))} / {received}", end) for end in ENDS),
        colours=COLOURS,
    )


def _all_lags() -> Json:
    return heatmap(
        "Lag, all of it",
        "How many frames waited how long for their masks; the darker the more.",
        "s",
        Query(total(rate(f"{LAG}_bucket"), "le"), "{{le}}"),
        cells="suffix:/s",
    )


def _ended() -> Json:
    return time_series(
        "Streams ended or refused, by how",
        "closed: by the client. docs/api.md says what the others mean.",
        "suffix:/s",
        Query(rates_that_occur("segvlm_streams_total", "end"), "{{end}}"),
    )


def _failed() -> Json:
    return time_series(
        "Frames without masks, by reason",
        "Frames that got an error, or whose client had left (disconnected).",
        "suffix:/s",
        Query(rates_that_occur("segvlm_frames_failed_total", "reason"), "{{reason}}"),
    )


def _sums() -> Json:
    failed = series("segvlm_frames_failed_total")
    return bar_gauge(
        "Frames in the shown time",
        "What became of them; those that failed by reason.",
        "short",
        *(
            Query(f"sum(increase({series(_frames_total(end))}[$__range]))", end, instant=True)
            for end in ENDS[:2]
        ),
        Query(
            f"sort_desc(sum by (reason) (increase({failed}[$__range])) > 0)",
            "{{reason}}",
            instant=True,
        ),
    )
