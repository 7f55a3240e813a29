# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Adapters change what a model says, can be switched off, merged, unloaded, saved and loaded; nothing goes stale."""

import importlib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import transformers
from ecosystem.subjects import OURS, TOKENS, Subject
from ecosystem.texts import inputs, labelled, words
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from leanformers import family_of
from leanformers.modeling.anthe.modeling_anthe import CACHE_NAME
from numerics import assert_close

SUBJECTS = {subject.name: subject for subject in OURS}
GROUP_LINEAR = [f"dextra.layers.{layer}.weight" for layer in range(4)]
# Of each model the raw parameters that hold most of its weights, as `target_parameters` names them.
PARAMETERS = {"DeLighT": GROUP_LINEAR, "DeLighT LM": GROUP_LINEAR, "T5": ["SelfAttention.v.weight"]}
# Modules that are worth training whole, as they have few weights.
WHOLE = {"Anthe": ["gate_proj", "q_proj", "v_proj"], "DeLighT": ["dextra"], "DeLighT LM": ["dextra"], "T5": ["wo"]}
VIRTUAL_TOKENS = 3


def task(subject: Subject) -> str:
    return "CAUSAL_LM" if subject.is_decoder else "SEQ_2_SEQ_LM"


@torch.no_grad()
def logits_of(model: torch.nn.Module, subject: Subject) -> torch.Tensor:
    return model(**inputs(subject)).logits


