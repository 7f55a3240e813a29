# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The retrieval study over numbers of keys.

Training ends as in the paper's code: when an evaluation is as good as asked for, or after so many without progress.
"""

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from tqdm.auto import tqdm

from leanformers.data.tasks import AssociativeRetrieval, RetrievalBatch

from .retrieval import RetrievalModel
from .sweep import run_points


@dataclass
class RetrievalArguments:
    """What scripts/benchmarks/retrieval.py trains, and how."""

    output_file: str = field(
        default="outputs/retrieval.json",
        metadata={"help": "JSON with all points; those that it has already are not run again."},
    )
    figure: str | None = field(default=None, metadata={"help": "PNG with loss against number of keys."})
    title: str | None = field(default=None, metadata={"help": "Title of the figure."})
    setting: int = field(default=1, metadata={"help": "1: every key once; 2: keys return and are written over."})
    curves: list[str] = field(
        default_factory=lambda: ["dpfp1_sum"],
        metadata={
            "help": "FEATURES_RULE or softmax, as in elu_plus_one_sum, dpfp2_delta, favor64_sum, tanh_fwm; "
            "with :S for at most S keys."
        },
    )
    num_keys: list[int] = field(default_factory=lambda: [20], metadata={"help": "Numbers of keys, in that order."})
    hidden_size: int = field(default=64, metadata={"help": "Width of keys before the feature map."})
    batch_size: int = field(default=32, metadata={"help": "Sequences of a step, each with one query."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of Adam, constant."})
    max_steps: int = field(default=100_000, metadata={"help": "At most so many steps a point."})
    eval_steps: int = field(default=100, metadata={"help": "Evaluate every so many steps."})
    eval_sequences: int = field(default=20, metadata={"help": "Sequences of an evaluation, each with every query."})
    target_loss: float = field(default=1e-3, metadata={"help": "An evaluation loss to stop at."})
    patience: int = field(default=11, metadata={"help": "Evaluations in a row without progress to stop after."})
    seed: int = field(default=1, metadata={"help": "Of weights and data; every point begins with it."})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, ..."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; as torch chooses if not given."})

    def __post_init__(self):
        for name in ("max_steps", "eval_steps", "eval_sequences", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.num_keys:
            raise ValueError("num_keys must name at least one number of keys.")
        for num_keys in self.num_keys:
            AssociativeRetrieval(num_keys, self.setting)
        for curve in self.curves:
            build_model(split_limit(curve)[0], min(self.num_keys), self.hidden_size)

    def points(self) -> list[tuple[str, int]]:
        """Curve and number of keys of every point, number by number, so that early on there is something to see."""
        limits = [split_limit(curve) for curve in self.curves]
        return [(name, keys) for keys in self.num_keys for name, limit in limits if limit is None or keys <= limit]

    def settings(self) -> dict[str, Any]:
        """Everything that a point's losses depend on."""
        names = ("setting", "hidden_size", "batch_size", "learning_rate", "max_steps", "eval_steps")
        return {name: getattr(self, name) for name in (*names, "eval_sequences", "target_loss", "patience", "seed")}


def split_limit(curve: str) -> tuple[str, int | None]:
    """`"tanh_fwm:40"` as `("tanh_fwm", 40)`."""
    name, _, limit = curve.partition(":")
    if limit and not limit.isdigit():
        raise ValueError(f"After the colon of {curve!r} must stand the curve's largest number of keys.")
    return name, int(limit) if limit else None


def build_model(curve: str, num_keys: int, hidden_size: int) -> RetrievalModel:
    """The model of a curve, as in `"softmax"`, `"elu_plus_one_sum"`, `"dpfp2_delta"` or `"favor64_sum"`."""
    if curve == "softmax":
        return RetrievalModel(num_keys, "softmax", hidden_size=hidden_size)
    match = re.fullmatch(r"(\D+?)([1-9]\d*|)_(sum|delta|fwm)", curve)
    if match is None:
        raise ValueError(f"A curve is softmax or FEATURES_RULE, as in dpfp2_delta; got {curve!r}.")
    feature_map, number, update_rule = match.groups()
    if bool(number) != (feature_map in ("dpfp", "favor")):
        raise ValueError(f"A number belongs to dpfp (nu) and favor (features), and to no other; got {curve!r}.")
    options = {{"dpfp": "nu", "favor": "num_features"}[feature_map]: int(number)} if number else {}
    return RetrievalModel(num_keys, update_rule, feature_map, hidden_size=hidden_size, **options)


def reconstruction_loss(model: RetrievalModel, batch: RetrievalBatch) -> torch.Tensor:
    """Half the squared distance from what is read to the answer's one-hot vector, over the queries that have one. What
    reads nothing at all, zeros, has 0.5."""
    batch = RetrievalBatch(*(tensor.to(model.W_k.weight.device) for tensor in batch))
    is_answered = batch.answers >= 0
    outputs = model(batch.keys, batch.values, batch.queries)[is_answered]
    return (outputs - functional.one_hot(batch.answers[is_answered], model.num_keys)).square().sum(dim=-1).mean() / 2


def train_point(curve: str, num_keys: int, arguments: RetrievalArguments, progress: tqdm | None = None) -> dict:
    """Train one model until the study's criterion, and say what came out."""
    start = time.perf_counter()
    torch.manual_seed(arguments.seed)
    model = build_model(curve, num_keys, arguments.hidden_size).to(arguments.device)
    task = AssociativeRetrieval(num_keys, arguments.setting, arguments.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.learning_rate, fused=True)
    losses: list[float] = []
    for step in range(1, arguments.max_steps + 1):
        optimizer.zero_grad()
        reconstruction_loss(model, task.batch(arguments.batch_size)).backward()
        optimizer.step()
        if step % arguments.eval_steps and step < arguments.max_steps:
            continue
        with torch.no_grad():
            losses.append(reconstruction_loss(model, task.every_query(arguments.eval_sequences)).item())
        if progress is not None:
            progress.set_postfix_str(f"{curve}, {num_keys} keys, step {step}: loss {losses[-1]:.4f}")
        if reason := reason_to_stop(losses, arguments):
            break
    return {
        "curve": curve,
        "num_keys": num_keys,
        "best_loss": losses[best_of(losses)],
        "last_loss": losses[-1],
        "steps": step,
        "stopped": reason or "max_steps",
        "seconds": round(time.perf_counter() - start, 1),
    }


def reason_to_stop(losses: list[float], arguments: RetrievalArguments) -> str | None:
    """`"target_loss"`, `"patience"`, or None to go on."""
    if losses[-1] <= arguments.target_loss:
        return "target_loss"
    return "patience" if len(losses) - 1 - best_of(losses) >= arguments.patience else None


def best_of(losses: list[float]) -> int:
    """Index of the first least loss; one that is not a number is worse than any."""
    return min(range(len(losses)), key=lambda index: (math.isnan(losses[index]), losses[index]))


def run_sweep(arguments: RetrievalArguments, about: Mapping[str, Any]) -> list[dict]:
    """Train all points that the output file does not have yet, and return all that it has then; see `run_points`."""
    return run_points(
        arguments.output_file,
        ("curve", "num_keys"),
        arguments.points(),
        arguments.settings(),
        lambda curve, num_keys, progress: train_point(curve, num_keys, arguments, progress),
        about,
        "retrieval",
    )
