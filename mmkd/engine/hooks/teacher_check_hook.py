"""Checking the teacher before training."""
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...errors import MMKDError
from ...models.teachers import Teacher, TeacherCache, check_cache
from ...random_state import preserved_random_state
from ...registry import HOOKS
from ..runner_access import unwrapped

MINIMUM = {'coco/bbox_mAP': 0.05, 'accuracy/top1': 20.0}
"""By metric, the value that any teacher should reach."""


@HOOKS.register_module()
class TeacherCheckHook(Hook):
    """Checks the teacher's classes, and logs its metrics on the validation set, before training.

    A teacher with a cache is not evaluated; instead, the cache is checked against the training data.

    Args:
        evaluate: Whether to evaluate the teacher; never done with random weights or when a run is resumed.
        metric: The metric that ``minimum`` limits; by default ``coco/bbox_mAP`` or ``accuracy/top1``.
        minimum: An error is logged if the teacher's metric is lower; by default, an AP of 0.05 or a top-1
            accuracy of 20 %.
    """

    def __init__(self, evaluate: bool = True, metric: str | None = None,
                 minimum: float | None = None) -> None:
        self.evaluate = evaluate
        self.metric = metric
        self.minimum = minimum

    def before_train(self, runner: Runner) -> None:
        model = unwrapped(runner)
        if not hasattr(model, 'mmkd'):
            return
        metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}
        for teacher in model.mmkd.teachers:
            teacher.check_class_names(metainfo.get('classes'))
            if teacher.cache is not None:
                _check_cache(runner, teacher, teacher.cache)
            elif self.evaluate and not teacher.is_random and runner.iter == 0 and runner.val_loop is not None:
                with preserved_random_state():  # evaluation does not change the training
                    self._evaluate(runner, teacher)

    @torch.no_grad()
    def _evaluate(self, runner: Runner, teacher: Teacher) -> None:
        dataloader, evaluator = runner.val_loop.dataloader, runner.val_loop.evaluator
        print_log(f'Evaluating the teacher on {len(dataloader.dataset)} validation images '
                  '(skip this with default_hooks.teacher_check.evaluate=False).', 'current')
        for batch in dataloader:
            outputs = teacher.model.val_step(batch)
            for sample in outputs:
                teacher.class_mapping.sample(sample)
            evaluator.process(data_samples=outputs, data_batch=batch)
        metrics = evaluator.evaluate(len(dataloader.dataset))
        if get_rank() != 0:
            return
        print_log('Teacher: ' + ', '.join(f'{name} {value:.4f}' for name, value in metrics.items()
                                          if isinstance(value, (int, float))), 'current')
        for name in MINIMUM if self.metric is None else [self.metric]:
            minimum = MINIMUM.get(name, 0.0) if self.minimum is None else self.minimum
            if metrics.get(name, minimum) < minimum:
                print_log(
                    f'THE TEACHER IS POOR: {name} is {metrics[name]:.4f}, below {minimum}. Check its '
                    'checkpoint, its class list and its normalization.', 'current', 40)


def _check_cache(runner: Runner, teacher: Teacher, cache: TeacherCache) -> None:
    model, dataset = unwrapped(runner), runner.train_dataloader.dataset
    print_log(f'Comparing the teacher cache {cache.folder!r} with the teacher and the training data.',
              'current')
    # Mixed images have soft labels only.
    names = [name for name, method in model.mmkd.methods.items()
             if getattr(getattr(method, 'loss', None), 'needs_labels', False)]
    if names and getattr(dataset, 'mix', None):
        raise MMKDError(f'The methods {", ".join(names)} need one class label for every image, but the '
                        'training data mix images.')
    check_cache(teacher, model, runner.cfg.train_dataloader.dataset, dataset)
    print_log(f'The logits of the teacher are read from the cache {cache.folder!r}, so it is not '
              f'evaluated; its top-1 accuracy on the cached images was {cache.top1():.2f} %.', 'current')
