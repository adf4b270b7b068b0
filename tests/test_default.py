"The detector that answers where none is named, and a detector as a package of its own"
import importlib.metadata, json, os, re, subprocess, sys, venv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from hatenb.core import HatenbError
from hatenb.detector import Detector, Runtime, save_wheel
from hatenb.detector.runtime import activations, deciders, evidences, joins
from toy import save_toy

SAFETY = Path(__file__).resolve().parent/'safety'/'bundle'
TEXTS = ['the melquins are slur1', 'a fine day at the fair', 'word '*300, '', '😂']
ASK = """
import json, sys
from hatenb.detector.runtime import Runtime
r = Runtime()
answers = list(r(sys.argv[1:]))
peak = next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))
print(json.dumps(dict(answers=answers, folder=str(r.folder), modules=[*sys.modules], peak=peak)))
"""


def environment(bundle, cache): return {**os.environ, 'HATENB_DETECTOR': str(bundle), 'HATENB_CACHE': str(cache)}


def ask(env): return subprocess.Popen([sys.executable, '-c', ASK, *TEXTS], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process):
    out, err = process.communicate(timeout=560)
    assert process.returncode == 0, err[-2000:]
    return json.loads(out)


@pytest.fixture(scope='module')
def half(tmp_path_factory):
    "What lies in the package, in small: adapters and heads in half precision, no ONNX file"
    detector = Detector.from_pretrained(SAFETY, device='cpu', dtype='float32')
    return detector.save(tmp_path_factory.mktemp('default')/'half', half=True)


@pytest.fixture(scope='module')
def asked(half, tmp_path_factory):
    "Two processes ask the default at once, a third asks later"
    env = environment(half, tmp_path_factory.mktemp('cache'))
    together = [ask(env), ask(env)]
    return [*map(said, together), said(ask(env))]


def test_half_precision_is_half_the_size_and_as_good(half):
    size = [(f/'heads.safetensors').stat().st_size for f in (SAFETY, half)]
    assert size[1] < .6*size[0]
    before, after = (Detector.from_pretrained(f, device='cpu', dtype='float32')(TEXTS) for f in (SAFETY, half))
    for a, b in zip(before, after): np.testing.assert_allclose([*a['label_prob'].values()], [*b['label_prob'].values()], atol=2e-3)


def test_the_graph_is_made_once_and_whole(asked):
    folders = {a['folder'] for a in asked}
    assert len(folders) == 1
    made = Path(folders.pop())
    assert [f.name for f in made.parent.iterdir() if f.is_dir()] == [made.name]        # nothing half-made beside it
    assert all(a['answers'] == asked[0]['answers'] for a in asked)


def test_whoever_comes_later_needs_no_torch_and_little_memory(asked):
    assert not {'torch', 'pandas', 'fastcore', 'transformers'} & {*asked[-1]['modules']}
    assert asked[-1]['peak'] < 250_000


def test_it_answers_as_torch_does(asked, half):
    mine = Detector.from_pretrained(half, device='cpu', dtype='float32')(TEXTS)
    for a, b in zip(asked[-1]['answers'], mine):
        assert a.keys() == b.keys()
        np.testing.assert_allclose([*a['label_prob'].values()], [*b['label_prob'].values()], atol=.05)


def test_company_does_not_matter_to_eight_bits(asked):
    runtime = Runtime(asked[0]['folder'], threads=1)
    for a in asked[0]['answers']: np.testing.assert_allclose([*runtime(a['text'])['label_prob'].values()], [*a['label_prob'].values()], atol=1e-5)


def test_detector_is_the_default_too(half, monkeypatch):
    monkeypatch.setenv('HATENB_DETECTOR', str(half))
    d = Detector()
    assert d.folder == half and d('a post').keys() == Detector.from_pretrained(half)('a post').keys()


def test_where_there_is_no_default_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv('HATENB_DETECTOR', str(tmp_path/'nowhere'))
    for default in (Runtime, Detector):
        with pytest.raises(HatenbError, match='no default detector.*HATENB_DETECTOR'): default()
    code = 'from hatenb.cli import main; main()'
    out = subprocess.run([sys.executable, '-c', code, 'detect', 'a post'], capture_output=True, text=True)
    assert out.returncode == 1 and 'no default detector' in out.stderr and 'Traceback' not in out.stderr


