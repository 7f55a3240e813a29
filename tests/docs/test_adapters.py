# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The table of default targets says what peft adapts."""

import re

from leanformers import FAMILIES


def test_default_targets_are_those_of_the_registry(root):
    text = (root / "docs/adapters.md").read_text(encoding="utf-8")
    for family in FAMILIES.values():
        rows = re.findall(rf"^\| `{family.model_type}` \| (.*) \|$", text, flags=re.MULTILINE)
        assert len(rows) == 1, f"docs/adapters.md has {len(rows)} rows for `{family.model_type}`"
        assert tuple(re.findall(r"`(\w+)`", rows[0])) == family.lora_targets
