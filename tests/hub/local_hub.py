# Copyright 2026 the leanformers authors. Licensed under the Apache License, Version 2.0.
"""A Hub on this machine: the endpoints that huggingface_hub calls to upload, tag and download models.

    hub = LocalHub(folder, token="hf_...")
    with hub.serving() as endpoint:  # for HF_ENDPOINT
        ...

Files lie in `folder/blobs` under their SHA-256, repositories with their commits and tags as JSON beside them, so a
Hub that is started again in the same folder goes on from there. As on huggingface.co, large and binary files are
uploaded apart (Git LFS) and a commit only names them; what is written, and what is private, takes the token. What
huggingface.co adds to LFS by Xet is not here: uploads need HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".png", ".bin", ".onnx", ".gz", ".zip")
LFS_BYTES = 10 * 2**20
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
# What stands in Git in place of a file of LFS.
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
CHUNK = 2**14
CREATED = "2026-01-01T00:00:00.000Z"


class Refused(Exception):
    """An answer other than success, with the code by which huggingface_hub tells what is missing."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.code, self.commit = status, code, commit


@dataclass
class File:
    """A file of a commit; `oid` is what huggingface_hub compares to see whether it changed."""

    sha256: str
    oid: str
    size: int
    lfs: bool


@dataclass
class Commit:
    oid: str
    summary: str
    parent: str | None
    changed: list[str]
    files: dict[str, File]


@dataclass
class Repository:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def commit(self, summary: str, files: dict[str, File]) -> Commit:
        """As Git sees it, a file that was sent and is the same has not changed."""
        parent = self.branches.get("main")
        earlier = self.commits[parent].files if parent else {}
        changed = sorted(name for name in files.keys() | earlier if files.get(name) != earlier.get(name))
        content = json.dumps([parent, summary, {path: asdict(file) for path, file in files.items()}], sort_keys=True)
        new = Commit(hashlib.sha1(content.encode()).hexdigest(), summary, parent, changed, files)
        self.commits[new.oid] = new
        self.branches["main"] = new.oid
        return new


