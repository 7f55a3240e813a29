# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Static rules for a Hub folder: read every file, run none."""

import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import transformers
import yaml
from huggingface_hub import ModelCard, get_token
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from ..data.tokenizers import TARGET_SUBFOLDER
from .safety import INDEX, leads_out
from .shipped_code import class_names, code_problems

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".npy", ".npz", ".joblib"}
TRAINING_FILES = ("training_args.bin", "optimizer", "scheduler", "rng_state", "scaler")
TEXT_FILES = {".json", ".jsonl", ".md", ".py", ".txt", ".yaml", ".yml", ".jinja", ".cfg", ".toml"}
NO_TEXT = {".safetensors", ".png"}
LARGEST_TEXT = 2**26
GENERATING = {"AutoModelForSeq2SeqLM", "AutoModelForCausalLM"}
SECRETS = {
    "what looks like a token of the Hub": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "what looks like a token of GitHub": re.compile(r"\b(?:gh[opsu]|github_pat)_[A-Za-z0-9_]{30,}"),
    "what looks like a key of an API": re.compile(r"\b(?:sk-[A-Za-z0-9_-]{32,}|AKIA[0-9A-Z]{16}\b)"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
# `/home/me`, `~/runs`, `C:\Users`; not `https://host/page`, `a/b`, `</s>` or a relative `./x`.
ABSOLUTE_PATH = re.compile(r"(?<![\w:/.<~)\]-])(?:~?/(?:[\w.-]+/)+[\w.-]*|[A-Za-z]:\\+\w[\w.\\-]*)")
REFERENCE = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")


def static_problems(directory: Path) -> list[str]:
    """One sentence per problem."""
    config, problems = _read_json(directory, "config.json")
    problems += code_problems(directory)
    problems += _auto_map_problems(directory, config)
    problems += _file_problems(directory)
    problems += weight_problems(directory)
    problems += _tokenizer_problems(directory)
    problems += _generation_problems(directory, config)
    problems += _card_problems(directory)
    problems += secret_problems(directory)
    return problems + _path_problems(directory)


def _read_json(directory: Path, name: str) -> tuple[dict, list[str]]:
    path = directory / name
    if not path.is_file():
        return {}, [f"{name} is missing."]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return {}, [f"{name} is not valid JSON: {error}."]
    return (content, []) if isinstance(content, dict) else ({}, [f"{name} does not hold a JSON object."])


def _auto_map_problems(directory: Path, config: dict) -> list[str]:
    auto_map = config.get("auto_map") or {}
    if "AutoConfig" not in auto_map or len(auto_map) < 2:
        return ["config.json needs an auto_map with AutoConfig and the Auto class of each model."] if config else []
    entries = [(auto_class, entry) for auto_class, entry in auto_map.items() if isinstance(entry, str)]
    # A tokenizer's entry is the pair (slow class, fast class), either of them absent.
    entries += [
        (auto_class, one) for auto_class, pair in auto_map.items() if isinstance(pair, list) for one in pair if one
    ]
    problems = []
    for auto_class, reference in entries:
        if not hasattr(transformers, auto_class):
            problems.append(f"auto_map names {auto_class}, which transformers does not have.")
        module, _, name = reference.partition(".")
        if "--" in reference:
            problems.append(f"auto_map takes {auto_class} from another repository ({reference}); ship the code.")
        elif not REFERENCE.fullmatch(reference):
            problems.append(f"auto_map takes {auto_class} from {reference}, which is no class of a module beside it.")
        elif not (directory / f"{module}.py").is_file():
            problems.append(f"auto_map takes {auto_class} from {module}.py, which is not in the folder.")
        elif name not in class_names(directory / f"{module}.py"):
            problems.append(f"auto_map says {auto_class} is {name} of {module}.py, which has no such class.")
    mapped = {reference.rpartition(".")[2] for _, reference in entries}
    for name in config.get("architectures") or []:
        if name not in mapped:
            problems.append(f"config.json was saved by {name}, which no entry of auto_map loads.")
    return problems


def _file_problems(directory: Path) -> list[str]:
    problems = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.is_dir() and path.name.startswith("checkpoint-"):
            problems.append(f"{name} is a checkpoint of a training run and does not belong to a model.")
        elif path.suffix in PICKLES and path.name.startswith(TRAINING_FILES):
            problems.append(f"{name} is a pickle of a training run; delete it.")
        elif path.suffix in PICKLES:
            problems.append(f"{name} may run code when it is loaded; weights must be safetensors.")
    return problems


def weight_problems(directory: Path) -> list[str]:
    """Whether the safetensors files are whole, and agree with their index."""
    has_index = (directory / INDEX).exists()
    index, problems = _read_json(directory, INDEX) if has_index else ({}, [])
    outside = sorted({shard for shard in map(str, index.get("weight_map", {}).values()) if leads_out(shard)})
    if outside:
        return [f"{INDEX} takes weights from outside the folder: {', '.join(outside)}."]
    keys = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            keys[path.name] = _safetensors_keys(path)
        except ValueError as error:
            problems.append(f"{path.name} {error}.")
    if not keys and not problems:
        return ["There are no weights (model.safetensors)."]
    if not has_index:
        extra = sorted(keys.keys() - {"model.safetensors"})
        return problems + [f"{name} is a shard, but {INDEX} is missing." for name in extra]
    for key, shard in index.get("weight_map", {}).items():
        if key not in keys.get(shard, ()):
            problems.append(f"The index says {key} is in {shard}, where it is not.")
    for shard, found in keys.items():
        for key in sorted(found - {key for key, file in index.get("weight_map", {}).items() if file == shard}):
            problems.append(f"{shard} holds {key}, which the index does not name.")
    return problems


def _safetensors_keys(path: Path) -> set[str]:
    """Names in the header. `ValueError` continues a sentence that begins with the file's name."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else size
        if size < 8 + length:
            raise ValueError(f"is truncated: it ends after {size} bytes, inside its header")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"has an unreadable header: {error}") from error
    metadata = header.pop("__metadata__", {})
    expected = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if size < expected:
        raise ValueError(f"is truncated: its header promises {expected} bytes, the file has {size}")
    if size > expected:
        raise ValueError(f"has {size - expected} bytes more than its header says")
    if metadata.get("format") != "pt":
        raise ValueError("has no metadata {'format': 'pt'}, which older loaders ask for")
    return set(header)


def _tokenizer_problems(directory: Path) -> list[str]:
    names = ["tokenizer.json", "tokenizer_config.json"]
    if (directory / TARGET_SUBFOLDER).is_dir():
        names += [f"{TARGET_SUBFOLDER}/{name}" for name in (*names, "config.json")]
    return [problem for name in names for problem in _read_json(directory, name)[1]]


def _generation_problems(directory: Path, config: dict) -> list[str]:
    auto_map, saved = config.get("auto_map") or {}, config.get("architectures") or []
    generates = any(str(auto_map.get(auto_class)).rpartition(".")[2] in saved for auto_class in GENERATING)
    if generates or (directory / "generation_config.json").exists():
        return _read_json(directory, "generation_config.json")[1]
    return []


def _card_problems(directory: Path) -> list[str]:
    path = directory / "README.md"
    if not path.is_file():
        return ["README.md (the model card) is missing."]
    text = path.read_text(encoding="utf-8")
    if not REGEX_YAML_BLOCK.match(text):
        return ["README.md must begin with its metadata: a YAML block between two lines of ---."]
    try:
        data = ModelCard(text).data
    except (ValueError, TypeError, yaml.YAMLError) as error:
        return [f"README.md has invalid metadata: {' '.join(str(error).split())}."]
    languages = data.language if isinstance(data.language, list) else [data.language or ""]
    rules = {
        f"library_name must be transformers, is {data.library_name!r}": data.library_name == "transformers",
        "license is missing": isinstance(data.license, str) and data.license,
        "pipeline_tag is missing": isinstance(data.pipeline_tag, str) and data.pipeline_tag,
        "tags must contain custom_code": "custom_code" in (data.tags or []),
        "code_hashes, the SHA-256 of each Python file, is missing": isinstance(
            getattr(data, "code_hashes", None), dict
        ),
        f"language must hold ISO 639 codes, is {data.language!r}": all(
            isinstance(language, str) and LANGUAGE.fullmatch(language) for language in languages
        ),
        "a result is not a finite number": all(
            isinstance(result.metric_value, int | float) and math.isfinite(result.metric_value)
            for result in data.eval_results or []
        ),
    }
    problems = [f"README.md metadata: {problem}." for problem, holds in rules.items() if not holds]
    pictures = re.findall(r"!\[[^\]]*\]\((?!https?:)([^)]+)\)", text)
    return problems + [
        f"README.md shows {name}, which is missing." for name in pictures if not (directory / name).is_file()
    ]


def secret_problems(directory: Path) -> list[str]:
    """Never quotes what it found. Weights and pictures are not text, nor is what is larger than any text here."""
    problems, own_token = [], get_token()
    for path in sorted(directory.rglob("*")):
        if not path.is_file() or path.suffix in NO_TEXT or path.stat().st_size > LARGEST_TEXT:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found = [name for name, pattern in SECRETS.items() if pattern.search(text)]
        if own_token and own_token in text:
            found = ["this machine's token of the Hub"]
        problems += [f"{path.relative_to(directory)} holds {name}: take it out, and revoke it." for name in found]
    return problems


def _path_problems(directory: Path) -> list[str]:
    problems = []
    for path in sorted(directory.rglob("*")):
        if path.suffix not in TEXT_FILES or not path.is_file():
            continue
        found = {match.group() for text in _texts(path) for match in ABSOLUTE_PATH.finditer(text)}
        problems += [f"{path.relative_to(directory)} holds the path of a machine: {name}" for name in sorted(found)]
    return problems


def _texts(path: Path) -> Iterator[str]:
    """The text of a file; of JSON its keys and values, without the vocabulary, where a slash is only a token."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix != ".json":
        yield text
        return
    try:
        pending = [json.loads(text)]
    except ValueError:
        yield text
        return
    if path.name == "tokenizer.json":
        pending[0].pop("model", None)
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str):
            yield value
