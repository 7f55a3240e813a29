# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
