"""Numbers as the text that Prometheus scrapes, for those who are scraped again and again.

prometheus_client makes an object of each sample, and spells its name and labels anew each time: nearly all that a
scrape costs. Here it is asked once for each series, by an example, and from then on only the number is written. So the
text is its own, byte for byte, whatever labels have in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from operator import itemgetter
from typing import Any, cast

from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from gateway.counts import Histogram

Encode = Callable[[Collector], bytes]
Labels = tuple[str, ...]
OUTDATED = 100
"""Series that may be known and not in a scrape: endpoints come and go."""
UNITS = ("seconds", "bytes")
COMMENTS = ("# HELP ", "# TYPE ", "# UNIT ")
spelled = lru_cache(maxsize=10_000)(floatToGoString)
"""A number as Go writes it. Most are small and whole, and come again."""


class Buckets:
    """Fewer bounds than a histogram has, each one of its own: what is counted below it is exact."""

    def __init__(self, bounds: Sequence[float], every: int, *, first: float, last: float) -> None:
        chosen = [i for i in range(0, len(bounds), every) if first <= bounds[i] <= last]
        self.names = [*(str(bounds[i]) for i in chosen), "+Inf"]
        self._chosen: Callable[[Sequence[int]], tuple[int, ...]] = itemgetter(*chosen, len(bounds))

    def heights(self, histogram: Histogram) -> tuple[int, ...]:
        """How many are below each of them."""
        return self._chosen([*accumulate(histogram._buckets)])  # noqa: SLF001 - a snapshot has no buckets

    def of(self, histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
        """Name and height of each, and the sum."""
        return list(zip(self.names, self.heights(histogram), strict=True)), histogram._sum  # noqa: SLF001


class Read(Collector):
    """What was collected already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """That."""
        return self._metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Series that differ in their labels alone. `buckets`: of a histogram."""

    kind: Callable[..., Metric]
    name: str
    means: str
    labels: Sequence[str]
    buckets: Buckets | None = None

    def metric(self) -> Any:
        """It as prometheus_client has it, without any series yet."""
        unit = next((unit for unit in UNITS if self.name.endswith(f"_{unit}")), "")
        more = {} if self.kind is CounterMetricFamily else {"unit": unit}
        return self.kind(f"gateway_{self.name}", f"{self.means}.", labels=self.labels, **more)


class Samples:
    """A family in one scrape, as prometheus_client collects it."""

    def __init__(self, family: Family) -> None:
        self.metric = family.metric()
        self._buckets = family.buckets

    def add(self, labels: Labels, number: float) -> None:
        """A series of it."""
        self.metric.add_metric(labels, number)

    def observe(self, labels: Labels, histogram: Histogram) -> None:
        """A histogram of it."""
        self.metric.add_metric(labels, *cast("Buckets", self._buckets).of(histogram))


class Spelling:
    """How the series of a family are written, from scrape to scrape; `encode` is prometheus_client's."""

    def __init__(self, family: Family, encode: Encode) -> None:
        self.family = family
        self.encode = encode
        self.head = "".join(f"{line}\n" for line in self._lines(family.metric()) if line.startswith(COMMENTS))
        self.names: dict[Labels, str] = {}
        self._bars: dict[Labels, list[str]] = {}
        self._still: dict[Labels, tuple[float, int, str]] = {}  # histograms that did not move are written already

    def name(self, labels: Labels) -> str:
        """Name and labels of a series, learnt by an example."""
        example = self.family.metric()
        example.add_metric(labels, 0)
        (name,) = self._names(example)
        self.names[labels] = name
        return name

    def histogram(self, labels: Labels, histogram: Histogram) -> str:
        """The lines of a histogram."""
        total, count = histogram._sum, sum(histogram._buckets)  # noqa: SLF001
        before = self._still.get(labels)
        if before is not None and before[0] == total and before[1] == count:
            return before[2]
        buckets = cast("Buckets", self.family.buckets)
        names = self._bars.get(labels)
        if names is None:
            example = self.family.metric()
            example.add_metric(labels, *buckets.of(histogram))
            names = self._bars[labels] = self._names(example)
        numbers = (*buckets.heights(histogram), count, total)
        text = "".join([f"{name} {spelled(number)}\n" for name, number in zip(names, numbers, strict=True)])
        self._still[labels] = (total, count, text)
        return text

    def forget(self, written: int) -> None:
        """Forget what comes no more: a scrape had so many series."""
        if len(self.names) > 2 * written + OUTDATED:
            self.names.clear()

    def _names(self, example: Metric) -> list[str]:
        return [line.rpartition(" ")[0] for line in self._lines(example) if line and not line.startswith("# ")]

    def _lines(self, example: Metric) -> list[str]:
        return self.encode(Read([example])).decode().split("\n")  # nothing else ends a line: labels may have it


class Lines:
    """A family in one scrape, as text."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._names = spelling.names
        self._lines: list[str] = []

    def add(self, labels: Labels, number: float) -> None:
        """A series of it."""
        name = self._names.get(labels) or self._spelling.name(labels)
        self._lines.append(f"{name} {spelled(number)}\n")

    def observe(self, labels: Labels, histogram: Histogram) -> None:
        """A histogram of it."""
        self._lines.append(self._spelling.histogram(labels, histogram))

    def text(self) -> str:
        """All that was written."""
        self._spelling.forget(len(self._lines))
        return "".join((self._spelling.head, *self._lines))
