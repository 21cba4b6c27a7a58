"""Checking the teacher before training."""
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ...errors import MMKDError, nearest_names
from ...models.teachers import Teacher, TeacherCache, check_cache, record_nan_layers
from ...random_state import preserved_random_state
from ...registry import HOOKS
from ..runner_access import unwrapped

MINIMUM = {'coco/bbox_mAP': 0.05, 'accuracy/top1': 20.0}
"""By metric, the value that any teacher should reach."""


@HOOKS.register_module()
class TeacherCheckHook(Hook):
    """Checks the teacher's classes, and logs its metrics on the validation set, before training.

    An error is logged if the teacher is poor: its metric is too low or missing, it finds no object, or it
    predicts a single class. A teacher that computes NaN ends the training. A teacher with a cache is not
    evaluated; instead, the cache is checked against the training data.

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
        predicted: Counter[int] = Counter()
        labeled: Counter[int] = Counter()
        for index, batch in enumerate(dataloader):
            # Looking into every layer takes time, and NaN hardly ever depends on the image.
            layers: Any
            with record_nan_layers(teacher.model) if index == 0 else nullcontext() as layers:
                outputs = teacher.model.val_step(batch)
            if layers:
                raise MMKDError(f'The teacher {type(teacher.model).__name__} computes NaN on validation '
                                f'images, first in its layer {layers[0]!r}; check its checkpoint.')
            for sample in outputs:
                teacher.class_mapping.sample(sample)
                predicted.update(_classes(sample, 'pred'))
                labeled.update(_classes(sample, 'gt'))
            evaluator.process(data_samples=outputs, data_batch=batch)
        values = evaluator.evaluate(len(dataloader.dataset))  # the same on all ranks
        metrics = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        counts = all_gather_object((predicted, labeled))
        predicted, labeled = (sum(parts, Counter()) for parts in zip(*counts, strict=True))
        print_log('Teacher: ' + (', '.join(f'{name} {value:.4f}' for name, value in metrics.items())
                                 or 'no metrics'), 'current')
        problems = [*self._poor_metrics(metrics), *_blindness(predicted, labeled)]
        if problems and get_rank() == 0:  # errors would be logged by all ranks
            print_log(f'THE TEACHER IS POOR: {"; ".join(problems)}. Check its checkpoint, its class list and '
                      'its normalization.', 'current', 40)

    def _poor_metrics(self, metrics: Mapping[str, float]) -> list[str]:
        """Return what is wrong with the metrics.

        Raises:
            MMKDError: If there are metrics, but not the one that the user named.
        """
        if not metrics:
            return [f'its evaluation gave no metric, so {self.metric or "its quality"} is unknown']
        if self.metric is not None and self.metric not in metrics:
            nearest = nearest_names(self.metric, metrics) or f'; the metrics are {", ".join(metrics)}'
            raise MMKDError(f'The evaluation gives no metric {self.metric!r}{nearest}; set '
                            'default_hooks.teacher_check.metric.')
        names = [name for name in MINIMUM if name in metrics] if self.metric is None else [self.metric]
        if not names:
            print_log(f'The metrics of the teacher are not compared with a minimum: set default_hooks.'
                      f'teacher_check.metric to one of {", ".join(metrics)}, and minimum.', 'current', 30)
        problems = []
        for name in names:
            minimum = MINIMUM.get(name, 0.0) if self.minimum is None else self.minimum
            if not metrics[name] >= minimum:  # so that NaN is a problem too
                problems.append(f'{name} is {metrics[name]:.4f}, below {minimum}')
        return problems


def _classes(sample: BaseDataElement, kind: str) -> list[int]:
    """Return the classes in a sample, predicted (``'pred'``) or true (``'gt'``)."""
    instances = sample.get(f'{kind}_instances')
    labels = sample.get(f'{kind}_label') if instances is None else instances.get('labels')
    return [] if labels is None else labels.flatten().tolist()


def _blindness(predicted: Counter[int], labeled: Counter[int]) -> list[str]:
    """Return what shows that a network does not depend on its images, from the numbers of labels by class."""
    if not predicted:
        return ['it predicts nothing in any image']
    if len(predicted) == 1 and len(labeled) > 1 and predicted.total() > 1:
        return [f'it predicts class {next(iter(predicted))} everywhere']
    return []


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
