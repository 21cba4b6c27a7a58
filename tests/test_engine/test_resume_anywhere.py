"""A run that is resumed after any iteration goes on as if it had never been interrupted."""
import os

import pytest
import torch
from mmengine.dist import get_rank

import mmkd.checkpoints.atomic_files as atomic_files
from mmkd.checkpoints import latest_checkpoint, load_checkpoint
from mmkd.errors import MMKDError
from tests.helpers.comparing import differences
from tests.helpers.toy_runs import Stop, batches_of, result, toy_config, train
from tests.helpers.two_processes import run_in_two_processes


def check(cfg, tmp_path, iterations) -> None:
    """Train without interruption; then resume after each of some iterations, and compare."""
    undisturbed = train(cfg)
    batches, expected = batches_of(undisturbed), result(undisturbed)
    for number in iterations:
        resumed = train(cfg, f'{tmp_path}/iter_{number}.pth')
        assert batches_of(resumed) == batches[number:], number
        assert not differences(expected, result(resumed)), number


@pytest.mark.slow
def test_in_an_epoch(tmp_path):
    check(toy_config(tmp_path), tmp_path, (1, 6, 11, 12))


def test_iteration_loop_over_an_infinite_sampler(tmp_path):
    cfg = toy_config(tmp_path, by_epoch=False, length=14, val_interval=4,
                     sampler=dict(type='InfiniteSampler', shuffle=True))
    check(cfg, tmp_path, (4, 11))


def test_iteration_loop_over_passes(tmp_path):
    check(toy_config(tmp_path, by_epoch=False, length=14, val_interval=4), tmp_path, (6, 7, 12))


@pytest.mark.slow
def test_gradients_half_collected(tmp_path):
    cfg = toy_config(tmp_path)
    cfg.optim_wrapper.accumulative_counts = 4
    check(cfg, tmp_path, (6, 8, 17))
    gradients = load_checkpoint(f'{tmp_path}/iter_6.pth')['mmkd_resume']['ranks'][0]['gradients']
    assert len(gradients) == 6
    assert not load_checkpoint(f'{tmp_path}/iter_8.pth')['mmkd_resume']['ranks'][0]['gradients']


@pytest.mark.slow
@pytest.mark.parametrize('batch_sampler', [None, dict(type='mmdet.AspectRatioBatchSampler')])
def test_workers(tmp_path, batch_sampler):
    loader = dict(num_workers=2, persistent_workers=batch_sampler is None, batch_sampler=batch_sampler)
    check(toy_config(tmp_path, length=2, **loader), tmp_path, (6, 8))


def test_the_number_of_workers_does_not_matter(tmp_path):
    alone = train(toy_config(tmp_path / 'a'))
    assisted = train(toy_config(tmp_path / 'b', num_workers=2))
    assert batches_of(alone) == batches_of(assisted)
    sums = [batch[1] for batch in batches_of(alone)]
    assert len(set(sums)) == len(sums)


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_transforms_that_cache_images(tmp_path, workers):
    cfg = toy_config(tmp_path, num_workers=workers, dataset=dict(type='ToyDataset', cached=True))
    check(cfg, tmp_path, (5, 9))


@pytest.mark.slow
def test_sizes_that_mmdetection_draws(tmp_path):
    cfg = toy_config(tmp_path)
    cfg.model.resize = True
    check(cfg, tmp_path, (4, 8))
    assert len({batch[3] for batch in batches_of(train(cfg))}) > 3


@pytest.mark.parametrize('by_epoch', [True, False])
def test_an_interrupted_validation_is_done(tmp_path, by_epoch):
    cfg = toy_config(tmp_path, by_epoch, length=3 if by_epoch else 18, val_interval=1 if by_epoch else 6)
    if by_epoch:
        cfg.default_hooks.checkpoint.by_epoch = True
    expected = result(train(cfg))
    cfg.work_dir = str(tmp_path / 'killed')
    train(cfg, stop=dict(in_validation=6))
    path = f'{tmp_path}/killed/{"epoch_1" if by_epoch else "iter_6"}.pth'
    assert not differences(expected, result(train(cfg, path)))
    assert load_checkpoint(path)['mmkd_resume']['was_validated']  # written again with the best score


def test_a_best_checkpoint_is_not_validated_again(tmp_path):
    runner = train(toy_config(tmp_path))
    best = os.path.basename(runner.message_hub.get_info('best_ckpt'))
    resume = load_checkpoint(f'{tmp_path}/{best}')['mmkd_resume']
    assert resume['was_validated'] and resume['next_batch'] == 0
    assert not load_checkpoint(f'{tmp_path}/iter_5.pth')['mmkd_resume']['was_validated']


