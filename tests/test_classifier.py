"""The waist and its bundle: what is saved is what is loaded, and nothing unsafe is."""

import contextlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers.tiny_classifiers import DISTINCT_WORDS, WORDS
from sightline.classifier import Classifier, amend_bundle, frozen_eval, write_bundle_card
from sightline.errors import BundleError, DataError, OutputError
from sightline.files import checksum
from sightline.models import BUNDLE_FORMAT, SURGERY, Architecture, Memory, build, copy_bundle, parse_architecture
from sightline.preprocessing import NoiseFilter, Normalise, Preprocessing
from sightline.types import Geometry


def make(
    model: str = "lenet5", classes: tuple[str, ...] = ("cat", "dog", "émeu"), channels: int = 1
) -> Classifier:
    torch.manual_seed(0)
    plan = parse_architecture(model, classes=len(classes), channels=channels, size=(28, 28))
    return Classifier(
        Preprocessing([Normalise((0.1,) * channels, (0.3,) * channels)]),
        build(plan),
        architecture=plan,
        classes=classes,
        geometry=Geometry(size=(28, 28), channels=channels),
        temperature=1.5,
        provenance={"data": "pets"},
    ).eval()


@pytest.fixture
def bundle(tmp_path):
    return make().save(tmp_path / "bundle")


def rewrite(bundle, **changes):
    """Change fields of config.json as a careless or hostile hand would."""
    config = json.loads((bundle / "config.json").read_text())
    config.update(changes)
    (bundle / "config.json").write_text(json.dumps(config))


def resign(bundle):
    """Make the checksums right again, so that only what is tested is wrong."""
    names = [p.name for p in bundle.iterdir() if p.name != "config.json"]
    rewrite(bundle, files={name: checksum(bundle / name) for name in names})


@pytest.mark.parametrize("model", WORDS)
def test_saved_and_loaded_is_the_same_bit_for_bit(tmp_path, model):
    classifier = make(model)
    classifier.save(tmp_path / "b")
    again = Classifier.load(tmp_path / "b")
    pixels = torch.rand(4, 1, 28, 28)
    assert torch.equal(classifier(pixels), again(pixels))
    assert again.config() == classifier.config()
    assert again.classes == ("cat", "dog", "émeu")


def test_loading_does_not_import_the_compiler():
    """torch imports it to draw numbers for tensors without values, by which sizes are checked: two seconds."""
    code = (
        "import sys\nfrom sightline.models import build, limit_parameters, parse_architecture\n"
        "for word in sys.argv[1:]:\n"
        "    with limit_parameters(10_000):\n"
        "        made = build(parse_architecture(word, classes=3, channels=3, size=(32, 32)))\n"
        "    assert all(tensor.is_meta for tensor in made.state_dict().values())\n"
        "    assert 'torch._dynamo' not in sys.modules, word"
    )
    words = [word for word in DISTINCT_WORDS if not word.startswith("timm")]  # timm imports it itself
    subprocess.run([sys.executable, "-c", code, *words], check=True)


def test_surgery_is_repeated_at_loading(tmp_path):
    grown = Architecture(
        "lenet5", {"classes": 3, "channels": 1, "size": [28, 28]}, (("grown_head", {"classes": 5}),)
    )
    classifier = make(classes=("a", "b", "c", "d", "e"))
    classifier.architecture, classifier.network = grown, build(grown).eval()
    classifier.save(tmp_path / "b")
    again = Classifier.load(tmp_path / "b")
    pixels = torch.rand(2, 1, 28, 28)
    assert again(pixels).shape == (2, 5)
    assert torch.equal(classifier(pixels), again(pixels))


def test_probabilities_apply_the_temperature_and_logits_do_not():
    classifier, pixels = make(), torch.rand(3, 1, 28, 28)
    expected = torch.softmax(classifier(pixels).double() / 1.5, 1)
    torch.testing.assert_close(classifier.probabilities(pixels).double(), expected, rtol=1e-6, atol=1e-7)


def test_preprocessing_is_inside():
    classifier, pixels = make(), torch.rand(2, 1, 28, 28)
    assert torch.equal(classifier(pixels), classifier.network((pixels - 0.1) / 0.3))


