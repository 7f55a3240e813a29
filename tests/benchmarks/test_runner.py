# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The benchmark runner at toy sizes: what it measures and writes, never how fast it is."""

import dataclasses
import json
import math
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from leanformers import FAMILIES


@pytest.fixture(scope="module")
def benchmarks(root):
    """The runner and the registry, which stand beside each other in a folder of scripts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "scripts" / "benchmarks"))
        yield import_module("run"), import_module("registry")
        modules = {target.partition(":")[0] for target in sys.modules["registry"].BENCHMARKS.values()}
        for name in ("run", "registry", "crossover", *modules):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def report(benchmarks, tmp_path_factory):
    output = tmp_path_factory.mktemp("benchmarks") / "new_folder" / "out.json"
    benches = ["anthe_training", "anthe_generation"]
    benchmarks[0].main(["--bench", *benches, "--quick", "--threads", "1", "--json", str(output)])
    return json.loads(output.read_text())


def test_every_family_is_measured(benchmarks):
    measured = {benchmarks[1].family_of(name) for name in benchmarks[1].BENCHMARKS}
    assert measured == set(FAMILIES), "scripts/benchmarks/registry.py lacks a family"


def test_every_case_is_measured_for_both_contenders(report):
    cases = [result["case"] for result in report["results"]]
    assert cases == ["training step", "greedy generation, batch 1", "greedy generation, batch 32"]
    for result in report["results"]:
        assert (result["preset"], result["dtype"], result["unit"]) == ("tiny", "float32", "tokens/s")
        assert list(result["contenders"]) == ["anthe", "marian"]
        for contender in result["contenders"].values():
            low, high = contender["quartiles"]
            assert 0 < low <= contender["median"] <= high
            assert len(contender["samples"]) == result["repeats"] == 2
        ratio = result["contenders"]["anthe"]["cost"] / result["contenders"]["marian"]["cost"]
        assert math.isclose(result["cost_ratios"]["marian"], ratio)


def test_rates_follow_from_tokens_and_times(report):
    training, single, many = report["results"]
    assert training["tokens_per_call"] == 2 * (5 + 4)
    assert (single["tokens_per_call"], many["tokens_per_call"]) == (3, 32 * 3)
    fastest, slowest = sorted(single["contenders"]["anthe"]["samples"])
    assert math.isclose(single["contenders"]["anthe"]["median"], (3 / fastest + 3 / slowest) / 2)


def test_report_says_what_ran_on_what_but_not_on_whose_machine(report, root):
    assert torch.__version__.startswith(report["versions"]["torch"])
    assert set(report["versions"]) == {"python", "leanformers", "torch", "transformers"}
    assert set(report["machine"]) == {"system", "processor", "cores", "threads", "device"}
    assert report["machine"]["threads"] == 1 and report["quick"] is True
    assert report["git"]["sha"] is None or len(report["git"]["sha"]) == 40
    models = report["results"][0]["models"]
    assert models["anthe"]["class"] == "AntheForSeq2SeqLM"
    assert models["marian"]["class"] == "MarianMTModel" and models["marian"]["parameters"] > 0
    assert models["marian"]["config"]["share_encoder_decoder_embeddings"] is False
    assert str(root) not in json.dumps(report)


def test_peer_has_our_sizes(report):
    anthe, marian = (report["results"][0]["models"][name]["config"] for name in ("anthe", "marian"))
    assert marian["d_model"] == anthe["hidden_size"]
    assert marian["vocab_size"] == marian["decoder_vocab_size"] == anthe["vocab_size"]
    for side in ("encoder", "decoder"):
        assert marian[f"{side}_layers"] == anthe[f"num_{side}_layers"]
        assert marian[f"{side}_ffn_dim"] == anthe["intermediate_size"]
        assert marian[f"{side}_attention_heads"] == anthe["num_attention_heads"]


def test_peak_memory_is_measured_in_a_process_of_its_own(benchmarks, root):
    tiny = str(root / "configs" / "model" / "anthe" / "tiny.json")
    settings = benchmarks[1].Settings(tiny, "cpu", "float32", 1, 2, 5, 4, 3, 128)
    training, generation = benchmarks[1].cases("anthe_memory", settings)
    assert (training.name, generation.name) == ("peak memory, training", "peak memory, generation")
    ours = dataclasses.replace(training, contenders={"anthe": training.contenders["anthe"]})
    result = benchmarks[0].measure(ours, warmup=1, repeats=1, device="cpu")
    assert (result["unit"], result["repeats"], result["cost_ratios"]) == ("MiB", 1, {})
    assert 1 < result["contenders"]["anthe"]["median"] < 500


@pytest.fixture(scope="module")
def delight_report(benchmarks, tmp_path_factory):
    output = tmp_path_factory.mktemp("delight") / "out.json"
    benches = [f"delight_{what}" for what in ("training", "generation", "dextra")]
    benchmarks[0].main(["--bench", *benches, "--quick", "--threads", "1", "--json", str(output)])
    return json.loads(output.read_text())["results"]


def test_delight_stands_beside_a_transformer_base(delight_report):
    results = [result for result in delight_report if result["bench"] != "delight_dextra"]
    assert [result["case"] for result in results] == [
        "training step",
        "greedy generation, batch 1",
        "greedy generation, batch 32",
    ]
    for result in results:
        models = result["models"]
        assert models["delight"]["class"] == "DeLighTForConditionalGeneration"
        assert models["marian"]["config"]["vocab_size"] == models["delight"]["config"]["vocab_size"]
        assert 0 < result["cost_ratios"]["marian"] < math.inf


def test_units_are_measured_by_depth_beside_both_direct_forms(delight_report):
    results = [result for result in delight_report if result["bench"] == "delight_dextra"]
    assert {result["shapes"]["depth"] for result in results} == {2, 4, 6, 8, 12}
    for result in results:
        assert list(result["contenders"]) == ["ours", "direct", "per_group"]
        assert set(result["cost_ratios"]) == {"direct", "per_group"}


def test_direct_forms_compute_what_ours_does(benchmarks, root):
    dextra, tiny = import_module("dextra"), str(root / "configs" / "model" / "delight" / "tiny.json")
    settings = benchmarks[1].Settings(tiny, "cpu", "float32", 1, 2, 5, 4, 3, 128)
    unit = dextra.build(4, settings).eval()
    hidden_states = torch.randn(7, unit.in_proj.in_features)
    forms = dextra.forms(unit)
    for name in ("direct", "per_group"):
        torch.testing.assert_close(forms[name](hidden_states), forms["ours"](hidden_states))


@pytest.fixture(scope="module")
def by_length(benchmarks, tmp_path_factory):
    output = tmp_path_factory.mktemp("by_length") / "out.json"
    benches = [f"fast_weight_{what}" for what in ("training", "prefill", "decoding")]
    benchmarks[0].main(["--bench", *benches, "--quick", "--threads", "1", "--warmup", "1", "--json", str(output)])
    return json.loads(output.read_text())["results"]


def test_language_models_of_one_size_are_measured_by_length(by_length):
    names = {result["case"].partition(",")[0]: [] for result in by_length}
    for result in by_length:
        names[result["case"].partition(",")[0]].append(result["shapes"]["length"])
        ours, llama = (result["models"][name]["parameters"] for name in ("fast_weight", "llama"))
        assert abs(ours - llama) <= 0.01 * ours
    assert names["training step"] == names["prefill"] == [4, 8, 16, 32, 64]
    assert names["decoding step"] == names["cache"] == [1, 2, 4, 8, 16, 32, 64, 128]
    steps = [result for result in by_length if result["bench"] == "fast_weight_training"]
    assert {result["tokens_per_call"] for result in steps} == {64}


def test_cache_is_constant_where_that_of_keys_and_values_grows(by_length):
    sizes = [result["contenders"] for result in by_length if result["unit"] == "KiB"]
    assert {size["fast_weight"]["median"] for size in sizes} == {2 * 4 * 16 * 8 * 4 / 1024}
    assert [size["llama"]["median"] for size in sizes] == [2**n * 2 * 2 * 32 * 4 / 1024 for n in range(8)]


def test_peak_of_a_long_context_is_measured_in_a_process_of_its_own(benchmarks, root):
    tiny = str(root / "configs" / "model" / "fast_weight" / "tiny.json")
    settings = benchmarks[1].Settings(tiny, "cpu", "float32", 1, 2, 5, 4, 3, 128)
    *_, longest = benchmarks[1].cases("fast_weight_memory", settings)
    assert longest.shapes["length"] == 128
    assert 1 < longest.contenders["fast_weight"]() < 500


def test_update_rules_are_measured_by_length_and_the_recurrence_not_at_the_longest(benchmarks, tmp_path, capsys):
    output, picture = tmp_path / "out.json", tmp_path / "plot.png"
    options = ["--quick", "--threads", "1", "--json", str(output)]
    benchmarks[0].main(["--bench", "fast_weight_delta_rule", *options])
    results = json.loads(output.read_text())["results"]
    assert [result["shapes"]["length"] for result in results] == [4, 4, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128]
    peers = ["qwen3_next", "sdpa", "sum_rule"]
    for result in results:
        expected = ["naive", *peers] if result["shapes"]["length"] <= 16 else peers
        assert list(result["cost_ratios"]) == expected
    import_module("crossover").main([str(output), "--png", str(picture)])
    assert "forward (tiny, float32) beside naive: " in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_peer_of_the_delta_rule_computes_what_ours_does(benchmarks):
    rules = import_module("delta_rule")
    settings = benchmarks[1].Settings("", "cpu", "float32", 1, 2, 5, 4, 3, 128)
    inputs = rules.draw_inputs(settings, 100)
    ours = rules.chunk(*inputs)
    torch.testing.assert_close(rules.naive(*inputs), ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rules.qwen3_next(*inputs) * rules.HEAD_DIM**0.5, ours, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def selective(benchmarks, tmp_path_factory):
    output = tmp_path_factory.mktemp("selective") / "out.json"
    benches = [f"selective_attn_{what}" for what in ("operator", "training", "prefill", "decoding", "generation")]
    benchmarks[0].main(["--bench", *benches, "--quick", "--threads", "1", "--json", str(output)])
    return json.loads(output.read_text())["results"]


def by_bench(results: list[dict], name: str) -> list[dict]:
    return [result for result in results if result["bench"] == f"selective_attn_{name}"]


@pytest.mark.parametrize("name", ["training", "prefill"])
def test_llama_has_the_shape_of_selective_attn_and_is_not_eager_at_the_longest(selective, name):
    results = by_bench(selective, name)
    assert [result["shapes"]["length"] for result in results] == [4, 8, 16, 32, 64]
    for result in results:
        is_short = result["shapes"]["length"] <= 16
        assert list(result["cost_ratios"]) == (["llama", "llama_eager"] if is_short else ["llama"])
        ours, llama = (result["models"][name] for name in ("selective_attn", "llama"))
        assert (llama["class"], llama["parameters"]) == ("LlamaForCausalLM", ours["parameters"])


def test_llama_has_the_weights_of_selective_attn(benchmarks, root):
    script, tiny = import_module("selective_attn"), str(root / "configs" / "model" / "selective_attn" / "tiny.json")
    settings = benchmarks[1].Settings(tiny, "cpu", "float32", 1, 2, 5, 4, 3, 128)
    found = script.models(settings)
    assert [model.config._attn_implementation for model in found.values()] == ["sdpa", "sdpa", "eager"]
    found["selective_attn"].config.selection_strength = 0.0
    tokens = script.random_tokens(found["llama"], 1, 50)
    with torch.no_grad():
        ours, *others = (model(input_ids=tokens).logits for model in found.values())
    for other in others:
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)


def test_operators_are_measured_by_length_and_the_naive_one_not_at_the_longest(selective, benchmarks):
    results = by_bench(selective, "operator")
    assert [result["shapes"]["length"] for result in results] == [4, 4, 8, 8, 16, 16, 32, 32, 64, 64]
    for result in results:
        expected = ["sdpa", "naive"] if result["shapes"]["length"] <= 16 else ["sdpa"]
        assert list(result["cost_ratios"]) == expected
    script = import_module("selective_attn")
    inputs = script.draw_inputs(benchmarks[1].Settings("", "cpu", "float32", 1, 2, 5, 4, 3, 128), 100)
    torch.testing.assert_close(script.naive(*inputs), script.blocks(*inputs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(script.sdpa(*inputs)[:, :2], script.blocks(*inputs)[:, :2])  # no votes by then


def test_a_cache_under_a_budget_has_so_many_slots_however_long_the_text(selective):
    results = [result for result in by_bench(selective, "decoding") if result["unit"] == "KiB"]
    shapes = [(result["shapes"].get("budget"), result["shapes"]["length"]) for result in results]
    unlimited, two, eight = [(None, n) for n in (1, 8, 32, 128)], [(2, n) for n in (8, 32, 128)], [(8, 8), (8, 32)]
    assert sorted(shapes, key=str) == sorted([*unlimited, *two, *eight, (8, 128)], key=str)
    layers, width = 2, 32  # of tiny
    for result, (budget, length) in zip(results, shapes, strict=True):
        assert result["contenders"]["llama"]["median"] == layers * length * 2 * width * 4 / 1024
        slots = length if budget is None else budget
        ours = layers * (slots * (2 * width * 4 + 13) + 8)  # and a count of tokens
        assert result["contenders"]["selective_attn"]["median"] == ours / 1024
    steps = [result for result in by_bench(selective, "decoding") if result["unit"] == "tokens/s"]
    assert len(steps) == len(results) and all(result["tokens_per_call"] == 3 for result in steps)
    (written,) = by_bench(selective, "generation")
    under_two = next(result for result, shape in zip(results, shapes, strict=True) if shape == (2, 128))
    for name in ("selective_attn", "llama"):
        assert written["contenders"][name]["median"] == under_two["contenders"][name]["median"]


def test_crossover_is_told_and_drawn(benchmarks, tmp_path, capsys):
    def result(length, ours):
        contenders = {name: {"median": cost, "quartiles": [cost, cost]} for name, cost in (("a", ours), ("b", 1.0))}
        common = {"preset": "tiny", "dtype": "float32", "unit": "s", "contenders": contenders}
        return {"case": f"step, {length}", "shapes": {"length": length}, "cost_ratios": {"b": ours}, **common}

    (tmp_path / "report.json").write_text(json.dumps({"results": [result(1, 0.5), result(4, 0.5), result(2, 2.0)]}))
    import_module("crossover").main([str(tmp_path / "report.json"), "--png", str(tmp_path / "new" / "plot.png")])
    assert "step (tiny, float32) beside b: ahead from 4 on (1: 0.50, 2: 2.00, 4: 0.50)" in capsys.readouterr().out
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bench", "anthe_trainings"], "invalid choice: 'anthe_trainings'"),
        (["--quick", "--repeats", "0"], "--repeats must be at least 1, not 0"),
        (["--preset", "nowhere.json"], "nowhere.json is not a file"),
    ],
)
def test_bad_options_are_named(benchmarks, capsys, options, message):
    with pytest.raises(SystemExit):
        benchmarks[0].main(options)
    assert message in capsys.readouterr().err


def test_unknown_base_is_named(benchmarks):
    with pytest.raises(SystemExit, match="--base no-such-commit: git cannot check that out"):
        benchmarks[0].main(["--quick", "--base", "no-such-commit"])


@pytest.mark.slow
def test_base_runs_the_library_of_another_commit(benchmarks, root, tmp_path, capsys):
    if subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("not a git checkout")
    output = tmp_path / "out.json"
    benchmarks[0].main(["--bench", "anthe_training", "--quick", "--base", "HEAD", "--json", str(output)])
    base = json.loads(output.read_text())["base"]
    assert base["ref"] == "HEAD" and base["git"]["dirty"] is False
    assert base["git"]["sha"] == json.loads(output.read_text())["git"]["sha"]
    assert base["ratios"][0]["cost_over_base"].keys() == {"anthe", "marian"}
    assert "cost over HEAD's" in capsys.readouterr().out
    worktrees = subprocess.run(["git", "-C", str(root), "worktree", "list"], capture_output=True, text=True).stdout
    assert base["git"]["sha"][:7] not in worktrees.partition("\n")[2]


def test_suite_names_what_there_is(benchmarks):
    run, registry = benchmarks
    arguments = run.parse(["--suite", "gpu", "--device", "cuda"])
    assert arguments.longest == 32768 and run.parse(["--suite", "gpu", "--quick"]).longest == run.QUICK["longest"]
    entries = run.entries(arguments)
    assert [entry.bench for entry in entries] == [name for name, _, _ in registry.SUITES["gpu"]]
    assert all(entry.preset.is_file() for entry in entries)
    quick = run.entries(run.parse(["--suite", "gpu", "--quick"]))
    assert {entry.preset.stem for entry in quick} == {"tiny", "lm_tiny"}


@pytest.mark.parametrize("more", [[], ["--device", "cuda", "--base", "main"]], ids=" ".join)
def test_suite_refuses_what_it_cannot_be_run_with(benchmarks, more, capsys):
    with pytest.raises(SystemExit):
        benchmarks[0].parse(["--suite", "gpu", *more])
    assert "--suite" in capsys.readouterr().err


def test_suite_ends_in_time_and_says_what_it_left_out(benchmarks, tmp_path, monkeypatch):
    run, registry = benchmarks
    monkeypatch.setattr(run, "kernel_tests", lambda arguments: {"passed": True})
    path = tmp_path / "report.json"
    run.main(["--suite", "gpu", "--quick", "--time-limit", "0", "--longest", "64", "--json", str(path)])
    report = json.loads(path.read_text())
    assert report["results"] == [] and report["suite"] == "gpu"
    assert [entry["bench"] for entry in report["left_out"]] == [name for name, _, _ in registry.SUITES["gpu"]]


def test_kernels_are_tested_in_half_of_the_time(benchmarks, monkeypatch):
    run, _ = benchmarks
    arguments = run.parse(["--suite", "gpu", "--device", "cuda", "--time-limit", "200"])

    def finishes(command, *, stdout, timeout, **_):
        assert command[-2] != "-n" or int(command[-1]) >= 1
        stdout.write("3 passed\n")
        if timeout <= 100:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(run.subprocess, "run", finishes)
    assert run.kernel_tests(arguments) == {"passed": None, "output": ["stopped after 100 s"]}
    arguments.time_limit = 300
    assert run.kernel_tests(arguments) == {"passed": True, "output": ["3 passed"]}


@pytest.mark.slow
def test_operators_come_with_their_errors(benchmarks, tmp_path):
    path = tmp_path / "report.json"
    benches = ["fast_weight_kernel", "fast_weight_kernel_dpfp", "selective_attn_kernel"]
    benchmarks[0].main(["--bench", *benches, "--quick", "--longest", "32", "--repeats", "1", "--json", str(path)])
    results = json.loads(path.read_text())["results"]
    assert {result["bench"] for result in results} == set(benches)
    for result in results:
        if "errors" in result:
            assert set(result["errors"]) >= {"torch"}
            assert all(0 <= error < 1e-4 for error in result["errors"]["torch"].values()), result["case"]
    assert sum("errors" in result for result in results) == len(results) // 2


def test_language_models_of_one_size_stand_beside_llama(benchmarks, tmp_path):
    path = tmp_path / "report.json"
    benches = [f"{family}_lm_training" for family in ("delight", "fast_weight", "selective_attn")]
    sizes = ["--longest", "64", "--batch-size", "4", "--repeats", "1", "--warmup", "1"]
    benchmarks[0].main(["--bench", *benches, "--quick", *sizes, "--json", str(path)])
    for result in json.loads(path.read_text())["results"]:
        ours, llama = (result["models"][name]["parameters"] for name in result["contenders"])
        assert list(result["contenders"])[1] == "llama" and abs(ours / llama - 1) < 0.01
        assert result["shapes"]["batch_size"] * result["shapes"]["length"] == 16
