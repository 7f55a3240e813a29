# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What selective attention does on tasks that need more or less of their past (arXiv 2410.02703).

A small model with it and the same without learn a task, and are evaluated on longer sequences and with less memory.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tqdm.auto import tqdm

from leanformers.data.sequence_tasks import SequenceTask, build_sequence_task
from leanformers.modeling.selective_attn import SelectiveAttnConfig, SelectiveAttnForCausalLM

from .sweep import run_points

MODELS = {"selective": True, "plain": False}
EVALUATION_SEED = 2**40  # the same sequences for all models, and none that they were trained on
SETTINGS = (
    "train_length",
    "eval_lengths",
    "memory_budgets",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "batch_size",
    "learning_rate",
    "warmup_steps",
    "max_steps",
    "eval_sequences",
)


@dataclass
class SelectionArguments:
    """What scripts/benchmarks/selection_tasks.py trains, and how."""

    task: str = field(default="assignment", metadata={"help": "assignment, copying or parity."})
    output_file: str = field(
        default="outputs/selection_tasks.json",
        metadata={"help": "JSON with the points of all tasks; those that it has already are not run again."},
    )
    figure: str | None = field(default=None, metadata={"help": "PNG with accuracies against lengths and budgets."})
    models: list[str] = field(
        default_factory=lambda: list(MODELS), metadata={"help": "selective, and plain: the same without votes."}
    )
    seeds: list[int] = field(default_factory=lambda: [1], metadata={"help": "Of weights and data; a point each."})
    train_length: int = field(
        default=16,
        metadata={"help": "Longest training sequences, in assignments, symbols or bits; the others are shorter."},
    )
    eval_lengths: list[int] = field(
        default_factory=lambda: [16, 32, 64, 128], metadata={"help": "Lengths to evaluate at, in the same unit."}
    )
    memory_budgets: list[int] = field(
        default_factory=list, metadata={"help": "Tokens that each selective layer may hold, one evaluation each."}
    )
    hidden_size: int = field(default=64, metadata={"help": "Width of the model; feed-forward layers have twice that."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Blocks."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads of each block."})
    batch_size: int = field(default=64, metadata={"help": "Sequences of a step, all of one length."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Highest; of AdamW without weight decay."})
    warmup_steps: int = field(default=200, metadata={"help": "Steps to get there; then it falls in a line to 0."})
    max_steps: int = field(default=2_000, metadata={"help": "Steps of a point."})
    eval_sequences: int = field(default=500, metadata={"help": "Sequences of an evaluation."})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, ..."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; as torch chooses if not given."})

    def __post_init__(self):
        for name in ("train_length", "batch_size", "max_steps", "eval_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("models", "seeds", "eval_lengths"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one.")
        if min(self.eval_lengths) < 1:
            raise ValueError(f"eval_lengths must be at least 1, got {min(self.eval_lengths)}.")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}.")
        try:
            for model in self.models:
                configuration_of(model, self)
            for memory_budget in self.memory_budgets:
                configuration_of("selective", self, memory_budgets=memory_budget)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__ or error)) from error

    def points(self) -> list[tuple[str, str, int]]:
        """Task, model and seed of every point, seed by seed."""
        return [(self.task, model, seed) for seed in self.seeds for model in self.models]

    def settings(self) -> dict[str, Any]:
        """Everything else that a point's accuracies depend on."""
        return {name: getattr(self, name) for name in SETTINGS}


def configuration_of(model: str, arguments: SelectionArguments, **changes) -> SelectiveAttnConfig:
    """Of a `"selective"` or a `"plain"` model."""
    if model not in MODELS:
        raise ValueError(f"A model is {' or '.join(MODELS)}, got {model!r}.")
    return SelectiveAttnConfig(
        vocab_size=build_sequence_task(arguments.task).vocab_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=2 * arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=arguments.num_attention_heads,
        use_selective_attention=MODELS[model],
        qk_norm=True,  # as in the paper
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        **changes,
    )


def train_point(task: str, model: str, seed: int, arguments: SelectionArguments, progress: tqdm | None = None) -> dict:
    """Train one model, and say what came out."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    network = SelectiveAttnForCausalLM(configuration_of(model, arguments)).to(arguments.device)
    final_loss = train(network, build_sequence_task(task, seed), seed, arguments, progress)
    budgets: list[int | None] = [None, *(arguments.memory_budgets if MODELS[model] else [])]
    evaluations = [
        evaluate(network, length, budget, arguments) for budget in budgets for length in arguments.eval_lengths
    ]
    return {
        "task": task,
        "model": model,
        "seed": seed,
        "num_parameters": network.num_parameters(),
        "final_loss": final_loss,
        "evaluations": evaluations,
        "seconds": round(time.perf_counter() - start, 1),
    }


def train(
    network: SelectiveAttnForCausalLM,
    task: SequenceTask,
    seed: int,
    arguments: SelectionArguments,
    progress: tqdm | None = None,
) -> float:
    """Take all steps, each on a length drawn from 1 to `train_length`, and return the last hundred's mean loss."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_at(step, arguments))
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, arguments.train_length + 1, (arguments.max_steps,), generator=generator)
    losses = []
    network.train()
    for step, length in enumerate(lengths.tolist(), start=1):
        batch = task.batch(arguments.batch_size, length)
        input_ids, labels = (tensor.to(arguments.device) for tensor in batch)
        loss = network(input_ids=input_ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if progress is not None and step % 100 == 0:
            progress.set_postfix_str(f"step {step}: loss {torch.stack(losses[-100:]).mean():.4f}")
    return torch.stack(losses[-100:]).mean().item()


def learning_rate_at(step: int, arguments: SelectionArguments) -> float:
    """The share of the highest learning rate that the step after `step` others has."""
    warmup, steps = arguments.warmup_steps, arguments.max_steps
    return (step + 1) / (warmup + 1) if step < warmup else (steps - step) / max(1, steps - warmup)


@torch.no_grad()
def evaluate(
    network: SelectiveAttnForCausalLM, length: int, memory_budget: int | None, arguments: SelectionArguments
) -> dict:
    """Share of right answers at a length, with a budget or without; and of a selective model without, how many earlier
    tokens each layer still has in mind at the end: M of the last token."""
    batch = build_sequence_task(arguments.task, EVALUATION_SEED).batch(arguments.eval_sequences, length)
    input_ids, labels = (tensor.to(arguments.device) for tensor in batch)
    network.eval()
    network.config.memory_budgets = memory_budget
    has_memories = memory_budget is None and any(network.config.selective_layers)
    outputs = network(input_ids=input_ids, use_cache=False, output_memories=has_memories)
    answers, asked = outputs.logits[:, :-1].argmax(dim=-1), labels[:, 1:]
    evaluation = {
        "length": length,
        "num_tokens": input_ids.shape[1],
        "memory_budget": memory_budget,
        "accuracy": (answers == asked)[asked != -100].double().mean().item(),
    }
    if has_memories:
        evaluation["memories"] = [memory[:, -1].mean().item() for memory in outputs.memories]
    return evaluation


def run_study(arguments: SelectionArguments, about: Mapping[str, Any]) -> list[dict]:
    """Train all points that the output file does not have yet, and return all that it has then; see `run_points`."""
    return run_points(
        arguments.output_file,
        ("task", "model", "seed"),
        arguments.points(),
        arguments.settings(),
        lambda task, model, seed, progress: train_point(task, model, seed, arguments, progress),
        about,
        arguments.task,
    )
