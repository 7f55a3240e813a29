# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""These tests are for the interpreter, which nothing asks for where there is a GPU."""

import os

import pytest


@pytest.fixture(autouse=True)
def interpreter() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("TRITON_INTERPRET is not 1; tests/gpu has what a GPU is to compute")
