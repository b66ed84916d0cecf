"""What a server counts, in the text format of Prometheus; names and units are in docs/serving.md."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by path and status; 499: the client went away.")
        self.in_flight = Gauge(
            "vlm_r3_requests_in_flight", "Chat requests being worked on.", registry=self._registry
        )
        self.queue_seconds = self._histogram("queue_seconds", "From a whole request to the engine.")
        self.first_text_seconds = self._histogram(
            "time_to_first_token_seconds", "From a whole request to its first text."
        )
        self.turn_seconds = self._histogram("turn_seconds", "One turn: from the engine's order to its piece.")
        self.request_seconds = self._histogram("request_seconds", "From a whole request to its whole answer.")
        self.given_tokens = self._counter("given_tokens", "Tokens of questions, crops and messages.", ())
        self.sampled_tokens = self._counter("sampled_tokens", "Tokens that the model sampled.", ())
        self.answers = self._counter("answers", "Answers by how they ended.", ("stop",))
        self.crops = self._counter("crops", "Crops that the model was given.", ())
        self.protocol_errors = self._counter("protocol_errors", "Refused crop commands.", ("error",))
        self.aborted = self._counter("aborted", "Answers given up: client gone, time limit, shutdown.", ())

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _counter(self, name: str, purpose: str, labels: tuple[str, ...] = ("path", "status")) -> Counter:
        return Counter(f"vlm_r3_{name}", purpose, labels, registry=self._registry)

    def _histogram(self, name: str, purpose: str) -> Histogram:
        return Histogram(f"vlm_r3_{name}", purpose, buckets=_SECONDS, registry=self._registry)
