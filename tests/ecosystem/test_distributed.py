# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Two processes train through the scripts to where one does, whatever is shared out between them, and a model split
between them computes what the whole one does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from accelerate.commands.merge import merge_command, merge_command_parser
from ecosystem import parallel_worker
from ecosystem.subjects import Subject, subjects
from filelock import FileLock
from safetensors.torch import load_file, save_file
from training.runs import (
    assert_same_runs,
    launch_together,
    losses_of,
    train,
    train_lm,
    write_pairs,
    write_programs,
)

from numerics import assert_close

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Sums of two halves are rounded otherwise than whole ones.
EXACT = {"relative": 1e-5, "losses": 1e-6}
SHARDED = {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}  # as `accelerate launch --fsdp_state_dict_type` sets it
# Split otherwise.
VARIANTS = {
    "FastWeight": {"softmax": {"update_rule": "softmax"}},
    "SelectiveAttn": {"plain": {"use_selective_attention": False, "qk_norm": True, "num_key_value_heads": 2}},
}
TWO_ROWS = "--per_device_train_batch_size=2"


class Campaign:
    """Runs of one subject on steps of four rows: `one(name)` in this process, `two(launch)` in two."""

    def __init__(self, subject: Subject, folder: Path):
        self.subject, self.folder = subject, folder
        self.script = f"scripts/train_{'clm' if subject.is_decoder else 'seq2seq'}.py"
        (folder / "model.json").write_text(json.dumps(subject.fields))
        settings = {
            "config_name": folder / "model.json",
            "max_steps": 6,
            "save_steps": 3,
            "logging_steps": 1,
            "learning_rate": 3e-3,
            "adam_epsilon": 1e-3,  # lest Adam make whole steps of what is mere rounding in a gradient
            "use_cpu": "true",
            "disable_tqdm": "true",
        }
        self.flags = [f"--{key}={value}" for key, value in settings.items()]
        if subject.is_decoder:
            texts = write_programs(folder)
            self.flags += ["--tokenizer_vocab_size=280", "--block_size=32", f"--train_files={texts['train']}"]
        else:
            self.flags += [*write_pairs(folder)[:3], "--tokenizer_vocab_size=300", "--shared_tokenizer=true"]

    def argv(self, name: str, *flags: str) -> list[str]:
        return [*self.flags, f"--output_dir={self.folder / name}", *flags]

    def one(self, name: str, *flags: str) -> Path:
        if not (self.folder / name / "all_results.json").exists():
            start = train_lm if self.subject.is_decoder else train
            start(*self.argv(name, *(flags or ["--per_device_train_batch_size=4"])))
        return self.folder / name

    def two(self, launch: str) -> Path:
        """The folder of the runs of a launch by configs/accelerate/<launch>.yaml."""
        folder = self.folder / launch
        if not folder.exists():
            checkpoint = self.one("one") / "checkpoint-3"
            runs = {
                "plain": [TWO_ROWS],
                "accumulated": ["--per_device_train_batch_size=1", "--gradient_accumulation_steps=2"],
                "recomputed": [TWO_ROWS, "--gradient_checkpointing"],
                "bf16": [TWO_ROWS, "--bf16"],
            }
            if launch == "fsdp2":
                checkpoint = folder / "sharded/checkpoint-3"
                runs |= {
                    "sharded": [TWO_ROWS],
                    "sharded resumed": [TWO_ROWS, f"--resume_from_checkpoint={checkpoint}"],
                }
            else:
                runs["resumed"] = [TWO_ROWS, f"--resume_from_checkpoint={checkpoint}"]
            plan = [
                {
                    "script": self.script,
                    "argv": self.argv(f"{launch}/{name}", *flags),
                    "environment": SHARDED if "sharded" in name else {},
                }
                for name, flags in runs.items()
            ]
            launch_together(self.folder, launch, plan)
        return folder


@pytest.fixture
def campaign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The one of the test's subject, shared with the other workers of pytest-xdist."""
    (kind,) = {"subject", "decoder", "translator"} & set(request.fixturenames)
    subject = request.getfixturevalue(kind)
    if subject.name.startswith("DeltaNet"):
        pytest.skip("needs a GPU")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"campaign {subject.name}"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        yield Campaign(subject, folder)


