"The command line as a shell sees it"
import collections, json, os, re, subprocess, sys

import pytest

from shell import command as hatenb


def process(*args, cwd=None, **env):
    "The same in a process of its own, which imports everything anew"
    code = 'import sys; from hatenb.cli import main; sys.argv = ["hatenb", *sys.argv[1:]]; main()'
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, timeout=560, cwd=cwd,
                          env={**os.environ, 'COLUMNS': '200', **env})


def test_help_lists_the_commands():
    out = process('--help')
    assert out.returncode == 0
    for command in ('demo', 'corpora', 'run', 'study', 'evaluate', 'report', 'detect', 'bundle', 'serve'): assert command in out.stdout


def test_the_version_is_said():
    import hatenb as package
    assert hatenb('--version').stdout == f'hatenb {package.__version__}\n'


def test_help_loads_nothing_that_takes_long():
    code = "import sys; from hatenb.cli import main; sys.argv = ['hatenb', '--help']; sys.exit = lambda *_: None\n" \
           "try: main()\nexcept SystemExit: pass\nprint('LOADED', *sys.modules)"
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    loaded = set(said.stdout.partition('LOADED')[2].split())
    assert 'typer' in loaded and not loaded & {'torch', 'transformers', 'datasets', 'pandas', 'numpy'}


def test_public_names_of_the_module_are_two():
    import hatenb.cli
    assert sorted(hatenb.cli.__all__) == ['app', 'main']


PLUGIN = """
import dataclasses
from hatenb.corpora import add_corpus, corpora

add_corpus(dataclasses.replace(corpora['mini'], name='mine'))
"""


def test_a_module_of_ones_own_is_imported_first(tmp_path):
    (tmp_path/'mine.py').write_text(PLUGIN)
    asked = 'run', 'mine/label', '--baseline', 'majority'
    out = hatenb(*asked, cwd=tmp_path, HATENB_RUNS=str(tmp_path/'runs'))
    assert out.returncode == 1 and "'mine'" in out.stderr and 'Traceback' not in out.stderr
    out = hatenb('--import', 'mine', *asked, cwd=tmp_path, HATENB_RUNS=str(tmp_path/'runs'))
    assert out.returncode == 0, out.stderr
    record = json.loads(next((tmp_path/'runs').rglob('record.json')).read_text())
    assert set(record['metrics']['test']) == {'mine/label'}


def test_an_installed_package_is_imported_by_its_entry_point(tmp_path):
    info = tmp_path/'mine-1.dist-info'
    info.mkdir()
    (tmp_path/'mine.py').write_text('print("mine is here")')
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: mine\nVersion: 1\n')
    (info/'entry_points.txt').write_text('[hatenb.plugins]\nmine = mine\n')
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get('PYTHONPATH')]))
    assert 'mine is here' in process('corpora', PYTHONPATH=path).stdout
    (tmp_path/'mine.py').write_text('1/0')
    out = process('corpora', PYTHONPATH=path)
    assert out.returncode == 1 and 'ZeroDivisionError' in out.stderr and 'Traceback' not in out.stderr


@pytest.mark.full   # test_studies.py has workers, one of them killed; each imports everything anew
def test_a_study_is_made_by_several_workers(tmp_path):
    runs = "[[runs]]\ntasks = ['mini/label']\nbaseline = ['majority', 'tfidf']"
    (tmp_path/'two.toml').write_text(f"name = 'two'\ntitle = 'Two baselines'\n{runs}\n")
    out = hatenb('study', 'two.toml', '--workers', 2, cwd=tmp_path, HATENB_RUNS=str(tmp_path/'runs'))
    assert out.returncode == 0, out.stderr
    assert len(list((tmp_path/'runs').rglob('record.json'))) == 2
    assert max(map(len, out.stdout.splitlines())) <= 100


def test_tables_fit_a_terminal():
    import pandas as pd
    from hatenb.cli import _table
    rows = pd.DataFrame({'run': ['first', 'the second'], **{f'a metric {i} ↑': ['.123', '.4'] for i in range(12)}})
    text = _table(rows)
    assert max(map(len, text.splitlines())) <= 100 and text.count('the second') == 2
    assert all(f'a metric {i} ↑' in text for i in range(12))
    assert len(_table(pd.DataFrame({'name': ['x'*120], 'value': ['1']})).splitlines()) == 2


