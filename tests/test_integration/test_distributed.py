"""Two processes on CPU."""
import copy
import os
import subprocess

import pytest
import torch
from mmdet.models.task_modules.samplers import RandomSampler
from mmdet.registry import TASK_UTILS
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope
from torch import distributed as torch_dist
from torch import multiprocessing
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from mmkd.checkpoints import load_checkpoint
from tests.helpers.tiny import REPO, build, distill, tiny_config
from tests.helpers.two_processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.dist]


@TASK_UTILS.register_module()
class FirstSampler(RandomSampler):
    """Samples without chance, so that one process and two choose the same."""

    def random_choice(self, gallery, num):
        return gallery[:num]


def model_with_fixed_sampling(teacher_config: str, checkpoint: str):
    student = tiny_config().model
    student.train_cfg.rpn.sampler.type = 'FirstSampler'
    student.train_cfg.rcnn.sampler.type = 'FirstSampler'
    student.backbone.norm_eval = True  # batch statistics would differ between one and two processes
    return build(distill(student, teacher_config, checkpoint, shake=dict(type='mmkd.SHAKE'),
                        kd=dict(type='mmkd.KD')))




def worker(rank: int, port: int, folder: str, teacher_config: str, checkpoint: str) -> None:
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE='2',
                      LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    torch_dist.init_process_group('gloo')
    init_default_scope('mmdet')
    model = model_with_fixed_sampling(teacher_config, checkpoint)
    wrapped = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
    sent = []

    def count(state, bucket):
        sent.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return allreduce_hook(None, bucket)

    wrapped.register_comm_hook(None, count)
    whole = torch.load(f'{folder}/batch.pth', weights_only=False)
    half = {key: value[2 * rank:2 * rank + 2] for key, value in whole.items()}
    data = model.data_preprocessor(half, True)
    losses = wrapped(**data, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    if rank == 0:
        torch.save(dict(grads={name: p.grad for name, p in model.named_parameters()}, sent=sum(sent)),
                   f'{folder}/result.pth')
    torch_dist.barrier()
    # Torn down in order, a Python communication hook can deadlock with gloo's thread over the GIL.
    os._exit(0)


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory, batch, teacher_config, teacher_checkpoint):
    folder = tmp_path_factory.mktemp('ddp')
    torch.save(batch, folder / 'batch.pth')
    multiprocessing.spawn(worker, (free_port(), str(folder), teacher_config, teacher_checkpoint), nprocs=2)
    return torch.load(folder / 'result.pth')


def test_gradients_equal_those_of_one_process(two_processes, batch, teacher_config, teacher_checkpoint):
    model = model_with_fixed_sampling(teacher_config, teacher_checkpoint)
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    total, _ = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(two_processes['grads'][name], parameter.grad, rtol=1e-3, atol=1e-5,
                                   msg=lambda text, name=name: f'{name}: {text}')


def test_no_more_is_sent_than_the_trainable_parameters(two_processes, teacher_config, teacher_checkpoint):
    model = model_with_fixed_sampling(teacher_config, teacher_checkpoint)
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    assert two_processes['sent'] == trainable


def test_dist_train_script(tmp_path, digits, teacher_config, teacher_checkpoint):
    cfg = tiny_config(data=digits)
    cfg.model = distill(cfg.model, teacher_config, teacher_checkpoint)
    cfg.train_cfg.update(max_epochs=1)
    cfg.train_dataloader.update(batch_size=4, num_workers=1)
    cfg.dump(tmp_path / 'config.py')
    env = dict(os.environ, MMKD_PYTHON=os.sys.executable, PYTHONPATH=str(REPO), OMP_NUM_THREADS='1',
               PORT=str(free_port()))
    done = subprocess.run(
        ['bash', 'tools/dist_train.sh', str(tmp_path / 'config.py'), '2', '--work-dir',
         str(tmp_path / 'run')],
        cwd=REPO, env=env, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert 'gloo' in output and 'CPU' in output
    assert 'coco/bbox_mAP' in output
    checkpoint = load_checkpoint(str(tmp_path / 'run/epoch_1.pth'))
    one, other = checkpoint['mmkd_resume']['ranks']
    assert checkpoint['meta']['iter'] == 4 and one.keys() == other.keys()