def test_predict_takes_files_bytes_and_arrays_alike(tmp_path):
    classifier = make()
    array = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)
    Image.fromarray(array[..., 0]).save(tmp_path / "a.png")
    file, data, pixels = classifier.predict([tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), array])
    assert file.file.endswith("a.png")
    assert file.top == data.top == pixels.top
    assert file.label == file.top[0][0]
    direct = classifier.probabilities(torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255)[0]
    assert file.confidence == pytest.approx(direct.max().item(), abs=1e-6)
    assert sum(p for _, p in file.top) == pytest.approx(1, abs=1e-6)


def test_one_picture_of_any_kind_is_one_answer(tmp_path):
    classifier = make()
    array = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    image = Image.fromarray(array)
    image.save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        memory = io.BytesIO((tmp_path / "a.png").read_bytes())
        answers = [classifier.predict(one) for one in (array, image, file, memory)]
    assert [len(each) for each in answers] == [1, 1, 1, 1]
    assert len({each[0].top for each in answers}) == 1
    assert answers[2][0].file == str(tmp_path / "a.png")
    assert len(list(classifier.iter_predictions(array))) == 1


def test_predict_refuses_what_is_no_picture_with_a_sentence():
    for given in (np.zeros((28, 28)), torch.zeros(1, 28, 28), [None], 3):
        with pytest.raises(DataError, match="not a"):
            make().predict(given)


def test_predict_returns_the_error_of_an_unreadable_file(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    answers = make().predict([tmp_path / "text.png", tmp_path / "absent.png"])
    assert [a.label for a in answers] == [None, None]
    assert all(a.error for a in answers)


def test_predict_gives_the_same_answers_singly_and_in_batches():
    images = list(np.random.default_rng(1).integers(0, 256, (130, 28, 28, 1), np.uint8))
    classifier = make()
    alone = [classifier.predict(image)[0] for image in images]
    for precision, tolerance in (("float32", 1e-5), ("auto", 0.1)):
        together = classifier.predict(images, precision=precision)
        assert [one.label for one in together] == [one.label for one in alone]
        for one, among in zip(alone, together, strict=True):
            assert among.confidence == pytest.approx(one.confidence, abs=tolerance)


def test_saving_twice_replaces_and_leaves_no_temporary_files(tmp_path):
    make().save(tmp_path / "b")
    make(classes=("x", "y")).save(tmp_path / "b")
    assert Classifier.load(tmp_path / "b").classes == ("x", "y")
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_card_can_be_replaced(bundle):
    write_bundle_card(bundle, "# Better words\n")
    Classifier.load(bundle)
    assert (bundle / "README.md").read_text() == "# Better words\n"


def test_a_newer_format_is_refused(bundle):
    rewrite(bundle, format=BUNDLE_FORMAT + 1)
    with pytest.raises(BundleError, match=r"format 2, newer than this release reads \(1\).*[Uu]pgrade"):
        Classifier.load(bundle)


def test_missing_tensors_are_named(bundle):
    tensors = load_file(bundle / "model.safetensors")
    gone = sorted(name for name in tensors if name.startswith("network."))[0]
    save_file({n: t for n, t in tensors.items() if n != gone}, bundle / "model.safetensors")
    resign(bundle)
    with pytest.raises(BundleError, match=f"lacks tensors: {gone}"):
        Classifier.load(bundle)


def test_extra_tensors_are_named(bundle):
    save_file(load_file(bundle / "model.safetensors") | {"spy": torch.ones(1)}, bundle / "model.safetensors")
    resign(bundle)
    with pytest.raises(BundleError, match="does not have: spy"):
        Classifier.load(bundle)


def test_tensors_of_another_shape_are_named(bundle):
    tensors = load_file(bundle / "model.safetensors")
    name = max(tensors, key=lambda n: tensors[n].numel())
    save_file(tensors | {name: tensors[name][:1].clone()}, bundle / "model.safetensors")
    resign(bundle)
    with pytest.raises(BundleError, match=f"another shape: {name}"):
        Classifier.load(bundle)


def test_a_wrong_checksum_is_named(bundle):
    with (bundle / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)[0]
        stream.seek(-1, 2)
        stream.write(bytes([last ^ 1]))
    with pytest.raises(BundleError, match=r"'model\.safetensors'.*wrong checksum"):
        Classifier.load(bundle)


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("name", ["extra.pkl", "model.bin", "model.safetensors"])
def test_a_pickle_is_refused_and_never_run(bundle, tmp_path, name):
    (bundle / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(BundleError):
        Classifier.load(bundle)
    resign(bundle)
    if name == "model.safetensors":
        with pytest.raises(BundleError, match="not a safetensors file"):
            Classifier.load(bundle)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_file_is_named(bundle):
    (bundle / "README.md").unlink()
    with pytest.raises(BundleError, match=r"lacks its file 'README\.md'"):
        Classifier.load(bundle)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "soon"}', '{"format": 1}', '{"format": 1, "files": 3}']
)
def test_a_damaged_config_is_one_sentence(bundle, text):
    (bundle / "config.json").write_text(text)
    with pytest.raises(BundleError, match=r"config\.json"):
        Classifier.load(bundle)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", {"name": "resnet21", "arguments": {}, "surgery": []}),
        ("architecture", {"name": "lenet5"}),
        ("preprocessing", [{"step": "evil"}]),
        ("geometry", {"size": [28, 28], "colour": 1}),
        ("temperature", "warm"),
    ],
)
def test_unknown_names_in_a_config_are_one_sentence(bundle, field, value):
    rewrite(bundle, **{field: value})
    with pytest.raises(BundleError, match=r"config\.json of .* cannot be understood"):
        Classifier.load(bundle)


