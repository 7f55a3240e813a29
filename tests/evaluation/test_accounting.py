# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Parameters, MACs and cache bytes against figures worked out by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, DynamicCache, EncoderDecoderCache

from leanformers.accounting import (
    cache_bytes,
    count_parameters,
    mac_table,
    macs,
    module_group,
    parameter_table,
    training_memory,
    translation_macs,
)
from leanformers.modeling.anthe import AntheConfig, AntheForSeq2SeqLM
from leanformers.modeling.delight import DeLighTForCausalLM, DeLighTForConditionalGeneration
from leanformers.modeling.fast_weight import FastWeightConfig, FastWeightForCausalLM

WIDTH, HIDDEN, VOCABULARY, LAYERS, HEADS = 16, 24, 30, 2, 2


def anthe(**options) -> AntheForSeq2SeqLM:
    dense = {"attention_gate": "none", "ffn_type": "relu", "position_embedding_type": "sinusoidal"}
    chains = {"tc_attn_ratio": None, "tc_ffn_ratio": None}
    sizes = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "vocab_size": VOCABULARY}
    depth = {"num_encoder_layers": LAYERS, "num_decoder_layers": LAYERS, "num_attention_heads": HEADS}
    return AntheForSeq2SeqLM(AntheConfig(**{**sizes, **depth, **dense, **chains, **options})).eval()


def test_tied_and_shared_parameters_count_once():
    tied = anthe(tie_word_embeddings=True, share_embeddings=True)
    untied = anthe()
    difference = 2 * VOCABULARY * WIDTH + VOCABULARY  # a table, an output matrix and its bias
    assert count_parameters(untied) - count_parameters(tied) == difference
    linear = nn.Linear(3, 4)
    assert count_parameters(nn.Sequential(linear, linear)) == 3 * 4 + 4


def test_parameters_on_the_meta_device():
    with torch.device("meta"):
        model = anthe(tie_word_embeddings=True)
    assert count_parameters(model) == count_parameters(anthe(tie_word_embeddings=True))
    assert parameter_table(model).rows == parameter_table(anthe(tie_word_embeddings=True)).rows


def test_parameter_table_groups_layers_and_adds_up():
    table = parameter_table(anthe())
    assert table.total == count_parameters(anthe())
    assert table.rows["model.encoder.layers.*.self_attn"] == LAYERS * 4 * (WIDTH * WIDTH + WIDTH)
    assert table.rows["lm_head"] == VOCABULARY * WIDTH + VOCABULARY
    text = str(table)
    assert "model.decoder.layers.*.cross_attn" in text and f"{table.total:,}" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("model.encoder.layers.11.self_attn.q_proj", "model.encoder.layers.*.self_attn"),
        ("model.layers.0.mlp.up_proj", "model.layers.*.mlp"),
        ("model.encoder.embeddings.soft_positions.convs.0", "model.encoder.embeddings"),
        ("lm_head", "lm_head"),
    ],
)
def test_module_group(path, group):
    assert module_group(path) == group


def test_tables_per_layer_split_the_groups_and_nothing_else():
    model = anthe()
    parameters, split = parameter_table(model), parameter_table(model, per_layer=True)
    assert split.total == parameters.total
    assert split.rows["model.encoder.layers.1.mlp"] * LAYERS == parameters.rows["model.encoder.layers.*.mlp"]
    macs, split = mac_table(model, 7, 5), mac_table(model, 7, 5, per_layer=True)
    assert split.total == macs.total and split.rows["lm_head"] == macs.rows["lm_head"]
    assert split.rows["model.decoder.layers.0.cross_attn"] == attention_by_hand(5, 7, bias=0)


def attention_by_hand(queries: int, keys: int, bias: int) -> int:
    return (2 * queries + 2 * keys) * WIDTH * (WIDTH + bias) + 2 * queries * keys * WIDTH


def feed_forward_by_hand(tokens: int, bias: int) -> int:
    return tokens * (HIDDEN * (WIDTH + bias) + WIDTH * (HIDDEN + bias))


def encoder_by_hand(source: int, bias: int = 0) -> int:
    return LAYERS * (attention_by_hand(source, source, bias) + feed_forward_by_hand(source, bias))


def decoder_by_hand(source: int, target: int, bias: int = 0) -> int:
    attention = attention_by_hand(target, target, bias) + attention_by_hand(target, source, bias)
    return LAYERS * (attention + feed_forward_by_hand(target, bias)) + target * VOCABULARY * (WIDTH + bias)


def macs_by_hand(source: int, target: int) -> int:
    return encoder_by_hand(source) + decoder_by_hand(source, target)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("source", "target"), [(7, 5), (1, 1)])
def test_macs_of_a_dense_transformer_equal_the_formula(attention, source, target):
    model = anthe()
    model.set_attn_implementation(attention)
    assert macs(model, source, target) == macs_by_hand(source, target)


