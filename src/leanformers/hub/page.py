# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""
A page on which one exported model can be tried, with torch, transformers and gradio alone.

    python page.py --model FOLDER_OR_REPOSITORY

A translator shows its beams and what they attend to. A language model writes; meanwhile the page shows how many bytes
its cache holds and, with selective attention, which tokens are forgotten. A fast weight memory is written to and
asked. A Space of the Hub has this file as it is.
"""

import argparse
import html
import importlib
import os
import zlib
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pandas as pd
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, DynamicCache

KIBIBYTE = 1024
PUSHED_DOWN = 4.0  # votes against a token of which less than 2 percent of its weight is left: exp(-4)
STEPS_BETWEEN_PICTURES = 4
MOST_NEW_TOKENS, MOST_CHARACTERS = 512, 4000


class Loaded:
    """A model with its tokenizers, on the fastest device there is."""

    def __init__(self, name: str, revision: str | None = None, trust_remote_code: bool = True):
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        is_encoder_decoder = AutoConfig.from_pretrained(name, **options).is_encoder_decoder
        auto_class = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
        self.name, self.model = name, auto_class.from_pretrained(name, **options).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.config = self.model.config
        self.tokenizer = self.target_tokenizer = AutoTokenizer.from_pretrained(name, **options)
        if self.tokenizer.init_kwargs.get("separate_target_tokenizer"):
            self.target_tokenizer = AutoTokenizer.from_pretrained(name, subfolder="target_tokenizer", **options)

    def sibling(self, name: str) -> Any:
        """A file of the model's own code, as a module."""
        return importlib.import_module(f"{type(self.model).__module__.rpartition('.')[0]}.{name}")

    def device(self) -> torch.device:
        return self.model.device


# Translation


def translate(loaded: Loaded, text: str, num_beams: float) -> tuple[pd.DataFrame, str]:
    """The beams with their scores, and what the best one's tokens attend to."""
    text = text.strip()[:MOST_CHARACTERS]
    if not text:
        raise gr.Error("Type something to translate.")
    inputs = loaded.tokenizer(text, return_tensors="pt").to(loaded.device())
    beams = int(num_beams)
    output = loaded.model.generate(
        **inputs, num_beams=beams, num_return_sequences=beams, return_dict_in_generate=True, output_scores=True
    )
    texts = loaded.target_tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    scores = output.sequences_scores.tolist() if beams > 1 else [None]
    table = pd.DataFrame({"translation": texts, "score": [_rounded(score) for score in scores]})
    return table, attention_table(loaded, inputs["input_ids"], output.sequences[:1])


def _rounded(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"


@torch.no_grad()
def attention_table(loaded: Loaded, source: torch.Tensor, target: torch.Tensor) -> str:
    """Cross-attention, the mean of all heads of all layers: a row for each target token, a column for a source one."""
    end = loaded.config.eos_token_id
    written = target[0, 1:].tolist()
    target = target[:, : 2 + written.index(end)] if end in written else target
    before = loaded.config._attn_implementation
    loaded.model.set_attn_implementation("eager")  # others give no weights
    try:
        output = loaded.model(input_ids=source, decoder_input_ids=target[:, :-1], output_attentions=True)
    finally:
        loaded.model.set_attn_implementation(before)
    weights = torch.stack([layer.float() for layer in output.cross_attentions]).mean(dim=(0, 2))[0]
    columns = "".join(f"<th>{_shown(loaded.tokenizer, token)}</th>" for token in source[0].tolist())
    rows = []
    for token, row in zip(target[0, 1:].tolist(), weights.tolist(), strict=True):
        strongest = max(row)
        cells = "".join(
            f'<td style="background: rgba(79, 70, 229, {weight / strongest:.2f})" title="{weight:.2f}">&nbsp;</td>'
            for weight in row
        )
        rows.append(f"<tr><th>{_shown(loaded.target_tokenizer, token)}</th>{cells}</tr>")
    return f'<table class="attention"><tr><th></th>{columns}</tr>{"".join(rows)}</table>'


def _shown(tokenizer: Any, token: int) -> str:
    return html.escape(tokenizer.decode([token]).replace(" ", "␣").replace("\n", "↵")) or "·"


# Writing


def write(
    loaded: Loaded, prompt: str, new_tokens: float, temperature: float, seed: float = 0, budget: float = 0
) -> Iterator[tuple[list[tuple[str, float]], pd.DataFrame, str]]:
    """
    Continues a text token by token.

    Yields the tokens with how much of each is forgotten (0 to 1), the bytes held so far for a plot, and a sentence.
    """
    generator = torch.Generator(device=loaded.device()).manual_seed(int(seed))
    if hasattr(loaded.config, "memory_budgets"):
        loaded.config.memory_budgets = max(2, int(budget)) if budget else None
    ids = loaded.tokenizer(prompt[:MOST_CHARACTERS]).input_ids
    ids = ids[:-1] if len(ids) > 1 and ids[-1] == loaded.tokenizer.eos_token_id else ids
    ids = ids or [loaded.tokenizer.eos_token_id]
    cache, held = DynamicCache(config=loaded.config), []
    new, last = torch.tensor([ids], device=loaded.device()), int(min(new_tokens, MOST_NEW_TOKENS))
    for step in range(last + 1):
        with torch.no_grad():
            logits = loaded.model(new, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        held.append((len(ids), cache_bytes(cache)))
        is_end = step == last or len(ids) >= _longest(loaded)
        if is_end or step % STEPS_BETWEEN_PICTURES == 0:
            yield picture(loaded, ids, cache, held)
        if is_end:
            return
        token = choose(logits, temperature, generator)
        ids.append(token)
        new = torch.tensor([[token]], device=loaded.device())


def choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator))


