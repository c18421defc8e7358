"""Pictures hold what they were given: pixels are checked, not only that something was drawn."""

import base64
import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from sightline import metrics, pictures
from sightline.pictures import fonts
from sightline.pictures import plots as diagrams
from sightline.tuning import NumericRange, leaderboard
from sightline.tuning.space import SearchSpace


def rgb(name):
    return tuple(int(pictures.PALETTE[name][i : i + 2], 16) for i in (1, 3, 5))


def colours(image):
    """Share of the image's pixels by colour."""
    found = image.getcolors(image.width * image.height)
    return {colour: count / (image.width * image.height) for count, colour in found}


def history(epochs):
    return [
        {
            "epoch": str(e + 1),
            "lr": "0.1",
            "train_loss": str(1 / (e + 1)),
            "val_loss": str(1.2 / (e + 1)),
            "val_accuracy": str(1 - 0.5 / (e + 1)),
        }
        for e in range(epochs)
    ]


def test_small_images_are_enlarged_by_whole_factors():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    sheet = np.asarray(pictures.contact_sheet([image], ["a"], cell=112))
    tile = sheet[10 : 10 + 112, 10 : 10 + 112]
    np.testing.assert_array_equal(tile[7::14, 7::14], image)
    np.testing.assert_array_equal(tile, image.repeat(14, 0).repeat(14, 1))


def test_large_images_are_shrunk_into_their_cell_and_keep_their_aspect():
    image = np.zeros((100, 400, 1), dtype=np.uint8)
    sheet = np.asarray(pictures.contact_sheet([image], [""], cell=100))
    black = (sheet == 0).all(-1)
    assert black.any(1).sum() == 25
    assert black.any(0).sum() == 100


@pytest.mark.parametrize(("count", "columns", "across", "down"), [(1, 8, 1, 1), (8, 8, 8, 1), (9, 4, 4, 3)])
def test_the_sheet_has_as_many_rows_as_needed(count, columns, across, down):
    images = [np.full((10, 10, 1), 128, np.uint8)] * count
    sheet = pictures.contact_sheet(images, ["x"] * count, columns=columns, cell=50)
    assert sheet.size == (across * 60 + 10, down * 80 + 10)


def test_an_empty_sheet_is_still_a_picture():
    assert pictures.contact_sheet([], []).size[0] > 0


def test_notes_are_a_second_line_in_orange():
    image = np.zeros((16, 16, 1), np.uint8)
    plain = pictures.contact_sheet([image], ["seven"])
    noted = pictures.contact_sheet([image], ["seven"], notes=["93% nine"])
    assert noted.height == plain.height + 17
    np.testing.assert_array_equal(np.asarray(noted)[: plain.height - 10], np.asarray(plain)[:-10])
    assert rgb("orange") not in colours(plain)
    below = noted.crop((0, plain.height - 10, noted.width, noted.height))
    assert rgb("orange") in colours(below)


@pytest.mark.parametrize("caption", ["a very long caption that never fits", "line\nbreak", "", "$x$", "猫 кот"])
def test_any_caption_stays_under_its_image(caption):
    image = np.full((16, 16, 1), 255, np.uint8)
    sheet = np.asarray(pictures.contact_sheet([image] * 3, [caption] * 3, cell=64).convert("L"))
    for start in (0, 74, 148, 222):
        assert (sheet[:, start + 1 : start + 8] == 255).all()


def test_captions_must_match_the_images():
    with pytest.raises(ValueError, match="one caption"):
        pictures.contact_sheet([np.zeros((4, 4, 1), np.uint8)], [])
    with pytest.raises(ValueError, match="one note"):
        pictures.contact_sheet([np.zeros((4, 4, 1), np.uint8)], ["a"], notes=[])


@pytest.mark.parametrize("shape", [(8, 8, 1), (500, 250, 3)])
def test_a_thumbnail_only_shrinks(shape):
    small = pictures.thumbnail(np.zeros(shape, np.uint8), most=128)
    assert small.size == ((8, 8) if shape[0] == 8 else (64, 128))


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves_show_training_and_validation(epochs):
    drawn = colours(pictures.plot_history(history(epochs)))
    assert {rgb("blue"), rgb("orange"), rgb("faint")} <= drawn.keys()


