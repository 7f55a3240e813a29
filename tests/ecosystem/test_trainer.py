# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""transformers' own Trainer, with its own collators and callbacks, on every model."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import huggingface_hub
import pytest
import torch
import transformers
from datasets import Dataset
from ecosystem.subjects import TOKENS, Subject, subjects
from ecosystem.texts import words
from hub.local_hub import LocalHub
from peft import LoraConfig
from safetensors.torch import load_file
from torch.nn import functional
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from leanformers.hub import clean_process
from leanformers.metrics import exact_match
from leanformers.registry import NAME_TABLES
from numerics import assert_close

LENGTHS = (9, 4, 7, 5, 3, 8, 6, 4)
ONE_STEP = {"max_steps": 1, "logging_steps": 1, "learning_rate": 0.0, "max_grad_norm": 0.0}


@pytest.fixture(scope="session")
def right_padding(tokenizer) -> PreTrainedTokenizerBase:
    other = copy.deepcopy(tokenizer)
    other.padding_side = "right"
    return other


@pytest.fixture(scope="session")
def rows() -> list[dict[str, list[int]]]:
    """Texts of different lengths that end as sentences do."""
    texts = [words(1, length, seed=length + number)[0].tolist() for number, length in enumerate(LENGTHS)]
    return [{"input_ids": text, "labels": [*text[1:], TOKENS["eos_token_id"]]} for text in texts]


def examples(subject: Subject, rows: list[dict]) -> Dataset:
    """A decoder's labels are its inputs."""
    return Dataset.from_list([row | {"labels": row["input_ids"]} if subject.is_decoder else row for row in rows])


def start(
    subject: Subject, rows: list[dict], folder: Path, tokenizer, *, collator=None, kind=Trainer, model=None, **options
) -> Trainer:
    """A trainer; what it takes beside arguments stands in `given`."""
    given = options.pop("given", {})
    model = subject.build() if model is None else model
    arguments = Seq2SeqTrainingArguments if kind is Seq2SeqTrainer else TrainingArguments
    options = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "save_strategy": "no"} | options
    settings = arguments(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, remove_unused_columns=False, **options
    )
    data, padding = examples(subject, rows), DataCollatorForSeq2Seq(tokenizer, model=model)
    return kind(
        model,
        settings,
        collator or padding,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        **given,
    )


def first_step(trainer: Trainer) -> tuple[float, float]:
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return logged["loss"], logged["grad_norm"]


