"""The hooks that serve methods: first phases, labels of the training set, reports."""
import json
import types

import numpy as np
import pytest
from mmengine.logging import MessageHub
from mmengine.runner import BaseLoop, IterBasedTrainLoop
from torch import nn

from mmkd.engine.hooks import EpochReportHook, FirstPhaseHook, TrainLabelsHook
from mmkd.errors import MMKDError
from mmkd.models.methods import AB, CRD, FT, KD, EpochReports


def runner(epochs: int = 3, **methods):
    model = nn.Module()
    model.mmkd = nn.Module()
    model.mmkd.methods = nn.ModuleDict(methods)
    return types.SimpleNamespace(
        model=model, epoch=0, max_epochs=epochs, train_loop=object(),
        optim_wrapper=types.SimpleNamespace(student_is_frozen=False),
        message_hub=MessageHub('test_method_hooks'))


def begin_epochs(hook, run, number: int) -> list:
    """Return for some epochs whether each method is in its first phase, and whether the student is frozen."""
    hook.before_train(run)
    states = []
    for epoch in range(number):
        run.epoch = epoch
        hook.before_train_epoch(run)
        phases = [getattr(method, 'in_first_phase', None) for method in run.model.mmkd.methods.values()]
        states.append((*phases, run.optim_wrapper.student_is_frozen))
    return states


def test_a_first_phase_begins_and_ends():
    run = runner(ft=FT(first_phase_epochs=2), kd=KD())
    ended = []
    run.model.mmkd.methods['ft'].end_first_phase = lambda: ended.append(run.epoch)
    run.message_hub.update_scalar('train/ft.loss_feature', 1.0)
    states = begin_epochs(FirstPhaseHook(), run, 3)
    assert states == [(True, None, True), (True, None, True), (False, None, False)]
    assert ended == [2]
    assert 'train/ft.loss_feature' not in run.message_hub.log_scalars, 'the log does not repeat it'


def test_the_student_is_trained_where_one_first_phase_trains_it():
    run = runner(ft=FT(first_phase_epochs=1), ab=AB(first_phase_epochs=2))
    assert begin_epochs(FirstPhaseHook(), run, 3) == [
        (True, True, False), (False, True, False), (False, False, False)]


def test_a_first_phase_leaves_epochs_for_the_task():
    with pytest.raises(MMKDError, match='first phase of ab takes 3 epochs, and the whole training has 3'):
        FirstPhaseHook().before_train(runner(3, ab=AB(first_phase_epochs=3)))


def test_a_first_phase_needs_epochs():
    run = runner(ab=AB(first_phase_epochs=1))
    run.train_loop = IterBasedTrainLoop.__new__(IterBasedTrainLoop)
    with pytest.raises(MMKDError, match='ab: a first phase is counted in epochs'):
        FirstPhaseHook().before_train(run)


class Loop(BaseLoop):

    def __init__(self):
        pass

    def run(self):
        pass


def labels_of(*, loop, dataset, **methods):
    run = runner(**methods)
    run._train_loop = loop
    run.train_dataloader = types.SimpleNamespace(dataset=dataset)
    TrainLabelsHook().before_run(run)


def test_labels_reach_the_methods_that_need_them():
    dataset = types.SimpleNamespace(get_gt_labels=lambda: np.array([2, 0, 1]))
    received = []
    crd, at = CRD(), KD()
    crd.set_train_labels = received.append
    labels_of(loop=Loop(), dataset=dataset, crd=crd, at=at)
    assert received == [[2, 0, 1]]
    labels_of(loop=dict(), dataset=dataset, crd=crd)  # a test, in which the loop is not built
    assert len(received) == 1


def test_a_data_set_without_labels():
    labels_of(loop=Loop(), dataset=object(), kd=KD())
    with pytest.raises(MMKDError, match='needs the class of every training image, which object cannot list'):
        labels_of(loop=Loop(), dataset=object(), crd=CRD())


@pytest.mark.parametrize(('processes', 'round_up'), [(1, False), (2, True), (2, False)])
def test_a_shared_memory_needs_batches_of_one_size(monkeypatch, processes, round_up):
    monkeypatch.setattr('mmkd.engine.hooks.method_hooks.get_world_size', lambda: processes)
    crd = CRD()
    crd.set_train_labels = lambda labels: None
    run = runner(crd=crd)
    run._train_loop = Loop()
    run.train_dataloader = types.SimpleNamespace(
        dataset=types.SimpleNamespace(get_gt_labels=lambda: np.array([2, 0])),
        sampler=types.SimpleNamespace(round_up=round_up))
    if processes == 2 and not round_up:
        with pytest.raises(MMKDError, match=r'set train_dataloader\.sampler\.round_up=True'):
            TrainLabelsHook().before_run(run)
    else:
        TrainLabelsHook().before_run(run)


class Reporting(EpochReports, nn.Module):

    def epoch_report(self):
        return dict(seen=[1, 2])


def test_reports_are_appended(tmp_path):
    run = runner(a=Reporting(), kd=KD())
    run.work_dir = str(tmp_path)
    for run.epoch in range(2):
        EpochReportHook().after_train_epoch(run)
    lines = (tmp_path / 'a_epochs.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == [dict(epoch=1, seen=[1, 2]), dict(epoch=2, seen=[1, 2])]
    assert [path.name for path in tmp_path.iterdir()] == ['a_epochs.jsonl']
