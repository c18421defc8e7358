"""Explain a run from files: images, its own test answers, a change of the answer, what a class or unit responds to.

Each verb draws a picture, returns its results JSON-ready, and saves both in the run's folder ``explanations``.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray

from .. import progress, runtime
from ..classifier import Classifier
from ..data import to_tensor
from ..errors import ChoiceError, DataError, GradientError
from ..pictures import data_url
from ..training import Run
from ..types import Remark
from .base import Explainer
from .counterfactual import Gallery, find_counterfactuals
from .explanation import Explanation, explain_with, format_probability, predict_calibrated
from .feature_visualisation import visualise_features
from .figures import Panel, Strip, draw_signed_map, draw_strips, enlarge_image, overlay_heat
from .run_files import ExplainedRun, class_index, decode_files, remarks_json

if TYPE_CHECKING:
    from PIL.Image import Image

VISUALISATION_STEPS = 200
"""Optimisation steps of a feature visualisation."""

THUMBNAIL_SIDE = 112
"""Side of the pictures in ``answers.json``, in pixels."""

MAX_SEARCHED_ANSWERS = 2000
"""Test images among which the answers to explain are chosen, at most."""

HEAT_LEGEND = "Heat: evidence for the class, full at its strongest."
SIGNED_LEGEND = "Signed: orange speaks for it, blue against it."


def explain_files(
    run: Path,
    words: Sequence[str],
    choose_methods: Callable[[Classifier, Sequence[int]], Mapping[str, Explainer]],
    *,
    target: str | None = None,
    out: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Explain the answers to image files by the explainers chosen for the classifier and (C, H, W), by name.

    The other arguments, and the errors, are those of ``explain_run``.
    """
    subject = ExplainedRun.open(run, device=device)
    classifier = subject.classifier
    where = subject.picture_path(out, "explain.png")
    seen = decode_files(words, classifier.geometry)
    images = to_tensor(seen.pixels, classifier.device)
    targets = None if target is None else torch.full((len(images),), class_index(classifier, target))
    methods = choose_methods(classifier, images.shape[1:])
    near = subject.gallery()
    found, remarks = [], [*subject.remarks, *seen.remarks]
    with progress.progress_bar("explaining", len(methods)) as advance:
        for name, method in methods.items():
            try:
                found.append(explain_with(classifier, images, method, name=name, targets=targets, gallery=near))
            except (ChoiceError, GradientError) as error:
                if len(methods) == 1:
                    raise
                remarks.append(Remark("note", f"{name} is left out. {error}"))
            advance(note=name)
    remarks += [remark for one in found for remark in one.remarks]
    tables = {one.by: one.as_json() for one in found}
    own = ("share", "place", "inside", "sentence", "faithfulness")
    rows = []
    for i, file in enumerate(seen.files):
        shared = {name: value for name, value in tables[found[0].by][i].items() if name not in (*own, "by")}
        each = {name: {key: table[i][key] for key in own} for name, table in tables.items()}
        rows.append({"file": file, **shared, "by": each})
    value = {
        "run": str(run),
        "picture": str(where),
        "methods": [one.by for one in found],
        "images": rows,
        "faithfulness": {one.by: one.faithfulness.as_json() for one in found if one.faithfulness},
        "remarks": remarks_json(remarks),
    }
    subject.save(draw_explanations(seen.pixels, seen.files, found, near), where, "explain.json", value)
    return value


