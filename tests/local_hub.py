"""A Hub on 127.0.0.1 that speaks the protocol of huggingface.co as `huggingface_hub` uses it for models, in memory.

By hand, with the tokens `ann-write`, `ann-read` and `bob-write`:

    python tests/local_hub.py --port 8000
    HF_ENDPOINT=http://127.0.0.1:8000 HF_HUB_DISABLE_XET=1 HF_TOKEN=ann-write hf upload ann/model runs/demo

A commit is whole or not at all: it is made of what was uploaded before, and a branch moves when it stands. What the
real Hub checks is checked: who may read and write, the digest and size of what is uploaded, a card's metadata.
"""

import argparse
import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

REPO_ID = r"(?P<repo>[\w.-]+/[\w.-]+)"
LFS_BYTES = 10 * 2**20  # a text file that is larger goes where binary files go


@dataclass(frozen=True)
class User:
    """Whose token it is and what it allows ("write" or "read"); `orgs` are organisations whose member the user is."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()


USERS = {
    "ann-write": User("ann", orgs=("lab",)),
    "ann-read": User("ann", role="read", orgs=("lab",)),
    "bob-write": User("bob"),
}


@dataclass
class Blob:
    """A file's content."""

    content: bytes
    is_lfs: bool

    @property
    def oid(self) -> str:
        """What git calls it; of a large file, its SHA-256."""
        if self.is_lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repo:
    """A model repository: revisions by their hash, each with all of its files, and branches."""

    private: bool = False
    revisions: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        text = json.dumps([len(self.revisions), message, {path: blob.oid for path, blob in files.items()}])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.revisions[sha] = files
        self.messages.append(message)
        self.branches[branch] = sha
        return sha


class Refusal(Exception):
    """An answer that is an error: its status, what is said, the Hub's name for it, and what else is in the answer."""

    def __init__(
        self, status: int, message: str, code: str | None = None, sha: str | None = None, **body: Any
    ) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": sha}
        self.headers = {name: value for name, value in headers.items() if value is not None}


