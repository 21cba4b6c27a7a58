"""A distilling training that is killed or told to end goes on as if nothing had happened."""
import pytest

from tests import soak

pytestmark = pytest.mark.slow


def test_interrupted_at_random_moments(tmp_path, capsys):
    """SHAKE with augmentation, workers, validation, a moving average and gradient accumulation."""
    status = soak.main(['--kills', '1', '--terms', '1', '--updates', '26',
                        '--work-dir', str(tmp_path / 'soak')])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert printed.count(' equal') == 9 and '1 SIGKILLs and 1 SIGTERMs' in printed
