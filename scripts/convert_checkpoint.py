# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Converts a checkpoint of an original implementation into a folder for `from_pretrained`.

    python scripts/convert_checkpoint.py --family anthe --source original.safetensors --output converted

The source is .safetensors, with the hyper-parameters as metadata, or .npz with them in a JSON file, or a .pt: a
checkpoint of fairseq, a state dict with config.json beside it, or a whole model of FastWeight's original. Nothing in
it is run. With a checkpoint's dictionaries (dict.<language>.txt, or dict.txt of a language model) and its BPE codes
(code, codes or bpecodes) beside it, the folder is a whole one, with tokenizers and a card. They expect text as fairseq
got it before BPE: tokenised as the training data was, words separated by spaces.

    python scripts/convert_checkpoint.py --family delight --source data-bin/checkpoint_best.pt --output converted

So it is with vocab.txt, one word per line by ids, which the original of FastWeight gives so:
`open("vocab.txt", "w").write("\\n".join(corpus.vocab.idx2sym))`.

    python scripts/convert_checkpoint.py --family fast_weight --source best_model.pt --output converted

A folder of transformers with a Llama, Mistral, Qwen2 or Qwen3 becomes a SelectiveAttn with the same weights, in their
precision, with its tokenizer, its settings of generation and a card. With `--selection-strength 0.0` it computes what
it did before; by default selection is on, which raises the loss until the model is trained further, best with a
strength that rises from 0.

    python scripts/convert_checkpoint.py --family selective_attn --source llama --output new --selection-strength 0.0
"""

import argparse
import sys
from pathlib import Path

from leanformers.accounting import count_parameters
from leanformers.conversion import convert_checkpoint
from leanformers.registry import FAMILIES


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", required=True, choices=sorted(FAMILIES))
    parser.add_argument("--source", required=True, help="the checkpoint: .safetensors, .npz or .pt, or its folder")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument(
        "--hparams", help="JSON with the hyper-parameters; default: what the source holds, or config.json beside it"
    )
    parser.add_argument("--dict-dir", help="the folder of fairseq's dictionaries; default: that of a .pt source")
    parser.add_argument("--codes", help="the BPE codes of subword-nmt; default: those beside the dictionaries")
    parser.add_argument("--vocabulary", help="a file of words; default: vocab.txt beside the source, if there is one")
    parser.add_argument(
        "--allow-noncausal-gate",
        action="store_true",
        default=None,
        help="anthe: convert also a gate order whose cross-attention reads ahead, to compare with the original",
    )
    parser.add_argument(
        "--selection-strength", type=float, help="selective_attn: factor of all votes, 0 for none; default: 1"
    )
    arguments = parser.parse_args(argv)
    options = {"dict_dir": arguments.dict_dir, "codes": arguments.codes, "vocabulary": arguments.vocabulary}
    for family, name in (("anthe", "allow_noncausal_gate"), ("selective_attn", "selection_strength")):
        value = getattr(arguments, name)
        if value is not None and family != arguments.family:
            parser.error(f"--{name.replace('_', '-')} is for --family {family}, not for {arguments.family}")
        if value is not None:
            options[name] = value
    try:
        model = convert_checkpoint(arguments.family, arguments.source, arguments.output, arguments.hparams, **options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    has_tokenizer = Path(arguments.output, "tokenizer.json").exists()
    print(
        f"{type(model).__name__} with {count_parameters(model):,} parameters saved in {arguments.output}, "
        f"{'with its tokenizer' if has_tokenizer else 'without a tokenizer'}"
    )


if __name__ == "__main__":
    main()
