"""Published weights from a hub: a real one on the loopback, which answers well, badly, slowly or not at all."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save

from sightline.errors import BundleError, DataError
from sightline.models import build, hub, parse_architecture
from sightline.models.timm_network import find_card, import_timm

NAME = "test_resnet"
REPOSITORY = "timm/test_resnet.r160_in1k"
COMMIT = "a" * 40


def published(**changes):
    """The bytes of a file of weights, and its network."""
    torch.manual_seed(5)
    network = import_timm().create_model(NAME, **changes)
    return save(network.state_dict()), network


def network_of(name=f"timm:{NAME}:pretrained=True", size=(32, 32)):
    return build(parse_architecture(name, classes=3, channels=3, size=size))


@contextmanager
def served(body, *, status=200, announced=None, silent=False, trickle=False):
    """The address of a hub with one file, and the requests it saw."""
    seen = []

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def head(self):
            seen.append((self.command, self.path))
            if silent:
                time.sleep(30)
            self.send_response(status if self.path.startswith(f"/{REPOSITORY}/resolve/") else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{announced or hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()

        def do_HEAD(self):
            self.head()

        def do_GET(self):
            self.head()
            if trickle:
                for _ in range(300):
                    self.wfile.write(b"\0")
                    self.wfile.flush()
                    time.sleep(0.1)
            self.wfile.write(body)

        def handle(self):
            with suppress(OSError):  # the client went away
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Fetch the weights from a hub with the given behaviour; the cache is empty at first."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HUB_TIMEOUT", 1.0)
    monkeypatch.setattr(hub, "STALL_SECONDS", 1.0)

    def load(body, **behaviour):
        with served(body, **behaviour) as (address, seen):
            monkeypatch.setattr(constants, "ENDPOINT", address)
            monkeypatch.setattr(
                constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
            )
            network = network_of()
            return network, network.load_published(), seen

    return load


def test_what_the_hub_has_is_fetched_checked_and_kept(ask):
    body, other = published()
    network, note, seen = ask(body)
    state = other.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in network.body.state_dict().items())
    assert seen
    assert f"Started from {NAME}, trained on ImageNet-1k (apache-2.0; from {REPOSITORY})." in note
    assert find_card(NAME).sha256 == hashlib.sha256(body).hexdigest()
    _, _, again = ask(body, status=500)
    assert again == []  # the cache needs no network


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"status": 404}, "the hub answered 404"),
        ({"status": 500}, "the hub answered 500"),
        ({"status": 401}, "the hub asks for a login"),
        ({"silent": True}, "no answer within 1 s"),
        ({"trickle": True}, "hardly any data"),
        ({"announced": "0" * 64}, "its checksum is not the one that the hub announced"),
    ],
)
def test_a_hub_that_fails_is_one_sentence_with_the_ways_out(ask, behaviour, reason):
    with pytest.raises(
        DataError, match=rf"cannot be fetched from here: .*{reason}.*--weights FILE.*--from-scratch"
    ):
        ask(published()[0], **behaviour)


def test_what_arrived_wrong_is_not_kept(ask):
    body, _ = published()
    with pytest.raises(DataError, match="checksum"):
        ask(body, announced="0" * 64)
    assert find_card(NAME).sha256 is None
    assert ask(body)[1]


def test_a_damaged_cache_is_noticed_and_removed(ask, tmp_path):
    body, _ = published()
    ask(body)
    (blob,) = (tmp_path / "hub").rglob("blobs/*")
    blob.chmod(0o644)
    blob.write_bytes(body[:-4] + b"\0\0\0\1")
    with pytest.raises(DataError, match="in the cache was damaged, and is removed"):
        ask(body, status=500)
    assert ask(body)[1]


def test_weights_of_another_network_do_not_fit(ask):
    with pytest.raises(BundleError, match=r"do not fit timm's 'test_resnet'.*--weights FILE"):
        ask(save(import_timm().create_model("test_vit").state_dict()))


PROGRAM = """
import sys
from sightline.cli import main
sys.exit(main(["train", "absent", "--model", "timm:{name}:pretrained=True", "--size", "32"]))
"""


def command(name, folder, **environment):
    """The words of ``sightline train`` with published weights, in a process of its own with an empty cache."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HTTP"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name=name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=inherited | {"HF_HOME": str(folder)} | environment,
    )
    assert "Traceback" not in done.stderr
    return done


def test_a_proxy_that_never_answers_is_no_hang(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        done = command(NAME, tmp_path, HTTPS_PROXY=address, https_proxy=address)
    assert done.returncode == 2
    assert "no answer within 5 s" in done.stderr


def test_the_environment_says_where_the_hub_and_its_cache_are(tmp_path):
    """HF_ENDPOINT, then HF_HOME with HF_HUB_OFFLINE: what was fetched is found, and the images are missed instead."""
    with served(published()[0]) as (address, seen):
        done = command(NAME, tmp_path / "home", HF_ENDPOINT=address)
    assert seen
    assert "absent" in done.stderr
    assert list((tmp_path / "home" / "hub").rglob("model.safetensors"))
    assert "absent" in command(NAME, tmp_path / "home", HF_HUB_OFFLINE="1").stderr


def test_a_file_from_an_address_is_looked_for_where_torch_keeps_it(monkeypatch, tmp_path):
    """TORCH_HOME; off-line, nothing else is tried."""
    from huggingface_hub import constants

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = {"hf_hub_id": None, "hf_hub_filename": None, "url": "http://127.0.0.1:9/net-01234567.pth"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        hub.fetch_published("net", settings)
    kept = tmp_path / "hub" / "checkpoints" / "net-01234567.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    assert hub.fetch_published("net", settings) == kept


def test_a_file_from_an_address_is_fetched_and_compared_with_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    body = b"weights"
    start = hashlib.sha256(body).hexdigest()[:8]
    with served(body) as (address, _):
        for name, fits in ((f"net-{start}.pth", True), ("net-00000000.pth", False)):
            settings = {
                "hf_hub_id": None,
                "hf_hub_filename": None,
                "url": f"{address}/{REPOSITORY}/resolve/{name}",
            }
            if fits:
                assert hub.fetch_published("net", settings).read_bytes() == body
            else:
                with pytest.raises(DataError, match="checksum"):
                    hub.fetch_published("net", settings)
    assert not (tmp_path / "hub" / "checkpoints" / "net-00000000.pth").exists()


def test_a_folder_of_the_hub_brings_its_network_and_its_card(tmp_path):
    """``--weights FOLDER`` with timm's config.json: the network, the pixels and the licence are known."""
    from sightline.training import Recipe, resolve

    body, _ = published()
    (tmp_path / "model.safetensors").write_bytes(body)
    card = {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "input_size": [3, 160, 160],
        "license": "cc-by-nc-4.0",
    }
    config = {"architecture": NAME, "pretrained_cfg": {**card, "tag": "r160_in1k"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = resolve(Recipe(weights=str(tmp_path)))
    assert plan.recipe.model == f"timm:{NAME}.r160_in1k"
    assert plan.card is not None
    assert plan.card.mean == (0.1, 0.2, 0.3)
    assert plan.card.licence == "cc-by-nc-4.0"
    assert not plan.card.commercial
    assert plan.card.sha256 == hashlib.sha256(body).hexdigest()
