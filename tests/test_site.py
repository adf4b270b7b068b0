"What can be checked of the site without Quarto: its configuration, targets, labels, captions, links, content notes; what a reader sees"
import ast, json, os, re, shutil, subprocess, sys, tomllib
from pathlib import Path

import hatenb, nbformat, pytest, yaml
from filelock import FileLock
from nbdev.config import nbpath2html

import reader

root = Path(__file__).resolve().parent.parent
nbs = root/'nbs'
# every notebook by its place below nbs/, without the ending: `00_core`, `results/01_answer`
notebooks = {p.relative_to(nbs).with_suffix('').as_posix(): json.loads(p.read_text(encoding='utf-8'))
             for p in sorted(nbs.rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts}
every = pytest.mark.parametrize('name', notebooks)
every_result = pytest.mark.parametrize('name', [n for n in notebooks if n.startswith('results/')])


def cells(name, kind): return [c for c in notebooks[name]['cells'] if c['cell_type'] == kind]
def source(cell): return ''.join(cell['source'])
def prose(name): return '\n\n'.join(map(source, cells(name, 'markdown')))
def outputs(cell, kind): return [''.join(o['data'][kind]) for o in cell.get('outputs', ()) if kind in o.get('data', {})]


def directive(cell, key):
    return next(iter(re.findall(rf'^#\| {key}: *(.+)$', source(cell), re.M)), '').strip(' "\'')


# the configuration

class Loader(yaml.SafeLoader):
    "YAML in which a key that is there twice is an error"
    def construct_mapping(self, node, deep=False):
        keys = [k.value for k, _ in node.value]
        assert len(set(keys)) == len(keys), f'a key is there twice: {keys}, {node.start_mark}'
        return super().construct_mapping(node, deep)


def load_yaml(path): return yaml.load(path.read_text(encoding='utf-8'), Loader)


@pytest.fixture(scope='module')
def config(): return load_yaml(root/'_quarto.yml')


def sidebar_targets(contents):
    for c in contents:
        if isinstance(c, str): yield c
        elif 'contents' in c: yield from sidebar_targets(c['contents'])
        else: yield c['href']


# of Quarto's schemas (quarto.org/docs/reference/projects/websites.html, …/formats/html.html) what a site like this uses
known = {
    '': 'project format execute website metadata-files',
    'project': 'type output-dir preview render resources', 'project.preview': 'port host browser',
    'execute': 'enabled freeze cache echo warning',
    'format': 'html commonmark',
    'format.html': 'theme css toc toc-depth toc-location code-overflow code-copy code-fold code-tools fig-align '
                   'respect-user-color-scheme highlight-style number-sections link-external-newwindow anchor-sections',
    'format.html.theme': 'light dark',
    'website': 'title description favicon image site-url site-path repo-url repo-subdir repo-branch issue-url repo-actions '
               'reader-mode page-navigation back-to-top-navigation bread-crumbs search navbar sidebar page-footer '
               'open-graph twitter-card',
    'website.search': 'location type limit collapse-after copy-button show-item-context',
    'website.navbar': 'title logo logo-alt background foreground search pinned collapse left right tools',
    'website.page-footer': 'left right center border background foreground',
    'website.sidebar[]': 'id title logo search tools contents style background foreground border alignment collapse-level '
                       'pinned header footer',
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
    assert set(config['format']['html']['theme']) == {'light', 'dark'}
    assert config['website']['search'] and 'source' in config['website']['repo-actions']
    assert (nbs/'_quarto.yml').is_symlink() and (nbs/'_quarto.yml').resolve() == root/'_quarto.yml'
    for f in config['metadata-files'] + [config['format']['html']['css']]: assert (nbs/f).is_file(), f


def readers_path(config):
    "The pages that a first reader takes, by the sidebar"
    start = config['website']['sidebar'][-1]
    assert start['title'] == 'Get started', 'a page is shown with the first sidebar that names it: chapters, with theirs'
    return [c['href'] for s in start['contents'] if isinstance(s, dict) and 'section' in s for c in s['contents']]


def test_a_first_readers_path_is_in_the_sidebar_as_the_tour_has_it(config):
    steps = next(source(c) for c in cells('tour', 'code') if 'steps = {' in source(c))
    assert readers_path(config) == [f'{n}.ipynb' for n in re.findall(r"^    '([^']+)':", steps, re.M)]


def test_every_notebook_is_in_the_sidebar_and_every_target_exists(config):
    targets = [t for bar in config['website']['sidebar'] for t in sidebar_targets(bar['contents'])]
    bar = config['website']['navbar']
    linked = targets + [e['href'] for e in bar.get('left', []) + bar.get('right', [])]
    gone = [t for t in linked if not t.startswith('http') and not (nbs/t).is_file()]
    assert not gone, f'the sidebar or the bar above it of _quarto.yml names notebooks that are not there: {gone}'
    missing = sorted({f'{n}.ipynb' for n in notebooks}-set(targets))
    assert not missing, f'notebooks without a row in the sidebar of _quarto.yml: {missing}'
    twice = {t for t in targets if targets.count(t) > 1}
    assert twice == set(readers_path(config)), f'twice in the sidebar: {sorted(twice ^ set(readers_path(config)))}'


def test_each_part_of_the_bar_above_has_its_sidebar_and_each_notebook_its_part(config):
    "Quarto marks the entry above whose page is in the sidebar that is shown"
    bars = {b['title']: b['contents'] for b in config['website']['sidebar']}
    above = {e['text']: e['href'] for e in config['website']['navbar']['left']}
    assert [*list(bars)[-1:], *list(bars)[:-1]] == list(above) == ['Get started', 'Results', 'Guides', 'API']
    assert len({b['id'] for b in config['website']['sidebar']}) == 4
    for part, href in above.items(): assert href in sidebar_targets(bars[part]), f'{part} leads to a page of another part'
    assert bars['Results'][0].endswith('answer.ipynb')
    assert all(t.startswith('results/') for t in sidebar_targets(bars['Results']))
    assert all(t.startswith('guides/') for t in sidebar_targets(bars['Guides']))
    for section in (c for c in bars['API'] if 'section' in c):
        for c in section['contents']:
            name = c['href'].removesuffix('.ipynb')
            assert c['text'] == f'API: {exported_module(name)}', f'{c["href"]} makes the module {exported_module(name)}'
            assert source(notebooks[name]['cells'][0]).startswith(f'# {c["text"]}\n'), f'{name} is called something else in the sidebar'


def exported_module(name):
    found = (re.search(r'^#\| *default_exp +(\S+)', source(c), re.M) for c in cells(name, 'code'))
    return next((m[1] for m in found if m), None)


def test_no_two_notebooks_write_the_same_page(config):
    "nbdev leaves the number out of a page's name, so `07_merging` and `21_merging` in one folder would be one page"
    made = {}
    for n in notebooks: made.setdefault(nbpath2html(Path(f'{n}.ipynb')).as_posix(), []).append(n)
    assert not (twice := {k: v for k, v in made.items() if len(v) > 1}), twice


def test_workflow_builds_with_the_released_quarto_and_publishes_what_was_built():
    flow = load_yaml(root/'.github'/'workflows'/'docs.yml')
    build, publish = flow['jobs']['build'], flow['jobs']['publish']
    used = [s.get('uses', s.get('run', '')) for s in build['steps']]
    quarto = next(s for s in build['steps'] if s.get('uses', '').startswith('quarto-dev/quarto-actions/setup@'))
    assert quarto['with']['version'] == 'release' and used.index(quarto['uses']) < used.index('make docs')
    assert all('@' in u for u in used if '/' in u)
    made = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['tool']['nbdev']['doc_path']
    upload = next(s for s in build['steps'] if 'upload-pages-artifact' in s.get('uses', ''))
    assert upload['with']['path'] == made
    assert publish['needs'] == 'build' and publish['permissions'] == {'pages': 'write', 'id-token': 'write'}
    assert re.search(r'^docs:.*\n(\t.*\n)*\t\$\(BIN\)/nbdev-docs$', (root/'Makefile').read_text(), re.M)


# figures

def check_figure(name, cell):
    "A cell that shows a figure has label, caption and alt text, and one that has the label shows the figure"
    label, shown = directive(cell, 'label'), outputs(cell, 'image/png') + outputs(cell, 'image/svg+xml')
    caption, alt = directive(cell, 'fig-cap'), directive(cell, 'fig-alt')
    where = f'{name}: {label or source(cell)[:60]!r}'
    if shown:
        assert label.startswith('fig-') and caption and alt, f'{where} shows a figure; it needs label, fig-cap and fig-alt'
        assert caption != alt, f'{where}: the alt text says what is to be seen, the caption what it is'
    if label.startswith('fig-'): assert shown, f'{where} has no stored figure: run the notebook and save it'
    if label.startswith('tbl-'): assert directive(cell, 'tbl-cap'), f'{where} needs tbl-cap'
    for h in outputs(cell, 'text/html'):
        assert not re.search(r'<img(?![^>]*\salt="[^"]+)', h), f'{where} shows an <img> without alt text'


@every
def test_every_figure_has_label_caption_and_alt_text(name):
    labels = [directive(c, 'label') for c in cells(name, 'code') if directive(c, 'label')]
    assert len(set(labels)) == len(labels), f'labels twice in {name}: {labels}'
    for c in cells(name, 'code'): check_figure(name, c)
    for alt, target in re.findall(r'!\[([^\]]*)\]\(([^)\s]+)', prose(name)):
        assert alt, f'{name}: the picture {target} has no alt text'
        assert target.startswith('http') or (nbs/f'{name}.ipynb').parent.joinpath(target).is_file(), f'{name}: no picture {target}'


def test_no_module_draws_text_that_is_too_small():
    "What a page is measured by is the text its own cells ask for (see `reader.figure`); what modules ask for is no smaller"
    sizes = {f'{p.relative_to(root)}: {m[0]}' for p in (root/'hatenb').rglob('*.py')
             for m in re.finditer(r'(?:font|label)size=([\d.]+)', p.read_text(encoding='utf-8')) if float(m[1]) < 9}
    assert not sizes, sizes


def test_every_cross_reference_has_its_label():
    for name in notebooks:
        there = {directive(c, 'label') for c in cells(name, 'code')} | set(re.findall(r'\{#([\w-]+)', prose(name)))
        named = set(re.findall(r'(?<![\w@`])@((?:fig|tbl|sec|eq)-[\w-]+)', prose(name)))
        assert not named-there, f'{name} refers to {sorted(named-there)}'


@every
def test_notebook_is_stored_with_its_outputs(name):
    "Nothing is run when pages are rendered, so every notebook brings outputs, and none of them is an error"
    shown = [o for c in cells(name, 'code') for o in c['outputs']]
    assert shown, f'{name} was saved without outputs'
    assert not [o for o in shown if o['output_type'] == 'error'], f'{name} was saved with an error'
    told = [''.join(o['text']) for o in shown if o.get('name') == 'stderr']
    assert not [t for t in told if 'Warning: ' in t], f'{name} shows a warning, with a path of the machine that it was saved on'


def test_pages_that_take_long_say_so_where_they_begin():
    "The tour has measured them; nothing is timed here"
    told = '\n'.join(o for c in cells('tour', 'code') for o in outputs(c, 'text/markdown'))
    seconds = {name: int(s) for name, s in re.findall(r'\]\(([\w/]+)\.ipynb\) \| (\d+) \|', told)}
    begins = {n: '\n'.join(source(c) for c in notebooks[n]['cells'][:8] if c['cell_type'] == 'markdown') for n in seconds}
    said = {n: int(m[1]) for n in seconds if (m := re.search(r'takes about (\d+) seconds', begins[n]))}
    silent = [n for n, s in seconds.items() if s >= 20 and not s/2 <= said.get(n, 0) <= 2*s]
    assert len(seconds) > 12 and not silent, silent


# pages of results

@every_result
def test_results_pages_define_no_functions(name):
    "What a page computes is in a module, tested; a page calls it"
    for c in cells(name, 'code'):
        defined = [n for n in ast.walk(ast.parse(source(c))) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        assert not defined, f'{name} defines {[d.name for d in defined]}'


@every_result
def test_results_pages_fold_their_code_and_hide_imports(name):
    title = source(notebooks[name]['cells'][0])
    assert re.search(r'^- code-fold: true$', title, re.M), f'{name}: its first cell needs the line `- code-fold: true`'
    for c in cells(name, 'code'):
        if re.search(r'^(import|from) ', source(c), re.M): assert re.search(r'^#\| hide$', source(c), re.M), source(c)


@every_result
def test_results_pages_begin_with_their_answer(name):
    "After title and content note, the first that a reader sees is a sentence in bold; then a table or a plot"
    shown = []
    for c in notebooks[name]['cells'][1:]:
        text = source(c)
        if c['cell_type'] == 'markdown' and '**Content note.**' not in text: shown.append(text)
        if c['cell_type'] == 'code' and '#| hide' not in text:
            shown += outputs(c, 'text/markdown') or outputs(c, 'text/html') or ['figure']*bool(outputs(c, 'image/png'))
    assert shown[0].startswith('**'), f'{name} begins with {shown[0][:80]!r}'
    first = next(i for i, s in enumerate(shown) if s == 'figure' or '<table' in s or s.lstrip().startswith('|'))
    assert first <= 2 and not [s for s in shown[:first] if s.startswith('#')], f'{name}: a table or a plot comes first'


@every_result
def test_results_pages_write_a_true_minus(name):
    shown = [re.sub(r'<[^>]*>', ' ', o) for c in cells(name, 'code') for k in ('text/html', 'text/markdown') for o in outputs(c, k)]
    bad = [m[0] for t in [prose(name), *shown] for m in re.finditer(r'.{0,20}(?<![\w.)/-])-\.?\d.{0,10}', t)]
    assert not bad, bad


@every_result
def test_results_pages_are_small(name):
    size = (nbs/f'{name}.ipynb').stat().st_size
    assert size < 500_000, f'{name} has {size/1000:.0f} kB: fewer or smaller plots'


# links

def slug(heading):
    "A heading's anchor as Quarto (pandoc) makes it"
    words = re.sub(r'[^\w\s.-]', '', re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading)).strip().lower()
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', words))


def anchors(name):
    "What can be linked to in a notebook: headings and labels"
    lines = re.sub(r'^(```|~~~).*?^\1', '', prose(name), flags=re.M | re.S).splitlines()
    headings = {slug(re.sub(r'\{.*\}$', '', m[1])) for l in lines if (m := re.match(r'#+ (.+)', l))}
    return headings | set(re.findall(r'\{#([\w-]+)', prose(name))) | {directive(c, 'label') for c in cells(name, 'code')}


def leads_somewhere(target, folder):
    if ours := re.match(r'https://github\.com/hatenb/hatenb/(?:blob|tree)/main/([^#]+)', target): return (root/ours[1]).exists()
    if re.match(r'(https?|mailto):', target): return True
    path, _, anchor = target.partition('#')
    if not path: return True
    file = (folder/path).resolve()
    if not (anchor and file.suffix == '.ipynb' and file.exists()): return file.exists()
    return anchor in anchors(file.relative_to(nbs).with_suffix('').as_posix())


def broken(text, folder):
    targets = re.findall(r'(?<!!)\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)', re.sub(r'`[^`\n]*`', '', text))
    return [t for t in targets if not leads_somewhere(t, folder)]


@every
def test_links_lead_somewhere(name):
    said = '\n\n'.join([prose(name), *(o for c in cells(name, 'code') for o in outputs(c, 'text/markdown'))])
    assert not (gone := broken(said, (nbs/name).parent)), f'{name}: {gone}'
    own = [a for a in re.findall(r'\]\(#([^)]+)\)', said) if a not in anchors(name)]
    assert not own, f'{name} has no heading {own}'


@pytest.mark.parametrize('file', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'benchmarks/README.md'])
def test_links_of_the_other_pages_lead_somewhere(file):
    path = root/file
    assert not (gone := broken(path.read_text(encoding='utf-8'), path.parent)), gone


# posts

def shows_posts(name):
    "Whether a page displays posts: by `show`, or with marked words"
    shown = re.compile(r'^(?!def ).*(?<![.\w])show\(', re.M)
    return any(shown.search(source(c)) or any('<mark' in h for h in outputs(c, 'text/html')) for c in cells(name, 'code'))


@every
def test_pages_that_show_posts_open_with_a_content_note(name):
    if name == 'index' or not shows_posts(name): return
    top = [source(c) for c in notebooks[name]['cells'][:6] if c['cell_type'] == 'markdown']
    assert any('**Content note.**' in t for t in top), f'{name} shows posts: it needs a **Content note.** in its first cells'


def shown_words(name):
    "Every word that a reader of the page can see"
    texts = [prose(name)]
    for c in cells(name, 'code'):
        for kind in ('text/plain', 'text/html', 'text/markdown'): texts += outputs(c, kind)
        texts += [''.join(o.get('text', '')) for o in c['outputs']]
    return {w for t in texts for w in re.findall(r"[^\W\d_]+", re.sub(r'base64,[\w+/=\s]+', '', t))}


@every
def test_no_slur_is_shown_unmasked(name):
    from hatenb.pretokenize import masked_word
    bare = sorted(w for w in shown_words(name) if masked_word(w) != w)
    assert not bare, f'{name} shows {[masked_word(w) for w in bare]}'


# nbdev

def is_export(text): return re.search(r'^(#\| *export|[%!])', text, re.M)


def test_imports_stand_in_cells_of_their_own():
    "nbdev runs every cell with an import when it makes pages; other code in such a cell would run without what came before it"
    mixed, imports = [], (ast.Import, ast.ImportFrom)
    for name in notebooks:
        for text in map(source, cells(name, 'code')):
            if is_export(text): continue
            body = ast.parse(text)
            if not any(isinstance(n, imports) for n in ast.walk(body)): continue
            if not all(isinstance(n, imports) for n in body.body): mixed.append(f'{name}: {text[:50]!r}')
    assert not mixed, mixed


def process(copy):
    "The notebooks as nbdev hands them to Quarto, made in a copy; the `quarto` on its path is a stand-in that only has to be there"
    copy.mkdir()
    for f in ('nbs', 'hatenb'):
        shutil.copytree(root/f, copy/f, symlinks=True, ignore=shutil.ignore_patterns('.ipynb_checkpoints', '__pycache__'))
    for f in ('pyproject.toml', 'settings.ini', '_quarto.yml', 'README.md'): shutil.copy(root/f, copy/f)
    (copy/'bin').mkdir()
    (copy/'bin'/'quarto').write_text('#!/bin/sh\nexit 3\n')
    (copy/'bin'/'quarto').chmod(0o755)
    env = {**os.environ, 'PYTHONPATH': str(copy), 'PATH': f'{copy/"bin"}:{os.environ["PATH"]}'}
    code = 'from nbdev.quarto import nbdev_proc_nbs; nbdev_proc_nbs()'
    said = subprocess.run([sys.executable, '-c', code, '--n-workers', '0'], cwd=copy, env=env, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-3000:]


@pytest.fixture(scope='session')
def processed(tmp_path_factory):
    "What `process` makes, once for all workers of a test run: it takes a minute"
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base)/'site'
    with FileLock(f'{folder}.lock'):
        if not (folder/'done').exists():
            folder.mkdir(exist_ok=True)
            process(folder/'hatenb')
            (folder/'done').touch()
    return folder/'hatenb'


