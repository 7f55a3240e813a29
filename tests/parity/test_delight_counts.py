# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The original's integers: parameters of its models and of their pieces, and the widths of its DExTra units."""

import pytest
import torch

from leanformers.accounting import count_parameters
from leanformers.modeling.delight import DeLighTConfig, DeLighTForCausalLM, DeLighTForConditionalGeneration
from leanformers.modeling.delight.dextra import DExTra, blockwise_depths, blockwise_widths

WIDTHS = (128, 256, 384, 512, 640)
WITHOUT_VOCABULARY = (2_496_224, 8_190_376, 17_647_864, 31_165_580, 48_438_028)
EN_DE_43728 = (8_093_408, 13_787_560, 23_245_048, 36_762_764, 54_035_212)
TRANSLATION = {
    "wmt14_en_de": (43_736, (8_094_432, 13_788_584, 23_246_072, 36_763_788, 54_036_236)),
    "wmt14_en_fr": (44_512, (8_193_760, 13_887_912, 23_345_400, 36_863_116, 54_135_564)),
    "wmt16_en_ro": (34_976, (6_973_152, 12_667_304, 22_124_792, 35_642_508, 52_914_956)),
}
PUBLISHED_MILLIONS = {
    "wmt14_en_de": (8.09, 13.79, 23.25, 36.76, 54.04),
    "wmt14_en_fr": (8.19, 13.89, 23.35, 36.86, 54.14),
    "wmt16_en_ro": (6.97, 12.67, 22.12),
}
WIKITEXT103 = {128: 14_346_164, 256: 18_794_540, 384: 24_997_032, 512: 35_101_170, 1024: 99_247_668}
# Width -> the embeddings' DExTra unit, the projection before the output layer, the encoder's blocks, and what
# cross-attention adds to a block of the decoder.
PIECES = {
    128: (85_696, 0, (88416, 93624, 98468, 102132, 140968, 147952, 153584, 203896), 33_344),
    256: (215_680, 32_768, (348864, 366024, 348684, 359908, 442692, 460820, 451988, 555248), 132_224),
    384: (407_104, 49_152, (781344, 817240, 776612, 808290, 984448, 1034340, 937082, 1066336), 296_640),
    512: (659_968, 65_536, (1385856, 1454256, 1382142, 1429288, 1746396, 1824016, 1663662, 1898070), 526_592),
    640: (974_272, 81_920, (2162400, 2264832, 2150342, 2233982, 2717072, 2844620, 2585974, 2956240), 822_080),
}


@pytest.fixture
def build(root):
    """A function from the name of a preset, and changes to it, to the model on the meta device."""

    def create(preset: str, **changes) -> DeLighTForConditionalGeneration | DeLighTForCausalLM:
        path = root / "configs" / "model" / "delight" / f"{preset}.json"
        config = DeLighTConfig.from_json_file(str(path))
        for name, value in changes.items():
            setattr(config, name, value)
        with torch.device("meta"):
            return (DeLighTForConditionalGeneration if config.is_encoder_decoder else DeLighTForCausalLM)(config)

    return create


@pytest.mark.parametrize(
    ("recipe", "width", "vocab_size", "total"),
    [
        (recipe, width, vocab_size, total)
        for recipe, (vocab_size, totals) in TRANSLATION.items()
        for width, total in zip(WIDTHS, totals, strict=True)
    ],
)
def test_translation_totals(build, recipe, width, vocab_size, total):
    model = build(f"{recipe}_{width}")
    assert model.config.vocab_size == vocab_size
    assert count_parameters(model) == total == WITHOUT_VOCABULARY[WIDTHS.index(width)] + 128 * vocab_size
    published = dict(zip(WIDTHS, PUBLISHED_MILLIONS[recipe], strict=False))
    assert round(total / 1e6, 2) == published.get(width, round(total / 1e6, 2))


@pytest.mark.parametrize(("width", "total"), list(zip(WIDTHS, EN_DE_43728, strict=True)))
def test_english_german_with_the_other_possible_dictionary(build, width, total):
    assert count_parameters(build(f"wmt14_en_de_{width}", vocab_size=43_728)) == total