class LocalHub:
    """The state of the Hub. `with LocalHub() as hub:` serves it at `hub.endpoint`.

    Args:
        users: By token.
        port: 0 takes a free one.

    Attributes:
        repos: By id.
        broken_after: By repository, the number of commits after which large files do not arrive any more: they lose
            their connection halfway, and are refused when they are sent again.
        requests: "METHOD path" of all that was asked.
    """

    def __init__(self, users: dict[str, User] = USERS, port: int = 0) -> None:
        self.users = users
        self.repos: dict[str, Repo] = {}
        self.uploaded: dict[str, bytes] = {}  # large files by SHA-256, whether a commit has them or not
        self.broken_after: dict[str, int] = {}
        self.interrupted: set[str] = set()
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch's last revision, by path."""
        repo = self.repos[repo_id]
        return {path: blob.content for path, blob in repo.revisions[repo.branches[branch]].items()}

    # Who may do what

    def may_write(self, user: User | None, repo_id: str) -> bool:
        owner = repo_id.split("/")[0]
        return user is not None and user.role == "write" and (owner == user.name or owner in user.orgs)

    def readable(self, user: User | None, repo_id: str) -> Repo:
        repo = self.repos.get(repo_id)
        owner = repo_id.split("/")[0]
        if repo is None or (repo.private and (user is None or owner not in (user.name, *user.orgs))):
            raise Refusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, user: User | None, repo_id: str) -> Repo:
        repo = self.readable(user, repo_id)
        if not self.may_write(user, repo_id):
            raise Refusal(403 if user else 401, "you must have write access to this repository")
        return repo

    def revision(self, repo: Repo, revision: str) -> tuple[str, dict[str, Blob]]:
        sha = repo.branches.get(revision, revision)
        if sha not in repo.revisions:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo.revisions[sha]

    def is_broken(self, repo_id: str) -> bool:
        return len(self.repos[repo_id].revisions) >= self.broken_after.get(repo_id, float("inf"))

    # The answers, each to (user, the path's parts, the body)

    def whoami(self, user: User | None, body: Any) -> Any:
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        orgs = [{"name": org, "roleInOrg": "write"} for org in user.orgs]
        token = {"displayName": f"{user.name}'s", "role": user.role}
        return {"type": "user", "name": user.name, "orgs": orgs, "auth": {"accessToken": token}}

    def create(self, user: User | None, body: Any) -> Any:
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        repo_id = f"{body.get('organization') or user.name}/{body['name']}"
        if not self.may_write(user, repo_id):
            name = repo_id.split("/")[0]
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{name}"')
        if repo_id in self.repos:
            raise Refusal(409, "You already created this model repo", url=f"{self.endpoint}/{repo_id}")
        repo = Repo(body.get("visibility") == "private" or bool(body.get("private")))
        repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        self.repos[repo_id] = repo
        return {"url": f"{self.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}

    def auth_check(self, user: User | None, body: Any, repo: str, write: str | None) -> Any:
        (self.writable if write else self.readable)(user, repo)
        return {}

    def validate_yaml(self, user: User | None, body: Any) -> Any:
        errors = metadata_errors(body["content"])
        if errors:
            raise Refusal(400, "Invalid metadata", errors=[{"message": error} for error in errors])
        return {"errors": [], "warnings": []}

    def preupload(self, user: User | None, body: Any, repo: str, revision: str) -> Any:
        _, files = self.revision(self.writable(user, repo), revision)
        answers = []
        for one in body["files"]:
            is_large = b"\0" in base64.b64decode(one["sample"]) or one["size"] > LFS_BYTES
            answer = {"path": one["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": files[one["path"]].oid} if one["path"] in files else {}))
        return {"files": answers}

    def lfs_batch(self, user: User | None, body: Any, repo: str) -> Any:
        self.writable(user, repo)
        objects = []
        for one in body["objects"]:
            href = f"{self.endpoint}/{repo}/lfs/{one['oid']}"
            actions = {} if one["oid"] in self.uploaded else {"actions": {"upload": {"href": href}}}
            objects.append({"oid": one["oid"], "size": one["size"], **actions})
        return {"transfer": "basic", "objects": objects}

    def commit(self, user: User | None, body: Any, repo: str, revision: str) -> Any:
        repository = self.writable(user, repo)
        head, files = self.revision(repository, revision)
        files, message = dict(files), ""
        for line in body:
            value = line["value"]
            match line["key"]:
                case "header":
                    message = value["summary"]
                    if value.get("parentCommit", head) != head:
                        raise Refusal(412, "A commit has happened since")
                case "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
                case "lfsFile":
                    if value["oid"] not in self.uploaded:
                        raise Refusal(400, f"{value['path']}: its large file was not uploaded")
                    files[value["path"]] = Blob(self.uploaded[value["oid"]], True)
                case "deletedFile":
                    del files[value["path"]]
                case other:
                    raise Refusal(400, f"{other} is not known here")
        errors = metadata_errors(files["README.md"].content.decode()) if "README.md" in files else []
        if errors:
            raise Refusal(400, "; ".join(errors))
        sha = repository.commit(revision, files, message)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.endpoint}/{repo}/commit/{sha}"}

    def branch(self, user: User | None, body: Any, repo: str, revision: str) -> Any:
        repository = self.writable(user, repo)
        if revision in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.branches[revision] = self.revision(repository, body.get("startingPoint") or "main")[0]
        return {}

    def info(self, user: User | None, body: Any, repo: str, revision: str | None) -> Any:
        repository = self.readable(user, repo)
        sha, files = self.revision(repository, revision or "main")
        card = card_metadata(files["README.md"].content.decode()) if "README.md" in files else {}
        tags = list(card.get("tags") or []) + ([f"license:{card['license']}"] if "license" in card else [])
        facts = {"id": repo, "modelId": repo, "sha": sha, "private": repository.private, "tags": tags}
        return facts | {"downloads": 0, "likes": 0, "siblings": [{"rfilename": path} for path in files]}

    def tree(self, user: User | None, body: Any, repo: str, revision: str, folder: str | None) -> Any:
        _, files = self.revision(self.readable(user, repo), revision)
        prefix = f"{folder}/" if folder else ""
        found = [
            {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content)}
            | ({"lfs": {"oid": blob.oid, "size": len(blob.content), "pointerSize": 130}} if blob.is_lfs else {})
            for path, blob in files.items()
            if path.startswith(prefix)
        ]
        if folder and not found:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        return found

    def resolve(self, user: User | None, body: Any, repo: str, revision: str, path: str) -> tuple[Blob, str]:
        sha, files = self.revision(self.readable(user, repo), revision)
        if path not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound", sha)
        return files[path], sha


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", r"/api/whoami-v2", LocalHub.whoami),
    ("POST", r"/api/repos/create", LocalHub.create),
    ("POST", r"/api/validate-yaml", LocalHub.validate_yaml),
    ("GET", rf"/api/models/{REPO_ID}/auth-check(?P<write>/write)?", LocalHub.auth_check),
    ("POST", rf"/api/models/{REPO_ID}/preupload/(?P<revision>[^/]+)", LocalHub.preupload),
    ("POST", rf"/api/models/{REPO_ID}/commit/(?P<revision>[^/]+)", LocalHub.commit),
    ("POST", rf"/api/models/{REPO_ID}/branch/(?P<revision>[^/]+)", LocalHub.branch),
    ("GET", rf"/api/models/{REPO_ID}(/revision/(?P<revision>[^/]+))?", LocalHub.info),
    ("GET", rf"/api/models/{REPO_ID}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", LocalHub.tree),
    ("POST", rf"/{REPO_ID}\.git/info/lfs/objects/batch", LocalHub.lfs_batch),
    ("GET", rf"/{REPO_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", LocalHub.resolve),
]


