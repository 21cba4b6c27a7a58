"""An optimizer wrapper in which distillation does not change how the student is optimized."""
import copy
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from ...errors import SettingError
from ...models.methods import OptimizerSettings
from ...registry import OPTIM_WRAPPER_CONSTRUCTORS
from ...settings import NonNegativeFloat, check_setting, unknown_setting


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DistillOptimWrapperConstructor:
    """Builds the student's parameter groups by the user's rules, and further groups for distillation.

    The user's ``paramwise_cfg`` and constructor apply to the student only. The parameters that distillation
    adds get the optimizer's plain settings, changed by ``extra``, and follow the same schedules. Their
    gradients are clipped separately, so that the student's are clipped as without distillation.

    Args:
        optim_wrapper_cfg: The config of MMEngine's optimizer wrapper with two more keys:
            ``student_constructor``, the user's constructor, and ``extra``, optimizer settings for the
            parameters that distillation adds, such as ``dict(lr=0.01)``.
        paramwise_cfg: The user's rules for parameters.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        cfg = copy.deepcopy(optim_wrapper_cfg)
        self.extra = cfg.pop('extra', {})
        check_setting('the optimizer wrapper', 'extra', self.extra, dict)
        kind = cfg.get('type', 'OptimWrapper')
        wrapper = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
        cfg['type'] = type(f'Distill{wrapper.__name__}', (_SeparateStudent, wrapper), {})
        constructor = cfg.pop('student_constructor', 'DefaultOptimWrapperConstructor')
        self._student_constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(type=constructor, optim_wrapper_cfg=cfg, paramwise_cfg=paramwise_cfg))

    def __call__(self, model: nn.Module) -> OptimWrapper:
        student = model.module if is_model_wrapper(model) else model
        mmkd = student._modules.pop('mmkd', None)
        try:
            wrapper = self._student_constructor(student)
        finally:
            if mmkd is not None:
                student._modules['mmkd'] = mmkd
        _check_extra(self.extra, wrapper.optimizer.defaults)
        wrapper.number_of_student_groups = len(wrapper.optimizer.param_groups)
        for group in [] if mmkd is None else self._extra_groups(mmkd, wrapper.optimizer.defaults['lr']):
            wrapper.optimizer.add_param_group(group)
        return wrapper

    def _extra_groups(self, mmkd: nn.Module, lr: float) -> list[dict]:
        """Return a group for every part with particular settings, after one for all other parameters."""
        groups: list[dict] = []
        grouped: set[nn.Parameter] = set()
        for method in mmkd.methods.values():
            parts = method.optimizer_settings if isinstance(method, OptimizerSettings) else {}
            for part, part_settings in parts.items():
                settings = dict(part_settings)
                settings['lr'] = self.extra.get('lr', lr) * settings.pop('lr_mult', 1.0)
                parameters = _trainable(method.get_submodule(part))
                groups.append({**self.extra, **settings, 'params': parameters})
                grouped |= set(parameters)
        remaining = [parameter for parameter in _trainable(mmkd) if parameter not in grouped]
        return [group for group in [dict(self.extra, params=remaining), *groups] if group['params']]


def _check_extra(extra: dict, defaults: dict) -> None:
    """Check optimizer settings; an optimizer would ignore settings that it does not know."""
    for key, value in extra.items():
        if key not in defaults:
            raise unknown_setting('the optimizer', key, list(defaults)).inside('optim_wrapper.extra')
        annotation: Any = Any
        if isinstance(defaults[key], bool):
            annotation = bool
        elif isinstance(defaults[key], (int, float)):
            annotation = NonNegativeFloat
        try:
            check_setting('the optimizer', key, value, annotation)
        except SettingError as error:
            raise error.inside('optim_wrapper.extra') from None


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class _SeparateStudent(OptimWrapper):
    """Mix-in in front of an optimizer wrapper: separates the gradients of student and distillation."""

    number_of_student_groups: int | None = None

    student_is_frozen: bool = False
    """Whether steps leave the student unchanged."""

    def step(self, **kwargs) -> None:
        if self.student_is_frozen:
            for group in self.optimizer.param_groups[:self.number_of_student_groups]:
                for parameter in group['params']:
                    parameter.grad = None
        super().step(**kwargs)

    def _clip_grad(self) -> None:
        groups = self.optimizer.param_groups
        n = self.number_of_student_groups
        try:
            self.optimizer.param_groups = groups[:n]
            super()._clip_grad()
        finally:
            self.optimizer.param_groups = groups
        extra = [parameter for group in groups[n:] for parameter in group['params']
                 if parameter.grad is not None]
        if n is not None and extra:
            self.clip_func(extra, **self.clip_grad_kwargs)
