"""The student without what only distillation needs: ``mmkd export``."""
import argparse
import io
import os

import torch

from ..checkpoints import check_valid, load_checkpoint, student_state_dict, write_atomic
from ..cli import check_output
from ..errors import MMKDError


def export(checkpoint: str, out: str) -> dict:
    """Write the student of a training checkpoint to another file.

    Args:
        checkpoint: A checkpoint of a distilling run.
        out: The file to write; must not exist.

    Returns:
        dict: The content of the file: ``state_dict``, and ``meta`` with ``dataset_meta``, ``cfg``, ``epoch``…

    Raises:
        MMKDError: If the checkpoint cannot be read or its weights are not finite, or ``out`` exists or cannot
            be written.
    """
    if os.path.exists(out):
        raise MMKDError(f'{out!r} already exists; choose another name.')
    check_output(out)
    loaded = load_checkpoint(checkpoint)
    meta = loaded.get('meta') or {}
    kept = ('dataset_meta', 'cfg', 'epoch', 'iter', 'mmengine_version')
    student = dict(
        meta={key: meta[key] for key in kept if key in meta}, state_dict=student_state_dict(loaded))
    check_valid(student['state_dict'], f'checkpoint {checkpoint!r}')
    buffer = io.BytesIO()
    torch.save(student, buffer)
    write_atomic(buffer.getvalue(), out)
    return student


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    student = export(args.checkpoint, args.out)
    before, after = os.path.getsize(args.checkpoint), os.path.getsize(args.out)
    print(f'{args.out}: {len(student["state_dict"])} tensors, {after / 2**20:.1f} MiB '
          f'(the training checkpoint has {before / 2**20:.1f} MiB)')
