"""Where checkpoints come from: a real HTTP server on this machine, a cache, a tracking store."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from visionpipe.errors import RegistryError, WeightsError
from visionpipe.models.known import KERASHUB_PRESETS
from visionpipe.weights import resolve
from visionpipe.weights.download import NotFound, fetch

ROOT = Path(__file__).parents[2]
CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """`files`: path → content; `requests`: (path, Range header) as they came; `cut`: bodies end after so many
    bytes; `stall`: they stop there instead, with the connection open; `ranges`: whether it knows them.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.tags = {}, [], {}
        self.cut, self.stall, self.ranges, self.status = [], None, True, None
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if server.status or self.path not in server.files:
            self.send_error(server.status or 404)
            return
        content = server.files[self.path]
        tag = server.tags.get(self.path, f'"{hashlib.md5(content).hexdigest()}"')
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        end = start + server.cut.pop(0) if server.cut else len(content)
        with contextlib.suppress(OSError):
            self.wfile.write(content[start : server.stall or end])
            self.wfile.flush()
            if server.stall:
                time.sleep(30)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("VISIONPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("KAGGLE_API_ENDPOINT", server.url)
    monkeypatch.delenv("VISIONPIPE_OFFLINE", raising=False)
    monkeypatch.setattr("visionpipe.weights.download.PAUSE_SECONDS", 0.01)
    server.files["/models/x.npz"] = CONTENT
    yield server
    server.shutdown()
    server.server_close()


def left_over(tmp_path):
    """Files of the cache that are no finished download."""
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.suffix in (".part", ".tag", ".tmp")]


def test_a_file_is_downloaded_once_and_then_taken_from_the_cache(server, tmp_path):
    url = f"{server.url}/models/x.npz"
    path = fetch(url)
    assert path.read_bytes() == CONTENT
    assert path.name == "x.npz"
    assert json.loads((path.parent / "source.json").read_text()) == {"url": url, "sha256": SHA256}
    assert fetch(url) == path
    assert resolve(url).sha256 == SHA256
    assert len(server.requests) == 1
    assert left_over(tmp_path) == []


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.cut = [1_000_000, 500_000]
    assert fetch(f"{server.url}/models/x.npz").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=1000000-", "bytes=1500000-"]
    assert left_over(tmp_path) == []


def test_a_server_that_knows_no_ranges_sends_it_all_again(server):
    server.cut, server.ranges = [1_000_000], False
    assert fetch(f"{server.url}/models/x.npz").read_bytes() == CONTENT


def test_a_file_that_changed_between_is_not_put_together_from_both(server, tmp_path):
    server.cut = [1000] * 4
    with pytest.raises(WeightsError, match="cannot be downloaded: the connection broke"):
        fetch(f"{server.url}/models/x.npz")
    other = server.files["/models/x.npz"] = CONTENT[::-1]
    assert fetch(f"{server.url}/models/x.npz").read_bytes() == other


def test_a_connection_that_keeps_breaking_is_one_line_and_goes_on_next_time(server):
    server.cut = [600_000] * 4
    with pytest.raises(WeightsError, match=r"2\.3 MiB are stored, and the next try resumes there"):
        fetch(f"{server.url}/models/x.npz")
    assert fetch(f"{server.url}/models/x.npz").read_bytes() == CONTENT
    assert server.requests[-1] == ("/models/x.npz", "bytes=2400000-")


FETCH = "import sys; from visionpipe.weights.download import fetch; print(fetch(sys.argv[1]))"


