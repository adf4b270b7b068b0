"The package as others get it: its public names, its wheel away from the repository, its metadata"
import ast, importlib, json, os, re, subprocess, sys, tomllib, zipfile
from pathlib import Path

import pytest, yaml
import hatenb

root = Path(__file__).resolve().parent.parent
project = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['project']


# names

def public_names(path):
    "What a module lists in `__all__`"
    for n in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__' and isinstance(n.value, ast.List):
            return ast.literal_eval(n.value)
    return []


def test_no_public_name_is_there_twice():
    found = {}
    for p in sorted((root/'hatenb').rglob('*.py')):
        if p.name == '__init__.py': continue        # a package says again what its modules define
        for n in public_names(p): found.setdefault(n, []).append(p.relative_to(root/'hatenb').as_posix())
    assert not (twice := {n: where for n, where in found.items() if len(where) > 1}), twice


def loaded_by(code):
    "The modules that are there after a piece of code has run in a process of its own"
    said = subprocess.run([sys.executable, '-c', f'import sys\n{code}\nprint(*sys.modules)'], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-2000:]
    return set(said.stdout.split())


def test_importing_the_package_brings_nothing_heavy():
    heavy = {'torch', 'transformers', 'datasets', 'pandas', 'matplotlib', 'sklearn'}
    assert not loaded_by('import hatenb; dir(hatenb)') & heavy
    assert not loaded_by('import hatenb.cli') & heavy


def test_public_face_is_small_and_each_name_is_there():
    assert 10 <= len(hatenb.__all__) <= 16
    for n in hatenb.__all__: assert callable(getattr(hatenb, n)), n
    assert set(hatenb.__all__) <= set(dir(hatenb))
    with pytest.raises(AttributeError, match='nonesuch'): hatenb.nonesuch