def test_notebooks_are_valid_for_quarto(processed):
    made = {p.relative_to(processed/'_proc').with_suffix('').as_posix(): p for p in (processed/'_proc').rglob('*.ipynb')}
    assert set(made) == set(notebooks)
    for p in made.values():
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
    core = nbformat.read(processed/'_proc'/'00_core.ipynb', 4)
    assert any('settings' in ''.join(map(str, c.get('outputs', ()))) for c in core.cells)


def test_processing_leaves_the_projects_files_as_they_are(processed):
    for f in ('nbs/nbdev.yml', '_quarto.yml', 'pyproject.toml', 'hatenb/_modidx.py'):
        said = f'nbdev writes {f} anew when it makes the site: run `nbdev-proc-nbs` and commit it'
        assert (processed/f).read_text() == (root/f).read_text(), said


def test_pages_show_short_signatures_and_list_their_names_first(processed):
    for p in (processed/'_proc').rglob('*.ipynb'):
        shown = json.dumps([c.get('outputs', ()) for c in nbformat.read(p, 4).cells])
        assert not (bad := re.findall(r'__main__\.\w+|\w+:NoneType=None', shown)), f'{p.stem}: {bad}'
    merging = nbformat.read(processed/'_proc'/'merging'/'06_adapters.ipynb', 4).cells
    first = next(i for i, c in enumerate(merging) if '| [`merge_adapters`](#merge_adapters) | ' in c.source)
    assert all(c.cell_type != 'code' and not c.source.startswith('#') for c in merging[:first])
    for n in (n for n in notebooks if exported_module(n)):
        made = nbformat.read(processed/'_proc'/f'{n}.ipynb', 4).cells
        if not any(c.source.startswith('show_doc(') for c in made): continue         # it documents no function
        top = [c.source for c in made if c.cell_type == 'markdown'][:8]
        assert any('| name | |' in t for t in top), f'{n} does not begin with the names that a user calls'
    reference = json.dumps(nbformat.read(processed/'_proc'/'reference.ipynb', 4).cells)
    assert not [n for n in hatenb.__all__ if f'[`{n}`](https' not in reference], 'the reference has no link to it'
    runtime = ''.join(c.source for c in nbformat.read(processed/'_proc'/'detector'/'01_runtime.ipynb', 4).cells)
    assert '`windows`' in runtime and '[`windows`]' not in runtime, 'a field of an answer is linked to a function of its name'


