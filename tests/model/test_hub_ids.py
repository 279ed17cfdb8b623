"""Loading by Hub id, against a local server that answers as the Hub does: native, released, offline."""

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from levljepa_hf.model.released import save_released

COMMIT = "0123456789abcdef0123456789abcdef01234567"

LOAD = """
import sys
import levljepa_hf, torch
from levljepa_hf import LeVLJEPAModel, LeVLJEPAProcessor, LeVLJEPAVisionModel
from safetensors.torch import save_file
from transformers import AutoModel

repo, result = sys.argv[1:]
model = AutoModel.from_pretrained(repo)
assert type(model) is LeVLJEPAModel
pixels = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
patches = LeVLJEPAVisionModel.from_pretrained(repo)(pixels).last_hidden_state
text = LeVLJEPAProcessor.from_pretrained(repo)(text=["a cat"], return_tensors="pt")
save_file({"logits": model(pixel_values=pixels, **text).logits_per_image, "patches": patches}, result)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's protocol that loading uses, over the folders of `root`."""

    root: Path

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api":  # api/models/OWNER/NAME[/revision/REVISION]
            return self._send_json(parts)
        owner, name, _resolve, _revision, *rest = parts
        path = self.root / owner / name / "/".join(rest)
        if not path.is_file():
            return self._send(
                404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body
            )
        data = path.read_bytes()
        self._send(200, data, {"ETag": f'"{hash(data) & 0xFFFFFFFF:040x}"', "X-Repo-Commit": COMMIT}, body)

    def _send_json(self, parts: list[str]):
        folder = self.root.joinpath(*parts[2:4])
        if "tree" in parts:  # of a folder for chat templates, which these repositories do not have
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, True)
        if not folder.is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, True)
        files = [{"rfilename": p.name} for p in folder.iterdir()]
        answer = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": files, "private": False, "tags": []}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, True)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path):
    handler = type("LocalHub", (Hub,), {"root": tmp_path / "hub"})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def load(repo: str, endpoint: str, tmp_path: Path, offline: bool) -> dict[str, torch.Tensor]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": str(int(offline)),
    }
    result = tmp_path / "result.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, repo, str(result)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(result)


@pytest.mark.parametrize("layout", ["native", "released"])
def test_hub_id_online_and_then_from_the_cache(layout, model, processor, hub, tmp_path):
    repo = tmp_path / "hub" / "someone" / layout
    repo.mkdir(parents=True)
    if layout == "native":
        model.save_pretrained(repo)
        processor.save_pretrained(repo)
    else:
        save_released(model, model.config, repo)
        assert not (repo / "model.safetensors").exists()
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    text = processor(text=["a cat"], return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=pixels, **text)
    for offline in (False, True):
        result = load(f"someone/{layout}", hub, tmp_path, offline)
        torch.testing.assert_close(result["logits"], expected.logits_per_image, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            result["patches"], expected.vision_model_output.last_hidden_state, atol=1e-5, rtol=1e-5
        )


def test_a_repository_that_does_not_exist(hub, tmp_path):
    with pytest.raises(AssertionError, match="someone/nothing"):
        load("someone/nothing", hub, tmp_path, offline=False)
