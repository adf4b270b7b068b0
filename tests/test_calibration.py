"Temperatures and thresholds: what is known beforehand, scikit-learn, brute force, real predictions, what is refused"

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax
from sklearn.calibration import calibration_curve
from sklearn.dummy import DummyClassifier
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import FixedThresholdClassifier

from hatenb.core import HatenbError, read_json, write_json
from hatenb.evaluation import (
    apply_temperature,
    apply_thresholds,
    choose_thresholds,
    decisions,
    disagreement,
    evaluate,
    evaluate_at,
    fit_temperature,
    fit_thresholds,
    load_predictions,
    reliability,
)
from hatenb.kinds import best_threshold, kind_of
from hatenb.kinds.base import move_to_half
from hatenb.kinds.multiclass import negative_threshold
from hatenb.kinds.tokens import best_word_threshold
from hatenb.tasks import question_of

LABELS, TARGETS = (question_of(f'mini/{t}').outputs for t in ('label', 'target'))

stored = Path(__file__).parent / 'safety' / 'predictions' / 'hatexplain.parquet'  # real predictions, with gold
multiclass, multilabel, tokens = (kind_of(k) for k in ('multiclass', 'multilabel', 'tokens'))


def made_up(n=3000, label=1.0, target=1.0, seed=0):
    "Predictions whose probabilities are right but for known temperatures"
    rng = np.random.default_rng(seed)
    z, logits = rng.normal(0, 1.5, (n, 3)), rng.normal(-2, 1.5, (n, 11))
    return pd.DataFrame(
        dict(
            corpus='mini',
            id=[str(i) for i in range(n)],
            label=[rng.choice(3, p=p) for p in softmax(z, -1)],
            label_prob=list(softmax(z * label, -1)),
            target=list((rng.random((n, 11)) < expit(logits)).astype(int)),
            target_prob=list(expit(logits * target)),
        )
    )


def nll(t, task):
    if task == 'label':
        return log_loss(t.label, np.stack(t.label_prob), labels=range(3))
    return log_loss(np.stack(t.target).ravel(), np.stack(t.target_prob).ravel())


@pytest.mark.parametrize('factor', [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(factor):
    t = made_up(label=factor, target=factor)
    for task in ('label', 'target'):
        assert fit_temperature(t, task) == pytest.approx(factor, rel=0.08)


@pytest.mark.parametrize('seed', range(4))
def test_no_temperature_near_the_fitted_one_is_better(seed):
    rng = np.random.default_rng(seed)
    t = made_up(400, *np.exp(rng.normal(0, 0.7, 2)), seed)
    for task in ('label', 'target'):
        T = fit_temperature(t, task)
        best = nll(apply_temperature(t, {task: T}), task)
        assert best <= nll(t, task) + 1e-9
        for other in (T * 0.97, T * 1.03):
            assert best <= nll(apply_temperature(t, {task: other}), task) + 1e-9


def test_tasks_of_one_name_are_fitted_on_their_posts_together():
    "As if their posts were those of one corpus"
    parts = made_up(300, 0.4, 2.0, seed=1), made_up(500, 2.5, 0.6, seed=2)
    apart = pd.concat([parts[0], parts[1].assign(corpus='hatexplain')], ignore_index=True)
    whole = pd.concat(parts, ignore_index=True).assign(id=[str(i) for i in range(800)])
    names = {f'{c}/{q}': q for c in ('mini', 'hatexplain') for q in ('label', 'target')}
    assert set(decisions(apart)['temperatures']) == set(names)
    found, known = decisions(apart, names), decisions(whole)
    for what in ('temperatures', 'thresholds'):
        assert found[what] == known[what] and set(found[what]) == {'label', 'target'}


def test_what_is_decided_stays():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.3] * 3, 2000).astype(np.float32)
    q = rng.random(2000).round(6)
    q[:3] = 0, 0.5, 1
    for T in (0.05, 0.7, 3, 20):
        assert (multiclass.temper(p, T).argmax(1) == p.argmax(1)).all()
        np.testing.assert_allclose(multiclass.temper(p, T).sum(1), 1)
        assert ((multilabel.temper(q, T) >= 0.5) == (q >= 0.5)).all()
        assert (np.diff(tokens.temper(np.sort(q), T)) >= 0).all()
    np.testing.assert_allclose(multiclass.temper(p, 1), p, atol=4e-6)


def test_a_run_that_is_certain_is_not_taken_at_its_word():
    "Zeros and ones are what rounding left"
    t = made_up(200)
    hot = t.assign(label_prob=list(np.eye(3)[np.stack(t.label_prob).argmax(1)]))
    T = fit_temperature(hot, 'label')
    assert T > 5 and np.isfinite(nll(apply_temperature(hot, dict(label=T)), 'label'))


