"""Counts and times for Prometheus, in a registry of their own."""

from collections.abc import Callable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from experiments.serving.driving import Event

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """What /metrics shows.

    Args:
        busy, waiting: read at the moment of a look.
    """

    content_type = prometheus_client.CONTENT_TYPE_LATEST

    def __init__(
        self, *, model: str, fingerprint: str, slots: int, busy: Callable[[], float], waiting: Callable[[], float]
    ) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter("plumbline_requests", "HTTP requests", ("path", "outcome"), registry=r)
        self.prompt_tokens = Counter("plumbline_prompt_tokens", "tokens of prompts", registry=r)
        self.cached_tokens = Counter("plumbline_cached_prompt_tokens", "of them, found computed", registry=r)
        self.hits = Counter("plumbline_prefix_cache_hits", "prompts that began with a computed prefix", registry=r)
        self.tokens = Counter("plumbline_generated_tokens", "tokens of answers", registry=r)
        self.first_token = Histogram(
            "plumbline_first_token_seconds", "from request to first token", buckets=SECONDS, registry=r
        )
        self.total = Histogram("plumbline_request_seconds", "from request to end", buckets=SECONDS, registry=r)
        Gauge("plumbline_busy_slots", "slots that write", registry=r).set_function(busy)
        Gauge("plumbline_waiting", "answers that wait for a slot", registry=r).set_function(waiting)
        Gauge("plumbline_slots", "slots", registry=r).set(slots)
        Gauge("plumbline_info", "what is served", ("model", "fingerprint"), registry=r).labels(model, fingerprint).set(
            1
        )
        self.num_tokens, self.num_requests = 0, 0

    def count_event(self, event: Event) -> None:
        self.tokens.inc(len(event.tokens))
        self.num_tokens += len(event.tokens)

    def count_prompt(self, num_tokens: int, num_cached: int) -> None:
        self.prompt_tokens.inc(num_tokens)
        self.cached_tokens.inc(num_cached)
        self.hits.inc(num_cached > 0)

    def count_request(self, path: str, outcome: str, seconds: float) -> None:
        self.requests.labels(path, outcome).inc()
        self.total.observe(seconds)
        self.num_requests += 1

    def text(self) -> bytes:
        return prometheus_client.generate_latest(self.registry)
