"""A checkpoint is the student: stock MMDetection loads it where there is no mmkd."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector

from mmkd.checkpoints import load_checkpoint
from tests.helpers.tiny import distill, run_command, tiny_config

pytestmark = pytest.mark.slow

WITHOUT_MMKD = '''
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "mmkd":
            raise ModuleNotFoundError("mmkd is not installed here")

sys.meta_path.insert(0, Blocked())
student_config, trained, exported, image = sys.argv[1:]
import torch
from mmengine.config import Config
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.registry import MODELS

found = {}
for name, checkpoint in (("trained", trained), ("exported", exported)):
    model = init_detector(student_config, checkpoint, device="cpu")
    weights = torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]
    own = {key: value for key, value in weights.items() if not key.startswith("mmkd.")}
    model.load_state_dict(own, strict=True)
    found[name + "_extra_keys"] = len(weights) - len(own)
    found[name] = inference_detector(model, image).pred_instances.bboxes.tolist()
    inferencer = DetInferencer(weights=checkpoint, device="cpu", show_progress=False)
    result = inferencer(image, no_save_vis=True, return_vis=False)["predictions"][0]
    found[name + "_inferencer"] = result["bboxes"]
assert "mmkd" not in sys.modules
print("RESULT " + json.dumps(found))
'''


@pytest.fixture(scope='module')
def run(tmp_path_factory, digits, teacher_config, teacher_checkpoint):
    """A SHAKE run of one epoch through 'mmkd train'."""
    folder = tmp_path_factory.mktemp('deploy')
    cfg = tiny_config(data=digits)
    cfg.dump(folder / 'student.py')
    cfg.model = distill(cfg.model, teacher_config, teacher_checkpoint)
    cfg.train_cfg.update(max_epochs=2, val_interval=2)
    cfg.dump(folder / 'shake.py')
    run_command('train', folder / 'shake.py', '--work-dir', folder / 'run')
    run_command('export', folder / 'run/epoch_2.pth', folder / 'student.pth')
    return folder


def test_stock_detector_loads_and_agrees(run, digits):
    image = sorted((p for p in os.scandir(f'{digits}/val')), key=lambda p: p.name)[0].path
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT_MMKD, str(run / 'student.py'), str(run / 'run/epoch_2.pth'),
         str(run / 'student.pth'), image],
        cwd=run, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=''))
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith('RESULT '))
    found = json.loads(line[7:])
    model = init_detector(str(run / 'student.py'), str(run / 'run/epoch_2.pth'), device='cpu')
    expected = inference_detector(model, image).pred_instances.bboxes.numpy()
    assert len(expected) > 0
    for name in ('trained', 'exported', 'trained_inferencer', 'exported_inferencer'):
        np.testing.assert_allclose(np.array(found[name]), expected, rtol=1e-4, atol=1e-3, err_msg=name)
    assert found['trained_extra_keys'] > 0 and found['exported_extra_keys'] == 0


def test_no_teacher_weights_and_only_data_are_saved(run, teacher_checkpoint):
    checkpoint = load_checkpoint(str(run / 'run/epoch_2.pth'))
    for text in (checkpoint['meta']['cfg'], checkpoint['message_hub']['runtime_info']['cfg']):
        assert 'mmkd' not in text and "type='FasterRCNN'" in text
    extra = [name for name in checkpoint['state_dict'] if name.startswith('mmkd.')]
    assert extra and all(name.startswith('mmkd.methods.shake.proxies.0.') for name in extra)
    teacher = load_checkpoint(teacher_checkpoint)['state_dict']['backbone.conv1.weight']
    assert not any(value.shape == teacher.shape and torch.equal(value, teacher)
                   for value in checkpoint['state_dict'].values())


def test_the_exported_file_holds_no_training_state(run):
    exported = load_checkpoint(str(run / 'student.pth'))
    assert set(exported) == {'meta', 'state_dict'}
    assert set(exported['meta']) <= {'dataset_meta', 'cfg', 'epoch', 'iter', 'mmengine_version'}
    assert exported['meta']['dataset_meta']['classes'] == tuple('0123456789')
