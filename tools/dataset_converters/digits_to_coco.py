"""Make the digits detection set: handwritten digits on noisy gradients, in COCO format.

The digits are scikit-learn's ``load_digits`` (nothing is downloaded). Train and val share no digit.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASSES = tuple('0123456789')
IMAGE_SIZE = 160
DIGIT_SIZES = (18, 56)
DIGITS_PER_IMAGE = (2, 6)
MAX_SHARED_AREA = 0.2
# Fainter strokes are not drawn at all, so that a box ends where the eye sees the digit end.
MIN_ALPHA = 0.3
# Digits are light on dark, as ink on paper has one polarity: learning both takes many more images.
BACKGROUND_MAX = 160
COLOUR_MIN = 60
MIN_CONTRAST = 130
# Raise it when the pictures change, so that a set made by older code is not taken for a new one.
FORMAT = 2


def make(out, train=600, val=150, seed=0):
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
    return make_whole(out, dict(format=FORMAT, train=train, val=val, seed=seed), _write_split)


def make_whole(out, settings, write_split):
    """Make a set of images of digits, whole or not at all; do nothing where it stands already.

    Args:
        out (str or Path): Folder to make.
        settings (dict): All that the set depends on, with ``train``, ``val`` and ``seed``.
        write_split (callable): Writes one split; called with the folder, the split's name, its digits, the
            number of images and a random generator.

    Returns:
        bool: Whether the set was made by this call.

    Raises:
        ValueError: If an image count is not positive.
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
            # Seeded per split: the val images stay the same when more train images are asked for.
            rng = np.random.default_rng([settings['seed'], len(split)])
            write_split(unfinished, split, digits, settings[split], rng)
        (unfinished / 'settings.json').write_text(json.dumps(settings))
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def _already_made(out, settings):
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / 'settings.json').read_text())
    except (OSError, ValueError):
        raise FileExistsError(
            f'{out} exists and is not a digits set; name another folder') from None
    if found != settings:
        raise FileExistsError(
            f'{out} was made with {found}, not with {settings}; remove it or name another folder')
    return True


def split_digits(seed):
    """Split the digits of every class 4 : 1.

    Args:
        seed (int): Seed of the split.

    Returns:
        dict[str, list[tuple]]: For ``train`` and ``val``, every digit as its index in
        ``load_digits``, its label and its strokes, (8, 8) float32 in [0, 1].
    """
    data = load_digits()
    digits = [(index, int(label), (image / 16).astype(np.float32))
              for index, (label, image) in enumerate(zip(data.target, data.images, strict=True))]
    train, val = train_test_split(
        digits, test_size=0.2, stratify=data.target, random_state=seed)
    return dict(train=train, val=val)


def _write_split(root, split, digits, num_images, rng):
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        name = f'{image_id:06d}.png'
        image, objects = make_image(digits, rng)
        write_image(root / split / name, image)
        images.append(dict(id=image_id, file_name=name, width=IMAGE_SIZE, height=IMAGE_SIZE))
        for index, label, (x, y, width, height) in objects:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=label + 1,
                    bbox=[x, y, width, height],
                    area=width * height,
                    iscrowd=0,
                    digit_index=index))
    (root / 'annotations').mkdir(exist_ok=True)
    content = dict(
        info=dict(description='Handwritten digits of scikit-learn on noisy gradients'),
        images=images,
        annotations=annotations,
        categories=[dict(id=number + 1, name=name) for number, name in enumerate(CLASSES)])
    (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))


def write_image(path, image):
    """Write an image, or raise an OSError."""
    if not cv2.imwrite(str(path), image):
        raise OSError(f'cannot write {path}')


