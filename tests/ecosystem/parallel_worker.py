# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What each process of `torchrun parallel_worker.py KIND FOLDER ...` does: load the models of folders named after
subjects ("SelectiveAttn" or "SelectiveAttn, plain"), split as KIND says, a field of transformers' `DistributedConfig`
such as tp_size, and write what they compute to split.safetensors in each folder, or the error to split.txt.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from ecosystem.subjects import subjects
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone().contiguous()


def compute(model, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits, a greedy continuation through the cache and, unless it is a stage, the loss with all gradients."""
    model.eval()
    with torch.no_grad():
        results = {"logits": model(**inputs).logits}
        prompt = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        results["continuation"] = model.generate(**prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    loss = model(**inputs).loss
    if loss is not None:  # a stage gives none
        loss.backward()
        results["loss"] = loss
        results |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: whole(tensor) for name, tensor in results.items()}


def main(kind: str, folders: list[Path]) -> None:
    by_name = {subject.name: subject for subject in subjects(include_peers=True)}
    dist.init_process_group("gloo")
    config = DistributedConfig(**{kind: dist.get_world_size()})
    for folder in folders:
        auto_class = getattr(transformers, by_name[folder.name.partition(",")[0]].auto_class)
        try:
            model = auto_class.from_pretrained(folder, distributed_config=config)
            held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters())
            results = compute(model, load_file(folder / "inputs.safetensors"))
        except Exception as error:  # the same in each process: each reads its configuration alike
            if dist.get_rank() == 0:
                (folder / "split.txt").write_text(f"{type(error).__name__}: {error}")
        else:
            if dist.get_rank() == 0:
                save_file(results | {"num_held": torch.tensor(held)}, folder / "split.safetensors")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], [Path(folder) for folder in sys.argv[2:]])
