"""Strategies on the same streams: intervals, what is kept, and the command."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from sightline.cli import main
from sightline.continual import StreamComparison, StreamResult, compare_on_stream, stream_comparison
from sightline.errors import ChoiceError, OutputError, RecipeError
from sightline.pictures import plot_task_accuracy
from sightline.training import Recipe

RECIPE = Recipe(model="mlp:hidden=[16]", epochs=1, limit=300)


def test_intervals_are_paired_by_seed():
    """Students, of scipy: differences vary less than the accuracies, so that their interval is narrower."""
    rng = np.random.default_rng(1)
    base = rng.random((5, 3, 3))

    def results(matrices):
        return [StreamResult("x", one, np.zeros(3), np.ones(3), 8) for one in matrices]

    gain = base + 0.1 + 0.01 * rng.random((5, 1, 1))
    found = StreamComparison("x", {"a": results(base), "b": results(gain)}, "a").rows()
    accuracies = [one[-1].mean() for one in base], [one[-1].mean() for one in gain]
    expected = stats.ttest_rel(accuracies[1], accuracies[0]).confidence_interval(0.95)
    difference = found[1]["difference"]
    assert (difference["low"], difference["high"]) == pytest.approx((expected.low, expected.high))
    alone = stats.ttest_1samp(accuracies[1], 0).confidence_interval(0.95)
    assert found[1]["average_accuracy"]["low"] == pytest.approx(alone.low)
    assert difference["high"] - difference["low"] < (alone.high - alone.low) / 5
    assert found[0]["difference"] is None
    assert found[0]["seconds"] == 3.0
    assert found[0]["memory_bytes"] == 8


def test_all_strategies_learn_the_same_and_nothing_is_measured_twice(tmp_path, monkeypatch):
    seen = []
    real = stream_comparison.run_stream

    def watch(strategy, stream, recipe, **how):
        seen.append((how["name"], recipe.seed, stream.classes))
        return real(strategy, stream, recipe, **how)

    monkeypatch.setattr(stream_comparison, "run_stream", watch)
    how = {"by": ["finetune", "lda"], "recipe": RECIPE, "memory": 50, "out": tmp_path / "out"}
    first = compare_on_stream("digits", "class:5", seeds=2, **how)
    assert [(name, seed) for name, seed, _ in seen] == [("finetune", 0), ("lda", 0), ("finetune", 1), ("lda", 1)]
    assert seen[0][2] == seen[1][2] != seen[2][2] == seen[3][2]
    assert len(first.results["lda"]) == 2
    more = compare_on_stream("digits", "class:5", seeds=3, **how)
    assert [(name, seed) for name, seed, _ in seen[4:]] == [("finetune", 2), ("lda", 2)]
    assert np.allclose(more.results["lda"][0].accuracy, first.results["lda"][0].accuracy, atol=1e-5)
    saved = json.loads((tmp_path / "out" / "stream.json").read_text())
    assert saved["seeds"] == 3
    with Image.open(tmp_path / "out" / "stream.png") as picture:
        assert picture.width > 300
    with pytest.raises(OutputError, match="Choose another --out"):
        compare_on_stream("digits", "class:2", seeds=1, **how)


def test_bad_words_come_before_anything_is_written(tmp_path):
    with pytest.raises(ChoiceError, match="no stream called 'klass'"):
        compare_on_stream("digits", "klass:5", out=tmp_path / "out")
    with pytest.raises(ChoiceError, match=r"no strategy called 'repley'.*replay"):
        compare_on_stream("digits", by=["repley"], out=tmp_path / "out")
    with pytest.raises(RecipeError, match="at least 1"):
        compare_on_stream("digits", seeds=0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path, capsys):
    words = ["compare", "digits", "--stream", "class:2", "--by", "finetune", "--by", "lda", "--seeds", "1"]
    words += ["--limit", "300", "--models", "mlp:hidden=[16]", "--epochs", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--json"]) in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert [row["strategy"] for row in found["strategies"]] == ["finetune", "lda"]
    matrix = found["results"]["lda"][0]["accuracy"]
    assert found["strategies"][1]["average_accuracy"]["value"] == pytest.approx(np.mean(matrix[-1]), abs=1e-4)
    assert main(words) in (0, None)
    assert "minus finetune" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stream", "class:2", "--models", "lenet5,mlp"], "name one network"),
        (["--by", "lda"], "belong to --stream"),
        (["--stream", "class:3"], "cannot be divided into 3 tasks"),
    ],
)
def test_bad_commands(words, message, tmp_path, capsys):
    code = main(["compare", "digits", "--limit", "200", *words, "--out", str(tmp_path / "out")])
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_heat_map_has_a_panel_for_each_strategy():
    matrix = np.linspace(0, 1, 16).reshape(4, 4)
    one, six = (plot_task_accuracy({f"way {k}": matrix for k in range(n)}) for n in (1, 6))
    assert six.width > 3 * one.width
    assert six.height > 1.5 * one.height
