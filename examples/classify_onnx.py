"""Name what is in pictures by an exported file, without Sightline: python classify_onnx.py MODEL.onnx IMAGE..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def pixels(file, spec):
    """A picture as the classifier wants it, uint8 (height, width, channels); ``spec`` is the geometry in the file."""
    image, size, mode = Image.open(file), np.array(spec["size"][::-1]), "L" if spec["channels"] == 1 else "RGB"
    sideways = spec["exif"] and image.getexif().get(274, 1) > 4
    whole = np.array(image.size[::-1] if sideways else image.size, float)  # width and height, upright
    fitted = np.maximum(1, np.rint(whole * min(size / whole)).astype(int)) if spec["fit"] == "pad" else size
    share = 1 if (whole == size).all() else spec.get("crop_fraction", 1)  # of the short side that a crop keeps
    image.draft(mode, tuple(2 * np.ceil(fitted / share).astype(int)[:: -1 if sideways else 1]))  # JPEGs at 1/2...
    image = ImageOps.exif_transpose(image) if spec["exif"] else image
    if image.mode[0] in "IF":  # 16 or 32 bits: the window goes from black to white
        low, high = spec.get("window") or (0, 1 if image.mode == "F" else 65535)
        image = Image.fromarray(np.rint((np.clip(image, low, high) - low) * (255 / (high - low))).astype(np.uint8))
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))  # clear is white
    whole /= np.rint(whole.max() / max(image.size))
    cut = (whole - share * size / (size / whole).max()) / 2 if spec["fit"] == "crop" else np.zeros(2)
    box, rim = (*np.maximum(cut, 0), *np.minimum(whole - cut, image.size)), (size - fitted) // 2  # rim: black
    image = image.convert(mode).resize(tuple(fitted), Image.Resampling[spec["filter"].upper()], box)
    return np.asarray(image.crop((*-rim, *(size - rim)))).reshape(size[1], size[0], -1)


if __name__ == "__main__":
    _, model, *pictures = sys.argv if len(sys.argv) > 2 else sys.exit(print(__doc__))
    session = onnxruntime.InferenceSession(model)
    says = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    for picture in pictures:
        (answer,) = session.run(None, {"images": pixels(picture, says["geometry"])[None]})[0]
        name = says["classes"][answer.argmax()] if answer.max() >= says["threshold"] else "unknown"
        print(f"{picture}: {name} ({answer.max():.1%})")