def test_a_killed_download_goes_on_and_is_quiet_in_a_pipe(server, tmp_path):
    url = f"{server.url}/models/x.npz"
    server.stall = 1_200_000
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", FETCH, url], env=environment)
    deadline = time.monotonic() + 20
    while not any(p.stat().st_size >= 1_000_000 for p in (tmp_path / "cache").rglob("*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "cache").rglob("x.npz"))
    server.stall = None
    result = subprocess.run(
        [sys.executable, "-c", FETCH, url], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(result.stdout.strip()).read_bytes() == CONTENT
    assert result.stderr == ""
    assert server.requests[-1][1].startswith("bytes=1")


def test_a_download_shows_in_a_terminal_how_far_it_is(server, terminal):
    server.cut = [1_000_000]
    with contextlib.redirect_stderr(terminal):
        fetch(f"{server.url}/models/x.npz")
    assert "x.npz: 100%|" in terminal.getvalue()
    assert "3.00M/3.00M" in terminal.getvalue()
    assert "1.00M/3.00M" in terminal.getvalue(), "a download that is taken up begins where it was"


def test_another_sha256_leaves_nothing_in_the_cache(server, tmp_path):
    with pytest.raises(WeightsError, match=f"has sha256 {SHA256}, expected 1234abcd: another file"):
        fetch(f"{server.url}/models/x.npz", sha256="1234abcd")
    assert not list((tmp_path / "cache").rglob("x.npz*"))
    path = fetch(f"{server.url}/models/x.npz", sha256=SHA256[:8].upper())
    with pytest.raises(WeightsError, match="expected 1234abcd"):
        fetch(f"{server.url}/models/x.npz", sha256="1234abcd")
    assert path.read_bytes() == CONTENT


def test_a_damaged_file_of_the_cache_is_downloaded_again(server):
    path = fetch(f"{server.url}/models/x.npz")
    path.write_bytes(CONTENT[:-1])
    assert fetch(f"{server.url}/models/x.npz").read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_offline_only_the_cache_is_asked(server, monkeypatch, how):
    url, offline = f"{server.url}/models/x.npz", how == "argument"
    if not offline:
        monkeypatch.setenv("VISIONPIPE_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"is not in the cache .*, and offline mode is on"):
        fetch(url, offline=offline)
    monkeypatch.delenv("VISIONPIPE_OFFLINE", raising=False)
    path = fetch(url)
    if not offline:
        monkeypatch.setenv("VISIONPIPE_OFFLINE", "1")
    assert fetch(url, offline=offline) == path
    assert len(server.requests) == 1


def test_no_network_is_one_line(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(WeightsError, match=r"cannot be downloaded: .*Connection refused"):
        fetch(f"{server.url}/models/x.npz")
    assert server.requests == []


def test_what_is_not_there_and_what_fails_are_told_apart(server):
    with pytest.raises(NotFound, match=r"none\.npz does not exist \(404\)"):
        fetch(f"{server.url}/models/none.npz")
    server.status = 403
    with pytest.raises(WeightsError, match="cannot be downloaded: 403 Forbidden"):
        fetch(f"{server.url}/models/x.npz")


# Hubs --------------------------------------------------------------------------------------------------


def test_a_hugging_face_repository_brings_its_configuration(server):
    base = "/timm/some_vit.in1k/resolve/main"
    server.files |= {f"{base}/model.safetensors": b"weights", f"{base}/config.json": b'{"a": 1}'}
    checkpoint = resolve("timm:some_vit.in1k")
    assert checkpoint.path.read_bytes() == b"weights"
    assert checkpoint.companions == {"config.json": {"a": 1}}
    asked = len(server.requests)
    assert resolve("hf:timm/some_vit.in1k").path == checkpoint.path
    assert len(server.requests) == asked, "what was not there is not asked for again"


def test_without_safetensors_the_older_file_is_taken(server):
    server.files["/a/b/resolve/v2/pytorch_model.bin"] = b"older"
    assert resolve("hf:a/b@v2").path.read_bytes() == b"older"


def test_a_file_of_a_repository_can_be_named(server):
    server.files["/a/b/resolve/main/sub/x.npz"] = CONTENT
    assert resolve("hf:a/b/sub/x.npz", sha256=SHA256).sha256 == SHA256
    with pytest.raises(WeightsError, match="expected hf:OWNER/REPO or hf:OWNER/REPO/FILE"):
        resolve("hf:a")


def test_a_preset_of_kerashub_comes_as_one_folder(server):
    base = f"/api/v1/models/{KERASHUB_PRESETS['resnet_50_imagenet']}/download"
    files = {"model.weights.h5": b"backbone", "task.weights.h5": b"head", "config.json": b"{}"}
    server.files |= {f"{base}/{name}": content for name, content in files.items()}
    checkpoint = resolve("kerashub:resnet_50_imagenet")
    assert {name: (checkpoint.path / name).read_bytes() for name in files} == files
    assert resolve("kerashub:resnet_50_imagenet", offline=True).sha256 == checkpoint.sha256
    with pytest.raises(
        WeightsError, match="expected the folder of a preset, or one of vit_base_patch16_224_imagenet"
    ):
        resolve("kerashub:resnet_5000")


def test_a_known_name_stands_for_its_source_and_sha256(server, monkeypatch):
    from visionpipe.models import known

    row = known.Known(f"{server.url}/models/x.npz", "ViT-B/16", 224, 1.0, "MIT", "here", SHA256[:8])
    monkeypatch.setattr(known, "KNOWN", {"some-vit": row})
    assert resolve("some-vit").sha256 == SHA256
    server.files["/models/x.npz"] = b"another"
    monkeypatch.setenv("VISIONPIPE_CACHE", str(Path(os.environ["VISIONPIPE_CACHE"]) / "other"))
    with pytest.raises(WeightsError, match=f"expected {SHA256[:8]}"):
        resolve("some-vit")


# The project's own registry ----------------------------------------------------------------------------


@pytest.fixture
def registered(in_workspace):
    """A version with the alias `champion`, whose run has a model.keras; returns (name, store, run id)."""
    from visionpipe.project.sections import TrackingConfig
    from visionpipe.tracking.store import connect

    store = connect(TrackingConfig("weights", "weights"))
    run = store.client.create_run(store.experiment_id)
    Path("model.keras").write_bytes(CONTENT)
    Path("lineage.json").write_text('{"name": "one"}')
    for file in ("model.keras", "lineage.json"):
        store.client.log_artifact(run.info.run_id, file)
    store.client.set_tag(run.info.run_id, "model_sha256", SHA256)
    name = f"weights-{run.info.run_id[:6]}"
    store.client.create_registered_model(name)
    version = store.client.create_model_version(name, source=run.info.artifact_uri, run_id=run.info.run_id)
    store.client.set_registered_model_alias(name, "champion", version.version)
    return name, store, run.info.run_id


def test_a_registered_model_is_found_by_alias_and_by_version(registered):
    name, _, _ = registered
    checkpoint = resolve(f"models:/{name}@champion")
    assert checkpoint.sha256 == SHA256
    assert checkpoint.path.name == "model.keras"
    assert checkpoint.companions == {"lineage.json": {"name": "one"}}
    assert resolve(f"models:/{name}/1").path == checkpoint.path


def test_a_registered_model_that_is_not_the_logged_one_is_refused(registered):
    name, store, run_id = registered
    store.client.set_tag(run_id, "model_sha256", "0" * 64)
    with pytest.raises(RegistryError, match=r"the model\.keras of its run was changed after it was logged"):
        resolve(f"models:/{name}@champion")


def test_an_alias_that_nobody_has_is_one_line(registered):
    name, _, _ = registered
    with pytest.raises(RegistryError, match=rf"models:/{name}@none is not in sqlite:"):
        resolve(f"models:/{name}@none")
    with pytest.raises(RegistryError, match="expected models:/NAME@ALIAS or models:/NAME/VERSION"):
        resolve(f"models:/{name}")


def test_without_a_tracking_store_there_are_no_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(RegistryError, match="there is no tracking store"):
        resolve("models:/visionpipe@champion")
    assert not (tmp_path / "mlflow.db").exists()
