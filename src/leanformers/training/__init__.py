# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Training on transformers' Trainer: what it lacks for runs that can be stopped, resumed, shared out and compared."""
