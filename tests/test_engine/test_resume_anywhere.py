"""A run that is resumed after any iteration goes on as if it had never been interrupted."""
import os

import pytest

from mmkd.checkpoints import load_checkpoint
from tests.helpers.comparing import differences
from tests.helpers.toy_runs import result, toy_config, train


def check(cfg, tmp_path, iterations, **changes) -> None:
    """Train without interruption; then resume after each of some iterations, and compare."""
    cfg.merge_from_dict(changes)
    undisturbed = train(cfg)
    expected, batches = result(undisturbed), undisturbed.model.batches
    for number in iterations:
        resumed = train(cfg, f'{tmp_path}/iter_{number}.pth')
        assert resumed.model.batches == batches[number:], number
        ended = result(resumed)
        assert not differences(expected, ended), number


def test_in_an_epoch(tmp_path):
    check(toy_config(tmp_path), tmp_path, range(1, 19))


def test_iteration_loop_over_an_infinite_sampler(tmp_path):
    cfg = toy_config(tmp_path, by_epoch=False, length=14, val_interval=4,
                     sampler=dict(type='InfiniteSampler', shuffle=True))
    check(cfg, tmp_path, range(1, 14))


def test_iteration_loop_over_passes(tmp_path):
    check(toy_config(tmp_path, by_epoch=False, length=14, val_interval=4), tmp_path, range(1, 14))


def test_gradients_half_collected(tmp_path):
    cfg = toy_config(tmp_path)
    cfg.optim_wrapper.accumulative_counts = 4
    check(cfg, tmp_path, range(1, 18))
    gradients = load_checkpoint(f'{tmp_path}/iter_6.pth')['mmkd_resume']['ranks'][0]['gradients']
    assert len(gradients) == 6
    assert not load_checkpoint(f'{tmp_path}/iter_8.pth')['mmkd_resume']['ranks'][0]['gradients']


@pytest.mark.parametrize('batch_sampler', [None, dict(type='mmdet.AspectRatioBatchSampler')])
def test_workers(tmp_path, batch_sampler):
    loader = dict(num_workers=2, persistent_workers=batch_sampler is None, batch_sampler=batch_sampler)
    check(toy_config(tmp_path, **loader), tmp_path, (1, 6, 8, 12))


def test_the_number_of_workers_does_not_matter(tmp_path):
    alone = train(toy_config(tmp_path / 'a'))
    assisted = train(toy_config(tmp_path / 'b', num_workers=2))
    assert alone.model.batches == assisted.model.batches


@pytest.mark.parametrize('by_epoch', [True, False])
def test_an_interrupted_validation_is_done(tmp_path, by_epoch):
    cfg = toy_config(tmp_path, by_epoch, length=3 if by_epoch else 18, val_interval=1 if by_epoch else 6)
    if by_epoch:
        cfg.default_hooks.checkpoint.by_epoch = True
    expected = result(train(cfg))
    cfg.work_dir = str(tmp_path / 'killed')
    train(cfg, stop=dict(in_validation=12))
    name = 'epoch_2' if by_epoch else 'iter_12'
    ended = result(train(cfg, f'{tmp_path}/killed/{name}.pth'))
    assert not differences(expected, ended)


def test_a_best_checkpoint_is_not_validated_again(tmp_path):
    runner = train(toy_config(tmp_path))
    best = os.path.basename(runner.message_hub.get_info('best_ckpt'))
    resume = load_checkpoint(f'{tmp_path}/{best}')['mmkd_resume']
    assert resume['was_validated'] and resume['next_batch'] == 0
    assert not load_checkpoint(f'{tmp_path}/iter_5.pth')['mmkd_resume']['was_validated']
