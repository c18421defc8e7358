"""Answers to record, and small pictures."""

import io
import time

import numpy as np
from PIL import Image

from sightline.journal import PredictionRecord, new_prediction_id


def make_record(**facts):
    given = {"at": time.time(), "release": 1, "label": "cat", "confidence": 0.75, "abstained": False}
    return PredictionRecord(**{"id": new_prediction_id(), "sha256": "ab" * 32, **given, **facts})


def record_and_flush(journal, *entries):
    journal.record(entries)
    journal.flush()
    return [one.id for one in entries]


def picture(seed):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()