def test_a_missing_bundle_is_named(tmp_path):
    with pytest.raises(BundleError, match="no run or bundle"):
        Classifier.load(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"no config\.json"):
        Classifier.load(tmp_path)


def test_an_unwritable_path_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        make().save(tmp_path / "file" / "bundle")


def test_a_failed_save_leaves_the_old_bundle(bundle, tmp_path):
    classifier = make(classes=("x", "y"))
    classifier.provenance["bad"] = object()  # not JSON: fails after the tensors are written
    with pytest.raises(TypeError):
        classifier.save(bundle)
    assert Classifier.load(bundle).classes == ("cat", "dog", "émeu")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_run_without_a_classifier_says_how_to_get_one(tmp_path):
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(BundleError, match="--resume"):
        Classifier.load(tmp_path)


def test_a_copied_bundle_still_loads(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "elsewhere")
    pixels = torch.rand(2, 1, 28, 28)
    assert torch.equal(Classifier.load(tmp_path / "elsewhere")(pixels), Classifier.load(bundle)(pixels))


# Memory, folders and links.


HASH = "0123456789abcdef" * 4


def remembering(classes: tuple[str, ...] = ("cat", "dog", "émeu")) -> Classifier:
    classifier = make(classes=classes)
    weights = {name: torch.rand_like(p) for name, p in classifier.network.named_parameters()}
    means = {"means": torch.rand(len(classes), 84), "counts": torch.arange(len(classes))}
    classifier.memory = Memory(means, weights, dict.fromkeys(classes, (HASH, HASH[::-1])))
    return classifier


@pytest.mark.parametrize("classes", [("no", "yes"), ("cat", "dog", "émeu")])
def test_a_memory_is_saved_with_checksums_and_loaded_again(tmp_path, classes):
    classifier = remembering(classes)
    bundle = classifier.save(tmp_path / "b")
    again = Classifier.load(bundle).memory
    assert again.statistics.keys() == {"means", "counts"}
    assert all(torch.equal(again.statistics[n], t) for n, t in classifier.memory.statistics.items())
    assert all(torch.equal(again.fisher[n], t) for n, t in classifier.memory.fisher.items())
    assert again.exemplars == dict.fromkeys(classes, (HASH, HASH[::-1]))
    listed = json.loads((bundle / "config.json").read_text())["files"]
    names = sorted(p.name for p in (bundle / "memory").iterdir())
    assert names == ["exemplars.json", "fisher.safetensors", "statistics.safetensors"]
    assert all(listed[f"memory/{name}"] == checksum(bundle / "memory" / name) for name in names)


def test_without_a_memory_there_is_no_folder(bundle):
    assert not (bundle / "memory").exists()
    assert not Classifier.load(bundle).memory


def test_a_memory_survives_an_amended_threshold_and_a_new_card(tmp_path):
    bundle = remembering().save(tmp_path / "b")
    amend_bundle(bundle, threshold=0.5)
    write_bundle_card(bundle, "# Words\n")
    assert Classifier.load(bundle).memory.exemplars