def test_mac_table_adds_up_and_names_where():
    table = mac_table(anthe(), 7, 5)
    assert table.total == macs_by_hand(7, 5)
    assert table.rows["lm_head"] == 5 * WIDTH * VOCABULARY
    assert table.rows["model.encoder.layers.*.mlp"] == LAYERS * 2 * 7 * WIDTH * HIDDEN
    assert "MACs" in str(table)


def test_macs_count_what_runs():
    materialised = anthe(tc_ffn_ratio=0.3, tc_forward="materialize", hidden_size=64, intermediate_size=128)
    contracted = anthe(tc_ffn_ratio=0.01, tc_forward="chain", hidden_size=64, intermediate_size=128)
    dense = anthe(hidden_size=64, intermediate_size=128)
    assert macs(contracted, 8, 8) < macs(dense, 8, 8) == macs(materialised, 8, 8)


def test_translation_macs_count_every_step_anew_and_biases():
    source, target = 7, 4
    steps = [decoder_by_hand(source, length, bias=1) for length in range(1, target + 1)]
    assert translation_macs(anthe(), source, target) == encoder_by_hand(source, bias=1) + sum(steps)


def delight(root: Path, preset: str) -> DeLighTForConditionalGeneration | DeLighTForCausalLM:
    config = AutoConfig.from_pretrained(root / f"configs/model/delight/{preset}.json")
    model_class = DeLighTForConditionalGeneration if config.is_encoder_decoder else DeLighTForCausalLM
    with torch.device("meta"):
        return model_class(config)


def test_published_parameters_and_macs_of_delight(root):
    """22.12 M and 928.33 M: the summary of width 384 that the authors show, for 10 tokens each."""
    model = delight(root, "wmt16_en_ro_384")
    assert count_parameters(model) == 22_124_792
    assert translation_macs(model.to_empty(device="cpu"), 10, 10) == 928_328_680


def test_macs_of_group_linears_are_those_of_their_groups(root):
    model = delight(root, "wmt16_en_ro_384").to_empty(device="cpu")
    shapes = [(192, 192, 2), (384, 496, 4), (688, 800, 8), (992, 1104, 16), (1296, 800, 8), (992, 496, 4)]
    groups = sum(inputs * outputs // groups for inputs, outputs, groups in [*shapes, (688, 192, 2)])
    projections = 384 * 192 + (192 + 192) * 192
    table = mac_table(model, 10, 3, per_layer=True)
    assert table.rows["model.encoder.layers.6.dextra"] == 10 * (groups + projections)
    assert table.rows["model.decoder.layers.6.dextra"] == 3 * (groups + projections)
    assert table.rows["lm_head"] == 3 * 128 * 34_976


def test_macs_of_language_models_take_one_length(root):
    model = delight(root, "lm_tiny").to_empty(device="cpu")
    table = mac_table(model, 9)
    assert table.rows["lm_head"] == 9 * 32 * 128
    assert table.rows["model.decoder.layers.*.self_attn"] == 2 * (9 * (32 * 96 + 32 * 64) + 2 * 9 * 9 * 32)
    with pytest.raises(ValueError, match="takes no target_length"):
        macs(model, 9, 9)


def fast_weight(**options) -> FastWeightForCausalLM:
    sizes = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "vocab_size": VOCABULARY}
    depth = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    return FastWeightForCausalLM(FastWeightConfig(**sizes, **depth, **options)).eval()


def test_macs_of_a_memory_are_those_of_its_chunks(chunk: int = 32, num_chunks: int = 3):
    head_dim, length = WIDTH // HEADS, chunk * num_chunks
    key_dim = 2 * head_dim
    model = fast_weight(feature_map="dpfp", dpfp_nu=1)
    inside = 2 * key_dim * chunk**2 + chunk * (chunk - 1) // 2 * (key_dim + head_dim) + head_dim * chunk**2
    with_memory = 3 * chunk * key_dim * head_dim
    projections = length * WIDTH * (4 * WIDTH + HEADS)
    by_hand = LAYERS * (projections + HEADS * num_chunks * (inside + with_memory))
    assert mac_table(model, length).rows["model.layers.*.attention"] == by_hand


def test_macs_of_a_memory_are_linear_in_the_length():
    model = fast_weight()
    assert macs(model, 320) == 5 * macs(model, 64)


def test_cache_bytes_of_a_memory_are_those_of_its_matrices():
    model, head_dim = fast_weight(feature_map="elu_plus_one", attention_norm="output"), WIDTH // HEADS
    sizes = []
    for length in (1, 40):
        with torch.no_grad():
            cache = model(torch.ones(3, length, dtype=torch.long), use_cache=True).past_key_values
        sizes.append(cache_bytes(cache))
    assert sizes == [LAYERS * 3 * HEADS * head_dim * (head_dim + 1) * 4] * 2


