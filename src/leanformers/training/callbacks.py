# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Callbacks of a run: Ctrl-C that loses nothing, training curves that are there while it runs, and votes of selective
attention that grow."""

import signal
from pathlib import Path
from types import FrameType

import torch
from accelerate.utils import gather
from transformers import PreTrainedConfig, TrainerCallback

from leanformers.plots import training_curves


class InterruptCallback(TrainerCallback):
    """On Ctrl-C or SIGTERM, ends training after the running step and a checkpoint.

    A second Ctrl-C ends the process at once. In a distributed run it does not, because launchers pass on to every
    process the signal that it has already had, and kill what does not end in time. There the processes agree on the
    step: one that stopped alone would leave the others waiting for its gradients.
    """

    def __init__(self):
        self.signal = 0
        self._distributed = False
        self._previous: dict[int, signal.Handlers] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._distributed = args.world_size > 1
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)

    def on_step_end(self, args, state, control, **kwargs):
        if self._distributed:
            self.signal = int(gather(torch.tensor([self.signal], device=args.device)).max())
        if self.signal:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if not self._distributed:
            signal.signal(number, self._previous[number])


class SelectionWarmupCallback(TrainerCallback):
    """Grows the configuration's `selection_strength` linearly from 0 to what it was, over the first optimizer steps.

    After step s, training goes on with the strength of s, evaluations measure it and checkpoints have it: that a run
    was stopped there changes nothing.
    """

    def __init__(self, config: PreTrainedConfig, num_steps: int):
        self.config, self.num_steps, self.full_strength = config, num_steps, config.selection_strength

    @property
    def is_complete(self) -> bool:
        return self.config.selection_strength == self.full_strength

    def on_train_begin(self, args, state, control, **kwargs):
        if self.num_steps > state.max_steps:
            raise ValueError(
                f"selection_warmup_steps={self.num_steps} is more than the {state.max_steps} steps of the run, which "
                "would end before the votes have their full strength: take fewer, or train longer."
            )
        self._set_strength(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self._set_strength(state.global_step)

    def _set_strength(self, step: int) -> None:
        is_over = step >= self.num_steps
        self.config.selection_strength = self.full_strength if is_over else self.full_strength * step / self.num_steps


class CurvesCallback(TrainerCallback):
    """Draws `training_curves.png` in the output directory after each validation and at the end."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if "eval_loss" in metrics:
            self._draw(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        if any("loss" in entry for entry in state.log_history):
            self._draw(args, state)

    def _draw(self, args, state) -> None:
        if state.is_world_process_zero:
            training_curves(state.log_history, Path(args.output_dir) / "training_curves.png")
