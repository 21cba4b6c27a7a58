"""The config files in configs/, sorted by the library that they are for."""
import ast
from pathlib import Path

from tests.helpers.tiny import REPO

CONFIGS = sorted(path.relative_to(REPO) for path in (REPO / 'configs').rglob('*.py')
                 if '_base_' not in path.parts)


def base_configs(path: Path) -> list[str]:
    """Return the base configs that a config file names."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            bases = ast.literal_eval(node.value)
            return [bases] if isinstance(bases, str) else bases
    return []


def is_classifier_config(path: Path) -> bool:
    """Whether a config file is based on a config of MMPretrain.

    The file is only parsed, because MMPretrain may be missing.
    """
    bases = base_configs(path)
    return any(base.startswith('mmpretrain::') for base in bases) or any(
        is_classifier_config(path.parent / base) for base in bases if '::' not in base)


CLASSIFIER_CONFIGS = [path for path in CONFIGS if is_classifier_config(REPO / path)]
DETECTOR_CONFIGS = [path for path in CONFIGS if path not in CLASSIFIER_CONFIGS]