def code_cells():
    "Of each notebook, its cells of code as (exported or not, lines without directives)"
    for p in sorted((root/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in p.parts: continue
        cells = [''.join(c['source']).splitlines() for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
        yield p.relative_to(root).as_posix(), [(any(l.startswith('#| export') for l in c), [l for l in c if not l.startswith('#|')]) for c in cells]


def test_exported_lines_are_short():
    "Ruff measures tests; in notebooks it would measure captions, and in modules what nbdev adds"
    long = {n: k for n, cells in code_cells() if (k := sum(len(l) > 120 for exported, lines in cells if exported for l in lines))}
    assert not long, long


def uses(lines): return any(l.strip() and not l.startswith(('import ', 'from ', '#')) for l in lines)


def test_what_is_exported_is_soon_used():
    "A reader meets a use of what is defined at least every 200 lines"
    far = {}
    for n, cells in code_cells():
        stretch = 0
        for exported, lines in cells:
            if exported: stretch += sum(bool(l.strip()) for l in lines)
            elif uses(lines): stretch = 0
            if stretch > 200: far[n] = stretch
    assert not far, far


def test_no_section_is_called_as_what_its_page_documents():
    "Both would answer to one anchor, and stand twice in the search"
    twins = {}
    for p in sorted((root/'nbs').rglob('*.ipynb')):
        cells = [(c['cell_type'], ''.join(c['source'])) for c in json.loads(p.read_text(encoding='utf-8'))['cells']]
        exported = '\n'.join(s for kind, s in cells if kind == 'code' and re.search(r'^#\| *export', s, re.M))
        names = {n.lower() for n in re.findall(r'^(?:async )?(?:def |class )?(\w+)(?=[(:]| *=)', exported, re.M)}
        heads = [h for kind, s in cells if kind == 'markdown' for h in re.findall(r'^##+ (\w+)$', s, re.M)]
        if same := [h for h in heads if h.lower() in names]: twins[p.name] = same
    assert not twins, twins


def test_benchmarks_ask_for_names_that_are_there():
    "They are run by hand, so a name that has moved would go unseen"
    gone = []
    for p in sorted((root/'benchmarks').glob('*.py')):
        asked = [n for n in ast.walk(ast.parse(p.read_text(encoding='utf-8'))) if isinstance(n, ast.ImportFrom) and n.module.startswith('hatenb')]
        for n in asked:
            try: module = importlib.import_module(n.module)
            except ModuleNotFoundError: gone.append(f'{p.name}: {n.module}')
            else: gone += [f'{p.name}: {n.module}.{a.name}' for a in n.names if not hasattr(module, a.name)]
    assert not gone, gone


# the wheel

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a copy, so that nothing is left in the repository; with the setuptools at hand"
    copy, out = tmp_path_factory.mktemp('source')/'hatenb', tmp_path_factory.mktemp('wheel')
    tracked = subprocess.run(['git', 'ls-files', '-z', 'hatenb', 'pyproject.toml', 'README.md', 'LICENSE'], cwd=root, capture_output=True, text=True, check=True).stdout
    for f in filter(None, tracked.split('\0')):
        (copy/f).parent.mkdir(parents=True, exist_ok=True)
        (copy/f).write_bytes((root/f).read_bytes())
    said = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', out, copy], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-2000:]
    return next(out.glob('hatenb-*.whl'))


def test_wheel_holds_modules_data_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    here = {str(p.relative_to(root)) for p in (root/'hatenb').rglob('*') if p.is_file() and p.suffix in ('.py', '.txt', '.json', '.csv', '.parquet')}
    assert here <= names, f'missing from the wheel: {sorted(here-names)}'
    assert not [n for n in names if n.split('/')[0] not in ('hatenb', f'hatenb-{hatenb.__version__}.dist-info')]
    assert any(n.endswith('licenses/LICENSE') for n in names)


def test_wheel_works_where_there_is_no_repository(wheel, tmp_path):
    "Unpacked elsewhere, with the dependencies at hand: settings have defaults, packaged files are found, a run leaves its record"
    site, work = tmp_path/'site', tmp_path/'work'
    zipfile.ZipFile(wheel).extractall(site)
    work.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith('HATENB_')} | dict(PYTHONPATH=str(site), HATENB_CACHE=str(tmp_path/'cache'), HATENB_QUIET='1')
    def hatenb(*args):
        out = subprocess.run([sys.executable, '-c', 'import sys; from hatenb.cli import main; sys.argv[0] = "hatenb"; main()', *args], cwd=work, env=env, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr[-2000:]
        return out.stdout
    where = subprocess.run([sys.executable, '-c', 'import hatenb; print(hatenb.__file__)'], cwd=work, env=env, capture_output=True, text=True).stdout
    assert where.startswith(str(site))
    assert 'report' in hatenb('--help')
    assert 'shipped with hatenb' in hatenb('corpora')
    assert 'macro F1' in hatenb('run', 'mini/label', '--baseline', 'tfidf')
    assert list((work/'runs').glob('*/record.json'))


def test_metadata_of_citation_and_package_agree():
    c = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    assert {'cff-version', 'message', 'title', 'authors'} <= set(c) and c['cff-version'] == '1.2.0' and c['type'] == 'software'      # what the schema of CFF 1.2.0 requires
    for who in [*c['authors'], *(a for r in c['references'] for a in r['authors'])]: assert {'name'} <= set(who) or {'family-names', 'given-names'} <= set(who)
    assert all({'type', 'title', 'authors'} <= set(r) for r in c['references'])
    assert c['version'] == hatenb.__version__ and c['license'] == project['license'] == 'MIT'
    assert c['repository-code'] == project['urls']['Repository'] and c['url'].rstrip('/') == project['urls']['Documentation'].rstrip('/')
    assert 'Permission is hereby granted' in (root/'LICENSE').read_text()


def test_changelog_has_a_place_for_what_comes_next():
    lines = (root/'CHANGELOG.md').read_text(encoding='utf-8').splitlines()
    heads = [l for l in lines if l.startswith('## ')]
    assert heads[0] == '## [Unreleased]'
    kinds = {l.removeprefix('### ') for l in lines if l.startswith('### ')}
    assert kinds <= {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'}
