# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""A memory carried from segment to segment: as a loop by hand, over processes, resumed, and in evaluation."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from training.runs import parse_language_model, run_here, run_script, train_lm
from training.test_distributed import LAUNCHER, assert_same_runs
from training.test_train_clm import assert_same_weights, losses_of
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from leanformers.data.language_modeling import LaneSegments
from leanformers.evaluation.language_modeling import evaluate_windows
from leanformers.modeling.fast_weight import FastWeightConfig, FastWeightForCausalLM
from leanformers.training.checkpoints import find_damage
from numerics import assert_close

MODEL = {
    "model_type": "fast_weight",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    # Normalisers are carried, too, and the first token of a lane is told from that of a segment.
    "attention_norm": "full",
    "feature_map": "elu_plus_one",
}
NO_DROPOUT = "dropout=0.0,activation_dropout=0.0"


@pytest.fixture(scope="module")
def carried_recipe(lm_recipe, tmp_path_factory):
    config = tmp_path_factory.mktemp("model") / "fast_weight.json"
    config.write_text(json.dumps(MODEL))

    def arguments(output_dir, *more):
        return lm_recipe(output_dir, f"--config_name={config}", "--carry_state", *more)

    return arguments


@pytest.fixture(scope="module")
def uninterrupted(carried_recipe, tmp_path_factory):
    """Two epochs and a half with dropout, evaluated in between."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    flags = ("--max_steps=20", "--save_steps=4", "--save_total_limit=20", "--eval_strategy=steps", "--eval_steps=3")
    train_lm(*carried_recipe(folder, *flags))
    return folder


def test_lanes_read_and_predict_every_token_once():
    for num_tokens in (2, 9, 40, 41, 57):
        for num_lanes in (1, 3, 4):
            lanes = LaneSegments(range(100, 100 + num_tokens), block_size=4, num_lanes=num_lanes)
            predicted, read = [], [[] for _ in range(num_lanes)]
            for index in range(len(lanes)):
                row = lanes[index]
                is_own = row["shift_labels"] != -100
                assert torch.equal(row["shift_labels"][is_own], row["input_ids"][is_own] + 1)
                predicted += row["shift_labels"][is_own].tolist()
                read[index % num_lanes] += row["input_ids"].tolist()
                assert len(row["input_ids"]) == len(lanes[index // num_lanes * num_lanes]["input_ids"]) > 0
            assert sorted(predicted) == list(range(101, 100 + num_tokens))
            for lane in read:
                assert lane == list(range(lane[0], lane[0] + lanes.lane_length))


@pytest.fixture(scope="module")
def start(carried_recipe, tmp_path_factory):
    """`start("delta", "full")`: the folder of an untrained model without dropout, and its tokenizer."""

    def folder(rule, norm):
        folder = tmp_path_factory.mktemp("start")
        overrides = f"--config_overrides={NO_DROPOUT},update_rule={rule},attention_norm={norm}"
        train_lm(*carried_recipe(folder, overrides, "--max_steps=1", "--learning_rate=0"))
        return folder

    return folder


@pytest.fixture(scope="module")
def by_hand(carried_recipe, tmp_path_factory):
    """Steps of SGD on two lanes, one after the other, each with a memory of its own: losses and the trained model."""

    def run(folder, text, *, block_size, accumulation, num_steps):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).train(), AutoTokenizer.from_pretrained(folder)
        tokens = torch.tensor([*tokenizer(text).input_ids, tokenizer.eos_token_id])
        middle = len(tokens) // 2
        lanes = tokens[: middle + 1], tokens[middle:]
        starts = range(0, middle, block_size)
        steps = [starts[first : first + accumulation] for first in range(0, len(starts), accumulation)]
        assert len(steps) < num_steps and (accumulation == 1 or len(steps[-1]) < accumulation)
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.3), []
        for number in range(num_steps):
            if number % len(steps) == 0:
                memories = [DynamicCache(config=model.config) for _ in lanes]
            total, num_tokens = 0.0, 0
            for start in steps[number % len(steps)]:
                for lane, memory in zip(lanes, memories, strict=True):
                    following = lane[start + 1 : start + 1 + block_size]
                    inputs = lane[start : start + len(following)]
                    logits = model(input_ids=inputs[None], past_key_values=memory).logits[0]
                    total = total + functional.cross_entropy(logits, following, reduction="sum")
                    num_tokens += len(following)
                    for layer in memory.layers:
                        layer.detach_()
            (total / num_tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total.item() / num_tokens)
        return losses, model

    return run


@pytest.mark.parametrize(
    ("rule", "norm", "accumulation"),
    [("delta", "full", 1), ("delta", "none", 3), ("sum", "output", 1)],
)
def test_training_equals_a_loop_by_hand(carried_recipe, start, by_hand, texts, tmp_path, rule, norm, accumulation):
    """Into the second epoch; at the end of the first, a step accumulates what is left."""
    folder = start(rule, norm)
    flags = (f"--model_name_or_path={folder}", "--per_device_train_batch_size=2", "--max_grad_norm=0")
    flags += ("--optim=sgd", "--learning_rate=0.3", "--lr_scheduler_type=constant", "--warmup_steps=0")
    flags += ("--block_size=100", "--max_steps=14", f"--gradient_accumulation_steps={accumulation}")
    train_lm(*carried_recipe(tmp_path, *flags))
    with open(texts["train"], encoding="utf-8") as file:
        losses, model = by_hand(folder, file.read(), block_size=100, accumulation=accumulation, num_steps=14)
    assert losses_of(tmp_path) == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    trained = load_file(tmp_path / "model.safetensors")
    for name, parameter in model.named_parameters():
        if name in trained:
            assert_close(name, trained[name], parameter.detach(), relative=1e-4, absolute=1e-5)


def test_evaluation_within_training_changes_nothing(carried_recipe, tmp_path):
    # Without dropout: any evaluation draws random numbers.
    flags = (f"--config_overrides={NO_DROPOUT}", "--max_steps=10")
    train_lm(*carried_recipe(tmp_path / "evaluated", *flags, "--eval_strategy=steps", "--eval_steps=3"))
    train_lm(*carried_recipe(tmp_path / "alone", *flags))
    assert_same_weights(tmp_path / "evaluated", tmp_path / "alone")


@pytest.mark.parametrize("step", [4, 8, 12], ids=["within an epoch", "between epochs", "within a later epoch"])
def test_resumed_run_equals_uninterrupted_run(uninterrupted, tmp_path, step):
    run = stop_at(uninterrupted, step, tmp_path / "run")
    train_lm(run / "arguments.yaml", f"--output_dir={run}", "--resume")
    assert_same_weights(run, uninterrupted)
    assert losses_of(run) == losses_of(uninterrupted)


def stop_at(run, step, folder):
    """A copy of a run as it was after that step."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("*_results.json"))
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    return folder


