# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Training with a memory that is carried from segment to segment: truncated backpropagation through a long text.

- Every row of a batch has a lane, a part of the text that it reads from end to end in segments. A segment begins with
  the memory that the one before it left, and gradients end where it begins. With gradient accumulation, too, a
  micro-step goes on where the one before it ended.
- Each process has lanes of its own, and saves its memories in every checkpoint, so that a resumed run goes on bit for
  bit.
- Memories are empty at the beginning of each epoch, and of each evaluation, which carries memories of its own.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler, SequentialSampler
from transformers import DynamicCache, PreTrainedModel

from leanformers.arguments import RunTrainingArguments
from leanformers.data.language_modeling import LaneSegments
from leanformers.evaluation.language_modeling import empty_memory, segment_losses

from .runs import tensor_parallel_size
from .trainer import LanguageModelTrainer

STATES = ("memory", "normalizer")  # of a layer, in files; a family may have the first alone


class CarriedStateTrainer(LanguageModelTrainer):
    """A `LanguageModelTrainer` of a model with a memory, on `LaneSegments`: a lane for each row of each process."""

    def get_train_dataloader(self):
        self._memory = empty_memory(self.model)
        return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset: LaneSegments | None = None) -> Sampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self._memory.get_seq_length() == self.train_dataset.lane_length:  # a new epoch
            self._memory = empty_memory(self.model)
        loss = super().training_step(model, {**inputs, "past_key_values": self._memory}, num_items_in_batch)
        for layer in self._memory.layers:
            layer.detach_()
        return loss

    def evaluation_loop(self, *args, **kwargs):
        self._evaluated_memory = empty_memory(self.model)
        return super().evaluation_loop(*args, **kwargs)

    def _score(self, model, input_ids, shift_labels):
        return segment_losses(model, input_ids, shift_labels, self._evaluated_memory)

    def _save_rng_state(self, output_dir: str) -> None:
        # Like the random state, the memory is each process' own, and read before the first step of a resumed epoch.
        super()._save_rng_state(output_dir)
        save_memory(self._memory, memory_file(output_dir, self.args.process_index), self.args.world_size)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            path = memory_file(checkpoint, self.args.process_index)
            load_memory(self._memory, path, self.args.world_size, self.args.train_batch_size, self.args.device)


def check_carrying(model: PreTrainedModel, arguments: RunTrainingArguments) -> None:
    """Refuse what a memory cannot be carried through."""
    empty_memory(model)
    refused = {
        "gradient_checkpointing": "runs every block twice, the second time on a memory that has moved on",
        "auto_find_batch_size": "changes the number of rows, for each of which the text has a lane",
        "label_smoothing_factor": "takes the labels of a segment without the one that is in the next",
    }
    for name, reason in refused.items():
        if value := getattr(arguments, name):
            raise ValueError(f"{name}={value} {reason}: leave it out, or carry_state.")
    if tensor_parallel_size() > 1:
        raise ValueError("carry_state gives every process texts of its own, tensor parallelism none: leave one out.")
    if arguments.n_gpu > 1:
        raise ValueError(
            f"carry_state needs a process for each of the {arguments.n_gpu} GPUs: start with `accelerate launch`."
        )
    if arguments.accelerator_config.split_batches:
        raise ValueError("accelerator_config.split_batches takes the rows of a batch apart: carry_state needs it off.")


def memory_file(checkpoint: str, process_index: int) -> Path:
    return Path(checkpoint) / f"carried_state_{process_index}.safetensors"


def save_memory(memory: DynamicCache, path: Path, num_processes: int) -> None:
    tensors = {"num_seen": torch.tensor(memory.get_seq_length()), "num_processes": torch.tensor(num_processes)}
    for index, layer in enumerate(memory.layers):
        for number, state in layer.recurrent_states.items():
            if state is not None:
                tensors[f"layers.{index}.{STATES[number]}"] = state.contiguous()
    save_file(tensors, path)


def load_memory(memory: DynamicCache, path: Path, num_processes: int, num_lanes: int, device: torch.device) -> None:
    """Fill an empty memory with what `save_memory` wrote on as many processes, each with as many lanes."""
    if not path.is_file():
        raise ValueError(f"There is no {path}: the run was started without carry_state, or on fewer processes.")
    states = load_file(path, device=str(device))
    saved = int(states["num_processes"]), len(states["layers.0.memory"])
    if saved != (num_processes, num_lanes):
        raise ValueError(
            f"{path} is one of {saved[0]} processes with {saved[1]} rows each, and cannot go on in {num_processes} "
            f"with {num_lanes}: resume on as many, with the same per_device_train_batch_size."
        )
    for index, layer in enumerate(memory.layers):
        held = [states.get(f"layers.{index}.{STATES[number]}") for number in layer.recurrent_states]
        layer.write(*held, int(states["num_seen"]))
