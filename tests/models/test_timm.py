"""The door to timm: by name, safely, without a network."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from sightline.classifier import Classifier
from sightline.errors import ChoiceError, DataError, RecipeError
from sightline.models import Architecture, build, load_weights, parse_architecture, timm_network
from sightline.preprocessing import Preprocessing
from sightline.types import Geometry

TINY = "timm:test_resnet"


def network_of(name, classes=5, channels=3, size=(32, 32), seed=0):
    torch.manual_seed(seed)
    return build(parse_architecture(name, classes=classes, channels=channels, size=size))


def shell(code, **environment):
    """In a process of its own, where nothing was imported before."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_operators_may_be_declared_twice_and_nothing_is_imported_before():
    code = (
        "import sys, sightline.models.timm_network as zoo\n"
        "assert not {'timm', 'torchvision'} & set(sys.modules)\n"
        "declared = zoo.declare_operators()\n"
        "assert 'torchvision' not in sys.modules\n"
        "zoo.declare_operators.cache_clear()\n"
        "again = zoo.declare_operators()\n"
        "import torch, torchvision\n"
        "assert hasattr(torch.ops.torchvision, 'nms') and hasattr(torch.ops.torchvision, 'qnms')\n"
        "assert again == ()\n"
        "compiled = torchvision.extension._has_ops()\n"
        "assert bool(declared) == (not compiled), (declared, compiled)\n"
        "print(zoo.import_timm().__name__)"
    )
    assert shell(code) == "timm"


def test_operators_that_exist_are_not_declared_again():
    code = (
        "import torch\n"
        "theirs = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "before = hasattr(torch.ops.torchvision, 'nms')\n"
        "theirs.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "import sightline.models.timm_network as zoo\n"
        "assert 'nms' not in zoo.declare_operators()\n"
        "print(zoo.import_timm().__name__)"
    )
    assert shell(code) == "timm"