def brute(p, y):
    return max(f1_score(y, p >= t, zero_division=0) for t in [*p[p > 0], 0.5])


@pytest.mark.parametrize('seed', range(30))
def test_the_threshold_is_that_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    p, y = rng.random(n).round(int(rng.integers(1, 4))), rng.integers(0, 2, n)
    t = best_threshold(p, y)
    assert 0 < t < 1 and f1_score(y, p >= t, zero_division=0) == pytest.approx(brute(p, y))
    if f1_score(y, p >= 0.5, zero_division=0) == pytest.approx(brute(p, y)):
        assert t == 0.5


def test_thresholds_do_on_new_posts_what_scikit_learns_do():
    "Scikit-learn's classifier with a fixed threshold says the same as the moved probabilities"
    fit, new = made_up(800, seed=1), made_up(500, seed=2)
    thresholds = fit_thresholds(fit, 'target')
    moved = np.stack(apply_thresholds(new, dict(target=thresholds)).target_prob) >= 0.5
    for i, c in enumerate(TARGETS):
        p = np.stack(new.target_prob)[:, i]

        class Given(DummyClassifier):
            def predict_proba(self, X):
                return np.stack([1 - X[:, 0], X[:, 0]], 1)

        theirs = FixedThresholdClassifier(
            Given().fit([[0], [1]], [0, 1]), threshold=thresholds[c], response_method='predict_proba'
        ).fit([[0], [1]], [0, 1])
        assert (theirs.predict(p[:, None]) == moved[:, i]).all()


def test_f1_of_the_fitted_posts_never_gets_worse():
    t = made_up(600, seed=3)
    a, b = (evaluate(x, 0)['mini/target'] for x in (t, apply_thresholds(t, dict(target=fit_thresholds(t, 'target')))))
    for c in TARGETS:
        assert b[f'f1.{c}']['value'] >= a[f'f1.{c}']['value']
    assert b['macro_f1']['value'] > a['macro_f1']['value']


def test_rare_communities_keep_one_half_and_unasked_ones_are_left_out():
    t = made_up(600)
    gold, p = np.stack(t.target), np.stack(t.target_prob)
    gold[:, 0] = 0
    gold[:19, 0] = 1
    p[:, 0] = np.where(gold[:, 0], 0.2, 0.1)
    p[:, 1] = np.nan
    t = t.assign(target=list(gold), target_prob=list(p))
    got = fit_thresholds(t, 'target')
    assert got[TARGETS[0]] == 0.5 and TARGETS[1] not in got and len(got) == 10
    assert fit_thresholds(t, 'target', least=19)[TARGETS[0]] == pytest.approx(0.15)
    after = np.stack(apply_thresholds(apply_temperature(t, dict(target=2.0)), dict(target=got)).target_prob)
    assert np.isnan(after[:, 1]).all() and not np.isnan(np.delete(after, 1, 1)).any()


def test_where_no_post_has_an_output_or_is_asked_nothing_is_chosen():
    "A run with few validation posts must not fail after its training"
    nobody = made_up(30).assign(target=[np.zeros(11, int)] * 30)
    assert choose_thresholds(nobody)['target'] == dict.fromkeys(TARGETS, 0.5)
    k = len(question_of('dynahate/target').outputs)
    rows = dict(target=[np.zeros(k, int)] * 3, target_prob=[np.full(k, 0.3)] * 3)
    unasked = pd.DataFrame(dict(corpus='dynahate', id=list('abc'), targeted=0, **rows))
    assert choose_thresholds(unasked) == evaluate_at(unasked, choose_thresholds(unasked)) == {}
    for fit in (fit_temperature, fit_thresholds, reliability):
        with pytest.raises(HatenbError, match='asked about none of the posts'):
            fit(unasked, 'target')


def test_thresholds_below_what_is_stored_and_probabilities_at_their_edge():
    t = made_up(5).assign(
        target_prob=list(np.tile([0, 1e-7, 1e-6, 0.3, 0.3000001, 0.7, 1, 0, 0, 0, 0], (5, 1)).astype(float))
    )
    line = dict(zip(TARGETS, [5e-7, 1e-7, 2e-6, 0.3, 0.3, 0.7, 0.9999999]))
    assert (np.stack(apply_thresholds(t, dict(target=line)).target_prob)[0, :7] >= 0.5).tolist() == [
        False,
        True,
        False,
        True,
        True,
        True,
        True,
    ]


