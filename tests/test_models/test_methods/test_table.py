"""The table of methods against the registered classes, the shipped configs and the docs pages."""
import ast
import copy
import inspect
import pickle
import re

import pytest

import mmkd
from mmkd.errors import MMKDError
from mmkd.models.methods import ZOO, FeatureDistill, LogitDistill, Method, ProxyDistill
from mmkd.models.methods.table import METHODS, TASKS
from mmkd.registry import MODELS
from tests.helpers.tiny import REPO

FOLDER = REPO / 'mmkd/models/methods'
GENERAL = {'FeatureDistill', 'LogitDistill', 'ProxyDistill', 'SpotAdaptiveDistill'}
"""Registered methods that papers are settings of."""


def test_the_table_holds_all_registered_methods():
    registered = {name for name, cls in MODELS.module_dict.items()
                  if inspect.isclass(cls) and issubclass(cls, Method)}
    assert set(METHODS) == registered - GENERAL


@pytest.mark.parametrize('name', METHODS)
def test_a_row(name):
    entry = METHODS[name]
    assert entry.name == name
    assert entry.cls is getattr(mmkd, name) is MODELS.get(f'mmkd.{name}')
    assert issubclass(entry.cls, Method)
    assert entry.task and set(entry.task) <= set(TASKS)
    assert re.search(r'\(.* 20\d\d\)|, 20\d\d\)', entry.paper)


@pytest.mark.parametrize('name', METHODS)
def test_the_config_shows_the_method(name):
    config = METHODS[name].config
    if config is None:
        assert name in ('HardLabel', 'QueryBoxes')
    else:
        assert f"'mmkd.{name}'" in (REPO / config).read_text()


def test_the_docs_name_every_method():
    """In a table, or in the heading of a page."""
    lines = [line for page in (REPO / 'docs').glob('*.md') for line in page.read_text().splitlines()
             if line.startswith(('|', '# '))]
    named = {name for line in lines for name in re.findall(r'\w+', line)}
    assert set(METHODS) <= named


# Classes


@pytest.mark.parametrize('name', METHODS)
def test_a_class_documents_every_argument(name):
    parameters = inspect.signature(METHODS[name].cls).parameters
    assert parameters
    doc = inspect.getdoc(METHODS[name].cls)
    _, _, arguments = doc.partition('Args:\n')
    documented = {word.strip('*') for word in re.findall(r'^    ([*\w]+): ', arguments, re.MULTILINE)}
    assert set(parameters) <= documented


@pytest.mark.parametrize('name', [name for name in METHODS if name != 'SAKD'])
def test_a_signature_lists_every_argument(name):
    kinds = {parameter.kind for parameter in inspect.signature(METHODS[name].cls).parameters.values()}
    assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    assert all(parameter.default is not inspect.Parameter.empty
               for parameter in inspect.signature(METHODS[name].cls).parameters.values())


@pytest.mark.parametrize('name', METHODS)
def test_an_instance_is_of_its_class(name):
    method = METHODS[name].cls()
    assert type(method) is METHODS[name].cls
    assert repr(method).startswith(f'{name}(')
    for other in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert type(other) is type(method) and repr(other) == repr(method)


@pytest.mark.parametrize('name', ZOO)
def test_defaults_of_the_zoo_are_those_of_the_loss_and_of_the_method(name):
    entry = ZOO[name]
    base = FeatureDistill if issubclass(entry.cls, FeatureDistill) else LogitDistill
    parameters = dict(inspect.signature(entry.cls).parameters)
    of_base = set(inspect.signature(base).parameters) - {'loss'}
    of_loss = set(inspect.signature(entry.loss).parameters) - {'args', 'kwargs'}
    assert set(parameters) - {'protocol'} == of_base | of_loss
    method = entry.cls()
    loss = method.losses[0] if base is FeatureDistill else method.loss
    for key, parameter in parameters.items():
        holder = loss if key in of_loss else method
        if key in vars(holder):
            assert getattr(holder, key) == parameter.default, key
    if base is FeatureDistill:
        assert method.connector_cfg == parameters['connector'].default


def test_arguments_reach_the_loss_and_the_method():
    method = mmkd.CRD(weight=0.5, negatives=6, spot='neck')
    assert isinstance(method, FeatureDistill)
    assert method.loss_cfg['weight'] == 0.5 and method.losses[0].negatives == 6 and method.spot == 'neck'
    method = mmkd.DKD(weight=0.5, beta=2.0, student_task=0.1)
    assert isinstance(method, LogitDistill)
    assert (method.weight, method.loss.beta, method.student_task) == (0.5, 2.0, 0.1)
    with pytest.raises(MMKDError, match="`negative` of CRD does not exist; the nearest names are 'negati"):
        mmkd.CRD(negative=6)


def test_presets_are_classes():
    method = mmkd.SHAKE(placement='teacher')
    assert isinstance(method, mmkd.SHAKE) and isinstance(method, ProxyDistill)
    assert not isinstance(method, mmkd.SOKD)
    assert inspect.signature(mmkd.SHAKE).parameters['placement'].default == 'student'


# Imports


def imports_of(path) -> set[str]:
    """Return the modules inside the package of the methods that a module imports, with dots."""
    package = path.relative_to(FOLDER).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(package) + 1:
            parts = (*package[:len(package) + 1 - node.level], *(node.module or '').split('.'))
            parts = [part for part in parts if part]
            found |= {'.'.join(parts)} | {'.'.join((*parts, alias.name)) for alias in node.names}
    return found


def test_methods_have_four_floors_of_imports_and_no_circle():
    paths = {'.'.join(path.relative_to(FOLDER).with_suffix('').parts).removesuffix('.__init__'): path
             for path in FOLDER.rglob('*.py') if path != FOLDER / '__init__.py'}
    imports = {name: imports_of(path) & set(paths) for name, path in paths.items()}

    def floor(name: str, below: tuple[str, ...] = ()) -> int:
        assert name not in below, f'circle: {below}'
        height = max((floor(other, (*below, name)) for other in imports[name]), default=0)
        return height + (paths[name].name != '__init__.py')  # which only lists what a folder exports

    assert imports['zoo'] >= {'feature_distill', 'logit_distill'}
    assert max(map(floor, paths)) <= 4
