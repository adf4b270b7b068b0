"The detector with hostile posts, other ways of strategy, bundles that were tampered with, and a hub that is not there"
import base64, contextlib, dataclasses, json, resource, shutil, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st

from hatenb.core import HatenbError
from hatenb.corpora import LABELS, TARGETS, load_corpus
from hatenb.detector import Detection, Detector, hatexplain_words, json_line, masked, plain_words, windows
from hatenb.evaluation import load_predictions
from hatenb.studies import RunConfig, run

TASKS = ['mini/label', 'mini/target', 'mini/rationale']
QUICK = dict(limit=32, max_length=40, train=dict(epochs=1, batch_size=16))


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return tmp_path_factory.mktemp('runs')


def made(runs, **config): return runs/run(RunConfig.from_dict({**QUICK, **config}), runs)['id']


@pytest.fixture(scope='module')
def folder(runs): return made(runs, tasks=[*TASKS, 'mini_mhs/score'])


@pytest.fixture(scope='module')
def detector(folder): return Detector.from_run(folder, dtype='float32')


@pytest.fixture(scope='module')
def bundle(detector, tmp_path_factory): return detector.save(tmp_path_factory.mktemp('bundles')/'b', onnx='int8')


def test_posts(split='test'): return [' '.join(w) for w in load_corpus('mini')[split]['words']]
test_posts.__test__ = False


# ---------------------------------------------------------------- reading

@hypothesis_settings(deadline=None, max_examples=100)
@given(st.text(st.characters(), max_size=60))
def test_any_string_is_read_and_its_words_stand_where_they_say(text):
    for read in (hatexplain_words, plain_words):
        w = read(text)
        assert len(w.words) == len(w.spans) and all(w.words)
        assert all(0 <= a < b <= len(text) for a, b in w.spans)
        assert all(a[1] <= b[0] for a, b in zip(w.spans, w.spans[1:]))
    assert plain_words(text).words == [''.join('\ufffd' if '\ud800' <= c <= '\udfff' else c for c in x) for x in text.split()]
    assert len(masked(text)) == len(text)


@pytest.mark.parametrize('hostile', ['1,'*200_000, '1'*300_000+'a', 'a.'*200_000, '*'*300_000, 'a*'*200_000, '@'*300_000, '<a'*200_000, '😂'*200_000, '1:1'*100_000, '$1.'*100_000])
def test_reading_takes_time_in_proportion_to_length(hostile):
    import time
    start = time.process_time()
    hatexplain_words(hostile)
    assert time.process_time()-start < 5


@pytest.mark.corpus
def test_posts_of_the_corpus_are_read_as_they_are(corpora_folder):
    posts = load_corpus('hatexplain')['test']['words'][:]
    same = [hatexplain_words(' '.join(p)).words == p for p in posts]
    assert np.mean(same) > .99


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.integers(0, 300), st.integers(8, 60), st.floats(0, .9))
def test_windows_hold_every_sub_token(n, most, overlap):
    ids, at = [-5, *range(n), -6], [-1, *range(n), -1]
    cut = windows(ids, at, most, overlap)
    assert {i for w, _ in cut for i in w} == {*ids}
    for w, words in cut:
        assert len(w) == len(words) <= most and (w[0], w[-1]) == (-5, -6) and w[1:-1] == words[1:-1]


# ---------------------------------------------------------------- answers

def test_the_probabilities_are_those_of_the_run(folder):
    stored = load_predictions(folder/'predictions'/'test.parquet')
    stored = stored[stored.corpus == 'mini']
    posts = load_corpus('mini')['test'].to_pandas().set_index('id').loc[stored.id, 'words']
    texts = [' '.join(p) for p in posts]
    for merge in (False, True):
        d = Detector.from_run(folder, dtype='float32', merge=merge)
        d.temperatures = {}
        answers = d(texts)
        np.testing.assert_allclose([[a['label_prob'][l] for l in LABELS] for a in answers], np.stack(stored.label_prob), atol=2e-5)
        np.testing.assert_allclose([[a['target_prob'][t] for t in TARGETS] for a in answers], np.stack(stored.target_prob), atol=2e-5)


