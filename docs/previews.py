"""The pictures of docs/guides/augmentation.md: one for each augmentation, made by `visionpipe preview` on the sample.

visionpipe prepare         # in the repository's root, once
python docs/previews.py    # writes docs/guides/images/NAME.png
"""

import dataclasses
import io
from pathlib import Path

from PIL import Image

from visionpipe.commands import preview
from visionpipe.data.augmentation import AUGMENTATIONS
from visionpipe.project.params import load_params

IMAGES = Path(__file__).parent / "guides" / "images"
ROWS, WIDTH = 3, 760  # training images in a picture, and its width in pixels
# Where the default is rare or weak, so that a picture of three images shows something.
SHOWN = {"erasing": {"probability": 1.0}, "mixup": {"alpha": 1.0}}


def main() -> None:
    preview.ROWS = ROWS
    params = load_params()
    name = next(iter(params.models))
    IMAGES.mkdir(exist_ok=True)
    for kind in AUGMENTATIONS:
        entry = {"name": kind} | SHOWN.get(kind, {})
        model = dataclasses.replace(params.models[name], train={"epochs": 1, "augmentation": [entry]})
        picture = preview.preview(name, dataclasses.replace(params, models={name: model}))
        with Image.open(picture) as sheet:
            height = round(sheet.height * WIDTH / sheet.width)
            small = sheet.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.quantize(64).save(file, "PNG", optimize=True)
        (IMAGES / f"{kind}.png").write_bytes(file.getvalue())
        print(f"{kind}.png: {len(file.getvalue()) // 1024} KiB")


if __name__ == "__main__":
    main()
