"""Unpack CIFAR-10 as folders of images, for MMPretrain's CustomDataset.

    python tools/dataset_converters/cifar10_folder.py cifar10.tar.xz
    python tools/dataset_converters/cifar10_folder.py cifar10.tar.xz data/cifar10_small --per-class 500

SRC is a tar archive or a folder that holds {train,test}/<class>/*.jpg (or .png), at its top level or in one
subfolder.
"""
import argparse
import lzma
import os
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from mmkd.cli import run_tool
from mmkd.errors import MMKDError, one_line

SPLITS = ('train', 'test')
CLASSES = 10
FULL = dict(train=5000, test=1000)
"""Number of images per class in the full set."""
SUFFIXES = ('.jpg', '.jpeg', '.png')


def main() -> None:
    args = parse_args()
    made = convert(args.src, args.out, args.per_class)
    counts = image_counts(files_in(args.out))
    for split in SPLITS:
        (number, ) = set(counts[split].values())
        of_full = '' if number == FULL[split] else f' (the full set has {FULL[split]})'
        print(f'{args.out}/{split}: {len(counts[split])} classes with {number} images each{of_full}')
    print(f'{args.out} {"made" if made else "already exists"}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', help='a tar archive (also .tar.gz, .tar.xz, …) or a folder')
    parser.add_argument('out', nargs='?', default='data/cifar10', help='output folder (default: %(default)s)')
    parser.add_argument('--per-class', type=int, metavar='N',
                        help='keep only the first N training images of every class, for quick runs')
    return parser.parse_args()


def convert(src: str, out: str, per_class: int | None = None) -> bool:
    """Unpack the set, completely or not at all; do nothing if the same files exist.

    Args:
        src: A tar archive or a folder.
        out: The folder to make.
        per_class: Number of training images per class; all by default.

    Returns:
        bool: Whether the set was made by this call.

    Raises:
        MMKDError: If ``src`` is not such a set, or ``out`` holds something else.
    """
    if not os.path.exists(src):
        raise MMKDError(f'{src!r} does not exist.')
    if per_class is not None and per_class < 1:
        raise MMKDError(f'--per-class needs at least one image, not {per_class}.')
    try:
        with opened(src) as (sizes, unpack):
            root, names = find_images(src, sizes)
            names = first_of_each_class(names, root, per_class)
            wanted = {PurePosixPath(name).relative_to(root).as_posix(): sizes[name] for name in names}
            if already_made(Path(out), wanted):
                return False
            make(Path(out), root, wanted, lambda folder: unpack(names, folder))
            return True
    except tarfile.FilterError as error:
        raise MMKDError(f'{src!r} is not safe to unpack ({one_line(error)}).') from None
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise MMKDError(f'{src!r} cannot be unpacked to {out!r} ({one_line(error)}).') from None


@contextmanager
def opened(src: str) -> Iterator[tuple[dict[str, int], Callable[[list[str], Path], None]]]:
    """Yield the sizes of all files in an archive or a folder by name, and a function that unpacks files."""
    if os.path.isdir(src):
        def copy(names: list[str], folder: Path) -> None:
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(src) / name, folder / name)

        yield files_in(src), copy
        return
    with tarfile.open(src) as archive:
        # Everything but plain files inside the target folder is refused or skipped.
        safe = [tarfile.data_filter(member, os.getcwd()) for member in archive.getmembers()]
        members = {member.name: member for member in safe if member.isfile()}

        def unpack(names: list[str], folder: Path) -> None:
            archive.extractall(folder, [members[name] for name in names], filter='data')

        yield {name: member.size for name, member in members.items()}, unpack


def already_made(out: Path, wanted: dict[str, int]) -> bool:
    """Whether a folder holds exactly these files.

    Raises:
        MMKDError: If it holds other files.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if files_in(out) != wanted:
        raise MMKDError(f'{str(out)!r} exists and does not hold the files of this set; remove it or choose '
                        'another folder.')
    return True


def make(out: Path, root: PurePosixPath, wanted: dict[str, int], unpack: Callable[[Path], None]) -> None:
    """Make a folder of the files that are unpacked under ``root``, completely or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f'.{out.name}.{os.getpid()}.unfinished')
    try:
        unfinished.mkdir()
        unpack(unfinished)
        if files_in(unfinished / root) != wanted:
            raise OSError('files are missing after unpacking')
        (unfinished / root).rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def find_images(src: str, names: Iterable[str]) -> tuple[PurePosixPath, list[str]]:
    """Find the images of the set among files.

    Args:
        src: The archive or folder of the files, for messages.
        names: The paths of the files.

    Returns:
        tuple: The folder of ``train`` and ``test``, and the paths of the images in them, in order.

    Raises:
        MMKDError: If there is no such folder, or its classes are not the classes of a CIFAR-10 set.
    """
    images = sorted(name for name in names if _is_image(PurePosixPath(name)))
    roots = {PurePosixPath(name).parents[2] for name in images}
    if len(roots) != 1:
        raise MMKDError(f'{src!r} must hold images as train/<class>/*.jpg and test/<class>/*.jpg in one '
                        f'folder; there are {len(roots)} such folders.')
    (root, ) = roots
    counts = image_counts(str(PurePosixPath(name).relative_to(root)) for name in images)
    train, test = (counts[split] for split in SPLITS)
    if set(train) != set(test):
        name = min(set(train) ^ set(test))
        raise MMKDError(f'The classes of train and test in {src!r} differ: {name!r} is only in '
                        f'{"train" if name in train else "test"}.')
    if len(train) != CLASSES:
        raise MMKDError(f'{src!r} has {len(train)} classes; CIFAR-10 has {CLASSES}.')
    for split in SPLITS:
        if len(set(counts[split].values())) != 1:
            listed = ', '.join(f'{name} {number}' for name, number in sorted(counts[split].items()))
            raise MMKDError(f'The classes in {src!r} have different numbers of {split} images: {listed}.')
    return root, images


def first_of_each_class(names: list[str], root: PurePosixPath, per_class: int | None) -> list[str]:
    """Select the first training images of every class, and all test images.

    Raises:
        MMKDError: If a class has fewer training images.
    """
    if per_class is None:
        return names
    counts: Counter = Counter()
    selected = []
    for name in names:
        split, kind, _ = PurePosixPath(name).relative_to(root).parts
        counts[split, kind] += 1
        if split != 'train' or counts[split, kind] <= per_class:
            selected.append(name)
    fewest = min(number for (split, _), number in counts.items() if split == 'train')
    if fewest < per_class:
        raise MMKDError(f'--per-class {per_class} is more than the {fewest} training images of a class.')
    return selected


def image_counts(names: Iterable[str]) -> dict[str, Counter]:
    """Count images by split and class; names have the form ``<split>/<class>/<file>``."""
    counts = {split: Counter() for split in SPLITS}
    for name in names:
        split, kind, _ = PurePosixPath(name).parts
        counts[split][kind] += 1
    return counts


def files_in(folder: str | Path) -> dict[str, int]:
    """Return the sizes of all files under a folder by their paths in it."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size
            for path in Path(folder).rglob('*') if path.is_file()}


def _is_image(path: PurePosixPath) -> bool:
    return (len(path.parts) >= 3 and path.parts[-3] in SPLITS and path.suffix.lower() in SUFFIXES
            and not path.name.startswith('.'))


if __name__ == '__main__':
    run_tool(main)
