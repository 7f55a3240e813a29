# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The retrieval study: reads equal the rules' own, the delta rule forgets where the sum rule cannot, sweeps go on."""

import json
import sys
from contextlib import suppress
from importlib import import_module

import pytest
import torch
from torch.nn import functional

from leanformers.data.tasks import AssociativeRetrieval
from leanformers.modeling.fast_weight.delta_rule import naive_delta_rule, naive_fwm_rule, naive_sum_rule
from leanformers.modeling.fast_weight.feature_maps import normalize_features
from leanformers.training import retrieval_sweep
from leanformers.training.retrieval import RetrievalModel
from leanformers.training.retrieval_sweep import (
    RetrievalArguments,
    build_model,
    reason_to_stop,
    reconstruction_loss,
    run_sweep,
    train_point,
)

CURVES = ["softmax", "elu_plus_one_sum", "dpfp2_sum", "dpfp1_delta", "elu_plus_one_delta", "tanh_fwm"]


def by_the_rules(model: RetrievalModel, batch) -> torch.Tensor:
    """The study's model as the paper has it: whole inputs through the projections, then the rule token by token, with
    each query in the place of the last pair's."""
    value = functional.one_hot(batch.values, model.num_keys).to(model.W_k.weight)
    pairs = torch.cat([value, model.embeddingK(batch.keys)], dim=-1)
    key, queries = model.W_k(pairs), model.W_q(model.embeddingK(batch.queries))
    if model.update_rule == "softmax":
        return functional.scaled_dot_product_attention(queries, key, value)
    key, queries = model.feature_map(key), model.feature_map(queries)
    reads = [read_last(model, pairs, key, value, query) for query in queries.unbind(dim=1)]
    return torch.stack(reads, dim=1)


def read_last(model, pairs, key, value, query):
    rules = {"sum": naive_sum_rule, "delta": naive_delta_rule, "fwm": naive_fwm_rule}
    if model.update_rule == "delta":
        key, query = key / key.sum(dim=-1, keepdim=True), normalize_features(query, 1e-6)
    inputs = [tensor[:, :, None] for tensor in (query[:, None].expand_as(key), key, value)]
    beta = [] if model.update_rule == "sum" else [model.W_b(pairs).sigmoid()]
    output = rules[model.update_rule](*inputs, *beta)[0][:, -1, 0]
    if model.update_rule == "sum":
        output = output / ((key.sum(dim=1) * query).sum(dim=-1, keepdim=True) + 1e-6)
    return output


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("num_keys", [1, 16, 17, 33])
def test_reads_and_gradients_are_those_of_the_rules(curve, num_keys):
    model = build_model(curve, num_keys, hidden_size=8).double()
    batch = AssociativeRetrieval(num_keys, setting=2).batch(3)
    batch = batch._replace(queries=torch.cat([batch.queries, batch.keys[:, :3]], dim=1))
    weights = torch.randn(*batch.queries.shape, num_keys, dtype=torch.float64)
    names, parameters = zip(*model.named_parameters(), strict=True)
    results = []
    for outputs in (model(batch.keys, batch.values, batch.queries), by_the_rules(model, batch)):
        gradients = torch.autograd.grad((outputs * weights).sum(), parameters)
        results.append([outputs, *gradients])
    for name, ours, expected in zip(["output", *names], *results, strict=True):
        torch.testing.assert_close(
            ours, expected, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert expected.abs().max() > 0 or num_keys == 1, name


def test_favor_is_drawn_anew_at_every_call_and_otherwise_nothing_is():
    batch = AssociativeRetrieval(10, setting=1).batch(2)
    for curve, is_random in (("favor16_sum", True), ("dpfp1_sum", False)):
        model = build_model(curve, 10, hidden_size=8).eval()
        first, second = (model(batch.keys, batch.values, batch.queries) for _ in range(2))
        assert first.isfinite().all() and torch.equal(first, second) != is_random


def test_loss_is_half_of_the_squared_distance_and_leaves_out_keys_that_were_not_written():
    model = build_model("dpfp1_delta", 12, hidden_size=8)
    batch = AssociativeRetrieval(12, setting=2).every_query(4)
    outputs = model(batch.keys, batch.values, batch.queries)
    expected = [
        0.5 * (read - functional.one_hot(answer, 12)).square().sum()
        for read, answer in zip(outputs.flatten(0, 1), batch.answers.flatten(), strict=True)
        if answer != -100
    ]
    assert len(expected) < 48
    torch.testing.assert_close(reconstruction_loss(model, batch), torch.stack(expected).mean())
    assert reconstruction_loss(with_nothing_written(model), batch) == 0.5


def with_nothing_written(model):
    """A model that has stored nothing."""
    with torch.no_grad():
        model.W_b.weight.zero_()
        model.W_b.bias.fill_(-torch.inf)
    return model


def arguments(tmp_path, **changes) -> RetrievalArguments:
    defaults = {"output_file": str(tmp_path / "new_folder" / "points.json"), "eval_steps": 50, "learning_rate": 5e-3}
    return RetrievalArguments(**{**defaults, **changes})


def test_the_delta_rule_learns_to_forget_and_the_sum_rule_does_not(tmp_path):
    settings = arguments(tmp_path, setting=2, max_steps=400, learning_rate=1e-2)
    delta, total = (train_point(f"dpfp1_{rule}", 8, settings) for rule in ("delta", "sum"))
    assert delta["stopped"] == "target_loss" and delta["best_loss"] <= 1e-3 and delta["steps"] < 400
    assert total["best_loss"] > 0.03


def test_a_point_is_the_same_every_time(tmp_path):
    settings = arguments(tmp_path, max_steps=20, eval_steps=10)
    first, second = (train_point("dpfp1_sum", 10, settings) for _ in range(2))
    other = train_point("dpfp1_sum", 10, arguments(tmp_path, max_steps=20, eval_steps=10, seed=2))
    assert first["best_loss"] == second["best_loss"] != other["best_loss"]
    assert (first["steps"], first["stopped"]) == (20, "max_steps")


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([0.3, 0.2], None),
        ([0.3, 0.001], "target_loss"),
        ([0.2, 0.3, 0.2], None),
        ([0.2, 0.3, 0.2, 0.2], "patience"),
        ([0.2, 0.3, 0.1, 0.2], None),
        ([float("nan")] * 4, "patience"),
        ([float("nan"), 0.3, 0.2], None),
    ],
)
def test_training_ends_at_the_target_or_after_evaluations_without_progress(tmp_path, losses, reason):
    assert reason_to_stop(losses, arguments(tmp_path, patience=3)) == reason


