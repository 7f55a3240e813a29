# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The models that tools are tried on are what the table calls them."""

import pytest
import torch
from ecosystem.subjects import OURS

from leanformers import FAMILIES


@pytest.mark.tool("loading", "built by its Auto class")
def test_auto_class_builds_the_model(subject):
    model = subject.build()
    assert model.config.is_encoder_decoder != subject.is_decoder
    ids = torch.randint(4, 260, (2, 7))
    inputs = {"input_ids": ids} if subject.is_decoder else {"input_ids": ids, "decoder_input_ids": ids}
    with torch.no_grad():
        assert model(**inputs).logits.shape == (2, 7, 260)


def test_every_family_is_tried():
    assert {subject.family.name for subject in OURS} == set(FAMILIES), "subjects.py lacks a family"
