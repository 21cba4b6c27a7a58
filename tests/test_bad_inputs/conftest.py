"""Functions that start training and must be refused."""
import pytest

from tests.test_tools.conftest import files, refused, run  # noqa: F401


@pytest.fixture(params=['config', '--distill'])
def train(request, refused, files, tmp_path):  # noqa: F811
    """Function that starts distillation by a config or by ``--distill``, and must be refused."""

    def train(*words, checkpoint=files.weights, config=files.teacher, options=()):
        if request.param == 'config':
            arguments = [files.distilling, '--cfg-options', f'model.teacher.config={config}',
                         f'model.teacher.checkpoint={checkpoint}', *options]
        else:
            arguments = [files.student, '--distill', 'shake', '--teacher', config,
                         '--teacher-checkpoint', checkpoint]
            if options:
                arguments += ['--cfg-options', *options]
        return refused('train.py', [*arguments, '--work-dir', tmp_path / 'work'], *words)

    return train


@pytest.fixture
def train_config(refused, files, tmp_path):  # noqa: F811
    """Function that starts the distilling config with options, and must be refused."""

    def train(*words, options=(), arguments=()):
        options = ['--cfg-options', *options] if options else []
        return refused(
            'train.py', [files.distilling, '--work-dir', tmp_path / 'work', *options, *arguments], *words)

    return train


def pytest_terminal_summary(terminalreporter):
    """Say how many bad inputs were tried, and how many were refused in one sentence."""
    reports = [report for kind in ('passed', 'failed') for report in terminalreporter.stats.get(kind, [])]
    names = [name for report in reports if report.when == 'call' for name, _ in report.user_properties]
    if 'bad input' in names:
        terminalreporter.write_line(f'{names.count("bad input")} bad inputs, '
                                    f'{names.count("one sentence")} refused in one sentence')
