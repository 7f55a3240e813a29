# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""A model goes to a Hub and comes back over HTTP; what is there already is not sent again."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
from hub.local_hub import LocalHub
from huggingface_hub import HfApi, constants
from packaging.version import Version
from safetensors.torch import load_file, save_file

import leanformers.hub.check as check_module
from leanformers.evaluation.loading import load_generator
from leanformers.hub.check import check
from leanformers.hub.clean_process import digest, outputs_of
from leanformers.hub.export import export_run
from leanformers.hub.push import push, push_space
from leanformers.hub.space import write_space
from leanformers.modeling.anthe import AntheForSeq2SeqLM

CLEAN_PROCESS = Path(sys.modules[digest.__module__].__file__)
TOKEN = "hf_" + "ThisTokenMustNeverBeSeenAnywhereAB"
REPOSITORY = "lean/tiny"
WEIGHTS = "model.safetensors"
gives_up = pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("1.33"), reason="huggingface_hub 1.5 does not try again"
)


@dataclass
class Online:
    """A Hub that is being served, and the environment of a process that uses it."""

    hub: LocalHub
    endpoint: str
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        return clean | own | {"PYTHONSAFEPATH": "1", "CUDA_VISIBLE_DEVICES": ""} | more

    def visit(self, *revisions: str, repository: str = REPOSITORY) -> dict:
        """What `visitor.py` sees in a new process with an empty cache."""
        result = self.home / "seen.json"
        command = [sys.executable, Path(__file__).with_name("visitor.py"), CLEAN_PROCESS, result, repository]
        process = subprocess.run(
            [*command, *revisions], env=self.environment(), cwd=self.home, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr[-3000:]
        assert TOKEN not in process.stdout + process.stderr
        return json.loads(result.read_text())


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Online]:
    """This process uses it too."""
    hub = LocalHub(tmp_path / "hub", TOKEN)
    (tmp_path / "home").mkdir()
    with hub.serving() as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield Online(hub, endpoint, tmp_path / "home")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(hub: LocalHub, repository: str = REPOSITORY) -> dict[str, bytes]:
    files = hub.repository(repository).resolve("main").files
    return {name: hub.read(repository, name) for name in files if name != ".gitattributes"}


def history(hub: LocalHub, repository: str = REPOSITORY) -> list[list[str]]:
    """The names that each commit changed, newest first, without the commit that made the repository."""
    repository = hub.repository(repository)
    commit, found = repository.resolve("main"), []
    while commit.parent:
        found.append(commit.changed)
        commit = repository.commits[commit.parent]
    return found


def change_bias(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.bias"] += 1
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def export_script(root: Path):
    spec = importlib.util.spec_from_file_location("export_to_hub", root / "scripts/export_to_hub.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def run(model: AntheForSeq2SeqLM, tokenizers, tmp_path: Path) -> Path:
    """What a training run leaves behind."""
    run = tmp_path / "run"
    model.save_pretrained(run)
    tokenizers.save_pretrained(run)
    (run / "checkpoint-2").mkdir()
    (run / "training_args.bin").write_bytes(b"pickle")
    (run / "all_results.json").write_text(json.dumps({"test_bleu": 31.5, "train_runtime": 12.0}))
    (run / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 2.0, "step": 1}]}))
    (run / "arguments.yaml").write_text(f"task: numbers\nsource_lang: en\ntarget_lang: de\noutput_dir: {run}\n")
    return run