def draw_explanations(
    pixels: UInt8[ndarray, "N H W C"],
    names: Sequence[str],
    found: Sequence[Explanation],
    near: Gallery | None = None,
) -> "Image":
    """A strip per image with its heat by each method; for a single one also the signed map and nearest images."""
    strips, single = [], found[0] if len(found) == 1 else None
    heats = [one.heat.cpu().numpy() for one in found]
    maps = [one.evidence.cpu().numpy() for one in found]
    for i, (image, name) in enumerate(zip(pixels, names, strict=True)):
        facts = found[0].facts[i]
        answer = f"{facts.answer} {format_probability(facts.confidence)}"
        panels = [Panel(enlarge_image(image), Path(name).name, answer)]
        for one, heat in zip(found, heats, strict=True):
            areas = ""
            if one.faithfulness is not None:
                curves = one.faithfulness.curves
                areas = f"deletion {curves.deletion_area[i]:.2f}, insertion {curves.insertion_area[i]:.2f}"
            panels.append(Panel(overlay_heat(image, heat[i]), one.by, areas))
        if single is not None and single.explainer.signed:
            panels.append(Panel(draw_signed_map(maps[0][i]), "signed", f"for and against {facts.target}"))
        if single is not None and near is not None:
            for row in facts.neighbours[:3]:
                own = near.dataset[[row["index"]]][0]
                panels.append(
                    Panel(enlarge_image(own), f"near: {row['label']}", f"distance {row['distance']:.3g}")
                )
        strips.append(Strip(tuple(panels), found[0].sentences[i]))
    signed = single is not None and single.explainer.signed
    return draw_strips(strips, legend=f"{HEAT_LEGEND} {SIGNED_LEGEND}" if signed else HEAT_LEGEND)


