"""The published code's order of forwards, on our model, data, optimiser and loss: what packing is measured against.

Every pair of a prompt is an example of its own, and its chosen and rejected sequences are forwarded apart, by the main
branch and by the proxy: with K responses of different quality each image is encoded K(K-1) times. Left out, in favour
of the published code: its logits over the whole vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from beholder.modeling.inputs import EncodedGroup, to_device
from beholder_training.batching import Item
from beholder_training.branch import Branch
from beholder_training.losses import bradley_terry
from beholder_training.trainer import RewardTrainer

Example = tuple[Item, int, int]  # a prompt, and the numbers of the chosen and the rejected response


class PublishedTrainer(RewardTrainer):
    """`RewardTrainer` but for the forwards. Both branches must be padded (`packed` False), a group a response."""

    pairs_a_forward = 4

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As RewardTrainer's, for one process and a weighting of each pair alone."""
        model.train()
        examples = [(item, chosen, rejected) for item in inputs["items"] for chosen, rejected in item.pairs]
        loss = torch.zeros((), device=self.args.device)
        for start in range(0, len(examples), self.pairs_a_forward):
            part = self._part(model, examples[start : start + self.pairs_a_forward]) / len(examples)
            self.accelerator.backward(part)
            loss += part.detach()
        return loss

    def _part(self, model: Any, examples: list[Example]) -> Tensor:
        """The sum of both branches' losses over a few pairs."""
        chosen, proxy_chosen = self._rewards(model, [(item, chosen) for item, chosen, _ in examples])
        rejected, proxy_rejected = self._rewards(model, [(item, rejected) for item, _, rejected in examples])
        margin, proxy_margin = chosen - rejected, proxy_chosen - proxy_rejected
        ids = torch.arange(len(examples))
        weights = self.criterion.weights(margin, proxy_margin, ids, self.state.global_step)
        return (weights * bradley_terry(margin)).sum() + bradley_terry(proxy_margin).sum()

    def _rewards(self, model: Any, responses: list[tuple[Item, int]]) -> tuple[Tensor, Tensor]:
        main, proxy = self.branches
        assert proxy is not None
        ours = self._batch(main, [item.main[number] for item, number in responses])
        theirs = self._batch(proxy, [item.proxy[number] for item, number in responses])
        rewards: tuple[Tensor, Tensor] = model(ours, theirs)
        return rewards

    def _batch(self, branch: Branch, groups: list[EncodedGroup]) -> Any:
        return to_device(branch.collate_groups(groups), self.args.device)