def test_reliability_is_scikit_learns_curve():
    t = made_up(2000)
    for of in LABELS:
        y, p = t.label.to_numpy() == LABELS.index(of), np.stack(t.label_prob)[:, LABELS.index(of)]
        share, confidence = calibration_curve(y, p, n_bins=10)
        r = reliability(t, 'label', of, bins=10)
        np.testing.assert_allclose(r.share, share)
        np.testing.assert_allclose(r.confidence, confidence)
        assert r.n.sum() == 2000 and ((r.low <= r.share) & (r.share <= r.high)).all()
    assert reliability(t, 'target').n.sum() == 22000 and reliability(t, 'target', 'Arab').n.sum() == 2000


def test_posts_of_other_corpora_are_passed_over():
    t = made_up(300, 2.0, 2.0)
    scores = pd.DataFrame(dict(corpus='mini_mhs', id=['a', 'b'], score=[0.0, 1.0], score_pred=[0.0, 1.0]))
    both = pd.concat([scores, t], ignore_index=True)
    assert decisions(both) == decisions(t)
    after = apply_temperature(both, dict(label=2.0, target=2.0))
    assert after.label_prob[:2].isna().all() and (after.score_pred[:2] == [0, 1]).all()
    np.testing.assert_allclose(
        np.stack(after.label_prob[2:]), np.stack(apply_temperature(t, dict(label=2.0)).label_prob)
    )
    assert (np.stack(t.label_prob) == np.stack(both.label_prob[2:])).all()  # the given table stays as it is


@pytest.mark.parametrize(
    'change, task, words',
    [
        (lambda t: t.iloc[:0], 'label', 'no predictions of the task label'),
        (lambda t: t.drop(columns='target_prob'), 'target', 'no predictions of the task target'),
        (lambda t: t, 'rationale', 'no predictions of the task rationale'),
        (lambda t: t, 'score', 'no predictions of the task score'),
        (lambda t: t.drop(columns='label'), 'label', "gold column 'label' is missing"),
        (lambda t: t.assign(label=0), 'label', 'are the same'),
        (lambda t: t.assign(label=-1), 'label', 'no gold label'),
        (lambda t: t.assign(target=[np.zeros(11, int)] * len(t)), 'target', 'are the same'),
        (lambda t: t.assign(label_prob=[[0.9, 0.9, 0.9]] * len(t)), 'label', 'does not sum to 1'),
        (lambda t: t.assign(label_prob=[[np.nan, 0.5, 0.5]] * len(t)), 'label', 'NaN'),
        (lambda t: pd.concat([t, t]), 'label', 'there twice'),
    ],
)
def test_what_cannot_be_fitted(change, task, words):
    with pytest.raises(HatenbError, match=words):
        fit_temperature(change(made_up(50)), task)


def test_what_cannot_be_applied(tmp_path):
    t = made_up(30)
    for T in (0, -1, np.inf, np.nan):
        with pytest.raises(HatenbError, match='temperature is'):
            apply_temperature(t, dict(label=T))
    with pytest.raises(HatenbError, match="no output 'Martians'"):
        apply_thresholds(t, dict(target=dict(Martians=0.3)))
    with pytest.raises(HatenbError, match="no threshold of label decides on 'hatespeech'.*one for normal"):
        apply_thresholds(t, dict(label=dict(hatespeech=0.99)))
    with pytest.raises(HatenbError, match="decides on 'score'.*Leave"):
        apply_thresholds(t.assign(corpus='mini_mhs', score=0.0, score_pred=0.7), dict(score=dict(score=0.9)))
    for line in (0, 1, np.nan):
        with pytest.raises(HatenbError, match='threshold of Arab'):
            apply_thresholds(t, dict(target=dict(Arab=line)))
    with pytest.raises(HatenbError, match='no predictions of the task target'):
        apply_thresholds(t.drop(columns='target_prob'), dict(target=dict(Arab=0.3)))
    with pytest.raises(HatenbError, match='no probabilities'):
        decisions(t[['corpus', 'id']])
    with pytest.raises(HatenbError, match='cannot be read'):
        decisions(tmp_path / 'none.parquet')
    with pytest.raises(HatenbError, match='votes are missing'):
        disagreement(t)


def test_disagreement_orders_as_it_should():
    rng = np.random.default_rng(0)
    n = 400
    split = rng.random(n) < 0.5
    sure = np.where(split, 0.5, 0.8) + rng.normal(0, 0.1, n).clip(-0.15, 0.15)
    t = pd.DataFrame(
        dict(
            corpus='mini',
            id=[str(i) for i in range(n)],
            label=0,
            label_prob=[[p, (1 - p) / 2, (1 - p) / 2] for p in sure],
            label_dist=[[2 / 3, 1 / 3, 0] if s else [1.0, 0, 0] for s in split],
        )
    )
    d = disagreement(t, 200)
    assert d.value['auc'] > 0.9 and d.low['auc'] <= d.value['auc'] <= d.high['auc'] and d.value['spearman'] > 0.6
    by_chance = disagreement(t.assign(label_prob=list(rng.permutation(np.stack(t.label_prob)))), 200)
    assert by_chance.low['auc'] < 0.5 < by_chance.high['auc']