def test_pickled_adapters_are_converted_only_if_trusted(tmp_path):
    import pickle, torch
    from safetensors.torch import load_file
    weights = {'layer.lora_A': torch.randn(4, 8), 'layer.lora_B': torch.zeros(8, 4)}
    torch.save(weights, tmp_path/'pytorch_adapter.bin')
    out = hatenb('convert-adapter', tmp_path)
    assert out.returncode == 1 and '--trusted' in out.stderr and not (tmp_path/'adapter.safetensors').exists()
    (tmp_path/'adapter_config.json').write_text('{}')
    assert hatenb('convert-adapter', tmp_path, '--trusted').returncode == 0
    read = load_file(tmp_path/'adapter.safetensors')
    assert set(read) == set(weights) and all(torch.equal(read[k], weights[k]) for k in weights)
    (tmp_path/'adapter.safetensors').unlink()
    with open(tmp_path/'pytorch_adapter.bin', 'wb') as f: pickle.dump({'a': os.system}, f)
    out = hatenb('convert-adapter', tmp_path, '--trusted')
    assert out.returncode == 1 and 'Traceback' not in out.stderr and not (tmp_path/'adapter.safetensors').exists()


def test_every_field_of_a_run_is_an_option():
    import dataclasses
    from hatenb.runs import RunConfig
    from hatenb.training import TrainConfig
    out = hatenb('run', '--help')
    assert out.returncode == 0, out.stderr
    for f in (*dataclasses.fields(RunConfig), *dataclasses.fields(TrainConfig)):
        if f.name not in ('tasks', 'train'): assert f'--{f.name.replace("_", "-")}' in out.stdout, f.name


def test_a_baseline_run_and_its_report(tmp_path):
    out = hatenb('run', 'mini/label', '--baseline', 'tfidf', '--seed', 3, HATENB_RUNS=str(tmp_path/'runs'))
    assert out.returncode == 0, out.stderr
    assert 'macro F1' in out.stdout
    record = json.loads(next((tmp_path/'runs').rglob('record.json')).read_text())
    assert record['config']['seed'] == 3
    out = hatenb('report', tmp_path/'runs', '--out', tmp_path/'page.html')
    assert out.returncode == 0, out.stderr
    page = (tmp_path/'page.html').read_text()
    value = record['metrics']['test']['mini/label']['macro_f1']['value']
    assert f'{value:.3f}' in page and '<table' in page and 'data:image/png;base64' in page
    assert not re.search(r'(src|href)="http', page)


def test_finished_runs_are_evaluated_again(tmp_path):
    from hatenb.making import make_run as run
    from hatenb.runs import RunConfig
    made = run(RunConfig(('mini/label',), baseline='majority'), tmp_path)
    path = tmp_path/made['name']/'record.json'
    path.write_text(json.dumps({**made, 'metrics': {s: {} for s in made['metrics']}}))
    out = hatenb('evaluate', tmp_path)
    assert out.returncode == 0 and made['name'] in out.stdout, out.stderr
    assert json.loads(path.read_text())['metrics'] == json.loads(json.dumps(made['metrics']))
    before, gone = path.read_text(), path.parent/'predictions'/'test.parquet'
    gone.unlink()
    out = hatenb('evaluate', tmp_path)
    assert out.returncode == 1 and 'test.parquet' in out.stderr and 'Traceback' not in out.stderr and path.read_text() == before