def test_surgery_leaves_the_memory_behind():
    classifier = remembering()
    assert not classifier.with_network(classifier.network, "mirrored", {}).memory


@pytest.mark.parametrize("name", ["fisher.safetensors", "exemplars.json"])
def test_a_changed_memory_is_named(tmp_path, name):
    bundle = remembering().save(tmp_path / "b")
    file = bundle / "memory" / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(BundleError, match=rf"'memory/{name}'.*wrong checksum"):
        Classifier.load(bundle)
    file.unlink()
    with pytest.raises(BundleError, match=rf"lacks its file 'memory/{name}'"):
        Classifier.load(bundle)


def test_a_memory_never_holds_images_even_where_they_are_listed(tmp_path):
    bundle = remembering().save(tmp_path / "b")
    (bundle / "memory" / "person.png").write_bytes(b"pixels")
    listed = json.loads((bundle / "config.json").read_text())["files"]
    rewrite(bundle, files=listed | {"memory/person.png": checksum(bundle / "memory" / "person.png")})
    with pytest.raises(BundleError, match=r"'memory/person\.png', which is no part of a memory.*never images"):
        Classifier.load(bundle)


@pytest.mark.parametrize(
    "text", ["[]", '{"cat": "abc"}', '{"cat": ["abc"]}', '{"cat": 3}', "{", f'{{"cat": ["{HASH.upper()}"]}}']
)
def test_an_invalid_memory_is_one_sentence(tmp_path, text):
    bundle = remembering().save(tmp_path / "b")
    (bundle / "memory" / "exemplars.json").write_text(text)
    listed = json.loads((bundle / "config.json").read_text())["files"]
    rewrite(bundle, files=listed | {"memory/exemplars.json": checksum(bundle / "memory" / "exemplars.json")})
    with pytest.raises(BundleError, match="memory"):
        Classifier.load(bundle)


def test_a_memory_checks_its_values():
    with pytest.raises(ValueError, match="fisher 'w' is not a tensor of finite numbers"):
        Memory(fisher={"w": torch.tensor([1.0, float("nan")])})
    with pytest.raises(ValueError, match="not SHA-256 hashes"):
        Memory(exemplars={"cat": ["photo.png"]})


@pytest.mark.parametrize("name", ["extra", "memory", "Memory"])
def test_an_unlisted_folder_is_refused(bundle, name):
    (bundle / name).mkdir()
    (bundle / name / "fisher.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match=f"holds '{name}"):
        Classifier.load(bundle)


def test_a_folder_inside_the_memory_is_refused(tmp_path):
    bundle = remembering().save(tmp_path / "b")
    (bundle / "memory" / "fisher.safetensors").unlink()
    (bundle / "memory" / "fisher.safetensors").mkdir()
    with pytest.raises(BundleError, match="which is a folder"):
        Classifier.load(bundle)


@pytest.mark.parametrize("place", ["model.safetensors", "extra", "memory", "memory/fisher.safetensors"])
def test_a_link_is_refused_wherever_it_leads(tmp_path, place):
    bundle = remembering().save(tmp_path / "b")
    path = bundle / place
    if path.exists():
        shutil.move(path, tmp_path / "elsewhere")
    else:
        (tmp_path / "elsewhere").write_text("secret")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"holds '{place}', which is a link"):
        Classifier.load(bundle)


def test_a_pipe_is_refused_and_not_waited_for(bundle):
    os.mkfifo(bundle / "extra")
    with pytest.raises(BundleError, match="which is a device or pipe"):
        Classifier.load(bundle)


# Frozen for an examination.


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("weight_noise", [False, True])
def test_frozen_eval_restores_every_module(raises, weight_noise):
    classifier = make()
    classifier.network = SURGERY["noise"](classifier.network)
    classifier.train()
    classifier.network.features.eval()
    next(classifier.parameters()).requires_grad_(False)
    modes = {name: module.training for name, module in classifier.named_modules()}
    learning = {name: p.requires_grad for name, p in classifier.named_parameters()}
    with contextlib.suppress(KeyError), torch.no_grad(), frozen_eval(classifier, weight_noise=weight_noise):
        assert not any(module.training for module in classifier.modules())
        assert not any(p.requires_grad for p in classifier.parameters())
        assert classifier.stochastic is weight_noise
        pixels = torch.rand(2, 1, 28, 28, requires_grad=True)
        classifier(pixels).sum().backward()
        assert pixels.grad is not None
        if raises:
            raise KeyError
    assert {name: module.training for name, module in classifier.named_modules()} == modes
    assert {name: p.requires_grad for name, p in classifier.named_parameters()} == learning


