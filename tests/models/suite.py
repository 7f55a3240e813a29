# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
What every model of the library must hold, under the names that transformers' own tests have for it where they have.

A family's test class derives from `Seq2SeqSuite` or `CausalLMSuite`, names its classes there, and gives small configs
as the fixture `config`. What both suites share is here.

Logits are always asked for without labels: with labels a model may compute its loss without them.
"""

import copy
import dataclasses
import inspect
import logging
import math
import warnings

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedConfig, PreTrainedModel, __version__, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import warning_once

from leanformers.accounting import macs
from numerics import assert_close

FIRST_WORD = 4  # pad, unk, <s> and </s> come before
SIDES = ("left", "right")


def perturb(model: nn.Module, scale: float = 0.1) -> None:
    """Move all weights, as zero biases and unit gains hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)


def draw_words(vocab_size: int, lengths: tuple[int, ...]) -> list[list[int]]:
    return [torch.randint(FIRST_WORD, vocab_size, (length,)).tolist() for length in lengths]


def pad(rows: list[list[int]], side: str, pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, `[batch, longest]`."""
    longest, ids, mask = max(map(len, rows)), [], []
    for row in rows:
        pads, real = [pad_token_id] * (longest - len(row)), [1] * len(row)
        ids.append(pads + row if side == "left" else row + pads)
        mask.append([0] * len(pads) + real if side == "left" else real + [0] * len(pads))
    return torch.tensor(ids), torch.tensor(mask)


def written(sequences: torch.Tensor, config: PreTrainedConfig) -> list[list[int]]:
    """Generated rows without the padding before them and what fills them up behind the end of the sentence, which
    for some families is also the token that starts one."""
    rows = []
    for row in sequences.tolist():
        start = next(position for position, token in enumerate(row) if token != config.pad_token_id)
        rest = row[start + 1 :]
        end = rest.index(config.eos_token_id) if config.eos_token_id in rest else len(rest)
        rows.append([row[start], *rest[:end]])
    return rows


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything under every name it has, and buffers that are not saved."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def without_labels(batch: dict) -> dict:
    return {name: value for name, value in batch.items() if name != "labels"}


def loss_and_gradients(model: PreTrainedModel, batch: dict, forward=None) -> dict[str, torch.Tensor]:
    """Those of all parameters of `model`, whose forward may be another form of itself."""
    model.zero_grad()
    loss = (model if forward is None else forward)(**batch).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: parameter.grad.clone() for name, parameter in model.named_parameters()}}


def enable_checkpointing(model: PreTrainedModel, use_reentrant: bool = False) -> None:
    # Renamed in the course of transformers 5.
    old_name = "gradient_checkpointing_enable"
    name = "activation_checkpointing_enable" if hasattr(model, "activation_checkpointing_enable") else old_name
    getattr(model, name)({"use_reentrant": use_reentrant})


def empty_cache(config: PreTrainedConfig) -> DynamicCache | EncoderDecoderCache:
    cache = DynamicCache(config=config)
    return EncoderDecoderCache(cache, DynamicCache(config=config)) if config.is_encoder_decoder else cache


def prompt_ends_at_once(config: PreTrainedConfig) -> bool:
    is_end = getattr(config, "decoder_start_token_id", None) == config.eos_token_id
    return config.is_encoder_decoder and is_end and Version(__version__) < Version("5.23")


class ModelSuite:
    """
    What encoder-decoders and decoder-only language models have in common.

    Attributes:
        config_class, base_model_class, model_class: the family's.
        field_changes (`dict`): for each config field, the other fields that let it work and a value that must change
            something.
        metadata_fields (`dict`): config fields that change nothing here by themselves, each with the reason.
        attention_implementations (`tuple`): all that the family has, which must agree.
        fixed_buffers (`tuple`): ends of names of buffers that are computed, not drawn.
        single_layer (`dict`): fields of a config that is quick to compile.
        id_names (`tuple`): names of the token inputs; the last one's tokens are what is predicted.
    """

    config_class: type[PreTrainedConfig]
    base_model_class: type[PreTrainedModel]
    model_class: type[PreTrainedModel]
    field_changes: dict[str, tuple[dict, object]]
    metadata_fields: dict[str, str]
    attention_implementations: tuple[str, ...] = ("eager", "sdpa")
    fixed_buffers: tuple[str, ...] = ()
    single_layer: dict[str, object]
    id_names: tuple[str, ...]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "changed_field" in metafunc.fixturenames:
            metafunc.parametrize("changed_field", sorted(self.own_fields() - set(self.metadata_fields)))

    def own_fields(self) -> set[str]:
        declared = inspect.get_annotations(self.config_class)
        return {field.name for field in dataclasses.fields(self.config_class) if field.name in declared}

    def small_config(self, **fields) -> PreTrainedConfig:
        """A config for tests of single fields."""
        raise NotImplementedError

    def draw_rows(self, config: PreTrainedConfig):
        """A few inputs of different lengths, as lists of token ids."""
        raise NotImplementedError

    def doubled(self, rows):
        """Longer ones."""
        raise NotImplementedError

    def prompts(self, rows) -> list[list[int]]:
        """What `generate` takes as its first argument."""
        raise NotImplementedError

    def batch(self, config: PreTrainedConfig, rows, side: str = "right") -> dict[str, torch.Tensor]:
        """Model inputs without labels."""
        raise NotImplementedError

    def training_batch(self, config: PreTrainedConfig, rows, side: str = "right") -> dict[str, torch.Tensor]:
        """Model inputs with labels."""
        raise NotImplementedError

    def predicted(self, labels: torch.Tensor) -> torch.Tensor:
        """`labels` where their logits are."""
        raise NotImplementedError

    def target_mask(self, batch: dict) -> torch.Tensor:
        """Which of the predicted tokens are no padding, `[batch, length]`."""
        raise NotImplementedError

    def has_tied_tables(self, config: PreTrainedConfig) -> bool:
        """Whether one table is known under two names."""
        return config.tie_word_embeddings

    def resize_problem(self, config: PreTrainedConfig) -> str | None:
        """What the error says if the vocabulary of `config` cannot be resized."""
        return None

    def build(self, config: PreTrainedConfig, **options) -> PreTrainedModel:
        set_seed(0)
        model = self.model_class._from_config(copy.deepcopy(config), **options)
        perturb(model)
        return model.eval()

    @pytest.fixture
    def model(self, config) -> PreTrainedModel:
        return self.build(config)

    @pytest.fixture
    def rows(self, config):
        return self.draw_rows(config)

    # Initialisation, saving and loading

    def test_initialization_follows_the_seed(self, config):
        models = []
        for seed in (0, 0, 1):
            set_seed(seed)
            models.append(tensors_of(self.model_class(copy.deepcopy(config))))
        first, again, other = models
        assert all(torch.equal(first[name], again[name]) for name in first)
        for name, tensor in first.items():
            if tensor.unique().numel() > 1 and not name.endswith(self.fixed_buffers):
                assert not torch.equal(tensor, other[name]), name

    def test_can_init_all_missing_weights(self, config):
        """Loading builds on the meta device; what a checkpoint lacks must be drawn as in a new model."""
        fresh = self.model_class(copy.deepcopy(config))
        torch.use_deterministic_algorithms(True)  # fills new memory with NaN
        try:
            loaded = self.model_class.from_pretrained(None, config=copy.deepcopy(config), state_dict={})
        finally:
            torch.use_deterministic_algorithms(False)
        expected = tensors_of(fresh)
        assert tensors_of(loaded).keys() == expected.keys()
        for name, tensor in tensors_of(loaded).items():
            assert tensor.isfinite().all(), name
            if expected[name].unique().numel() == 1:
                assert torch.equal(tensor, expected[name]), name
            else:
                ratio = (tensor.std() / expected[name].std()).item()
                within = math.exp(5 / math.sqrt(tensor.numel()))  # five standard errors
                assert 1 / within < ratio < within, f"{name} has {ratio} times the deviation of a new model's"

    def test_save_load(self, model, config, rows, tmp_path):
        model.save_pretrained(tmp_path)
        loaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        expected = tensors_of(model)
        assert tensors_of(loaded).keys() == expected.keys()
        for name, tensor in tensors_of(loaded).items():
            assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name
        assert loaded.config.to_dict().keys() == model.config.to_dict().keys()
        batch = self.batch(config, rows)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(**batch).logits, model(**batch).logits)

    def test_base_model_loads_from_the_head_models_file(self, model, config, rows, tmp_path):
        model.save_pretrained(tmp_path)
        base, batch = self.base_model_class.from_pretrained(tmp_path).eval(), self.batch(config, rows)
        with torch.no_grad():
            expected = model.base_model(**batch).last_hidden_state
            assert torch.equal(base(**batch).last_hidden_state, expected)
        base.save_pretrained(tmp_path / "base")
        head = self.model_class.from_pretrained(tmp_path / "base").eval()
        with torch.no_grad():
            assert torch.equal(head.base_model(**batch).last_hidden_state, expected)

    @pytest.mark.parametrize("has_head", [False, True], ids=["without_head", "with_head"])
    def test_tied_weights_keys(self, model, config, rows, tmp_path, has_head):
        model.save_pretrained(tmp_path)
        path, tied = tmp_path / "model.safetensors", model.all_tied_weights_keys
        state = load_file(path)
        assert bool(tied) == self.has_tied_tables(config)
        assert not set(tied) & set(state)
        if has_head:
            state.update({target: state[source].clone() for target, source in tied.items()})
            save_file(state, path, metadata={"format": "pt"})
        loaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        for target, source in tied.items():
            assert loaded.get_parameter(target) is loaded.get_parameter(source)
        storages = {parameter.data_ptr() for parameter in loaded.parameters()}
        assert len(storages) == len(list(loaded.parameters()))
        batch = self.batch(config, rows)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(**batch).logits, model(**batch).logits)

    def test_copies_share_nothing(self, model, config, rows):
        batch = self.batch(config, rows)
        with torch.no_grad():
            before = model(**batch).logits
            other = copy.deepcopy(model)
            assert torch.equal(other(**batch).logits, before)
            perturb(other)
            assert not torch.allclose(other(**batch).logits, before)
            assert torch.equal(model(**batch).logits, before)

    # Generation

    def generation_options(self, config) -> dict[str, object]:
        """No padding among the words, as it could not be told from what fills up a batch."""
        return {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [config.pad_token_id]}

    def test_beam_search_generate_return_sequences(self, model, config, rows):
        prompts, mask = pad(self.prompts(rows), "left", config.pad_token_id)
        options = {**self.generation_options(config), "attention_mask": mask, "num_beams": 4}
        two = model.generate(prompts, **options, num_return_sequences=2)
        assert torch.equal(two, model.generate(prompts, **options, num_return_sequences=2, use_cache=False))
        assert len(two) == 2 * len(prompts)
        best, two = written(model.generate(prompts, **options), config), written(two, config)
        assert two[::2] == best
        assert all(first != second for first, second in zip(two[::2], two[1::2], strict=True))

    def test_sample_generate(self, model, config, rows):
        batch, sampled = self.batch(config, rows, "left"), []
        for seed, use_cache in ((0, True), (0, False), (1, True)):
            set_seed(seed)
            options = {"do_sample": True, "eos_token_id": None, "max_new_tokens": 6, "use_cache": use_cache}
            sampled.append(model.generate(**batch, **options))
        assert torch.equal(sampled[0], sampled[1])
        assert not torch.equal(sampled[0], sampled[2])

    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_generate_with_static_cache(self, model, config, rows, num_beams):
        if not model._can_compile_fullgraph:
            pytest.skip("its cache has no fixed size")
        batch = self.batch(config, rows, "left")
        options = {"max_new_tokens": 6, "num_beams": num_beams, "do_sample": False}
        static = model.generate(**batch, **options, cache_implementation="static")
        assert torch.equal(static, model.generate(**batch, **options))

    @pytest.mark.slow
    def test_generate_compile_model_forward_fullgraph(self, model, config, rows):
        """Steps of a static cache compile once, whatever the padding."""
        if not model._can_compile_fullgraph:
            pytest.skip("its cache has no fixed size")
        batch = self.batch(config, rows, "left")
        options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
        expected = model.generate(**batch, **options)
        torch.compiler.reset()
        compilations = []

        def backend(graph, example_inputs):
            compilations.append(graph)
            return graph

        model.forward = torch.compile(model.forward, backend=backend, fullgraph=True)
        static = model.generate(**batch, **options, cache_implementation="static")
        assert torch.equal(static, expected)
        assert 0 < len(compilations) <= 3

    @pytest.fixture
    def warned(self, caplog):
        """What transformers warns of: its log, which does not propagate, as if nothing had been warned of before."""
        logger = logging.getLogger("transformers")
        warning_once.cache_clear()
        logger.addHandler(caplog.handler)
        yield caplog
        logger.removeHandler(caplog.handler)

    def test_nothing_is_warned_of_the_name_of_the_cache(self, model, config, rows, warned):
        """transformers 5.24 renamed `past_key_values`; a user who names none hears nothing of it."""
        batch = self.batch(config, rows, "left")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for num_beams in (1, 2):
                model.generate(**batch, max_new_tokens=3, num_beams=num_beams)
            model(**self.training_batch(config, rows)).loss.backward()
            output = model(**batch, use_cache=True)
        messages = warned.messages + [str(warning.message) for warning in caught]
        assert not [message for message in messages if "past_key_values" in message]
        assert output.past_key_values is not None
        if hasattr(output, "cache"):
            assert any("past_key_values" in message for message in warned.messages)

    @pytest.mark.parametrize("kind", ["assistant", "prompt_lookup"])
    def test_assisted_decoding_matches_greedy_search(self, model, config, rows, kind):
        prompt, options = torch.tensor(self.prompts(rows)[:1]), {"max_new_tokens": 12, "do_sample": False}
        if kind == "prompt_lookup" and prompt_ends_at_once(config):
            pytest.skip("this transformers takes a start token that is also the end token for the end")
        assistant = copy.deepcopy(model)
        perturb(assistant, 0.02)  # close enough that some of its tokens are accepted, and some are not
        help = {"assistant_model": assistant} if kind == "assistant" else {"prompt_lookup_num_tokens": 3}
        if model._is_stateful:
            with pytest.raises(ValueError, match="stateful"):
                model.generate(prompt, **options, **help)
            return
        assert torch.equal(model.generate(prompt, **options, **help), model.generate(prompt, **options))

    def test_cache_has_two_names(self, model, config, rows):
        """`past_key_values`, and `cache` as in transformers 5.24."""
        batch = self.batch(config, rows, "left")
        mask_name = self.id_names[-1].replace("input_ids", "attention_mask")
        rest = {**batch, mask_name: batch[mask_name].repeat(1, 2)}
        for part in (model, model.base_model):
            with torch.no_grad():
                cache, alone = part(**batch, use_cache=True).past_key_values, part(**batch)[0]
                old = part(**rest, past_key_values=copy.deepcopy(cache))
                new = part(**rest, cache=copy.deepcopy(cache))
            assert_close("outputs", new[0], old[0], relative=1e-6, absolute=1e-6)
            assert not torch.allclose(new[0], alone, atol=1e-4)
            assert new.past_key_values.get_seq_length() == 2 * cache.get_seq_length()
        takers = [part for part in model.modules() if "past_key_values" in inspect.signature(part.forward).parameters]
        for part in (part for part in takers if isinstance(part, PreTrainedModel)):
            with pytest.raises(ValueError, match="`cache` and `past_key_values` are two names"):
                part(cache=cache, past_key_values=cache)

    # Training

    def test_loss_is_the_cross_entropy_of_the_labels(self, model, config, rows):
        batch = self.training_batch(config, rows)
        loss, labels = model(**batch).loss, self.predicted(batch["labels"])
        logits = model(**without_labels(batch)).logits
        losses = -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        real = labels != -100
        assert real.any() and not real.all()
        assert_close("loss", loss, losses[real].mean())
        parts = [
            model(**{key: value[i : i + 1] for key, value in batch.items()}, num_items_in_batch=real.sum()).loss
            for i in range(len(labels))
        ]
        assert_close("sum of the rows' losses", sum(parts), loss)

    @pytest.mark.parametrize("side", SIDES)
    def test_every_parameter_gets_a_gradient(self, model, config, rows, side):
        for name, gradient in loss_and_gradients(model.train(), self.training_batch(config, rows, side)).items():
            assert gradient.isfinite().all() and gradient.any(), name

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_training_gradient_checkpointing(self, model, config, rows, use_reentrant):
        batch = self.training_batch(config, rows)
        expected = loss_and_gradients(model.train(), batch)
        enable_checkpointing(model, use_reentrant)
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        assert layers and all(layer.gradient_checkpointing for layer in layers)
        for name, tensor in loss_and_gradients(model, batch).items():
            assert_close(name, tensor, expected[name], relative=1e-6, absolute=1e-6)

    def test_gradient_checkpointing_leaves_the_cache_alone(self, model, config, rows):
        """Blocks run twice, and would write into it twice."""
        cache = empty_cache(config)
        enable_checkpointing(model.train())
        model(**self.batch(config, rows), past_key_values=cache, use_cache=True).logits.sum().backward()
        assert cache.get_seq_length() == 0

    def test_eager_matches_sdpa(self, config, rows):
        if len(self.attention_implementations) == 1:
            pytest.skip("it has one form of attention")
        batch, results = self.training_batch(config, rows, "left"), {}
        for name in self.attention_implementations:
            model = self.build(config, attn_implementation=name)
            assert model.config._attn_implementation == name
            logits = model(**without_labels(batch)).logits[self.target_mask(batch)]
            results[name] = {"logits": logits, **loss_and_gradients(model, batch)}
        first, *others = results.values()
        for other in others:
            for name, expected in first.items():
                assert_close(name, other[name], expected)

    @pytest.mark.skipif(
        torch.__version__.startswith("2.6."),
        reason="Dynamo of torch 2.6 cannot trace the decorators that transformers has around every forward",
    )
    @pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
    def test_torch_compile_for_training(self, backend):
        config = self.small_config(**self.single_layer)
        self.check_compiled(self.build(config), self.training_batch(config, self.draw_rows(config)), backend)

    @pytest.mark.slow
    def test_no_graph_breaks(self, model, config, rows):
        batch = self.training_batch(config, rows, "left")
        self.check_compiled(model, batch, "eager")
        compiled, batch = torch.compile(model, backend="eager", fullgraph=True), without_labels(batch)
        with torch.no_grad():
            assert_close("without gradients", compiled(**batch).logits, model(**batch).logits)

    def check_compiled(self, model, batch, backend: str) -> None:
        expected = loss_and_gradients(model, batch)
        torch.compiler.reset()
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        for name, tensor in loss_and_gradients(model, batch, compiled).items():
            assert_close(name, tensor, expected[name])

    @pytest.mark.slow
    def test_torch_export(self, model, config, rows):
        batch = {**self.batch(config, rows), "use_cache": False}
        length, past = torch.export.Dim("length", min=2, max=64), torch.export.Dim("target_length", min=2, max=64)
        shapes = {
            name: {1: past if name.startswith("decoder") else length} if torch.is_tensor(value) else None
            for name, value in batch.items()
        }
        with torch.no_grad():
            program = torch.export.export(model, (), kwargs=batch, dynamic_shapes=shapes, strict=False)
            for some in (rows, self.doubled(rows)):
                batch = {**self.batch(config, some), "use_cache": False}
                assert_close("logits", program.module()(**batch).logits, model(**batch).logits)

    @pytest.mark.parametrize("kind", ["cast", "autocast"])
    def test_bfloat16_runs(self, model, config, rows, kind):
        batch = self.training_batch(config, rows)
        inputs, expected = without_labels(batch), model(**batch).loss.item()
        if kind == "cast":
            model.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            loss, logits = model(**batch).loss, model(**inputs).logits
        loss.backward()
        assert logits.dtype == torch.bfloat16
        assert logits.isfinite().all()
        assert loss.item() == pytest.approx(expected, rel=0.05)
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs[self.id_names[-1]].shape[1]

    # Inputs, outputs and embeddings

    def test_determinism(self, model, config, rows):
        batch = self.batch(config, rows)
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, model(**batch).logits)

    def test_model_outputs_equivalence(self, model, config, rows):
        batch = self.training_batch(config, rows)
        for inputs in (batch, without_labels(batch)):
            output, plain = model(**inputs), model(**inputs, return_dict=False)
            assert len(plain) == len(output)
            for name, value in zip(output, plain, strict=True):
                assert not torch.is_tensor(value) or torch.equal(value, output[name]), name
        assert torch.equal(model(**batch, return_dict=False)[0], model(**batch).loss)

    def test_logits_to_keep(self, model, config, rows):
        batch = self.batch(config, rows)
        length = batch[self.id_names[-1]].shape[1]
        with torch.no_grad():
            logits = model(**batch).logits
            assert logits.shape == (3, length, config.vocab_size)
            for kept, expected in ((0, logits), (1, logits[:, -1:]), (4, logits[:, -4:])):
                assert_close(f"last {kept}", model(**batch, logits_to_keep=kept).logits, expected)
            chosen = torch.tensor([0, 3])
            assert_close("chosen", model(**batch, logits_to_keep=chosen).logits, logits[:, chosen])

    @pytest.mark.parametrize(("size", "multiple"), [(8, None), (-4, None), (1, 16)])
    def test_resize_tokens_embeddings(self, model, config, rows, size, multiple, tmp_path):
        size += config.vocab_size
        problem = self.resize_problem(config)
        if problem:
            with pytest.raises(ValueError, match=problem):
                model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
            return
        kept, batch = min(size, config.vocab_size), self.batch(config, rows)
        for name in self.id_names:
            batch[name].clamp_(max=kept - 1)
        with torch.no_grad():
            before = model(**batch).logits
            model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
            expected = size if multiple is None else -(-size // multiple) * multiple
            assert model.config.vocab_size == expected
            after = model(**batch).logits
        assert after.shape[-1] == expected
        assert_close("logits of the tokens that stay", after[..., :kept], before[..., :kept])
        for name in self.id_names:
            batch[name][0, 1] = expected - 1
        labels = torch.full_like(batch[self.id_names[-1]], expected - 1)
        results = loss_and_gradients(model, {**batch, "labels": labels})
        assert all(tensor.isfinite().all() for tensor in results.values())
        model.save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            assert torch.equal(loaded(**batch).logits, model(**batch).logits)

    # The config

    def test_every_config_field_is_accounted_for(self):
        assert set(self.field_changes) | set(self.metadata_fields) == self.own_fields()
        assert not set(self.field_changes) & set(self.metadata_fields)

    def test_config_field_changes_something(self, changed_field):
        fields, value = self.field_changes[changed_field]
        before = self.small_config(**fields)
        assert getattr(before, changed_field) != value
        after = self.small_config(**{**fields, changed_field: value})
        assert self.behaviour(before) != self.behaviour(after)

    def behaviour(self, config: PreTrainedConfig) -> dict[str, object]:
        """All that a field can change: initial weights, results with dropout, work done, cache, generation."""
        set_seed(0)
        model = self.model_class(config)
        ids = torch.arange(FIRST_WORD, FIRST_WORD + 6)[None]
        labels = torch.cat([ids[:, :3], torch.tensor([[-100, 5, 6]])], dim=1)
        set_seed(0)
        with torch.no_grad():
            loss = model.train()(input_ids=ids, labels=labels).loss
            output = model.eval()(**dict.fromkeys(self.id_names, ids))
        return {
            "weights": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
            "loss": loss.item(),
            "logits": output.logits.tolist(),
            "caches": output.past_key_values is not None,
            "macs": macs(model, *[6] * len(self.id_names)),
            "generated": model.generate(ids, max_new_tokens=4, do_sample=False).tolist(),
        }