def _longest(loaded: Loaded) -> int:
    return getattr(loaded.config, "max_position_embeddings", None) or 10**9


def picture(
    loaded: Loaded, ids: list[int], cache: DynamicCache, held: list[tuple[int, int]]
) -> tuple[list[tuple[str, float]], pd.DataFrame, str]:
    forgotten = forgotten_shares(cache, len(ids))
    texts = [loaded.tokenizer.decode([token]) or " " for token in ids]
    full = full_cache_bytes(loaded.config)
    rows = [
        {"tokens": tokens, "KiB": held_bytes / KIBIBYTE, "cache": name}
        for count, now in held
        for tokens, held_bytes, name in (
            (count, now, "this model"),
            (count, count * full, "all keys and values of this width"),
        )
    ]
    count, now = held[-1]
    sentence = (
        f"**{now / KIBIBYTE:,.1f} KiB** held after {count} tokens; all keys and values of a transformer of this depth "
        f"and width would be {count * full / KIBIBYTE:,.1f} KiB."
    )
    return list(zip(texts, forgotten, strict=True)), pd.DataFrame(rows), sentence


def cache_bytes(cache: DynamicCache) -> int:
    """Of all tensors that the layers hold."""

    def tensors(value: Any) -> Iterator[torch.Tensor]:
        if torch.is_tensor(value):
            yield value
        elif isinstance(value, dict):
            yield from (tensor for part in value.values() for tensor in tensors(part))
        elif isinstance(value, list | tuple):
            yield from (tensor for part in value for tensor in tensors(part))

    return sum(t.numel() * t.element_size() for layer in cache.layers for t in tensors(vars(layer)))


def full_cache_bytes(config: Any) -> int:
    """Of one token's keys and values in float32, in all layers of a transformer of the same width."""
    return 2 * 4 * config.hidden_size * config.num_hidden_layers


def forgotten_shares(cache: DynamicCache, length: int) -> list[float]:
    """In which share of the layers each token is not held or, without a budget, voted down to next to nothing."""
    layers = [layer for layer in cache.layers if hasattr(layer, "votes")]
    if not layers:
        return [0.0] * length
    known = torch.zeros(length, len(layers))
    for number, layer in enumerate(layers):
        is_known = layer.positions[0] >= 0
        if layer.memory_budget is None:
            is_known = is_known & (layer.votes[0] < PUSHED_DOWN)
        known[layer.positions[0][is_known].cpu(), number] = 1.0
    return (1 - known.mean(dim=1)).tolist()


# A fast weight memory


def associate(loaded: Loaded, pairs: str, question: str, rule: str) -> tuple[pd.DataFrame, str]:
    """
    Writes `key = value` lines into one memory of the model's size, with its feature map, and asks for one of them.

    A word is a fixed random vector. What the memory gives back is compared with the vector of each value.
    """
    written = [tuple(part.strip() for part in line.split("=", 1)) for line in pairs.splitlines() if "=" in line]
    if not written or not question.strip():
        raise gr.Error("Write lines like `France = Paris`, and ask for one of the words on their left.")
    block = loaded.model.base_model.layers[0].attention
    keys = feature_vectors(block, [key for key, _ in written])
    values = vectors([value for _, value in written], block.head_dim)
    rules = loaded.sibling("delta_rule")
    sides = (keys, keys, values[None, :, None])
    if rule == "delta":
        _, memory = rules.naive_delta_rule(*sides, torch.ones(1, len(written), 1), output_final_state=True)
    else:
        _, memory = rules.naive_sum_rule(*sides, output_final_state=True)
    read = feature_vectors(block, [question.strip()])[0, 0, 0] @ memory[0, 0]
    answers = list(dict.fromkeys(value for _, value in written))
    similar = nn.functional.cosine_similarity(read[None], vectors(answers, block.head_dim))
    table = pd.DataFrame({"value": answers, "similarity": similar.numpy().round(3)})
    table = table.sort_values("similarity", ascending=False)
    size = memory.numel() * memory.element_size()
    return table, f"**{table['value'].iloc[0]}** — {len(written)} pairs in {size:,} bytes, as many as for one pair."


