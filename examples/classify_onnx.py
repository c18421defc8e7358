"""Name what is in pictures by an exported file, without Sightline: python classify_onnx.py MODEL.onnx IMAGE..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def pixels(file, geometry):
    """A picture as the classifier wants it, uint8 (height, width, channels): what ``geometry`` says."""
    image, size = Image.open(file), np.array(geometry["size"][::-1])
    mode, pad = "RGB" if geometry["channels"] == 3 else "L", geometry["fit"] == "pad"
    sideways = geometry["exif"] and image.getexif().get(274, 1) > 4
    whole = np.array(image.size[::-1] if sideways else image.size, float)  # width and height, upright
    fitted = np.clip(np.rint(whole * (size / whole).min()), 1, size).astype(int) if pad else size
    share = 1 if (whole == size).all() else geometry.get("crop_fraction", 1)  # of the short side that a crop keeps
    least = 2 * np.ceil(fitted / share).astype(int)
    image.draft(mode, tuple(least[::-1] if sideways else least))  # JPEGs decode at 1/2, 1/4 or 1/8
    image = ImageOps.exif_transpose(image) if geometry["exif"] else image
    whole /= np.rint(whole.max() / max(image.size))
    cut = (whole - share * size / (size / whole).max()) / 2 if geometry["fit"] == "crop" else np.zeros(2)
    box = (*np.maximum(cut, 0), *np.minimum(whole - cut, image.size))
    image = image.convert(mode).resize(tuple(fitted), Image.Resampling[geometry["filter"].upper()], box)
    (left, top), (right, bottom) = -((size - fitted) // 2), size - (size - fitted) // 2
    return np.asarray(image.crop((left, top, right, bottom))).reshape(size[1], size[0], -1)  # beyond it is black


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(print(__doc__))
    session = onnxruntime.InferenceSession(sys.argv[1])
    says = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    for picture in sys.argv[2:]:
        (answer,) = session.run(None, {"images": pixels(picture, says["geometry"])[None]})[0]
        name = says["classes"][answer.argmax()] if answer.max() >= says["threshold"] else "unknown"
        print(f"{picture}: {name} ({answer.max():.1%})")