def test_listing_and_parsing_import_neither_timm_nor_torchvision():
    code = (
        "import sys\n"
        "from sightline.models import describe_networks\n"
        "assert 'timm' in [line.name for line in describe_networks()]\n"
        "print(len({'timm', 'torchvision'} & set(sys.modules)))"
    )
    assert shell(code) == "0"


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "mobilenetv3_small_050"]
)
def test_the_body_is_timms_and_the_head_is_ours(name):
    """With timm's own classifier in the head, the same logits."""
    network = network_of(f"timm:{name}", size=(64, 64)).eval()
    given = {"img_size": (64, 64)} if "vit" in name else {}
    torch.manual_seed(3)
    other = timm_network.import_timm().create_model(name, num_classes=5, **given).eval()
    state = other.state_dict()
    last = other.pretrained_cfg["classifier"]
    missing, unexpected = network.body.load_state_dict(state, strict=False)
    assert not missing
    assert set(unexpected) == {f"{last}.weight", f"{last}.bias"}
    network.head.load_state_dict({part: state[f"{last}.{part}"] for part in ("weight", "bias")})
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(network(pixels), other(pixels), atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_a_file_with_timms_names_loads(name, tmp_path):
    given = {"img_size": (32, 32)} if "vit" in name else {}
    other = timm_network.import_timm().create_model(name, num_classes=5, **given)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    network = network_of(f"timm:{name}", seed=1)
    report = load_weights(network, tmp_path / "w.safetensors")
    assert report.initial == report.ignored == ()
    with torch.no_grad():
        pixels = torch.rand(2, 3, 32, 32)
        assert torch.allclose(network.eval()(pixels), other.eval()(pixels), atol=1e-5)
    # Our own file of the same network still fits.
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    load_weights(network_of(f"timm:{name}", seed=2), tmp_path / "own.safetensors")


def test_a_file_of_other_classes_leaves_the_head(tmp_path):
    save_file(timm_network.import_timm().create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    assert load_weights(network_of(TINY), tmp_path / "w.safetensors").initial == ("head.weight", "head.bias")


@pytest.mark.parametrize("name", [TINY, "timm:test_vit", f"{TINY}:pretrained=True"])
def test_a_bundle_holds_the_weights_and_loads_without_a_network(name, tmp_path, monkeypatch):
    plan = parse_architecture(name, classes=3, channels=1, size=(32, 32))
    classifier = Classifier(
        Preprocessing(()),
        build(plan),
        architecture=plan,
        classes=("a", "b", "c"),
        geometry=Geometry(size=(32, 32), channels=1),
    ).eval()
    classifier.save(tmp_path / "b")
    monkeypatch.setattr(timm_network, "fetch_published", lambda *_: pytest.fail("a bundle has its own weights"))
    again = Classifier.load(tmp_path / "b")
    pixels = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(classifier(pixels), again(pixels))


def test_networks_of_a_fixed_size_are_made_for_ours():
    network = network_of("timm:test_vit", channels=1, size=(48, 32)).eval()
    assert network(torch.rand(2, 1, 48, 32)).shape == (2, 5)


def test_stochastic_depth_is_passed_on():
    network = network_of("timm:test_convnext:drop_path=0.3")
    assert max(getattr(m, "drop_prob", 0) or 0 for m in network.modules()) == pytest.approx(0.3)


# Pretrained.


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No cache and no way out: the address of nobody, which refuses at once."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))


OFFLINE = r"published weights of timm's 'test_resnet' cannot be fetched .*--weights FILE"


def test_published_weights_without_a_network_are_an_error_with_a_remedy(nowhere):
    network = network_of(f"{TINY}:pretrained=True")
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with pytest.raises(DataError, match=OFFLINE):
        network.load_published()
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_offline_mode_is_respected(nowhere, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=OFFLINE):
        network_of(f"{TINY}:pretrained=True").load_published()


def test_missing_weights_are_reported_before_an_image_is_read(nowhere, cli, tmp_path):
    answer = cli("train", tmp_path / "absent", "--model", f"{TINY}:pretrained=True", "--size", "32")
    assert answer.code == 2
    assert "cannot be fetched from here" in answer.err
    assert "Traceback" not in answer.err


def test_published_weights_in_the_cache_are_used(nowhere, tmp_path):
    """Where the hub would have put them; grey images get the sum of the colours' filters, as timm does it."""
    other = timm_network.import_timm().create_model("test_resnet")
    place = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots" / "abc").mkdir(parents=True)
    save_file(other.state_dict(), place / "snapshots" / "abc" / "model.safetensors")
    network = network_of(f"{TINY}:pretrained=True", channels=1)
    head = network.head.weight.clone()
    assert "Started from test_resnet, trained on ImageNet-1k" in network.load_published()
    state = network.body.state_dict()
    assert torch.equal(state["layer1.0.conv1.weight"], other.state_dict()["layer1.0.conv1.weight"])
    colours = other.state_dict()["conv1.weight" if "conv1.weight" in state else "conv1.0.weight"]
    first = state["conv1.weight" if "conv1.weight" in state else "conv1.0.weight"]
    assert torch.allclose(first[:, 0], colours.sum(1), atol=1e-5)
    assert torch.equal(network.head.weight, head)


def test_networks_without_published_weights_say_so():
    names = set(timm_network.import_timm().list_models()) - set(
        timm_network.import_timm().list_models(pretrained=True, include_tags=False)
    )
    name = next(n for n in sorted(names) if n.startswith("resnet"))
    with pytest.raises(RecipeError, match="no published weights"):
        network_of(f"timm:{name}:pretrained=True").load_published()


def test_nothing_is_downloaded_without_pretrained():
    assert network_of(TINY).load_published() == network_of("resnet20").load_published() == ""


# What a user gets wrong.


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("timm", "Name a network of timm"),
        ("timm:resnet5O", "Did you mean 'resnet50'"),
        ("timm:resnet50.a1_in1", "Did you mean 'resnet50.a1_in1k'"),
        ("timm:qqqqqqqq", "Its names"),
        ("timm:hf-hub/somebody/else", "no network of timm called"),
        ("timm:test_resnet:pretrain=True", "Did you mean 'pretrained'"),
    ],
)
def test_unknown_names_are_suggested(word, hint):
    with pytest.raises(ChoiceError, match=hint) as caught:
        network_of(word)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["hf-hub:somebody/else", "local-dir:/tmp", "https://example.org/x"])
def test_a_bundle_cannot_name_an_address(name):
    """timm would follow such names to other people's files."""
    arguments = {"classes": 2, "channels": 3, "size": [32, 32], "name": name}
    with pytest.raises(ChoiceError, match="no network of timm"):
        build(Architecture.from_config(json.loads(json.dumps(Architecture("timm", arguments).config()))))


def test_impossible_sizes_are_refused():
    with pytest.raises(RecipeError, match=r"cannot be made for images of 50 x 50 pixels .* choose another --size"):
        network_of("timm:maxvit_nano_rw_256", size=(50, 50))
    with pytest.raises(RecipeError, match="cannot be made"):
        network_of(f"{TINY}:drop_path=no")
    with pytest.raises(RecipeError, match="dropout"):
        network_of(f"{TINY}:dropout=2")
