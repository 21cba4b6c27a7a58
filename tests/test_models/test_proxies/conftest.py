import pytest
from mmengine.registry import init_default_scope


@pytest.fixture
def _of_classifiers():
    init_default_scope('mmpretrain')
    yield
    init_default_scope('mmdet')
