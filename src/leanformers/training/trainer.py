# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""transformers' trainers with what runs need on top.

- A checkpoint that cannot be written leaves the earlier ones as they were, and says so.
- Sharded weights (FSDP's SHARDED_STATE_DICT) stand beside all that `from_pretrained` needs once they are merged.

For translation:

- Batches of similar length whose order a resumed run finds again (`LengthBucketSampler`).
- Evaluation by sacreBLEU against the references' own text, and by loss and perplexity per real target token; the loss
  of evaluation is never smoothed. Processes that share an evaluation count no sentence twice.

For language models:

- Evaluation by sliding windows, exact over processes, per token, word and byte.
- The memory loss of selective attention is logged beside the loss, and its strength while that grows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import save_fsdp_model
from datasets import Dataset
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Seq2SeqTrainer, Trainer
from transformers.dynamic_module_utils import custom_object_save
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from leanformers.accounting import layer_classes
from leanformers.arguments import LanguageModelTrainingArguments, TranslationTrainingArguments
from leanformers.data.collator import BlockCollator, TranslationCollator
from leanformers.data.language_modeling import EvaluationWindows, LaneSegments, TrainingBlocks
from leanformers.data.tokenizers import TranslationTokenizers
from leanformers.evaluation.language_modeling import summarize_text, token_by_token, window_losses
from leanformers.evaluation.perplexity import row_losses, summarize
from leanformers.evaluation.translation import score_translations

from .callbacks import SelectionWarmupCallback
from .checkpoints import saving
from .length_buckets import LengthBucketSampler

logger = logging.get_logger(__name__)


class RunTrainer(Trainer):
    """What all trainers share."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.signatures: dict[str, str] = {}  # results that are text: loggers take numbers only

    def _save_checkpoint(self, model, trial) -> None:
        directory = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with saving(directory, remove=True):
            super()._save_checkpoint(model, trial)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if not self.is_fsdp_enabled:
            return
        join_tables(self.model)
        if self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap is None:
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layer_classes(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        directory = output_dir or self.args.output_dir
        if self.is_fsdp_enabled and "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            if not _internal_call:  # a checkpoint gets its weights with the optimizer's state
                save_fsdp_model(self.accelerator.state.fsdp_plugin, self.accelerator, self.model, directory)
                logger.warning(
                    f"{directory} holds sharded weights: before `from_pretrained`, run `accelerate merge-weights "
                    f"{directory}/pytorch_model_fsdp_0 {directory}`."
                )
            if self.args.should_save:
                self._save_all_but_weights(directory)

    def _save_all_but_weights(self, directory: str) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        with own_class(self.model):
            if self.model._auto_class is not None:
                custom_object_save(self.model, directory, config=self.model.config)
            self.model.config.architectures = [type(self.model).__name__]
        self.model.config.save_pretrained(directory)
        self.model.generation_config.save_pretrained(directory)
        self.processing_class.save_pretrained(directory)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with own_class(self.model):
            super()._save(output_dir, state_dict)


def join_tables(model: PreTrainedModel) -> None:
    """Make embeddings with the weights of the token table that very module: FSDP2 takes weights from one alone."""
    table = model.get_input_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Embedding) and child.weight is getattr(table, "weight", None):
                setattr(module, name, table)


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """Gives a model that FSDP2 has wrapped its own class back meanwhile: saving writes the code of the class."""
    wrapped = type(model)
    model.__class__ = next(cls for cls in wrapped.__mro__ if not issubclass(cls, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = wrapped


class TranslationTrainer(RunTrainer, Seq2SeqTrainer):
    """
    Args:
        train_dataset, eval_dataset: With columns source, target, input_ids, labels and length.
        tokenizers: Saved beside the model in every checkpoint.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TranslationTrainingArguments,
        tokenizers: TranslationTokenizers,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
    ):
        super().__init__(
            model=model,
            args=args,
            data_collator=TranslationCollator(tokenizers.source, model=model),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizers,
            compute_metrics=self._score if args.predict_with_generate else None,
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthBucketSampler(dataset["length"], batch_size, seed)

    def evaluate(self, *args, **gen_kwargs) -> dict[str, float]:
        if self.args.generation_length_penalty is not None:
            gen_kwargs = {"length_penalty": self.args.generation_length_penalty, **gen_kwargs}
        return super().evaluate(*args, **gen_kwargs)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler:
        # In order, so that translations meet their references.
        return SequentialSampler(eval_dataset)

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        longest_first = np.argsort(dataset["length"])[::-1]
        return super().get_eval_dataloader(dataset.select(longest_first))

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args, metric_key_prefix: str = "eval", **kwargs
    ) -> EvalLoopOutput:
        self._references = dataloader.dataset["target"]
        self._row_losses: list[torch.Tensor] = []
        # Seq2SeqTrainer's own choice keeps the sentences that are repeated to give every process as many batches.
        self.gather_function = self.accelerator.gather_for_metrics
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        totals = {f"{metric_key_prefix}_{key}": value for key, value in summarize(self._row_losses).items()}
        return output._replace(metrics=output.metrics | totals)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **gen_kwargs):
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            rows = row_losses(model(**inputs).logits, labels)
        self._row_losses.append(self.accelerator.gather_for_metrics(rows).cpu())
        loss, num_tokens = rows.sum(dim=0)
        if prediction_loss_only:
            return loss / num_tokens, None, None
        # Without labels the parent translates and computes no loss.
        source = {key: value for key, value in inputs.items() if key != "decoder_input_ids"}
        _, translations, _ = super().prediction_step(model, source, False, ignore_keys, **gen_kwargs)
        return loss / num_tokens, translations, labels

    def _score(self, prediction: EvalPrediction) -> dict[str, float]:
        tokenizer = self.processing_class.target
        # Batches of different widths are joined with -100.
        tokens = prediction.predictions.copy()
        tokens[tokens == -100] = tokenizer.pad_token_id
        scores = score_translations(tokenizer.batch_decode(tokens, skip_special_tokens=True), self._references)
        self.signatures = {key: value for key, value in scores.items() if isinstance(value, str)}
        return {key: value for key, value in scores.items() if not isinstance(value, str)}


