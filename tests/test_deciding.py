"What a detector decides by, held against its own answers on the validation posts"
import json, shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from hatenb.bootstrap import resamples
from hatenb.core import HatenbError
from hatenb.corpora import load_corpus
from hatenb.detector import Detector, fit_decisions
from hatenb.detector.deciding import alike, fit_toxic, validation_posts
from hatenb.detector.runtime import sentence_spans
from hatenb.making import make_run
from hatenb.runs import RunConfig, run_folder

QUICK = dict(limit=160, max_length=40, train=dict(epochs=2, batch_size=16, lr=2e-3, head_lr=5e-3))


def made(runs, *tasks):
    config = RunConfig.from_dict(dict(QUICK, tasks=list(tasks)))
    make_run(config, runs)
    return run_folder(config, runs).folder


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def folder(runs):
    folder = made(runs, 'mini/label', 'mini/rationale', 'mini_mhs/score')
    fit_decisions(folder)
    return folder


@pytest.fixture(scope='module')
def answers(folder):
    "Answers to the validation posts, and their gold"
    posts = validation_posts(['mini', 'mini_mhs'])
    return posts, Detector.from_run(folder, dtype='float32')(list(posts['text']), words=True)


def test_two_heads_are_heard_and_what_is_measured_is_so(folder, answers):
    posts, found = answers
    toxic = Detector.from_run(folder).manifest.toxic
    assert set(toxic.weights) == {'mini/label', 'mini_mhs/score'} and min(toxic.weights.values()) >= 0
    p, gold, corpus = np.array([d['toxic'] for d in found]), posts['toxic'] == 1, posts['corpus']
    share = 1/corpus.map(corpus.value_counts())
    for point in toxic.points:
        given = p >= point.threshold
        normal, said = share[~gold].sum(), point.measured[alike]
        assert share[given & ~gold].sum()/normal == pytest.approx(said['false_alarms'], abs=1e-5)
        assert share[given & gold].sum()/share[gold].sum() == pytest.approx(said['found'], abs=1e-5)
        of_mini = point.measured['mini']
        assert given[gold & (corpus == 'mini')].mean() == pytest.approx(of_mini['found'], abs=1e-5)
    alarms = {point.name: point.measured[alike]['false_alarms'] for point in toxic.points}
    assert alarms['false-alarms-5'] <= .05 and alarms['false-alarms-10'] <= .1
    best = max(_macro_f1(p >= line, gold, share) for line in np.linspace(.01, .99, 99))
    p, gold, share = p, gold.to_numpy(), share.to_numpy()
    lines = [highest(p, gold, share*drawn) for drawn in resamples(len(p), 101)]
    assert toxic.points[0].threshold == pytest.approx(np.median(lines), abs=1e-5)
    assert _macro_f1(p >= highest(p, gold, share), gold, share) >= best-1e-5
    assert toxic.points[0].measured[alike]['macro_f1'] >= best-.02     # on a flat top


def highest(p, gold, share):
    "The threshold halfway between two probabilities that has the highest macro F1: all of them tried"
    values = np.unique(p)[::-1]
    lines = (values + [*values[1:], 0])/2
    given = p >= lines[:, None]
    def _f1(given, gold): return 2*(share*(given & gold)).sum(1)/((share*given).sum(1)+(share*gold).sum())
    return lines[np.argmax(_f1(given, gold)+_f1(~given, ~gold))]


def _macro_f1(given, gold, share):
    from sklearn.metrics import f1_score
    return f1_score(gold, given, average='macro', sample_weight=share)


def test_the_probability_is_calibrated_where_it_was_fitted(answers):
    posts, found = answers
    p, gold = np.array([d['toxic'] for d in found]), posts['toxic'].to_numpy()
    share = 1/posts['corpus'].map(posts['corpus'].value_counts()).to_numpy()
    assert (share*p).sum() == pytest.approx((share*gold).sum(), rel=1e-3)     # as the bias of a logistic regression sees to it


def test_no_more_words_are_marked_than_annotators_agreed_on(answers):
    _, found = answers
    marks = load_corpus('mini')['validation']['rationale_majority']
    found = found[:len(marks)]
    agreed, words = sum(map(sum, marks)), sum(map(len, marks))
    assert sum(len(d['words']) for d in found) == words
    assert 0 < sum(len(d['rationale']) for d in found) <= agreed < words
    assert all(not d['rationale'] for d in found if not d['is_toxic'])


