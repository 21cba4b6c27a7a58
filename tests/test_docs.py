"""The documentation: links resolve, named files exist, lines are short, and the drawing shows the code."""
import ast
import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'), *ROOT.glob('configs/**/*.md')])
WIDTH = 100

FENCED = re.compile(r'^ *```.*?^ *```$', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)')
NAMED = re.compile(r'(?<![\w/.:-])(?:configs|mmkd|tests|tools)/[\w./{},*-]+')

PLACEHOLDER = re.compile(r'\b(?!README\b|LICENSE\b|CHANGELOG\b|CONTRIBUTING\b)[A-Z]{3,}\b')
"""What a reader replaces, such as ``PAIR`` in ``configs/cifar/PAIR.py``."""

LAYERS = ('mmkd', 'commands', 'experiments', 'engine', 'work_dir', 'cli', 'apis', 'models',
          'models/distillers', 'models/methods', 'models/proxies', 'models/teachers', 'models/connectors',
          'models/losses', 'models/spots')
"""The packages of docs/images/architecture.svg from top to bottom; other modules import none of them."""


def page_name(page):
    return page.relative_to(ROOT).as_posix()


def anchors(page):
    """Return the anchors that GitHub gives the headings of a page."""
    seen = Counter()
    for heading in re.findall(r'^#+ +(.+)$', FENCED.sub('', page.read_text()), re.MULTILINE):
        text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).strip().lower()
        anchor = re.sub(r'[^\w\- ]', '', text).replace(' ', '-')
        yield f'{anchor}-{seen[anchor]}' if seen[anchor] else anchor
        seen[anchor] += 1


def expanded(pattern):
    """Expand the braces of a shell pattern, such as ``configs/{kd,dml}/*.py``."""
    parts = [part.split(',') for part in re.split(r'\{([^}]*)\}', pattern)[1::2]]
    plain = re.split(r'\{[^}]*\}', pattern)
    for choice in product(*parts):
        yield ''.join(piece for pair in zip(plain, [*choice, ''], strict=True) for piece in pair)


def package(parts):
    """Return the package, in the names of LAYERS, of a module's path inside ``mmkd``."""
    parts = parts[1:]
    if not parts:
        return 'mmkd'
    return '/'.join(parts[:2]) if parts[0] == 'models' else parts[0]


def imports():
    """Yield all imports between packages: the importing file, its package and the imported package."""
    for file in (ROOT / 'mmkd').rglob('*.py'):
        path = file.relative_to(ROOT).with_suffix('').parts
        inside = path[:-1] if path[-1] == '__init__' else path
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            module = tuple(node.module.split('.')) if node.module else ()
            target = path[:len(path) - node.level] + module if node.level else module
            if target[:1] == ('mmkd',):
                for alias in node.names:
                    yield page_name(file), package(inside), package((*target, alias.name))


@pytest.mark.parametrize('page', PAGES, ids=page_name)
def test_links_resolve(page):
    text = FENCED.sub('', page.read_text())
    for target in LINK.findall(text):
        if re.match(r'[a-z]+:', target):
            continue
        path, _, anchor = target.partition('#')
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f'{target} does not exist'
        if anchor:
            assert anchor in set(anchors(linked)), f'{target}: no such heading'


@pytest.mark.parametrize('page', PAGES, ids=page_name)
def test_named_files_exist(page):
    named = {PLACEHOLDER.sub('*', name.rstrip('.,')) for name in NAMED.findall(page.read_text())}
    missing = {path for name in named for path in expanded(name) if not any(ROOT.glob(path.rstrip('/')))}
    assert not missing


@pytest.mark.parametrize('page', PAGES, ids=page_name)
def test_lines_are_short(page):
    long = []
    for line in FENCED.sub('', page.read_text()).splitlines():
        # What cannot be broken may be longer: tables, links and code.
        rest = re.sub(r'`[^`]*`', '', LINK.sub('', line))
        if len(line) > WIDTH and rest == line and not line.startswith('|'):
            long.append(line)
    assert not long


def test_every_page_is_in_the_index():
    index = ROOT / 'docs/README.md'
    targets = [target.partition('#')[0] for target in LINK.findall(index.read_text())]
    linked = {(index.parent / target).resolve() for target in targets}
    assert {page for page in ROOT.glob('docs/**/*.md') if page != index} <= linked


def test_every_package_is_in_the_drawing():
    drawing = (ROOT / 'docs/images/architecture.svg').read_text()
    folders = [file.parent for pattern in ('*/__init__.py', 'models/*/__init__.py')
               for file in (ROOT / 'mmkd').glob(pattern)]
    assert len(folders) > 10
    assert not [folder.name for folder in folders if f'>{folder.name}/' not in drawing]


def test_imports_point_down_in_the_drawing():
    found = list(imports())
    assert ('models/distillers', 'models/methods') in {edge[1:] for edge in found}
    upward = [(file, target) for file, source, target in found
              if source != target and target in LAYERS
              and (source not in LAYERS or LAYERS.index(source) > LAYERS.index(target))]
    assert not upward
