# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The table of default targets says what peft adapts."""

import re

from leanformers import FAMILIES


def test_default_targets_are_those_of_the_registry(root):
    text = (root / "docs/adapters.md").read_text(encoding="utf-8")
    for family in FAMILIES.values():
        (row,) = re.findall(rf"^\| `{family.model_type}` \| (.*) \|$", text, flags=re.MULTILINE)
        assert tuple(re.findall(r"`(\w+)`", row)) == family.lora_targets
