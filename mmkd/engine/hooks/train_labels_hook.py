"""The labels of the training set for methods that need them."""
from collections.abc import Sequence

from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from ...errors import MMKDError
from ...models.methods import TrainLabelsMethod
from ...registry import HOOKS
from ..runner_access import unwrapped


@HOOKS.register_module()
class TrainLabelsHook(Hook):
    """Passes the classes of the training set to the methods that need them (CRD)."""

    priority = 'HIGH'

    def before_run(self, runner: Runner) -> None:
        distillation = getattr(unwrapped(runner), 'mmkd', None)
        if distillation is None or not isinstance(runner._train_loop, BaseLoop):
            return  # a student alone, or a test
        methods = [method for method in distillation.methods.values()
                   if isinstance(method, TrainLabelsMethod) and method.needs_train_labels]
        if methods:
            # Before weights are loaded, because they may include buffers whose size depends on the labels.
            labels = train_labels(runner.train_dataloader.dataset)
            for method in methods:
                method.set_train_labels(labels)


def train_labels(dataset: BaseDataset) -> Sequence[int]:
    """Return the class of every sample of a data set.

    Raises:
        MMKDError: If the data set cannot list the classes.
    """
    if not hasattr(dataset, 'get_gt_labels'):
        raise MMKDError('A method needs the class of every training image, which '
                        f'{type(dataset).__name__} cannot list; use a data set of MMPretrain.')
    return dataset.get_gt_labels().tolist()
