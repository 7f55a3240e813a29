# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Texts of the model cards, a package so that an installed leanformers finds them too."""
