"""vLLM's own Prometheus metrics, of every engine in this process.

An engine of vLLM takes itself for the only one in its process: it registers its metrics in the default registry, and
removes those that it finds there. So what an engine registered moves to a registry of its own when the engine has
loaded, and the default registry shows them all.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class _Engines(Collector):
    """The metrics of all engines; those of one name as one family, told apart by their label `model_name`."""

    def __init__(self) -> None:
        self._registries: list[CollectorRegistry] = []

    def add(self, registry: CollectorRegistry) -> None:
        if not self._registries:
            REGISTRY.register(self)
        self._registries.append(registry)

    def remove(self, registry: CollectorRegistry) -> None:
        self._registries.remove(registry)
        if not self._registries:
            REGISTRY.unregister(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that the next engine may register the same names."""
        return []

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for registry in self._registries:
            for family in registry.collect():
                if known := families.get(family.name):
                    known.samples.extend(family.samples)
                else:
                    families[family.name] = family
        yield from families.values()


_ENGINES = _Engines()


def keep_metrics() -> CollectorRegistry:
    """Move what the engine that has just loaded registered to the registry that is returned, and go on showing it."""
    registry = CollectorRegistry()
    for collector in list(REGISTRY._collector_to_names):  # as vLLM finds its own
        if getattr(collector, "_name", "").startswith("vllm:"):
            REGISTRY.unregister(collector)
            registry.register(collector)
    _ENGINES.add(registry)
    return registry


def drop_metrics(registry: CollectorRegistry) -> None:
    """Show what `keep_metrics` returned no more."""
    _ENGINES.remove(registry)
