# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The code that is shipped to the Hub: one folder per family, complete and readable alone."""
