# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
What every model of the library must hold, under the names that transformers' own tests have for it where they have.

A family's test class derives from a suite, names its classes there, and gives small configs as the fixture `config`.

"Packed documents = separate documents" is not among the equivalences of an encoder-decoder: it takes no
`position_ids`, so that there is no way to say where a packed document begins.
"""

import copy
import dataclasses
import inspect
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedConfig, PreTrainedModel, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from leanformers.accounting import macs
from numerics import assert_close

FIRST_WORD = 4  # pad, unk, <s> and </s> come before
SOURCE_LENGTHS, TARGET_LENGTHS = (7, 4, 1), (6, 3, 1)
SIDES = ("left", "right")


def perturb(model: nn.Module, scale: float = 0.1) -> None:
    """Move all weights, as zero biases and unit gains hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)


def pad(rows: list[list[int]], side: str, pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, `[batch, longest]`."""
    longest, ids, mask = max(map(len, rows)), [], []
    for row in rows:
        pads, real = [pad_token_id] * (longest - len(row)), [1] * len(row)
        ids.append(pads + row if side == "left" else row + pads)
        mask.append([0] * len(pads) + real if side == "left" else real + [0] * len(pads))
    return torch.tensor(ids), torch.tensor(mask)


def written(sequences: torch.Tensor, config: PreTrainedConfig) -> list[list[int]]:
    """Generated rows without the padding before them and what fills them up behind the end of the sentence."""
    rows = []
    for row in sequences.tolist():
        start = next(position for position, token in enumerate(row) if token != config.pad_token_id)
        end = row.index(config.eos_token_id) if config.eos_token_id in row else len(row)
        rows.append(row[start:end])
    return rows


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything under every name it has, and buffers that are not saved."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def gradients_of(model: PreTrainedModel, inputs: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


class Seq2SeqSuite:
    """
    Of an encoder-decoder with a language model head.

    Attributes:
        config_class, base_model_class, model_class: the family's.
        field_changes (`dict`): for each config field, the other fields that let it work and a value that must change
            something.
        metadata_fields (`dict`): config fields that change nothing by themselves, each with the reason.
    """

    config_class: type[PreTrainedConfig]
    base_model_class: type[PreTrainedModel]
    model_class: type[PreTrainedModel]
    field_changes: dict[str, tuple[dict, object]]
    metadata_fields: dict[str, str]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "changed_field" in metafunc.fixturenames:
            metafunc.parametrize("changed_field", sorted(self.own_fields() - set(self.metadata_fields)))

    def own_fields(self) -> set[str]:
        declared = inspect.get_annotations(self.config_class)
        return {field.name for field in dataclasses.fields(self.config_class) if field.name in declared}

    def small_config(self, **fields) -> PreTrainedConfig:
        """A config for tests of single fields."""
        raise NotImplementedError

    def source_vocab_size(self, config: PreTrainedConfig) -> int:
        return getattr(config, "source_vocab_size", None) or config.vocab_size

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
    def rows(self, config) -> tuple[list[list[int]], list[list[int]]]:
        """Sources and decoder inputs of different lengths."""
        sources = [torch.randint(FIRST_WORD, self.source_vocab_size(config), (n,)).tolist() for n in SOURCE_LENGTHS]
        words = [torch.randint(FIRST_WORD, config.vocab_size, (n - 1,)).tolist() for n in TARGET_LENGTHS]
        return sources, [[config.decoder_start_token_id, *row] for row in words]

    def batch(self, config, rows, source_side: str = "right", target_side: str = "right") -> dict[str, torch.Tensor]:
        source, source_mask = pad(rows[0], source_side, config.pad_token_id)
        target, target_mask = pad(rows[1], target_side, config.pad_token_id)
        return {
            "input_ids": source,
            "attention_mask": source_mask,
            "decoder_input_ids": target,
            "decoder_attention_mask": target_mask,
        }

    def training_batch(self, config, rows, side: str = "right") -> dict[str, torch.Tensor]:
        batch = self.batch(config, rows, side, side)
        labels = batch["decoder_input_ids"].roll(-1, dims=1)
        return {**batch, "labels": labels.masked_fill(batch["decoder_attention_mask"] == 0, -100)}

    @torch.no_grad()
    def single_logits(self, model, rows) -> list[torch.Tensor]:
        """Logits `[length, vocab_size]` of each pair alone, without padding, masks or a cache."""
        return [
            model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target]), use_cache=False).logits[
                0
            ]
            for source, target in zip(*rows, strict=True)
        ]

    # Initialisation, saving and loading

    def test_initialization_follows_the_seed(self, config):
        models = []
        for seed in (0, 0, 1):
            set_seed(seed)
            models.append(tensors_of(self.model_class(copy.deepcopy(config))))
        first, again, other = models
        assert all(torch.equal(first[name], again[name]) for name in first)
        for name, tensor in first.items():
            if tensor.unique().numel() > 1:
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
        assert bool(tied) == config.tie_word_embeddings
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

    # Padding, caches and causality

    @pytest.mark.parametrize("source_side", SIDES)
    @pytest.mark.parametrize("target_side", SIDES)
    def test_left_padding_compatibility(self, model, config, rows, source_side, target_side):
        batch = self.batch(config, rows, source_side, target_side)
        with torch.no_grad():
            logits = model(**batch).logits
        for row, expected in enumerate(self.single_logits(model, rows)):
            real = batch["decoder_attention_mask"][row].bool()
            assert_close(f"row {row}", logits[row, real], expected)

    @pytest.mark.parametrize("side", SIDES)
    def test_source_pads_change_nothing(self, model, config, rows, side):
        batch = self.batch(config, rows, side, side)
        words = torch.randint(FIRST_WORD, self.source_vocab_size(config), batch["input_ids"].shape)
        other = {**batch, "input_ids": batch["input_ids"].where(batch["attention_mask"] == 1, words)}
        assert not torch.equal(other["input_ids"], batch["input_ids"])
        with torch.no_grad():
            assert_close("logits", model(**other).logits, model(**batch).logits, relative=1e-6, absolute=1e-6)

    @pytest.mark.parametrize("source_side", SIDES)
    @pytest.mark.parametrize("chunks", [[1] * 9, [6, 1, 1, 1], [3, 2, 4], [1, 8]], ids=str)
    def test_cached_chunks_equal_the_whole(self, model, config, rows, chunks, source_side):
        """A batch whose prompts are padded on the left is continued with a cache, and equals each row alone."""
        prompts = rows[1]
        continued = [row + torch.randint(FIRST_WORD, config.vocab_size, (3,)).tolist() for row in prompts]
        batch = self.batch(config, (rows[0], continued), source_side, "left")
        encoder_outputs = model.get_encoder()(batch["input_ids"], attention_mask=batch["attention_mask"])
        cache, logits, end = None, [], 0
        for chunk in batch["decoder_input_ids"].split(chunks, dim=1):
            end += chunk.shape[1]
            with torch.no_grad():
                output = model(
                    encoder_outputs=encoder_outputs,
                    attention_mask=batch["attention_mask"],
                    decoder_input_ids=chunk,
                    decoder_attention_mask=batch["decoder_attention_mask"][:, :end],
                    past_key_values=cache,
                    use_cache=True,
                )
            cache = output.past_key_values
            logits.append(output.logits)
            assert cache.get_seq_length() == end
        logits = torch.cat(logits, dim=1)
        for row, expected in enumerate(self.single_logits(model, (rows[0], continued))):
            real = batch["decoder_attention_mask"][row].bool()
            assert_close(f"row {row}", logits[row, real], expected)

    def test_past_key_values_are_returned_when_asked_for(self, model, config, rows):
        batch = self.batch(config, rows)
        with torch.no_grad():
            assert isinstance(model(**batch).past_key_values, EncoderDecoderCache) == config.use_cache
            assert model(**batch, use_cache=False).past_key_values is None
            cache = model(**batch, use_cache=True).past_key_values
        for part, length in ((cache.self_attention_cache, 6), (cache.cross_attention_cache, 7)):
            assert len(part.layers) == len(model.get_decoder().layers)
            assert {layer.get_seq_length() for layer in part.layers} == {length}
            assert {layer.keys.shape[0] for layer in part.layers} == {3}

    @pytest.mark.parametrize("change", ["reorder", "select", "repeat"])
    def test_batch_changes_move_all_state(self, model, config, rows, change):
        batch = self.batch(config, rows, "left", "left")
        states = model.get_encoder()(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        index = {"reorder": [2, 0, 0], "select": [2, 1], "repeat": [0, 0, 1, 1, 2, 2]}[change]
        step = torch.randint(FIRST_WORD, config.vocab_size, (len(index), 1))

        def forward(encoder_states, source_mask, mask, **inputs):
            with torch.no_grad():
                return model(
                    encoder_outputs=BaseModelOutput(encoder_states),
                    attention_mask=source_mask,
                    decoder_attention_mask=mask,
                    **inputs,
                )

        mask, ids = batch["decoder_attention_mask"], batch["decoder_input_ids"]
        cache = forward(states, batch["attention_mask"], mask, decoder_input_ids=ids, use_cache=True).past_key_values
        if change == "reorder":
            cache.reorder_cache(torch.tensor(index))
        elif change == "select":
            cache.batch_select_indices(torch.tensor(index))
        else:
            cache.batch_repeat_interleave(2)
        mask = nn.functional.pad(mask[index], (0, 1), value=1)
        where = (states[index], batch["attention_mask"][index], mask)
        output = forward(*where, decoder_input_ids=step, past_key_values=cache)
        whole = forward(*where, decoder_input_ids=torch.cat([ids[index], step], dim=1), use_cache=False)
        assert_close("step", output.logits[:, -1], whole.logits[:, -1])

    def test_wrong_cache_is_refused(self, model, config, rows):
        batch = self.batch(config, rows)
        for wrong in (DynamicCache(config=config), ((torch.zeros(3, 4, 1, 8),) * 2,)):
            with pytest.raises(ValueError, match=f"must be an EncoderDecoderCache, got {type(wrong).__name__}"):
                model(**batch, past_key_values=wrong)

    def test_later_tokens_never_move_earlier_logits(self, model, config):
        """At equal lengths too, where gates that pair target with source positions would run."""
        source = torch.randint(FIRST_WORD, self.source_vocab_size(config), (1, 8))
        target = torch.randint(FIRST_WORD, config.vocab_size, (1, 8))
        with torch.no_grad():
            before = model(input_ids=source, decoder_input_ids=target).logits
            for position in range(1, 8):
                changed = target.clone()
                changed[:, position] = (target[:, position] - FIRST_WORD + 1) % 8 + FIRST_WORD
                after = model(input_ids=source, decoder_input_ids=changed).logits
                assert_close("earlier", after[:, :position], before[:, :position], relative=1e-7, absolute=1e-7)
                assert not torch.allclose(after[:, position:], before[:, position:], atol=1e-4)

    # Generation

    @pytest.mark.parametrize("source_side", SIDES)
    @pytest.mark.parametrize(("num_beams", "use_cache"), [(1, True), (1, False), (3, True), (3, False)])
    def test_generate_padded_batch_equals_single_rows(self, model, config, rows, num_beams, use_cache, source_side):
        batch = self.batch(config, rows, source_side, "left")
        options = {**self.generation_options(config), "num_beams": num_beams}
        generated = written(model.generate(**batch, **options, use_cache=use_cache), config)
        for row, (source, target) in enumerate(zip(*rows, strict=True)):
            inputs = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([target])}
            assert generated[row] == written(model.generate(**inputs, **options), config)[0]
            assert generated[row][: len(target)] == target
        assert any(len(row) > len(target) + 1 for row, target in zip(generated, rows[1], strict=True))

    def generation_options(self, config) -> dict[str, object]:
        """No padding among the words, as it could not be told from what fills up a batch."""
        return {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [config.pad_token_id]}

    def test_beam_search_generate_return_sequences(self, model, config, rows):
        source, mask = pad(rows[0], "right", config.pad_token_id)
        options = {**self.generation_options(config), "attention_mask": mask, "num_beams": 4}
        two = model.generate(source, **options, num_return_sequences=2)
        assert torch.equal(two, model.generate(source, **options, num_return_sequences=2, use_cache=False))
        assert len(two) == 2 * len(source)
        best, two = written(model.generate(source, **options), config), written(two, config)
        assert two[::2] == best
        assert all(first != second for first, second in zip(two[::2], two[1::2], strict=True))

    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_generate_with_static_cache(self, model, config, rows, num_beams):
        batch = self.batch(config, rows, "left", "left")
        options = {"max_new_tokens": 6, "num_beams": num_beams, "do_sample": False}
        static = model.generate(**batch, **options, cache_implementation="static")
        assert torch.equal(static, model.generate(**batch, **options))

    @pytest.mark.parametrize("kind", ["assistant", "prompt_lookup"])
    def test_assisted_decoding_matches_greedy_search(self, model, config, rows, kind):
        source, options = torch.tensor(rows[0][:1]), {"max_new_tokens": 12, "do_sample": False}
        assistant = copy.deepcopy(model)
        perturb(assistant, 0.02)  # close enough that some of its tokens are accepted, and some are not
        help = {"assistant_model": assistant} if kind == "assistant" else {"prompt_lookup_num_tokens": 3}
        assert torch.equal(model.generate(source, **options, **help), model.generate(source, **options))

    def test_generate_continue_from_past_key_values(self, model, config, rows):
        source, mask = pad(rows[0], "left", config.pad_token_id)
        encoder_outputs = model.get_encoder()(source, attention_mask=mask)
        options = {"encoder_outputs": encoder_outputs, "attention_mask": mask, "do_sample": False}
        options |= {"return_dict_in_generate": True, "eos_token_id": None}
        whole = model.generate(**options, max_new_tokens=7)
        part = model.generate(**options, max_new_tokens=4)
        # transformers tells from the mask which of the ids the cache has seen.
        known = {"decoder_input_ids": part.sequences, "decoder_attention_mask": torch.ones_like(part.sequences)}
        rest = model.generate(**options, **known, past_key_values=part.past_key_values, max_new_tokens=3)
        assert torch.equal(rest.sequences, whole.sequences)

    # Training

    def test_loss_is_the_cross_entropy_of_the_labels(self, model, config, rows):
        batch = self.training_batch(config, rows)
        output, labels = model(**batch), batch["labels"]
        losses = -output.logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        real = labels != -100
        assert real.sum() == sum(TARGET_LENGTHS) and not real.all()
        assert_close("loss", output.loss, losses[real].mean())
        parts = [
            model(**{key: value[i : i + 1] for key, value in batch.items()}, num_items_in_batch=real.sum()).loss
            for i in range(len(labels))
        ]
        assert_close("sum of the rows' losses", sum(parts), output.loss)

    def test_labels_alone_give_the_decoder_inputs(self, model, config, rows):
        batch = self.training_batch(config, rows)
        del batch["decoder_input_ids"], batch["decoder_attention_mask"]
        labels = batch["labels"]
        inputs = model.prepare_decoder_input_ids_from_labels(labels)
        assert inputs[:, 0].tolist() == [config.decoder_start_token_id] * 3
        assert inputs[0].tolist()[1:] == labels[0].tolist()[:-1]
        assert inputs[2].tolist()[2:] == [config.pad_token_id] * 4
        expected = model(**batch, decoder_input_ids=inputs)
        assert_close("loss", model(**batch).loss, expected.loss)

    @pytest.mark.parametrize("side", SIDES)
    def test_every_parameter_gets_a_gradient(self, model, config, rows, side):
        for name, gradient in gradients_of(model.train(), self.training_batch(config, rows, side)).items():
            assert gradient.isfinite().all() and gradient.any(), name

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_training_gradient_checkpointing(self, model, config, rows, use_reentrant):
        batch = self.training_batch(config, rows)
        expected, loss = gradients_of(model.train(), batch), model(**batch).loss
        # Renamed in the course of transformers 5.
        old_name = "gradient_checkpointing_enable"
        name = "activation_checkpointing_enable" if hasattr(model, "activation_checkpointing_enable") else old_name
        getattr(model, name)({"use_reentrant": use_reentrant})
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        assert layers and all(layer.gradient_checkpointing for layer in layers)
        gradients = gradients_of(model, batch)
        assert_close("loss", model(**batch).loss, loss, relative=1e-7, absolute=1e-7)
        for name, gradient in gradients.items():
            assert_close(name, gradient, expected[name], relative=1e-6, absolute=1e-6)

    def test_eager_matches_sdpa(self, config, rows):
        batch, results = self.training_batch(config, rows), {}
        batch |= self.batch(config, rows, "left", "right")
        for name in ("eager", "sdpa"):
            model = self.build(config, attn_implementation=name)
            assert model.config._attn_implementation == name
            results[name] = {"logits": model(**batch).logits, **gradients_of(model, batch)}
        for name, expected in results["eager"].items():
            assert_close(name, results["sdpa"][name], expected)

    @pytest.mark.skipif(
        torch.__version__.startswith("2.6."),
        reason="Dynamo of torch 2.6 cannot trace the decorators that transformers has around every forward",
    )
    @pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
    def test_torch_compile_for_training(self, backend):
        config = self.small_config(num_encoder_layers=1, num_decoder_layers=1)
        ids = torch.arange(FIRST_WORD, FIRST_WORD + 10).view(2, 5)
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
        batch = {"input_ids": ids, "attention_mask": mask, "labels": ids, "decoder_attention_mask": mask}
        self.check_compiled(self.build(config), batch, backend)

    @pytest.mark.slow
    def test_no_graph_breaks(self, model, config, rows):
        batch = self.training_batch(config, rows, "left")
        self.check_compiled(model, batch, "eager")
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with torch.no_grad():
            assert_close("without gradients", compiled(**batch).logits, model(**batch).logits)

    def check_compiled(self, model, batch, backend: str) -> None:
        expected = {"logits": model(**batch).logits, **gradients_of(model, batch)}
        torch.compiler.reset()
        output = torch.compile(model, backend=backend, fullgraph=True)(**batch)
        model.zero_grad()
        output.loss.backward()
        actual = {name: parameter.grad for name, parameter in model.named_parameters()}
        for name, tensor in expected.items():
            assert_close(name, output.logits if name == "logits" else actual[name], tensor)

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
            longer = ([row * 3 for row in rows[0]], [row * 2 for row in rows[1]])
            for some in (rows, longer):
                batch = {**self.batch(config, some), "use_cache": False}
                assert_close("logits", program.module()(**batch).logits, model(**batch).logits)

    @pytest.mark.parametrize("kind", ["cast", "autocast"])
    def test_bfloat16_runs(self, model, config, rows, kind):
        batch = self.training_batch(config, rows)
        expected = model(**batch)
        if kind == "cast":
            model.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            output = model(**batch)
        output.loss.backward()
        assert output.logits.dtype == torch.bfloat16
        assert output.logits.isfinite().all()
        assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.05)
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["decoder_input_ids"].shape[1]

    # Inputs, outputs and embeddings

    def test_determinism(self, model, config, rows):
        batch = self.batch(config, rows)
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, model(**batch).logits)

    def test_model_outputs_equivalence(self, model, config, rows):
        batch = self.training_batch(config, rows)
        output = model(**batch)
        loss, logits = model(**batch, return_dict=False)[:2]
        assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)

    def test_logits_to_keep(self, model, config, rows):
        batch = self.batch(config, rows)
        with torch.no_grad():
            logits = model(**batch).logits
            assert logits.shape == (3, 6, config.vocab_size)
            for kept, expected in ((0, logits), (1, logits[:, -1:]), (4, logits[:, 2:])):
                assert_close(f"last {kept}", model(**batch, logits_to_keep=kept).logits, expected)
            chosen = torch.tensor([0, 3])
            assert_close("chosen", model(**batch, logits_to_keep=chosen).logits, logits[:, chosen])

    def test_encoder_outputs_can_be_reused(self, model, config, rows):
        batch = self.batch(config, rows, "left")
        source = batch.pop("input_ids")
        with torch.no_grad():
            expected = model(input_ids=source, **batch)
            encoded = model.get_encoder()(source, attention_mask=batch["attention_mask"])
            assert torch.equal(encoded.last_hidden_state, expected.encoder_last_hidden_state)
            for encoder_outputs in (encoded, (encoded.last_hidden_state,), encoded.to_tuple()):
                output = model(encoder_outputs=encoder_outputs, **batch)
                assert torch.equal(output.logits, expected.logits)
        assert model.get_encoder() is model.base_model.encoder
        assert model.get_decoder() is model.base_model.decoder

    def test_inputs_embeds_matches_input_ids(self, model, config, rows):
        batch = self.batch(config, rows, "left", "left")
        with torch.no_grad():
            expected = model(**batch).logits
            source = model.get_input_embeddings()(batch.pop("input_ids"))
            assert_close("source", model(**batch, inputs_embeds=source).logits, expected)
            target = model.get_decoder().get_input_embeddings()(batch.pop("decoder_input_ids"))
            output = model(**batch, inputs_embeds=source, decoder_inputs_embeds=target)
            assert_close("both", output.logits, expected)

    def test_missing_and_doubled_inputs_are_refused(self, model, config, rows):
        batch = self.batch(config, rows)
        source = model.get_input_embeddings()(batch["input_ids"])
        target = model.get_decoder().get_input_embeddings()(batch["decoder_input_ids"])
        with pytest.raises(ValueError, match="either `input_ids` or `inputs_embeds`"):
            model(**batch, inputs_embeds=source)
        with pytest.raises(ValueError, match="either `decoder_input_ids` or `decoder_inputs_embeds`"):
            model(**batch, decoder_inputs_embeds=target)
        with pytest.raises(ValueError, match="either `input_ids` or `inputs_embeds`"):
            model(decoder_input_ids=batch["decoder_input_ids"])
        with pytest.raises(ValueError, match="either `decoder_input_ids` or `decoder_inputs_embeds`"):
            model(input_ids=batch["input_ids"])

    def test_hidden_states_and_attention_outputs(self, config, rows):
        model, batch = self.build(config, attn_implementation="eager"), self.batch(config, rows)
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True, output_attentions=True)
            assert torch.equal(output.logits, model(**batch).logits)
        sizes = {"encoder": (len(model.get_encoder().layers), 7), "decoder": (len(model.get_decoder().layers), 6)}
        for side, (num_layers, length) in sizes.items():
            hidden_states = output[f"{side}_hidden_states"]
            assert len(hidden_states) == num_layers + 1
            assert all(states.shape == (3, length, config.hidden_size) for states in hidden_states)
            assert len(output[f"{side}_attentions"]) == num_layers
        assert torch.equal(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
        source_mask, target_mask = batch["attention_mask"].bool(), batch["decoder_attention_mask"].bool()
        causal = torch.ones(6, 6, dtype=torch.bool).tril() & target_mask[:, None]
        allowed = {
            "encoder_attentions": source_mask[:, None].expand(3, 7, 7),
            "decoder_attentions": causal,
            "cross_attentions": source_mask[:, None].expand(3, 6, 7),
        }
        for name, visible in allowed.items():
            for weights in output[name]:
                assert weights.shape == (3, config.num_attention_heads, *visible.shape[1:])
                assert_close(f"sum of {name}", weights.sum(-1), torch.ones_like(weights[..., 0]))
                assert not weights.masked_select(~visible[:, None]).any(), name
                assert weights.masked_select(visible[:, None]).all(), name

    @pytest.mark.parametrize(("size", "multiple"), [(8, None), (-4, None), (1, 16)])
    def test_resize_tokens_embeddings(self, model, config, rows, size, multiple, tmp_path):
        size += config.vocab_size
        problem = self.resize_problem(config)
        if problem:
            with pytest.raises(ValueError, match=problem):
                model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
            return
        kept, batch = min(size, config.vocab_size), self.batch(config, rows)
        for ids in (batch["input_ids"], batch["decoder_input_ids"]):
            ids.clamp_(max=kept - 1)
        with torch.no_grad():
            before = model(**batch).logits
            model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
            expected = size if multiple is None else -(-size // multiple) * multiple
            assert model.config.vocab_size == expected
            after = model(**batch).logits
        assert after.shape[-1] == expected
        assert_close("logits of the tokens that stay", after[..., :kept], before[..., :kept])
        batch["input_ids"][0, 0] = batch["decoder_input_ids"][0, 1] = expected - 1
        labels = torch.full_like(batch["decoder_input_ids"], expected - 1)
        assert all(gradient.isfinite().all() for gradient in gradients_of(model, {**batch, "labels": labels}).values())
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
            in_training = model.train()(input_ids=ids, labels=labels).logits
            cache = model.eval()(input_ids=ids, decoder_input_ids=ids).past_key_values
        return {
            "weights": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
            "logits": in_training.tolist(),
            "caches": cache is not None,
            "macs": macs(model, 6, 6),
            "generated": model.generate(ids, max_new_tokens=4, do_sample=False).tolist(),
        }
