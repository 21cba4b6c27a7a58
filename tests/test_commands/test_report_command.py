"""The tables of comparisons that are already made."""
import json

import pytest

from mmkd.errors import MMKDError
from tests.helpers.tiny import REPO, run_command


def test_tables_are_printed(tmp_path, capsys):
    for name in ('zoo_faster_rcnn', 'zoo_classifiers'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'comparison.json').write_text((REPO / f'docs/benchmarks/{name}.json').read_text())
    run_command('report', tmp_path / 'zoo_faster_rcnn', tmp_path / 'zoo_classifiers')
    printed = capsys.readouterr().out
    assert 'PKD' in printed and 'top-1' in printed and 'AP' in printed


@pytest.mark.parametrize('content', [None, '{', json.dumps(dict(seeds=[0]))])
def test_a_folder_without_a_comparison(tmp_path, content):
    if content:
        (tmp_path / 'comparison.json').write_text(content)
    with pytest.raises(MMKDError, match=r"comparison\.json.*'mmkd compare'"):
        run_command('report', tmp_path)