class _Handler(BaseHTTPRequestHandler):
    """Finds who asks and what for, and writes down the answer."""

    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        _, owner, name, _, oid = unquote(self.path).split("/")
        size = int(self.headers["Content-Length"])
        content = self.rfile.read(size // 2)
        is_broken = self.hub.is_broken(f"{owner}/{name}")
        if is_broken and oid not in self.hub.interrupted:
            self.hub.interrupted.add(oid)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        content += self.rfile.read(size - len(content))
        if is_broken:
            self._send(403, b"The address to upload to has expired")
        elif hashlib.sha256(content).hexdigest() != oid:
            self._send(400, b"The content changed while it was uploaded")
        else:
            self.hub.uploaded[oid] = content
            self._send(200, b"")

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            with self.hub.lock:
                answer = self._find(path)(self._user(), self._parsed(body))
        except Refusal as refusal:
            headers = {"Content-Type": "application/json", **refusal.headers}
            self._send(refusal.status, json.dumps(refusal.body).encode(), headers)
            return
        if isinstance(answer, tuple):
            blob, sha = answer
            self._send(200, blob.content, {"ETag": f'"{blob.oid}"', "X-Repo-Commit": sha})
        else:
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _find(self, path: str) -> Callable[..., Any]:
        method = "GET" if self.command == "HEAD" else self.command
        for known, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if known == method and match:
                return lambda user, body: function(self.hub, user, body, **match.groupdict())
        raise Refusal(404, f"{method} {path} is not known here")

    def _user(self) -> User | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def _parsed(self, body: bytes) -> Any:
        if not body:
            return None
        if self.headers.get("Content-Type") == "application/x-ndjson":
            return [json.loads(line) for line in body.splitlines()]
        return json.loads(body)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Nothing: `requests` has it."""


# The metadata of cards


def card_metadata(card: str) -> dict[str, Any]:
    """The YAML at the head of a card."""
    match = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", card, re.DOTALL)
    return (yaml.safe_load(match[1]) or {}) if match else {}


def metadata_errors(card: str) -> list[str]:
    """What the Hub would refuse, after its documented schema (hub-docs, modelcard.md)."""
    try:
        data = card_metadata(card)
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"]
    errors = []
    for name, kinds in {
        **dict.fromkeys(("license", "library_name", "pipeline_tag"), str),
        **dict.fromkeys(("tags", "datasets", "metrics"), list),
    }.items():
        if name in data and not isinstance(data[name], kinds):
            errors.append(f'"{name}" must be of type {kinds.__name__}')
    for name in ("base_model", "datasets"):
        for one in [data[name]] if isinstance(data.get(name), str) else data.get(name) or []:
            if not re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", str(one)):
                errors.append(f'"{name}" with value "{one}" is not valid: use an id of the Hub')
    for index, model in enumerate(data.get("model-index") or []):
        errors += [f'"model-index[{index}].{path}" is required' for path in _missing(model)]
    return errors


def _missing(model: dict[str, Any]) -> Iterator[str]:
    if not model.get("name"):
        yield "name"
    for index, result in enumerate(model.get("results") or []):
        for part, name in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
            if not (result.get(part) or {}).get(name):
                yield f"results[{index}].{part}.{name}"
        for number, metric in enumerate(result.get("metrics") or [{}]):
            for name in ("type", "value"):
                if metric.get(name) is None:
                    yield f"results[{index}].metrics[{number}].{name}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--port", type=int, default=8000)
    hub = LocalHub(port=parser.parse_args().port)
    print(f"HF_ENDPOINT={hub.endpoint} HF_HUB_DISABLE_XET=1 HF_TOKEN={next(iter(hub.users))}", flush=True)
    hub.server.serve_forever()