class LocalHub:
    """
    The state of the Hub, and what has been asked of it.

    Args:
        folder (`Path`): Where everything is kept.
        token (`str`): The one token that is let in.

    Tests look at `requests` and `headers`, at `uploaded` (SHA-256 of what arrived whole), and may interfere: through
    `while_uploading(sha256, received, size)`, called at each piece, and through `cut_downloads`, a number of bytes
    for a SHA-256, after which its next download breaks off.
    """

    def __init__(self, folder: Path, token: str):
        self.folder, self.token = folder, token
        self.lock = threading.Lock()
        self.requests: list[str] = []
        self.headers: list[Message] = []
        self.uploaded: list[str] = []
        self.announced: dict[str, int] = {}
        self.cut_downloads: dict[str, int] = {}
        self.while_uploading: Callable[[str, int, int], None] = lambda oid, received, size: None
        (folder / "blobs").mkdir(parents=True, exist_ok=True)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve until the block is left. Gives the address."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def repository(self, name: str) -> Repository:
        path = self._path(name)
        if not path.is_file():
            raise Refused(404, "Repository not found", "RepoNotFound")
        kept = json.loads(path.read_text(encoding="utf-8"))
        for commit in kept["commits"].values():
            commit["files"] = {name: File(**file) for name, file in commit["files"].items()}
        kept["commits"] = {oid: Commit(**commit) for oid, commit in kept["commits"].items()}
        return Repository(**kept)

    def keep(self, name: str, repository: Repository) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".new")
        written.write_text(json.dumps(asdict(repository)), encoding="utf-8")
        written.replace(path)

    def blob(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256

    def add(self, content: bytes) -> File:
        """A file that comes with its commit."""
        file = File(hashlib.sha256(content).hexdigest(), git_oid(content), len(content), lfs=False)
        self.blob(file.sha256).write_bytes(content)
        return file

    def read(self, name: str, path: str, revision: str = "main") -> bytes:
        return self.blob(self.repository(name).resolve(revision).files[path].sha256).read_bytes()

    def _path(self, name: str) -> Path:
        return self.folder / "repositories" / f"{name}.json"


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    return path.endswith(LFS_SUFFIXES) or size > LFS_BYTES or b"\0" in sample


REPOSITORY = r"(?P<name>(?:spaces/)?[\w.-]+/[\w.-]+)"  # a Space may have the name of its model
ROUTES: list[tuple[str, re.Pattern, str]] = [
    (method, re.compile(pattern), handler)
    for method, pattern, handler in (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", rf"/api/(?:models/)?{REPOSITORY}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/{REPOSITORY}\.git/info/lfs/objects/batch", "announce"),
        ("PUT", r"/uploads/(?P<oid>[0-9a-f]{64})", "upload"),
        ("POST", rf"/{REPOSITORY}\.git/info/lfs/verify", "verify"),
        ("POST", rf"/api/(?:models/)?{REPOSITORY}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"/api/(?:models/)?{REPOSITORY}/tag/(?P<revision>[^/]+)", "tag"),
        ("GET", rf"/api/(?:models/)?{REPOSITORY}/refs", "refs"),
        ("GET", rf"/api/(?:models/)?{REPOSITORY}(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", rf"/api/(?:models/)?{REPOSITORY}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
        ("GET", rf"/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/blobs/(?P<sha256>[0-9a-f]{64})", "download"),
    )
]
OPEN_TO_ALL = {"validate_card", "upload", "download"}
READING = {"info", "tree", "refs", "resolve"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *args) -> None:
        """Requests are kept in `hub.requests`; nothing is printed."""

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {url.path}")
        self.hub.headers.append(self.headers)
        self.unread = int(self.headers.get("Content-Length") or 0)
        try:
            for method, pattern, name in ROUTES:
                found = pattern.fullmatch(url.path)
                if found and method == ("GET" if self.command == "HEAD" else self.command):
                    arguments = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                    self.let_in(name, arguments.get("name"))
                    getattr(self, name)(**arguments)
                    return
            raise Refused(404, f"There is no {self.command} {url.path} here")
        except Refused as error:
            self.refuse(error)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def let_in(self, handler: str, name: str | None) -> None:
        if handler in OPEN_TO_ALL or self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return
        if self.headers.get("Authorization"):
            raise Refused(401, "Invalid credentials in Authorization header")
        if handler not in READING or self.hub.repository(str(name)).private:
            raise Refused(401, "Invalid username or password.")

    @property
    def storage(self) -> str:
        """Large files are on a host of another name, to which the client sends no token."""
        return f"http://localhost:{self.server.server_port}"

    # Reading the request, sending the answer.

    def chunks(self) -> Iterator[bytes]:
        """The body, of a length known before or in chunks that say theirs."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        while self.unread:
            chunk = self.rfile.read(min(CHUNK, self.unread))
            if not chunk:
                raise ConnectionResetError("the client went away")
            self.unread -= len(chunk)
            yield chunk

    def body(self) -> bytes:
        return b"".join(self.chunks())

    def json(self) -> dict:
        return json.loads(self.body())

    def send(self, content: bytes, status: int = 200, cut: int | None = None, **headers: object) -> None:
        self.body()  # what is left unread would be taken for the next request
        self.send_response(status)
        for key, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        self.close_connection |= cut is not None

    def send_json(self, value: object, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), status, Content_Type="application/json; charset=utf-8")

    def refuse(self, error: Refused) -> None:
        headers = {"X_Error_Message": error, "X_Error_Code": error.code, "X_Repo_Commit": error.commit}
        self.send(
            json.dumps({"error": str(error)}).encode(),
            error.status,
            Content_Type="application/json",
            **{key: value for key, value in headers.items() if value},
        )

    # Uploading.

    def whoami(self) -> None:
        self.send_json({"type": "user", "name": "somebody", "fullname": "Somebody", "orgs": []})

    def validate_card(self) -> None:
        """Only whether the metadata is YAML: huggingface.co knows more."""
        block = re.match(r"---\n(.*?)\n---\n", self.json()["content"], re.DOTALL)
        try:
            yaml.safe_load(block[1] if block else "")
        except yaml.YAMLError as error:
            self.send_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        else:
            self.send_json({"errors": [], "warnings": [] if block else [{"message": "empty or missing metadata"}]})

    def create(self) -> None:
        asked = self.json()
        kind = "spaces/" if asked.get("type") == "space" else ""
        name = f"{kind}{asked['organization'] or 'somebody'}/{asked['name']}"
        address = {"url": f"http://{self.headers['Host']}/{name}"}
        with self.hub.lock:
            try:
                self.hub.repository(name)
            except Refused:
                repository = Repository(private=asked.get("visibility") == "private")
                repository.commit("initial commit", {".gitattributes": self.hub.add(GITATTRIBUTES.encode())})
                self.hub.keep(name, repository)
                self.send_json(address)
                return
        self.send_json(address | {"error": "You already created this model repo"}, 409)

    def preupload(self, name: str, revision: str) -> None:
        files = self.hub.repository(name).resolve(revision).files
        answer = []
        for file in self.json()["files"]:
            lfs = is_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
            oid = files[file["path"]].oid if file["path"] in files else None
            mode = "lfs" if lfs else "regular"
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": answer})

    def announce(self, name: str) -> None:
        """Git LFS's batch: for each object that is not here, where to send it."""
        self.hub.repository(name)
        objects = []
        for wanted in self.json()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.hub.blob(wanted["oid"]).is_file():
                self.hub.announced[wanted["oid"]] = wanted["size"]
                upload = f"{self.storage}/uploads/{wanted['oid']}"
                verify = f"http://{self.headers['Host']}/{name}.git/info/lfs/verify"
                answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(answer)
        self.send_json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        """An object that counts only once it is whole. Its address is the permission, as in object stores."""
        size = self.hub.announced.get(oid)
        if size is None:
            raise Refused(403, "this upload was not announced")
        received, digest = 0, hashlib.sha256()
        partial = self.hub.blob(f"{oid}.{threading.get_ident()}")
        try:
            with partial.open("wb") as file:
                for chunk in self.chunks():
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    self.hub.while_uploading(oid, received, size)
            if (digest.hexdigest(), received) != (oid, size):
                raise Refused(400, "these are other bytes than announced")
            partial.replace(self.hub.blob(oid))
        finally:
            partial.unlink(missing_ok=True)
        self.hub.uploaded.append(oid)
        self.send(b"")

    def verify(self, name: str) -> None:
        asked = self.json()
        blob = self.hub.blob(asked["oid"])
        if not blob.is_file() or blob.stat().st_size != asked["size"]:
            raise Refused(404, f"{asked['oid']} is not here")
        self.send_json({})

    def commit(self, name: str, revision: str) -> None:
        header, *operations = (json.loads(line) for line in self.body().splitlines())
        with self.hub.lock:
            repository = self.hub.repository(name)
            if revision != "main":
                raise Refused(400, f"{revision} is no branch")
            files = dict(repository.resolve(revision).files)
            for operation in operations:
                self.apply(files, operation["key"], operation["value"])
            commit = repository.commit(header["value"]["summary"], files)
            self.hub.keep(name, repository)
        url = f"http://{self.headers['Host']}/{name}/commit/{commit.oid}"
        self.send_json({"success": True, "commitOid": commit.oid, "commitUrl": url})

    def apply(self, files: dict[str, File], kind: str, value: dict) -> None:
        path = value["path"]
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise Refused(400, f"{path} is no path in a repository")
        if kind == "deletedFile":
            if files.pop(path, None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        elif kind == "file":
            files[path] = self.hub.add(base64.b64decode(value["content"]))
        elif kind == "lfsFile":
            blob = self.hub.blob(value["oid"])
            if not blob.is_file():
                raise Refused(400, f"{path} names an LFS object that was not uploaded")
            files[path] = File(value["oid"], value["oid"], blob.stat().st_size, lfs=True)
        else:
            raise Refused(400, f"unknown operation {kind}")

    def tag(self, name: str, revision: str) -> None:
        tag = self.json()["tag"]
        with self.hub.lock:
            repository = self.hub.repository(name)
            if tag in repository.tags:
                raise Refused(409, f"Tag reference exists already: {tag}")
            repository.tags[tag] = repository.resolve(revision).oid
            self.hub.keep(name, repository)
        self.send(b"", 201)

    # Reading.

    def refs(self, name: str) -> None:
        repository = self.hub.repository(name)
        self.send_json(
            {
                kind: [{"name": key, "ref": f"refs/{ref}/{key}", "targetCommit": oid} for key, oid in found.items()]
                for kind, ref, found in (
                    ("branches", "heads", repository.branches),
                    ("tags", "tags", repository.tags),
                    ("converts", "convert", {}),
                )
            }
        )

    def info(self, name: str, revision: str = "main") -> None:
        repository = self.hub.repository(name)
        commit = repository.resolve(revision)
        known = {"id": name, "sha": commit.oid, "private": repository.private, "gated": False, "disabled": False}
        dates = {"createdAt": CREATED, "lastModified": CREATED}
        siblings = [{"rfilename": path} for path in commit.files]
        self.send_json(known | dates | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, name: str, revision: str, path: str = "") -> None:
        commit = self.hub.repository(name).resolve(revision)
        inside = {PurePosixPath(file) for file in commit.files if PurePosixPath(file).is_relative_to(path)}
        if path and not inside:
            raise Refused(404, f"{path} does not exist", "EntryNotFound", commit.oid)
        folders = {parent for file in inside for parent in file.parents if parent.is_relative_to(path)}
        folders -= {PurePosixPath(path), PurePosixPath(".")}
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            inside, folders = (
                {one for one in some if one.parent == PurePosixPath(path)} for some in (inside, folders)
            )
        entries: list[dict] = [{"type": "directory", "path": str(folder), "oid": "0" * 40} for folder in folders]
        for one in inside:
            file = commit.files[str(one)]
            entry = {"type": "file", "path": str(one), "oid": file.oid, "size": file.size}
            if file.lfs:
                pointer = POINTER.format(oid=file.oid, size=file.size).encode()
                lfs = {"oid": file.oid, "size": file.size, "pointerSize": len(pointer)}
                entry |= {"oid": git_oid(pointer), "lfs": lfs}
            entries.append(entry)
        self.send_json(sorted(entries, key=lambda entry: entry["path"]))

    def resolve(self, name: str, revision: str, path: str) -> None:
        """The file, or for LFS where it is: elsewhere, as on huggingface.co."""
        commit = self.hub.repository(name).resolve(revision)
        file = commit.files.get(path)
        if file is None:
            raise Refused(404, "Entry not found", "EntryNotFound", commit.oid)
        if not file.lfs:
            self.send_range(file.sha256, ETag=f'"{file.oid}"', X_Repo_Commit=commit.oid)
            return
        self.send(
            b"",
            302,
            Location=f"{self.storage}/blobs/{file.sha256}",
            X_Repo_Commit=commit.oid,
            X_Linked_Etag=f'"{file.sha256}"',
            X_Linked_Size=file.size,
        )

    def download(self, sha256: str) -> None:
        if not self.hub.blob(sha256).is_file():
            raise Refused(404, "no such blob")
        self.send_range(sha256, ETag=f'"{sha256}"')

    def send_range(self, sha256: str, **headers: object) -> None:
        content = self.hub.blob(sha256).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            cut = self.hub.cut_downloads.pop(sha256, None) if self.command == "GET" else None
            self.send(content, cut=cut, Accept_Ranges="bytes", **headers)
            return
        first = int(wanted[1])
        last = min(int(wanted[2] or len(content)), len(content) - 1)
        if first > last:
            raise Refused(416, "nothing lies in that range")
        self.send(content[first : last + 1], 206, Content_Range=f"bytes {first}-{last}/{len(content)}", **headers)
