# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""The live half of `leanformers.hub.check`: a program of its own, run by `check` in a fresh Python process.

    python clean_process.py FOLDER RESULT.json SCRATCH_FOLDER

It uses the folder as a stranger would: without leanformers, without a network, with torch and transformers only.
Every failure becomes one sentence in `problems` of RESULT.json; the other stages still run.
"""

import hashlib
import json
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path


class LeanformersIsNotInstalled:
    """A meta-path finder that hides an installed leanformers, editable installs included."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "leanformers":
            raise ModuleNotFoundError(f"No module named {name!r} (a Hub folder must work without it)", name=name)
        return None


def refuse_network(event, arguments):
    """An audit hook: sees every socket, whoever opens it."""
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise OSError(f"the network was used while loading or running ({event})")


class Run:
    """What was found so far."""

    def __init__(self):
        self.problems, self.facts = [], {}

    @contextmanager
    def stage(self, name):
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            first_line = next(iter(str(error).strip().splitlines()), "")
            self.problems.append(f"{name}: {type(error).__name__}: {first_line}")

    def expect(self, condition, problem):
        if not condition:
            self.problems.append(problem)


def fixed_inputs(config, rows=2, length=6):
    """The same ids for the same vocabularies everywhere, clear of the special tokens 0 to 3 where there is room; none
    is padding, which a classifier without a padding token must be told."""
    import torch

    def ids(vocab_size, step):
        first = min(4, vocab_size - 1)
        return first + torch.arange(rows * length).view(rows, length) * step % max(1, vocab_size - first)

    source_size = getattr(config, "source_vocab_size", None) or config.vocab_size
    inputs = {"input_ids": ids(source_size, 7), "attention_mask": torch.ones(rows, length, dtype=torch.long)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids(config.vocab_size, 5)
    return inputs


def outputs_of(model):
    """Logits (or hidden states of a base model) for the fixed inputs."""
    import torch

    with torch.no_grad():
        return model.eval()(**fixed_inputs(model.config), use_cache=False)[0]


def same_bits(first, second):
    import torch

    return first.dtype == second.dtype and torch.equal(first, second)


def digest(tensor):
    import torch

    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def load(auto_class, folder):
    import transformers

    return getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True, output_loading_info=True)


def check_keys(run, auto_class, model, info, is_saved_class):
    """The saved architecture must match key by key; another head may lack its own weights, never the base model's."""
    is_base_class = model.base_model is model
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info[kind])
        if not is_saved_class and not (is_base_class and kind == "missing_keys"):
            keys = [key for key in keys if key.startswith(f"{model.base_model_prefix}.")]
        shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
        run.expect(not keys, f"{auto_class}: {kind.replace('_', ' ')}: {shown}")


def check_generation(run, auto_class, model):
    inputs = {"input_ids": fixed_inputs(model.config)["input_ids"], "do_sample": False, "num_beams": 1}
    first, second = (model.generate(**inputs, max_new_tokens=8) for _ in range(2))
    run.expect(same_bits(first, second), f"{auto_class}: greedy generation gives two different texts for one input")
    run.expect(bool((first < model.config.vocab_size).all()), f"{auto_class}: generates ids outside the vocabulary")
    return first


def check_saved_tensors(run, auto_class, folder, again):
    """Every tensor of the folder stands in the one saved from it, with the same values."""
    import torch
    from safetensors.torch import load_file

    first, second = (
        {key: value for path in sorted(where.glob("*.safetensors")) for key, value in load_file(path).items()}
        for where in (folder, again)
    )
    changed = sorted(first.keys() ^ second.keys())
    changed += [key for key in first.keys() & second.keys() if not torch.equal(first[key], second[key])]
    run.expect(not changed, f"{auto_class}: tensors that change by loading and saving: {', '.join(changed[:5])}")


def check_saved_again(run, auto_class, model, is_saved_class, outputs, folder, again):
    """Saving the loaded model must give a folder that loads to the same bits, with the code still beside it."""
    model.save_pretrained(again)
    reloaded, _ = load(auto_class, again)
    run.expect(same_bits(outputs, outputs_of(reloaded)), f"{auto_class}: other outputs after saving and loading again")
    if is_saved_class:
        check_saved_tensors(run, auto_class, folder, again)
    auto_maps = [json.loads(Path(path, "config.json").read_text()).get("auto_map") for path in (folder, again)]
    run.expect(auto_maps[0] == auto_maps[1], f"{auto_class}: auto_map changes by saving again, to {auto_maps[1]}")


def check_model(run, auto_class, folder, scratch):
    """Load through one Auto class, run, generate, save, load. Returns generated ids if the model generates."""
    model, info = load(auto_class, folder)
    is_saved_class = type(model).__name__ in (model.config.architectures or [])
    check_keys(run, auto_class, model, info, is_saved_class)
    outputs = outputs_of(model)
    run.expect(bool(outputs.isfinite().all()), f"{auto_class}: outputs are not finite")
    run.expect(same_bits(outputs, outputs_of(model)), f"{auto_class}: two forwards of one input differ in eval mode")
    run.facts[f"{auto_class} outputs sha256"] = digest(outputs)
    generated = check_generation(run, auto_class, model) if model.can_generate() else None
    check_saved_again(run, auto_class, model, is_saved_class, outputs, folder, scratch / auto_class)
    return generated


def check_tokenizer(run, name, folder, vocab_size, scratch):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    highest = max(tokenizer.get_vocab().values())
    run.expect(
        highest < vocab_size,
        f"{name} has token ids up to {highest}, but the vocabulary of the model ends at {vocab_size - 1}",
    )
    text = "A man rides 21 bicycles."
    ids = tokenizer(text).input_ids
    tokenizer.save_pretrained(scratch / name)
    again = AutoTokenizer.from_pretrained(scratch / name, trust_remote_code=True)
    run.expect(again(text).input_ids == ids, f"{name} encodes differently after saving and loading again")
    return tokenizer


def check_folder(run, folder, scratch):
    from transformers import AutoConfig

    config = None
    with run.stage("AutoConfig.from_pretrained"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    if config is None:
        return
    target = folder / "target_tokenizer"
    source_size = getattr(config, "source_vocab_size", None) or config.vocab_size
    tokenizer = None
    with run.stage("the tokenizer"):
        tokenizer = check_tokenizer(run, "the tokenizer", folder, source_size, scratch)
        if target.is_dir():
            tokenizer = check_tokenizer(run, "the target tokenizer", target, config.vocab_size, scratch)
    for auto_class in config.auto_map:
        if not auto_class.startswith("AutoModel"):
            continue
        with run.stage(auto_class):
            generated = check_model(run, auto_class, folder, scratch)
            if generated is not None and tokenizer is not None:
                tokenizer.batch_decode(generated)


def main():
    folder, result, scratch = map(Path, sys.argv[1:])
    sys.meta_path.insert(0, LeanformersIsNotInstalled)
    sys.addaudithook(refuse_network)
    run = Run()
    with run.stage("the clean process"):
        check_folder(run, folder, scratch)
    result.write_text(json.dumps({"problems": run.problems, "facts": run.facts}), encoding="utf-8")


if __name__ == "__main__":
    main()