ODD = ['', '   \n', '\0', 'a\0b', '\ud83d', 'x \udc00 y', '😂'*300, 'مرحبا שלום ixarics', 'Z̴̙̤̞A̴̵L̠G̴O'*20, '\u202ereversed', '\ufeff', '<script>alert(1)</script>', 'a'*50_000, 'word '*600, '\r\n\x85\u2028']


def test_any_string_is_answered(detector):
    for text, a in zip(ODD, detector(ODD)):
        assert a['text'] == text and a['windows'] >= 1
        assert abs(sum(a['label_prob'].values())-1) < 1e-5 and np.isfinite(a['severity'])
        assert all(text[w['start']:w['end']] == w['word'] for w in a['rationale'])
        assert json.loads(json_line(a)) == a
        assert '<script>' not in a._repr_html_()
        a._repr_html_().encode(), a.summary().encode()
    assert detector('word '*600)['windows'] > 15


def test_a_megabyte(detector):
    a = detector(('b'*150+' ')*7000)
    assert len(a['text']) > 1_000_000 and a['windows'] > 200
    assert len(a.to_html()) < 20_000 and len(a.summary()) < 500_000


@pytest.mark.parametrize('bad,name,at', [([None], 'NoneType', 0), (['a', 3.5], 'float', 1), (None, 'NoneType', 0), (7, 'int', 0), (['a', 'b', b'c'], 'bytes', 2), ([['a']], 'list', 0), ([float('nan')], 'float', 0)])
def test_what_is_no_string_is_refused_with_its_index(detector, bad, name, at):
    with pytest.raises(TypeError, match=f'post {at} is of type {name}'): detector(bad)


def test_one_many_and_a_stream(detector):
    texts = test_posts()[:7]
    many = detector(texts)
    assert type(detector(texts[0])) is Detection and detector(texts[0])['label'] == many[0]['label']
    assert list(many.frame()['label']) == [d['label'] for d in many] and len(many.frame()) == 7
    assert [json.loads(l) for l in many.jsonl().splitlines()] == many
    lazy = detector(iter(texts))
    assert next(lazy)['text'] == texts[0] and [d['text'] for d in lazy] == texts[1:]
    assert detector([]) == []


def test_order_and_company_do_not_matter(detector):
    texts = test_posts()+['', 'long '*200]
    alone = [detector(t) for t in texts[-8:]]
    together = detector(texts, batch_size=5)[-8:]
    for a, b in zip(alone, together): np.testing.assert_allclose(list(a['label_prob'].values()), list(b['label_prob'].values()), atol=2e-5)


def test_ten_thousand_posts_in_constant_memory(detector):
    score_only = lambda p: dataclasses.replace(p, heads={k: h for k, h in p.heads.items() if h.task.name == 'score'})
    detector.passes, kept = list(map(score_only, detector.passes)), detector.passes     # the way is the same, the heads are fewer
    try:
        read, peaks = [0], []
        def texts():
            for read[0] in range(1, 10_001): yield 'a b'
        for i, a in enumerate(detector.stream(texts(), batch_size=250, chunk=500)):
            assert read[0]-i <= 500                     # never more than a chunk ahead
            if i % 1000 == 999: peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    finally: detector.passes = kept
    assert i == 9999 and peaks[-1]-peaks[1] < 50_000    # kilobytes


def test_slurs_are_masked_wherever_they_are_shown(detector):
    import hatenb
    slur = next(w for w in (Path(hatenb.__file__).parent/'slurs.txt').read_text().split() if w.isalpha() and len(w) > 4)
    a = detector(f'http://x.org/{slur} and {slur.upper()}!')
    for shown in (a._repr_html_(), a.summary()): assert slur not in shown.lower() and slur[0]+'*' in shown.lower()
    a = detector(f'these {slur}', reveal=True)
    assert slur in a._repr_html_() and slur in a.summary(reveal=True) and slur in a['text']


# ---------------------------------------------------------------- ways of strategy

