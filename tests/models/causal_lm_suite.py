# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""What every decoder-only language model must hold; see suite.py."""

import pytest
import torch
from models.suite import FIRST_WORD, SIDES, ModelSuite, draw_words, loss_and_gradients, pad, written
from torch import nn
from transformers import Cache, PreTrainedConfig

from numerics import assert_close

LENGTHS = (7, 4, 1)


class CausalLMSuite(ModelSuite):
    """
    Of a decoder-only language model, whatever it keeps between steps. Positions are counted over the mask.

    A family whose cache forgets gives configs here under which it forgets nothing.
    """

    single_layer = {"num_hidden_layers": 1}
    padding_has_weights = True  # whether attention weights of padding queries, too, sum to 1
    id_names = ("input_ids",)

    def draw_rows(self, config) -> list[list[int]]:
        return draw_words(config.vocab_size, LENGTHS)

    def doubled(self, rows):
        return [row * 2 for row in rows]

    def prompts(self, rows) -> list[list[int]]:
        return rows

    def batch(self, config, rows, side: str = "right") -> dict[str, torch.Tensor]:
        ids, mask = pad(rows, side, config.pad_token_id)
        return {"input_ids": ids, "attention_mask": mask}

    def target_mask(self, batch) -> torch.Tensor:
        return batch["attention_mask"].bool()

    def training_batch(self, config, rows, side: str = "right") -> dict[str, torch.Tensor]:
        batch = self.batch(config, rows, side)
        real = self.target_mask(batch)
        follows = real & nn.functional.pad(real[:, :-1], (1, 0))  # padding on the left predicts no first word
        return {**batch, "labels": batch["input_ids"].masked_fill(~follows, -100)}

    def predicted(self, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(labels[:, 1:], (0, 1), value=-100)

    def visible(self, config: PreTrainedConfig, mask: torch.Tensor) -> torch.Tensor | None:
        """Which keys have weight in attention under a mask `[batch, length]`: `[batch, length, length]`, or None for a
        family without attention weights."""
        length = mask.shape[1]
        return torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None].bool()

    @torch.no_grad()
    def single_logits(self, model, rows) -> list[torch.Tensor]:
        """Logits `[length, vocab_size]` of each row alone, without padding, masks or a cache."""
        return [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in rows]

    # Padding, caches and causality

    @pytest.mark.parametrize("side", SIDES)
    def test_left_padding_compatibility(self, model, config, rows, side):
        batch = self.batch(config, rows, side)
        with torch.no_grad():
            logits = model(**batch).logits
        for row, expected in enumerate(self.single_logits(model, rows)):
            real = batch["attention_mask"][row].bool()
            assert_close(f"row {row}", logits[row, real], expected)

    @pytest.mark.parametrize("side", SIDES)
    def test_pads_change_nothing(self, model, config, rows, side):
        batch = self.batch(config, rows, side)
        words, real = torch.randint(FIRST_WORD, config.vocab_size, (3, 7)), self.target_mask(batch)
        other = {**batch, "input_ids": batch["input_ids"].where(real, words)}
        assert not torch.equal(other["input_ids"], batch["input_ids"])
        with torch.no_grad():
            expected = model(**batch).logits[real]
            assert_close("logits", model(**other).logits[real], expected, relative=1e-6, absolute=1e-6)

    @pytest.mark.parametrize("side", SIDES)
    @pytest.mark.parametrize("chunks", [[1] * 10, [7, 1, 1, 1], [3, 2, 5], [1, 9]], ids=str)
    def test_cached_chunks_equal_the_whole(self, model, config, rows, chunks, side):
        """Padded prompts are continued with a cache, and equal each row alone. Padding on the right is then a hole."""
        prompts = self.batch(config, rows, side)
        rest = torch.randint(FIRST_WORD, config.vocab_size, (3, 3))
        ids = torch.cat([prompts["input_ids"], rest], dim=1)
        mask = torch.cat([prompts["attention_mask"], torch.ones_like(rest)], dim=1)
        cache, logits, end = None, [], 0
        for chunk in ids.split(chunks, dim=1):
            end += chunk.shape[1]
            with torch.no_grad():
                output = model(input_ids=chunk, attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
            assert cache.get_seq_length() == end
        logits = torch.cat(logits, dim=1)
        continued = [[*row, *more] for row, more in zip(rows, rest.tolist(), strict=True)]
        for row, expected in enumerate(self.single_logits(model, continued)):
            assert_close(f"row {row}", logits[row, mask[row].bool()], expected)

    def test_position_ids_default_to_those_of_the_mask(self, model, config, rows):
        batch = self.batch(config, rows, "left")
        position_ids = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            first = {name: tensor[:, :5] for name, tensor in batch.items()}
            cache = model(**first, position_ids=position_ids[:, :5], use_cache=True).past_key_values
            rest = {**batch, "input_ids": batch["input_ids"][:, 5:], "position_ids": position_ids[:, 5:]}
            actual, expected = model(**rest, past_key_values=cache).logits, model(**batch).logits[:, 5:]
        real = self.target_mask(batch)[:, 5:]
        assert_close("logits", actual[real], expected[real])

    def test_past_key_values_are_returned_when_asked_for(self, model, config, rows):
        batch = self.batch(config, rows)
        with torch.no_grad():
            assert isinstance(model(**batch).past_key_values, Cache) == config.use_cache
            assert model(**batch, use_cache=False).past_key_values is None
            cache = model(**batch, use_cache=True).past_key_values
        assert len(cache.layers) == config.num_hidden_layers
        assert {layer.get_seq_length() for layer in cache.layers} == {7}

    @pytest.mark.parametrize("change", ["reorder", "select", "repeat"])
    @torch.no_grad()
    def test_batch_changes_move_all_state(self, model, config, rows, change):
        batch = self.batch(config, rows, "left")
        index = {"reorder": [2, 0, 0], "select": [2, 1], "repeat": [0, 0, 1, 1, 2, 2]}[change]
        step = torch.randint(FIRST_WORD, config.vocab_size, (len(index), 1))
        cache = model(**batch, use_cache=True).past_key_values
        if change == "reorder":
            cache.reorder_cache(torch.tensor(index))
        elif change == "select":
            cache.batch_select_indices(torch.tensor(index))
        else:
            cache.batch_repeat_interleave(2)
        mask = nn.functional.pad(batch["attention_mask"][index], (0, 1), value=1)
        output = model(input_ids=step, attention_mask=mask, past_key_values=cache)
        whole = torch.cat([batch["input_ids"][index], step], dim=1)
        expected = model(input_ids=whole, attention_mask=mask, use_cache=False)
        assert_close("step", output.logits[:, -1], expected.logits[:, -1])

    def test_wrong_cache_is_refused(self, model, config, rows):
        wrong = ((torch.zeros(3, 4, 1, 8),) * 2,)
        with pytest.raises(ValueError, match="`past_key_values` must be .*, got tuple"):
            model(**self.batch(config, rows), past_key_values=wrong)

    def test_later_tokens_never_move_earlier_logits(self, model, config):
        ids = torch.randint(FIRST_WORD, config.vocab_size, (1, 8))
        with torch.no_grad():
            before = model(input_ids=ids).logits
            for position in range(1, 8):
                changed = ids.clone()
                changed[:, position] = (ids[:, position] - FIRST_WORD + 1) % 8 + FIRST_WORD
                after = model(input_ids=changed).logits
                assert_close("earlier", after[:, :position], before[:, :position], relative=1e-6, absolute=1e-6)
                assert not torch.allclose(after[:, position:], before[:, position:], atol=1e-4)

    @pytest.mark.parametrize("options", [{}, {"use_cache": False}], ids=str)
    def test_packed_documents_equal_separate_ones(self, model, config, rows, options):
        """Without a mask, position_ids that restart tell where a document begins. Nothing may ask the user to switch
        the cache off as well."""
        ids = torch.tensor([sum(rows, [])])
        position_ids = torch.cat([torch.arange(len(row)) for row in rows])[None]
        batch = {"input_ids": ids, "position_ids": position_ids, **options}
        with torch.no_grad():
            logits = model(**batch).logits
        assert_close("logits", logits[0], torch.cat(self.single_logits(model, rows)))
        num_items = sum(len(row) - 1 for row in rows)
        training = {**batch, "labels": ids.masked_fill(position_ids == 0, -100), "num_items_in_batch": num_items}
        packed, separate = loss_and_gradients(model, training), []
        for row in rows:
            one = {"input_ids": torch.tensor([row]), "labels": torch.tensor([row]), "num_items_in_batch": num_items}
            separate.append(loss_and_gradients(model, one))
        for name, tensor in packed.items():
            assert_close(name, tensor, sum(one[name] for one in separate))

    # Generation

    @pytest.mark.parametrize(("num_beams", "use_cache"), [(1, True), (1, False), (3, True), (3, False)])
    def test_generate_padded_batch_equals_single_rows(self, model, config, rows, num_beams, use_cache):
        batch = self.batch(config, rows, "left")
        options = {**self.generation_options(config), "num_beams": num_beams}
        generated = written(model.generate(**batch, **options, use_cache=use_cache), config)
        for row, prompt in enumerate(rows):
            assert generated[row] == written(model.generate(torch.tensor([prompt]), **options), config)[0]
            assert generated[row][: len(prompt)] == prompt
        assert any(len(row) > len(prompt) + 1 for row, prompt in zip(generated, rows, strict=True))

    def test_generate_continue_from_past_key_values(self, model, config, rows):
        batch = self.batch(config, rows, "left")
        options = {"return_dict_in_generate": True, "eos_token_id": None, "do_sample": False}
        whole = model.generate(**batch, **options, max_new_tokens=7)
        part = model.generate(**batch, **options, max_new_tokens=4)
        mask = nn.functional.pad(batch["attention_mask"], (0, 4), value=1)
        known = {"attention_mask": mask, "past_key_values": part.past_key_values}
        rest = model.generate(part.sequences, **options, **known, max_new_tokens=3)
        assert torch.equal(rest.sequences, whole.sequences)

    # Inputs and outputs

    def test_inputs_embeds_matches_input_ids(self, model, config, rows):
        batch = self.batch(config, rows, "left")
        with torch.no_grad():
            expected = model(**batch).logits
            embedded = model.get_input_embeddings()(batch.pop("input_ids"))
            assert_close("logits", model(**batch, inputs_embeds=embedded).logits, expected)

    def test_missing_and_doubled_inputs_are_refused(self, model, config, rows):
        batch = self.batch(config, rows)
        embedded = model.get_input_embeddings()(batch["input_ids"])
        for inputs in ({**batch, "inputs_embeds": embedded}, {"attention_mask": batch["attention_mask"]}):
            with pytest.raises(ValueError, match="either `input_ids` or `inputs_embeds`"):
                model(**inputs)

    def test_hidden_states_and_attention_outputs(self, config, rows):
        implementation = self.attention_implementations[0]
        model, batch = self.build(config, attn_implementation=implementation), self.batch(config, rows)
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True, output_attentions=True)
            assert_close("logits", output.logits, model(**batch).logits, relative=1e-6, absolute=1e-6)
            last = model.base_model(**batch).last_hidden_state
        assert len(output.hidden_states) == config.num_hidden_layers + 1
        assert all(states.shape == (3, 7, config.hidden_size) for states in output.hidden_states)
        assert_close("last", output.hidden_states[-1], last, relative=1e-6, absolute=1e-6)
        visible = self.visible(config, batch["attention_mask"])
        if visible is None:
            assert not output.attentions
            return
        assert len(output.attentions) == config.num_hidden_layers
        checked = torch.ones(3, 7, dtype=torch.bool) if self.padding_has_weights else batch["attention_mask"].bool()
        for weights in output.attentions:
            assert weights.shape == (3, config.num_attention_heads, 7, 7)
            weights = weights.transpose(1, 2)[checked]
            assert_close("sum", weights.sum(-1), torch.ones_like(weights[..., 0]))
            assert not weights.masked_select(~visible[checked][:, None]).any()
            assert weights.masked_select(visible[checked][:, None]).all()
