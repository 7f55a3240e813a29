# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Data: parallel files, datasets of the Hub, tasks made on the spot, and the tokenizers trained on them."""
