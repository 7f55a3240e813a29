# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Failures inside the shared suites show the values compared, as those of the test files do."""

import pytest

pytest.register_assert_rewrite("models.suite", "models.seq2seq_suite", "models.causal_lm_suite")
