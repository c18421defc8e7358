"""A third party's file, in every wrapping met in the wild, and every way it can be wrong."""

import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from helpers.tiny_classifiers import WORDS
from sightline.errors import BundleError, DataError
from sightline.models import build, load_weights, parse_architecture

FILE = "resnet20-12fca82f.th"


def network_of(name="resnet20", classes=10, channels=3, size=(32, 32), seed=0):
    torch.manual_seed(seed)
    return build(parse_architecture(name, classes=classes, channels=channels, size=size)).eval()


def reference_resnet20(tensors, x):
    """ResNet-20 with option A shortcuts, straight from the paper and a table of tensors."""

    def normed(x, name):
        w, b, mean, var = (
            tensors[f"module.{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * w + b

    def conv(x, name, stride=1):
        return F.conv2d(x, tensors[f"module.{name}.weight"], stride=stride, padding=1)

    x = normed(conv(x, "conv1"), "bn1").relu()
    for stage in (1, 2, 3):
        for number in range(3):
            name, stride = f"layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
            y = normed(conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
            y = normed(conv(y, f"{name}.conv2"), f"{name}.bn2")
            if stride == 2:
                zeros = torch.zeros(len(x), x.shape[1] // 2, *y.shape[2:], dtype=x.dtype)
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
            x = (x + y).relu()
    return x.mean((2, 3)) @ tensors["module.linear.weight"].T + tensors["module.linear.bias"]


def test_third_party_resnet20_gives_the_reference_logits(shared_weights):
    network = network_of()
    report = load_weights(network, shared_weights / FILE)
    tensors = torch.load(shared_weights / FILE, map_location="cpu", weights_only=True)["state_dict"]
    pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference_resnet20({k: t.double() for k, t in tensors.items()}, pixels.double())
        ours = network(pixels)
    assert torch.allclose(ours.double(), expected, rtol=1e-4, atol=1e-3)
    assert len(report.loaded) == len(tensors)
    assert report.initial == report.ignored == ()
    assert FILE in str(report)


def test_third_party_head_of_other_classes_is_initialised(shared_weights):
    network = network_of(classes=4)
    fresh = network.head.weight.clone()
    report = load_weights(network, shared_weights / FILE)
    assert report.initial == ("head.weight", "head.bias")
    assert "freshly initialised" in str(report)
    assert torch.equal(network.head.weight, fresh)
    tensors = torch.load(shared_weights / FILE, map_location="cpu", weights_only=True)["state_dict"]
    assert torch.equal(network.conv1.weight, tensors["module.conv1.weight"])


def test_third_party_file_for_another_network(shared_weights):
    with pytest.raises(BundleError, match=r"missing: layer1.3.conv1.weight.* and 57 more"):
        load_weights(network_of("resnet32"), shared_weights / FILE)
    with pytest.raises(BundleError, match=r"conv1.weight \(16, 3, 3, 3\) instead of \(16, 1, 3, 3\)"):
        load_weights(network_of(channels=1), shared_weights / FILE)


def same(one, other):
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


SUFFIXES = (".safetensors", ".pth", ".pt", ".th")
TURNS = [(word, SUFFIXES[turn % 4]) for turn, word in enumerate(WORDS)]


@pytest.mark.parametrize(("name", "suffix"), sorted({*TURNS, *(("resnet20", suffix) for suffix in SUFFIXES)}))
def test_every_network_and_every_format(name, suffix, tmp_path):
    source, target = network_of(name, seed=1), network_of(name, seed=2)
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    report = load_weights(target, path)
    assert same(source, target)
    assert report.initial == report.ignored == ()


WRAPPINGS = {
    "data parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled in a container": lambda s: {"state_dict": {f"_orig_mod.{k}": v for k, v in s.items()}, "epoch": 3},
    "lightning": lambda s: {"state_dict": {f"model.net.{k}": v for k, v in s.items()}, "hparams": {"lr": 0.1}},
    "twice contained": lambda s: {"model": {"state_dict": s}, "optimizer": {"lr": 1.0}},
    "without counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "timm": lambda s: {k.replace("head.", "fc."): v for k, v in s.items()},
    "classifier": lambda s: {k.replace("head.", "classifier."): v for k, v in s.items()},
    "half precision": lambda s: {k: v.half().float().half() if v.is_floating_point() else v for k, v in s.items()},
    "our own classifier": lambda s: {
        **{f"network.{k}": v for k, v in s.items()},
        "temperature": torch.ones(()),
        "preprocessing.steps.0.matrix": torch.eye(3),
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
def test_wrappers_of_real_checkpoints_are_removed(wrapping, name, tmp_path):
    source, target = network_of(name, seed=1), network_of(name, seed=2)
    if wrapping == "half precision":
        source.half().float()
    torch.save(WRAPPINGS[wrapping](source.state_dict()), tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert same(source, target)
    assert bool(report.ignored) == (wrapping == "our own classifier")


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(how, tmp_path):
    marker, path = tmp_path / "run", tmp_path / "evil.pth"
    if how == "torch":
        torch.save({"state_dict": {"a": torch.ones(1)}, "x": Malicious(str(marker))}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(str(marker))))
    with pytest.raises(BundleError, match="refused as unsafe"):
        load_weights(network_of("mlp"), path)
    assert not marker.exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(BundleError, match="refused as unsafe"):
        load_weights(network_of("mlp"), tmp_path / "module.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "header only"])
def test_damaged_files_are_named(suffix, damage, tmp_path):
    path = tmp_path / f"w{suffix}"
    state = network_of("mlp").state_dict()
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    whole = path.read_bytes()
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"this is a readme, not weights\n" * 9,
        "header only": whole[:9],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(BundleError, match=r"w\..* is damaged or not a file of weights"):
        load_weights(network_of("mlp"), path)


def test_a_truncated_legacy_file_is_named(tmp_path):
    path = tmp_path / "old.th"
    torch.save(network_of("mlp").state_dict(), path, _use_new_zipfile_serialization=False)
    load_weights(network_of("mlp"), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BundleError, match="damaged"):
        load_weights(network_of("mlp"), path)


def test_paths_without_weights_are_refused(tmp_path):
    with pytest.raises(DataError, match="There is no file of weights at"):
        load_weights(network_of("mlp"), tmp_path / "absent.pth")
    with pytest.raises(DataError, match="is a folder"):
        load_weights(network_of("mlp"), tmp_path)
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"suffix of a file of weights: .safetensors, .pth"):
        load_weights(network_of("mlp"), tmp_path / "w.onnx")
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    with pytest.raises(BundleError, match="holds no tensors by name"):
        load_weights(network_of("mlp"), tmp_path / "nothing.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(BundleError, match="holds no tensors by name"):
        load_weights(network_of("mlp"), tmp_path / "list.pth")


CHANGES = {
    "nan": (lambda s: s["hidden.0.weight"].__setitem__((0, 0), float("nan")), "NaN or infinity"),
    "infinity": (lambda s: s["head.bias"].__setitem__(0, float("inf")), "head.bias .* NaN or infinity"),
    "missing": (lambda s: s.pop("hidden.3.bias"), "missing: hidden.3.bias"),
    "unexpected": (lambda s: s.update(extra=torch.ones(1)), "unexpected: extra"),
    "shape": (lambda s: s.update({"head.bias": torch.ones(3)}), r"head.bias \(3,\) instead of \(10,\)"),
    "integers": (lambda s: s.update({"head.bias": torch.ones(10, dtype=torch.int8)}), "torch.int8"),
    "narrow head": (lambda s: s.update({"head.weight": torch.ones(5, 7)}), r"head.weight \(5, 7\)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_wrong_tensors_are_named_and_nothing_is_copied(change, tmp_path):
    alter, message = CHANGES[change]
    state = dict(network_of("mlp", seed=1).state_dict())
    alter(state)
    save_file(state, tmp_path / "w.safetensors")
    network = network_of("mlp", seed=2)
    with pytest.raises(BundleError, match=message):
        load_weights(network, tmp_path / "w.safetensors")
    assert same(network, network_of("mlp", seed=2))
