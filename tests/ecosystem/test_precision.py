# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Half precision: finite at long texts and large weights, and near what float32 computes."""

import pytest
import torch
from ecosystem.texts import inputs

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
LONG = 200  # tokens, of the 256 that there are positions for


@pytest.mark.tool("precision", "bfloat16 and float16, long texts")
@HALF
@torch.no_grad()
def test_half_precision_is_near_float32(subject, dtype):
    model, batch = subject.build(), inputs(subject, length=LONG)
    expected = model(**batch).logits
    logits = model.to(dtype)(**batch).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    assert (logits.float() - expected).norm() / expected.norm() < (0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.tool("precision", "bfloat16 and float16, large weights")
@HALF
@torch.no_grad()
def test_large_weights_stay_finite(subject, dtype):
    """Embeddings 30 times as large, as some models have them after training; long padding before a short text."""
    model, batch = subject.build().to(dtype), inputs(subject, length=LONG)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.mul_(30.0)
    batch["attention_mask"][0, : LONG - 3] = 0
    real = batch["attention_mask"].bool() if subject.is_decoder else slice(None)
    assert model(**batch).logits[real].isfinite().all()
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask")}
    output = model.generate(**prompt, max_new_tokens=6, output_logits=True, return_dict_in_generate=True)
    assert all(logits.isfinite().all() for logits in output.logits)


@pytest.mark.tool("precision", "bfloat16 and float16, large weights")
@torch.no_grad()
def test_float16_overflow_is_named(decoder, verdict):
    """A memory is a sum, where attention is a mean."""
    if decoder.name != "FastWeight":
        pytest.skip("its attention is a mean of values")
    with pytest.raises(ValueError, match="largest float16"):
        decoder.build(output_scale=1e9).half()(**inputs(decoder))
    verdict.limits("a read from the memory above 65,504 is an error in float16: bfloat16 reaches further")
