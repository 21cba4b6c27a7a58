"""The digits classification set: handwritten digits among clutter, as folders of images.

An image has 16×16 pixels and shows one rotated digit, with scraps of other digits beside and below it, on a
noisy gradient. The images are in ``{train,val}/<digit>/``, as MMPretrain's CustomDataset reads them.
"""
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from .digits import CLASSES, Digit, make_background, make_set, paint, render, write_image

IMAGE_SIZE = 16
# Before the digit is rotated, with its empty margin; the visible part is about two thirds as large.
DIGIT_SIZES = (12, 16)
MAX_ANGLE = 25
SCRAPS = 2
# Increase it whenever the images change, so that existing sets of older code are not used.
FORMAT = 1


def make(out: str | Path, train: int = 3000, val: int = 2000, seed: int = 0) -> bool:
    """Make the set; see :func:`~mmkd.datasets.digits.make_set`.

    Args:
        out: The folder of the set.
        train: Number of training images.
        val: Number of validation images.
        seed: Seed of the split and of the drawing.

    Returns:
        bool: Whether the set was made by this call.
    """
    settings = dict(task='classification', format=FORMAT, train=train, val=val, seed=seed)
    return make_set(out, settings, _write_split)


def _write_split(root: Path, split: str, digits: Sequence[Digit], num_images: int,
                 rng: np.random.Generator) -> None:
    for name in CLASSES:
        (root / split / name).mkdir()
    for number in range(1, num_images + 1):
        image, label = make_image(digits, rng)
        write_image(root / split / CLASSES[label] / f'{number:06d}.png', image)


def make_image(digits: Sequence[Digit], rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Draw one image.

    Args:
        digits: The digits to choose from.
        rng: The source of randomness.

    Returns:
        tuple: The image, uint8 ``(16, 16, 3)``, and the label of its digit.
    """
    image = make_background(rng, IMAGE_SIZE)
    for _ in range(SCRAPS):
        _, _, strokes = digits[rng.integers(len(digits))]
        alpha = render(strokes, rng.integers(*DIGIT_SIZES) * 2 // 3)
        _paint_somewhere(image, _scrap(alpha, rng), rng)
    _, label, strokes = digits[rng.integers(len(digits))]
    rotated = _rotate(strokes, rng.uniform(-MAX_ANGLE, MAX_ANGLE))
    alpha = render(rotated, rng.integers(DIGIT_SIZES[0], DIGIT_SIZES[1] + 1))
    _paint_somewhere(image, alpha, rng)
    return image, label


def _rotate(strokes: np.ndarray, angle: float) -> np.ndarray:
    """Rotate a digit by an angle in degrees."""
    margin = 2
    padded = np.pad(strokes, margin)
    size = len(padded)
    rotation = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), angle, 1)
    return cv2.warpAffine(padded, rotation, (size, size), flags=cv2.INTER_LINEAR)


def _scrap(alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random part of a digit, a third as high and wide."""
    height, width = (max(2, side // 3) for side in alpha.shape)
    y, x = int(rng.integers(alpha.shape[0] - height + 1)), int(rng.integers(alpha.shape[1] - width + 1))
    return alpha[y:y + height, x:x + width]


def _paint_somewhere(image: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> None:
    height, width = alpha.shape
    y, x = int(rng.integers(IMAGE_SIZE - height + 1)), int(rng.integers(IMAGE_SIZE - width + 1))
    paint(image[y:y + height, x:x + width], alpha, rng)
