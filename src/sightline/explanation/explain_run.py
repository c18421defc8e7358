"""Explaining from files: images, the run's own test answers, a change of the answer, what a class wants to see.

Each draws a picture, returns what was measured, JSON-ready, and keeps both in the run's folder ``explanations``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch import Tensor

from .. import progress, runtime
from ..classifier import Classifier
from ..data import to_tensor
from ..errors import ChoiceError, DataError, GradientError
from ..pictures import data_url
from ..training import Run
from ..types import Remark
from .cam import check_cam_layer
from .counterfactual import Counterfactuals, find_counterfactuals
from .explanation import EXPLAINERS, Explanation, default_explainer, explain, predict_calibrated
from .feature_visualisation import visualise_features
from .figures import Panel, Strip, draw_signed_map, draw_strips, enlarge_image, overlay_heat
from .neighbours import Gallery
from .subject import (
    ExplanationSubject,
    class_index,
    decode_files,
    open_explanation_subject,
    remarks_json,
    resolve_picture_path,
    save_picture,
    write_result,
)
from .text import format_probability

if TYPE_CHECKING:
    from PIL.Image import Image

VISUALISATION_STEPS = 200
"""Of making an image that a class wants to see."""

THUMBNAIL_SIDE = 112
"""Pixels of the pictures that ``answers.json`` holds."""

HEAT_LEGEND = "Heat: evidence for the class, full at its strongest."
SIGNED_LEGEND = "Signed: orange speaks for it, blue against it."


def explain_run(
    run: Path,
    words: Sequence[str],
    *,
    by: str | None = None,
    target: str | None = None,
    layer: str | None = None,
    out: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Explain the answers for image files by one method or ``all``; draws a sheet and returns what was measured.

    The picture goes to ``out``, or into the run folder, with ``explain.json`` beside it. Raises SightlineError
    subclasses, in a sentence, for a class, layer, method or file that cannot be used.
    """
    subject = open_explanation_subject(run, device=device)
    classifier = subject.classifier
    where = resolve_picture_path(subject, out, "explain.png")
    seen = decode_files(words, classifier.geometry)
    images = to_tensor(seen.pixels, classifier.device)
    targets = None if target is None else torch.full((len(images),), class_index(classifier, target))
    methods = resolve_methods(classifier, images, by, layer)
    near = subject.gallery()
    found, remarks = [], [*subject.remarks, *seen.remarks]
    with progress.progress_bar("explaining", len(methods)) as advance:
        for method in methods:
            try:
                found.append(explain(classifier, images, by=method, targets=targets, gallery=near))
            except (ChoiceError, GradientError) as error:
                if len(methods) == 1:
                    raise
                remarks.append(Remark("note", f"{method} is left out. {error}"))
            advance(note=method)
    remarks += [remark for one in found for remark in one.remarks]
    save_picture(draw_explanations(seen.pixels, seen.files, found, near), where)
    value = {
        "run": str(run),
        "picture": str(where),
        "methods": [one.by for one in found],
        "images": [_image_json(file, i, found) for i, file in enumerate(seen.files)],
        "faithfulness": {one.by: one.faithful.as_json() for one in found if one.faithful},
        "remarks": remarks_json(remarks),
    }
    write_result(subject, "explain.json", value)
    return value


def _image_json(file: str, i: int, found: Sequence[Explanation]) -> dict[str, Any]:
    """One image: what all methods share, then what each of them says."""
    shared = found[0].as_json()[i]
    own = ("by", "share", "place", "inside", "sentence", "faithfulness")
    each = {one.by: {name: one.as_json()[i][name] for name in own if name != "by"} for one in found}
    return {"file": file, **{name: value for name, value in shared.items() if name not in own}, "by": each}


def resolve_methods(classifier: Classifier, images: Tensor, by: str | None, layer: str | None) -> list[str]:
    """The words of the methods meant, with the layer where they take one; raises ChoiceError for a wrong one."""
    if layer is not None:
        if by not in (None, "all", "gradcam", "gradcam++"):
            raise ChoiceError(f"--layer is for gradcam and gradcam++, not for '{by}'.")
        by = by or "gradcam"
        if classifier.differentiable:
            check_cam_layer(classifier, layer, images.shape[1:])
    names = [*EXPLAINERS] if by == "all" else [by or default_explainer(classifier, images.shape[1:])]
    return [f"{name}:layer={layer}" if layer and name in ("gradcam", "gradcam++") else name for name in names]


