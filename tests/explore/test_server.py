"""The server: what each request answers, and what it refuses."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from explore.conftest import photo
from levljepa_hf.explore import server
from levljepa_hf.explore.patches import patch_tokens, similar_patches
from levljepa_hf.explore.search import search_scores
from levljepa_hf.explore.server import bind, build_app
from levljepa_hf.explore.session import Session

BASE = "http://127.0.0.1:7860"
BINARY = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def client(session: Session) -> TestClient:
    return TestClient(build_app(session), BASE)


def unpack(value: dict) -> np.ndarray:
    kinds = {"f32": "<f4", "i32": "<i4", "u8": "u1"}
    return np.frombuffer(base64.b64decode(value["data"]), kinds[value["kind"]]).reshape(value["shape"])


def png(size: tuple[int, int] = (50, 40), seed: int = 99) -> bytes:
    buffer = io.BytesIO()
    photo(seed, size).save(buffer, "png")
    return buffer.getvalue()


def ask(client: TestClient, path: str, **body):
    answer = client.post(f"/api/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


# ------------------------------------------------------------------------------------------------------------ answers


def test_the_page_and_its_files(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "levljepa" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and page.headers["x-content-type-options"] == "nosniff"
    names = [part.split('"')[0] for part in page.text.split('src="')[1:]] + ["static/style.css", "static/icon.svg"]
    for name in names:
        assert client.get(f"/{name}").status_code == 200, name
    assert all(name.startswith("static/") for name in names)


def test_the_state(client: TestClient, seen, photos) -> None:
    state = client.get("/api/state").json()
    assert [model["label"] for model in state["models"]] == ["a", "b"]
    assert state["models"][0]["best_readout"] == "avg" and state["models"][0]["patch_size"] == 8
    assert state["photos"]["count"] == 24 and state["photos"]["class_names"] == ["owl", "red fox"]
    assert unpack(state["photos"]["labels"]).tolist() == list(photos.labels)
    assert state["photos"]["broken"] == [] and state["static"] is False
    two = Session([seen["a"], seen["a"]], photos).state()
    assert [model["label"] for model in two["models"]] == ["a (A)", "a (B)"]


def test_photos_are_served_as_webp(client: TestClient) -> None:
    for path, size in (("/thumbnails/3.webp", (60, 44)), ("/photos/p3.webp", (60, 44))):
        answer = client.get(path)
        assert answer.headers["content-type"] == "image/webp"
        assert Image.open(io.BytesIO(answer.content)).size == size
    for path in (
        "/thumbnails/24.webp",
        "/photos/p24.webp",
        "/photos/p-1.webp",
        "/photos/ufff.webp",
        "/thumbnails/x.webp",
    ):
        assert client.get(path).status_code == 404, path


def test_patches(client: TestClient, seen, photos) -> None:
    answer = ask(client, "patches", photos=["p0", "p5"], size=64)
    tokens = [patch_tokens(seen["b"].encoder, photos.open(i), 64) for i in (0, 5)]
    assert [tuple(grid) for grid in answer["models"][1]["grids"]] == [one.grid for one in tokens]
    assert unpack(answer["models"][1]["pca"][0]).shape == (*tokens[0].grid, 3)
    similar = ask(client, "similar", photos=["p0", "p5"], size=64, x=0.7, y=0.2)["models"][1]
    for found, plain in zip(similar["maps"], similar_patches(tokens, (0.7, 0.2)), strict=True):
        np.testing.assert_allclose(unpack(found), plain, atol=1e-5)
    assert similar["patch"] == list(tokens[0].patch_at((0.7, 0.2)))
    words = ask(client, "similar", photos=["p0"], size=64, text="a fox")
    assert unpack(words["models"][0]["maps"][0]).shape == tokens[0].grid


def test_models_of_different_patch_sizes(seen, photos, cache) -> None:
    client = TestClient(build_app(Session([seen["a"], seen["coarse"]], photos, cache_dir=cache)), BASE)
    fine, coarse = ask(client, "patches", photos=["p0"], size=64)["models"]
    assert fine["grids"][0][1] == 8 and coarse["grids"][0][1] == 4
    fine, coarse = ask(client, "similar", photos=["p0"], size=64, x=0.5, y=0.5)["models"]
    assert unpack(fine["maps"][0]).shape[1] == 8 and unpack(coarse["maps"][0]).shape[1] == 4


def test_space_agreement_and_prompts(client: TestClient) -> None:
    answer = ask(client, "space", method="pca", feature="mean")
    assert [unpack(one["points"]).shape for one in answer["models"]] == [(24, 2)] * 2
    values = unpack(ask(client, "agreement", feature="cls")["values"])
    assert values.shape == (24,) and 0 <= values.min() and values.max() <= 1
    answer = ask(client, "prompts", prompts=["an owl", " ", "a fox"], readout="")
    assert answer["prompts"] == ["an owl", "a fox"]
    assert set(unpack(answer["models"][0]["nearest"]).tolist()) <= {0, 1}


def test_search(client: TestClient, seen, photos) -> None:
    answer = ask(client, "search", text="a red fox", readout="proj", k=5)["models"][0]
    plain = search_scores(seen["a"], "a red fox", "proj")
    assert answer["indices"] == plain.topk(5).indices.tolist() and answer["by"] == "proj"
    np.testing.assert_allclose(unpack(answer["all"]), plain, atol=1e-5)
    assert ask(client, "search", photo="p3", k=2)["models"][1]["indices"][0] == 3
    uploaded = client.post("/api/upload", content=png((60, 44), 3), headers=BINARY).json()
    row = photos.file_names.index("03.png")
    assert ask(client, "search", photo=uploaded["ref"], k=2, feature="cls")["models"][1]["indices"][0] == row


def test_zero_shot(client: TestClient, photos) -> None:
    answer = ask(client, "zero_shot", class_names=["owl", "red fox"], template="a {}", readout="", photo="p3")
    one = answer["models"][0]
    assert sum(one["probabilities"]) == pytest.approx(1, abs=1e-3) and one["counted"] == 24
    counts = unpack(one["confusion"])
    assert one["accuracy"] == pytest.approx(counts.trace() / 24) and counts.sum(1).tolist() == [12, 12]
    uploaded = client.post("/api/upload", content=png((60, 44), 6), headers=BINARY).json()
    refs = (uploaded["ref"], f"p{photos.file_names.index('06.png')}")
    body = {"class_names": ["owl", "red fox"], "template": "a {}"}
    found = [ask(client, "zero_shot", **body, photo=ref)["models"][0]["probabilities"] for ref in refs]
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_sigreg(client: TestClient) -> None:
    begun = ask(client, "sigreg/start", shape="ring", num_samples=60, dim=3, num_directions=16)
    assert unpack(begun["frames"][0]).shape == (60, 2) and begun["step"] == 0
    gone = ask(client, "sigreg/run", id=begun["id"], steps=7, num_directions=8, step_size=0.3)
    assert len(gone["frames"]) == len(gone["values"]) == 7 and gone["step"] == 7
    assert unpack(gone["directions"]).shape == (8, 2) and gone["values"][-1] < begun["values"][0]
    found = ask(client, "sigreg/directions", model=1, what="image_embeds")
    assert len(found["statistics"]) == 4 and found["count"] == 24
    u = unpack(found["projections"][0])
    assert found["ends"][0][0][0] == int(u.argmin()) and found["ends"][0][1][0] == int(u.argmax())


def test_some_of_many_embeddings_are_looked_at(client: TestClient, monkeypatch) -> None:
    monkeypatch.setattr("levljepa_hf.explore.sigreg._MAX_SAMPLES", 10)
    found = ask(client, "sigreg/directions", model=0, what="cls")
    rows = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:10].sort().values.tolist()
    assert found["count"] == 10 and rows[-1] > 9
    assert found["ends"][0][0][0] == rows[int(unpack(found["projections"][0]).argmin())]


def test_the_run_is_read_each_time(seen, photos, tmp_path) -> None:
    client = TestClient(build_app(Session([seen["a"]], photos, [str(tmp_path)])), BASE)
    assert "holds no log of a run" in client.get("/api/run").json()["runs"][0]["error"]
    (tmp_path / "checkpoint-2").mkdir()
    state = {"global_step": 2, "log_history": [{"step": 2, "loss": 1.5}]}
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state))
    answer = client.get("/api/run").json()
    (run,) = answer["runs"]
    assert run["curves"]["loss"] == [[2], [1.5]] and run["step"] == 2
    assert answer["panels"] == {"Loss and terms": {"names": ["loss"], "logarithmic": False}}


def test_a_model_that_lacks_what_a_tab_needs_says_so_and_the_other_answers(seen, photos, cache) -> None:
    client = TestClient(build_app(Session([seen["tower"], seen["bare"]], photos, cache_dir=cache)), BASE)
    for path, body in (
        ("search", {"text": "a fox"}),
        ("prompts", {"prompts": ["a fox", "an owl"]}),
        ("zero_shot", {"class_names": ["owl", "red fox"]}),
        ("similar", {"photos": ["p0"], "size": 32, "text": "a fox"}),
    ):
        tower, bare = ask(client, path, **body)["models"]
        assert "no text tower" in tower["error"] and "error" not in bare, path
    alone = TestClient(build_app(Session([seen["tower"]], photos, cache_dir=cache)), BASE)
    assert "no text tower" in alone.post("/api/search", json={"text": "a fox"}).json()["error"]
    assert (
        "readout='avg' is none" in client.post("/api/search", json={"text": "fox", "readout": "avg"}).json()["error"]
    )
    assert "two models" in alone.post("/api/agreement", json={}).json()["error"]
    assert len(ask(alone, "patches", photos=["p0"], size=32)["models"]) == 1


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("patches", {"photos": ["p0"], "size": 4096}, "size='4096' must be a whole number from 16 to 2048"),
        ("patches", {"photos": ["p0"], "size": 64.5}, "whole number"),
        ("patches", {"photos": "p0", "size": 64}, "photos must name"),
        ("patches", {"photos": ["../../etc/passwd"], "size": 64}, "There is no photo"),
        ("patches", {"photos": ["p24"], "size": 64}, "There is no photo"),
        ("similar", {"photos": ["p0"], "size": 64, "x": 1.5, "y": 0}, "x='1.5'"),
        ("similar", {"photos": ["p0"], "size": 64, "text": ""}, "Type some words"),
        ("space", {"method": "ica"}, "method='ica' is none of"),
        ("space", {"feature": "../x"}, "feature='../x' is none of"),
        ("prompts", {"prompts": []}, "no prompts"),
        ("prompts", {"prompts": "fox"}, "list of texts"),
        ("prompts", {"prompts": ["x"] * 1001}, "more than 1000"),
        ("search", {}, "a text or for a photo"),
        ("search", {"text": "x" * 2001}, "2000 characters"),
        ("search", {"photo": "p99"}, "There is no photo"),
        ("search", {"photo": "p1/../../x"}, "There is no photo"),
        ("zero_shot", {"class_names": ["owl"]}, "at least two"),
        ("sigreg/start", {"shape": "star"}, "shape='star'"),
        ("sigreg/start", {"num_samples": 10**9}, "num_samples="),
        ("sigreg/run", {"id": "7"}, "begin anew"),
        ("sigreg/directions", {"what": "text_embeds"}, "has no captions"),
    ],
)
def test_a_bad_request_gets_one_line(client: TestClient, path: str, body: dict, error: str) -> None:
    answer = client.post(f"/api/{path}", json=body)
    assert answer.status_code == 400 and error in answer.json()["error"], answer.text
    assert "\n" not in answer.json()["error"]


def test_a_fault_tells_the_browser_nothing(client: TestClient, session: Session, monkeypatch, capsys) -> None:
    monkeypatch.setattr("levljepa_hf.explore.session.search_scores", lambda *_, **__: 1 / 0)
    answer = client.post("/api/search", json={"photo": "p0"})
    assert answer.status_code == 500 and "division" not in answer.text
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static/....//server.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/photos/..%2f..%2fetc%2fpasswd.webp",
        "/photos/../../etc/passwd",
        "/thumbnails/..%2f0.webp",
        "/etc/passwd",
    ],
)
def test_no_file_outside_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:7860"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:7860"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": BASE}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
    ],
)
def test_other_sites_are_refused(client: TestClient, headers: dict, status: int) -> None:
    assert client.get("/api/state", headers=headers).status_code == status
    assert client.post("/api/search", json={"photo": "p0"}, headers=headers).status_code == status


def test_a_link_from_another_site_opens_the_page_and_posts_nothing(client: TestClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200
    assert client.post("/api/search", json={"photo": "p0"}, headers=headers).status_code == 403


def test_bodies_that_are_no_json_or_too_long(client: TestClient, monkeypatch) -> None:
    form = {"Content-Type": "text/plain"}
    assert client.post("/api/search", content=b'{"photo": "p0"}', headers=form).status_code == 415
    typed = {"Content-Type": "application/json"}
    for content in (b"{", b"[1]", b""):
        assert client.post("/api/search", content=content, headers=typed).status_code == 400
    monkeypatch.setattr(server, "BODY_BYTES", 100)
    long = json.dumps({"photo": "p0", "note": "x" * 200})
    assert client.post("/api/search", content=long, headers=typed).status_code == 413


def test_uploads(client: TestClient, session: Session, monkeypatch) -> None:
    answer = client.post("/api/upload", content=png((3000, 1500)), headers=BINARY).json()
    assert answer["width"] == 1792 and answer["height"] == 896
    view = client.get(f"/photos/{answer['ref']}.webp")
    assert Image.open(io.BytesIO(view.content)).size == (1024, 512)
    for content, error in ((b"no image", "no image that Pillow"), (b"", "no image"), (png()[:60], "no image")):
        refused = client.post("/api/upload", content=content, headers=BINARY)
        assert refused.status_code == 400 and error in refused.json()["error"]
    monkeypatch.setattr("levljepa_hf.explore.session.UPLOAD_PIXELS", 1000)
    refused = client.post("/api/upload", content=png(), headers=BINARY)
    assert refused.status_code == 400 and "50 x 40 pixels, more than 1,000" in refused.json()["error"]
    monkeypatch.setattr(server, "UPLOAD_BYTES", 500)
    refused = client.post("/api/upload", content=iter([b"x" * 300] * 4), headers=BINARY)  # without a Content-Length
    assert refused.status_code == 413 and "MB" in refused.json()["error"]
    assert client.post("/api/upload", content=png(), headers={"Content-Type": "image/png"}).status_code == 415


def test_uploads_do_not_pile_up(session: Session) -> None:
    refs = [session.upload(png(seed=seed))["ref"] for seed in range(40)]
    assert session.image(refs[-1]).size == (50, 40)
    with pytest.raises(ValueError, match="upload it again"):
        session.image(refs[0])


def test_a_port_that_is_taken(session: Session) -> None:
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port} cannot be served.*another explorer.*--port"):
            bind("127.0.0.1", port)
    with pytest.raises(ValueError, match="0 to 65535"):
        bind("127.0.0.1", 70000)
