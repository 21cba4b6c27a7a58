"""YAML and JSON configs are data; Python configs are programs."""
import json

import pytest
import torch
import yaml
from mmengine.config import Config

from mmkd.config_files import read_config
from mmkd.errors import MMKDError
from mmkd.models.teachers.building import read_teacher_config

SETTINGS = dict(model=dict(type='RetinaNet', backbone=dict(type='mmdet.ResNet', depth=18)), lr=0.1,
                classes=['a', 'b'], on=True, nothing=None)


@pytest.fixture(params=['.yml', '.yaml', '.json'])
def write(request, tmp_path):
    """Function that writes settings as a config file in one of the formats."""

    def write(settings: dict, name: str = 'config') -> str:
        path = tmp_path / f'{name}{request.param}'
        path.write_text(json.dumps(settings) if request.param == '.json' else yaml.safe_dump(settings))
        return str(path)

    return write


def refused(path, *words) -> None:
    with pytest.raises(MMKDError) as caught:
        read_config(path)
    for word in ('cannot be read', *words):
        assert word in str(caught.value)
    assert str(caught.value).isprintable()


def test_settings(write):
    cfg = read_config(write(SETTINGS))
    assert cfg.to_dict() == SETTINGS and cfg.filename.endswith(('.yml', '.yaml', '.json'))
    assert read_teacher_config(write(SETTINGS)).model.backbone.depth == 18


def test_bases(write, tmp_path):
    suffix = write(SETTINGS, 'base').rpartition('.')[2]
    cfg = read_config(write(dict(_base_=[f'base.{suffix}'], model=dict(backbone=dict(depth=50)), lr=1)))
    assert cfg.model.to_dict() == dict(type='RetinaNet', backbone=dict(type='mmdet.ResNet', depth=50))
    assert cfg.lr == 1 and cfg.classes == ['a', 'b']
    cfg = read_config(write(dict(_base_=[f'base.{suffix}'], model=dict(_delete_=True, type='FCOS'))))
    assert cfg.model.to_dict() == dict(type='FCOS')


def test_base_in_a_package(write):
    model = dict(bbox_head=dict(num_classes=3))
    cfg = read_config(write(dict(_base_='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', model=model)))
    assert cfg.model.bbox_head.num_classes == 3 and cfg.model.type == 'RetinaNet'


def test_written_by_mmengine(write, tmp_path):
    Config(dict(size=(1, 2), model=dict(type='FCOS'))).dump(tmp_path / 'dumped.yaml')
    assert read_config(tmp_path / 'dumped.yaml').size == (1, 2)


@pytest.mark.parametrize(('settings', 'words'), [
    (dict(_base_='evil.py'), 'evil.py'),
    (dict(_base_=['evil.py']), 'program'),
    (dict(_base_='mmdet::../../../evil.py'), 'not a config of'),
    (dict(_base_='evil::a.py'), 'not a config of'),
    (dict(_base_='config.yml'), ''),
    (dict(custom_imports=dict(imports=['evil'])), 'imports evil'),
    (dict(custom_imports=dict(imports='os')), 'imports os'),
    (dict(custom_imports=['evil']), 'custom_imports'),
    (dict(model=dict(type='os.system', command='touch executed')), 'os.system'),
    (dict(model=[dict(a=dict(type='evil.main'))]), 'evil.main'),
    (dict(model=dict(type='mmengine.dump', obj=[], file='executed')), 'is a function'),
    (dict(model=dict(type='antigravity')), 'is a module'),
    (dict(nms=dict(type='__import__("os").system("touch executed")')), 'not the registered name'),
    (dict(optim_wrapper=dict(constructor='evil.main')), 'evil.main'),
    (dict(runner_type='evil.main'), 'evil.main'),
    (dict(model=dict(type='FCOS\nerror: all is well')), 'registered name'),
    (dict(teacher=dict(config='evil.py')), 'evil.py'),
    (dict(teacher=[dict(config='mmdet::/tmp/evil.py')]), 'evil.py'),
    (dict(dataset=dict(ann_file='annotations.pkl')), 'pickle'),
    (dict(load_from='{{$HOME:}}'), 'substitute'),
    (dict(load_from='{{fileDirname}}/a'), 'substitute'),
])
def test_code_in_data(write, tmp_path, monkeypatch, settings, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / 'evil.py').write_text('open("executed", "w")\ndef main(**_): pass\n')
    refused(write(settings), words)
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('content', [
    'a: !!python/object/apply:os.mkdir ["{path}"]', 'a: !!python/name:os.system', 'a: !!python/module:os',
    'a: !!python/object/new:os.system ["touch {path}"]', '? !!python/object/apply:os.mkdir ["{path}"]\n: 1'])
def test_tags_of_python(tmp_path, content):
    (tmp_path / 'config.yaml').write_text(content.format(path=tmp_path / 'executed'))
    refused(tmp_path / 'config.yaml', 'ConstructorError')
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('content', [
    'a: &a [x, x]\n' + '\n'.join(f'{chr(98 + i)}: &{chr(98 + i)} [{", ".join(["*" + chr(97 + i)] * 9)}]'
                                 for i in range(20)),
    'a: &a [*a]', '[' * 5000, 'a: 2001-01-01', '- 1', '1: 2', '', 'a: [1'])
def test_strange_yaml(tmp_path, content):
    (tmp_path / 'config.yaml').write_text(content)
    refused(tmp_path / 'config.yaml')


def test_python_configs_are_programs(tmp_path):
    (tmp_path / 'config.py').write_text(f'open({str(tmp_path / "executed")!r}, "w").close()\nlr = 1')
    assert read_config(tmp_path / 'config.py').lr == 1
    assert (tmp_path / 'executed').exists()


def test_checkpoints_are_not_configs(tmp_path):
    torch.save({}, tmp_path / 'weights.pth')
    refused(tmp_path / 'weights.pth')