# ---------------------------------------------------------------- a package of its own

def needed(names):
    "The packages that some packages need, and those that these need"
    found, todo = {}, [*names]
    while todo:
        dist = importlib.metadata.distribution(todo.pop())
        if dist.name in found: continue
        found[dist.name] = dist
        wanted = map(Requirement, dist.requires or ())
        todo += [r.name for r in wanted if r.marker is None or r.marker.evaluate({'extra': ''})]
    return found.values()


@pytest.fixture
def empty_venv(tmp_path):
    "A virtual environment with numpy, regex, tokenizers, ONNX Runtime and what they need, as they are installed here"
    venv.create(tmp_path/'venv', with_pip=False)
    site = next((tmp_path/'venv').glob('lib/python*/site-packages'))
    for dist in needed(['numpy', 'regex', 'tokenizers', 'onnxruntime']):
        for top in {f.parts[0] for f in dist.files if f.parts[0] not in ('..', '__pycache__')}:
            if not (site/top).exists(): (site/top).symlink_to(dist.locate_file(top))
    return tmp_path/'venv'


def test_a_wheel_is_installed_where_nothing_else_is_and_answers(asked, empty_venv, tmp_path):
    bundle = Detector.from_pretrained(asked[0]['folder'], device='cpu', dtype='float32')
    wheel = save_wheel(bundle, tmp_path/'dist', 'my_model', '1.2')
    assert wheel.name == 'my_model-1.2-py3-none-any.whl' and [f.name for f in wheel.parent.iterdir()] == [wheel.name]
    python, env = empty_venv/'bin'/'python', {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    def run(*args, **kwargs):
        out = subprocess.run([*map(str, args)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=560, **kwargs)
        assert out.returncode == 0, out.stderr[-2000:]
        return out.stdout
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-index', wheel)
    code = 'import importlib.util as u, my_model, json; print(json.dumps([dict(my_model.load()("a post")), *(bool(u.find_spec(m)) for m in ("torch", "hatenb"))]))'
    answer, *others = json.loads(run(python, '-c', code))
    assert answer == bundle.from_pretrained(bundle.folder, backend='onnx')('a post') and others == [False, False]
    lines = [json.loads(l) for l in run(empty_venv/'bin'/'my_model', input='a post\nanother\n').splitlines()]
    assert [l['text'] for l in lines] == ['a post', 'another'] and lines[0]['targets'] == answer['targets']
    np.testing.assert_allclose([*lines[0]['label_prob'].values()], [*answer['label_prob'].values()], atol=1e-5)
    assert answer['label'] in run(empty_venv/'bin'/'my_model', 'a post')
    metadata = importlib.metadata.PathDistribution(next(empty_venv.glob('lib/*/site-packages/my_model-*.dist-info')))
    assert {re.match(r'[\w-]+', r)[0] for r in metadata.requires} == {'numpy', 'regex', 'tokenizers', 'onnxruntime'}


@pytest.mark.parametrize('name', ['lambda', 'import', 'hatenb', 'numpy', 'json', 'Mine', 'a-b', '_a'])
def test_a_wheel_has_a_name_that_can_be_imported(name, tmp_path):
    with pytest.raises(HatenbError, match='no name for a package'): save_wheel(None, tmp_path/'dist', name)
    assert not (tmp_path/'dist').exists()


@pytest.mark.parametrize('field,registry', [('activation', activations), ('join', joins), ('decide', deciders), ('evidence', evidences)])
@pytest.mark.parametrize('home', ['__main__', 'theirs'])
def test_a_wheel_is_not_written_with_a_rule_that_stays_behind(field, registry, home, tmp_path, monkeypatch):
    toy = Runtime(save_toy(tmp_path/'toy'))
    def rule(*args): pass
    rule.__module__ = home
    monkeypatch.setitem(registry, 'mine', rule)
    q = replace(toy.manifest.questions['label'], **{field: 'mine'})
    toy.manifest = replace(toy.manifest, questions=toy.manifest.questions | {'label': q})
    with pytest.raises(HatenbError, match=f"'mine' is defined in {home}"): save_wheel(toy, tmp_path/'dist', 'my_model')