def vectors(words: list[str], size: int) -> torch.Tensor:
    """`[words, size]`, the same for the same word."""
    seeds = [torch.Generator().manual_seed(zlib.crc32(word.casefold().encode())) for word in words]
    return torch.stack([torch.randn(size, generator=seed) for seed in seeds])


@torch.no_grad()
def feature_vectors(block: Any, words: list[str]) -> torch.Tensor:
    """Keys `[1, words, 1, key_dim]`, of length one: only then does the delta rule take back all that a key had."""
    features = block.feature_map.cpu()(vectors(words, block.head_dim)[None, :, None])
    return nn.functional.normalize(features, dim=-1)


# The page


CSS = """
table.attention { border-collapse: collapse; font-size: 0.85rem }
table.attention th { font-weight: normal; padding: 2px 6px; text-align: right }
table.attention td { width: 2rem; border: 1px solid #e5e7eb }
"""


def build_page(loaded: Loaded) -> gr.Blocks:
    name = html.escape(os.path.basename(loaded.name.rstrip("/")))
    with gr.Blocks(title=f"{name} · leanformers") as page:
        gr.Markdown(f"# {name}\n{type(loaded.model).__name__}, {loaded.model.num_parameters():,} parameters")
        if loaded.config.is_encoder_decoder:
            translation_tab(loaded)
            return page
        with gr.Tab("Write"):
            writing_tab(loaded)
        if type(loaded.model).__name__.startswith("FastWeight"):
            with gr.Tab("Remember"):
                memory_tab(loaded)
    return page


def translation_tab(loaded: Loaded) -> None:
    source = gr.Textbox("nine thousand and one", label="Source", elem_id="source")
    beams = gr.Slider(1, 8, 4, step=1, label="Beams")
    button = gr.Button("Translate", variant="primary", elem_id="translate")
    table = gr.Dataframe(label="Beams, the best first", headers=["translation", "score"], elem_id="beams")
    gr.Markdown("What each target token (row) attends to in the source, as the mean of all heads of all layers")
    weights = gr.HTML(elem_id="attention")
    button.click(lambda *given: translate(loaded, *given), [source, beams], [table, weights], api_name="translate")


def writing_tab(loaded: Loaded) -> None:
    prompt = gr.Textbox("def main(arguments):\n    ", label="Prompt", lines=4, elem_id="prompt")
    inputs = [
        prompt,
        gr.Slider(1, MOST_NEW_TOKENS, 128, step=1, label="New tokens"),
        gr.Slider(0.0, 2.0, 0.7, step=0.1, label="Temperature (0: always the likeliest token)"),
        gr.Number(0, label="Seed: the same one writes the same text", precision=0, minimum=0),
    ]
    selects = hasattr(loaded.config, "memory_budgets")
    if selects:
        inputs.append(gr.Slider(0, 256, 32, step=1, label="Tokens that a layer may hold (0: all)"))
    button = gr.Button("Write", variant="primary", elem_id="write")
    label = "The darker a token, the more layers have forgotten it" if selects else "Text"
    text = gr.HighlightedText(label=label, show_legend=False, elem_id="text", combine_adjacent=False)
    held = gr.Markdown(elem_id="held")
    plot = gr.LinePlot(x="tokens", y="KiB", color="cache", title="Bytes held as the text grows", elem_id="bytes")
    button.click(lambda *given: (yield from write(loaded, *given)), inputs, [text, plot, held], api_name="write")


def memory_tab(loaded: Loaded) -> None:
    gr.Markdown("One memory matrix of this model's size. The delta rule overwrites what a key had; the sum rule adds.")
    pairs = gr.Textbox(
        "France = Paris\nItaly = Rome\nJapan = Tokyo\nFrance = Lyon", label="Written in this order", lines=6
    )
    question = gr.Textbox("France", label="Asked for", elem_id="question")
    rule = gr.Radio(["delta", "sum"], value="delta", label="Update rule")
    button = gr.Button("Ask", variant="primary", elem_id="ask")
    answer = gr.Markdown(elem_id="answer")
    table = gr.Dataframe(label="Similarity of what was read", headers=["value", "similarity"], elem_id="similarity")
    button.click(
        lambda *given: associate(loaded, *given), [pairs, question, rule], [table, answer], api_name="associate"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="exported folder, or repository of the Hub")
    parser.add_argument("--revision", help="commit of the repository: its code runs here, so pin what you have read")
    parser.add_argument("--server_name", default=None, help="address to listen at; only this machine by default")
    parser.add_argument("--server_port", type=int, default=None, help="port; 7860 or the next free one by default")
    parser.add_argument("--share", action="store_true", help="let gradio make a public address")
    arguments = parser.parse_args(argv)
    page = build_page(Loaded(arguments.model, arguments.revision))
    page.queue().launch(
        server_name=arguments.server_name, server_port=arguments.server_port, share=arguments.share, css=CSS
    )


if __name__ == "__main__":
    main()
