"""How fast images come."""
import json

import pytest
from mmengine.config import Config

from tests.helpers.tiny import REPO, load_tool

pytest.importorskip('mmpretrain')

TOOL = 'analysis_tools/benchmark_loading.py'
RESIDENT = (REPO / 'configs/examples/in_memory/digits_classifier.py').read_text().replace(
    '../quickstart/classifier_student.py', './plain.py')


@pytest.fixture(scope='module')
def configs(tmp_path_factory) -> tuple[str, str]:
    """The quickstart's classifier on few digits, and the same with its images resident in memory."""
    root = tmp_path_factory.mktemp('loading')
    load_tool('dataset_converters/digits_to_folders.py').make(str(root / 'digits'), train=20, val=10, seed=0)
    cfg = Config.fromfile('configs/examples/quickstart/classifier_student.py')
    cfg.train_dataloader.batch_size = 8
    cfg.train_dataloader.dataset.data_root = str(root / 'digits')
    cfg.dump(root / 'plain.py')
    (root / 'resident.py').write_text(RESIDENT)
    return str(root / 'plain.py'), str(root / 'resident.py')


def test_two_configs_are_measured(configs, run, tmp_path):
    plain, resident = configs
    ended = run(TOOL, resident, '--against', plain, '--seconds', '0.1', '--json', tmp_path / 'found.json',
                '--cfg-options', 'train_dataloader.batch_size=4')
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / 'found.json').read_text())
    assert (found['config'], found['against'], found['seconds']) == (resident, plain, 0.1)
    rates = found['images_per_second']
    assert set(rates) == {'config', 'against'} and all(rate > 0 for rate in rates.values())
    assert found['ratio'] == rates['config'] / rates['against']
    assert f'{plain}: {rates["against"]:.0f} images/s' in ended.out and f'{found["ratio"]:.2f}' in ended.out


def test_one_config_is_measured(configs, run, tmp_path):
    ended = run(TOOL, configs[0], '--seconds', '0.1', '--json', tmp_path / 'found.json', '--cfg-options',
                'train_dataloader.num_workers=1')
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / 'found.json').read_text())
    assert set(found['images_per_second']) == {'config'} and 'ratio' not in found


@pytest.mark.slow
def test_batches_are_what_training_gets(configs):
    tool = load_tool(TOOL)
    stream = tool.Stream(*tool.build(configs[1], {}))
    epochs = [[next(stream.batches) for _ in range(2)] for _ in range(2)]  # the rest of 4 images is dropped
    for number, epoch in enumerate(epochs):
        for batch in epoch:
            assert batch['inputs'].shape == (8, 3, 16, 16) and batch['inputs'].is_floating_point()
            assert {sample.view for sample in batch['data_samples']} == {number}
    assert len({sample.sample_idx for batch in epochs[0] for sample in batch['data_samples']}) == 16


def test_images_that_are_missing(configs, run):
    ended = run(TOOL, configs[0], '--cfg-options', 'train_dataloader.dataset.data_root=nowhere')
    assert ended.code == 2 and "'nowhere' of train_dataloader does not exist" in ended.err
