"""The config files in configs/, sorted by the library that they are for."""
import ast
from pathlib import Path

from tests.helpers.tiny import REPO

CONFIGS = sorted(path.relative_to(REPO) for path in (REPO / 'configs').rglob('*.py')
                 if '_base_' not in path.parts)


def bases(path: Path) -> list[str]:
    """Return what a config file names as its bases."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            found = ast.literal_eval(node.value)
            return [found] if isinstance(found, str) else found
    return []


def of_classifier(path: Path) -> bool:
    """Whether a config file is built on MMPretrain's; it is not read, for MMPretrain may be missing."""
    return any(base.startswith('mmpretrain::') or ('::' not in base and of_classifier(path.parent / base))
               for base in bases(path))


OF_CLASSIFIERS = [path for path in CONFIGS if of_classifier(REPO / path)]
OF_DETECTORS = [path for path in CONFIGS if path not in OF_CLASSIFIERS]
