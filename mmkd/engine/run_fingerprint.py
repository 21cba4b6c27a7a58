"""What a run was trained with, so that resuming it with something else is noticed."""
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.dist import get_world_size
from mmengine.runner import Runner

from ..errors import MMKDError
from ..models.teachers.fingerprint import digest_of_weights, plain
from .runner_access import unwrapped

_LOADER_SETTINGS = ('batch_size', 'sampler', 'batch_sampler', 'drop_last', 'num_batch_per_epoch', 'dataset')


def fingerprint_of_run(runner: Runner) -> dict[str, Any]:
    """Return the settings that a training depends on, and the digests of its teachers' weights.

    Returns:
        dict: Numbers, words and ``None`` by the dotted key of the setting in the config.
    """
    cfg = runner.cfg
    model = {key: value for key, value in cfg.model.items() if key not in ('teacher', 'data_preprocessor')}
    teachers = [dict(config=teacher.cfg.model,
                     weights='random' if teacher.is_random else digest_of_weights(teacher.model))
                for teacher in getattr(getattr(unwrapped(runner), 'mmkd', None), 'teachers', ())]
    loader = {key: cfg.train_dataloader.get(key) for key in _LOADER_SETTINGS}
    settings = dict(model=model, teacher=teachers, optim_wrapper=cfg.optim_wrapper, train_cfg=cfg.train_cfg,
                    param_scheduler=cfg.get('param_scheduler'), train_dataloader=loader,
                    processes=get_world_size())
    return dict(_flat(plain(settings)))


def check_fingerprint(saved: Mapping[str, Any], current: Mapping[str, Any], source: str) -> str | None:
    """Compare the settings of a checkpoint with those of the run that resumes from it.

    Args:
        saved: What :func:`fingerprint_of_run` returned when the checkpoint was written.
        current: What it returns now.
        source: The checkpoint in messages.

    Returns:
        str | None: A warning of settings that differ, of which the training can go on.

    Raises:
        MMKDError: If the teacher, the methods, the networks, the optimizer or the loop are others.
    """
    saved = {ascii(str(key))[1:-1]: value for key, value in saved.items()}  # anything may be in a file
    different = {key: f'{key[:80]} was {_short(saved, key)} and is now {_short(current, key)}'
                 for key in sorted(saved.keys() | current.keys())
                 if ascii(saved.get(key)) != ascii(current.get(key))}
    if essential := [text for key, text in different.items() if _is_essential(key)]:
        raise MMKDError(f'{source} belongs to another training: {_listed(essential)}; restore the settings, '
                        'or use load_from to start from its weights.')
    if different:
        return f'{source} was written with other settings: {_listed(list(different.values()))}.'
    return None


def _is_essential(key: str) -> bool:
    first, *between, last = key.split('.')
    if first == 'teacher':
        return last == 'weights'
    if first == 'model':
        return last in ('type', 'method') and not {'train_cfg', 'test_cfg', 'data_preprocessor'} & {*between}
    return key in ('train_cfg.type', 'optim_wrapper.optimizer.type')


def _flat(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield key, value
        return
    for name, item in value.items():
        yield from _flat(item, f'{key}.{name}' if key else str(name))


def _short(settings: Mapping[str, Any], key: str) -> str:
    text = ascii(settings[key]) if key in settings else 'not set'
    if key.endswith('.weights'):
        return f'of SHA-256 {text.strip(chr(39))[:8]}'
    return text if len(text) <= 60 else f'{text[:57]}...'


def _listed(texts: list[str]) -> str:
    more = f', and {len(texts) - 3} more settings' if len(texts) > 3 else ''
    return ', '.join(texts[:3]) + more