def test_one_reading_for_all_or_one_for_each_corpus(detector, folder, bundle):
    exact = Detector.from_run(folder, dtype='float32', exact=True)
    assert [p.corpus for p in detector.passes] == ['mini'] and [p.corpus for p in exact.passes] == ['mini', 'mini_mhs']
    assert len(Detector.from_pretrained(bundle, exact=True).passes) == 2 and exact.answers == detector.answers
    texts = test_posts()[:8]
    for a, b in zip(detector([t.upper()+'!!' for t in texts]), exact(texts)):           # punctuation reaches the severity's head in its own way of reading only
        np.testing.assert_allclose(list(a['label_prob'].values()), list(b['label_prob'].values()), atol=1e-4)
        assert [w['word'].lower() for w in a['rationale']] == [w['word'] for w in b['rationale']]
    same, other = (np.array([[a['severity'] for a in d([t+e for t in texts])] for e in ('', ' !!!')]) for d in (detector, exact))
    np.testing.assert_allclose(same[0], same[1], atol=1e-6)
    assert np.abs(other[0]-other[1]).max() > 1e-4


@pytest.mark.parametrize('config', [dict(method='parallel'), dict(method='seq_bn'), dict(quantization='nf4'), dict(method='peft_lora'), dict(method='full'), dict(method='branch', options=dict(layer=3))], ids=lambda c: '-'.join(map(str, c.values())))
def test_every_way_of_sharing(runs, config):
    d = Detector.from_run(made(runs, tasks=['mini/label', 'mini/target:1/4', 'mini/target:2/4'], **config), dtype='float32')
    texts = test_posts()[:3]
    a = d(texts)
    assert all({'label', 'targets'} <= set(x) and 'severity' not in x and 'rationale' not in x for x in a)
    assert 0 < len(a[0]['target_prob']) < len(TARGETS)
    slow = Detector.from_run(d.folder, merge=False)(texts)
    for x, y in zip(a, slow): np.testing.assert_allclose(list(x['label_prob'].values()), list(y['label_prob'].values()), atol=1e-4)
    if config.get('method') in ('parallel', 'peft_lora', 'full'): assert all(p.dense is not None for p in d.passes)


def test_merged_and_joined_runs(runs, tmp_path):
    sources = [str(made(runs, tasks=[t])) for t in TASKS[:2]]
    merged = Detector.from_run(made(runs, tasks=TASKS[:2], method='merge', sources=sources))
    assert merged.answers == ['label', 'target'] and merged.passes[0].dense is not None
    joined = Detector.from_run(made(runs, tasks=TASKS[:2], method='join', sources=sources), dtype='float32')
    first, second = (Detector.from_run(s, dtype='float32')('a post') for s in sources)
    a = joined('a post')
    assert a['label_prob'].keys() == first['label_prob'].keys() and a['target_prob'].keys() == second['target_prob'].keys()
    again = Detector.from_pretrained(joined.save(tmp_path/'b'), dtype='float32')
    shutil.rmtree(tmp_path/'b'/'parts'/Path(sources[0]).name/'adapters')
    assert again('a post') == a
    with pytest.raises(HatenbError, match='lacks a file'): Detector.from_pretrained(tmp_path/'b')


def test_runs_that_are_no_detector(runs):
    with pytest.raises(HatenbError, match='no model'): Detector.from_run(made(runs, tasks=['mini/label'], method='majority', train={}))
    with pytest.raises(HatenbError, match='missing'): Detector.from_run(runs/'nowhere')


def test_a_run_without_validation_predictions_warns(folder, tmp_path):
    shutil.copytree(folder, tmp_path/'r')
    shutil.rmtree(tmp_path/'r'/'predictions')
    with pytest.warns(UserWarning, match='not calibrated'): d = Detector.from_run(tmp_path/'r')
    assert d.temperatures == {} and d('a post')['label'] in LABELS


# ---------------------------------------------------------------- bundles

def test_a_bundle_says_the_same(detector, bundle):
    again = Detector.from_pretrained(bundle, dtype='float32')
    texts = test_posts()[:20]
    assert again(texts) == detector(texts) and again.thresholds == detector.thresholds
    small = Detector.from_pretrained(bundle, backend='onnx')(texts)
    near = [abs(a['label_prob'][l]-b['label_prob'][l]) for a, b in zip(small, detector(texts)) for l in LABELS]
    assert max(near) < .2 and small[0].keys() == detector(texts[0]).keys()
    assert [p.relative_to(bundle) for p in bundle.rglob('*.onnx')] == [Path('onnx/0.onnx')]      # both corpora share one transformer
    assert {p.suffix for p in bundle.rglob('*') if p.is_file()} <= {'.json', '.safetensors', '.md', '.onnx', ''}