def test_curves_take_numbers_gaps_and_no_rows():
    rows = [{"epoch": 1, "val_accuracy": 0.0, "val_loss": 2.0}, {"epoch": 2, "train_loss": ""}]
    assert rgb("orange") in colours(pictures.plot_history(rows))
    assert rgb("blue") not in colours(pictures.plot_history(rows))
    pictures.plot_history([])


def test_the_history_marks_the_best_epoch_and_the_loss_decides_a_tie(monkeypatch):
    monkeypatch.setattr(diagrams, "render_figure", lambda figure: figure)
    rows = [{"epoch": e, "val_accuracy": 0.9, "val_loss": loss} for e, loss in ((1, 0.5), (2, 0.3), (3, 0.4))]
    figure = pictures.plot_history(rows)
    assert figure.axes[1].lines[-1].get_xydata().tolist() == [[2, 0.9]]


@pytest.mark.parametrize("k", [2, 10, 60])
def test_confusion_is_dark_on_the_diagonal_of_a_perfect_classifier(k):
    names = [f"class ${i}$" for i in range(k)]
    perfect = colours(pictures.plot_confusion_matrix(np.eye(k, dtype=np.int64) * 7, names))
    nothing = colours(pictures.plot_confusion_matrix(np.zeros((k, k), dtype=np.int64), names))
    deepest = (0, 57, 92)
    assert perfect[deepest] == pytest.approx(1 / k, rel=0.7)
    assert nothing.get(deepest, 0) == 0


def test_reliability_draws_a_bar_where_images_are():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.7, 0.3]])
    columns = metrics.reliability(labels, probabilities).as_json()
    some = colours(pictures.plot_reliability(**columns))
    none = colours(pictures.plot_reliability(**columns | {"counts": [0] * 15}))
    assert some[rgb("blue")] > none.get(rgb("blue"), 0)


def ranks(k, separation):
    rng = np.random.default_rng(0)
    labels = rng.integers(k, size=400)
    weights = np.exp(rng.normal(size=(400, k)) + separation * np.eye(k)[labels])
    return metrics.one_vs_rest(labels, weights / weights.sum(1, keepdims=True))


def saved(found):
    rows = zip("abcdefgh", found.aucs, found.curves, strict=False)
    rows = [{"class": f"${name}$", "auc": area.value, **curve.as_json()} for name, area, curve in rows]
    return {"auc": found.macro_auc.value, **found.macro_curve.as_json()}, sorted(rows, key=lambda row: row["auc"])


@pytest.mark.parametrize(("k", "separation", "panels"), [(2, 1.0, 1), (5, 1.0, 1), (5, 6.0, 2), (8, 30.0, 2)])
def test_roc_draws_the_mean_the_worst_and_the_corner_that_matters(k, separation, panels):
    drawn = pictures.plot_roc(*saved(ranks(k, separation)))
    assert (drawn.width > 1.5 * drawn.height) == (panels == 2)
    assert rgb("blue") in colours(drawn)
    assert (rgb("orange") in colours(drawn)) == (k > 2)


@pytest.mark.parametrize(("turn", "side"), [(0.0, 0.02), (0.03, 0.1), (0.15, 0.4), (0.3, None)])
def test_the_corner_holds_the_turn_of_the_curve(turn, side):
    assert diagrams._zoom_corner({"fpr": [0, turn, 1], "tpr": [0, 1 - turn, 1]}) == side


def interval_json(value, low, high):
    return {"value": value, "low": low, "high": high, "n": 100}


def test_a_learning_curve_shows_each_seed_of_several():
    rows = [
        {
            "images": n,
            "accuracy": a,
            "intervals": {"accuracy": interval_json(a, a - 0.1, a + 0.05)},
            "seeds": [a - 0.08, a + 0.04],
        }
        for n, a in ((100, 0.5), (1000, 0.8))
    ]
    one = [row | {"seeds": [row["accuracy"]]} for row in rows]
    several, single = (np.asarray(pictures.plot_learning_curve(sizes)) for sizes in (rows, one))
    assert (several != single).any()
    assert rgb("blue") in colours(pictures.plot_learning_curve(one))


