"""The ten lines that everyone writes: Pillow, numpy, onnxruntime. FILE FOLDER OUT SIZE BATCH."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

file, folder, out, size, batch = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
paths = sorted(Path(folder).iterdir())
with Path(out).open("w", newline="") as stream:
    rows = csv.writer(stream)
    for start in range(0, len(paths), batch):
        some = paths[start : start + batch]
        images = [Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR) for path in some]
        answers = session.run(["probabilities"], {"images": np.stack([np.asarray(image) for image in images])})[0]
        rows.writerows([path, classes[row.argmax()], row.max()] for path, row in zip(some, answers, strict=True))
