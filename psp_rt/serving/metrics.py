"""Figures for Prometheus: requests, pictures, queues, time by stage, memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

if TYPE_CHECKING:
    from .served import Served
    from .work import Answer

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROUTES = (
    "/",
    "/livez",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/v1/engines",
    "/v1/run",
    "/v1/encode",
    "/v1/generate",
)


class Metrics:
    """What a server counts."""

    def __init__(self, served: Sequence[Served]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "psp_rt_requests", "Requests, by path and status.", ("path", "status"), registry=self._registry
        )
        self._latency = Histogram(
            "psp_rt_request_seconds",
            "Time of a request.",
            ("path",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._pictures = Counter("psp_rt_pictures", "Pictures made.", ("engine",), registry=self._registry)
        self._stages = Histogram(
            "psp_rt_stage_seconds",
            "Time of a stage of the work on a request.",
            ("engine", "backend", "precision", "stage"),
            buckets=SECONDS,
            registry=self._registry,
        )
        pending = Gauge(
            "psp_rt_pending_requests", "Requests at work or waiting.", ("engine",), registry=self._registry
        )
        for each in served:
            pending.labels(each.name).set_function(lambda each=each: each.pending)  # type: ignore[misc]

    def finished(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        known = path if path in ROUTES else "/page" if path.startswith("/page/") else "other"
        self._requests.labels(known, str(status)).inc()
        self._latency.labels(known).observe(seconds)

    def answered(self, served: Served, answer: Answer) -> None:
        """Count what an engine did."""
        self._pictures.labels(served.name).inc(len(answer.results))
        for stage, seconds in answer.times.seconds.items():
            self._stages.labels(served.name, served.backend, served.precision, stage).observe(max(seconds, 0))

    def text(self) -> bytes:
        """Return all figures in Prometheus' format."""
        return generate_latest(self._registry)