def test_another_operating_point_by_name_or_by_number(folder, answers):
    posts, found = answers
    strict = Detector.from_run(folder, dtype='float32', operating_point='false-alarms-5')
    again = strict(list(posts['text'][:30]))
    assert [d['toxic'] for d in again] == pytest.approx([d['toxic'] for d in found[:30]], abs=1e-5)
    assert [d['is_toxic'] for d in again] == [d['toxic'] >= strict.threshold for d in again]
    strict.operating_point = 0.
    assert strict('a fine day')['is_toxic'] and not strict('')['is_toxic']
    for wrong in ('best', 1.5, -1, float('nan'), None, True):
        with pytest.raises(HatenbError, match='no operating point'): Detector.from_run(folder, operating_point=wrong)


def test_one_head_is_heard_as_it_is(runs):
    folder = made(runs, 'mini/label')
    fit_decisions(folder)
    d = Detector.from_run(folder, dtype='float32')
    assert d.manifest.toxic.weights == {'mini/label': 1.} and d.manifest.toxic.bias == 0
    for a in d(['you insult1', 'the fair was fine', 'every slur1 must go']):
        assert a['toxic'] == pytest.approx(1-a['label_prob']['normal'], abs=2e-6)


def test_a_number_alone_becomes_a_probability(runs, tmp_path):
    folder = made(runs, 'mini/target', 'mini_mhs/score')               # the posts of both corpora are known to be toxic or not
    assert 'toxic' not in Detector.from_run(folder)('a post')          # before anything was chosen
    fit_decisions(folder)
    d = Detector.from_run(folder, dtype='float32')
    mild, bad = d(['the fair was fine', 'no slur1 should live in this town drive them'])
    assert 0 < mild['toxic'] < bad['toxic'] < 1 and d.answers == ['toxic', 'target', 'score']
    assert Detector.from_pretrained(d.save(tmp_path/'b'), dtype='float32')('you insult1') == d('you insult1')


def test_no_head_knows(runs):
    folder = made(runs, 'mini/target')
    assert fit_decisions(folder)['toxic'] is None
    d = Detector.from_run(folder)
    assert 'toxic' not in d('a post') and d.answers == ['target'] and d.threshold is None
    with pytest.raises(HatenbError, match='None of its heads knows'): Detector.from_run(folder, operating_point='macro-f1')


def test_too_few_posts_change_nothing(folder):
    d, posts = Detector.from_run(folder), validation_posts(['mini'], 5)
    assert fit_toxic(d, posts, d._found(list(posts['text']))) is d.manifest.toxic


@pytest.mark.parametrize('change', [dict(files='0'), dict(toxic=dict(weights={})), dict(toxic=7), dict(thresholds=5)])
def test_decisions_of_others_are_left_out(folder, tmp_path, change):
    shutil.copytree(folder, tmp_path/'r')
    f = tmp_path/'r'/'decisions.json'
    f.write_text(json.dumps(json.loads(f.read_text()) | change))
    with pytest.warns(UserWarning, match='left out'): d = Detector.from_run(tmp_path/'r')
    assert [p.name for p in d.manifest.toxic.points] == ['one-half']


@hypothesis_settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from('ab .!?…"\n\r\u2028\u200b😂)\ud83d'), max_size=60))
def test_sentences_hold_every_word_once_and_in_order(text):
    spans = sentence_spans(text)
    assert all(a < b and text[a:b] == text[a:b].strip() for a, b in spans)
    assert all(x[1] <= y[0] for x, y in zip(spans, spans[1:]))
    letters = [i for i, c in enumerate(text) if c in 'ab😂']
    assert all(any(a <= i < b for a, b in spans) for i in letters)


def test_words_of_sentences_stand_in_the_whole_post(folder):
    d = Detector.from_run(folder, dtype='float32')
    texts = ['Every slur1 must go. The fair was fine!\nyou insult1', '', 'one only', '😂! \ud83d? ok', 'a. '*3000]
    for text, a in zip(texts, d(texts, sentences=True, words=True), strict=True):
        assert [(s['start'], s['end']) for s in a['sentences']] == sentence_spans(text)
        for s in a['sentences']:
            assert all(s['start'] <= w['start'] and w['end'] <= s['end'] and text[w['start']:w['end']] == w['word']
                       for w in s['rationale']+s['words'])
        assert a.to_html() and a.summary()
    first = d(texts[0], sentences=True)['sentences'][0]
    assert first['toxic'] == pytest.approx(d('Every slur1 must go.')['toxic'], abs=1e-5)
    assert 'sentences' not in d(texts[0]) and 'words' not in d(texts[0])


def test_a_head_that_is_not_asked_is_not_heard(folder):
    d = Detector.from_run(folder)
    keep = d.manifest.tasks['mini_mhs/score']
    d.passes = [replace(p, tasks=[keep]) for p in d.passes]
    assert d.answers == ['score'] and 'toxic' not in d('a post')