@pytest.mark.parametrize(("width", "total"), list(WIKITEXT103.items()))
def test_language_model_totals(build, width, total):
    model = build(f"wikitext103_{width}")
    assert model.config.vocab_size == 267_744
    assert count_parameters(model) == total
    assert width != 1024 or round(total / 1e6) == 99


@pytest.mark.parametrize("width", WIDTHS)
def test_pieces(build, width):
    model = build(f"wmt14_en_de_{width}")
    encoder, decoder = model.model.encoder, model.model.decoder
    unit, projection, blocks, cross_attention = PIECES[width]
    assert [count_parameters(stack.embeddings.dextra) for stack in (encoder, decoder)] == [unit, unit]
    assert (0 if model.output_proj is None else count_parameters(model.output_proj)) == projection
    assert tuple(map(count_parameters, encoder.layers)) == blocks
    assert [count_parameters(layer) for layer in decoder.layers] == [block + cross_attention for block in blocks]
    assert cross_attention == 2 * width**2 + 3 * width // 2 + width + 2 * width
    assert count_parameters(model) == 2 * unit + projection + 2 * sum(blocks) + 8 * cross_attention + 128 * 43_736


def shapes(unit: DExTra) -> list[tuple[int, int, int]]:
    return [(layer.in_features, layer.out_features, layer.num_groups) for layer in unit.layers]


@pytest.mark.parametrize(
    ("preset", "block", "expected"),
    [
        ("wmt14_en_de_128", "embeddings", "64 64 2, 128 256 4, 320 256 4, 320 128 2"),
        ("wmt14_en_de_128", 0, "64 64 2, 128 256 4, 320 256 4, 320 64 2"),
        (
            "wmt14_en_de_128",
            7,
            "64 64 2, 128 176 4, 240 280 4, 344 384 4, 448 384 4, 448 280 4, 344 176 4, 240 64 2",
        ),
        (
            "wmt14_en_de_384",
            6,
            "192 192 2, 384 496 4, 688 800 8, 992 1104 16, 1296 800 8, 992 496 4, 688 192 2",
        ),
        (
            "wmt14_en_de_512",
            6,
            "256 256 2, 512 664 4, 920 1072 8, 1328 1472 16, 1728 1064 8, 1320 664 4, 920 256 2",
        ),
        ("wmt14_en_de_512", 0, "256 256 2, 512 1024 4, 1280 1024 4, 1280 256 2"),
        ("wmt14_en_de_640", "embeddings", "320 320 2, 640 256 4, 576 256 4, 576 640 2"),
        (
            "wikitext103_1024",
            11,
            "512 512 2, 1024 1232 4, 1744 1952 8, 2464 2688 16, 3200 3392 32, 3904 4096 32, 4608 4096 32, "
            "4608 3392 32, 3904 2672 16, 3184 1952 8, 2464 1232 4, 1744 512 2",
        ),
    ],
)
def test_dextra_shapes(build, preset, block, expected):
    model = build(preset)
    expected = [tuple(map(int, shape.split())) for shape in expected.split(", ")]
    for name in ("encoder", "decoder") if model.config.is_encoder_decoder else ("decoder",):
        stack = getattr(model.model, name)
        unit = stack.embeddings.dextra if block == "embeddings" else stack.layers[block].dextra
        assert shapes(unit) == expected


@pytest.mark.parametrize(
    ("num_blocks", "depths", "width_multipliers"),
    [
        (8, "4 4 5 5 6 6 7 8", "2 2.143 2.286 2.429 2.571 2.714 2.857 3"),
        (
            12,
            "4 4 5 6 6 7 8 9 9 10 11 12",
            "2 2.182 2.364 2.545 2.727 2.909 3.091 3.273 3.455 3.636 3.818 4",
        ),
    ],
)
def test_blockwise_scaling(num_blocks, depths, width_multipliers):
    assert blockwise_depths(num_blocks, 4, num_blocks) == list(map(int, depths.split()))
    assert blockwise_widths(num_blocks, 2.0, 4, num_blocks) == list(map(float, width_multipliers.split()))
