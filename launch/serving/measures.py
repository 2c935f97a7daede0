"""What a service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Measures:
    """Counters of one service."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("dipole_requests", "Requests, by path and status.", ["path", "status"], registry=own)
        self.seconds = Histogram(
            "dipole_request_seconds", "From a search's arrival to its answer.", registry=own, buckets=_SECONDS
        )
        self.batch = Histogram("dipole_batch_texts", "Texts searched together.", registry=own, buckets=_TEXTS)
        self.waiting = Gauge("dipole_waiting_texts", "Texts that wait for their batch.", registry=own)
        self.version = Gauge("dipole_index_version", "The index version that is served.", registry=own)
        self.swaps = Counter("dipole_index_swaps", "Index versions taken while serving.", registry=own)
        self.refused = Counter(
            "dipole_index_refused", "Index versions not taken: damaged, or of another snapshot.", registry=own
        )
