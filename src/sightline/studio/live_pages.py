"""The page of what happens now: traffic, accuracy, drift, and the releases that answer or could."""

import time
from pathlib import Path
from typing import Any

from starlette.responses import Response

from ..errors import ReleaseError
from ..files import read_json_object
from ..journal import CANDIDATES_FOLDER
from ..serving import RequestError, current_number, list_releases, previous_numbers
from .review_pages import describe_value
from .visit import Page, PageRoute, Visit

TRAFFIC_HOURS = 24

MAX_SHOWN_CHANGES = 4
"""Watched scores that are put into words."""

DECISION_WORDS = {
    "promote": "The gate let it pass: it answers now.",
    "keep": "The gate kept it back.",
    "cannot tell": "The gate cannot tell yet.",
}
"""What became of a candidate, by the gate's decision."""


def show_live(visit: Visit) -> Response:
    """What happens now."""
    service, releases = visit.studio.service, list_release_rows(visit)
    if service.release is None:
        return visit.render("live.html.jinja", releases=releases, current=None)
    if not service.observed:
        service.observe()
    drift = service.observed
    now = time.time()
    hours = visit.journal.count_between([now - 3600 * k for k in range(TRAFFIC_HOURS, -1, -1)])
    return visit.render(
        "live.html.jinja", releases=releases, current=service.release, drift=drift, hours=hours,
        most=max(*hours, 1), latency=latency_quantiles(service.monitor.prometheus_text().decode()),
        value=describe_value(visit), queue=visit.journal.count_queue(), candidate=latest_candidate(visit.site),
        changes=list(drift.get("changes", ()))[:MAX_SHOWN_CHANGES], back=previous_numbers(visit.site)[:1],
        improve_words=["improve", str(visit.site)], rollback_words=["releases", str(visit.site), "rollback"],
        accept_words=["drift", str(visit.site), "--accept"],
        improving=[one for one in visit.studio.jobs.latest(active=True) if one.words[:1] == ("improve",)],
        words=DECISION_WORDS,
    )  # fmt: skip


def list_release_rows(visit: Visit) -> list[dict[str, Any]]:
    """The releases, newest first, with what the page shows of each."""
    current = current_number(visit.site)
    try:
        found = list_releases(visit.site)
    except ReleaseError as error:
        raise RequestError(404, str(error)) from error
    return [
        {
            "number": one.number, "current": one.number == current, "damaged": one.facts.get("damaged"),
            "time": str(one.facts.get("time", ""))[:16].replace("T", " "), "note": one.facts.get("note", ""),
            "accuracy": (one.facts.get("metrics") or {}).get("accuracy"), "by": one.facts.get("by", ""),
            "classes": len(one.facts.get("classes") or ()),
        }
        for one in found[::-1]
    ]  # fmt: skip


def latest_candidate(site: Path) -> dict[str, Any] | None:
    """The last candidate of ``improve`` that was judged: its verdict, its accuracies; None before the first."""
    folder = site / CANDIDATES_FOLDER
    names = sorted((one.name for one in folder.glob("[0-9]*")), reverse=True) if folder.is_dir() else []
    for name in names:
        known = read_json_object(folder / name / "job.json")
        if judged := known.get("judged"):
            return {**judged, "released": known.get("released"), "time": known.get("time")}
    return None


def latency_quantiles(text: str) -> dict[str, float] | None:
    """Milliseconds from a request to its answer, from a text of metrics: p50 and p99; None before the first answer.

    Interpolated within the buckets of the histogram, as Prometheus does.
    """
    from prometheus_client.parser import text_string_to_metric_families

    counts: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "sightline_predict_seconds_bucket":
                counts[float(sample.labels["le"])] = sample.value
    edges = sorted(counts)
    if not edges or not counts[edges[-1]]:
        return None
    found = {}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        wanted, low, below = share * counts[edges[-1]], 0.0, 0.0
        for edge in edges:
            if counts[edge] >= wanted:
                high = edge if edge != float("inf") else low
                found[name] = 1000 * (low + (high - low) * (wanted - below) / max(counts[edge] - below, 1e-9))
                break
            low, below = edge, counts[edge]
    return found


def show_drift_image(visit: Visit) -> Response:
    """One of the images that typify what changed, by its place in the list."""
    paths = visit.studio.service.observed.get("images") or ()
    place = visit.request.path_params["place"]
    if not place.isascii() or not place.isdigit() or int(place[:3]) >= len(paths):
        raise RequestError(404, "There is no such image.")
    path = Path(paths[int(place[:3])])
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(404, "This image is not kept any more.") from error
    kinds = {".jpg": "image/jpeg", ".png": "image/png", ".tif": "image/tiff"}
    return Response(content, media_type=kinds.get(path.suffix, "application/octet-stream"))


def release_number(visit: Visit, field: str) -> str:
    """The number of a release that a form names; raise RequestError (422) if there is none."""
    number = visit.number(field, 0)
    known = [one.number for one in list_releases(visit.site)]
    if number not in known:
        raise RequestError(422, f"There is no release {number}: choose one of {', '.join(map(str, known))}.")
    return str(number)


def improve_words(visit: Visit) -> list[str]:
    """``improve SITE``: fields ``allowance`` (in points) and ``minimum``."""
    words = ["improve", str(visit.site)]
    if allowance := visit.text("allowance").replace(",", ".").strip():
        try:
            words.append(f"--allowance={float(allowance) / 100:g}")
        except ValueError as error:
            raise RequestError(422, f"The allowance is {allowance[:20]!r}: give points, such as 1.") from error
    if visit.text("minimum"):
        words.append(f"--minimum={visit.number('minimum', 10, low=1)}")
    return words


def promote_words(visit: Visit) -> list[str]:
    """``releases SITE promote N``."""
    return ["releases", str(visit.site), "promote", release_number(visit, "number")]


def rollback_words(visit: Visit) -> list[str]:
    """``releases SITE rollback``."""
    return ["releases", str(visit.site), "rollback"]


def compare_words(visit: Visit) -> list[str]:
    """``releases SITE diff N M``, from the older to the newer, with a sheet of the images that become wrong."""
    first, second = sorted((release_number(visit, name) for name in ("first", "second")), key=int)
    if first == second:
        raise RequestError(422, "Choose two different releases to compare.")
    return ["releases", str(visit.site), "diff", first, second, "--out={job}/sheet.png"]


def accept_words(visit: Visit) -> list[str]:
    """``drift SITE --accept``."""
    return ["drift", str(visit.site), "--accept"]


LIVE_PAGE = Page(
    "Live",
    (
        PageRoute("GET", "/live", show_live),
        PageRoute("GET", "/live/drift/{place}", show_drift_image, "review"),
    ),
)