def draw_explanations(
    pixels: UInt8[ndarray, "N H W C"],
    names: Sequence[str],
    found: Sequence[Explanation],
    near: Gallery | None = None,
) -> "Image":
    """A strip for each image: its heat by each method; of a single one also the signed map and nearest images."""
    strips = []
    heats, maps = ([getter(one).cpu().numpy() for one in found] for getter in (_heat_of, _evidence_of))
    for i, (image, name) in enumerate(zip(pixels, names, strict=True)):
        facts = found[0].facts[i]
        panels = [
            Panel(enlarge_image(image), Path(name).name, f"{facts.answer} {format_probability(facts.confidence)}")
        ]
        for one, warm, plain in zip(found, heats, maps, strict=True):
            panels.append(Panel(overlay_heat(image, warm[i]), one.by, _format_areas(one, i)))
            if len(found) == 1 and one.explainer.signed:
                panels.append(Panel(draw_signed_map(plain[i]), "signed", f"for and against {facts.target}"))
        if len(found) == 1 and near is not None:
            for one in facts.neighbours[:3]:
                own = near.dataset[[one["index"]]][0]
                panels.append(
                    Panel(enlarge_image(own), f"near: {one['label']}", f"distance {one['distance']:.3g}")
                )
        strips.append(Strip(tuple(panels), found[0].sentences[i]))
    single = len(found) == 1 and found[0].explainer.signed
    return draw_strips(strips, legend=f"{HEAT_LEGEND} {SIGNED_LEGEND}" if single else HEAT_LEGEND)


def _heat_of(one: Explanation) -> Tensor:
    return one.heat


def _evidence_of(one: Explanation) -> Tensor:
    return one.evidence


def _format_areas(one: Explanation, i: int) -> str:
    if one.faithfulness is None:
        return ""
    curves = one.faithfulness.curves
    return f"deletion {curves.deletion_area[i]:.2f}, insertion {curves.insertion_area[i]:.2f}"