def test_run_goes_to_the_hub_and_is_loaded_from_it(
    run: Path, root: Path, online: Online, tmp_path: Path, capfd: pytest.CaptureFixture
):
    script, out = export_script(root), tmp_path / "out"
    script.main([str(run), "--output", str(out), "--push", "--repo_id", REPOSITORY, "--private", "--tag", "v1"])
    repository = online.hub.repository(REPOSITORY)
    first = repository.resolve("main").oid
    assert repository.private and repository.tags == {"v1": first}
    assert published(online.hub) == contents(out)
    assert f"{online.endpoint}/{REPOSITORY}/commit/{first}" in capfd.readouterr().out
    card = (out / "README.md").read_text()
    assert f'repository = "{REPOSITORY}"' in card and "31.5" in card and "number translation" in card

    push(export_run(run, tmp_path / "again", repository=REPOSITORY, check=False), REPOSITORY, check=False)
    assert online.hub.repository(REPOSITORY).resolve("main").oid == first, "the same run is exported otherwise"
    change_bias(out)
    push(out, REPOSITORY, check=False)
    second = online.hub.repository(REPOSITORY).resolve("main").oid
    seen = online.visit(first, "v1", second)
    assert seen["leanformers"] == [] and seen["v1"] == seen[first]
    model, tokenizers = load_generator(str(run))
    assert seen[first]["outputs"] == digest(outputs_of(model)) != seen[second]["outputs"]
    assert seen[second]["outputs"] == digest(outputs_of(load_generator(str(out))[0]))
    assert seen[first]["commit of the code"] and seen[second]["commit of the code"]
    assert seen[first]["tokenizer"] == tokenizers.source.tokenize("def main(")
    assert seen[first]["target tokenizer"] == tokenizers.target.tokenize("zwei Hunde")
    assert seen[first]["license"] == "apache-2.0"


def test_script_names_what_is_missing(run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    script, other = export_script(root), str(tmp_path / "other")
    with pytest.raises(SystemExit, match="is not empty"):
        script.main([str(run), "--output", str(run)])
    with pytest.raises(SystemExit):
        script.main([str(run), "--output", other, "--push"])
    assert "--push and --space need --repo_id" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main([str(run), "--output", other, "--tag", "v1"])
    assert "--tag names what --push uploads" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"holds no trained model"):
        script.main([str(tmp_path), "--output", other])


def test_second_push_sends_what_changed(folder: Path, online: Online):
    push(folder, REPOSITORY, check=False)
    assert published(online.hub) == contents(folder) and len(online.hub.uploaded) == 2
    everything = sorted(contents(folder))
    assert history(online.hub) == [everything]

    push(folder, REPOSITORY, check=False)
    assert history(online.hub) == [everything]
    with (folder / "README.md").open("a") as card:
        card.write("\nOne more sentence.\n")
    push(folder, REPOSITORY, check=False)
    assert history(online.hub) == [["README.md"], everything] and len(online.hub.uploaded) == 2
    change_bias(folder)
    push(folder, REPOSITORY, check=False)
    assert history(online.hub)[0] == [WEIGHTS] and len(online.hub.uploaded) == 3
    assert published(online.hub) == contents(folder)


def test_files_that_are_no_longer_exported_go_and_others_stay(folder: Path, online: Online):
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"an old shard")
    (folder / "old_operator.py").write_text("pass\n")
    push(folder, REPOSITORY, check=False)
    note = {"path_or_fileobj": b"mine", "path_in_repo": "onnx/notes.md"}
    HfApi().upload_file(**note, repo_id=REPOSITORY)
    (folder / "model-00001-of-00002.safetensors").unlink()
    (folder / "old_operator.py").unlink()
    shutil.rmtree(folder / "target_tokenizer")
    push(folder, REPOSITORY, check=False)
    assert published(online.hub) == contents(folder) | {"onnx/notes.md": b"mine"}


KILLED = """
import sys
from leanformers.hub.push import push
push(sys.argv[1], sys.argv[2], check=False)
"""


def test_push_that_was_killed_goes_on(folder: Path, online: Online):
    """In the middle of the weights, when the picture of the curves has arrived."""
    weights = (folder / WEIGHTS).stat().st_size
    command = [sys.executable, "-c", KILLED, str(folder), REPOSITORY]
    process = subprocess.Popen(command, env=online.environment(), stderr=subprocess.PIPE, text=True)

    def kill(oid: str, received: int, size: int) -> None:
        if size == weights and received >= weights // 2:
            while not online.hub.uploaded:
                time.sleep(0.01)
            process.kill()
            process.wait()
            raise ConnectionResetError

    online.hub.while_uploading = kill
    _, printed = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, printed
    assert history(online.hub) == [] and len(online.hub.uploaded) == 1
    assert not list((online.hub.folder / "blobs").glob("*.*")), "half an object was kept"

    online.hub.while_uploading = lambda oid, received, size: None
    online.hub.requests.clear()
    push(folder, REPOSITORY, check=False)
    assert sum(request.startswith("PUT") for request in online.hub.requests) == 1
    assert published(online.hub) == contents(folder) and len(history(online.hub)) == 1


