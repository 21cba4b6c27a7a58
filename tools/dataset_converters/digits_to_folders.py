"""Make the digits classification set: handwritten digits among clutter, as folders of images.

One turned digit a 16×16 image, with scraps of others beside and below it, on a noisy gradient; in
{train,val}/<digit>/, as MMPretrain's CustomDataset reads them. The digits are scikit-learn's ``load_digits``
(nothing is downloaded). Train and val share no digit.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset_converters import digits_to_coco as coco

IMAGE_SIZE = 16
# Before the digit is turned, with its empty margin; what is seen of it is about two thirds as large.
DIGIT_SIZES = (12, 16)
MAX_ANGLE = 25
SCRAPS = 2
# Raise it when the pictures change, so that a set made by older code is not taken for a new one.
FORMAT = 1


def make(out, train=3000, val=2000, seed=0):
    """Make the set, whole or not at all; do nothing where it stands already.

    Args:
        out (str or Path): Folder to make.
        train (int): Number of training images.
        val (int): Number of validation images.
        seed (int): Seed of the split and of all drawing.

    Returns:
        bool: Whether the set was made by this call.

    Raises:
        ValueError: If an image count is not positive.
        FileExistsError: If ``out`` holds something else, or a set with other settings.
    """
    settings = dict(task='classification', format=FORMAT, train=train, val=val, seed=seed)
    return coco.make_whole(out, settings, _write_split)


def _write_split(root, split, digits, num_images, rng):
    for name in coco.CLASSES:
        (root / split / name).mkdir()
    for number in range(1, num_images + 1):
        image, label = make_image(digits, rng)
        coco.write_image(root / split / coco.CLASSES[label] / f'{number:06d}.png', image)


def make_image(digits, rng):
    """Draw one image.

    Args:
        digits (list[tuple]): Digits to choose from, as of :func:`digits_to_coco.split_digits`.
        rng (np.random.Generator): Source of all randomness.

    Returns:
        tuple: The image, (16, 16, 3) uint8, and the digit's label.
    """
    image = coco.make_background(rng, IMAGE_SIZE)
    for _ in range(SCRAPS):
        _, _, strokes = digits[rng.integers(len(digits))]
        scrap = coco.render(strokes, rng.integers(*DIGIT_SIZES) * 2 // 3)
        _paint_somewhere(image, _third(scrap, rng), rng)
    _, label, strokes = digits[rng.integers(len(digits))]
    turned = _turn(strokes, rng.uniform(-MAX_ANGLE, MAX_ANGLE))
    alpha = coco.render(turned, rng.integers(DIGIT_SIZES[0], DIGIT_SIZES[1] + 1))
    _paint_somewhere(image, alpha, rng)
    return image, label


def _turn(strokes, angle):
    margin = 2
    padded = np.pad(strokes, margin)
    size = len(padded)
    turning = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), angle, 1)
    return cv2.warpAffine(padded, turning, (size, size), flags=cv2.INTER_LINEAR)


def _third(alpha, rng):
    height, width = (max(2, side // 3) for side in alpha.shape)
    y, x = int(rng.integers(alpha.shape[0] - height + 1)), int(rng.integers(alpha.shape[1] - width + 1))
    return alpha[y:y + height, x:x + width]


def _paint_somewhere(image, alpha, rng):
    height, width = alpha.shape
    y, x = int(rng.integers(IMAGE_SIZE - height + 1)), int(rng.integers(IMAGE_SIZE - width + 1))
    coco.paint(image[y:y + height, x:x + width], alpha, rng)


if __name__ == '__main__':
    coco.run(__doc__, make, 'data/digits_cls', train=3000, val=2000)
