"""What the digits sets share: scikit-learn's handwritten digits, drawn on noisy gradients.

This module and the modules that use it are not imported by ``mmkd`` itself, since they need scikit-learn.
"""
import argparse
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Digit = tuple[int, int, np.ndarray]
"""Index in ``load_digits``, label, and strokes: float32 ``(8, 8)`` in [0, 1]."""

CLASSES = tuple('0123456789')
# Fainter strokes are not drawn at all, so that a box ends where the visible digit ends.
MIN_ALPHA = 0.3
# Digits are light on dark, as ink on paper has one polarity: learning both takes many more images.
BACKGROUND_MAX = 160
COLOR_MIN = 60
MIN_CONTRAST = 130


def make_set(out: str | Path, settings: Mapping[str, Any],
             write_split: Callable[[Path, str, Sequence[Digit], int, np.random.Generator], None]) -> bool:
    """Make a set of images of digits, completely or not at all; do nothing if it exists.

    Args:
        out: The folder of the set.
        settings: Everything that the set depends on, with ``train``, ``val`` and ``seed``.
        write_split: Writes one split; called with the folder, the name of the split, its digits, the number
            of images and a random generator.

    Returns:
        bool: Whether the set was made by this call.

    Raises:
        ValueError: If a number of images is not positive.
        FileExistsError: If ``out`` holds something else, or a set with other settings.
    """
    train, val = settings['train'], settings['val']
    if min(train, val) < 1:
        raise ValueError(f'train and val need at least one image each, got {train} and {val}')
    out = Path(out)
    if _already_made(out, settings):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f'.{out.name}.{os.getpid()}.unfinished')
    try:
        for split, digits in split_digits(settings['seed']).items():
            (unfinished / split).mkdir(parents=True)
            # Seeded per split: the val images do not depend on the number of train images.
            rng = np.random.default_rng([settings['seed'], len(split)])
            write_split(unfinished, split, digits, settings[split], rng)
        (unfinished / 'settings.json').write_text(json.dumps(settings))
        try:
            unfinished.rename(out)
        except OSError:
            if not _already_made(out, settings):  # by another process, in the meantime
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def _already_made(out: Path, settings: Mapping[str, Any]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        existing = json.loads((out / 'settings.json').read_text())
    except (OSError, ValueError):
        raise FileExistsError(f'{out} exists and is not a digits set; choose another folder') from None
    if existing != settings:
        raise FileExistsError(
            f'{out} was made with {existing}, not with {settings}; remove it or choose another folder')
    return True


def split_digits(seed: int) -> dict[str, list[Digit]]:
    """Split the digits of every class 4 : 1.

    Args:
        seed: The seed of the split.

    Returns:
        dict: The digits of ``train`` and ``val``.
    """
    data = load_digits()
    digits = [(index, int(label), (image / 16).astype(np.float32))
              for index, (label, image) in enumerate(zip(data.target, data.images, strict=True))]
    train, val = train_test_split(digits, test_size=0.2, stratify=data.target, random_state=seed)
    return dict(train=train, val=val)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image.

    Raises:
        OSError: If it cannot be written.
    """
    if not cv2.imwrite(str(path), image):
        raise OSError(f'cannot write {path}')


def make_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a linear gradient between two random colors, with noise.

    Args:
        rng: The source of randomness.
        size: Height and width in pixels.

    Returns:
        np.ndarray: The image, uint8 ``(size, size, 3)``.
    """
    angle = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[:size, :size] / (size - 1) - 0.5
    along = (np.cos(angle) * xs + np.sin(angle) * ys) / np.sqrt(2) + 0.5
    start, end = rng.uniform(0, BACKGROUND_MAX, (2, 3))
    image = start + along[..., None] * (end - start)
    image += rng.normal(0, rng.uniform(4, 16), image.shape)
    return image.clip(0, 255).astype(np.uint8)


def render(strokes: np.ndarray, size: int) -> np.ndarray:
    """Enlarge a digit and crop the empty margin.

    Args:
        strokes: The digit, float32 in [0, 1].
        size: Height and width of the enlarged digit in pixels, with its empty margin.

    Returns:
        np.ndarray: The opacity, float32 ``(h, w)``; every border row and column has a visible pixel.
    """
    alpha = cv2.resize(strokes, (int(size), int(size)), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    alpha[alpha < MIN_ALPHA] = 0
    rows, columns = alpha.any(axis=1).nonzero()[0], alpha.any(axis=0).nonzero()[0]
    return alpha[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def paint(window: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> None:
    """Blend a digit into an image, in a random color that contrasts with the background.

    Args:
        window: The part of the image to paint on, uint8 ``(h, w, 3)``; changed in place.
        alpha: The opacity of the digit, float32 ``(h, w)``.
        rng: The source of randomness.
    """
    background = window.mean(axis=(0, 1))
    color = rng.uniform(COLOR_MIN, 255, 3)
    while np.linalg.norm(color - background) < MIN_CONTRAST:
        color = rng.uniform(COLOR_MIN, 255, 3)
    alpha = alpha[..., None]
    window[:] = (window * (1 - alpha) + color * alpha).round()


def make_from_command_line(description: str | None, make: Callable[[str, int, int, int], bool], out: str,
                           train: int, val: int) -> None:
    """Make a set by the arguments of the command line.

    Args:
        description: The description of the command.
        make: Makes the set; called with the folder, the two numbers of images and the seed.
        out: The default folder.
        train: The default number of training images.
        val: The default number of validation images.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--out', default=out, help='folder of the set (default: %(default)s)')
    parser.add_argument('--train', type=int, default=train, help='training images (default: %(default)s)')
    parser.add_argument('--val', type=int, default=val, help='validation images (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the split and of the drawing')
    args = parser.parse_args()
    try:
        made = make(args.out, args.train, args.val, args.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f'{args.out}: {args.train} train and {args.val} val images '
          f'{"made" if made else "already exist"}')