def counterfactual_run(
    run: Path, words: Sequence[str], target: str, *, out: Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """What would make each image a ``target``: a small smooth change, and the nearest real image of that class."""
    subject = open_explanation_subject(run, device=device)
    classifier, where = subject.classifier, resolve_picture_path(subject, out, "counterfactual.png")
    number = class_index(classifier, target)
    seen = decode_files(words, classifier.geometry)
    images = to_tensor(seen.pixels, classifier.device)
    targets = torch.full((len(images),), number, device=images.device)
    near = subject.gallery()
    found = find_counterfactuals(classifier, images, targets, near)
    likely, answers = predict_calibrated(classifier, images).max(1)
    changed = (found.images.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    strips, rows = [], []
    for i, (file, image) in enumerate(zip(seen.files, seen.pixels, strict=True)):
        row = _counterfactual_json(file, classifier.classes[answers[i]], target, found, i, near)
        difference = (found.images[i] - images[i]).mean(0).cpu().numpy()
        panels = [
            Panel(
                enlarge_image(image),
                Path(file).name,
                f"{classifier.classes[answers[i]]} {format_probability(float(likely[i]))}",
            ),
            Panel(enlarge_image(changed[i]), "changed", f"{target} {format_probability(row['probability'])}"),
            Panel(draw_signed_map(difference), "the change", "orange brighter, blue darker"),
        ]
        if near is not None and found.nearest[i] >= 0:
            panels.append(Panel(enlarge_image(near.dataset[[found.nearest[i]]][0]), f"nearest real {target}"))
        strips.append(Strip(tuple(panels), row["sentence"]))
        rows.append(row)
    save_picture(draw_strips(strips), where)
    remarks = remarks_json((*subject.remarks, *seen.remarks))
    value = {"run": str(run), "picture": str(where), "target": target, "images": rows, "remarks": remarks}
    write_result(subject, "counterfactual.json", value)
    return value


def _counterfactual_json(
    file: str, answer: str, target: str, found: Counterfactuals, i: int, near: Gallery | None
) -> dict[str, Any]:
    """What was measured of one changed image, and a sentence."""
    probability, before, after = (float(each[i]) for each in (found.probabilities, found.before, found.after))
    real = None if near is None or found.nearest[i] < 0 else str(near.dataset.files[found.nearest[i]])
    if found.reached[i]:
        said = f"This change, of length {found.change[i]:.3g}, turns '{answer}' into '{target}'"
        said += f" ({format_probability(probability)})"
    else:
        said = f"No small smooth change was found that makes it '{target}': the best has {format_probability(probability)}"
    if answer == target:
        said = f"The answer is '{target}' already; this change makes it {format_probability(probability)}"
    known = np.isfinite(before) and np.isfinite(after)
    if known:
        said += f". To the network it is now {after:.3g} from training images of '{target}'; before, {before:.3g}"
    if real:
        said += f"; the nearest real '{target}' is {real}"
    return {
        "file": file,
        "answer": answer,
        "target": target,
        "probability": probability,
        "reached": bool(found.reached[i]),
        "change": float(found.change[i]),
        "distance_before": before if known else None,
        "distance_after": after if known else None,
        "nearest": real,
        "sentence": f"{said}.",
    }


def visualise_run(
    run: Path, wanted: str, *, layer: str | None = None, out: Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """What a class wants to see, or ``all`` of them, or a unit of a ``layer`` (a number; several with commas)."""
    subject = open_explanation_subject(run, device=device)
    classifier, where = subject.classifier, resolve_picture_path(subject, out, "visualise.png")
    names = _parse_wanted(classifier, wanted, layer)
    numbers = [int(name) if layer else class_index(classifier, name) for name in names]
    found = visualise_features(
        classifier, torch.tensor(numbers, device=classifier.device), layer=layer, steps=VISUALISATION_STEPS
    )
    pixels = (found.images.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    panels = [
        Panel(enlarge_image(image), f"unit {name}" if layer else name, f"from {low:.3g} to {high:.3g}")
        for image, name, low, high in zip(pixels, names, found.before.tolist(), found.after.tolist(), strict=True)
    ]
    of = f"the units of {layer}" if layer else "the logit"
    save_picture(
        draw_strips([Strip(tuple(panels))], legend=f"Below each image: {of}, for noise and for this image."), where
    )
    rows = [
        {"layer": layer, "wanted": name, "before": low, "after": high}
        for name, low, high in zip(names, found.before.tolist(), found.after.tolist(), strict=True)
    ]
    remarks = remarks_json(subject.remarks)
    value = {"run": str(run), "picture": str(where), "images": rows, "remarks": remarks}
    write_result(subject, "visualise.json", value)
    return value


def _parse_wanted(classifier: Classifier, wanted: str, layer: str | None) -> list[str]:
    """The classes or units meant; raises ChoiceError for a unit that is no number."""
    if layer is None:
        return list(classifier.classes) if wanted == "all" and "all" not in classifier.classes else [wanted]
    units = [word.strip() for word in wanted.split(",")]
    if not all(unit.isdigit() for unit in units):
        raise ChoiceError(f"The units of a layer are numbers from 0, such as 3 or 0,1,2, not '{wanted}'.")
    return units


def explain_answers_run(run: Run, *, by: str | None = None, right: int = 6, wrong: int = 6) -> dict[str, Any]:
    """Explain answers for the run's own test images: the surest wrong ones, and right ones drawn at random.

    Draws ``explanations/answers.png`` and writes ``answers.json`` into the run; returns what that holds, with
    each picture and its heat as data addresses. Raises DataError where the run has no test images.
    """
    test = run.splits.test
    if not len(test):
        raise DataError(f"The run '{run.folder}' has no test images to explain.")
    subject = ExplanationSubject(run.folder, run.classifier, run.splits.train, test)
    chosen = _choose_answers(run, right, wrong)
    pixels = test[chosen]
    images = to_tensor(pixels, run.classifier.device)
    labels = [test.classes[k] for k in test.labels[chosen]]
    near = subject.gallery()
    found = explain(run.classifier, images, by=by, labels=labels, gallery=near)
    files = [str(file) for file in test.files[chosen]]
    save_picture(
        draw_explanations(pixels, files, [found], near), resolve_picture_path(subject, None, "answers.png")
    )
    heats = found.heat.cpu().numpy()
    rows = [
        {
            "file": file,
            **row,
            "image": data_url(enlarge_image(image, THUMBNAIL_SIDE)),
            "heat": data_url(overlay_heat(image, warm, THUMBNAIL_SIDE)),
        }
        for file, row, image, warm in zip(files, found.as_json(), pixels, heats, strict=True)
    ]
    value = {
        "by": found.by,
        "images": rows,
        "faithfulness": found.faithfulness.as_json() if found.faithfulness else None,
        "remarks": remarks_json(found.remarks),
    }
    write_result(subject, "answers.json", value)
    return value


def _choose_answers(run: Run, right: int, wrong: int) -> list[int]:
    """Positions of test images: the surest mistakes, then right answers at random; at most 2,000 are looked at."""
    test = run.splits.test
    some = np.sort(runtime.permutation(len(test), 0)[:2000])
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
