"""Looking at the teacher before it teaches."""
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log

from ...errors import MMKDError
from ...random_state import preserved_random_state
from ...registry import HOOKS
from ..runner_access import unwrapped

MINIMUM = {'coco/bbox_mAP': 0.05, 'accuracy/top1': 20.0}
"""By metric, what any teacher should reach."""


@HOOKS.register_module()
class TeacherCheckHook(Hook):
    """Checks the teacher's classes and logs its metric on the validation set before training.

    A teacher that answers from a cache is not evaluated; its cache must belong to this training.

    Args:
        evaluate: Whether to evaluate the teacher; skipped for a declared-random teacher and on resuming.
        metric: Which metric ``minimum`` speaks of; by default ``coco/bbox_mAP`` or ``accuracy/top1``.
        minimum: A teacher below this metric is warned of, loudly; by default below an AP of 0.05 or 20 %
            top-1 accuracy.
    """

    def __init__(self,
                 evaluate: bool = True,
                 metric: str | None = None,
                 minimum: float | None = None) -> None:
        self.evaluate = evaluate
        self.metric = metric
        self.minimum = minimum

    def before_train(self, runner) -> None:
        model = unwrapped(runner)
        if not hasattr(model, 'mmkd'):
            return
        dataset = runner.train_dataloader.dataset
        classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
        for teacher in model.mmkd.teachers:
            teacher.check_class_names(classes)
            if teacher.cache is not None:
                _check_cache(runner, model, teacher, dataset)
            elif self.evaluate and not teacher.is_random and runner.iter == 0 and runner.val_loop is not None:
                with preserved_random_state():  # training draws the same numbers with and without this
                    self._evaluate(runner, teacher)

    @torch.no_grad()
    def _evaluate(self, runner, teacher) -> None:
        dataloader, evaluator = runner.val_loop.dataloader, runner.val_loop.evaluator
        print_log(f'Evaluating the teacher on {len(dataloader.dataset)} validation images '
                  '(default_hooks.teacher_check.evaluate=False skips this).', 'current')
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


def _check_cache(runner, model, teacher, dataset) -> None:
    cache = teacher.cache
    print_log(f'Comparing the teacher cache {cache.folder!r} with the teacher and the data.', 'current')
    # Labels of classes that are mixed reach methods as soft labels only.
    wanting = [name for name, method in model.mmkd.methods.items()
               if getattr(getattr(method, 'loss', None), 'needs_labels', False)]
    if wanting and getattr(dataset, 'mix', None):
        raise MMKDError(f'{", ".join(wanting)}: one true class is needed for every image, and the training '
                        'data mix images.')
    teacher.check_cache(model, runner.cfg.train_dataloader.dataset, dataset)
    print_log(f'The teacher answers from the cache {cache.folder!r} and is not evaluated; on the images '
              f'there, its top-1 accuracy was {cache.top1():.2f} %.', 'current')
