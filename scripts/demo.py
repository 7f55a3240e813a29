# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Try an exported folder, or a repository of the Hub, in the browser.

    python scripts/demo.py --model outputs/hub/anthe_numbers

The page is the one that `scripts/export_to_hub.py --space` makes a Space of; see src/leanformers/hub/page.py.
"""

from leanformers.hub.page import main

if __name__ == "__main__":
    main()
