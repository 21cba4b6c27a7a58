"""Looking at the teacher before it teaches."""
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper

from ...models.random_state import preserved_random_state
from ...registry import HOOKS


@HOOKS.register_module()
class TeacherCheckHook(Hook):
    """Checks the teacher's classes and logs its metric on the validation set before training.

    Args:
        evaluate: Whether to evaluate the teacher; skipped for a declared-random teacher and on resuming.
        metric: Which metric ``minimum`` speaks of.
        minimum: A teacher below this metric is warned of, loudly.
    """

    def __init__(self,
                 evaluate: bool = True,
                 metric: str = 'coco/bbox_mAP',
                 minimum: float = 0.05) -> None:
        self.evaluate = evaluate
        self.metric = metric
        self.minimum = minimum

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not hasattr(model, 'mmkd'):
            return
        classes = (getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}).get('classes')
        for teacher in model.mmkd.teachers:
            teacher.check_class_names(classes)
            if self.evaluate and not teacher.is_random and runner.iter == 0 and runner.val_loop is not None:
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
                sample.pred_instances = teacher.in_students_classes(sample.pred_instances)
            evaluator.process(data_samples=outputs, data_batch=batch)
        metrics = evaluator.evaluate(len(dataloader.dataset))
        if get_rank() != 0:
            return
        print_log('Teacher: ' + ', '.join(f'{name} {value:.4f}' for name, value in metrics.items()
                                          if isinstance(value, (int, float))), 'current')
        value = metrics.get(self.metric)
        if value is not None and value < self.minimum:
            print_log(
                f'THE TEACHER IS POOR: {self.metric} is {value:.4f}, below {self.minimum}. Check its '
                'checkpoint, its class list and its normalisation.', 'current', 40)
