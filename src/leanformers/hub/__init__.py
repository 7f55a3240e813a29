# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Publishing: `export` writes a Hub folder, `check` judges one, `card` writes its model card."""