def test_a_stochastic_module_makes_the_classifier_stochastic():
    assert not make().stochastic
    noisy = make()
    noisy.preprocessing = Preprocessing([NoiseFilter(0.1)])
    assert noisy.stochastic


# What strangers, and operating systems, put into a bundle.


@pytest.mark.parametrize(
    "name", [".DS_Store", "._config.json", "desktop.ini", "Thumbs.db", ".gitattributes", ".nfs01"]
)
def test_what_systems_leave_behind_is_passed_over_and_never_copied(bundle, tmp_path, name):
    (bundle / name).write_text("x")
    assert Classifier.load(bundle).classes == make().classes
    assert not (amend_bundle(bundle, threshold=0.5) / name).exists()


def test_a_hidden_folder_or_link_is_passed_over_and_never_copied(bundle, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (bundle / ".cache").mkdir()
    (bundle / ".cache" / "notes").symlink_to(tmp_path / "secret")
    (bundle / ".notes").symlink_to(tmp_path / "secret")
    copy_bundle(bundle, tmp_path / "copy")
    assert not [path for path in (tmp_path / "copy").rglob("*") if path.name.startswith(".")]
    assert Classifier.load(tmp_path / "copy").threshold == 0


@pytest.mark.parametrize("place", ["config.json", "README.md", "notes.txt"])
def test_a_link_is_not_followed_by_a_copy(bundle, tmp_path, place):
    (tmp_path / "elsewhere").write_text("secret")
    (bundle / place).unlink(missing_ok=True)
    (bundle / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"holds '{place}', which is a link"):
        copy_bundle(bundle, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("value", [0, -1, 1e-320, 1e300, 10**400, float("nan"), float("inf"), True, None])
def test_a_temperature_that_gives_no_probabilities_is_refused(bundle, value):
    rewrite(bundle, temperature=value)
    with pytest.raises(BundleError, match=r"config\.json"):
        Classifier.load(bundle)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "x", None])
def test_an_impossible_threshold_is_refused(bundle, value):
    rewrite(bundle, threshold=value)
    with pytest.raises(BundleError, match=r"config\.json"):
        Classifier.load(bundle)


@pytest.mark.parametrize(
    ("end", "value"), [("weight", float("nan")), ("bias", float("inf")), ("running_var", -1.0)]
)
def test_tensors_that_would_answer_nan_are_named(tmp_path, end, value):
    bundle = make("resnet20").save(tmp_path / "b")
    tensors = load_file(bundle / "model.safetensors")
    name = next(name for name in tensors if name.endswith(end))
    tensors[name].view(-1)[0] = value
    save_file(tensors, bundle / "model.safetensors")
    resign(bundle)
    with pytest.raises(BundleError, match=f"impossible values in '{name}'"):
        Classifier.load(bundle)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("mlp", {"hidden": [2_000_000, 2_000_000]}),
        ("lenet5", {"classes": 2_000_000_000}),
        ("lenet5", {"size": [400_000, 400_000]}),
        ("densenet", {"depth": 600_000_004}),
    ],
)
def test_a_network_far_larger_than_its_tensors_is_never_built(bundle, name, more):
    """Of these, each would take the memory of the machine, or for ever."""
    arguments = {"classes": 3, "channels": 1, "size": [28, 28], **more}
    rewrite(bundle, architecture={"name": name, "arguments": arguments, "surgery": []})
    with pytest.raises(BundleError):
        Classifier.load(bundle)


@pytest.mark.parametrize("name", ["config.json", "answers.json"])
def test_deep_json_is_one_sentence(bundle, name):
    (bundle / name).write_text("[" * 200_000)
    if name != "config.json":
        resign(bundle)
    with pytest.raises(BundleError, match=r"config\.json"):
        Classifier.load(bundle)
