# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Runs scripts one after the other in the processes that `accelerate launch` has started, as starting some costs more
than a small run: `accelerate launch several_scripts.py PLAN.json`, a list of `{"script", "argv", "environment"}`.

accelerate shards and splits models on accelerators only, and on CPUs trains with DDP, for FSDP without a word. Torch
does so on CPUs, too: where the configuration asks for that, these processes say that their CPU is an accelerator.
"""

import json
import os
import runpy
import sys

from accelerate.state import AcceleratorState, DistributedType, PartialState


def take_cpus_for_accelerators() -> None:
    initialize = AcceleratorState.__init__

    def initialize_so(self, *args, **kwargs):
        if PartialState(cpu=True).distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        initialize(self, *args, **kwargs)
        assert self.distributed_type != DistributedType.MULTI_CPU

    AcceleratorState.__init__ = initialize_so


def main() -> None:
    if "true" in (os.environ.get(f"ACCELERATE_USE_{kind}") for kind in ("FSDP", "PARALLELISM_CONFIG")):
        take_cpus_for_accelerators()
    path = list(sys.path)
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    for run in plan:
        os.environ.update(run.get("environment", {}))
        sys.argv, sys.path = [run["script"], *run["argv"]], list(path)
        runpy.run_path(run["script"], run_name="__main__")


if __name__ == "__main__":
    main()
