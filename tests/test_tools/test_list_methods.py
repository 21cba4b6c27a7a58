"""The list of all methods."""
import pytest

from mmkd.config_files import SHIPPED
from mmkd.models.methods.table import METHODS
from tests.helpers.tiny import run_command


@pytest.fixture
def listed(capsys):
    def run(*words):
        run_command('list', *words)
        _, *lines = capsys.readouterr().out.splitlines()
        return {line.split()[0]: line for line in lines}
    return run


def test_every_method_is_listed_with_its_paper(listed):
    lines = listed()
    assert set(lines) == set(METHODS)
    for name, line in lines.items():
        assert '20' in line.rsplit('(', 1)[1], f'{name}: no paper with a year'


def test_only_one_task(listed):
    assert 'RKD' not in listed('--task', 'detector') and 'FGD' not in listed('--task', 'classifier')
    assert 'LD' in listed('--task', 'detector') and 'KD' in listed('--task', 'classifier')


def test_configs_exist_and_use_the_method(listed):
    paths = {name: word for name, line in listed().items() for word in line.split() if word.endswith('.py')}
    assert paths
    for name, path in paths.items():
        assert f"'mmkd.{name}'" in (SHIPPED / path.removeprefix('mmkd::')).read_text()