def counterfactual_run(
    run: Path, words: Sequence[str], target: str, *, out: Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Draw what would make each image a ``target``: a small smooth change, and the nearest real image of that class.

    Arguments, files and errors as for ``explain_run``.
    """
    subject = ExplainedRun.open(run, device=device)
    classifier, where = subject.classifier, subject.picture_path(out, "counterfactual.png")
    number = class_index(classifier, target)
    seen = decode_files(words, classifier.geometry)
    images = to_tensor(seen.pixels, classifier.device)
    near = subject.gallery()
    found = find_counterfactuals(
        classifier, images, torch.full((len(images),), number, device=images.device), near
    )
    confidence, answers = predict_calibrated(classifier, images).max(1)
    changed = (found.images.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    strips, rows = [], []
    for i, (file, image) in enumerate(zip(seen.files, seen.pixels, strict=True)):
        answer = classifier.classes[answers[i]]
        probability, before, after = (float(each[i]) for each in (found.probabilities, found.before, found.after))
        reached, share = bool(found.reached[i]), format_probability(probability)
        if answer == target:
            said = f"The answer is '{target}' already; this change makes it {share}"
        elif reached:
            said = f"This change, of length {found.change[i]:.3g}, turns '{answer}' into '{target}' ({share})"
        else:
            said = f"No small smooth change was found that makes it '{target}': the best has {share}"
        known = bool(np.isfinite(before) and np.isfinite(after))
        if known:
            said += (
                f". Its feature distance to training images of '{target}' is now {after:.3g}, before {before:.3g}"
            )
        real = None
        panels = [
            Panel(enlarge_image(image), Path(file).name, f"{answer} {format_probability(float(confidence[i]))}"),
            Panel(enlarge_image(changed[i]), "changed", f"{target} {share}"),
            Panel(
                draw_signed_map((found.images[i] - images[i]).mean(0).cpu().numpy()),
                "the change",
                "orange brighter, blue darker",
            ),
        ]
        if near is not None and found.nearest[i] >= 0:
            real = str(near.dataset.files[found.nearest[i]])
            said += f"; the nearest real '{target}' is {real}"
            panels.append(Panel(enlarge_image(near.dataset[[found.nearest[i]]][0]), f"nearest real {target}"))
        rows.append(
            {
                "file": file,
                "answer": answer,
                "target": target,
                "probability": probability,
                "reached": reached,
                "change": float(found.change[i]),
                "distance_before": before if known else None,
                "distance_after": after if known else None,
                "nearest": real,
                "sentence": f"{said}.",
            }
        )
        strips.append(Strip(tuple(panels), f"{said}."))
    remarks = remarks_json((*subject.remarks, *seen.remarks))
    value = {"run": str(run), "picture": str(where), "target": target, "images": rows, "remarks": remarks}
    subject.save(draw_strips(strips), where, "counterfactual.json", value)
    return value


def visualise_run(
    run: Path, wanted: str, *, layer: str | None = None, out: Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Draw what a class responds to, or ``all`` classes, or units of a ``layer`` (numbers separated by commas).

    Files and errors as for ``explain_run``.
    """
    subject = ExplainedRun.open(run, device=device)
    classifier, where = subject.classifier, subject.picture_path(out, "visualise.png")
    if layer is not None:
        names = [word.strip() for word in wanted.split(",")]
        if not all(unit.isdigit() for unit in names):
            raise ChoiceError(f"The units of a layer are numbers from 0, such as 3 or 0,1,2, not '{wanted}'.")
    elif wanted == "all" and "all" not in classifier.classes:
        names = list(classifier.classes)
    else:
        names = [wanted]
    numbers = [int(name) if layer else class_index(classifier, name) for name in names]
    targets = torch.tensor(numbers, device=classifier.device)
    found = visualise_features(classifier, targets, layer=layer, steps=VISUALISATION_STEPS)
    pixels = (found.images.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    panels, rows = [], []
    for image, name, low, high in zip(pixels, names, found.before.tolist(), found.after.tolist(), strict=True):
        panels.append(
            Panel(enlarge_image(image), f"unit {name}" if layer else name, f"from {low:.3g} to {high:.3g}")
        )
        rows.append({"layer": layer, "wanted": name, "before": low, "after": high})
    of = f"the units of {layer}" if layer else "the logit"
    legend = f"Below each image: {of}, for noise and for this image."
    value = {"run": str(run), "picture": str(where), "images": rows, "remarks": remarks_json(subject.remarks)}
    subject.save(draw_strips([Strip(tuple(panels))], legend=legend), where, "visualise.json", value)
    return value


def explain_test_answers(run: Run, explainer: Explainer, name: str, *, right: int, wrong: int) -> dict[str, Any]:
    """Explain answers to the run's own test images by one explainer; see ``explain_answers_run``."""
    test = run.splits.test
    if not len(test):
        raise DataError(f"The run '{run.folder}' has no test images to explain.")
    subject = ExplainedRun(run.folder, run.classifier, run)
    chosen = _choose_answers(run, right, wrong)
    pixels = test[chosen]
    images = to_tensor(pixels, run.classifier.device)
    labels = [test.classes[k] for k in test.labels[chosen]]
    near = subject.gallery()
    found = explain_with(run.classifier, images, explainer, name=name, labels=labels, gallery=near)
    files = [str(file) for file in test.files[chosen]]
    heats = found.heat.cpu().numpy()
    rows = [
        {
            "file": file,
            **row,
            "image": data_url(enlarge_image(image, THUMBNAIL_SIDE)),
            "heat": data_url(overlay_heat(image, heat, THUMBNAIL_SIDE)),
        }
        for file, row, image, heat in zip(files, found.as_json(), pixels, heats, strict=True)
    ]
    value = {
        "by": found.by,
        "images": rows,
        "faithfulness": found.faithfulness.as_json() if found.faithfulness else None,
        "remarks": remarks_json(found.remarks),
    }
    picture = draw_explanations(pixels, files, [found], near)
    subject.save(picture, subject.picture_path(None, "answers.png"), "answers.json", value)
    return value


def _choose_answers(run: Run, right: int, wrong: int) -> list[int]:
    """Positions of test images: the most confident mistakes, then random correct answers."""
    test = run.splits.test
    some = np.sort(runtime.permutation(len(test), 0)[:MAX_SEARCHED_ANSWERS])
    parts = [
        predict_calibrated(run.classifier, to_tensor(test[some[start : start + 256]], run.classifier.device))
        for start in range(0, len(some), 256)
    ]
    confidence, index = (each.cpu().numpy() for each in torch.cat(parts).max(1))
    names = np.asarray(run.classifier.classes)[index]
    truth = np.asarray(test.classes)[test.labels[some]]
    mistakes = np.flatnonzero(names != truth)
    surest = mistakes[np.argsort(-confidence[mistakes], kind="stable")][:wrong]
    hits = np.flatnonzero(names == truth)
    drawn = hits[runtime.permutation(len(hits), 1)[:right]]
    return [int(i) for i in some[np.concatenate([surest, drawn])]]
