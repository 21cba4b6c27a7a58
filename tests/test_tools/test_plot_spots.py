"""The plot of where SAKD distills."""
import json
import math

import pytest

from mmkd.errors import MMKDError
from tests.helpers.tiny import load_tool

ps = load_tool('analysis_tools/plot_spots.py')


def write(path, *epochs):
    path.write_text(''.join(json.dumps(dict(
        epoch=epoch, spots=['stage1', 'logits'], shares=[epoch / 4, 0.5],
        seen=[4, 0], chosen=[[epoch, 2], [0, 0]])) + '\n'
        for epoch in epochs))
    return path


def test_shares_by_class():
    assert ps.shares_by_class(dict(seen=[4, 6], chosen=[[1, 4], [3, 0]])) == [
        pytest.approx([0.25, 1.0]), pytest.approx([0.5, 0.0])]
    assert math.isnan(ps.shares_by_class(dict(seen=[4, 0], chosen=[[1, 4], [0, 0]]))[1][1])


def test_a_repeated_epoch_counts_once(tmp_path):
    path = write(tmp_path / 'sakd_epochs.jsonl', 1, 2, 2, 3)
    assert list(ps.read_reports(path)) == [1, 2, 3]


def test_picture(run, tmp_path):
    write(tmp_path / 'sakd_epochs.jsonl', 1, 2, 3)
    ended = run('analysis_tools/plot_spots.py', tmp_path, '--epoch', '2')
    assert ended.code == 0, ended.err
    assert (tmp_path / 'sakd_epochs.png').stat().st_size > 5000


@pytest.mark.parametrize(('content', 'said'), [
    (None, 'holds no files METHOD_epochs.jsonl'), ('', 'no epoch has ended'),
    ('{"a": 1}\n', 'not a file of reports')])
def test_bad_input(tmp_path, content, said):
    if content is not None:
        (tmp_path / 'sakd_epochs.jsonl').write_text(content)
    with pytest.raises(MMKDError, match=said):
        ps.read_reports(ps.find_reports(tmp_path))


@pytest.mark.parametrize('out', ['none/spots.png', 'spots.xyz'])
def test_a_picture_that_cannot_be_written(run, tmp_path, out):
    write(tmp_path / 'sakd_epochs.jsonl', 1)
    ended = run('analysis_tools/plot_spots.py', tmp_path, '--out', tmp_path / out)
    assert ended.code == 2 and 'cannot be written' in ended.err and str(tmp_path / out) in ended.err


def test_an_epoch_that_is_not_there(run, tmp_path):
    write(tmp_path / 'sakd_epochs.jsonl', 1, 2)
    ended = run('analysis_tools/plot_spots.py', tmp_path, '--epoch', '7')
    assert ended.code != 0 and 'epochs 1 to 2, not epoch 7' in ended.err