def test_the_card_is_drawn_from_the_record(detector, bundle):
    card = (bundle/'README.md').read_text()
    v = detector.record['metrics']['test']['mini/label']['macro_f1']
    assert f"{v['value']:.3f} | {v['low']:.3f} to {v['high']:.3f}" in card
    for heading in ('Data', 'Quality', 'Calibration', 'Bias', 'Intended use', 'Limits'): assert f'## {heading}\n' in card
    assert card.startswith('---\nlicense: mit\n') and 'MIT License' in (bundle/'LICENSE').read_text()


def test_a_bundle_with_its_encoder_needs_nothing_else(detector, tmp_path, monkeypatch):
    b = detector.save(tmp_path/'b', whole=True)
    import hatenb.encoder.loading
    real = hatenb.encoder.loading.encoder_path
    monkeypatch.setattr(hatenb.encoder.loading, 'encoder_path', lambda name='minilm': pytest.fail('looked elsewhere') if name == 'minilm' else real(name))
    assert Detector.from_pretrained(b, dtype='float32')('a post')['label'] in LABELS


def test_whole_or_nothing(detector, tmp_path, monkeypatch):
    (tmp_path/'there').mkdir()
    with pytest.raises(HatenbError, match='something already'): detector.save(tmp_path/'there')
    monkeypatch.setattr('hatenb.detector.model_card', lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): detector.save(tmp_path/'new')
    assert [p.name for p in tmp_path.iterdir()] == ['there']


def tampered(name, change):
    def _do(b):
        f = b/name
        f.write_bytes(change(f.read_bytes()))
    return _do


@pytest.mark.parametrize('harm,said', [
    (tampered('heads.safetensors', lambda b: b[:-1]+b'x'), 'not the one the bundle was made with'),
    (tampered('adapters/shared/adapter.safetensors', lambda b: b[:1000]), 'not the one the bundle was made with'),
    (lambda b: (b/'record.json').unlink(), 'lacks a file'),
    (tampered('detector.json', lambda b: b[:40]), 'JSON is broken'),
    (tampered('detector.json', lambda b: b.replace(b'"format": 1', b'"format": 9')), 'no bundle of format 1'),
    (tampered('detector.json', lambda b: json.dumps({**json.loads(b), 'temperatures': {'label': 0}}).encode()), 'not what they should be'),
    (tampered('detector.json', lambda b: json.dumps({**json.loads(b), 'files': {'../../etc/passwd': 'x'}}).encode()), 'lacks a file'),
])
def test_a_bundle_that_was_changed_is_refused(bundle, tmp_path, harm, said):
    shutil.copytree(bundle, tmp_path/'b', ignore=shutil.ignore_patterns('onnx'))
    d = json.loads((tmp_path/'b'/'detector.json').read_text())
    d['files'] = {k: v for k, v in d['files'].items() if not k.startswith('onnx')}
    (tmp_path/'b'/'detector.json').write_text(json.dumps(d))
    harm(tmp_path/'b')
    with pytest.raises(HatenbError, match=said): Detector.from_pretrained(tmp_path/'b')


def test_what_cannot_be_exported(runs, tmp_path):
    d = Detector.from_run(made(runs, tasks=['mini/label', 'mini/target:1/4', 'mini/target:2/4'], method='seq_bn'))
    with pytest.raises(HatenbError, match='cannot be added'): d.save(tmp_path/'b', onnx='int8')
    assert not list(tmp_path.iterdir())
    with pytest.raises(HatenbError, match='no ONNX'): Detector.from_pretrained(d.folder, backend='onnx')


# ---------------------------------------------------------------- the hub