class LanguageModelTrainer(RunTrainer):
    """
    Args:
        train_dataset: Blocks of tokens.
        eval_dataset: Windows, which score each token once.
        tokenizer: Saved beside the model in every checkpoint.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: LanguageModelTrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        train_dataset: TrainingBlocks | LaneSegments,
        eval_dataset: EvaluationWindows | LaneSegments | None = None,
    ):
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        super().__init__(
            model=model,
            args=args,
            data_collator=BlockCollator(padding),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
        )
        self._memory_losses: list[torch.Tensor] = []
        self._selection_warmup: SelectionWarmupCallback | None = None
        if args.selection_warmup_steps:
            self._selection_warmup = SelectionWarmupCallback(model.config, args.selection_warmup_steps)
            self.add_callback(self._selection_warmup)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if (memory_loss := outputs.get("memory_loss")) is not None:
            self._memory_losses.append(memory_loss.detach().mean())  # over devices, where a process has several
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # of training, and in every process
            if self._memory_losses:
                mean = torch.stack(self._memory_losses).float().mean()
                logs["memory_loss"] = self.accelerator.reduce(mean, "mean").item()
                self._memory_losses.clear()
            if self._selection_warmup is not None:
                logs["selection_strength"] = self.model.config.selection_strength
        super().log(logs, start_time)

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        # A checkpoint of the warm-up would be loaded into a model whose votes are stronger.
        if self._selection_warmup is not None and not self._selection_warmup.is_complete:
            return False
        return super()._determine_best_metric(metrics, trial)

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args, metric_key_prefix: str = "eval", **kwargs
    ) -> EvalLoopOutput:
        self._row_losses: list[torch.Tensor] = []
        with token_by_token(self.model.config):
            output = super().evaluation_loop(
                dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        windows = dataloader.dataset
        totals = summarize_text(self._row_losses, num_words=windows.num_words, num_bytes=windows.num_bytes)
        named = {f"{metric_key_prefix}_{key}": value for key, value in totals.items()}
        return output._replace(metrics=output.metrics | named)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            rows = self._score(model, inputs["input_ids"], inputs["shift_labels"])
        # Processes that have the columns of one model have the same rows.
        self._row_losses.append((rows if self.get_tp_size() > 1 else self.accelerator.gather_for_metrics(rows)).cpu())
        loss, num_tokens = rows.sum(dim=0)
        return loss / num_tokens, None, None

    def _score(self, model, input_ids: torch.Tensor, shift_labels: torch.Tensor) -> torch.Tensor:
        """`row_losses` of one batch of evaluation."""
        return window_losses(model, input_ids, shift_labels)
