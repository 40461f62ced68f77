"""The training loop: the Hugging Face Trainer over two branches that share nothing but the batch.

One optimiser step sees `batch_prompts * accumulation` prompts a process, with all their responses; the loss is the mean
over all their pairs on all processes. The step is forwarded in micro-batches (batching.py) inside one `training_step`,
so their number may differ from step to step. The proxy has its own parameter group, schedule and gradient clip, so
nothing that it does reaches the main branch but through the pairs' weights.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from beholder.errors import DataError
from beholder.modeling.inputs import to_device
from beholder_training.batching import (
    Collator,
    Indexed,
    Item,
    MicroBatch,
    micro_batch,
    split,
    spread,
    without_pairs,
)
from beholder_training.branch import Branch
from beholder_training.branches import TwoBranches
from beholder_training.callbacks import ClipEachBranch, KeepIntervals, StopOnSigterm, WholeState
from beholder_training.config import TrainingConfig
from beholder_training.data import Record
from beholder_training.errors import TrainingDiverged
from beholder_training.losses import bradley_terry
from beholder_training.objective import Objective, margins
from beholder_training.optimisation import make_optimiser, make_schedule
from beholder_training.progress import ProgressBar
from beholder_training.vision_cache import VisionCache

WEIGHT_QUANTILES = (0.05, 0.95)


class RewardTrainer(Trainer):
    """Bradley-Terry on all pairs, weighted by how much the proxy fails on each."""

    def __init__(
        self,
        config: TrainingConfig,
        main: Branch,
        proxy: Branch | None,
        warmup: int,
        arguments: TrainingArguments,
        data: Sequence[Record],
        vision_caches: tuple[VisionCache | None, VisionCache | None] = (None, None),
    ) -> None:
        """`warmup` is how many steps train the proxy alone before the others; `vision_caches` are the branches'."""
        self.config = config
        self.warmup = warmup
        self.branches = (main, proxy)
        self.criterion = Objective.from_config(config)
        self.stopper = StopOnSigterm()
        self.vision_caches = vision_caches
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}
        self._records = len(data)
        self._weights: list[Tensor] = []
        self._items: list[Item] = []
        self._step_sees_pictures = False
        super().__init__(
            model=TwoBranches(main, proxy, config.freeze_vision),
            args=arguments,
            train_dataset=Indexed(data),
            data_collator=Collator(main, proxy),
            callbacks=[
                ClipEachBranch(config.max_grad_norm, lambda: ", ".join(item.name for item in self._items)),
                KeepIntervals(),
                WholeState(),
                self.stopper,
                ProgressBar(config.output.name),
            ],
        )
        self.remove_callback(PrinterCallback)

    def create_accelerator_and_postprocess(self) -> None:
        """Under FSDP2 in bf16, reduce gradients in float32 and leave outputs as they are: rewards are float32.

        Raises DataError when sharding is set and accelerate leaves it off, which it does without a word.
        """
        super().create_accelerator_and_postprocess()
        if self.config.fsdp and not self.is_fsdp_enabled:
            raise DataError(
                "fsdp shards over GPUs, a process each, which torchrun or accelerate launch starts; this is "
                f"process {self.args.process_index + 1} of {self.args.world_size}, on the device {self.args.device}: "
                "start the run with torchrun (a single process will do) on GPUs, or set fsdp=false"
            )
        if self.is_fsdp_enabled and self.args.bf16:
            from torch.distributed.fsdp import MixedPrecisionPolicy

            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = policy

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one optimiser step. Returns this process's part of the loss, times the processes."""
        model.train()
        self._items = self._own(inputs["items"])
        parts, total = self._plan(self._items)
        weights = self._step_weights(model, parts)
        loss = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(self._batches(parts)):
            last = number == len(parts) - 1
            # Sharded, gradients are reduced after every part: held back, each process would keep them whole.
            with nullcontext() if last or self.is_fsdp_enabled else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    rewards, proxy_rewards = self._forward(model, batch)
                part = self._loss(batch, rewards, proxy_rewards, weights[number] if weights else None) / total
                self.accelerator.backward(part)
            loss += part.detach()
        return loss

    def _own(self, items: list[Item]) -> list[Item]:
        """This process's items of the step: accelerate fills an epoch's last one up with records of its first.

        A process that has none there forwards all the same, as the others wait for it.
        """
        prompts = self.config.step_prompts
        everywhere = prompts * self.args.world_size
        step = self.state.global_step % math.ceil(self._records / everywhere)
        left = self._records - step * everywhere - self.args.process_index * prompts
        return items[:left] if left > 0 else [without_pairs(items[0])]

    def _plan(self, items: list[Item]) -> tuple[list[list[Item]], float]:
        """The step's micro-batches, equally many on every process, and the step's pairs over the number of processes.

        The processes also agree here on whether to stop after the step, and whether any of them sees a picture in it.
        """
        parts = split(items, self.config.batch_prompts, self.config.token_budget)
        pairs = sum(len(item.pairs) for item in items)
        pictures = any(item.sees_pictures for item in items)
        counts = torch.tensor([[pairs, len(parts), self.stopper.received, pictures]], device=self.args.device)
        gathered = self.accelerator.gather(counts)
        self.stopper.agreed = bool(gathered[:, 2].any())
        self._step_sees_pictures = bool(gathered[:, 3].any())
        share = gathered[:, 0].sum().item() / self.accelerator.num_processes  # DDP and FSDP average over processes
        return spread(parts, int(gathered[:, 1].max())), share

    def _batches(self, parts: list[list[Item]]) -> Iterator[MicroBatch]:
        for items in parts:
            yield micro_batch(items, *self.branches)

    @property
    def _warming_up(self) -> bool:
        return self.state.global_step < self.warmup

    def _forward(self, model: Any, batch: MicroBatch, main: bool = True) -> tuple[Tensor | None, Tensor | None]:
        """Rewards (responses,) of each branch; of the main branch only when `main` and not while the proxy warms up."""
        forwards_main = main and not self._warming_up
        cache, proxy_cache = self.vision_caches
        if cache is not None and forwards_main:
            cache.expect(*batch.main_pictures)
        if proxy_cache is not None:
            proxy_cache.expect(*batch.proxy_pictures)
        inputs = to_device(batch.main, self.args.device) if forwards_main else None
        proxy_inputs = None if batch.proxy is None else to_device(batch.proxy, self.args.device)
        ties_pictures = self.is_fsdp_enabled and self._step_sees_pictures
        rewards: tuple[Tensor | None, Tensor | None] = model(inputs, proxy_inputs, ties_pictures)
        return rewards

    @torch.no_grad()
    def _step_weights(self, model: Any, parts: list[list[Item]]) -> list[Tensor] | None:
        """The weights of each micro-batch's pairs, where they depend on all pairs of the step and the step is split.

        That takes one more forward without gradient of what the weighting reads; the weights are then those of the
        whole step, whatever the split.
        """
        weighting = self.criterion.weighting
        whole = len(parts) == 1 and self.accelerator.num_processes == 1
        if not weighting.over_step or whole or self._warming_up:
            return None
        rows = []
        for batch in self._batches(parts):
            with self.compute_loss_context_manager():
                rewards, proxy_rewards = self._forward(model, batch, main=weighting.reads_main)
            none = torch.zeros(len(batch.pairs), device=self.args.device)
            both = [none if each is None else margins(each, batch.pairs) for each in (rewards, proxy_rewards)]
            # In float64, which holds ids exactly.
            columns = [column.double() for column in (*both, batch.ids.to(self.args.device))]
            rows.append(torch.stack(columns, dim=1))
        everywhere = self._gather_rows(torch.cat(rows))
        ids = everywhere[:, 2].long()
        ours, theirs = everywhere[:, 0].float(), everywhere[:, 1].float()
        weights = self.criterion.weights(ours, theirs, ids, self.state.global_step)
        by_id = dict(zip(ids.tolist(), weights.tolist(), strict=True))
        return [torch.tensor([by_id[int(pair)] for pair in part[:, 2]], device=self.args.device) for part in rows]

    def _gather_rows(self, rows: Tensor) -> Tensor:
        """`rows` (n, 3) of every process, whose n differ."""
        counts = self.accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
        padded = torch.nn.functional.pad(rows, (0, 0, 0, max(counts) - len(rows)))
        chunks = self.accelerator.gather(padded).reshape(len(counts), max(counts), rows.shape[1])
        return torch.cat([chunk[:count] for chunk, count in zip(chunks, counts, strict=True)])

    def _loss(
        self, batch: MicroBatch, rewards: Tensor | None, proxy_rewards: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        """The sum over the batch's pairs of both branches' terms; a scalar. Raises TrainingDiverged."""
        pairs, seen = batch.pairs.to(self.args.device), dict[str, Tensor]()
        margin = None if rewards is None else margins(rewards, pairs)
        proxy_margin = None if proxy_rewards is None else margins(proxy_rewards, pairs)
        terms = torch.zeros(len(pairs), device=self.args.device)
        if proxy_margin is not None:
            proxy_terms = bradley_terry(proxy_margin)
            terms = terms + proxy_terms
            seen |= {"proxy_loss": proxy_terms, "proxy_accuracy": (proxy_margin > 0).float()}
        if rewards is not None and margin is not None:
            if weights is None:
                ids = batch.ids.to(margin.device)
                weights = self.criterion.weights(margin, proxy_margin, ids, self.state.global_step)
            terms = terms + self.criterion.main_terms(rewards, pairs, batch.gaps.to(margin.device), weights)
            seen |= {"main_loss": bradley_terry(margin), "accuracy": (margin > 0).float(), "weight": weights}
        if not (finite := terms.isfinite()).all():
            names = batch.names(~finite.cpu())
            raise TrainingDiverged(f"the loss is not finite at step {self.state.global_step + 1}, on records {names}")
        self._observe(seen)
        # Without pairs (see `spread`) the rewards still stand in the graph: every process must have a backward.
        return terms.sum() + sum(0.0 * each.sum() for each in (rewards, proxy_rewards) if each is not None)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW; the proxy's parameters are a group of their own."""
        self.optimizer = make_optimiser(self.config, self.model)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Each branch warms up and decays over the steps in which it is trained."""
        optimizer = optimizer or self.optimizer
        self.lr_scheduler = make_schedule(optimizer, self.config.warmup_ratio, self.warmup, num_training_steps)
        return self.lr_scheduler

    def _observe(self, seen: dict[str, Tensor]) -> None:
        """On the device: reading a number there would hold up the backward until the forward is done."""
        for name, values in seen.items():
            self._sums[name] = self._sums.get(name, 0.0) + values.detach().sum(dtype=torch.float64)
            self._counts[name] = self._counts.get(name, 0) + len(values)
        if "weight" in seen:
            self._weights.append(seen["weight"].detach().float())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means over this process's pairs since the last log, and two quantiles of their weights."""
        means = {name: round(float(self._sums[name]) / count, 6) for name, count in self._counts.items() if count}
        quantiles = {}
        if self._weights and (weights := torch.cat(self._weights)).numel():
            quantiles = {f"weight_{level}": round(float(weights.quantile(level)), 6) for level in WEIGHT_QUANTILES}
        self._sums.clear()
        self._counts.clear()
        self._weights.clear()
        super().log({**logs, **means, **quantiles}, start_time)
