"What can be checked of the site without rendering it: its configuration, targets, labels, captions, links, content notes"
import ast, json, os, re, shutil, subprocess, sys
from pathlib import Path

import nbformat, pytest, yaml

root = Path(__file__).resolve().parent.parent
notebooks = {p.stem: json.loads(p.read_text(encoding='utf-8')) for p in sorted((root/'nbs').glob('*.ipynb'))}
every = pytest.mark.parametrize('name', notebooks)


def cells(name, kind): return [c for c in notebooks[name]['cells'] if c['cell_type'] == kind]
def source(cell): return ''.join(cell['source'])
def prose(name): return '\n\n'.join(map(source, cells(name, 'markdown')))
def directive(cell, key): return next(iter(re.findall(rf'^#\| {key}: *(.+)$', source(cell), re.M)), '').strip(' "\'')
def outputs(cell, kind): return [''.join(o['data'][kind]) for o in cell.get('outputs', ()) if kind in o.get('data', {})]


# the configuration

class Loader(yaml.SafeLoader):
    "YAML in which a key that is there twice is an error"
    def construct_mapping(self, node, deep=False):
        keys = [k.value for k, _ in node.value]
        assert len(set(keys)) == len(keys), f'a key is there twice: {keys}, {node.start_mark}'
        return super().construct_mapping(node, deep)


@pytest.fixture(scope='module')
def config(): return yaml.load((root/'_quarto.yml').read_text(encoding='utf-8'), Loader)


def sidebar_targets(contents):
    for c in contents:
        if isinstance(c, str): yield c
        elif 'contents' in c: yield from sidebar_targets(c['contents'])
        else: yield c['href']


# of Quarto's schemas (quarto.org/docs/reference/projects/websites.html, …/formats/html.html) what a site like this may use
known = {
    '': 'project format execute website metadata-files',
    'project': 'type output-dir preview render resources', 'project.preview': 'port host browser', 'execute': 'enabled freeze cache echo warning',
    'format': 'html commonmark',
    'format.html': 'theme css toc toc-depth toc-location code-overflow code-copy code-fold code-tools fig-align respect-user-color-scheme highlight-style number-sections link-external-newwindow anchor-sections',
    'format.html.theme': 'light dark',
    'website': 'title description favicon image site-url site-path repo-url repo-subdir repo-branch issue-url repo-actions reader-mode page-navigation back-to-top-navigation bread-crumbs search navbar sidebar page-footer open-graph twitter-card',
    'website.search': 'location type limit collapse-after copy-button show-item-context',
    'website.navbar': 'title logo logo-alt background foreground search pinned collapse left right tools', 'website.page-footer': 'left right center border background foreground',
    'website.sidebar': 'id title logo search tools contents style background foreground border alignment collapse-level pinned header footer',
}
entry = set('text href icon aria-label contents section file auto menu target rel'.split())


def test_configuration_has_only_keys_that_quarto_knows(config):
    def walk(value, path):
        if isinstance(value, dict):
            allowed = set(known[path].split()) if path in known else entry
            assert set(value) <= allowed, f'{path or "_quarto.yml"}: {sorted(set(value)-allowed)}'
            for k, v in value.items(): walk(v, f'{path}.{k}'.lstrip('.'))
        elif isinstance(value, list):
            for v in value: walk(v, f'{path}[]')
    walk(config, '')
    assert config['project']['type'] == 'website' and config['execute'] == {'enabled': False}
    assert set(config['format']['html']['theme']) == {'light', 'dark'} and config['website']['search'] and 'source' in config['website']['repo-actions']
    assert (root/'nbs'/'_quarto.yml').is_symlink() and (root/'nbs'/'_quarto.yml').resolve() == root/'_quarto.yml'
    for f in config['metadata-files'] + [config['format']['html']['css']]: assert (root/'nbs'/f).is_file(), f


def test_every_notebook_is_in_the_sidebar_and_every_target_exists(config):
    targets = list(sidebar_targets(config['website']['sidebar']['contents']))
    bar = config['website']['navbar']
    gone = [t for t in targets + [e['href'] for e in bar.get('left', []) + bar.get('right', [])] if not t.startswith('http') and not (root/'nbs'/t).is_file()]
    assert not gone, f'the sidebar or the bar above it of _quarto.yml names notebooks that are not there: {gone}'
    missing = sorted({f'{n}.ipynb' for n in notebooks}-set(targets))
    assert not missing, f'notebooks without a row in the sidebar of _quarto.yml: {missing}'
    assert len(set(targets)) == len(targets), f'twice in the sidebar: {sorted({t for t in targets if targets.count(t) > 1})}'


def test_results_begin_with_the_answer(config):
    results = next(c['contents'] for c in config['website']['sidebar']['contents'] if c.get('section') == 'Results')
    if '19_answer' in notebooks: assert results[0] == '19_answer.ipynb', 'the section Results begins with 19_answer.ipynb'
    assert all(t[0] in '12' for t in results)