def run_and_count(settings, monkeypatch, fail_at: int | None = None) -> list[tuple[str, int]]:
    """Run a sweep whose points cost nothing, and say which were run."""
    ran = []

    def point(curve, num_keys, settings, progress=None):
        if len(ran) == fail_at:
            raise KeyboardInterrupt
        ran.append((curve, num_keys))
        return {"curve": curve, "num_keys": num_keys, "best_loss": 0.1}

    monkeypatch.setattr(retrieval_sweep, "train_point", point)
    with suppress(KeyboardInterrupt):
        run_sweep(settings, {"versions": {"torch": "2"}})
    return ran


def test_an_interrupted_sweep_goes_on_with_the_next_point(tmp_path, monkeypatch):
    settings = arguments(tmp_path, curves=["softmax", "dpfp1_sum:8"], num_keys=[8, 4, 9])
    wanted = [("softmax", 8), ("dpfp1_sum", 8), ("softmax", 4), ("dpfp1_sum", 4), ("softmax", 9)]
    assert run_and_count(settings, monkeypatch, fail_at=2) == wanted[:2]
    written = json.loads((tmp_path / "new_folder" / "points.json").read_text())
    assert written["versions"] == {"torch": "2"} and len(written["points"]) == 2
    assert run_and_count(settings, monkeypatch) == wanted[2:]
    assert run_and_count(settings, monkeypatch) == []
    assert [path.name for path in (tmp_path / "new_folder").iterdir()] == ["points.json"]


def test_points_of_other_settings_are_not_taken_for_ours(tmp_path, monkeypatch):
    run_and_count(arguments(tmp_path, num_keys=[4]), monkeypatch)
    with pytest.raises(ValueError, match="curve dpfp1_sum, num_keys 4 under other settings"):
        run_sweep(arguments(tmp_path, num_keys=[4], batch_size=8), {})
    assert run_and_count(arguments(tmp_path, num_keys=[5], batch_size=8), monkeypatch) == [("dpfp1_sum", 5)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curves": ["dpfp1"]}, "A curve is softmax or FEATURES_RULE"),
        ({"curves": ["dpfp_sum"]}, "A number belongs to dpfp"),
        ({"curves": ["tanh2_fwm"]}, "A number belongs to dpfp"),
        ({"curves": ["dpfp0_sum"]}, "A curve is softmax or FEATURES_RULE"),
        ({"curves": ["sine_sum"]}, "Unknown feature map 'sine'"),
        ({"curves": ["softmax:few"]}, "largest number of keys"),
        ({"num_keys": [4, 0]}, "num_keys must be at least 1, got 0"),
        ({"num_keys": []}, "num_keys must name at least one"),
        ({"setting": 3}, "setting must be 1"),
        ({"eval_steps": 0}, "eval_steps must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)
    with pytest.raises(ValueError, match="update_rule must be softmax, sum, delta or fwm, got 'ours'"):
        RetrievalModel(4, "ours")


def test_script_writes_points_and_figure(tmp_path, root, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(root / "scripts" / "benchmarks"))
    recipe = str(root / "configs/train/fast_weight_retrieval_update_rules.yaml")
    output, figure = tmp_path / "points.json", tmp_path / "figure.png"
    argv = [recipe, "--output_file", str(output), "--figure", str(figure), "--num_keys", "4", "--max_steps", "3"]
    try:
        import_module("retrieval").main([*argv, "--curves", "dpfp1_sum", "dpfp1_delta", "--threads", "1"])
    finally:
        for name in ("retrieval", "study", "run", "registry"):
            sys.modules.pop(name, None)
    report = json.loads(output.read_text())
    assert [(point["curve"], point["steps"]) for point in report["points"]] == [("dpfp1_delta", 3), ("dpfp1_sum", 3)]
    assert report["points"][0]["settings"]["setting"] == 2 and report["machine"]["threads"] == 1
    assert figure.read_bytes()[:4] == b"\x89PNG"
