# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The table of families says what is so, and transformers and peft know it."""

import importlib

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import BartConfig

from leanformers import FAMILIES, family_of, get_family
from leanformers.registry import NAME_TABLES, language_model_class, register_auto_classes

FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def preset_configs(family, root):
    for preset in family.presets:
        path = root / f"configs/model/{family.name}/{preset}.json"
        assert path.is_file(), f"the registry names a preset {path.relative_to(root)}, which is not there"
        yield transformers.AutoConfig.from_pretrained(path)


@FAMILY
def test_every_name_stands_for_something(family, root):
    offered = set()
    for config in preset_configs(family, root):
        assert type(config) is family.config_class
        for auto_class, reference in family.auto_map(config).items():
            module, name = reference.split(".")
            assert hasattr(importlib.import_module(f"{family.module}.{module}"), name)
            offered.add(auto_class)
    assert offered == {"AutoConfig", *family.models}
    assert (root / family.card).is_file(), f"there is no {family.card}"
    assert callable(importlib.import_module(f"leanformers.conversion.{family.name}").convert)
    assert family.config_class.model_type == family.model_type


@FAMILY
def test_auto_classes_build_the_family(family, root):
    """Those that a configuration is said to serve take it, and no other head does."""
    for config in preset_configs(family, root):
        offered = family.auto_classes(config)
        assert "AutoModel" in offered and language_model_class(config) in offered
        for auto_class in offered:
            with torch.device("meta"):
                model = getattr(transformers, auto_class).from_config(config)
            assert type(model) is family.model_class(auto_class)
            assert family_of(model) is family and family_of(config) is family
        for auto_class in family.models.keys() - offered:
            with pytest.raises(ValueError, match=f"load it with {family.models[language_model_class(config)]}"):
                getattr(transformers, auto_class).from_config(config)


@FAMILY
def test_transformers_tells_by_name_what_a_class_does(family):
    for auto_class, model in family.models.items():
        assert auto_class == "AutoModel" or NAME_TABLES[auto_class][family.model_type] == model


@FAMILY
def test_every_preset_has_the_default_lora_targets(family, root):
    for config in preset_configs(family, root):
        with torch.device("meta"):
            model = get_peft_model(family.model_class(language_model_class(config))(config), LoraConfig(r=2))
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained and all("lora_" in name for name in trained)


def test_unknown_family_names_the_nearest():
    with pytest.raises(ValueError, match="Unknown family 'anthem'. Did you mean 'anthe'"):
        get_family("anthem")


def test_foreign_model_is_refused():
    with pytest.raises(ValueError, match="model_type 'bart' is none of leanformers'"):
        family_of(BartConfig())


def test_missing_head_is_refused():
    with pytest.raises(ValueError, match="Anthe has no AutoModelForCausalLM, only AutoModel, AutoModelForSeq2SeqLM"):
        get_family("anthe").model_class("AutoModelForCausalLM")


def test_registering_twice_changes_nothing():
    register_auto_classes()
    assert type(transformers.AutoConfig.for_model("anthe")) is get_family("anthe").config_class