def apart(texts, figure):
    """Whether texts that are drawn stand beside or under each other."""
    boxes = [one.get_window_extent(figure.canvas.get_renderer()) for one in texts if one.get_text()]
    return not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_candidates_of_equal_accuracy_are_all_labelled(monkeypatch):
    monkeypatch.setattr(diagrams, "render_figure", lambda figure: figure)
    names = ("knn@hog", "naive-bayes@hog", "logistic-regression@hog", "mlp")
    rows = [
        {
            "entrant": name,
            "kind": kind,
            "intervals": {"accuracy": interval_json(0.5, 0.4, 0.6)},
            "ms_per_image": 10.0,
        }
        for name, kind in zip(names, ("baseline", "baseline", "baseline", "network"), strict=True)
    ]
    figure = pictures.plot_candidates(rows)
    FigureCanvasAgg(figure).draw()
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == list(names)
    assert apart([*panel.get_yticklabels(), *panel.texts], figure)


@pytest.mark.parametrize("ends", [(1e-3, 0.1), (0.01, 0.1), (0.6, 0.9), (1e-8, 1.0), (16, 256)], ids=str)
def test_the_numbers_under_a_searched_range_can_be_read(ends, monkeypatch):
    monkeypatch.setattr(leaderboard, "render_figure", lambda figure: figure)
    space = SearchSpace({name: NumericRange(*ends, log=True) for name in ("one", "two", "three")})
    row = {"trial": 0, "state": "finished", "val_accuracy": 0.5, **dict.fromkeys(space.ranges, ends[0])}
    figure = leaderboard.slices_picture([row], space)
    FigureCanvasAgg(figure).draw()
    for panel in figure.axes:
        low, high = panel.get_xlim()
        labels = zip(panel.get_xticks(), panel.get_xticklabels(), strict=True)
        shown = [label for place, label in labels if low <= place <= high]
        assert len(shown) >= 2
        assert apart([*shown, *panel.get_xticklabels(minor=True)], figure)


def test_a_data_url_is_the_png_it_came_from():
    image = pictures.contact_sheet([np.full((4, 4, 1), 9, np.uint8)], ["x"])
    head, _, body = pictures.data_url(image).partition(",")
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(body)))), np.asarray(image))
    assert pictures.data_url(pictures.encode_png(image)) == pictures.data_url(image)


def test_drawing_restores_matplotlibs_settings():
    import matplotlib

    before = dict(matplotlib.rcParams)
    pictures.plot_history(history(3))
    assert dict(matplotlib.rcParams) == before


def test_importing_pictures_is_light():
    code = "import sys, sightline.pictures; print([m for m in ('torch', 'matplotlib', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def sheet(caption):
    return np.asarray(pictures.contact_sheet([np.full((32, 32, 3), 128, np.uint8)], [caption]).convert("L"))


@pytest.fixture
def only_fonts(monkeypatch):
    """Choose the fonts that the system has."""

    def choose(*names):
        folder = fonts._default_font().parent
        for each in (fonts._find_font, fonts.load_font, fonts._system_fonts):
            each.cache_clear()
        monkeypatch.setattr(fonts, "_absent", set())
        monkeypatch.setattr(fonts, "_system_fonts", lambda: [folder / name for name in names])

    yield choose
    for each in (fonts._find_font, fonts.load_font):
        each.cache_clear()


@pytest.mark.parametrize(("one", "other"), [("\u732b", "\u72ac"), ("\u0915", "\u0916"), ("\uac1c", "\uace0")])
def test_names_without_a_font_are_written_as_codes_and_reported_once(only_fonts, one, other, capsys):
    only_fonts()
    assert not np.array_equal(sheet(one), sheet(other))
    assert pictures.make_legible(f"a {one}") == f"a \\u{ord(one):04x}"
    assert capsys.readouterr().err.count("Install a font") == 1
    counts = [[3, 1], [0, 4]]
    drawn = [np.asarray(pictures.plot_confusion_matrix(counts, ["a", name])) for name in (one, other)]
    assert not np.array_equal(*drawn)


def test_a_font_of_the_system_is_used_where_it_has_the_characters(only_fonts, capsys):
    only_fonts("STIXSizOneSymReg.ttf", "STIXGeneral.ttf")
    assert fonts.load_font(13, "\u24b6").getname()[0] == "STIXGeneral"
    assert fonts.load_font(13, "caf\u00e9 \u03b1").getname()[0] == "DejaVu Sans"
    assert pictures.make_legible("\u24b6") == "\u24b6"
    assert not np.array_equal(sheet("\u24b6"), sheet("\u24b7"))
    drawn = [np.asarray(pictures.plot_confusion_matrix([[3, 1], [0, 4]], ["a", c])) for c in "\u24b6\u24b7"]
    assert not np.array_equal(*drawn)
    assert capsys.readouterr().err == ""