@pytest.mark.parametrize('args,said', [
    (('run', 'mini/lable'), "did you mean 'label'"),
    (('run', 'label', '--adapter', 'lorra'), "did you mean 'lora'"),
    (('run', 'label', '--adapter-options', '{r: 8}'), '--adapter-options'),
    (('run', 'target:7/3'), 'no part'),
    (('study', 'nowhere.toml'), 'nowhere.toml'),
    (('report', 'nowhere'), 'no record'),
    (('detect', '--model', 'x'), 'nothing to detect'),
    (('detect', '--model', 'x', '--file', 'nowhere.txt'), 'nowhere.txt'),
    (('detect', 'a post', '--model', 'no/where'), 'no such bundle'),
    (('bundle', 'x'), '--out'),
    (('bundle', 'x', '--wheel', '--push', 'me/x'), 'a wheel is not pushed'),
    (('bundle', 'x', '--wheel', '--push', 'me/x', '--out', 'y'), 'a wheel is not pushed'),
    (('bundle', 'x', '--wheel', '--onnx', 'none', '--out', 'y'), 'a wheel needs an ONNX graph'),
])
def test_errors_say_what_to_do_and_show_no_traceback(tmp_path, args, said):
    out = hatenb(*args, cwd=tmp_path, HATENB_RUNS=str(tmp_path/'runs'))
    assert out.returncode != 0
    assert said in out.stderr and 'Traceback' not in out.stderr
    assert not (tmp_path/'runs').exists() or not list((tmp_path/'runs').rglob('record.json'))


def test_corpora_says_what_is_where(tmp_path):
    out = hatenb('corpora', HATENB_DATA=str(tmp_path), HATENB_CACHE=str(tmp_path/'cache'))
    assert out.returncode == 0, out.stderr
    assert max(map(len, out.stdout.splitlines())) <= 100
    assert re.search(r'mini .*shipped with hatenb', out.stdout) and re.search(r'hatexplain .*not here', out.stdout)


def test_a_pool_is_where_its_parts_are(tmp_path):
    (tmp_path/'pooled.py').write_text("from hatenb.corpora import make_pool\nmake_pool('together', 'label', ['mini', 'hatexplain'])\n")
    out = process('--import', 'pooled', 'corpora', cwd=tmp_path, HATENB_DATA='')
    assert re.search(r'together .*made of mini, hatexplain', out.stdout), out.stderr


def test_the_demonstration_in_its_smallest(tmp_path):
    out = hatenb('demo', '--limit', 16, '--epochs', 1, '--workers', 1, '--out', tmp_path/'demo', HATENB_DATA='')
    assert out.returncode == 0, out.stderr
    records = [json.loads(p.read_text()) for p in (tmp_path/'demo'/'runs').rglob('record.json')]
    neural = [r for r in records if not r['config']['baseline']]
    assert max(map(len, out.stdout.splitlines()[:-3])) <= 100                  # all but the files that were written
    assert {r['config']['quantization'] for r in neural} == {'none', 'nf4'}
    assert sorted(len(r['config']['tasks']) for r in neural) == [1]*8 + [4]*6
    assert collections.Counter(r['config']['strategy'] for r in neural) == dict(shared=10, merge=2, fuse=2)
    assert (tmp_path/'demo'/'results.png').read_bytes()[:4] == b'\x89PNG'
    assert 'single-task' in out.stdout and 'multi-task' in out.stdout and 'posts/s' in out.stdout
    assert (tmp_path/'demo'/'report.html').stat().st_size > 10_000


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A bundle of a hasty run, made on the command line"
    from hatenb.making import make_run as run
    from hatenb.runs import RunConfig
    runs = tmp_path_factory.mktemp('detecting')
    name = run(RunConfig.from_dict(dict(tasks=['mini/label', 'mini/rationale'], limit=32, train=dict(epochs=1, batch_size=16))), runs)['name']
    out = hatenb('bundle', name, '--out', runs/'bundle', HATENB_RUNS=str(runs))
    assert out.returncode == 0 and 'MB' in out.stdout, out.stderr
    assert (runs/name/'decisions.json').is_file() and 'false-alarms-5' in (runs/'bundle'/'README.md').read_text()
    return runs/'bundle'


