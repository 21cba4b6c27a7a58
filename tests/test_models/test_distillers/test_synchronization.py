"""A distilling step waits for a GPU no more often than the student's own step.

On CPU, the operators that would have to wait are counted.
"""
from collections import Counter

import pytest
import torch
from mmengine.registry import MODELS
from torch.utils._python_dispatch import TorchDispatchMode

from mmkd.checkpoints import student_state_dict
from tests.test_models.test_methods.test_zoo import (
    CELLS,
    DETECTORS,
    STAGED,
    STUDENT,
    cifar_network,
    detector,
    inputs,
    make,
)

pytest.importorskip('mmpretrain')

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default,
         torch.ops.aten.masked_select.default, torch.ops.aten.equal.default, torch.ops.aten._unique2.default,
         torch.ops.aten.repeat_interleave.Tensor, torch.ops.aten.bincount.default}


class CountWaits(TorchDispatchMode):
    """Counts what gives a value to Python, or a tensor whose shape depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if func in WAITS or by_mask:
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def waits_of(model, task) -> Counter:
    data = inputs(task, model)
    torch.manual_seed(1)  # the same boxes are sampled
    with CountWaits() as counted:
        losses = model.loss(data['inputs'], data['data_samples'])
        parts = [value for name, value in losses.items() if 'loss' in name]
        sum(sum(part) if isinstance(part, (list, tuple)) else part for part in parts).mean().backward()
    return counted.found


def test_what_is_counted():
    values = torch.arange(4.0)
    with CountWaits() as counted:
        values[values > 1]
        values.sum().item()
        values.nonzero()
        values * values + values.sum()
    assert counted.found.total() == 3


# SOKD's bridge in a dense detector has labels assigned to it by MMDetection's head, which waits once more.
WHO_TEACHES = [(task, name) for task in ('classifier', *DETECTORS) for name in ('KD', 'SHAKE', 'SOKD')
               if (task, name) != ('retinanet', 'SOKD')]


@pytest.mark.slow
@pytest.mark.parametrize(('task', 'name'), CELLS + WHO_TEACHES)
def test_distilling_waits_for_nothing_more(task, name):
    model = make(task, name)
    method = model.mmkd.methods[name.lower()]
    if name in STAGED:
        method.in_first_phase = True
        waits_of(model, task)
        method.in_first_phase = False
        method.end_first_phase()
    waits_of(model, task)  # the first step looks at what the teacher can leave out
    stock = MODELS.build(cifar_network(8, STUDENT) if task == 'classifier' else detector(task)).train()
    stock.load_state_dict(student_state_dict(dict(state_dict=model.state_dict())))
    more = waits_of(model, task) - waits_of(stock, task)
    # MMDetection's own RoI extractor, in the teacher, looks for the boxes of each of four levels.
    takes_boxes = task == 'faster_rcnn' and 'cls_outputs' in model.mmkd.teacher_spots
    assert more == (Counter({'aten.nonzero.default': 4}) if takes_boxes else Counter())