def warm(model: PreTrainedModel, subject: Subject) -> torch.Tensor:
    """Logits, when everything has been kept that a model keeps once it has seen tokens enough."""
    with torch.no_grad():
        model(**inputs(subject, rows=2, length=TOKENS["vocab_size"] // 2))
    return logits_of(model, subject)


def adapt(model: PreTrainedModel, subject: Subject, **fields) -> PeftModel:
    """With LoRA whose weights are drawn: as it starts, it would change nothing."""
    fields = {"r": 4, "init_lora_weights": False, **fields}
    return get_peft_model(model, LoraConfig(task_type=task(subject), **fields)).eval()


def trained_modules(model: PeftModel) -> set[str]:
    """Names of the modules that have adapters."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names and all("lora_" in name for name in names)
    return {name.split(".lora_")[0].rpartition(".")[2] for name in names}


def check_gradients(model: PeftModel, subject: Subject) -> None:
    """Of all that is trained, and of nothing else."""
    model(**labelled(subject)).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
        else:
            assert parameter.grad is None, name


def check_reloading(model: PeftModel, subject: Subject, folder: Path) -> None:
    model.save_pretrained(folder)
    again = PeftModel.from_pretrained(subject.build(), folder).eval()
    assert torch.equal(logits_of(again, subject), logits_of(model, subject))


def check_adapter(subject: Subject, folder: Path, **fields) -> PeftModel:
    """All that an adapter of linear layers or parameters has to do; returns the adapted model."""
    model = subject.build()
    plain = warm(model, subject)
    adapted = adapt(model, subject, **fields)
    check_gradients(adapted, subject)
    with_adapter = warm(adapted, subject)
    assert not torch.allclose(with_adapter, plain, atol=1e-2)
    with adapted.disable_adapter():
        assert_close("without adapter", logits_of(adapted, subject), plain)
    check_reloading(adapted, subject, folder)
    text = adapted.generate(input_ids=words(), max_new_tokens=4, do_sample=False)
    adapted.merge_adapter()
    assert_close("merged", warm(adapted, subject), with_adapter)
    adapted.unmerge_adapter()
    assert_close("unmerged", warm(adapted, subject), with_adapter)
    unloaded = adapted.merge_and_unload()
    assert type(unloaded) is type(subject.build()) and not any("lora_" in name for name in unloaded.state_dict())
    assert_close("unloaded", warm(unloaded, subject), with_adapter)
    assert torch.equal(unloaded.generate(input_ids=words(), max_new_tokens=4, do_sample=False), text)
    return adapted


@pytest.mark.tool("peft", "LoRA, default targets")
def test_lora(subject, tmp_path):
    check_adapter(subject, tmp_path)
    if not subject.is_peer:
        model = subject.build()
        reachable = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        assert trained_modules(adapt(model, subject)) == reachable & set(family_of(model).lora_targets)


@pytest.mark.tool("peft", "DoRA")
def test_dora(subject, tmp_path):
    check_adapter(subject, tmp_path, use_dora=True)


@pytest.mark.tool("peft", "LoRA, all linear layers")
def test_lora_of_all_linear_layers(subject, tmp_path):
    check_adapter(subject, tmp_path, target_modules="all-linear")


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_tied_projections_follow_their_adapter(fields, tmp_path):
    """An adaptive softmax reads the projections of adaptive tables transposed."""
    adaptive = SUBJECTS["DeLighT LM"].fields | {"adaptive_cutoffs": [50, 100]}
    subject = Subject("adaptive", adaptive)
    adapt(subject.build(), subject, target_modules=["projections.1"])  # it exists
    check_adapter(subject, tmp_path, target_modules="all-linear", **fields)


@pytest.mark.tool("peft", "LoRA of parameters")
def test_lora_of_parameters(subject, tmp_path, verdict):
    """`target_parameters`, for weights that no `nn.Linear` holds: those of group linear transforms."""
    if subject.name == "Anthe":
        with pytest.raises(ValueError, match="4 dimensional Parameter, but only 2d and 3d are supported"):
            adapt(subject.build(), subject, target_parameters=["q_proj.core_0", "q_proj.core_1"])
        verdict.refused("cores have four axes, peft takes two or three; they are small enough to train whole")
        return
    names = PARAMETERS.get(subject.name, ["v_proj.weight"])
    adapted = check_adapter(subject, tmp_path, target_modules=[], target_parameters=names)
    assert adapted.peft_config["default"].target_parameters


@pytest.mark.parametrize("name", ["DeLighT", "DeLighT LM"])
def test_group_linear_transforms_are_adapted_group_by_group(name):
    """Each matrix gets a change of its own, of the rank asked for."""
    subject = SUBJECTS[name]
    before, after = subject.build(), subject.build()
    adapt(after, subject, target_modules=[], target_parameters=GROUP_LINEAR, r=1).merge_and_unload()
    new = dict(after.named_parameters())
    changes = {name: new[name] - weight for name, weight in before.named_parameters() if weight.dim() == 3}
    assert changes
    for name, change in changes.items():
        assert torch.linalg.matrix_rank(change, rtol=1e-4).tolist() == [1] * len(change), name


@pytest.mark.tool("peft", "modules trained whole")
def test_modules_to_save(subject, tmp_path):
    """`modules_to_save`, for what LoRA does not wrap, beside it: tensor chains, whose built kernel is kept."""
    names = WHOLE.get(subject.name, ["down_proj"])
    model = subject.build()
    plain = warm(model, subject)
    adapted = adapt(model, subject, modules_to_save=names, init_lora_weights=True)
    assert torch.equal(warm(adapted, subject), plain)
    if subject.name == "Anthe":
        assert any(getattr(module, "_kernel", None) is not None for module in adapted.modules())
    optimizer = torch.optim.SGD([parameter for parameter in adapted.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(2):
        adapted(**labelled(subject)).loss.backward()
        optimizer.step()
    trained = warm(adapted, subject)
    assert not torch.allclose(trained, plain, atol=1e-3)
    with adapted.disable_adapter():
        assert torch.equal(logits_of(adapted, subject), plain)
    check_reloading(adapted, subject, tmp_path)
    assert_close("unloaded", warm(adapted.merge_and_unload(), subject), trained)


def prompt_sizes(model: PreTrainedModel) -> dict[str, int]:
    """What peft cannot read off the configuration: rows of the token table are narrower than the model, and the one
    attention head of DeLighT is no field."""
    config, sizes = model.config, {}
    if hasattr(config, "embedding_size"):
        sizes["token_dim"] = config.embedding_size
    if "num_attention_heads" not in config.to_dict() and "num_heads" not in config.to_dict():
        sizes["num_attention_heads"] = config.num_attention_heads
    return sizes


def in_words(sizes: dict[str, int]) -> str:
    return "needs " + ", ".join(f"{name}={value}" for name, value in sizes.items())


def generated(model: torch.nn.Module, subject: Subject, use_cache: bool = True, **prompt) -> torch.Tensor:
    """Six new tokens of each row, without the prompt and without the start token."""
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "use_cache": use_cache}
    return model.generate(**prompt, **options)[:, -6:]


def check_generation(adapted: PeftModel, subject: Subject, expected: torch.Tensor, verdict) -> None:
    """transformers 5.24 gave the cache another name, under which peft 0.21 does not look for it: it puts the prompt
    before every single token, or passes a second cache, which our models refuse."""
    prompt = {"input_ids": words(), "attention_mask": torch.ones_like(words())}
    try:
        works = torch.equal(generated(adapted, subject, **prompt), expected)
    except ValueError as error:
        assert "`cache` and `past_key_values` are two names" in str(error)
        works = False
    if works:
        return
    assert CACHE_NAME == "cache"
    if adapted.active_peft_config.peft_type == "PREFIX_TUNING":
        verdict.limits(f"no generation, as peft {version('peft')} does not know the cache's new name")
        return
    verdict.limits(f"generation with use_cache=False, as peft {version('peft')} does not know the cache's new name")
    assert torch.equal(generated(adapted, subject, use_cache=False, **prompt), expected)


@pytest.mark.tool("peft", "prompt tuning")
def test_prompt_tuning(subject, tmp_path, verdict):
    model = subject.build()
    sizes, embed, mask = prompt_sizes(model), model.get_input_embeddings(), torch.ones_like(words())
    if sizes:
        verdict.limits(in_words(sizes))
    config = PromptTuningConfig(task_type=task(subject), num_virtual_tokens=VIRTUAL_TOKENS, **sizes)
    adapted = get_peft_model(subject.build(), config).eval()
    check_gradients(adapted, subject)
    check_reloading(adapted, subject, tmp_path)
    prompt = adapted.get_prompt(batch_size=2)[:, :VIRTUAL_TOKENS].detach()
    batch = inputs(subject)
    batch |= {"inputs_embeds": torch.cat([prompt, embed(batch.pop("input_ids"))], dim=1)}
    batch["attention_mask"] = torch.nn.functional.pad(mask, (VIRTUAL_TOKENS, 0), value=1)
    assert_close("logits", logits_of(adapted, subject), model(**batch).logits)
    batch.pop("decoder_input_ids", None)
    check_generation(adapted, subject, generated(model, subject, **batch), verdict)


@pytest.mark.parametrize("name", ["Anthe", "DeLighT"])
def test_prompt_tuning_with_two_vocabularies(name):
    """peft takes the first table with `vocab_size` rows for that of the prompt, here the target's: it must be told."""
    subject = SUBJECTS[name]
    fields = {"source_vocab_size": TOKENS["vocab_size"] + 8, "share_embeddings": False}
    model, batch = subject.build(**fields), inputs(subject)
    config = PromptTuningConfig(task_type=task(subject), num_virtual_tokens=VIRTUAL_TOKENS, **prompt_sizes(model))
    adapted = get_peft_model(subject.build(**fields), config).eval()
    prompt = adapted.get_prompt(batch_size=2)[:, :VIRTUAL_TOKENS].detach()
    embedded = torch.cat([prompt, model.get_input_embeddings()(batch["input_ids"])], dim=1)
    expected = model(inputs_embeds=embedded, decoder_input_ids=batch["decoder_input_ids"]).logits
    assert not torch.allclose(logits_of(adapted, subject), expected, atol=1e-3)
    adapted.word_embeddings = adapted.get_base_model().get_input_embeddings()
    assert_close("logits", logits_of(adapted, subject), expected)


@pytest.mark.tool("peft", "prompt tuning")
@pytest.mark.parametrize("side", ["left", "right"])
def test_prompt_before_padding(decoder, side):
    """The mask of peft has the virtual tokens before the padding on the left."""
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL_TOKENS, **prompt_sizes(decoder.build())
    )
    adapted = get_peft_model(decoder.build(), config).eval()
    ids, mask = words(), torch.ones_like(words())
    padding = slice(0, 3) if side == "left" else slice(-3, None)
    ids[0, padding], mask[0, padding] = TOKENS["pad_token_id"], 0
    with torch.no_grad():
        padded = adapted(input_ids=ids, attention_mask=mask).logits[0, VIRTUAL_TOKENS:][mask[0] == 1]
        alone = adapted(input_ids=ids[:1, mask[0] == 1], attention_mask=torch.ones(1, 4)).logits[0, VIRTUAL_TOKENS:]
    assert_close("logits", padded, alone)


# Why a prefix of keys and values, of which a layer knows nothing else, cannot stand in a cache.
NO_PREFIX = {
    "Anthe": ("cannot keep the inputs of the soft positions", "its cache also keeps what soft positions read"),
    "SelectiveAttn": ("keeps votes for 0 layers", "keys of a prefix have cast no votes"),
}
NO_PREFIX_OF_MEMORY = ("`past_key_values` .* memories", "a memory has no keys and values to put in front")


@pytest.mark.tool("peft", "prefix tuning")
def test_prefix_tuning(subject, tmp_path, verdict):
    model = subject.build()
    sizes = prompt_sizes(model)
    if subject.name.startswith("DeLighT"):
        sizes["token_dim"] = model.config.head_dim
    config = PrefixTuningConfig(task_type=task(subject), num_virtual_tokens=VIRTUAL_TOKENS, **sizes)
    adapted = get_peft_model(model, config).eval()
    refusal = NO_PREFIX_OF_MEMORY if subject.has_memory else NO_PREFIX.get(subject.name)
    if refusal is not None:
        message, reason = refusal
        with pytest.raises(ValueError, match=message):
            adapted(**labelled(subject))
        verdict.refused(reason)
        return
    if sizes:
        verdict.limits(in_words(sizes))
    check_gradients(adapted, subject)
    check_reloading(adapted, subject, tmp_path)
    assert not torch.allclose(logits_of(adapted, subject), logits_of(subject.build(), subject), atol=1e-2)
    expected = torch.full((2, 1), model.config.decoder_start_token_id) if model.config.is_encoder_decoder else words()
    for _ in range(6):
        batch = inputs(subject)
        batch["input_ids" if subject.is_decoder else "decoder_input_ids"] = expected
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        with torch.no_grad():
            expected = torch.cat([expected, adapted(**batch).logits[:, -1:].argmax(-1)], dim=1)
    check_generation(adapted, subject, expected[:, -6:], verdict)


# Widths that bitsandbytes takes in 4 bits on a CPU: multiples of 64 for inputs, of 32 for outputs.
WIDE = {"hidden_size": 128, "intermediate_size": 128}
WIDE_FIELDS = {
    **dict.fromkeys(("DeLighT", "DeLighT LM"), {"hidden_size": 256, "embedding_size": 128}),
    "T5": {"d_model": 128, "d_kv": 32, "d_ff": 128},
}


def quantization(name: str, subject: Subject):
    if name == "torchao":
        pytest.importorskip("torchao")
        return TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())
    pytest.importorskip("bitsandbytes")
    if name == "8 bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    left_out = ["beta_proj", "lm_head"] if subject.name == "FastWeight" else None
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=left_out)


