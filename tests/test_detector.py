"The detector with hostile posts, other strategies, bundles that were tampered with, and a hub that is not there"
import base64, contextlib, hashlib, json, os, resource, shutil, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from huggingface_hub import ModelCard
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from hatenb.core import HatenbError
from hatenb.corpora import load_corpus, make_pool
from hatenb.corpora.hatexplain import LABELS, TARGETS
from hatenb.detector import Detection, Detector, Runtime, json_line
from hatenb.detector.bundle import _in_eight_bits
from hatenb.evaluation import fit_temperature, load_predictions
from hatenb.making import make_run
from hatenb.pretokenize import hatexplain_words, plain_words, says_nothing, windows
from hatenb.runs import RunConfig, run_folder
from hatenb.undisguise import masked
from parts import assert_near

TASKS = ['mini/label', 'mini/target', 'mini/rationale']
QUICK = dict(limit=32, max_length=40, train=dict(epochs=1, batch_size=16))
SAFETY = Path(__file__).resolve().parent/'safety'/'bundle'


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return tmp_path_factory.mktemp('runs')


def made(runs, **config):
    config = RunConfig.from_dict({**QUICK, **config})
    make_run(config, runs)
    return run_folder(config, runs).folder


@pytest.fixture(scope='module')
def folder(runs): return made(runs, tasks=[*TASKS, 'mini_mhs/score'])


@pytest.fixture(scope='module')
def detector(folder): return Detector.from_run(folder, dtype='float32')


@pytest.fixture(scope='module')
def bundle(detector, tmp_path_factory): return detector.save(tmp_path_factory.mktemp('bundles')/'b', onnx='int8')


def posts_of(split='test'): return [' '.join(w) for w in load_corpus('mini')[split]['words']]
def uncalibrated(detector): detector.manifest = replace(detector.manifest, temperatures={})


# ---------------------------------------------------------------- reading

@hypothesis_settings(deadline=None, max_examples=100)
@given(st.text(st.characters(), max_size=60))
def test_any_string_is_read_and_its_words_stand_where_they_say(text):
    for read in (hatexplain_words, plain_words):
        w = read(text)
        assert len(w.words) == len(w.spans) and all(w.words)
        assert all(0 <= a < b <= len(text) for a, b in w.spans)
        assert all(a[1] <= b[0] for a, b in zip(w.spans, w.spans[1:]))
    whole = [''.join('\ufffd' if '\ud800' <= c <= '\udfff' else c for c in x) for x in text.split()]
    assert plain_words(text).words == whole
    assert len(masked(text)) == len(text)
    if any(c.isalnum() for c in text): assert not says_nothing(text)


HOSTILE = ['1,'*200_000, '1'*300_000+'a', 'a.'*200_000, '*'*300_000, 'a*'*200_000, '@'*300_000, '<a'*200_000,
           '😂'*200_000, '1:1'*100_000, '$1.'*100_000]