def test_memory_in_the_checkpoint_is_what_the_run_goes_on_with(uninterrupted, tmp_path):
    run = stop_at(uninterrupted, 4, tmp_path / "run")
    file = run / "checkpoint-4/carried_state_0.safetensors"
    memory = load_file(file)
    assert memory["layers.1.memory"].shape == (8, 2, 16, 16) and memory["num_seen"] == 4 * 32
    save_file({name: tensor * (1 if tensor.dim() == 0 else 2) for name, tensor in memory.items()}, file)
    train_lm(run / "arguments.yaml", f"--output_dir={run}", "--resume")
    assert losses_of(run)[:4] == losses_of(uninterrupted)[:4]
    assert losses_of(run)[4] != losses_of(uninterrupted)[4]


def test_checkpoints_are_checked(uninterrupted, carried_recipe, tmp_path):
    run = stop_at(uninterrupted, 4, tmp_path / "run")
    file = run / "checkpoint-4/carried_state_0.safetensors"
    with pytest.raises(ValueError, match=r"is one of 1 processes with 8 rows each, and cannot go on in 1 with 4"):
        train_lm(run / "arguments.yaml", f"--output_dir={run}", "--per_device_train_batch_size=4", "--resume")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert file.name in find_damage(run / "checkpoint-4")
    file.unlink()
    with pytest.raises(ValueError, match="There is no .*carried_state_0.safetensors: the run was started without"):
        train_lm(run / "arguments.yaml", f"--output_dir={run}", "--resume")


def test_two_processes_equal_one(carried_recipe, tmp_path):
    flags = (f"--config_overrides={NO_DROPOUT}", "--max_steps=16", "--eval_strategy=steps", "--eval_steps=8")
    process = run_script(
        "train_clm.py",
        *carried_recipe(tmp_path / "two", *flags, "--per_device_train_batch_size=4", "--per_device_eval_batch_size=2"),
        launcher=LAUNCHER,
    )
    assert process.returncode == 0, process.stderr.decode()
    train_lm(*carried_recipe(tmp_path / "one", *flags))
    assert_same_runs(tmp_path / "two", tmp_path / "one")
    shared, alone = (json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("two", "one"))
    assert shared["epoch"] == alone["epoch"] > 1
    for prefix in ("eval", "test"):
        assert shared[f"{prefix}_num_tokens"] == alone[f"{prefix}_num_tokens"]
        for metric in ("perplexity", "perplexity_per_word", "bits_per_byte"):
            assert shared[f"{prefix}_{metric}"] == pytest.approx(alone[f"{prefix}_{metric}"], rel=1e-3)


