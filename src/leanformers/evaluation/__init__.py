# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What a trained model is worth: translations with their scores, continued texts, and perplexity per real token."""