def test_by_sentence_at_an_operating_point(model, tmp_path):
    (tmp_path/'in.jsonl').write_text('"One. Two!"\n')
    out = hatenb('detect', '--model', model, '--file', tmp_path/'in.jsonl', '--sentences', '--words', '--operating-point', 'false-alarms-5')
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout)
    assert [(d['start'], d['end']) for d in found['sentences']] == [(0, 4), (5, 9)] and len(found['words']) == 2
    out = hatenb('detect', 'a post', '--model', model, '--operating-point', 'best')
    assert out.returncode != 0 and 'macro-f1, false-alarms-5, false-alarms-10' in out.stderr and 'Traceback' not in out.stderr


LINES = b'{"text": "a post", "id": "x1"}\n{broken\n{"text": 7}\n\xff\n\n"only a string"\n{"text": "\\ud83d lone"}\n{"text": "a post", "id": ' + b'9'*5000 + b'}\n'


def test_a_file_streams_to_json_lines_and_broken_lines_are_named(model, tmp_path):
    (tmp_path/'in.jsonl').write_bytes(LINES)
    out = hatenb('detect', '--model', model, '--file', tmp_path/'in.jsonl')
    assert out.returncode == 0, out.stderr
    answers = [json.loads(l) for l in out.stdout.splitlines()]
    assert [(a['line'], a.get('id'), a['text']) for a in answers] == [(1, 'x1', 'a post'), (6, None, 'only a string'), (7, None, '\ud83d lone')]
    assert all(a['label'] in a['label_prob'] and 'rationale' in a for a in answers)
    assert [int(n) for n in re.findall(r'line (\d+)\)', out.stderr)] == [2, 3, 4, 8]
    out = hatenb('detect', '--model', model, '--file', tmp_path/'in.jsonl', '--strict')
    assert out.returncode != 0 and 'line 2' in out.stderr and 'Traceback' not in out.stderr
    assert [json.loads(l)['line'] for l in out.stdout.splitlines()] == [1]


def test_the_ending_of_a_file_says_what_its_lines_are(model, tmp_path):
    (tmp_path/'in.NDJSON').write_bytes(b'\xef\xbb\xbf{"text": "a post"}\n')
    (tmp_path/'in.txt').write_bytes(b'\xef\xbb\xbf{"text": "a post"}\n')
    for name, post in (('in.NDJSON', 'a post'), ('in.txt', '{"text": "a post"}')):
        out = hatenb('detect', '--model', model, '--file', tmp_path/name)
        assert out.returncode == 0 and not out.stderr and json.loads(out.stdout)['text'] == post
    (tmp_path/'in.csv').write_text('text\na post\n')
    out = hatenb('detect', '--model', 'no/where', '--file', tmp_path/'in.csv')
    assert out.returncode != 0 and 'hatenb score' in out.stderr and 'Traceback' not in out.stderr


def test_posts_are_answered_without_what_reads_tables():
    code = "import sys; from hatenb.cli import app; app(['detect', 'a post'], standalone_mode=False); print('LOADED', *sys.modules)"
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert said.returncode == 0 and 'hatenb.detector.scoring' not in said.stdout.partition('LOADED')[2].split(), said.stderr


def test_standard_input_and_a_reader_that_leaves(model):
    code = 'import sys; from hatenb.cli import main; sys.argv = ["hatenb", "detect", "--model", sys.argv[1], "--file", "-"]; main()'
    p = subprocess.Popen([sys.executable, '-c', code, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdin.write('ein schöner Tag 😂\n'.encode()*3000)
    p.stdin.close()
    first = json.loads(p.stdout.readline())
    p.stdout.close()                                    # as `head -1` does
    said = p.stderr.read().decode()
    assert first['text'] == 'ein schöner Tag 😂' and p.wait(300) == 0 and not said, said


def test_lines_of_any_kind_are_numbered_or_refused():
    import io
    from hypothesis import given, settings, strategies as st
    from hatenb.cli import _lines

    @settings(deadline=None)
    @given(st.binary(max_size=200), st.booleans())
    def check(blob, jsonl):
        refused = []
        taken = [n for n, _, text in _lines(io.BytesIO(blob), jsonl, lambda n, why: refused.append(n)) if isinstance(text, str)]
        everything = sorted(taken+refused)
        assert everything == sorted(set(everything)) and (jsonl or everything == list(range(1, len(io.BytesIO(blob).readlines())+1)))
    check()