@pytest.mark.parametrize('seed', range(20))
def test_the_negative_class_has_the_threshold_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(5, 60)), int(rng.integers(2, 5))
    p, y, negative = rng.dirichlet([1] * k, n).round(6) + 1e-6, rng.integers(0, k, n), int(rng.integers(k))

    def score(shift):
        return f1_score(
            y, (np.log(p) + shift * np.eye(k)[negative]).argmax(1), average='macro', labels=range(k), zero_division=0
        )

    line = negative_threshold(p, y, negative)
    others = np.delete(np.arange(k), negative)
    margins = np.sort(np.log(p[:, others]).max(1) - np.log(p[:, negative]))
    best = max(map(score, [0.0, *(margins[1:] + margins[:-1]) / 2, margins[0] - 1]))
    assert score(np.log(line / (1 - line))) == pytest.approx(best) and (line == 0.5) == (
        best == pytest.approx(score(0.0))
    )


@pytest.mark.parametrize('seed', range(20))
def test_the_threshold_of_words_is_that_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, 12)
    golds = [np.append(rng.integers(0, 2, n - 1), 1) for n in sizes]
    values = [rng.random(n).round(2) + 0.001 for n in sizes]

    def score(line):
        return np.mean([f1_score(g, v >= line, zero_division=0) for g, v in zip(golds, values)])

    assert score(best_word_threshold(golds, values)) == pytest.approx(max(map(score, [*np.concatenate(values), 0.5])))


def test_moving_changes_no_decision_and_leaves_what_was_not_asked():
    p = np.array([0, 1e-7, 0.3, np.nextafter(0.3, 1), 0.5, 1, np.nan])
    moved = move_to_half(p, 0.3)
    assert ((moved >= 0.5) == (p >= 0.3))[:-1].all() and np.isnan(moved[-1])


def test_real_predictions_at_their_thresholds(tmp_path):
    "What is chosen is kept as JSON, and F1 at thresholds is that of hand-made decisions"
    t = load_predictions(stored)
    chosen = decisions(stored)
    assert read_json(write_json(tmp_path / 'decisions.json', chosen)) == chosen
    assert set(chosen['temperatures']) == set(chosen['thresholds']) == {'label', 'target', 'rationale'}
    lines = choose_thresholds(t)
    at, plain = evaluate_at(t, lines, 0), evaluate(t, 0)
    given = np.stack(t.target_prob) >= [lines['target'][c] for c in TARGETS]
    gold = np.stack(t.target)
    assert at['hatexplain/target']['macro_f1']['value'] == pytest.approx(
        f1_score(gold, given, average='macro', zero_division=0)
    )
    z = np.log(np.clip(np.stack(t.label_prob), 1e-6, 1))
    z[:, LABELS.index('normal')] += np.log(lines['label']['normal'] / (1 - lines['label']['normal']))
    assert at['hatexplain/label']['macro_f1']['value'] == pytest.approx(f1_score(t.label, z.argmax(1), average='macro'))
    assert set(at['hatexplain/rationale']) == {'token_f1_thresholded', 'iou_f1_thresholded', 'rationale_f1_pooled'}
    for task, m in (('label', 'macro_f1'), ('target', 'macro_f1'), ('rationale', 'token_f1_thresholded')):
        assert at[f'hatexplain/{task}'][m]['value'] >= plain[f'hatexplain/{task}'][m]['value']


def test_a_temperature_decides_nothing():
    t = load_predictions(stored)
    a, b = (evaluate(x, 0) for x in (t, apply_temperature(t, decisions(t)['temperatures'])))
    for task, ms in (('label', ('accuracy', 'macro_f1')), ('target', ('macro_f1', 'micro_f1'))):
        for m in ms:
            assert a[f'hatexplain/{task}'][m]['value'] == b[f'hatexplain/{task}'][m]['value']


def test_questions_of_one_name_on_two_corpora_are_told_apart():
    t = made_up(300, 2.0)
    both = pd.concat([t, made_up(300, 0.5, seed=1).assign(corpus='hatexplain')], ignore_index=True)
    found = decisions(both)['temperatures']
    assert (
        found['mini/label'] == pytest.approx(fit_temperature(t, 'label'))
        and found['hatexplain/label'] < 1 < found['mini/label']
    )
    after = apply_temperature(both, {'mini/label': 2.0})
    assert np.stack(after.label_prob[300:]).tolist() == np.stack(both.label_prob[300:]).tolist()
