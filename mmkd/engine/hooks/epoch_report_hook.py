"""Reports of methods on every epoch."""
import json
import os.path as osp

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...models.methods import EpochReports
from ...registry import HOOKS
from ..runner_access import unwrapped


@HOOKS.register_module()
class EpochReportHook(Hook):
    """Appends what methods report on an epoch (SAKD) to ``<method>_epochs.jsonl`` in the work directory."""

    priority = 'HIGH'

    def after_train_epoch(self, runner: Runner) -> None:
        for name, method in unwrapped(runner).mmkd.methods.items():
            report = method.epoch_report() if isinstance(method, EpochReports) else None
            if report and is_main_process():
                with open(osp.join(runner.work_dir, f'{name}_epochs.jsonl'), 'a') as file:
                    file.write(json.dumps(dict(epoch=runner.epoch + 1, **report)) + '\n')
