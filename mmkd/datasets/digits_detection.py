"""The digits detection set: handwritten digits on noisy gradients, in COCO format."""
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .digits import CLASSES, Digit, make_background, make_set, paint, render, write_image

IMAGE_SIZE = 160
DIGIT_SIZES = (18, 56)
DIGITS_PER_IMAGE = (2, 6)
MAX_SHARED_AREA = 0.2
# Increase it whenever the images change, so that existing sets of older code are not used.
FORMAT = 2

Box = tuple[int, int, int, int]
"""x, y, width and height in pixels."""


def make(out: str | Path, train: int = 600, val: int = 150, seed: int = 0,
         image_size: int = IMAGE_SIZE) -> bool:
    """Make the set; see :func:`~mmkd.datasets.digits.make_set`.

    Args:
        out: The folder of the set.
        train: Number of training images.
        val: Number of validation images.
        seed: Seed of the split and of the drawing.
        image_size: Height and width of the images in pixels; the digits scale with it.

    Returns:
        bool: Whether the set was made by this call.
    """
    settings = dict(format=FORMAT, train=train, val=val, seed=seed)
    if image_size != IMAGE_SIZE:  # sets of 160 pixels that exist do not name their size
        settings['image_size'] = image_size
    return make_set(out, settings, partial(_write_split, image_size=image_size))


def _write_split(root: Path, split: str, digits: Sequence[Digit], num_images: int,
                 rng: np.random.Generator, image_size: int = IMAGE_SIZE) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        name = f'{image_id:06d}.png'
        image, objects = make_image(digits, rng, image_size)
        write_image(root / split / name, image)
        images.append(dict(id=image_id, file_name=name, width=image_size, height=image_size))
        for index, label, (x, y, width, height) in objects:
            annotations.append(
                dict(id=len(annotations) + 1, image_id=image_id, category_id=label + 1,
                     bbox=[x, y, width, height], area=width * height, iscrowd=0, digit_index=index))
    (root / 'annotations').mkdir(exist_ok=True)
    content = dict(
        info=dict(description='Handwritten digits of scikit-learn on noisy gradients'),
        images=images,
        annotations=annotations,
        categories=[dict(id=number + 1, name=name) for number, name in enumerate(CLASSES)])
    (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))


def make_image(digits: Sequence[Digit], rng: np.random.Generator,
               image_size: int = IMAGE_SIZE) -> tuple[np.ndarray, list[tuple[int, int, Box]]]:
    """Draw one image.

    Args:
        digits: The digits to choose from.
        rng: The source of randomness.
        image_size: Height and width of the image in pixels, S; the digits scale with it.

    Returns:
        tuple: The image, uint8 ``(S, S, 3)``, and its objects, each as the index of the digit, label and
        box.
    """
    image = make_background(rng, image_size)
    smallest, largest = (size * image_size // IMAGE_SIZE for size in DIGIT_SIZES)
    painted = np.zeros(image.shape[:2], bool)
    objects: list[tuple[int, int, Box]] = []
    num_objects = rng.integers(DIGITS_PER_IMAGE[0], DIGITS_PER_IMAGE[1] + 1)
    # An image may have no space for the last digits, but always for two.
    for _ in range(200):
        index, label, strokes = digits[rng.integers(len(digits))]
        alpha = render(strokes, rng.integers(smallest, largest + 1))
        height, width = alpha.shape
        x = int(rng.integers(image_size - width + 1))
        y = int(rng.integers(image_size - height + 1))
        box = (x, y, width, height)
        window = np.s_[y:y + height, x:x + width]
        # Overlapping strokes would hide a part of the lower digit, so that its box would be wrong.
        if (painted[window] & (alpha > 0)).any() or any(
                shared_area(box, other) > MAX_SHARED_AREA for _, _, other in objects):
            continue
        paint(image[window], alpha, rng)
        painted[window] |= alpha > 0
        objects.append((index, label, box))
        if len(objects) == num_objects:
            break
    return image, objects


def shared_area(box: Box, other: Box) -> float:
    """Return the intersection of two boxes as a fraction of the smaller box.

    Returns:
        float: 0 if they are disjoint, 1 if one contains the other.
    """
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(width, 0) * max(height, 0) / min(box[2] * box[3], other[2] * other[3])
