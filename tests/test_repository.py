"""The repository itself: what the fast tests cover, and one version of each linter everywhere."""
import ast
import re

import pytest

from tests.helpers.tiny import REPO

PACKAGES = sorted({path.parent.relative_to(REPO / 'mmkd') for path in REPO.glob('mmkd/*/**/*.py')
                   if path.name != '__init__.py'})
STACKS = ('onedl', 'upstream')


def fast_tests(source: str) -> list[str]:
    """Names of the tests in a file's source that ``-m "not slow"`` runs."""
    tree = ast.parse(source)
    marks = [ast.unparse(node.value) for node in tree.body
             if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'pytestmark']
    if any('mark.slow' in mark for mark in marks):
        return []
    return [node.name for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')
            and not any(ast.unparse(decorator) == 'pytest.mark.slow' for decorator in node.decorator_list)]


def pins(name: str) -> dict[str, str]:
    """Pinned versions of a constraints file, without those for Python 3.10 only."""
    text = (REPO / 'requirements' / f'constraints-{name}.txt').read_text()
    return dict(re.findall(r'^([\w.-]+)==([\w.]+)(?!.*<)', text, re.MULTILINE))


def test_marks_are_recognized():
    slow, fast = 'def test_a(): pass\n', 'def test_b(): pass\n'
    assert fast_tests(f'@pytest.mark.slow\n{slow}{fast}') == ['test_b']
    assert fast_tests(f'pytestmark = [pytest.mark.slow, pytest.mark.dist]\n{fast}') == []


@pytest.mark.parametrize('package', PACKAGES, ids=str)
def test_every_package_has_fast_tests(package):
    """Within the folder of ``tests/`` that mirrors the package, or beside that folder."""
    folder = REPO.joinpath('tests', *(f'test_{part}' for part in package.parts))
    files = [*folder.rglob('test_*.py')]
    if len(package.parts) > 1:
        files += folder.parent.glob('test_*.py')
    assert any(fast_tests(path.read_text()) for path in files), f'no fast test for mmkd/{package}'


@pytest.mark.parametrize('stack', STACKS)
def test_pre_commit_uses_the_pinned_linters(stack):
    text = (REPO / '.pre-commit-config.yaml').read_text()
    hooks = dict(re.findall(r'\b(ruff|mdformat|mdformat-gfm|codespell|mypy)==([\w.]+)', text))
    assert len(hooks) == 5
    assert hooks == {name: pins(stack).get(name) for name in hooks}
