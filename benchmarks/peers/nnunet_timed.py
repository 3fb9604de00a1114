"""nnU-Net's trainer with its learning rate fitted to a time, for use inside the environment of nnU-Net.

nnunet.py copies this file into nnU-Net's folder of trainers, where it is found by the name of the class. All else is nnU-Net's own: network, loss,
sampling, augmentation, optimiser. Its 1,000 epochs of 250 iterations take days on a CPU; broken off early they end with the
learning rate still at its highest, which would be an unfair peer. Here the polynomial falls with the share of the time that
has passed, iteration by iteration, so that it reaches zero when the time is over. The pseudo Dice, which chooses nothing in
the end, is computed on one batch instead of fifty. Two variables set it up: ``PEER_END``, seconds since 1970, and
``PEER_THREADS``; nnU-Net itself would take every core.
"""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from time import time
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

#: Parts of the time after each of which nnU-Net's log gets a line.
_EPOCHS = 20


class nnUNetTrainerTimed(nnUNetTrainer):  # noqa: N801  (nnU-Net finds trainers by such names)
    """nnU-Net that ends at a given time with its schedule finished."""

    def run_training(self) -> None:
        """Train until the time is over, then save the last state as nnU-Net does."""
        torch.set_num_threads(int(os.environ["PEER_THREADS"]))
        torch.manual_seed(int(os.environ.get("PEER_SEED", "0")))
        self.on_train_start()
        start, end = time(), float(os.environ["PEER_END"])
        self.num_epochs, iterations, longest = _EPOCHS, 0, 0.0
        for epoch in range(_EPOCHS):
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs: list[dict[str, Any]] = []
            epoch_end = start + (end - start) * (epoch + 1) / _EPOCHS
            # An iteration that would end after the time is not begun.
            while not outputs or time() + longest < epoch_end:
                before = time()
                self._set_rate(min((before - start) / (end - start), 1.0))
                outputs.append(self.train_step(next(self.dataloader_train)))
                longest = max(longest * 0.9, time() - before)
            iterations += len(outputs)
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val))])
            self.on_epoch_end()
            if time() + longest >= end:
                break
        seconds = time() - start
        self.on_train_end()
        used = resource.getrusage(resource.RUSAGE_SELF)
        facts = {"iterations": iterations, "seconds": seconds, "processor_s": used.ru_utime + used.ru_stime}
        Path(self.output_folder, "timed.json").write_text(json.dumps(facts))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing: the held-out cases are predicted and judged from outside."""

    def _set_rate(self, passed: float) -> None:
        rate = self.initial_lr * (1 - passed) ** self.lr_scheduler.exponent
        for group in self.optimizer.param_groups:
            group["lr"] = rate
