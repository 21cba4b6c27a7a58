"""Export a student: its checkpoint without the parts that only distillation needs.

    python tools/model_converters/export_student.py work_dirs/shake_faster_rcnn_r50/epoch_24.pth student.pth

The result contains the weights under the names of the stock model, the class names and the stock config.
"""
import argparse
import io
import os

import torch

from mmkd.checkpoints import check_valid, load_checkpoint, student_state_dict, write_atomic
from mmkd.cli import check_output, run_tool
from mmkd.errors import MMKDError


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='a checkpoint of a distilling run')
    parser.add_argument('out', help='the file to write; must not exist')
    args = parser.parse_args()
    student = export(args.checkpoint, args.out)
    before, after = os.path.getsize(args.checkpoint), os.path.getsize(args.out)
    print(f'{args.out}: {len(student["state_dict"])} tensors, {after / 2**20:.1f} MiB '
          f'(the training checkpoint has {before / 2**20:.1f} MiB)')


if __name__ == '__main__':
    run_tool(main)