def make_image(digits, rng):
    """Draw one image.

    Args:
        digits (list[tuple]): Digits to choose from, as of :func:`split_digits`.
        rng (np.random.Generator): Source of all randomness.

    Returns:
        tuple: The image, (160, 160, 3) uint8, and its objects, each as digit index, label and
        box (x, y, width, height) in pixels.
    """
    image = make_background(rng)
    painted = np.zeros(image.shape[:2], bool)
    objects = []
    wanted = rng.integers(DIGITS_PER_IMAGE[0], DIGITS_PER_IMAGE[1] + 1)
    # A full image may have no room for the last digits, but there is always room for two.
    for _ in range(200):
        index, label, strokes = digits[rng.integers(len(digits))]
        alpha = render(strokes, rng.integers(DIGIT_SIZES[0], DIGIT_SIZES[1] + 1))
        height, width = alpha.shape
        x = int(rng.integers(IMAGE_SIZE - width + 1))
        y = int(rng.integers(IMAGE_SIZE - height + 1))
        box = (x, y, width, height)
        window = np.s_[y:y + height, x:x + width]
        # Shared pixels would make the lower digit's box wrong: part of it would be out of sight.
        if (painted[window] & (alpha > 0)).any() or any(
                shared_area(box, other) > MAX_SHARED_AREA for _, _, other in objects):
            continue
        paint(image[window], alpha, rng)
        painted[window] |= alpha > 0
        objects.append((index, label, box))
        if len(objects) == wanted:
            break
    return image, objects


def make_background(rng, size=IMAGE_SIZE):
    """Draw a linear gradient between two random colors, with noise.

    Args:
        rng (np.random.Generator): Source of all randomness.
        size (int): Height and width in pixels.

    Returns:
        np.ndarray: Image, (size, size, 3) uint8.
    """
    angle = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[:size, :size] / (size - 1) - 0.5
    along = (np.cos(angle) * xs + np.sin(angle) * ys) / np.sqrt(2) + 0.5
    start, end = rng.uniform(0, BACKGROUND_MAX, (2, 3))
    image = start + along[..., None] * (end - start)
    image += rng.normal(0, rng.uniform(4, 16), image.shape)
    return image.clip(0, 255).astype(np.uint8)


def render(strokes, size):
    """Enlarge a digit and cut away what is empty around it.

    Args:
        strokes (np.ndarray): Digit, (8, 8) float32 in [0, 1].
        size (int): Side of the enlarged digit in pixels, empty margin included.

    Returns:
        np.ndarray: Opacity, (h, w) float32; every border row and column has a visible pixel.
    """
    alpha = cv2.resize(strokes, (int(size), int(size)), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    alpha[alpha < MIN_ALPHA] = 0
    rows, columns = alpha.any(axis=1).nonzero()[0], alpha.any(axis=0).nonzero()[0]
    return alpha[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def paint(window, alpha, rng):
    """Blend a digit into an image in a random color that stands out from what lies below.

    Args:
        window (np.ndarray): Part of the image to paint on, (h, w, 3) uint8, changed in place.
        alpha (np.ndarray): Opacity, (h, w) float32.
        rng (np.random.Generator): Source of all randomness.
    """
    below = window.mean(axis=(0, 1))
    color = rng.uniform(COLOUR_MIN, 255, 3)
    while np.linalg.norm(color - below) < MIN_CONTRAST:
        color = rng.uniform(COLOUR_MIN, 255, 3)
    alpha = alpha[..., None]
    window[:] = (window * (1 - alpha) + color * alpha).round()


def shared_area(box, other):
    """Get the intersection of two boxes as a share of the smaller one.

    Args:
        box (tuple): x, y, width, height.
        other (tuple): x, y, width, height.

    Returns:
        float: 0 where they do not meet, 1 where one contains the other.
    """
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(width, 0) * max(height, 0) / min(box[2] * box[3], other[2] * other[3])


def run(description, make, out, train, val):
    """Make a set from the command line.

    Args:
        description (str): Of the command.
        make (callable): Called with the folder, the two numbers of images and the seed.
        out (str): The folder's default.
        train (int): Default number of training images.
        val (int): Default number of validation images.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--out', default=out, help='folder to make (default: %(default)s)')
    parser.add_argument('--train', type=int, default=train, help='training images (default: %(default)s)')
    parser.add_argument('--val', type=int, default=val, help='validation images (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the split and the drawing')
    args = parser.parse_args()
    try:
        made = make(args.out, args.train, args.val, args.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f'{args.out}: {args.train} train and {args.val} val images '
          f'{"made" if made else "were there already"}')


if __name__ == '__main__':
    run(__doc__, make, 'data/digits_det', train=600, val=150)