def load_quantized(folder: Path, name: str, subject: Subject) -> PreTrainedModel:
    auto_class = getattr(transformers, subject.auto_class)
    config = quantization(name, subject)
    model = auto_class.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    return prepare_model_for_kbit_training(model)


def is_quantized(weight: torch.Tensor) -> bool:
    return not weight.is_floating_point() or hasattr(weight, "qdata")


def values(weight: torch.Tensor) -> torch.Tensor:
    """Those of torchao's tensors, which cannot be compared, as float."""
    return weight.dequantize() if hasattr(weight, "qdata") else weight.detach()


def check_lora_on_quantized(name: str, subject: Subject, folder: Path) -> None:
    """The adapter learns while what it stands on stays as it was quantised; saved, it fits the same base again."""
    dense = subject.build(**WIDE_FIELDS.get(subject.name, WIDE))
    dense.save_pretrained(folder / "base")
    adapted = get_peft_model(load_quantized(folder / "base", name, subject), LoraConfig(task_type=task(subject), r=4))
    frozen = {key: values(weight).clone() for key, weight in adapted.named_parameters() if not weight.requires_grad}
    assert any(is_quantized(weight) for weight in adapted.parameters())
    optimizer = torch.optim.AdamW([weight for weight in adapted.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = adapted.train()(**labelled(subject)).loss  # with checkpointed activations
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(dense(**labelled(subject)).loss.item(), rel=0.1)
    assert losses[-1] < 0.9 * losses[0]
    for key, weight in adapted.named_parameters():
        assert weight.requires_grad or torch.equal(values(weight), frozen[key]), key
    adapted.save_pretrained(folder / "adapter")
    again = PeftModel.from_pretrained(load_quantized(folder / "base", name, subject), folder / "adapter").eval()
    assert_close("logits", logits_of(again, subject), logits_of(adapted.eval(), subject))
    assert adapted.generate(input_ids=words(), max_new_tokens=3).shape[0] == 2


@pytest.mark.slow
@pytest.mark.tool("peft", "QLoRA: bitsandbytes, 4 bit")
def test_lora_on_4_bit(subject, tmp_path, verdict):
    check_lora_on_quantized("4 bit", subject, tmp_path)
    if subject.name == "FastWeight":
        verdict.limits('on a CPU llm_int8_skip_modules=["beta_proj", "lm_head"], as it takes multiples of 32 alone')


@pytest.mark.slow
@pytest.mark.tool("peft", "LoRA on bitsandbytes, 8 bit")
def test_lora_on_8_bit(subject, tmp_path):
    check_lora_on_quantized("8 bit", subject, tmp_path)


@pytest.mark.slow
@pytest.mark.tool("peft", "LoRA on torchao, int8 weights")
def test_lora_on_torchao(subject, tmp_path):
    check_lora_on_quantized("torchao", subject, tmp_path)


@pytest.mark.slow
def test_tied_projections_follow_quantisation(tmp_path):
    """An adaptive softmax reads the projections of adaptive tables transposed."""
    fields = SUBJECTS["DeLighT LM"].fields | {"adaptive_cutoffs": [100], "adaptive_factor": 2}
    for name in ("4 bit", "8 bit", "torchao"):
        check_lora_on_quantized(name, Subject("DeLighT LM", fields), tmp_path / name)
