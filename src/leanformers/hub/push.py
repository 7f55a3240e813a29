# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""Upload an exported folder to the Hub: one commit of what changed, and a tag for its version; and its Space."""

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, get_token

from .check import refuse_problems
from .export import is_written
from .space import foreign_files
from .static_checks import secret_problems

COMMIT_MESSAGE = "Upload model, code and card"
NOT_LET_IN = (401, 403)


def push(
    directory: str | os.PathLike,
    repository: str,
    *,
    private: bool = False,
    tag: str | None = None,
    check: bool = True,
) -> str:
    """
    Upload a folder that passes `leanformers.hub.check`; returns the address of the commit.

    Only files that differ from those of the repository are sent and committed, and what an upload that was cut off
    had sent is not sent again. Files that an earlier export wrote and this one did not are deleted there; any other
    file of the repository stays.

    Args:
        directory (`str` or `os.PathLike`): The folder.
        repository (`str`): Name on the Hub, `organisation/name`; made if it does not exist.
        private (`bool`, defaults to `False`): Make a new repository private.
        tag (`str`, *optional*): Name of the version, e.g. `v1`, for `from_pretrained(..., revision="v1")`. One that
            the repository has is refused before anything is uploaded, as others rely on where it points.
        check (`bool`, defaults to `True`): Judge the folder first. Off for one that was just exported.

    Raises:
        `ValueError`: The folder has problems, or the repository has the tag.
        `OSError`: The Hub cannot be reached, or refuses.
    """
    directory = Path(directory)
    if check:
        refuse_problems(directory, directory)
    api = HfApi()
    with _uploading(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        tags = {found.name: found.target_commit for found in api.list_repo_refs(repository).tags} if tag else {}
        stale = _stale_files(directory, api.list_repo_files(repository))
    if tag in tags:
        raise ValueError(
            f"{repository} has the tag {tag} already, on commit {tags[tag][:7]}, where others rely on it; choose "
            "another. Nothing was uploaded."
        )
    with _uploading(repository):
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            commit_message=COMMIT_MESSAGE,
            delete_patterns=[glob.escape(name) for name in stale] or None,
        )
        if tag:
            api.create_tag(repository, tag=tag, revision=commit.oid)
    return commit.commit_url


def push_space(directory: str | os.PathLike, repository: str, *, private: bool = False) -> str:
    """
    Upload the folder of a Space (`leanformers.hub.space`), which may have the name of its model; returns the address
    of the commit. Arguments and errors are those of `push`.
    """
    directory = Path(directory)
    problems = [*foreign_files(directory), *secret_problems(directory)]
    if problems:
        raise ValueError(f"{directory} is not uploaded: {' '.join(problems)}")
    api = HfApi()
    with _uploading(f"the Space {repository}"):
        api.create_repo(repository, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=repository, repo_type="space", folder_path=directory, commit_message=COMMIT_MESSAGE
        ).commit_url


def _stale_files(directory: Path, published: list[str]) -> list[str]:
    """What an earlier export left in the repository and this one has not: old shards, code or a second tokenizer."""
    return [name for name in published if is_written(PurePosixPath(name)) and not (directory / name).is_file()]


@contextmanager
def _uploading(repository: str) -> Iterator[None]:
    """Turns any failure of the client, of which there are many kinds, into one sentence without secrets."""
    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        way_out = (
            "Log in with a token that may write there: `hf auth login`, or HF_TOKEN."
            if status in NOT_LET_IN
            else "What has arrived is kept: the same command goes on from there."
        )
        raise OSError(f"The upload to {repository} failed: {_reason(error)}. {way_out}") from error


def _reason(error: BaseException) -> str:
    """The error and what caused it, one line each, without the token and the signatures of addresses."""
    lines = [next(iter(str(one).strip().splitlines()), type(one).__name__) for one in _causes(error)]
    text = re.sub(r"\?\S+", "", ": ".join(dict.fromkeys(line.rstrip(".") for line in lines)))
    token = get_token()
    return text.replace(token, "<token>") if token else text


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