@gives_up
def test_connection_that_breaks_once_is_tried_again(folder: Path, online: Online):
    broken = []

    def break_once(oid: str, received: int, size: int) -> None:
        if not broken:
            broken.append(oid)
            raise ConnectionResetError

    online.hub.while_uploading = break_once
    push(folder, REPOSITORY, check=False)
    assert broken and published(online.hub) == contents(folder)


def test_hub_that_is_started_again_has_everything(folder: Path, online: Online):
    push(folder, REPOSITORY, tag="v1", check=False)
    again = LocalHub(online.hub.folder, TOKEN)
    assert published(again) == contents(folder) and again.repository(REPOSITORY).tags.keys() == {"v1"}


def test_each_version_has_its_tag(folder: Path, online: Online, monkeypatch: pytest.MonkeyPatch):
    push(folder, REPOSITORY, check=False)
    push(folder, REPOSITORY, tag="v1", check=False)
    change_bias(folder)
    with pytest.raises(ValueError, match=r"has the tag v1 already, on commit [0-9a-f]{7}"):
        push(folder, REPOSITORY, tag="v1", check=False)
    assert len(history(online.hub)) == 1
    push(folder, REPOSITORY, tag="v2", check=False)
    repository = online.hub.repository(REPOSITORY)
    assert repository.tags == {"v1": repository.resolve("main").parent, "v2": repository.resolve("main").oid}
    paths = [HfApi().hf_hub_download(REPOSITORY, WEIGHTS, revision=tag, cache_dir=online.home) for tag in ("v1", "v2")]
    assert Path(paths[1]).read_bytes() == (folder / WEIGHTS).read_bytes() != Path(paths[0]).read_bytes()


