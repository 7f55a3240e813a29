# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Language models that may hold only so many tokens: their loss under memory budgets, and the search for a budget of
each layer (arXiv 2410.02703, section 4).

The search starts with budgets that prune little or nothing. Again and again it lowers the budget of each layer on its
own, measures the loss on the same windows, and keeps the change that hurts least, until the loss would be above its
target. All of it is measured in parallel, one forward for each batch of windows, and a forward that lowers a layer
begins at that layer: what comes before is as it was.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from leanformers.data.language_modeling import EvaluationWindows
from leanformers.training.sweep import write_points

from .language_modeling import evaluate_windows, scoring_batches, token_by_token, window_losses
from .perplexity import perplexity, total_loss

SMALLEST_BUDGET = 2  # the first token and the current one


def set_memory_budgets(model: PreTrainedModel, budgets: int | Sequence[int] | None) -> None:
    """Let the layers of a model hold at most so many tokens, the same number each or one for each; None for all.

    Raises:
        `ValueError`: if the model has no memory budgets, or not these.
    """
    config = model.config
    if not hasattr(config, "memory_budgets"):
        raise ValueError(
            f"{type(model).__name__} has no memory budgets, which layers with selective attention prune by: leave "
            "memory_budgets out, or name a SelectiveAttn."
        )
    before, given = config.memory_budgets, budgets
    if isinstance(budgets, Sequence):
        budgets = budgets[0] if len(budgets) == 1 else list(budgets)
    config.memory_budgets = budgets
    try:
        config.validate_architecture()
    except ValueError as error:
        config.memory_budgets = before
        raise ValueError(f"memory_budgets={given} do not fit {type(model).__name__}: {error}") from error


@contextmanager
def memory_budgets(model: PreTrainedModel, budgets: int | Sequence[int] | None) -> Iterator[None]:
    """`set_memory_budgets` for as long as the context lasts."""
    before = getattr(model.config, "memory_budgets", None)
    set_memory_budgets(model, budgets)
    try:
        yield
    finally:
        model.config.memory_budgets = before


def memory_held(config: PreTrainedConfig, context_length: int) -> dict[str, Any]:
    """`memory_budgets` of each layer, and `memory_factor`, by how much less they hold of a context of that many
    tokens; empty if there are no budgets."""
    if getattr(config, "memory_budgets", None) is None:
        return {}
    budgets = [config.memory_budget(layer) for layer in range(config.num_hidden_layers)]
    return {"memory_budgets": budgets, "memory_factor": memory_factor(budgets, context_length)}


def memory_factor(budgets: Sequence[int], context_length: int) -> float:
    """`N L / sum_l K_l`: tokens that L layers hold of a context of N tokens, over those that the budgets let them."""
    return context_length * len(budgets) / sum(min(budget, context_length) for budget in budgets)


def loss_under_budgets(
    model: PreTrainedModel, windows: EvaluationWindows, budgets: int | Sequence[int] | None, *, batch_size: int = 8
) -> float:
    """Mean loss per token, in nats, of a model whose layers hold at most so many tokens."""
    with memory_budgets(model, budgets):
        return float(evaluate_windows(model, windows, batch_size=batch_size)["loss"])