@pytest.mark.parametrize('hostile', HOSTILE, ids=lambda t: t[:3])
def test_reading_takes_time_in_proportion_to_length(hostile):
    def seconds(text):
        start = time.process_time()
        hatexplain_words(text)
        return time.process_time()-start
    tenth = seconds(hostile[:len(hostile)//10])
    assert seconds(hostile) < 60*max(tenth, .02)        # proportion is 10, the square is 100


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
        uncalibrated(d)
        answers = d(texts)
        found = [[a['label_prob'][l] for l in LABELS]+[a['target_prob'][t] for t in TARGETS] for a in answers]
        known = np.concatenate([np.stack(stored.label_prob), np.stack(stored.target_prob)], 1)
        np.testing.assert_allclose(found, known, atol=2e-5, rtol=2**-11)         # half precision is stored


ODD = ['', '   \n', '\0', 'a\0b', '\ud83d', 'x \udc00 y', '😂'*300, 'مرحبا שלום ixarics', 'Z̴̙̤̞A̴̵L̠G̴O'*20,
       '\u202ereversed', '\ufeff', '<script>alert(1)</script>', 'a'*50_000, 'word '*600, '\r\n\x85\u2028']


def test_any_string_is_answered(detector):
    answers = detector(ODD)
    assert detector.count_windows(ODD) == [a['windows'] for a in answers]
    for text, a in zip(ODD, answers, strict=True):
        assert a['text'] == text and a['windows'] >= 1
        assert abs(sum(a['label_prob'].values())-1) < 1e-5
        assert a['severity'] is None if a.get('empty') else np.isfinite(a['severity'])
        assert all(text[w['start']:w['end']] == w['word'] for w in a['rationale'])
        assert json.loads(json_line(a)) == a
        assert '<script>' not in a._repr_html_()
        assert a._repr_html_().encode() and a.summary().encode()
    assert detector('word '*600)['windows'] > 15


NOTHING = ['', ' ', '\n\t', '?!', '...', '—', '\0', '\u200b', '*** ___', '\ud83d', '\ufeff', '->',
           'http://example.org/x']


@pytest.mark.parametrize('text', NOTHING, ids=repr)
def test_a_post_that_says_nothing_is_normal(detector, text):
    a = detector(text)
    assert a['empty'] is True and a['label'] == 'normal'
    assert a['toxic'] == 0 and a['is_toxic'] is False
    assert a['label_prob'] == dict(normal=1, offensive=0, hatespeech=0) and set(a['target_prob'].values()) == {0}
    assert a['targets'] == [] == a['rationale'] and a['severity'] is None
    assert 'says nothing' in a.summary() and 'says nothing' in a.to_html()


@pytest.mark.parametrize('text', ['a', '7', '😂', '!ж', '汉', '🇪🇺', '½', 'http://example.org is bad'])
def test_a_letter_a_digit_or_an_emoji_says_something(detector, text): assert 'empty' not in detector(text)


def test_a_megabyte(detector):
    a = detector(('b'*150+' '*2850)*350)
    assert len(a['text']) > 1_000_000 and a['windows'] > 200
    assert len(a.to_html()) < 20_000 and len(a.summary()) < 500_000


def test_an_answer_of_any_name_is_shown():
    "A question's details may name its answer; what is shown must not guess it from the question's name"
    d = Detection(text='a post', community=['Women'], target_prob=dict(Women=.9, Jewish=.1))
    assert 'community' in d.summary() and 'Women 0.90' in d.summary() and 'Jewish' not in d.summary()
    assert '<h4>Community</h4>' in d.to_html() and '▸ Women' in d.to_html()


NO_STRINGS = [([None], 'NoneType', 0), (['a', 3.5], 'float', 1), (None, 'NoneType', 0), (7, 'int', 0),
              (['a', 'b', b'c'], 'bytes', 2), ([['a']], 'list', 0), ([float('nan')], 'float', 0)]


@pytest.mark.parametrize('bad,name,at', NO_STRINGS)
def test_what_is_no_string_is_refused_with_its_index(detector, bad, name, at):
    with pytest.raises(TypeError, match=f'post {at} is of type {name}'): detector(bad)


def test_one_many_and_a_stream(detector):
    texts = posts_of()[:7]
    many = detector(texts)
    assert type(detector(texts[0])) is Detection and detector(texts[0])['label'] == many[0]['label']
    assert list(many.frame()['label']) == [d['label'] for d in many] and len(many.frame()) == 7
    assert [json.loads(l) for l in many.jsonl().splitlines()] == many
    lazy = detector(iter(texts))
    assert next(lazy)['text'] == texts[0] and [d['text'] for d in lazy] == texts[1:]
    assert detector([]) == []


def test_order_and_company_do_not_matter(detector):
    texts = posts_of()+['', 'long '*200]
    assert_near([detector(t) for t in texts[-8:]], detector(texts, batch_size=5)[-8:], 2e-5)


@pytest.mark.parametrize('how', [dict(batch_size=0), dict(batch_size=-1), dict(chunk=0)])
def test_batches_of_nothing_are_refused(detector, how):
    with pytest.raises(HatenbError, match=next(iter(how))): list(detector.stream(['a post'], **how))


def test_ten_thousand_posts_in_constant_memory(detector):
    keep, passes = detector.manifest.tasks['mini_mhs/score'], detector.passes       # one head is enough
    try:
        detector.passes = [replace(p, tasks=[keep]) for p in passes]
        read, peaks = [0], []
        def texts():
            for read[0] in range(1, 10_001): yield 'a b'
        for i, _ in enumerate(detector.stream(texts(), batch_size=250, chunk=500)):
            assert read[0]-i <= 500                     # never more than a chunk ahead
            if i % 1000 == 999: peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    finally: detector.passes = passes
    assert i == 9999 and peaks[-1]-peaks[1] < 50_000    # kilobytes


def test_slurs_are_masked_wherever_they_are_shown(detector):
    import hatenb
    listed = (Path(hatenb.__file__).parent/'slurs.txt').read_text().split()
    slur = next(w for w in listed if w.isalpha() and len(w) > 4)
    a = detector(f'http://x.org/{slur} and {slur.upper()}!')
    for shown in (a._repr_html_(), a.summary()): assert slur not in shown.lower() and slur[0]+'*' in shown.lower()
    a = detector(f'these {slur}', reveal=True)
    assert slur in a._repr_html_() and slur in a.summary(reveal=True) and slur in a['text']


def test_an_answer_that_is_no_number_never_leaves(detector):
    kept = detector.passes
    def broken(batch): return {k: v*np.nan for k, v in kept[0].logits(batch).items()}
    try:
        detector.passes = [replace(kept[0], logits=broken)]
        with pytest.raises(HatenbError, match='no number'): detector('a post')
        assert detector('')['empty']
    finally: detector.passes = kept
    with pytest.raises(HatenbError, match='no number'): json_line(dict(severity=float('nan')))


# ---------------------------------------------------------------- strategies

def test_one_reading_for_all_or_one_for_each_corpus(detector, folder, bundle):
    exact = Detector.from_run(folder, dtype='float32', exact=True)
    assert [p.pretokenizer for p in detector.passes] == ['hatexplain']
    assert [p.pretokenizer for p in exact.passes] == ['hatexplain', 'plain'] and exact.answers == detector.answers
    assert len(Detector.from_pretrained(bundle, exact=True).passes) == len(Runtime(bundle, exact=True).passes) == 2
    texts = posts_of()[:8]
    for a, b in zip(detector([t.upper()+'!!' for t in texts]), exact(texts), strict=True):
        np.testing.assert_allclose(list(a['label_prob'].values()), list(b['label_prob'].values()), atol=1e-4)
        assert [w['word'].lower() for w in a['rationale']] == [w['word'] for w in b['rationale']]
    def severities(d, end): return np.array([a['severity'] for a in d([t+end for t in texts])])
    np.testing.assert_allclose(severities(detector, ''), severities(detector, ' !!!'), atol=1e-6)
    assert np.abs(severities(exact, '')-severities(exact, ' !!!')).max() > 1e-4     # read in its own way, with signs


SHARING = [dict(strategy='parallel'), dict(adapter='seq_bn'), dict(quantization='nf4'), dict(adapter='peft_lora'),
           dict(adapter='full'), dict(strategy='branch', strategy_options=dict(layer=3))]


@pytest.mark.parametrize('config', SHARING, ids=lambda c: str(next(iter(c.values()))))
def test_every_strategy(runs, config):
    folder = made(runs, tasks=['mini/label', 'mini/target:1/4', 'mini/target:2/4'], **config)
    d = Detector.from_run(folder, dtype='float32')
    texts = posts_of()[:3]
    answers = d(texts)
    assert all({'label', 'targets'} <= set(x) and 'severity' not in x and 'rationale' not in x for x in answers)
    assert 0 < len(answers[0]['target_prob']) < len(TARGETS)
    assert_near(answers, Detector.from_run(d.folder, merge=False)(texts), 1e-4)
    plain = {'parallel', 'peft_lora', 'full'} & set(map(str, config.values()))
    assert not plain or all(p.dense is not None for p in d.passes)


def test_merged_and_joined_runs(runs, tmp_path):
    sources = [str(made(runs, tasks=[t])) for t in TASKS[:2]]
    merged = Detector.from_run(made(runs, tasks=TASKS[:2], strategy='merge', sources=sources))
    assert merged.answers == ['toxic', 'label', 'target'] and merged.passes[0].dense is not None
    joined = Detector.from_run(made(runs, tasks=TASKS[:2], strategy='join', sources=sources), dtype='float32')
    first, second = (Detector.from_run(s, dtype='float32')('a post') for s in sources)
    a = joined('a post')
    assert a['label_prob'].keys() == first['label_prob'].keys()
    assert a['target_prob'].keys() == second['target_prob'].keys()
    again = Detector.from_pretrained(joined.save(tmp_path/'b', onnx='float32'), dtype='float32')
    assert_near([Runtime(tmp_path/'b')('a post')], [a], 1e-4)
    shutil.rmtree(tmp_path/'b'/'parts'/Path(sources[0]).name/'adapters')
    assert again('a post') == a
    with pytest.raises(HatenbError, match='lacks a file'): Detector.from_pretrained(tmp_path/'b')


def test_opening_a_joined_run_never_makes_another(runs, tmp_path):
    sources = [dict(QUICK, tasks=[t]) for t in TASKS[:2]]
    shutil.copytree(made(runs, tasks=TASKS[:2], strategy='join', sources=sources), tmp_path/'r')
    with pytest.raises(HatenbError, match='never finished'): Detector.from_run(tmp_path/'r')
    assert [p.name for p in tmp_path.iterdir()] == ['r']


def test_runs_that_are_no_detector(runs):
    counted = made(runs, tasks=['mini/label'], baseline='majority', train={})
    with pytest.raises(HatenbError, match='no model'): Detector.from_run(counted)
    with pytest.raises(HatenbError, match='missing'): Detector.from_run(runs/'nowhere')


def test_a_run_without_validation_predictions_warns(folder, tmp_path):
    shutil.copytree(folder, tmp_path/'r')
    shutil.rmtree(tmp_path/'r'/'predictions')
    with pytest.warns(UserWarning, match='not calibrated'): d = Detector.from_run(tmp_path/'r')
    assert d.manifest.temperatures == {} and d('a post')['label'] in LABELS


def test_questions_that_two_corpora_ask_are_calibrated(runs):
    "One that both ask alike, on the posts of both; one with other outputs, by the name that it has in the manifest"
    make_pool('again', 'label', ['mini'])
    make_pool('again', 'target', ['mini'], outputs=['African', 'Women', 'Other'])
    folder = made(runs, tasks=['mini/label', 'mini/target', 'again/label', 'again/target'])
    m, table = Detector.from_run(folder).manifest, load_predictions(folder/'predictions'/'validation.parquet')
    assert set(m.temperatures) == {'label', 'target', 'again_target'} and set(m.thresholds) == {'target', 'again_target'}
    assert m.temperatures['label'] == fit_temperature(table, ['mini/label', 'again/label'])
    assert m.temperatures['again_target'] == fit_temperature(table, 'again/target') != m.temperatures['target']


# ---------------------------------------------------------------- bundles

def test_a_bundle_says_the_same(detector, bundle):
    again = Detector.from_pretrained(bundle, dtype='float32')
    texts = posts_of()[:20]
    assert again(texts) == detector(texts)
    assert again.manifest.thresholds == detector.manifest.thresholds
    assert again.manifest.questions == detector.manifest.questions
    small = Detector.from_pretrained(bundle, backend='onnx')(texts)
    assert_near(small, detector(texts), .2)
    assert [p.relative_to(bundle) for p in bundle.rglob('*.onnx')] == [Path('onnx/0.onnx')]  # one for both corpora
    assert {p.suffix for p in bundle.rglob('*') if p.is_file()} <= {'.json', '.safetensors', '.md', '.onnx', ''}


LOADED = "import sys, {0}; print(*(m for m in {1} if m in sys.modules))"
HEAVY = ['torch', 'transformers', 'adapters', 'datasets', 'pandas', 'matplotlib', 'scipy', 'sklearn']


LATER = ['matplotlib', *(f'hatenb.{m}' for m in ('reports', 'making', 'studies', 'asking', 'cli'))]


@pytest.mark.parametrize('module,none_of', [('hatenb.detector.runtime', HEAVY), ('hatenb.detector.detector', LATER)])
def test_what_importing_brings_along(module, none_of):
    command = [sys.executable, '-c', LOADED.format(module, none_of)]
    p = subprocess.run(command, capture_output=True, text=True, check=True)
    assert p.stdout.split() == []


def test_products_of_eight_bits_are_not_clipped():
    "AVX2 without VNNI adds pairs of products of unsigned by signed bytes in sixteen bits, and clips the sums"
    x,w = np.linspace(.2, 1, 6*64, dtype=np.float32).reshape(6, 64),np.linspace(.9, 1, 64*48, dtype=np.float32)
    w = w.reshape(64, 48)
    tensors = [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k,s in (('x', (6, 64)), ('y', (6, 48)))]
    graph = helper.make_graph([helper.make_node('MatMul', ['x','w'], ['y'])], 'product', tensors[:1], tensors[1:],
                              [numpy_helper.from_array(w, 'w')])
    model = _in_eight_bits(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10))
    session = InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    assert any(i.name == 'w_int8' and i.data_type == TensorProto.UINT8 for i in model.graph.initializer)
    np.testing.assert_allclose(session.run(None, {'x': x})[0], x@w, rtol=.01)


@pytest.mark.parametrize('texts', [{'text': 'a'}, b'hi', pd.DataFrame({'text': ['a']}), np.array([['a']])])
def test_what_is_no_list_of_posts_is_refused(detector, texts):
    "Else the keys of a mapping and the columns of a table would be answered"
    with pytest.raises(TypeError, match='not a list of strings'): detector(texts)


RUNTIME = """
import json, sys
from hatenb.detector.runtime import Runtime
answers = Runtime(sys.argv[1])(sys.argv[2:])
print(json.dumps(list(answers)))
"""


def test_openvino_answers_as_torch_does(detector, bundle, tmp_path, monkeypatch):
    "In bfloat16 where the processor has it"
    detector.save(tmp_path/'b', onnx='float32')
    monkeypatch.setenv('HATENB_RUNNER', 'openvino')
    opened, texts = Runtime(tmp_path/'b', threads=1), posts_of()[:12]+['', '!!', 'word '*100]
    assert_near(opened(texts), detector(texts), 2e-2)
    with ThreadPoolExecutor(4) as pool:        # one request a thread
        for answers in pool.map(opened, [texts]*8): assert_near(answers, opened(texts), 2e-2)
    assert_near(Runtime(bundle)(texts), detector(texts), .1)
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(HatenbError, match='pip install openvino'): Runtime(tmp_path/'b')
    monkeypatch.setenv('HATENB_RUNNER', 'openvno')
    with pytest.raises(HatenbError, match="did you mean 'openvino'"): Runtime(tmp_path/'b')



def test_the_runtime_says_what_torch_says(detector, tmp_path):
    texts = posts_of()[:12]+['', '!!', 'word '*100, '😂']
    detector.save(tmp_path/'b', onnx='float32')
    command = [sys.executable, '-c', RUNTIME, str(tmp_path/'b'), *texts]
    p = subprocess.run(command, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    answers = json.loads(p.stdout)
    assert_near(answers, detector(texts), 1e-4)
    for k in ('label', 'targets', 'windows', 'text'): assert [a[k] for a in answers] == [a[k] for a in detector(texts)]
    marked = [[[w['word'] for w in a['rationale']] for a in found] for found in (answers, detector(texts))]
    assert marked[0] == marked[1]


def test_a_lexicon_comes_along(runs, tmp_path):
    (tmp_path/'terms.csv').write_text('term,category\nslur1,slur\ninsult1,insult\n')
    folder = made(runs, tasks=['mini/label'], lexicon=str(tmp_path/'terms.csv'))
    d = Detector.from_run(folder, dtype='float32')
    texts = ['a slur1 here', 'a fine day', 'insult1 slur1']
    d.save(tmp_path/'b', onnx='float32')
    (tmp_path/'terms.csv').unlink()
    assert_near(Runtime(tmp_path/'b')(texts), d(texts), 1e-4)
    assert Detector.from_pretrained(tmp_path/'b', dtype='float32')(texts) == d(texts)


def test_the_card_is_drawn_from_the_record(detector, bundle):
    card = (bundle/'README.md').read_text()
    v = detector.record['metrics']['test']['mini/label']['macro_f1']
    assert f"{v['value']:.3f} | {v['low']:.3f} to {v['high']:.3f}" in card
    headings = ('Data', 'Quality', 'Calibration', 'Bias', 'Intended use', 'Limits')
    assert all(f'## {h}\n' in card for h in headings)
    assert 'MIT License' in (bundle/'LICENSE').read_text()
    about = ModelCard(card).data                          # as the hub reads it
    results = {r.dataset_config: r for r in about.eval_results}
    assert about.license == 'mit' and about.model_name == 'hatenb detector'
    assert (results['label'].dataset_type, results['label'].metric_type) == ('mini', 'macro_f1')
    assert results['label'].metric_value == pytest.approx(v['value'], abs=1e-4) and set(results) == {'label', 'target', 'rationale', 'score'}


def test_a_bundle_with_its_encoder_needs_nothing_else(detector, tmp_path, monkeypatch):
    b = detector.save(tmp_path/'b', whole=True)
    from hatenb.encoder import find_encoder
    home = sys.modules[find_encoder.__module__]
    real = home.encoder_path
    def looked(name='minilm'): return pytest.fail('looked elsewhere') if name == 'minilm' else real(name)
    monkeypatch.setattr(home, 'encoder_path', looked)
    assert Detector.from_pretrained(b, dtype='float32')('a post')['label'] in LABELS


def test_whole_or_nothing(detector, tmp_path, monkeypatch):
    (tmp_path/'there').mkdir()
    with pytest.raises(HatenbError, match='something already'): detector.save(tmp_path/'there')
    monkeypatch.setattr('hatenb.detector.bundle.model_card', lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): detector.save(tmp_path/'new')
    assert [p.name for p in tmp_path.iterdir()] == ['there']


# ---------------------------------------------------------------- bundles of strangers

def bytes_of(name, change):
    def harm(b): (b/name).write_bytes(change((b/name).read_bytes()))
    return harm


def written(b, d):
    "Write a manifest as its author would: sealed"
    d.pop('sha256', None)
    seal = hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()
    (b/'detector.json').write_text(json.dumps(dict(d, sha256=seal)))


def manifest_of(**changes):
    def harm(b):
        d = json.loads((b/'detector.json').read_text())
        written(b, {k: v for k, v in {**d, **changes}.items() if v is not None})
    return harm


def named_again(b, *names):
    "The manifest with the checksums of changed files: whoever writes a bundle by hand can do that"
    d = json.loads((b/'detector.json').read_text())
    written(b, dict(d, files=d['files'] | {n: hashlib.sha256((b/n).read_bytes()).hexdigest() for n in names}))


def record_of(**changes):
    def harm(b):
        d = json.loads((b/'record.json').read_text())
        for k, v in changes.items(): d[k] = {**d[k], **v} if isinstance(v, dict) and v else v
        (b/'record.json').write_text(json.dumps(d))
        named_again(b, 'record.json')
    return harm


def link(name, to):
    def harm(b):
        (b/name).unlink()
        (b/name).symlink_to(to)
    return harm


def directory(name):
    def harm(b):
        (b/name).unlink()
        (b/name).mkdir()
    return harm


HARMS = dict(
    flipped=(bytes_of('heads.safetensors', lambda b: b[:-1]+b'x'), 'not the one the bundle was made with'),
    cut=(bytes_of('adapters/shared/adapter.safetensors', lambda b: b[:1000]), 'not the one the bundle was made with'),
    no_record=(lambda b: (b/'record.json').unlink(), 'lacks a file'),
    no_manifest=(lambda b: (b/'detector.json').unlink(), 'no manifest'),
    manifest_is_a_folder=(directory('detector.json'), 'no manifest'),
    manifest_leads_nowhere=(link('detector.json', '/nowhere/at/all'), 'no manifest'),
    heads_are_a_folder=(directory('heads.safetensors'), 'lacks a file'),
    heads_lead_nowhere=(link('heads.safetensors', 'nowhere'), 'lacks a file'),
    half=(bytes_of('detector.json', lambda b: b[:40]), 'JSON is broken'),
    abyss=(bytes_of('detector.json', lambda b: b'['*100_000), 'JSON is broken'),
    long_number=(bytes_of('detector.json', lambda b: b'{"format": '+b'9'*10_000+b'}'), 'JSON is broken'),
    nan=(bytes_of('detector.json', lambda b: b.replace(b'"format": 3', b'"format": NaN')), 'JSON is broken'),
    format_9=(bytes_of('detector.json', lambda b: b.replace(b'"format": 3', b'"format": 9')), 'no bundle of format 3'),
    toxic_by_nobody=(manifest_of(toxic=dict(weights={'mini/target': 1.}, bias=0, points=[dict(name='x', threshold=.5, measured={})])),
                     'does not say whether a post is toxic'),
    point_above_1=(manifest_of(toxic=dict(weights={'mini/label': 1.}, bias=0, points=[dict(name='x', threshold=2, measured={})])),
                   'threshold is not'),
    no_point=(manifest_of(toxic=dict(weights={'mini/label': 1.}, bias=0, points=[])), 'points is not'),
    temperature_0=(manifest_of(temperatures=dict(label=0)), 'temperatures is not'),
    elsewhere=(manifest_of(files={'../../etc/passwd': 'x'}), 'files is not'),
    part_elsewhere=(manifest_of(parts=['../b']), 'parts is not'),
    no_tasks=(manifest_of(tasks=[]), 'tasks is not'),
    number_for_task=(manifest_of(tasks=[5]), 'not an object'),
    unsealed=(bytes_of('detector.json', lambda b: b.replace(b'0.4715', b'0.5715')), 'not as it was written'),
    no_graphs=(manifest_of(graphs=None), 'graphs. is missing'),
    unnamed=(lambda b: (b/'adapters'/'shared'/'adapter0_config.json').write_text('{}'), 'does not name'),
    unnamed_encoder=(lambda b: (b/'encoder').mkdir() or (b/'encoder'/'config.json').write_text('{}'), 'does not name'),
    joins=(record_of(config=dict(strategy='join', sources=['/tmp/*'])), 'joins other runs'),
    encoder_elsewhere=(record_of(config=dict(encoder='/etc')), 'encoder is neither'),
    encoder_above=(record_of(config=dict(encoder='../x')), 'encoder is neither'),
    lexicon_elsewhere=(record_of(config=dict(lexicon='/etc/passwd')), 'lexicon is not in the bundle'),
    adapter_number=(record_of(adapters=[5]), 'adapters are no names'),
    adapter_elsewhere=(record_of(adapters=['../../x']), 'adapters are no names'),
    nothing_counted=(record_of(frequencies={}), 'model cannot be built|counted'),
    length_in_words=(record_of(config=dict(max_length='x')), 'max_length|model cannot be built'),
    no_config=(record_of(config=[]), 'not an object|configuration'))


@pytest.mark.parametrize('harm', HARMS)
def test_a_bundle_that_was_changed_is_refused(tmp_path, harm):
    shutil.copytree(SAFETY, tmp_path/'b')
    change, said = HARMS[harm]
    change(tmp_path/'b')
    with pytest.raises(HatenbError, match=said): Detector.from_pretrained(tmp_path/'b', device='cpu')
    assert [p.name for p in tmp_path.iterdir()] == ['b']


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    from safetensors.numpy import load_file, save_file
    shutil.copytree(SAFETY, tmp_path/'b')
    f = tmp_path/'b'/'heads.safetensors'
    save_file({k: v*np.float32('nan') if k.endswith('weight') else v for k, v in load_file(f).items()}, f)
    named_again(tmp_path/'b', 'heads.safetensors')
    with pytest.raises(HatenbError, match='not finite'): Detector.from_pretrained(tmp_path/'b', device='cpu')


def test_a_run_is_opened_as_one(folder):
    with pytest.raises(HatenbError, match='no manifest'): Detector.from_pretrained(folder)


def test_what_cannot_be_exported(runs, tmp_path):
    d = Detector.from_run(made(runs, tasks=['mini/label', 'mini/target:1/4', 'mini/target:2/4'], adapter='seq_bn'))
    with pytest.raises(HatenbError, match='cannot be added'): d.save(tmp_path/'b', onnx='int8')
    assert not list(tmp_path.iterdir())
    with pytest.raises(HatenbError, match='no ONNX'): Detector.from_pretrained(d.save(tmp_path/'b'), backend='onnx')
    with pytest.raises(HatenbError, match='no ONNX'): Runtime(tmp_path/'b')


def test_a_graph_that_was_changed_is_refused(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path/'b')
    bytes_of('onnx/0.onnx', lambda b: b[:-1]+b'x')(tmp_path/'b')
    with pytest.raises(HatenbError, match='not the one the bundle was made with'): Runtime(tmp_path/'b')


# ---------------------------------------------------------------- the hub

@contextlib.contextmanager
def stand_in():
    "A hub that takes one repository in one commit; yields its address and what it holds"
    held = dict(files={}, commits=[], created=[])

    class Hub(BaseHTTPRequestHandler):
        def answer(self, body=b'', status=200, **headers):
            body = json.dumps(body).encode() if not isinstance(body, bytes) else body
            self.send_response(status)
            headers = {'Content-Length': len(body), 'Content-Type': 'application/json', **headers}
            for k, v in headers.items(): self.send_header(k.replace('_', '-'), str(v))
            self.end_headers()
            if self.command != 'HEAD': self.wfile.write(body)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
            path = self.path.partition('?')[0]
            known = self.headers.get('Authorization') == 'Bearer hf_stand_in'
            if not known: return self.answer(dict(error='who are you?'), 401)
            if path == '/api/repos/create':
                held['created'].append(json.loads(body))
                return self.answer(dict(url=f'{address()}/me/hatenb', id='me/hatenb', name='me/hatenb'))
            if path == '/api/validate-yaml': return self.answer(dict(errors=[], warnings=[]))
            if path.endswith('/preupload/main'):
                asked = json.loads(body)['files']
                how = dict(uploadMode='regular', shouldIgnore=False)
                return self.answer(dict(files=[dict(how, path=f['path']) for f in asked]))
            if path.endswith('/commit/main'):
                header, *files = map(json.loads, body.splitlines())
                held['commits'].append(header['value']['summary'])
                for f in files: held['files'][f['value']['path']] = base64.b64decode(f['value']['content'])
                at = f'{address()}/me/hatenb/commit/{"0"*40}'
                return self.answer(dict(success=True, commitOid='0'*40, commitUrl=at))
            self.answer(status=404)

        def do_GET(self):
            path = self.path.partition('?')[0]
            if path.startswith('/api/models/me/hatenb'):
                files = held['files']
                listed = [dict(path=f, type='file', size=len(b), oid='0'*40) for f, b in files.items()]
                if '/tree/' in path: return self.answer(listed)
                about = dict(id='me/hatenb', modelId='me/hatenb', sha='0'*40, private=False, tags=[])
                return self.answer(dict(about, siblings=[dict(rfilename=f) for f in files]))
            name = path.partition('/resolve/')[2].partition('/')[2]
            if not path.startswith('/me/hatenb/resolve/'): return self.answer(status=404, X_Error_Code='RepoNotFound')
            if name not in held['files']:
                return self.answer(status=404, X_Error_Code='EntryNotFound', X_Repo_Commit='0'*40)
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
    env = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING'))}
    env |= dict(HF_HOME=str(home), HF_ENDPOINT=endpoint, HF_HUB_DISABLE_XET='1')
    env |= dict(NO_PROXY='127.0.0.1', no_proxy='127.0.0.1')
    if offline: env['HF_HUB_OFFLINE'] = '1'
    command = [sys.executable, '-c', HUB, *map(str, args)]
    p = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, p.stderr
    return p.stdout.strip()


def test_pushed_to_a_hub_fetched_from_it_and_found_without_it(folder, detector, tmp_path):
    with stand_in() as (endpoint, held):
        assert 'refused' in on_hub(endpoint, tmp_path, 'push', folder, 'wrong') and not held['files']
        assert on_hub(endpoint, tmp_path, 'push', folder, 'hf_stand_in').endswith('0'*40)
        assert len(held['commits']) == 1
        sent = {'README.md', 'LICENSE', 'detector.json', 'record.json', 'heads.safetensors'}
        assert sent | {'adapters/shared/adapter.safetensors'} <= set(held['files'])
        held['files']['evil.pkl'] = b'never fetched'
        first = on_hub(endpoint, tmp_path/'other', 'load', 'me/hatenb')
        assert first == detector('a post').summary()
        assert 'refused' in on_hub(endpoint, tmp_path/'other', 'load', 'me/elsewhere')
    assert on_hub(endpoint, tmp_path/'other', 'load', 'me/hatenb', offline=True) == first
    assert not list((tmp_path/'other').rglob('*.pkl'))