def test_every_guide_can_be_opened_in_colab(processed):
    for n in (n for n in notebooks if n.startswith('guides/')):
        cells = nbformat.read(processed/'_proc'/f'{n}.ipynb', 4).cells
        place = f'https://colab.research.google.com/github/hatenb/hatenb/blob/main/nbs/{n}.ipynb'
        assert any(f'({place})' in c.source for c in cells if c.cell_type == 'markdown'), f'no badge on the page of {n}'
        assert any(c.source.startswith('#| eval: false\n%pip install') for c in cells), f'{n} installs nothing there'


# what a reader sees

read_first = [n for n in notebooks if '/' not in n and not exported_module(n) or n.startswith(('results/', 'guides/'))]


@pytest.fixture(scope='session')
def opened(processed, browser, tmp_path_factory):
    "Open a page as wide as a phone or a desk, in light or in dark"
    folder, made = tmp_path_factory.mktemp('read'), {}
    styles = (nbs/'styles.css').read_text()

    def _open(name, width=1280, dark=False):
        if name not in made:
            made[name] = folder/(name.replace('/', '_') + '.html')
            made[name].write_text(reader.page(processed/'_proc'/f'{name}.ipynb', styles), encoding='utf-8')
        size = dict(width=width, height=740 if width < 500 else 900, deviceScaleFactor=1, mobile=width < 500)
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
        browser.get(made[name].as_uri())
        if dark: browser.execute_script("document.body.className = 'quarto-dark'")
        return browser.execute_script

    yield _open
    browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