@contextlib.contextmanager
def stand_in():
    "A hub that takes one repository in one commit; yields its address and what it holds"
    held = dict(files={}, commits=[], created=[])

    class Hub(BaseHTTPRequestHandler):
        def answer(self, body=b'', status=200, **headers):
            body = json.dumps(body).encode() if not isinstance(body, bytes) else body
            self.send_response(status)
            for k, v in {'Content-Length': len(body), 'Content-Type': 'application/json', **headers}.items(): self.send_header(k.replace('_', '-'), str(v))
            self.end_headers()
            if self.command != 'HEAD': self.wfile.write(body)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
            path = self.path.partition('?')[0]
            if self.headers.get('Authorization') != 'Bearer hf_stand_in': return self.answer(dict(error='who are you?'), 401)
            if path == '/api/repos/create':
                held['created'].append(json.loads(body))
                return self.answer(dict(url=f'{address()}/me/hatenb', id='me/hatenb', name='me/hatenb'))
            if path == '/api/validate-yaml': return self.answer(dict(errors=[], warnings=[]))
            if path.endswith('/preupload/main'): return self.answer(dict(files=[dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(body)['files']]))
            if path.endswith('/commit/main'):
                header, *files = map(json.loads, body.splitlines())
                held['commits'].append(header['value']['summary'])
                for f in files: held['files'][f['value']['path']] = base64.b64decode(f['value']['content'])
                return self.answer(dict(success=True, commitOid='0'*40, commitUrl=f'{address()}/me/hatenb/commit/{"0"*40}'))
            self.answer(status=404)

        def do_GET(self):
            path = self.path.partition('?')[0]
            if path.startswith('/api/models/me/hatenb'):
                files = held['files']
                if '/tree/' in path: return self.answer([dict(path=f, type='file', size=len(b), oid='0'*40) for f, b in files.items()])
                return self.answer(dict(id='me/hatenb', modelId='me/hatenb', sha='0'*40, siblings=[dict(rfilename=f) for f in files], private=False, tags=[]))
            name = path.partition('/resolve/')[2].partition('/')[2]
            if not path.startswith('/me/hatenb/resolve/'): return self.answer(status=404, X_Error_Code='RepoNotFound')
            if name not in held['files']: return self.answer(status=404, X_Error_Code='EntryNotFound', X_Repo_Commit='0'*40)
            self.answer(held['files'][name], ETag=f'"{hash(held["files"][name]):x}"', X_Repo_Commit='0'*40)

        do_HEAD = do_GET
        def log_message(self, *_): pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    def address(): return f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield address(), held
    finally: server.shutdown()


HUB = '''
import sys
from hatenb.core import HatenbError
from hatenb.detector import Detector
what, name = sys.argv[1:3]
try:
    if what == 'push': print(Detector.from_run(name).push_to_hub('me/hatenb', token=sys.argv[3]))
    else: print(Detector.from_pretrained(name, dtype='float32')('a post').summary())
except HatenbError as e: print('refused:', e)
'''


def on_hub(endpoint, home, *args, offline=False):
    import os, subprocess, sys
    env = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING'))} | dict(HF_HOME=str(home), HF_ENDPOINT=endpoint, NO_PROXY='127.0.0.1', no_proxy='127.0.0.1', HF_HUB_DISABLE_XET='1')
    if offline: env['HF_HUB_OFFLINE'] = '1'
    p = subprocess.run([sys.executable, '-c', HUB, *map(str, args)], env=env, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, p.stderr
    return p.stdout.strip()


def test_pushed_to_a_hub_fetched_from_it_and_found_without_it(folder, detector, tmp_path):
    with stand_in() as (endpoint, held):
        assert 'refused' in on_hub(endpoint, tmp_path, 'push', folder, 'wrong') and not held['files']
        assert on_hub(endpoint, tmp_path, 'push', folder, 'hf_stand_in').endswith('0'*40)
        assert len(held['commits']) == 1 and {'README.md', 'LICENSE', 'detector.json', 'record.json', 'heads.safetensors', 'adapters/shared/adapter.safetensors'} <= set(held['files'])
        held['files']['evil.pkl'] = b'never fetched'
        first = on_hub(endpoint, tmp_path/'other', 'load', 'me/hatenb')
        assert first == detector('a post').summary()
        assert 'refused' in on_hub(endpoint, tmp_path/'other', 'load', 'me/elsewhere')
    assert on_hub(endpoint, tmp_path/'other', 'load', 'me/hatenb', offline=True) == first
    assert not list((tmp_path/'other').rglob('*.pkl'))