def test_killed_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    cfg = toy_config(tmp_path / 'run')
    cfg.default_hooks.checkpoint.update(interval=4, max_keep_ckpts=1)
    expected = result(train(cfg))
    cfg.work_dir = str(tmp_path / 'killed')
    replace = os.replace

    def kill(partial, path):
        if path.endswith('iter_8.pth'):
            raise Stop
        replace(partial, path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files.os, 'replace', kill)
        train(cfg)
    assert os.path.basename(latest_checkpoint(cfg.work_dir)).startswith('iter_')
    assert not os.path.exists(f'{cfg.work_dir}/iter_8.pth')
    assert not differences(expected, result(train(cfg, latest_checkpoint(cfg.work_dir))))


def _in_two_processes(rank: int, folder: str) -> None:
    cfg = toy_config(folder, length=2)
    cfg.optim_wrapper.accumulative_counts = 2
    undisturbed = train(cfg)
    batches, expected = batches_of(undisturbed), result(undisturbed)
    for number in (3, 4):
        resumed = train(cfg, f'{folder}/iter_{number}.pth')
        assert batches_of(resumed) == batches[number:], (get_rank(), number)
        assert not differences(expected, result(resumed)), (get_rank(), number)


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks(tmp_path):
    run_in_two_processes(_in_two_processes, str(tmp_path))
    one, other = load_checkpoint(f'{tmp_path}/iter_3.pth')['mmkd_resume']['ranks']
    assert differences(one['gradients'], other['gradients'])
    assert not one['buffers'] and 'net.1.running_mean' in other['buffers']


# What does not fit


def test_another_number_of_samples_per_iteration(tmp_path, capfd):
    cfg = toy_config(tmp_path)
    undisturbed = [index for batch in batches_of(train(cfg))[3:6] for index in batch[0]]
    cfg.train_dataloader.batch_size = 2
    resumed = train(cfg, f'{tmp_path}/iter_3.pth')
    assert [index for batch in batches_of(resumed)[:5] for index in batch[0]] == undisturbed
    said = capfd.readouterr()
    assert 'train_dataloader.batch_size was 4 and is now 2' in said.out + said.err


def test_another_optimizer_is_an_error(tmp_path):
    cfg = toy_config(tmp_path, length=1)
    train(cfg)
    cfg.optim_wrapper.optimizer = dict(type='Adam', lr=0.1)
    with pytest.raises(MMKDError, match=r"optim_wrapper\.optimizer\.type was 'SGD' and is now 'Adam'"):
        train(cfg, f'{tmp_path}/iter_3.pth')


def test_without_the_state_of_the_optimizer(tmp_path):
    cfg = toy_config(tmp_path, length=1)
    cfg.default_hooks.checkpoint.save_optimizer = False
    train(cfg)
    with pytest.raises(MMKDError, match='holds no state of the optimizer'):
        train(cfg, f'{tmp_path}/iter_3.pth')


def test_other_groups_of_parameters(tmp_path):
    cfg = toy_config(tmp_path, length=1)
    train(cfg)
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={'net.0': dict(lr_mult=0.1)})
    with pytest.raises(MMKDError, match='6 parameters in 1 groups'):
        train(cfg, f'{tmp_path}/iter_3.pth')


def test_other_settings_are_logged(tmp_path, capfd):
    cfg = toy_config(tmp_path, length=1)
    train(cfg)
    cfg.train_cfg.max_epochs = 2
    cfg.optim_wrapper.optimizer.lr = 0.02
    assert train(cfg, f'{tmp_path}/iter_3.pth').iter == 12
    said = capfd.readouterr()
    assert ('optim_wrapper.optimizer.lr was 0.01 and is now 0.02, train_cfg.max_epochs was 1 and is now 2.'
            in said.out + said.err)


@pytest.mark.parametrize(('damage', 'said'), [
    (dict(next_batch='x'), 'does not say where'), (dict(next_batch=-1), 'does not say where'),
    (dict(ranks=[dict(random=3)]), 'do not fit this training'), (dict(ranks=[]), 'does not say where')])
def test_damaged(tmp_path, damage, said):
    cfg = toy_config(tmp_path, length=1)
    train(cfg)
    checkpoint = torch.load(f'{tmp_path}/iter_3.pth', weights_only=False)
    checkpoint['mmkd_resume'].update(damage)
    torch.save(checkpoint, tmp_path / 'damaged.pth')
    with pytest.raises(MMKDError, match=said):
        train(cfg, f'{tmp_path}/damaged.pth')