@pytest.fixture(scope="module")
def random_model():
    torch.manual_seed(0)
    model = FastWeightForCausalLM(FastWeightConfig(**MODEL, vocab_size=300))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_evaluation_with_carried_state_is_one_whole_forward(random_model, num_lanes):
    """Of each lane; perplexity is over all tokens, of which no lane has a whole number of segments."""
    tokens = torch.randint(0, 300, (160,), generator=torch.Generator().manual_seed(0))
    random_model.train()
    results = evaluate_windows(
        random_model, LaneSegments(tokens.numpy(), block_size=20, num_lanes=num_lanes, num_bytes=700), batch_size=5
    )
    assert random_model.training
    random_model.eval()
    total = 0.0
    for lane in (range(159),) if num_lanes == 1 else (range(53), range(53, 106), range(106, 159)):
        with torch.no_grad():
            logits = random_model(input_ids=tokens[None, lane.start : lane.stop]).logits[0]
        total += functional.cross_entropy(logits, tokens[lane.start + 1 : lane.stop + 1], reduction="sum").item()
    assert results["num_tokens"] == 159
    assert results["loss"] == pytest.approx(total / 159, rel=1e-5)
    assert results["bits_per_byte"] == pytest.approx(total / 700 / torch.tensor(2.0).log().item(), rel=1e-5)


def test_evaluate_script_carries_state_as_training_does(monkeypatch, uninterrupted, texts, tmp_path):
    output = tmp_path / "results.json"
    flags = (f"--model_name_or_path={uninterrupted}", f"--test_files={texts['test']}", f"--output_file={output}")
    flags += ("--block_size=32", "--device=cpu", "--batch_size=4")
    run_here(monkeypatch, "evaluate.py", *flags, "--carry_state")
    results, trained = (json.loads(path.read_text()) for path in (output, uninterrupted / "all_results.json"))
    for metric, value in results["test"].items():
        assert value == pytest.approx(trained[f"test_{metric}"], rel=1e-6)
    output.unlink()
    run_here(monkeypatch, "evaluate.py", *flags)
    assert json.loads(output.read_text())["test"]["loss"] != pytest.approx(trained["test_loss"], rel=1e-6)


def test_generate_script_writes_what_the_model_goes_on_with(monkeypatch, uninterrupted, tmp_path):
    prompts = ["def add_7(x):", "def", "    return x + 3"]
    (tmp_path / "in.txt").write_text("\n".join(prompts))
    output = tmp_path / "out.jsonl"
    flags = (f"--model_name_or_path={uninterrupted}", f"--input_file={tmp_path / 'in.txt'}", "--max_new_tokens=9")
    run_here(monkeypatch, "generate.py", *flags, f"--output_file={output}", "--device=cpu")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(uninterrupted),
        AutoTokenizer.from_pretrained(uninterrupted),
    )
    for prompt, line in zip(prompts, output.read_text(encoding="utf-8").splitlines(), strict=True):
        ids = torch.tensor([tokenizer(prompt).input_ids])
        text = tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=9)[0], skip_special_tokens=True)
        assert json.loads(line) == {"prompt": prompt, "continuation": text[len(prompt) :]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config_overrides=update_rule=softmax,attention_norm=none"], "carry_state needs a model with a memory"),
        (["--config_name={delight}"], "this DeLighTForCausalLM has none"),
        (["--gradient_checkpointing"], "gradient_checkpointing=True runs every block twice.* leave it out"),
        (["--label_smoothing_factor=0.1"], "label_smoothing_factor=0.1 takes the labels"),
        (["--auto_find_batch_size"], "auto_find_batch_size=True changes"),
        (['--accelerator_config={"split_batches": true}'], "split_batches takes the rows of a batch apart"),
        (["--block_size=1000"], "fewer than one block of block_size=1000 for each of the 8 rows"),
    ],
)
def test_what_cannot_carry_a_memory_is_refused(carried_recipe, root, tmp_path, flags, message):
    flags = [flag.replace("{delight}", str(root / "configs/model/delight/lm_tiny.json")) for flag in flags]
    with pytest.raises(ValueError, match=message):
        train_lm(*carried_recipe(tmp_path / "run", *flags))
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--context_window=8", "carry_state brings along all that was before a block, so context_window=8"),
        ("--pack_documents=separate", "leave pack_documents at 'stream'"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(carried_recipe, tmp_path, capsys, flag, message):
    with pytest.raises(SystemExit):
        parse_language_model(*carried_recipe(tmp_path, flag))
    assert message in capsys.readouterr().err