@torch.no_grad()
def logits_alone(model: PreTrainedModel, subject: Subject, row: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one row without padding, `[length, vocab_size]`, and what they should predict."""
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
    if subject.is_decoder:
        return model(input_ids=ids).logits[0, :-1], ids[0, 1:]
    begin = torch.tensor([model.config.decoder_start_token_id])
    inputs = torch.cat([begin, labels[:-1]])[None]
    return model(input_ids=ids, decoder_input_ids=inputs).logits[0], labels


def loss_by_hand(model: PreTrainedModel, subject: Subject, rows: list[dict], label_smoothing: float = 0.0) -> float:
    """Cross-entropy per token of rows that never saw each other or padding."""
    parts = [logits_alone(model, subject, row) for row in rows]
    logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing).item()


def logits_of(prediction) -> torch.Tensor:
    """Without what encoder-decoders return beside them."""
    kept = prediction.predictions
    return torch.tensor(kept[0] if isinstance(kept, tuple) else kept)


def parities(prediction) -> dict[str, float]:
    """A metric of the library, loaded by path: how often the preferred token is as even as the label."""
    real = prediction.label_ids != -100
    tokens, labels = logits_of(prediction).argmax(-1)[real], prediction.label_ids[real]
    odd = {
        "predictions": [str(token.item() % 2) for token in tokens],
        "references": [str(label % 2) for label in labels],
    }
    return evaluate.load(str(Path(exact_match.__file__).parent)).compute(**odd)


@pytest.mark.tool("Trainer", "evaluate, predict, compute_metrics")
def test_evaluation(subject, rows, right_padding, tmp_path):
    trainer = start(subject, rows, tmp_path, right_padding, given={"compute_metrics": parities})
    result, equal = trainer.predict(trainer.eval_dataset), []
    logits = logits_of(result)
    for number, (row, example) in enumerate(zip(rows, trainer.eval_dataset, strict=True)):
        alone, _ = logits_alone(trainer.model, subject, row)
        assert_close(f"row {number}", logits[number, : len(alone)], alone)
        labels = torch.tensor(example["labels"])
        equal += (logits[number, : len(labels)].argmax(-1) % 2 == labels % 2).tolist()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(loss_by_hand(trainer.model, subject, rows), rel=1e-5)
    assert 0 < sum(equal) < len(equal)
    assert metrics["eval_exact_match"] == result.metrics["test_exact_match"] == sum(equal) / len(equal)


@pytest.mark.tool("Trainer", "predict_with_generate")
def test_generation_in_evaluation(translator, rows, right_padding, tmp_path):
    generated = []

    def keep(prediction) -> dict[str, float]:
        generated.append(torch.tensor(prediction.predictions))
        return {"rows": len(prediction.predictions)}

    options = {"predict_with_generate": True, "generation_max_length": 6, "generation_num_beams": 2}
    trainer = start(
        translator, rows, tmp_path, right_padding, kind=Seq2SeqTrainer, given={"compute_metrics": keep}, **options
    )
    result = trainer.predict(trainer.eval_dataset)
    assert trainer.evaluate()["eval_rows"] == len(rows) == result.metrics["test_rows"]
    pad = TOKENS["pad_token_id"]
    for number, row in enumerate(rows):
        alone = trainer.model.generate(torch.tensor([row["input_ids"]]), max_length=6, num_beams=2)[0]
        for texts in (*generated, torch.tensor(result.predictions)):
            text = texts[number][texts[number] != -100]
            assert torch.equal(text[: len(alone)], alone) and (text[len(alone) :] == pad).all()


@pytest.mark.tool("Trainer", "label smoothing")
def test_label_smoothing(subject, rows, right_padding, tmp_path, verdict, monkeypatch):
    def smoothed_loss() -> float:
        return first_step(start(subject, rows, tmp_path, right_padding, label_smoothing_factor=0.2, **ONE_STEP))[0]

    expected = loss_by_hand(subject.build(), subject, rows, label_smoothing=0.2)
    assert smoothed_loss() == pytest.approx(expected, rel=1e-5)
    if subject.is_decoder and not subject.is_peer:
        monkeypatch.delitem(NAME_TABLES["AutoModelForCausalLM"], subject.fields["model_type"])
        if smoothed_loss() != pytest.approx(expected, rel=1e-5):
            verdict.limits("with leanformers imported: Trainer knows by a table of names whose labels it has to shift")


@pytest.mark.tool("Trainer", "gradient accumulation (num_items_in_batch)")
def test_loss_does_not_depend_on_accumulation(subject, rows, right_padding, tmp_path):
    results = []
    for size in (8, 2):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        results.append(first_step(start(subject, rows, tmp_path, right_padding, **options, **ONE_STEP)))
    expected = loss_by_hand(subject.build(), subject, rows)
    for loss, norm in results:
        assert loss == pytest.approx(expected, rel=1e-5)
        assert norm == pytest.approx(results[0][1], rel=1e-4)


PACKINGS = {
    "position_ids": {},
    "position_ids and cu_seq_lens": {"return_flash_attn_kwargs": True},
    "position_ids and seq_idx": {"return_seq_idx": True},
}
OTHER_PACKINGS = {
    "cu_seq_lens": {"return_flash_attn_kwargs": True, "return_position_ids": False},
    "seq_idx": {"return_seq_idx": True, "return_position_ids": False},
    "both": {"return_flash_attn_kwargs": True, "return_seq_idx": True, "return_position_ids": False},
}


def check_packed(subject: Subject, rows, tokenizer, folder, verdict, options: dict[str, bool]) -> None:
    """A step on packed texts is the step on padded ones, and each text has the logits that it has alone."""
    collator = DataCollatorWithFlattening(return_tensors="pt", **options)
    packed = start(subject, rows, folder, tokenizer, collator=collator, **ONE_STEP)
    if not subject.is_decoder:
        with pytest.raises(ValueError, match="for one text a row: it takes no `(position_ids|seq_idx|cu_seq_lens_q)`"):
            packed.train()
        verdict.refused("one text a row: pad them")
        return
    loss, norm = first_step(packed)
    padded_loss, padded_norm = first_step(start(subject, rows, folder, tokenizer, **ONE_STEP))
    assert loss == pytest.approx(padded_loss, rel=1e-5)
    assert norm == pytest.approx(padded_norm, rel=1e-4)
    model, batch = packed.model.eval(), collator([{"input_ids": row["input_ids"]} for row in rows])
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[0]
        alone = torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows])
    assert_close("logits", logits, alone)


@pytest.mark.tool("Trainer", "packed data (DataCollatorWithFlattening)")
@pytest.mark.parametrize("options", PACKINGS.values(), ids=PACKINGS)
def test_packed_data(subject, rows, right_padding, tmp_path, verdict, options):
    check_packed(subject, rows, right_padding, tmp_path, verdict, options)


@pytest.mark.tool("Trainer", "packed data, told by cu_seq_lens or seq_idx alone")
@pytest.mark.parametrize("options", OTHER_PACKINGS.values(), ids=OTHER_PACKINGS)
def test_packed_data_without_positions(subject, rows, right_padding, tmp_path, verdict, options):
    check_packed(subject, rows, right_padding, tmp_path, verdict, options)


@pytest.mark.tool("Trainer", "early stopping, best model at the end")
def test_early_stopping_loads_the_best_model(subject, rows, right_padding, tmp_path):
    scores = iter((1.0, 3.0, 2.0, 2.5))
    given = {
        "callbacks": [EarlyStoppingCallback(early_stopping_patience=2)],
        "compute_metrics": lambda prediction: {"score": next(scores)},
    }
    options = {"max_steps": 9, "learning_rate": 1e-2, "load_best_model_at_end": True, "metric_for_best_model": "score"}
    every_step = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    trainer = start(subject, rows, tmp_path, right_padding, given=given, **options, **every_step)
    trainer.train()
    assert trainer.state.global_step == 4 and trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    state = trainer.model.state_dict()
    best, last = (load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4))
    assert all(torch.equal(state[name], weight) for name, weight in best.items())
    assert not any(torch.equal(best[name], weight) for name, weight in last.items() if weight.dim() > 1)
    for target, source in trainer.model.all_tied_weights_keys.items():
        assert trainer.model.get_parameter(target) is trainer.model.get_parameter(source)


@pytest.fixture
def local_hub(tmp_path, monkeypatch) -> LocalHub:
    """What huggingface_hub asks of huggingface.co in this test, asked of a server on this machine."""
    hub = LocalHub(tmp_path / "hub", token="hf_test")
    with hub.serving() as endpoint:
        for name, value in {"ENDPOINT": endpoint, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(
            transformers.utils.hub, "_hf_api", None, raising=False
        )  # keeps the endpoint it was made with
        yield hub
    huggingface_hub.close_session()  # the next server may have this one's port


@pytest.mark.tool("Trainer", "push_to_hub")
def test_push_to_hub(subject, rows, right_padding, tmp_path, local_hub):
    options = {"max_steps": 1, "hub_model_id": "lean/tiny", "hub_token": "hf_test", "hub_private_repo": True}
    trainer = start(subject, rows, tmp_path / "run", right_padding, **options)
    trainer.train()
    trainer.push_to_hub()
    repository = local_hub.repository("lean/tiny")
    files = repository.resolve("main").files
    assert repository.private and {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= files.keys()
    (tmp_path / "pushed").write_bytes(local_hub.read("lean/tiny", "model.safetensors"))
    state = trainer.model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in load_file(tmp_path / "pushed").items())
    assert b"library_name: transformers" in local_hub.read("lean/tiny", "README.md")
    if not subject.is_peer:
        auto_map = json.loads(local_hub.read("lean/tiny", "config.json"))["auto_map"]
        assert {f"{reference.split('.')[0]}.py" for reference in auto_map.values()} <= files.keys()
        for name in (name for name in files if name.endswith(".py")):
            source = local_hub.read("lean/tiny", name).decode()
            siblings = {line.split()[1][1:] for line in source.splitlines() if line.startswith("from .")}
            assert {f"{sibling}.py" for sibling in siblings} <= files.keys(), name


@pytest.fixture(scope="module")
def remote_runs(tmp_path_factory) -> Path:
    """Runs of all models in two processes without leanformers: `whole`, and `resumed` after its second step."""
    folder = tmp_path_factory.mktemp("remote")
    for subject in subjects(os.environ.get("LEANFORMERS_PEERS") == "1"):
        fields = {name: 0.1 for name in subject.fields if name.endswith("dropout")}
        try:
            subject.build(**fields).save_pretrained(folder / "models" / subject.name)
        except Exception as error:
            assert subject.is_peer, error
            continue
        (folder / "models" / subject.name / "auto_class.txt").write_text(subject.auto_class)
    script, loader = Path(__file__).with_name("remote_training.py"), clean_process.__file__
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    for output, *checkpoints in (("whole",), ("resumed", "whole")):
        command = [sys.executable, "-P", str(script), loader, "models", output, *checkpoints]
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.tool("Trainer", "resume of remote code, offline")
def test_remote_code_resumes_without_leanformers(subject, remote_runs):
    """A checkpoint has its code beside it, from which another process goes on bit for bit. Dropout is on."""
    for run in ("whole", "resumed"):
        error = remote_runs / run / subject.name / "error.txt"
        assert not error.exists(), error.read_text()
    assert subject.is_peer or list((remote_runs / "whole" / subject.name / "checkpoint-2").glob("modeling_*.py"))
    begun, whole, resumed = (
        load_file(remote_runs / run / subject.name / "model.safetensors") for run in ("models", "whole", "resumed")
    )
    assert all(torch.equal(whole[name], weight) for name, weight in resumed.items())
    assert not all(torch.equal(begun[name], weight) for name, weight in resumed.items())


TEXTS = [f"the number {number} is followed by {number + 1}" for number in range(8)]
SFT_FORMS = {
    "padded": {},
    "packed": {"packing": True, "max_length": 128},
    "padding-free": {"padding_free": True, "max_length": None},
}
FUSED_HEAD = (
    "embedding_size other than hidden_size needs `compute_loss = Trainer.compute_loss`: TRL skips what is between"
)


def trl_options(folder: Path, **options) -> dict[str, object]:
    fixed = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    return {"output_dir": str(folder), "logging_steps": 1, "learning_rate": 1e-2, **fixed, **options}


def losses_of(trainer: Trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.tool("TRL", "SFTTrainer, padded and packed, with LoRA")
@pytest.mark.parametrize("form", SFT_FORMS.values(), ids=SFT_FORMS)
def test_supervised_fine_tuning(decoder, right_padding, tmp_path, verdict, form):
    trl = pytest.importorskip("trl")

    def sft(kind: type[Trainer] = trl.SFTTrainer, **fields) -> Trainer:
        options = trl.SFTConfig(**trl_options(tmp_path, max_steps=4, per_device_train_batch_size=8, **form))
        data = Dataset.from_dict({"text": TEXTS})
        model, given = decoder.build(), {"args": options, "train_dataset": data, "processing_class": right_padding}
        return kind(model, **given, **fields)

    class PlainLoss(trl.SFTTrainer):
        compute_loss = Trainer.compute_loss

    kind = trl.SFTTrainer
    if decoder.name == "DeLighT LM":
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            sft().train()
        verdict.limits(FUSED_HEAD)
        kind = PlainLoss
    trained = [{"input_ids": row, "labels": row} for row in right_padding(TEXTS).input_ids]
    eos = [right_padding.eos_token_id]
    rows = [{"input_ids": row["input_ids"] + eos, "labels": row["labels"] + eos} for row in trained]
    expected = loss_by_hand(decoder.build(), decoder, rows)
    losses = losses_of(sft(kind))
    assert losses[0] == pytest.approx(expected, rel=1e-4) and losses[-1] < 0.8 * losses[0]
    adapted = losses_of(sft(kind, peft_config=LoraConfig(task_type="CAUSAL_LM", r=4)))
    assert adapted[0] == pytest.approx(expected, rel=1e-4) and adapted[-1] < adapted[0]


@pytest.mark.slow
@pytest.mark.tool("TRL", "DPOTrainer")
def test_preference_optimisation(decoder, right_padding, tmp_path, verdict):
    trl = pytest.importorskip("trl")
    pairs = {"prompt": ["the number 1 is"] * 4, "chosen": [" one"] * 4, "rejected": [" two and"] * 4}
    options = trl.DPOConfig(**trl_options(tmp_path / "run", max_steps=3, per_device_train_batch_size=4))

    def dpo(**fields) -> Trainer:
        decoder.build(**fields).save_pretrained(tmp_path / "model")  # TRL loads it again for reference
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        data = Dataset.from_dict(pairs)
        return trl.DPOTrainer(model, args=options, train_dataset=data, processing_class=right_padding)

    fields = {}
    if decoder.name == "DeLighT LM":
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            dpo().train()
        verdict.limits("only with an embedding_size of hidden_size, as TRL skips what is between")
        fields = {"embedding_size": decoder.fields["hidden_size"]}
    trainer = dpo(**fields)
    losses = losses_of(trainer)
    assert losses[0] == pytest.approx(math.log(2), rel=1e-4) and losses[-1] < 0.6
    assert [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry][-1] > 0
