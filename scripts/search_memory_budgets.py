# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Find out how many tokens each layer of a model with selective attention needs to hold, and save the model so.

    python scripts/search_memory_budgets.py --model_name_or_path outputs/selective_attn_stdlib --task stdlib \\
        --max_eval_samples 10 --max_loss_increase 0.01 --output_dir outputs/selective_attn_stdlib_pruned

The search lowers the budget of one layer at a time by `--step` tokens, that which hurts least, for as long as the loss
on the validation (or the `--test_files`, or another `--split`) is at most `--target_loss`, or `--max_loss_increase`
above that without budgets, or that of a model named by `--baseline_model_name_or_path`. What was found so far is in
`memory_budgets.json`: the same command goes on from there. The text goes through the model as scripts/evaluate.py has
it, by windows of `--block_size` tokens.
"""

import sys

# Last instead of first: evaluate.py in this folder would hide the package `evaluate`.
sys.path.append(sys.path.pop(0))

from transformers.utils import logging

from leanformers.arguments import LanguageModelingDataArguments, LeanArgumentParser, ModelArguments, plain_errors
from leanformers.evaluation.budget_search import BudgetSearchArguments, find_memory_budgets
from leanformers.evaluation.loading import ScoringArguments, read_model_arguments, trained_block_size


def main() -> None:
    logging.disable_progress_bar()  # of loading and saving: the bars of the work itself stay
    parser = LeanArgumentParser(
        [ModelArguments, LanguageModelingDataArguments, ScoringArguments, BudgetSearchArguments]
    )
    name = read_model_arguments(sys.argv[1:]).model_name_or_path
    if name and (block_size := trained_block_size(name)):
        parser.set_defaults(block_size=block_size)
    arguments = parser.parse()
    with plain_errors():
        search = find_memory_budgets(*arguments)
    best = search["points"][-1]
    print(
        f"With {best['budgets']} tokens, {best['memory_factor']:.1f} times less, the perplexity is "
        f"{best['perplexity']:.4f} (loss {best['loss']:.4f}, without budgets {search['loss_without_budgets']:.4f})."
    )


if __name__ == "__main__":
    main()