@pytest.mark.parametrize('name', [n for n in notebooks if n.startswith('guides/') and int(Path(n).name[:2]) < 30])
def test_a_guide_takes_two_screens_at_most(opened, name):
    "At a desk, with code that is folded as it is at first; what lists traps and corpora is read otherwise"
    height = opened(name)('return document.documentElement.scrollHeight')
    assert height <= 2*900, f'{name} is {height/900:.2f} screens high: fold or cut'


# what sticks out: the page is as wide as the window, unless something in it is wider and does not scroll by itself
sticking_out = """
document.querySelectorAll('details').forEach(d => d.open = true)
const w = document.documentElement.clientWidth
if (document.documentElement.scrollWidth <= w) return []
const wide = e => e.getBoundingClientRect().right > w + 1 || e.clientWidth && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX == 'visible'
const out = [...document.querySelectorAll('main *')].filter(e => wide(e) && !e.parentElement.closest('.wide, .cell-output-display')).slice(0, 3).map(e => e.outerHTML.slice(0, 150))
return out.length ? out : ['something in a scroller']
"""
small_text = """
return [...document.querySelectorAll('main img[data-inches]')].map(i => [i.dataset.points/72*i.clientWidth/i.dataset.inches, i.alt])
"""


# colours change no width: each width is looked at in one of the two
@pytest.mark.parametrize('width,pages,dark', [(360, [*notebooks], True), (1280, read_first, False)])
def test_nothing_is_wider_than_the_page_and_text_in_plots_can_be_read(opened, width, pages, dark):
    wide, small = {}, {}
    for n in pages:
        look = opened(n, width, dark)
        assert look("return [...document.querySelectorAll('main img')].every(i => i.src.startsWith('http') || i.naturalWidth > 0)"), n
        if out := look(sticking_out): wide[n] = out
        if tiny := [(px, alt) for px, alt in look(small_text) if px < 9]: small[n] = tiny
    assert not wide and not small