def test_macs_leave_the_mode_alone():
    model = anthe().train()
    macs(model, 3, 3)
    translation_macs(model, 3, 3)
    assert model.training


@pytest.mark.parametrize(
    ("lengths", "message"),
    [((5,), "needs target_length"), ((5, 0), "decoder_input_ids must be at least 1, not 0")],
)
def test_impossible_lengths_are_named(lengths, message):
    with pytest.raises(ValueError, match=message):
        macs(anthe(), *lengths)


def cache_after(model: AntheForSeq2SeqLM, batch: int, source: int, target: int) -> EncoderDecoderCache:
    with torch.no_grad():
        ids = torch.ones(batch, source, dtype=torch.long), torch.ones(batch, target, dtype=torch.long)
        return model(ids[0], decoder_input_ids=ids[1], use_cache=True).past_key_values


def test_cache_bytes_of_plain_attention():
    assert cache_bytes(cache_after(anthe(), 3, 7, 5)) == 2 * LAYERS * 3 * (7 + 5) * WIDTH * 4


def test_cache_bytes_of_kgv_hold_no_cross_attention_keys():
    held = cache_bytes(cache_after(anthe(attention_gate="KgV"), 3, 7, 5))
    plain = cache_bytes(cache_after(anthe(), 3, 7, 5))
    keys = LAYERS * 3 * 7 * WIDTH * 4
    assert plain - keys <= held < plain - keys // 2


def test_cache_bytes_count_convolution_inputs():
    plain, soft = (
        cache_bytes(cache_after(anthe(position_embedding_type=kind), 3, 7, 5)) for kind in ("sinusoidal", "h_softpos")
    )
    reach, embedding_size = 2, WIDTH // 4
    assert soft - plain == 3 * reach * embedding_size * 4


def test_cache_bytes_count_shared_storage_once_and_views_as_what_they_hold_on_to():
    shared = torch.zeros(2, 1, 100, 4)
    cache = DynamicCache()
    cache.update(shared, shared, 0)
    layer = cache.layers[0]
    layer.keys = layer.values = shared[:, :, :1]
    assert cache_bytes(cache) == shared.numel() * 4
    assert cache_bytes({"state": [shared, shared.transpose(1, 2)], "model": nn.Linear(50, 50)}) == shared.numel() * 4
    assert cache_bytes(DynamicCache()) == 0


def test_training_memory_of_what_the_batch_does_not_change():
    model = anthe()
    model.model.encoder.requires_grad_(False)
    weights = 4 * count_parameters(model)
    trained = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert 0 < trained < weights
    alone = training_memory(model, 5, 4).rows
    assert (alone["weights"], alone["gradients"], alone["optimizer states"]) == (weights, trained, 2 * trained)
    momentum = training_memory(model, 5, 4, optimizer_states=1, sharding="zero2", num_processes=4).rows
    assert [momentum[name] for name in ("weights", "gradients", "optimizer states")] == [
        weights,
        trained // 4,
        trained // 4,
    ]
    ddp = training_memory(model, 5, 4, num_processes=2).rows
    assert ddp == alone | {"gradients on their way": trained}
    sharded = training_memory(model, 5, 4, sharding="fsdp2", num_processes=2).rows
    assert (sharded["weights"], sharded["gradients"]) == (weights // 2, trained // 2)
    layers = [*model.model.encoder.layers, *model.model.decoder.layers]
    sizes = [4 * count_parameters(layer) for layer in layers]
    assert sharded["gathered weights"] == 2 * (weights - sum(sizes) + max(sizes))


def test_training_memory_grows_with_rows_and_shrinks_with_precision():
    model = FastWeightForCausalLM(FastWeightConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    tables = [training_memory(model, 12, batch_size=rows).rows for rows in (1, 2, 4)]
    one, two, four = (table["kept for the backward pass"] for table in tables)
    assert 0 < four - two == pytest.approx(2 * (two - one), rel=1e-3)
    assert tables[2]["gradients of the logits"] == 2 * 4 * 4 * 12 * model.config.vocab_size
    assert model.lm_head.weight.grad is None and model.training
    wide = anthe(hidden_size=64, intermediate_size=256)
    whole, half = (
        training_memory(wide, 32, 32, batch_size=8, dtype=dtype).rows for dtype in (torch.float32, torch.bfloat16)
    )
    assert half["weights"] == whole["weights"]
    assert half["kept for the backward pass"] < 0.8 * whole["kept for the backward pass"]


@pytest.mark.parametrize("wrong", [{"sharding": "zero3"}, {"num_processes": 0}, {"batch_size": 0}])
def test_training_memory_names_impossible_values(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} .*not .*{next(iter(wrong.values()))}"):
        training_memory(anthe(), 5, 4, **wrong)