@gives_up
def test_download_that_is_cut_off_goes_on(
    folder: Path, online: Online, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The client asks for the rest alone; and what was downloaded into a folder passes the check."""
    push(folder, REPOSITORY, check=False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    online.hub.cut_downloads[online.hub.repository(REPOSITORY).resolve("main").files[WEIGHTS].sha256] = 2500
    copy = Path(HfApi().snapshot_download(REPOSITORY, local_dir=tmp_path / "copy"))
    assert "bytes=2000-" in [headers.get("Range") for headers in online.hub.headers]
    assert {name: file for name, file in contents(copy).items() if name in contents(folder)} == contents(folder)
    report = check(copy, live=False)
    assert report.ok, str(report)


def test_folder_with_problems_is_not_pushed(folder: Path, online: Online, monkeypatch: pytest.MonkeyPatch):
    (folder / "pytorch_model.bin").write_bytes(b"x")
    monkeypatch.setattr(check_module, "check", lambda directory: check(directory, live=False))
    with pytest.raises(ValueError, match=r"not fit for the Hub:\n.*must be safetensors"):
        push(folder, REPOSITORY)
    assert online.hub.requests == []


def test_token_is_seen_nowhere(
    folder: Path, online: Online, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("DEBUG")
    push(folder, REPOSITORY, private=True, tag="v1", check=False)
    assert HfApi().whoami()["name"] == "somebody"
    assert any(headers.get("Authorization") == f"Bearer {TOKEN}" for headers in online.hub.headers)
    files = [path for path in (online.hub.folder).rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if TOKEN.encode() in path.read_bytes()]
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err + caplog.text


@pytest.mark.parametrize("kind", ["refused", "unreachable", "quoted"])
def test_errors_are_one_sentence_without_the_token(
    kind: str, folder: Path, online: Online, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    way_out = "the same command goes on from there"
    if kind == "refused":
        online.hub.token, way_out = "another", "hf auth login"
    elif kind == "unreachable":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:

        def quote(self, *args, **kwargs):
            raise RuntimeError(f"403 for https://store/x?X-Amz-Signature=abc with {TOKEN}")

        monkeypatch.setattr(HfApi, "upload_folder", quote)
    with pytest.raises(OSError, match=f"The upload to {REPOSITORY} failed: .*{way_out}") as caught:
        push(folder, REPOSITORY, check=False)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value) + caplog.text and "Signature" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_kind_goes_to_the_hub_and_is_loaded_from_it(
    exported_of_each_kind: Path, root: Path, online: Online, tmp_path: Path
):
    """Through the script in a process of its own."""
    out, repository = tmp_path / "out", f"lean/{exported_of_each_kind.name.replace('_', '-')}"
    command = [sys.executable, root / "scripts/export_to_hub.py", exported_of_each_kind, "--output", out, "--push"]
    process = subprocess.run(
        [*command, "--repo_id", repository, "--tag", "v1"], env=online.environment(), capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert TOKEN not in process.stdout + process.stderr
    assert published(online.hub, repository) == contents(out)
    commit = online.hub.repository(repository).resolve("main").oid
    seen = online.visit(commit, "v1", repository=repository)
    model, tokenizers = load_generator(str(exported_of_each_kind))
    assert seen[commit] == seen["v1"] and seen["leanformers"] == [] and seen[commit]["commit of the code"]
    assert seen[commit]["outputs"] == digest(outputs_of(model))
    assert seen[commit]["tokenizer"] == tokenizers.source.tokenize("def main(")
    assert ("target tokenizer" in seen[commit]) == model.config.is_encoder_decoder


@pytest.mark.slow
def test_reader_follows_security_md(folder: Path, root: Path, online: Online, tmp_path: Path):
    push(folder, REPOSITORY, check=False)
    commit = online.hub.repository(REPOSITORY).resolve("main").oid
    [block] = re.findall(r"```console\n(.*?)```", (root / "SECURITY.md").read_text(), re.DOTALL)
    block = block.replace("ORGANISATION/NAME", REPOSITORY).replace("COMMIT", commit)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    commands = {"cwd": tmp_path / "home", "env": online.environment(PATH=path), "capture_output": True, "text": True}
    for line in block.splitlines():
        process = subprocess.run(line.removeprefix("$ ").replace("less", "cat"), shell=True, **commands)
        assert process.returncode == 0, process.stdout + process.stderr
        assert TOKEN not in process.stdout + process.stderr
        if "hub.check" in line:
            assert process.stdout.splitlines()[-1].endswith("bit for bit.")


def test_a_space_stands_beside_its_model(online, exported, tmp_path):
    commit = push(exported, REPOSITORY, check=False).rpartition("/")[2]
    space = write_space(tmp_path / "space", REPOSITORY, commit)
    address = push_space(space, REPOSITORY)
    assert f"/spaces/{REPOSITORY}/commit/" in address
    published = online.hub.repository(f"spaces/{REPOSITORY}").resolve("main").files
    assert set(published) == {".gitattributes", "README.md", "app.py", "page.py", "requirements.txt"}
    assert commit in online.hub.read(f"spaces/{REPOSITORY}", "app.py").decode()
    metadata = huggingface_hub.SpaceCard.load(space / "README.md").data
    assert (metadata.sdk, metadata.app_file, metadata.models) == ("gradio", "app.py", [REPOSITORY])
    assert "app.py" not in online.hub.repository(REPOSITORY).resolve("main").files


def test_a_space_is_uploaded_without_secrets_and_strange_files(online, tmp_path):
    space = write_space(tmp_path / "space", REPOSITORY)
    (space / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not uploaded: it holds notes\.txt, which is no part of a Space"):
        push_space(space, REPOSITORY)
    (space / "notes.txt").unlink()
    with (space / "app.py").open("a") as app:
        app.write(f"# {TOKEN}\n")
    with pytest.raises(ValueError, match=r"app\.py holds this machine's token of the Hub: take it out") as error:
        push_space(space, REPOSITORY)
    assert TOKEN not in str(error.value) and online.hub.requests == []
