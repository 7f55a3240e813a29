# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
What every encoder-decoder must hold; see suite.py.

"Packed documents = separate documents" is not among the equivalences: an encoder-decoder takes no `position_ids`, so
that there is no way to say where a packed document begins.
"""

import pytest
import torch
from models.suite import FIRST_WORD, SIDES, ModelSuite, draw_words, pad, written
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from numerics import assert_close

SOURCE_LENGTHS, TARGET_LENGTHS = (7, 4, 1), (6, 3, 1)


class Seq2SeqSuite(ModelSuite):
    """Of an encoder-decoder with a language model head."""

    single_layer = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    id_names = ("input_ids", "decoder_input_ids")

    def source_vocab_size(self, config: PreTrainedConfig) -> int:
        return getattr(config, "source_vocab_size", None) or config.vocab_size

    def draw_rows(self, config) -> tuple[list[list[int]], list[list[int]]]:
        """Sources and decoder inputs."""
        words = draw_words(config.vocab_size, tuple(length - 1 for length in TARGET_LENGTHS))
        sources = draw_words(self.source_vocab_size(config), SOURCE_LENGTHS)
        return sources, [[config.decoder_start_token_id, *row] for row in words]

    def doubled(self, rows):
        return [row * 2 for row in rows[0]], [row * 2 for row in rows[1]]

    def prompts(self, rows) -> list[list[int]]:
        return rows[0]

    def batch(self, config, rows, side: str = "right", target_side: str | None = None) -> dict[str, torch.Tensor]:
        source, source_mask = pad(rows[0], side, config.pad_token_id)
        target, target_mask = pad(rows[1], target_side or side, config.pad_token_id)
        return {
            "input_ids": source,
            "attention_mask": source_mask,
            "decoder_input_ids": target,
            "decoder_attention_mask": target_mask,
        }

    def target_mask(self, batch) -> torch.Tensor:
        return batch["decoder_attention_mask"].bool()

    def training_batch(self, config, rows, side: str = "right") -> dict[str, torch.Tensor]:
        batch = self.batch(config, rows, side)
        labels = batch["decoder_input_ids"].roll(-1, dims=1)
        return {**batch, "labels": labels.masked_fill(~self.target_mask(batch), -100)}

    def predicted(self, labels: torch.Tensor) -> torch.Tensor:
        return labels

    @torch.no_grad()
    def single_logits(self, model, rows) -> list[torch.Tensor]:
        """Logits `[length, vocab_size]` of each pair alone, without padding, masks or a cache."""
        return [
            model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target]), use_cache=False).logits[
                0
            ]
            for source, target in zip(*rows, strict=True)
        ]

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
                assert_close("earlier", after[:, :position], before[:, :position], relative=1e-6, absolute=1e-6)
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

    # Inputs and outputs

    def test_encoder_outputs_can_be_reused(self, model, config, rows):
        batch = self.batch(config, rows, "left")
        source = batch.pop("input_ids")
        with torch.no_grad():
            expected = model(input_ids=source, **batch)
            encoded = model.get_encoder()(source, attention_mask=batch["attention_mask"])
            assert_close("encoded", encoded.last_hidden_state, expected.encoder_last_hidden_state)
            for encoder_outputs in (encoded, (encoded.last_hidden_state,), encoded.to_tuple()):
                output = model(encoder_outputs=encoder_outputs, **batch)
                assert_close("logits", output.logits, expected.logits, relative=1e-6, absolute=1e-6)
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
            assert_close("logits", output.logits, model(**batch).logits, relative=1e-6, absolute=1e-6)
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