def search_memory_budgets(
    model: PreTrainedModel,
    windows: EvaluationWindows,
    path: str | Path,
    *,
    target_loss: float | None = None,
    max_loss_increase: float | None = None,
    step: int = 8,
    max_budget: int | None = None,
    batch_size: int = 8,
    about: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Find a memory budget for each layer, greedily.

    Every accepted step is in the file at once, and a second call goes on from there to the same result.

    Args:
        model: A language model with selective attention. It is left as it was.
        windows: The text that the loss is measured on, per token and in nats.
        path: JSON of the search.
        target_loss, max_loss_increase: How much the loss may be, or by how much it may be above that without budgets.
            One of them.
        step: Tokens by which a budget is lowered at a time.
        max_budget: Of every layer to begin with; the length of the longest window if not given.
        batch_size: Windows in a forward.
        about: What else the file should say, such as the name of the model.
        progress: Whether to show progress bars on standard error.

    Returns:
        What is in the file: settings, `context_length`, `loss_without_budgets`, `target_loss`, why the search
        `stopped`, and `points`, one for each accepted step, each with `budgets`, `loss`, `perplexity`,
        `memory_factor`, and the losses of all `candidates` by layer. The budgets that were found are the last ones.

    Raises:
        `ValueError`: if no step is possible within the target, or the file is of another search.
    """
    path = Path(path)
    if (target_loss is None) == (max_loss_increase is None):
        raise ValueError("Give either target_loss or max_loss_increase, which says when the search ends.")
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}.")
    longest = windows.longest
    start = longest if max_budget is None else min(max_budget, longest)
    without = loss_under_budgets(model, windows, None, batch_size=batch_size)
    head: dict[str, Any] = {
        **(about or {}),
        "step": step,
        "max_budget": start,
        "context_length": longest,
        "num_tokens": windows.num_scored,
        "batch_size": batch_size,
        "loss_without_budgets": without,
        "target_loss": target_loss if target_loss is not None else without + (max_loss_increase or 0.0),
    }
    search = resume_search(path, head)
    if search is None:
        search = {**head, "stopped": None, "points": [_start(model, windows, start, head)]}
        _write(path, search)
    if search["stopped"] is None:
        _go_on(model, windows, path, search, progress)
    if len(search["points"]) == 1:
        raise ValueError(_no_step(search, path))
    return search


def resume_search(path: Path, head: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the file has of this search, or None if there is no file.

    Raises:
        `ValueError`: if it has another search.
    """
    if not path.is_file():
        return None
    search = json.loads(path.read_text(encoding="utf-8"))
    for name, value in head.items():
        saved = search.get(name)
        is_same = math.isclose(saved, value, rel_tol=1e-6) if isinstance(saved, float) else saved == value
        if not is_same:
            raise ValueError(
                f"{path} is of a search with {name}={saved}, and this one has {value}: give another output_dir, or "
                "what that search was given."
            )
    return search


def _start(model: PreTrainedModel, windows: EvaluationWindows, budget: int, head: Mapping[str, Any]) -> dict[str, Any]:
    """The point that the search begins at."""
    budgets = [budget] * model.config.num_hidden_layers
    loss = loss_under_budgets(model, windows, budgets, batch_size=head["batch_size"])
    if not loss <= head["target_loss"]:
        raise ValueError(
            f"With {budget} tokens in each layer the loss is {loss:.4f} already, above target_loss="
            f"{head['target_loss']:.4f} (without budgets: {head['loss_without_budgets']:.4f}): allow a higher loss"
            + (", or a larger max_budget." if budget < head["context_length"] else ".")
        )
    return _point(0, None, budgets, loss, {}, head)


def _point(
    number: int,
    layer: int | None,
    budgets: list[int],
    loss: float,
    candidates: Mapping[int, float],
    head: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "number": number,
        "layer": layer,
        "budgets": budgets,
        "loss": loss,
        "perplexity": perplexity(loss, 1),
        "memory_factor": memory_factor(budgets, head["context_length"]),
        "candidates": {str(index): value for index, value in sorted(candidates.items())},
    }


def _go_on(
    model: PreTrainedModel, windows: EvaluationWindows, path: Path, search: dict[str, Any], progress: bool
) -> None:
    """Take steps until there is none within the target."""
    points, step = search["points"], search["step"]
    most = len(points[0]["budgets"]) * math.ceil((points[0]["budgets"][0] - SMALLEST_BUDGET) / step)
    with tqdm(total=most, initial=len(points) - 1, desc="lowering", unit="step", disable=not progress) as bar:
        while search["stopped"] is None:
            budgets = points[-1]["budgets"]
            candidates = lowered(budgets, step)
            losses = candidate_losses(model, windows, candidates, batch_size=search["batch_size"], progress=progress)
            # Of those that hurt as little, the layer that holds the most.
            best = min(losses, key=lambda layer: (losses[layer], -budgets[layer], layer)) if losses else None
            if best is None:
                search["stopped"] = "smallest_budgets"
            elif not losses[best] <= search["target_loss"]:
                search["stopped"] = "target_loss"
                search["rejected"] = {str(layer): loss for layer, loss in sorted(losses.items())}
            else:
                points.append(_point(len(points), best, candidates[best], losses[best], losses, search))
                bar.set_postfix_str(f"loss {losses[best]:.4f}, memory / {points[-1]['memory_factor']:.1f}")
                bar.update()
            _write(path, search)


def lowered(budgets: Sequence[int], step: int) -> dict[int, list[int]]:
    """For each layer that can hold less, the budgets with less for that one."""
    return {
        layer: [*budgets[:layer], max(SMALLEST_BUDGET, budget - step), *budgets[layer + 1 :]]
        for layer, budget in enumerate(budgets)
        if budget > SMALLEST_BUDGET
    }


@torch.no_grad()
def candidate_losses(
    model: PreTrainedModel,
    windows: EvaluationWindows,
    candidates: Mapping[int, list[int]],
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> dict[int, float]:
    """The loss under each of several budgets, which differ from common ones in one layer each.

    The last of these layers is measured by a whole forward, the others from what came into them then.

    Args:
        candidates: All budgets, by the layer in which they differ.
    """
    rows: dict[int, list[Tensor]] = {layer: [] for layer in candidates}
    before, training = model.config.memory_budgets, model.training
    model.eval()
    try:
        for inputs, following in scoring_batches(model, windows, batch_size, leave=False, disable=not progress):
            entering: dict[int, Tensor] = {}
            for layer in sorted(candidates, reverse=True):
                model.config.memory_budgets = candidates[layer]
                with token_by_token(model.config), _beginning_at(model, layer, entering, candidates):
                    rows[layer].append(window_losses(model, inputs, following).cpu())
    finally:
        model.config.memory_budgets = before
        model.train(training)
    sums = {layer: total_loss(parts) for layer, parts in rows.items()}
    return {layer: loss / num_tokens for layer, (loss, num_tokens) in sums.items()}


class _Known(nn.Module):
    """In the place of a block before the one that a forward begins at."""

    def __init__(self, hidden_states: Tensor):
        super().__init__()
        self.hidden_states = hidden_states

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        return self.hidden_states


@contextmanager
def _beginning_at(
    model: PreTrainedModel, layer: int, entering: dict[int, Tensor], recorded: Mapping[int, Any]
) -> Iterator[None]:
    """Begin a forward at a layer, if it is known what comes into it; else let `entering` know that of `recorded`."""
    blocks = model.base_model.layers
    if layer in entering:
        known = _Known(entering[layer])
        model.base_model.layers = nn.ModuleList([*[known] * layer, *blocks[layer:]])
        try:
            yield
        finally:
            model.base_model.layers = blocks
        return
    hooks = [
        blocks[index].register_forward_pre_hook(lambda block, inputs, index=index: entering.update({index: inputs[0]}))
        for index in recorded
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _write(path: Path, search: Mapping[str, Any]) -> None:
    head = {name: value for name, value in search.items() if name != "points"}
    write_points(path, ("number",), search["points"], head)


def _no_step(search: Mapping[str, Any], path: Path) -> str:
    least = min(search.get("rejected", {}).values(), default=None)
    if least is None:
        return f"The budgets were {SMALLEST_BUDGET} from the start, and there are no smaller ones: raise max_budget."
    return (
        f"No layer can do with {search['step']} tokens less: the loss would be at least {least:.4f}, above "
        f"target_loss={search['target_loss']:.4f} (without budgets: {search['loss_without_budgets']:.4f}). Take a "
        f"smaller step or allow a higher loss; what was tried is in {path}."
    )