@every_result
def test_tables_that_are_not_folded_fit_a_desk(opened, name):
    wide = opened(name)("return [...document.querySelectorAll('main .wide, main table')].filter(e => !e.closest('details') && e.scrollWidth > 681).map(e => e.innerText.slice(0, 80))")
    assert not wide


@pytest.mark.parametrize('width', [360, 1280])
@every_result
def test_first_screen_holds_the_answer(opened, name, width):
    bottoms = opened(name, width)("return [...document.querySelectorAll('main strong')].map(e => [e.textContent, e.getBoundingClientRect().bottom])")
    _, bottom = next(b for b in bottoms if b[0] != 'Content note.')
    assert bottom <= (740 if width < 500 else 900), f'the answer ends {bottom:.0f} px from the top'


@pytest.mark.parametrize('name', read_first)
def test_a_dark_page_is_dark_but_for_its_plots(opened, name):
    look = "return [...document.querySelectorAll('main img')].filter(i => !i.closest('a')).map(i => getComputedStyle(i).backgroundColor)"
    behind = "return [...document.querySelectorAll('.wide, .cell-output-display')].filter(e => !e.querySelector('img')).map(e => getComputedStyle(e).backgroundImage).join()"
    light = opened(name)(behind)
    assert not light or 'rgb(255, 255, 255)' in light
    asked = opened(name, dark=True)
    assert 'rgb(255, 255, 255)' not in asked(behind) and set(asked(look)) <= {'rgb(255, 255, 255)'}