def test_workflow_builds_with_the_released_quarto_and_publishes_what_was_built():
    flow = yaml.load((root/'.github'/'workflows'/'docs.yml').read_text(encoding='utf-8'), Loader)
    build, publish = flow['jobs']['build'], flow['jobs']['publish']
    used = [s.get('uses', s.get('run', '')) for s in build['steps']]
    quarto = next(s for s in build['steps'] if s.get('uses', '').startswith('quarto-dev/quarto-actions/setup@'))
    assert quarto['with']['version'] == 'release' and used.index(quarto['uses']) < used.index('make docs')
    assert all('@' in u for u in used if '/' in u)
    made = tomllib_load()['tool']['nbdev']['doc_path']
    assert next(s['with']['path'] for s in build['steps'] if 'upload-pages-artifact' in s.get('uses', '')) == made
    assert publish['needs'] == 'build' and publish['permissions'] == {'pages': 'write', 'id-token': 'write'}
    assert re.search(r'^docs:.*\n(\t.*\n)*\t\$\(BIN\)/nbdev-docs$', (root/'Makefile').read_text(), re.M)


def tomllib_load():
    import tomllib
    return tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))


# figures

@every
def test_every_figure_has_label_caption_and_alt_text(name):
    labels = [directive(c, 'label') for c in cells(name, 'code') if directive(c, 'label')]
    assert len(set(labels)) == len(labels), f'labels twice in {name}: {labels}'
    for c in cells(name, 'code'):
        label, shown = directive(c, 'label'), outputs(c, 'image/png') + outputs(c, 'image/svg+xml')
        where = f'{name}: {label or source(c)[:60]!r}'
        if shown: assert label.startswith('fig-') and directive(c, 'fig-cap') and directive(c, 'fig-alt'), f'{where} shows a figure; it needs label, fig-cap and fig-alt'
        if shown: assert directive(c, 'fig-cap') != directive(c, 'fig-alt'), f'{where}: the alt text says what is to be seen, the caption what it is'
        if label.startswith('fig-'): assert shown, f'{where} has no stored figure: run the notebook and save it'
        if label.startswith('tbl-'): assert directive(c, 'tbl-cap'), f'{where} needs tbl-cap'
        for h in outputs(c, 'text/html'):
            assert not re.search(r'<img(?![^>]*\salt="[^"]+)', h), f'{where} shows an <img> without alt text'
    for alt, target in re.findall(r'!\[([^\]]*)\]\(([^)\s]+)', prose(name)):
        assert alt, f'{name}: the picture {target} has no alt text'
        assert target.startswith('http') or (root/'nbs'/target).is_file(), f'{name}: there is no picture {target}'


@every
def test_every_cross_reference_has_its_label(name):
    there = {directive(c, 'label') for c in cells(name, 'code')} | set(re.findall(r'\{#([\w-]+)', prose(name)))
    named = set(re.findall(r'(?<![\w@`])@((?:fig|tbl|sec|eq)-[\w-]+)', prose(name)))
    assert not named-there, f'{name} refers to {sorted(named-there)}'


@every
def test_notebook_is_stored_with_its_outputs(name):
    "Nothing is run when pages are rendered, so every notebook brings outputs, and none of them is an error"
    shown = [o for c in cells(name, 'code') for o in c['outputs']]
    assert shown, f'{name} was saved without outputs'
    assert not [o for o in shown if o['output_type'] == 'error'], f'{name} was saved with an error'


# links

def anchors(name):
    "What can be linked to in a notebook: headings as Quarto (pandoc) names them, and labels"
    def slug(h): return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', h)).strip().lower()))
    lines = re.sub(r'^(```|~~~).*?^\1', '', prose(name), flags=re.M | re.S).splitlines()
    return {slug(re.sub(r'\{.*\}$', '', m[1])) for l in lines if (m := re.match(r'#+ (.+)', l))} | set(re.findall(r'\{#([\w-]+)', prose(name))) | {directive(c, 'label') for c in cells(name, 'code')}


def broken(text, folder):
    for target in re.findall(r'(?<!!)\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)', re.sub(r'`[^`\n]*`', '', text)):
        ours = re.match(r'https://github\.com/hatenb/hatenb/(?:blob|tree)/main/([^#]+)', target)
        path, _, anchor = target.partition('#')
        if ours: ok = (root/ours[1]).exists()
        elif re.match(r'(https?|mailto):', target): ok = True
        else:
            file = folder/path if path else None
            ok = file is None or file.exists()
            if ok and anchor and file is not None and file.suffix == '.ipynb': ok = anchor in anchors(file.stem)
        if not ok: yield target


@every
def test_links_lead_somewhere(name):
    said = '\n\n'.join([prose(name), *(o for c in cells(name, 'code') for o in outputs(c, 'text/markdown'))])
    assert not (gone := list(broken(said, root/'nbs'))), f'{name}: {gone}'
    own = [a for a in re.findall(r'\]\(#([^)]+)\)', said) if a not in anchors(name)]
    assert not own, f'{name} has no heading {own}'