@pytest.mark.tool("accelerate", "two processes, DDP")
def test_ddp(subject, campaign):
    assert_same_runs(campaign.two("cpu_2") / "plain", campaign.one("one"), **EXACT)


@pytest.mark.tool("accelerate", "two processes, FSDP2")
def test_fsdp2(subject, campaign):
    run = campaign.two("fsdp2") / "plain"
    assert (run / "checkpoint-3/pytorch_model_fsdp.bin").exists()  # it has been sharded
    assert_same_runs(run, campaign.one("one"), **EXACT)
    check_folder(run)


@pytest.mark.tool("accelerate", "gradient accumulation")
def test_gradient_accumulation(subject, campaign):
    flags = (TWO_ROWS, "--gradient_accumulation_steps=2")
    assert_same_runs(campaign.one("accumulated", *flags), campaign.one("one"), **EXACT)
    for launch in ("cpu_2", "fsdp2"):
        assert_same_runs(campaign.two(launch) / "accumulated", campaign.one("one"), **EXACT)


@pytest.mark.tool("accelerate", "gradient checkpointing")
def test_gradient_checkpointing(subject, campaign):
    for launch in ("cpu_2", "fsdp2"):
        assert_same_runs(campaign.two(launch) / "recomputed", campaign.one("one"), **EXACT)


@pytest.mark.tool("accelerate", "bfloat16 mixed precision")
def test_mixed_precision(subject, campaign):
    """It strays from float32 at most twice as far as it does in one process."""
    exact, alone = campaign.one("one"), campaign.one("bf16", "--per_device_train_batch_size=4", "--bf16")
    for launch in ("cpu_2", "fsdp2"):
        run = campaign.two(launch) / "bf16"
        assert 0 < farthest(run, exact) <= 2 * farthest(alone, exact)
        assert losses_of(run) == pytest.approx(losses_of(exact), rel=2**-8)


@pytest.mark.tool("accelerate", "resume on fewer or more processes")
def test_resume_on_another_number_of_processes(subject, campaign):
    checkpoint = campaign.two("cpu_2") / "plain/checkpoint-3"
    flags = ("--per_device_train_batch_size=4", f"--resume_from_checkpoint={checkpoint}")
    assert_same_runs(campaign.one("resumed", *flags), campaign.one("one"), **EXACT)
    assert_same_runs(campaign.two("cpu_2") / "resumed", campaign.one("one"), **EXACT)


