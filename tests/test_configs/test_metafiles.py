"""Every method's folder has a README and a metafile that name its configs, as in MMDetection."""
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[2]
TASKS = ('detection', 'classification')
FOLDERS = sorted(path for task in TASKS for path in (REPO / 'configs' / task).iterdir() if path.is_dir())
METAFILES = {folder: folder / 'metafile.yml' for folder in FOLDERS}
LINK = re.compile(r'\[[^]]*\]\(([^)#]+)(?:#[^)]*)?\)')


def relative(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def collections() -> list[dict]:
    return [collection for path in METAFILES.values() for collection in load(path)['Collections']]


def models() -> list[dict]:
    return [model for path in METAFILES.values() for model in load(path)['Models']]


def configs_in(folder: Path) -> set[str]:
    return {relative(path) for path in folder.rglob('*.py')}


def repeated(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def linked(readme: Path) -> list[Path]:
    """Return the local files and folders that a README links to."""
    links = LINK.findall(readme.read_text())
    return [(readme.parent / link).resolve() for link in links if '://' not in link]


def test_model_index_imports_every_metafile_once():
    imported = load(REPO / 'model-index.yml')['Import']
    assert sorted(imported) == sorted(map(relative, METAFILES.values()))


@pytest.mark.parametrize('folder', FOLDERS, ids=relative)
def test_metafile_has_the_configs_of_its_folder(folder):
    metafile = load(METAFILES[folder])
    (collection, ) = metafile['Collections']
    named = [model['Config'] for model in metafile['Models']]
    assert set(named) == configs_in(folder)
    assert not repeated(named)
    assert collection['README'] == relative(folder / 'README.md')
    assert (REPO / collection['README']).is_file()
    assert (REPO / collection['Code']['URL']).exists()


@pytest.mark.parametrize('folder', FOLDERS, ids=relative)
def test_metafile_has_the_required_keys(folder):
    metafile = load(METAFILES[folder])
    (collection, ) = metafile['Collections']
    assert {'Name', 'Metadata', 'Paper', 'README', 'Code'} == set(collection)
    assert collection['Metadata']['Training Data']
    assert collection['Paper']['Title']
    assert collection['Paper'].get('URL', 'https://').startswith('https://')
    assert set(collection['Code']) == {'URL', 'Version'}
    for model in metafile['Models']:
        assert {'Name', 'In Collection', 'Config', 'Metadata'} <= set(model)
        assert model['In Collection'] == collection['Name']
        assert isinstance(model['Metadata']['Epochs'], int)
        for result in model.get('Results', []):
            assert {'Task', 'Dataset', 'Metrics'} <= set(result)


def test_collections_have_unique_names():
    assert not repeated([collection['Name'] for collection in collections()])


def test_models_have_unique_names_which_are_those_of_their_files():
    assert not repeated([model['Name'] for model in models()])
    assert all(model['Name'] == Path(model['Config']).stem for model in models())


def test_mmengine_can_look_configs_up_by_their_path_below_configs():
    names = [model['Config'].partition('/')[-1] for model in models()]  # as in mmengine.config.utils
    assert not repeated(names)
    assert all((REPO / 'configs' / name).is_file() for name in names)


@pytest.mark.parametrize('folder', FOLDERS, ids=relative)
def test_readme_links_to_every_config_of_its_folder(folder):
    files = linked(folder / 'README.md')
    assert configs_in(folder) <= {relative(file) for file in files if file.suffix == '.py'}


@pytest.mark.parametrize('readme', sorted((REPO / 'configs').rglob('README.md')), ids=relative)
def test_links_of_readmes_exist(readme):
    assert [file for file in linked(readme) if not file.exists()] == []


@pytest.mark.parametrize('readme', sorted((REPO / 'configs').rglob('README.md')), ids=relative)
def test_commands_of_readmes_name_files_that_exist(readme):
    names = re.findall(r'(?<![\w/.])(?:configs|tools)/[\w./-]+\.(?:py|sh)', readme.read_text())
    assert [name for name in names if not (REPO / name).exists() and '/PAIR.py' not in name] == []


@pytest.mark.parametrize('name', ['README.md', 'cifar/README.md', 'examples/README.md'])
def test_the_other_folders_have_a_readme_too(name):
    assert (REPO / 'configs' / name).is_file()


def test_readmes_of_pairs_and_examples_link_to_every_config():
    for name, pattern in (('cifar', '*.py'), ('examples', '*/*.py')):
        folder = REPO / 'configs' / name
        assert {*folder.glob(pattern)} <= {*linked(folder / 'README.md')}


def test_methods_for_both_tasks_link_to_each_other():
    for detection in (REPO / 'configs/detection').iterdir():
        classification = REPO / 'configs/classification' / detection.name
        if classification.is_dir():
            assert classification / 'README.md' in linked(detection / 'README.md')
            assert detection / 'README.md' in linked(classification / 'README.md')


def test_the_map_links_to_every_method():
    assert {folder / 'README.md' for folder in FOLDERS} <= {*linked(REPO / 'configs/README.md')}