@pytest.mark.parametrize('file', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'benchmarks/README.md'])
def test_links_of_the_other_pages_lead_somewhere(file):
    path = root/file
    assert not (gone := list(broken(path.read_text(encoding='utf-8'), path.parent))), gone


# posts

def shows_posts(name):
    "Whether a page displays posts: by `show`, or with marked words"
    return any(re.search(r'^(?!def ).*(?<![.\w])show\(', source(c), re.M) or any('<mark' in h for h in outputs(c, 'text/html')) for c in cells(name, 'code'))


@every
def test_pages_that_show_posts_open_with_a_content_note(name):
    if name == 'index' or not shows_posts(name): return
    top = [source(c) for c in notebooks[name]['cells'][:6] if c['cell_type'] == 'markdown']
    assert any('**Content note.**' in t for t in top), f'{name} shows posts: it needs a **Content note.** among its first cells'


@every
def test_no_slur_is_shown_unmasked(name):
    from hatenb.corpora import mask
    shown = [prose(name)] + [o for c in cells(name, 'code') for kind in ('text/plain', 'text/html', 'text/markdown') for o in outputs(c, kind)] + \
            [''.join(o.get('text', '')) for c in cells(name, 'code') for o in c['outputs']]
    words = {w for t in shown for w in re.findall(r"[^\W\d_]+", re.sub(r'base64,[\w+/=\s]+', '', t))}
    assert not (bare := sorted(w for w in words if mask(w) != w)), f'{name} shows {[mask(w) for w in bare]}'


# nbdev

def test_imports_stand_in_cells_of_their_own():
    "nbdev runs every cell with an import when it makes pages; other code in such a cell would run without what came before it"
    mixed = []
    for name in notebooks:
        for c in cells(name, 'code'):
            if re.search(r'^#\| *export', source(c), re.M) or source(c).lstrip().startswith(('%', '!')): continue
            body = ast.parse(source(c))
            imports = (ast.Import, ast.ImportFrom)
            if any(isinstance(n, imports) for n in ast.walk(body)) and not all(isinstance(n, imports) for n in body.body): mixed.append(f'{name}: {source(c)[:50]!r}')
    assert not mixed, mixed


@pytest.fixture(scope='module')
def processed(tmp_path_factory):
    "The notebooks as nbdev hands them to Quarto, made in a copy; the `quarto` on its path is a stand-in that only has to be there"
    copy = tmp_path_factory.mktemp('site')/'hatenb'
    copy.mkdir()
    for f in ('nbs', 'hatenb', 'pyproject.toml', 'settings.ini', '_quarto.yml', 'README.md'):
        (shutil.copytree if (root/f).is_dir() else shutil.copy)(root/f, copy/f, **({'symlinks': True, 'ignore': shutil.ignore_patterns('.ipynb_checkpoints', '__pycache__')} if (root/f).is_dir() else {}))
    (copy/'bin').mkdir()
    (copy/'bin'/'quarto').write_text('#!/bin/sh\nexit 3\n')
    (copy/'bin'/'quarto').chmod(0o755)
    env = {**os.environ, 'PYTHONPATH': str(copy), 'PATH': f'{copy/"bin"}:{os.environ["PATH"]}'}
    said = subprocess.run([sys.executable, '-c', 'from nbdev.quarto import nbdev_proc_nbs; nbdev_proc_nbs()', '--n-workers', '0'], cwd=copy, env=env, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-3000:]
    return copy


def test_notebooks_are_valid_for_quarto(processed):
    assert {p.stem for p in (processed/'_proc').glob('*.ipynb')} == set(notebooks)
    for p in sorted((processed/'_proc').glob('*.ipynb')):
        nb = nbformat.read(p, 4)
        for c in nb.cells:
            c.metadata.pop('execution', None)      # nbdev's own notes, which Quarto does not read
            c.pop('has_sd', None)
        nbformat.validate(nb)
        assert not [c for c in nb.cells if c.cell_type == 'code' and '#| default_exp' in c.source]


def test_processing_keeps_figures_and_documents_what_is_exported(processed):
    for name in notebooks:
        nb = nbformat.read(processed/'_proc'/f'{name}.ipynb', 4)
        kept = {m for c in nb.cells for m in re.findall(r'^#\| label: (fig-[\w-]+)', c.source, re.M)}
        hidden = {directive(c, 'label') for c in cells(name, 'code') if re.search(r'^#\| *hide', source(c), re.M)}
        assert kept == {l for c in cells(name, 'code') if (l := directive(c, 'label')).startswith('fig-')}-hidden, name
    evaluation = nbformat.read(processed/'_proc'/'09_evaluation.ipynb', 4)
    assert any('metric_of' in ''.join(map(str, c.get('outputs', ()))) for c in evaluation.cells)


def test_processing_leaves_the_projects_files_as_they_are(processed):
    for f in ('nbs/nbdev.yml', '_quarto.yml', 'pyproject.toml', 'hatenb/_modidx.py'):
        assert (processed/f).read_text() == (root/f).read_text(), f'nbdev writes {f} anew when it makes the site: run `nbdev-proc-nbs` and commit it'
