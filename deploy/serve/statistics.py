"""What a model has done so far, in the shape of Triton's statistics extension. Kept by the event loop alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, final


@final
@dataclass
class Duration:
    """How often something happened, and nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """``count`` more, ``ns`` together."""
        self.count += count
        self.ns += ns

    def to_json(self) -> dict[str, int]:
        """``{"count", "ns"}``."""
        return {"count": self.count, "ns": self.ns}


@final
@dataclass(frozen=True)
class Timing:
    """Nanoseconds one run took: gathering its images into one array, the model, and handing out the logits."""

    input: int
    infer: int
    output: int


@final
@dataclass
class _Runs:
    """Runs of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def add(self, timing: Timing) -> None:
        self.compute_input.add(timing.input)
        self.compute_infer.add(timing.infer)
        self.compute_output.add(timing.output)

    def to_json(self) -> dict[str, Any]:
        return {name: duration.to_json() for name, duration in vars(self).items()}


@final
@dataclass
class Statistics:
    """One model version's counters.

    ``images`` counts what was computed, ``runs`` how often the model ran for it; ``success`` and ``fail`` are requests
    with their whole time, ``queue`` their waiting.
    """

    images: int = 0
    last_inference: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    runs: dict[int, _Runs] = field(default_factory=dict)

    def ran(self, images: int, waits: list[int], timing: Timing) -> None:
        """One run of ``images`` images for requests that waited ``waits`` nanoseconds."""
        self.images += images
        self.last_inference = time.time_ns() // 1_000_000
        self.queue.add(sum(waits), len(waits))
        self.runs.setdefault(images, _Runs()).add(timing)

    @property
    def seconds_an_image(self) -> float:
        """Mean time in the model; 0 before the first run."""
        ns = sum(runs.compute_infer.ns for runs in self.runs.values())
        return ns / 1e9 / self.images if self.images else 0.0

    def to_json(self) -> dict[str, Any]:
        """As Triton's statistics extension names it, less the model's name and version."""
        total = _Runs()
        for runs in self.runs.values():
            for name, duration in vars(runs).items():
                getattr(total, name).add(duration.ns, duration.count)
        return {
            "last_inference": self.last_inference,
            "inference_count": self.images,
            "execution_count": total.compute_infer.count,
            "inference_stats": {
                "success": self.success.to_json(),
                "fail": self.fail.to_json(),
                "queue": self.queue.to_json(),
                **total.to_json(),
            },
            "batch_stats": [{"batch_size": size, **runs.to_json()} for size, runs in sorted(self.runs.items())],
        }
