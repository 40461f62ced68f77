"""Where a training step's time goes: by stage, waiting for the card at every border, and by kernel."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.card import Row, synchronise

KERNELS = 12
PROFILED_STEP = 2


class Clock:
    """Seconds by stage; a stage inside another is not counted in that one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._last = time.perf_counter()

    def reset(self) -> None:
        """Forget what was counted; stages that are open go on."""
        self._charge()
        self.seconds.clear()

    def enter(self, stage: str) -> None:
        self._charge()
        self._open.append(stage)

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def watch(self, module: nn.Module, stage: str) -> None:
        """Count the module's forwards."""
        module.register_forward_pre_hook(lambda *_: self.enter(stage))
        module.register_forward_hook(lambda *_: self.leave())

    def _charge(self) -> None:
        synchronise()
        now = time.perf_counter()
        self.seconds[self._open[-1] if self._open else "other"] += now - self._last
        self._last = now


def counting_flops(loop: Any, found: list[int]) -> Any:
    """A trainer that counts the FLOP of its first step's forwards and backwards: of matrix products, convolutions and
    attention (whole, though half of a causal one is masked)."""

    class Counting(loop):  # type: ignore[misc]  # a class that is chosen at run time
        def training_step(self, *inputs: Any, **options: Any) -> Any:
            if found:
                return super().training_step(*inputs, **options)
            with FlopCounterMode(display=False) as counter:
                loss = super().training_step(*inputs, **options)
            found.append(counter.get_total_flops())
            return loss

    return Counting


def staged(loop: Any, clock: Clock) -> Any:
    """A RewardTrainer whose stages `clock` counts, from its second step on."""

    class Staged(loop):  # type: ignore[misc]  # a class that is chosen at run time
        def __init__(self, *inputs: Any, **options: Any) -> None:
            super().__init__(*inputs, **options)
            main, proxy = self.branches
            clock.watch(main.model, "main language model")
            clock.watch(main.model.vision, "main vision tower")
            if proxy is not None:
                clock.watch(proxy.model, "proxy")
            plain = self.accelerator.backward

            def backward(*inputs: Any, **options: Any) -> None:
                with clock.stage("backward"):
                    plain(*inputs, **options)

            self.accelerator.backward = backward

        def create_optimizer(self, model: Any = None) -> Any:
            optimiser = super().create_optimizer(model)
            optimiser.register_step_pre_hook(lambda *_: clock.enter("optimiser"))
            optimiser.register_step_post_hook(lambda *_: clock.leave())
            return optimiser

        def get_batch_samples(self, *inputs: Any, **options: Any) -> Any:
            with clock.stage("reading and encoding"):
                return super().get_batch_samples(*inputs, **options)

        def _batches(self, parts: Any) -> Iterator[Any]:
            batches = super()._batches(parts)
            while True:
                with clock.stage("collating"):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

        def _forward(self, *inputs: Any, **options: Any) -> Any:
            with clock.stage("to the card"):
                return super()._forward(*inputs, **options)

        def log(self, *inputs: Any, **options: Any) -> None:
            super().log(*inputs, **options)
            if self.state.global_step == 1:
                clock.reset()

    return Staged


def kernel_profile(loop: Any, rows: list[Row]) -> Any:
    """A trainer that profiles one step's forwards and backwards into `rows`: share and calls of the longest kernels."""

    class Profiled(loop):  # type: ignore[misc]  # a class that is chosen at run time
        def training_step(self, *inputs: Any, **options: Any) -> Any:
            if self.state.global_step != PROFILED_STEP:
                return super().training_step(*inputs, **options)
            on_card = torch.cuda.is_available()
            activities = [torch.profiler.ProfilerActivity.CPU]
            activities += [torch.profiler.ProfilerActivity.CUDA] if on_card else []
            with torch.profiler.profile(activities=activities) as profile:
                loss = super().training_step(*inputs, **options)
                synchronise()
            rows.extend(_longest(profile.key_averages(), on_card))
            return loss

    return Profiled


def _longest(events: Iterable[Any], on_card: bool) -> list[Row]:
    """On a card of its kernels alone: the operators that launched them carry the same time once more."""
    if on_card:
        events = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
    times = {event.key: event.self_device_time_total if on_card else event.self_cpu_time_total for event in events}
    calls = {event.key: event.count for event in events}
    total = sum(times.values())
    longest = sorted(times, key=lambda key: -times[key])[:KERNELS]
    return [{"kernel": key[:60], "share": times[key] / total, "calls": calls[key]} for key in longest]