@pytest.mark.tool("accelerate", "FSDP2 sharded checkpoints, merged")
def test_sharded_checkpoints(subject, campaign):
    run, resumed = (campaign.two("fsdp2") / name for name in ("sharded", "sharded resumed"))
    for folder in (run, resumed):
        if not (folder / "model.safetensors").exists():
            shards = str(folder / "pytorch_model_fsdp_0")
            merge_command(merge_command_parser().parse_args([shards, str(folder)]))
    assert_same_runs(run, campaign.one("one"), **EXACT)
    assert_same_runs(resumed, campaign.one("one"), **EXACT)
    check_folder(run)
    auto_class = getattr(transformers, subject.auto_class)
    merged, full = (auto_class.from_pretrained(folder) for folder in (run, campaign.two("fsdp2") / "plain"))
    for (name, tensor), other in zip(merged.state_dict().items(), full.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def farthest(run: Path, other: Path) -> float:
    """The largest difference between weights of two runs."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (run, other))
    return max((weights[name] - tensor).abs().max().item() for name, tensor in others.items())


def check_folder(run: Path) -> None:
    """The folder names the class that was trained, and has the code of those that bring some."""
    config = json.loads((run / "config.json").read_text())
    assert not any(name.startswith("FSDP") for name in config["architectures"])
    for reference in config.get("auto_map", {}).values():
        module, _, name = reference.rpartition(".")
        assert f"class {name}(" in (run / f"{module}.py").read_text()


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Callable[[str, Subject], Path]:
    """What one and two processes compute, in the folder of a subject or variant: `split("tp_size", subject)`."""
    chosen = [s for s in subjects(os.environ.get("LEANFORMERS_PEERS") == "1") if not s.name.startswith("DeltaNet")]
    launched: dict[str, Path] = {}

    def launch(kind: str, subject: Subject, variant: str = "") -> Path:
        if subject not in chosen:
            pytest.skip("needs a GPU")
        if kind not in launched:
            launched[kind] = tmp_path_factory.mktemp(kind)
            folders = [write_inputs(other, launched[kind] / other.name) for other in chosen]
            for other in chosen if kind == "tp_size" else ():
                for name, fields in VARIANTS.get(other.name, {}).items():
                    folders.append(write_inputs(other, launched[kind] / f"{other.name}, {name}", **fields))
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
            command += [parallel_worker.__file__, kind, *map(str, folders)]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-6000:]
        return launched[kind] / (f"{subject.name}, {variant}" if variant else subject.name)

    return launch


def write_inputs(subject: Subject, folder: Path, **fields) -> Path:
    model = subject.build(**fields)
    model.save_pretrained(folder)
    input_ids = torch.randint(4, 260, (2, 9), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": input_ids.clone()}
    save_file(inputs, folder / "inputs.safetensors")
    save_file(parallel_worker.compute(model, inputs), folder / "whole.safetensors")
    return folder


def assert_same_results(folder: Path, *names: str) -> dict[str, torch.Tensor]:
    assert not (folder / "split.txt").exists(), (folder / "split.txt").read_text()
    results, expected = (load_file(folder / f"{name}.safetensors") for name in ("split", "whole"))
    assert torch.equal(results["continuation"], expected["continuation"])
    for name in names or expected:
        assert_close(name, results[name], expected[name], relative=1e-5, absolute=1e-6)
    return results


@pytest.mark.tool("accelerate", "tensor parallelism")
def test_tensor_parallelism(subject, split, verdict):
    folder = split("tp_size", subject)
    if subject.name == "Anthe" or subject.name.startswith("DeLighT"):
        assert "is shared out with fsdp_size alone (tp_size=2)" in (folder / "split.txt").read_text()
        verdict.refused(
            "cores of tensor chains have no columns to split"
            if subject.name == "Anthe"
            else "one head, and groups that exchange features after each layer"
        )
        return
    results = assert_same_results(folder)
    for variant in VARIANTS.get(subject.name, ()):
        assert_same_results(split("tp_size", subject, variant))
    num_parameters = sum(parameter.numel() for parameter in subject.build().parameters())
    assert results["num_held"] < 0.7 * num_parameters
    if subject.name == "SelectiveAttn":
        verdict.limits("feed-forward layers and tables are split, attention where it does not select")


@pytest.mark.tool("accelerate", "pipeline parallelism")
def test_pipeline_parallelism(subject, split, verdict):
    folder = split("pp_size", subject)
    if subject.has_memory or subject.name in ("Anthe", "DeLighT", "DeLighT LM"):
        assert "(pp_size=2)" in (folder / "split.txt").read_text()
        verdict.refused(
            "each stage would scale what it is given"
            if subject.has_memory
            else "transformers' stages are those of decoders like Llama"
        )
        return
    assert_same_results(folder, "logits")
    verdict.limits("transformers' stages compute logits, and no loss")


@pytest.mark.tool("accelerate", "training with tensor parallelism")
def test_training_with_tensor_parallelism(decoder, campaign, verdict):
    flags = ("--per_device_train_batch_size=4", "--save_only_model=true")
    run = campaign.folder / "tp"
    if not run.exists():
        plan = [{"script": campaign.script, "argv": campaign.argv("tp", *flags)}]
        if decoder.name.startswith("DeLighT"):
            with pytest.raises(AssertionError, match=r"DeLighT is shared out with fsdp_size alone \(tp_size=2\)"):
                launch_together(campaign.folder, "tp", plan)
            verdict.refused("one head, and groups that exchange features after each layer")
            return
        launch_together(campaign.folder, "tp", plan)
    assert_same_runs(run, campaign.one("one"), **EXACT)
    check_folder(run)
    verdict.limits("checkpoints are no place to resume from")
