"Metrics against other implementations, definitions worked by hand, and what is known of the real corpora"

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings as hsettings, strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from hatenb.bootstrap import (
    auc_of,
    correlation_of,
    ece_of,
    rank_correlation_of,
    recentred,
    remembered,
    resamples,
    subset_of,
)
from hatenb.core import HatenbError
from hatenb.corpora import load_corpus
from hatenb.corpora.hatexplain import LABELS, PAPER_TARGETS, TARGETS
from hatenb.corpora.spans import spans_of
from hatenb.evaluation import (
    bias_table,
    check_predictions,
    check_split,
    definitions,
    evaluate,
    generalised_mean,
    load_predictions,
    main_metrics,
    metric_of,
    save_predictions,
    with_gold,
)
from hatenb.kinds import kind_of, rationale_table, tokens_to_words, top, vote_divergences
from hatenb.kinds.tokens import iou_hits
from hatenb.tasks import question_of


@pytest.fixture(scope='module')
def official(corpora_folder):
    "The official test split of HateXplain, as one table"
    return load_corpus('hatexplain')['test'].to_pandas()


quick = hsettings(max_examples=8, deadline=None)
seeds = st.integers(0, 10_000)
TEN = [TARGETS.index(t) for t in PAPER_TARGETS]


def label_table(rng, n=90, corpus='hatexplain'):
    y = rng.permutation(np.arange(n) % 3)
    votes = [
        np.bincount([v, v, v if agreed else (v + 1) % 3], minlength=3) / 3 for v, agreed in zip(y, rng.random(n) < 0.5)
    ]
    return pd.DataFrame(
        dict(
            corpus=corpus,
            id=[f'l{i}' for i in range(n)],
            label=y,
            label_dist=votes,
            target=list((rng.random((n, 11)) < 0.4).astype(int)),
            label_prob=list(rng.multinomial(32, rng.dirichlet([1, 1, 1], n)) / 32),
        )
    )  # sums of exactly 1, with ties


def target_table(rng, n=80):
    return pd.DataFrame(
        dict(
            corpus='hatexplain',
            id=[f't{i}' for i in range(n)],
            target=list((rng.random((n, 11)) < 0.3).astype(int)),
            target_prob=list(rng.random((n, 11)).astype(np.float32)),
        )
    )


def rationale_posts(rng, n=40):
    "Posts of 1 to 12 words, of which words may have several sub-tokens or none"
    rows = []
    for i in range(n):
        words = int(rng.integers(1, 13))
        of = np.sort(rng.integers(0, words, int(rng.integers(1, 2 * words + 1)))).astype(np.int16)
        rows.append(
            dict(
                corpus='hatexplain',
                id=f'r{i}',
                label=i % 3,
                rationale_any=(rng.random(words) < 0.4).astype(int) * (i % 3 > 0),
                rationale_token_prob=rng.random(len(of)).round(1),
                rationale_token_word=of,
            )
        )
    rows[1]['rationale_any'][:] = 1
    return pd.DataFrame(rows)


def score_table(rng, n=70, corpus='mini_mhs'):
    y = rng.normal(-0.5, 2, n).round(1)
    t = pd.DataFrame(
        dict(corpus=corpus, id=[f's{i}' for i in range(n)], score=y, score_pred=(y + rng.normal(0, 2, n)).round(1))
    )
    if corpus == 'mhs_share':
        t['score_gt_0'] = np.where(rng.random(n) < 0.2, -1, y > 0)
    return t


def statistics_of(task):
    q = question_of(task)
    return lambda t: kind_of(q).statistics(t, q)


def metrics_of(*tasks):
    return {m for t in tasks for m in kind_of(question_of(t)).metrics(question_of(t))}


MAKERS = dict(
    label=(label_table, statistics_of('hatexplain/label')),
    target=(target_table, statistics_of('hatexplain/target')),
    rationale=(rationale_posts, statistics_of('hatexplain/rationale')),
    score=(score_table, statistics_of('mini_mhs/score')),
    share=(lambda rng: score_table(rng, corpus='mhs_share'), statistics_of('mhs_share/score')),
)


def values(t, n_boot=0):
    "Metric → value of a table with one task"
    (found,) = evaluate(t, n_boot).values()
    return defined(found)


def defined(found):
    return {m: v['value'] for m, v in found.items() if isinstance(v, dict) and v.get('value') is not None}


# ---- agreement with scikit-learn and scipy


@quick
@given(seeds)
def test_label_agrees_with_sklearn(seed):
    t = label_table(np.random.default_rng(seed))
    y, p = t['label'], np.stack(t['label_prob'])
    got, said = values(t), p.argmax(1)
    assert got['accuracy'] == pytest.approx(sk.accuracy_score(y, said))
    assert got['macro_f1'] == pytest.approx(sk.f1_score(y, said, average='macro', zero_division=0))
    assert got['auroc'] == pytest.approx(sk.roc_auc_score(y, p, multi_class='ovo', average='macro'))
    for i, l in enumerate(LABELS):
        assert got[f'f1.{l}'] == pytest.approx(sk.f1_score(y == i, said == i, zero_division=0))
    assert evaluate(t, 0)['hatexplain/label']['confusion'] == sk.confusion_matrix(y, said, labels=[0, 1, 2]).tolist()


@quick
@given(seeds)
def test_target_agrees_with_sklearn(seed):
    t = target_table(np.random.default_rng(seed))
    y, said = np.stack(t['target']), np.stack(t['target_prob']) >= 0.5
    got = values(t)
    for how in ('macro', 'micro'):
        assert got[f'{how}_f1'] == pytest.approx(sk.f1_score(y, said, average=how, zero_division=0))
        assert got[f'{how}_f1_ten'] == pytest.approx(sk.f1_score(y[:, TEN], said[:, TEN], average=how, zero_division=0))
    counts = evaluate(t, 0)['hatexplain/target']['confusion']
    for i, c in enumerate(TARGETS):
        assert got[f'f1.{c}'] == pytest.approx(sk.f1_score(y[:, i], said[:, i], zero_division=0))
        tn, fp, fn, tp = sk.confusion_matrix(y[:, i], said[:, i], labels=[0, 1]).ravel()
        assert counts[c] == dict(tp=tp, fp=fp, fn=fn, tn=tn)


@quick
@given(seeds)
def test_rationale_agrees_with_sklearn(seed):
    t = rationale_posts(np.random.default_rng(seed))
    f1, area, high, pool = [], [], [], []
    for r in t.itertuples():
        if r.label == 0 or not r.rationale_any.any():
            continue
        p = tokens_to_words(r.rationale_token_prob, r.rationale_token_word, len(r.rationale_any))
        five = np.isin(np.arange(len(p)), sorted(range(len(p)), key=lambda i: (-p[i], i))[:5])
        precision, recall, _ = sk.precision_recall_curve(r.rationale_any, p)
        f1.append(sk.f1_score(r.rationale_any, five, zero_division=0))
        area.append(sk.auc(recall, precision))
        high.append(sk.f1_score(r.rationale_any, p >= 0.5, zero_division=0))
        pool.append((r.rationale_any, p >= 0.5))
    got, (g, d) = values(t), map(np.concatenate, zip(*pool))
    assert got['token_f1'] == pytest.approx(np.mean(f1))
    assert got['auprc'] == pytest.approx(np.mean(area))
    assert got['token_f1_thresholded'] == pytest.approx(np.mean(high))
    assert got['rationale_f1_pooled'] == pytest.approx(sk.f1_score(g, d, average='macro', zero_division=0))


@quick
@given(seeds)
def test_score_agrees_with_sklearn_and_scipy(seed):
    rng = np.random.default_rng(seed)
    t = score_table(rng)
    y, p, got = t['score'], t['score_pred'], values(t)
    assert got['mse'] == pytest.approx(sk.mean_squared_error(y, p))
    assert got['rmse'] == pytest.approx(sk.root_mean_squared_error(y, p))
    assert got['r2'] == pytest.approx(sk.r2_score(y, p))
    assert got['pearson'] == pytest.approx(stats.pearsonr(y, p).statistic)
    assert got['spearman'] == pytest.approx(stats.spearmanr(y, p).statistic)
    assert got['f1_above_half'] == pytest.approx(sk.f1_score(y > 0.5, p > 0.5, zero_division=0))
    t = score_table(rng, corpus='mhs_share')
    known = t['score_gt_0'] >= 0
    got = values(t)
    assert got['auc_score_gt_0'] == pytest.approx(sk.roc_auc_score(t['score_gt_0'][known], t['score_pred'][known]))
    assert 'f1_above_half' not in got


# ---- weights stand for repeated posts


@pytest.mark.parametrize('task', MAKERS)
@quick
@given(seed=seeds)
@example(seed=191)
def test_a_weight_is_a_repeated_post(task, seed):
    rng = np.random.default_rng(seed)
    make, statistics = MAKERS[task]
    t = make(rng)
    W = resamples(len(t), 2, seed)
    weighted = {m: f(W) for m, f in statistics(t)[0].items()}
    for i, w in enumerate(W.astype(int)):
        repeated = t.loc[np.repeat(t.index, w)].reset_index(drop=True)
        plain = statistics(repeated)[0]
        assert plain.keys() <= weighted.keys()     # a draw may lack all posts of one side of a community
        for m, f in plain.items():
            assert weighted[m][i] == pytest.approx(
                f(np.ones((1, len(repeated)), np.float32))[0], rel=1e-5, abs=1e-6, nan_ok=True
            ), m


def test_every_described_metric_is_computed_somewhere():
    rng = np.random.default_rng(0)
    got = {k: set(statistics(make(rng))[0]) for k, (make, statistics) in MAKERS.items()}
    part = target_table(rng)
    part['target_prob'] = [np.where(np.arange(11) < 3, p, np.nan) for p in part['target_prob']]
    assert got['label'] == metrics_of('hatexplain/label')
    assert got['target'] | set(MAKERS['target'][1](part)[0]) == metrics_of('hatexplain/target')
    assert got['rationale'] == metrics_of('hatexplain/rationale')
    assert got['score'] | got['share'] == metrics_of('mini_mhs/score', 'mhs_share/score')


@pytest.mark.parametrize('task', MAKERS)
def test_interval_is_that_of_an_explicit_loop(task):
    make, statistics = MAKERS[task]
    t = make(np.random.default_rng(3))
    n, boots = len(t), 20
    (found,) = evaluate(t, boots, seed=5).values()
    drawn = np.random.default_rng(5).integers(0, n, (boots, n), dtype=np.int32)
    drawn = [statistics(t.loc[rows].reset_index(drop=True))[0] for rows in drawn]
    for m in statistics(t)[0]:
        loop = np.array([s[m](np.ones((1, n), np.float32))[0] for s in drawn])
        if m == 'ece':
            loop = np.maximum(loop - loop.mean() + found[m]['value'], 0)
        assert [found[m]['low'], found[m]['high']] == pytest.approx(
            np.nanpercentile(loop, [2.5, 97.5]).tolist(), rel=1e-5
        ), m
        assert found[m]['low'] <= found[m]['value'] <= found[m]['high'] and found[m]['n'] == getattr(
            statistics(t)[0][m], 'n', n
        )


def test_resamples_are_seeded_and_draw_n_posts():
    a = resamples(7, 50, 1)
    assert (
        a.shape == (50, 7)
        and (a.sum(1) == 7).all()
        and (a == resamples(7, 50, 1)).all()
        and (a != resamples(7, 50, 2)).any()
    )


def test_draws_in_chunks_are_the_same_draws(monkeypatch):
    from hatenb.evaluation import predictions as evaluation

    t = label_table(np.random.default_rng(0), 91)
    whole = evaluate(t, 400)['hatexplain/label']
    values_ = evaluation.estimates
    monkeypatch.setattr(evaluation, 'estimates', lambda *a: values_(*a, cells=91 * 37))  # 37 resamples at once
    cut = evaluate(t, 400)['hatexplain/label']
    for m in whole:
        if m not in ('confusion', 'communities'):
            assert cut[m] == pytest.approx(whole[m]), m
    rng = np.random.default_rng(4)
    assert (np.concatenate([resamples(13, k, rng) for k in (1, 5, 2)]) == resamples(13, 8, 4)).all()


def test_a_shared_statistic_answers_each_weights_once():
    asked = []
    f = remembered(subset_of([True, False, True], lambda W: asked.append(1) or W.sum(1)))
    a, b = resamples(3, 4, 0), resamples(3, 4, 1)
    assert (
        f.n == 2
        and (f(a) == a[:, [0, 2]].sum(1)).all()
        and (f(a) == f(a)).all()
        and (f(b) == b[:, [0, 2]].sum(1)).all()
        and (f(a) == a[:, [0, 2]].sum(1)).all()
    )
    assert len(asked) == 3  # a once, b, and a again after b


# ---- areas under curves, bias


@pytest.mark.parametrize('positives', [2, 30, 58])
@quick
@given(seed=seeds)
def test_auc_agrees_with_sklearn_on_parts(positives, seed):
    rng = np.random.default_rng(seed)
    n = 60
    y, s = rng.permutation(np.arange(n) < positives), rng.random(n).round(1)  # few distinct scores: many ties
    W, auc = resamples(n, 3, seed), auc_of(y, s)
    for got, w in zip(auc(W), W):
        if 0 < w[y].sum() < n:
            assert got == pytest.approx(sk.roc_auc_score(y, s, sample_weight=w))
        else:
            assert np.isnan(got)
    use = rng.random(n) < 0.7
    if 0 < y[use].sum() < use.sum():
        assert subset_of(use, auc_of(y[use], s[use]))(np.ones((1, n)))[0] == pytest.approx(
            sk.roc_auc_score(y[use], s[use])
        )


def paper_bias(posts, score):
    "The bias metrics by the definitions of the paper's notebook, post by post, from the annotators' own answers"
    named, toxic = {}, {}
    for p in posts:
        every = [t for annotator in p['target_votes'] for t in annotator]
        found = [c for c in PAPER_TARGETS if every.count(c) > 1]
        if found:
            named[p['id']], toxic[p['id']] = found, p['label'] > 0
    out = {}
    for c in PAPER_TARGETS:
        inside, outside = [i for i in named if c in named[i]], [i for i in named if c not in named[i]]
        sides = dict(
            subgroup=([i for i in inside if toxic[i]], [i for i in inside if not toxic[i]]),
            bpsn=([i for i in outside if toxic[i]], [i for i in inside if not toxic[i]]),
            bnsp=([i for i in inside if toxic[i]], [i for i in outside if not toxic[i]]),
        )
        for b, (high, low) in sides.items():
            out[f'{b}_auc.{c}'] = (
                np.mean([(score[i] > score[j]) + (score[i] == score[j]) / 2 for i in high for j in low]),
                len(high) + len(low),
            )
    for b in ('subgroup', 'bpsn', 'bnsp'):
        out[f'gmb_{b}'] = (sum(out[f'{b}_auc.{c}'][0] ** -5 for c in PAPER_TARGETS) / 10) ** (-1 / 5), len(named)
    return out


def test_bias_is_that_of_the_papers_definitions(official):
    "Of random answers, with ties"
    rng = np.random.default_rng(0)
    p = [(1 - s) * np.eye(3)[0] + s * np.array([0, 0.5, 0.5]) for s in rng.random(len(official)).round(2)]
    t = official[['id', 'label', 'label_dist', 'target']].assign(corpus='hatexplain', label_prob=p)
    by_hand = paper_bias(
        official.to_dict('records'), dict(zip(t['id'], kind_of('multiclass').toxic(t, question_of('hatexplain/label'))))
    )
    found = evaluate(t, 0)['hatexplain/label']
    assert len(by_hand) == 33
    for m, (value, n) in by_hand.items():
        assert found[m]['value'] == pytest.approx(value, abs=1e-6) and found[m]['n'] == n, m
    assert found['communities']['Hispanic'] == dict(n=35, normal=2, toxic=33)
    rows = bias_table(t, 200)
    assert list(rows.index) == list(PAPER_TARGETS) and rows.loc['Women', 'bpsn_auc'] == pytest.approx(
        by_hand['bpsn_auc.Women'][0]
    )
    assert (rows.n == rows.n_normal + rows.n_toxic).all() and (rows.subgroup_low <= rows.subgroup_auc).all()
    pd.testing.assert_frame_equal(rows, bias_table(evaluate(t, 200)['hatexplain/label']))


def test_a_community_with_an_empty_side_has_a_reason_and_no_number():
    t = label_table(np.random.default_rng(0))
    women, asian = TARGETS.index('Women'), TARGETS.index('Asian')
    t['target'] = [
        np.where(np.arange(11) == women, 0 if y == 0 else v, np.where(np.arange(11) == asian, 0, v))
        for y, v in zip(t['label'], t['target'])
    ]
    found = evaluate(t, 50)['hatexplain/label']
    toxic = found['communities']['Women']['toxic']
    assert found['communities']['Women']['normal'] == 0 < toxic and found['communities']['Asian'] == dict(
        n=0, normal=0, toxic=0
    )
    for m in ('subgroup_auc.Women', 'bpsn_auc.Women', 'subgroup_auc.Asian', 'bpsn_auc.Asian', 'bnsp_auc.Asian'):
        assert [found[m][k] for k in ('value', 'low', 'high')] == [None] * 3 and 'one side is empty' in found[m][
            'why'
        ], m
    assert (
        f'{toxic} toxic, 0 normal' in found['subgroup_auc.Women']['why'] and found['subgroup_auc.Women']['n'] == toxic
    )
    assert found['bnsp_auc.Women']['value'] is not None
    for b, who in (('subgroup', 'Asian, Women'), ('bpsn', 'Asian, Women'), ('bnsp', 'Asian')):
        assert found[f'gmb_{b}']['value'] is None and found[f'gmb_{b}']['why'] == f'no AUC for {who}'
    rows = bias_table(t, 20)
    assert (
        np.isnan(rows.loc['Women', ['subgroup_auc', 'subgroup_low', 'bpsn_auc']].astype(float)).all()
        and rows.loc['Women', 'n_toxic'] == toxic
    )


def test_the_generalised_mean_leaves_out_what_a_resample_missed():
    assert generalised_mean([[0.5], [np.nan], [0.9]])[0] == pytest.approx(((0.5**-5 + 0.9**-5) / 2) ** -0.2)
    assert generalised_mean([[0.0], [0.9]])[0] == 0 and np.isnan(generalised_mean([[np.nan]])[0])
    assert generalised_mean([[0.2], [0.8]], p=1)[0] == pytest.approx(0.5)


def test_what_has_no_communities_or_votes_is_silent():
    t = label_table(np.random.default_rng(0)).drop(columns=['label_dist', 'target'])
    assert {m for m in evaluate(t, 0)['hatexplain/label']} == {
        'accuracy',
        'macro_f1',
        'auroc',
        *(f'f1.{l}' for l in LABELS),
        'ece',
        'brier',
        'confusion',
    }
    with pytest.raises(HatenbError, match='no communities'):
        bias_table(t)
    both = pd.concat(
        [t, label_table(np.random.default_rng(1), corpus='mini')], ignore_index=True
    )  # beside a corpus that has them
    found = evaluate(both, 0)
    assert (
        'gmb_bpsn' in found['mini/label']
        and 'gmb_bpsn' not in found['hatexplain/label']
        and 'vote_jsd' not in found['hatexplain/label']
    )
    with pytest.raises(HatenbError, match='2 corpora.*hatexplain, mini'):
        bias_table(both)


# ---- calibration and disagreement


@quick
@given(seeds)
def test_calibration_agrees_with_torchmetrics_and_sklearn(seed):
    rng = np.random.default_rng(seed)
    p, y = rng.dirichlet([1, 1, 1], 200).astype(np.float32), rng.integers(0, 3, 200)
    found = values(pd.DataFrame(dict(corpus='mini', id=[str(i) for i in range(200)], label=y, label_prob=list(p))))
    assert found['ece'] == pytest.approx(
        float(multiclass_calibration_error(torch.tensor(p), torch.tensor(y), 3, n_bins=15)), abs=1e-6
    )
    assert (
        found['brier']
        == pytest.approx(((p - np.eye(3)[y]) ** 2).sum(1).mean())
        == pytest.approx(sum(sk.brier_score_loss(y == k, p[:, k]) for k in range(3)))
    )
    t = target_table(rng)
    p, y = np.stack(t['target_prob']), np.stack(t['target'])
    found = values(t)
    assert found['ece'] == pytest.approx(
        float(binary_calibration_error(torch.tensor(p.ravel()), torch.tensor(y.ravel()), n_bins=15)), abs=1e-6
    )
    assert found['brier'] == pytest.approx(sk.brier_score_loss(y.ravel(), p.ravel().astype(float)))


def test_bins_hold_their_upper_end():
    # 0 and 1/15 in the first bin, 1 in the last: |(0-1) + (1/15-0)| + |1-1|, over three posts
    assert ece_of(np.array([0, 1 / 15, 1]), [1, 0, 1])(np.ones((1, 3)))[0] == pytest.approx((1 - 1 / 15) / 3, abs=1e-6)


def test_a_calibrated_models_interval_holds_its_value():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], 2000)
    t = pd.DataFrame(
        dict(corpus='mini', id=[str(i) for i in range(2000)], label=[rng.choice(3, p=q) for q in p], label_prob=list(p))
    )
    ece = evaluate(t, 300)['mini/label']['ece']
    draws = ece_of(p.max(1), p.argmax(1) == t['label'])(resamples(2000, 300))
    assert draws.mean() > 1.2 * ece['value']  # resamples are too high
    assert 0 <= ece['low'] < ece['value'] < ece['high'] and ece['high'] < np.percentile(draws, 97.5)
    assert (recentred(draws, 0.5) == draws).all()
    asked = subset_of(np.ones(2000, bool), ece_of(p.max(1), p.argmax(1) == t['label']))
    assert asked.biased and (recentred(draws, 0.5, asked) != draws).any()  # of some posts it is so too


@quick
@given(seeds)
def test_divergences_agree_with_scipy(seed):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet([0.5] * 3, 50), rng.multinomial(3, [0.5, 0.3, 0.2], 50) / 3
    p[0], q[0] = [1, 0, 0], [0, 2 / 3, 1 / 3]
    entropy, divergence = vote_divergences(p, q)
    assert divergence == pytest.approx(jensenshannon(p, q, base=2, axis=1) ** 2, abs=1e-12) and divergence[
        0
    ] == pytest.approx(1)
    least = np.maximum(p, 1e-6)
    assert (
        entropy
        == pytest.approx(
            stats.entropy(q, axis=1) + np.where(q > 0, q * np.log(np.where(q > 0, q, 1) / least), 0).sum(1)
        )
        and np.isfinite(entropy).all()
    )


def test_posts_by_agreement():
    t = label_table(np.random.default_rng(1))
    agreed = np.array([v.max() == 1 for v in t['label_dist']])
    y, said, found = t['label'], np.stack(t['label_prob']).argmax(1), evaluate(t, 0)['hatexplain/label']
    for name, use in (('agreed', agreed), ('split', ~agreed)):
        assert (
            found[f'accuracy_{name}']['value'] == pytest.approx((said == y)[use].mean())
            and found[f'accuracy_{name}']['n'] == use.sum()
        )
        assert found[f'macro_f1_{name}']['value'] == pytest.approx(sk.f1_score(y[use], said[use], average='macro'))
    found = evaluate(t[agreed], 0)['hatexplain/label']
    assert (
        found['accuracy_agreed']['value'] == found['accuracy']['value']
        and found['macro_f1_split']['value'] is None
        and 'agreed on every post' in found['macro_f1_split']['why']
    )


# ---- what metrics mean

TASKS = ['hatexplain/label', 'hatexplain/target', 'hatexplain/rationale', 'mhs/score', 'hatexplain/text']


def test_definitions_name_every_metric_and_serve_as_footnotes():
    t = definitions(TASKS)
    assert (
        len(t) == sum(len(metrics_of(x)) for x in TASKS)
        and not t[['metric', 'text', 'source']].eq('').any().any()
        and not t.duplicated(['task', 'name']).any()
    )
    assert set(t.metric.str[-1]) == {'↑', '↓'}
    assert set(t[t.task.eq('hatexplain/label') & t.metric.str.endswith('↓')].name) == {
        'ece',
        'brier',
        'vote_cross_entropy',
        'vote_jsd',
    }
    notes = definitions(['hatexplain/label bpsn_auc.Women', 'mini/target ece', 'mini/target ece'])
    assert notes.metric.tolist() == ['BPSN AUC Women ↑', 'ECE ↓'] and 'Women' in notes.text[0]
    assert metric_of('hatexplain/label', 'ece').text != metric_of('hatexplain/target', 'ece').text


# ---- what has no value says why


def test_what_is_not_defined_has_a_reason():
    t = label_table(np.random.default_rng(0), 30)
    t['label'] = 1
    found = evaluate(t, 20)['hatexplain/label']
    assert found['auroc']['value'] is None and 'empty or constant' in found['auroc']['why']
    assert found['accuracy']['value'] is not None


@pytest.mark.parametrize('constant', [0.0, 0.1, -0.57123, 1e6])
@pytest.mark.parametrize('n', [5, 70, 1931])
def test_a_constant_score_has_no_correlation(constant, n):
    t = score_table(np.random.default_rng(n), n)
    t['score_pred'] = constant
    found = evaluate(t, 20)['mini_mhs/score']
    for m in ('pearson', 'spearman'):
        assert found[m]['value'] is None and 'constant' in found[m]['why']
    W = resamples(n, 30)
    assert (
        np.isnan(correlation_of(t['score'], t['score_pred'])(W)).all()
        and np.isnan(rank_correlation_of(t['score'], t['score_pred'])(W)).all()
    )
    assert main_metrics(evaluate(t, 0)) == {'mini_mhs/score.pearson': 0.0}


@pytest.mark.parametrize('task, asked', [('dynahate/type', 'typed'), ('dynahate/target', 'targeted')])
def test_a_question_that_no_post_is_asked_has_reasons(task, asked):
    corpus, _, name = task.partition('/')
    k, several = len(question_of(task).outputs), name == 'target'
    rows = {f'{name}_prob': [np.full(k, 1 / k)] * 4, name: [np.zeros(k)] * 4 if several else [-1] * 4}
    found = evaluate(pd.DataFrame(dict(corpus=corpus, id=list('abcd'), **rows, **{asked: 0})), 20)[task]
    assert set(found) == {m for m in metrics_of(task) if not m.endswith('_part')}
    assert all(v['value'] is None and 'none of the posts' in v['why'] for v in found.values())
    assert main_metrics({task: found}) == {f'{task}.macro_f1': 0.0}


def test_auc_without_one_side_is_nan():
    assert np.isnan(auc_of([1, 1], [0.1, 0.2])(np.ones((1, 2))))


def test_no_rationale_at_all():
    t = rationale_posts(np.random.default_rng(0))
    t['label'] = 0
    found = evaluate(t, 10)['hatexplain/rationale']
    assert {m for m, v in found.items() if isinstance(v, dict) and v['value'] is None} == metrics_of(
        'hatexplain/rationale'
    )
    assert found['posts'] == 0 and main_metrics({'hatexplain/rationale': found}) == {
        'hatexplain/rationale.token_f1_thresholded': 0.0
    }


@pytest.mark.parametrize('asked', [[0], [2, 5, 10], list(range(10)), [i for i in range(11) if TARGETS[i] != 'Other']])
def test_a_part_of_the_targets(asked):
    t = target_table(np.random.default_rng(1))
    t['target_prob'] = [np.where(np.isin(np.arange(11), asked), p, np.nan) for p in t['target_prob']]
    found = evaluate(t, 30)['hatexplain/target']
    y, said = np.stack(t['target'])[:, asked], np.stack(t['target_prob'])[:, asked] >= 0.5
    assert found['macro_f1']['value'] is None and f'about {len(asked)} of' in found['macro_f1']['why']
    assert found['macro_f1_part']['value'] == pytest.approx(
        sk.f1_score(y, said, average='macro') if len(asked) > 1 else sk.f1_score(y, said)
    )
    assert (found['macro_f1_ten']['value'] is not None) == (set(TEN) <= set(asked))
    assert {m for m in found if m.startswith('f1.')} == {f'f1.{TARGETS[i]}' for i in asked} and found[
        'confusion'
    ].keys() == {TARGETS[i] for i in asked}
    assert main_metrics({'hatexplain/target': found}) == {
        'hatexplain/target.macro_f1_part': found['macro_f1_part']['value']
    }


# ---- the definitions of ERASER, by hand


def one(gold, values, k=5):
    return rationale_table([gold], [values], k).iloc[0]


def test_half_of_the_union_is_a_hit():
    # one word of a span of two: 1/2, a hit; of three: 1/3, none; a span of four against two of its words: 2/4
    assert iou_hits([(0, 2)], [(0, 1)]) == 1 and iou_hits([(0, 3)], [(1, 2)]) == 0 and iou_hits([(0, 4)], [(1, 3)]) == 1
    # overlap 2, union 5 (words 0-2 and 1-4): .4, no hit; overlap 2, union 4 (words 0-2 and 1-3): .5, a hit
    assert iou_hits([(0, 3)], [(1, 5)]) == 0 and iou_hits([(0, 3)], [(1, 4)]) == 1
    assert iou_hits([(0, 1)], [(1, 2)]) == 0 and iou_hits([], [(0, 1)]) == 0 and iou_hits([(0, 1)], []) == 0


def test_top_five_of_a_long_post():
    # gold words 0,1,2 (one span of three) and 6 (one of one); five highest: 0, 1, 6, 7, 8
    r = one([1, 1, 1, 0, 0, 0, 1, 0, 0, 0], [0.9, 0.8, 0.1, 0.0, 0.0, 0.0, 0.7, 0.6, 0.5, 0.2])
    assert r.token_f1 == pytest.approx(2 * 3 / (4 + 5))  # three common words, four gold and five given
    # single words hit nothing of a span of three, word 6 hits its own: 1 of 5 given, for 1 of 2 gold spans
    assert (r.precision, r.recall) == (pytest.approx(1 / 5), pytest.approx(1 / 2))
    # of at least one half: 0-1 (2 of 3 words: a hit) and 6-8 (1 of 3: none)
    assert (r.precision_thresholded, r.recall_thresholded) == (0.5, 0.5)
    assert (r.tp, r.fp, r.fn, r.tn) == (3, 2, 1, 4) and r.token_f1_thresholded == pytest.approx(2 * 3 / (4 + 5))


def test_several_given_spans_on_one_gold_span():
    # the gold span is words 1 and 2; both are given, each covers half: two hits for one gold span, as ERASER counts
    r = one([0, 1, 1, 0, 0, 0], [0.1, 0.9, 0.8, 0.7, 0.6, 0.5])
    assert (r.precision, r.recall) == (pytest.approx(2 / 5), 2.0)


def test_posts_shorter_than_five_words():
    r = one([0, 1, 0], [0.2, 0.1, 0.3])  # all three words are given: one right, one hit of three
    assert r.token_f1 == pytest.approx(2 * 1 / (1 + 3)) and (r.precision, r.recall) == (pytest.approx(1 / 3), 1.0)
    r = one([1], [0.0])
    assert r.token_f1 == 1 and (r.precision, r.recall, r.auprc) == (1, 1, 1) and r.precision_thresholded == 0


def test_mean_precision_and_mean_recall_make_the_iou_f1():
    # post a: gold word 0 of two words: precision 1/2, recall 1; post b: gold 0-2 of three words: no hit
    t = pd.DataFrame(
        [
            dict(
                corpus='mini',
                id=i,
                label=2,
                rationale_any=g,
                rationale_token_prob=np.full(len(g), 0.4),
                rationale_token_word=np.arange(len(g)),
            )
            for i, g in (('a', [1, 0]), ('b', [1, 1, 1]))
        ]
    )
    # precision (1/2+0)/2 = 1/4, recall (1+0)/2 = 1/2; F1 = 2·(1/8)/(3/4) = 1/3
    assert values(t)['iou_f1'] == pytest.approx(1 / 3)
    assert values(t)['token_f1'] == pytest.approx((2 / 3 + 1) / 2)
    assert values(t)['iou_f1_thresholded'] == 0 and values(t)['token_f1_thresholded'] == 0


def test_auprc_by_hand():
    # from the top: marked (precision 1, recall 1/2), not, marked (2/3, 1): trapezoids 1/2·1 + 1/2·(1/2+
    # 2/3)/2 with a point (1/2, 1/2) between
    assert one([1, 0, 1], [0.9, 0.5, 0.1]).auprc == pytest.approx(0.5 + 0.5 * (1 / 2 + 2 / 3) / 2)


def test_words_are_means_of_their_subtokens_and_cut_words_are_zero():
    row = pd.Series(
        dict(rationale_token_prob=[0.2, 0.6, 0.9], rationale_token_word=[0, 0, 2], rationale_any=[0, 1, 1, 0])
    )
    assert tokens_to_words(row.rationale_token_prob, row.rationale_token_word, len(row.rationale_any)) == pytest.approx(
        [0.4, 0, 0.9, 0]
    )


@quick
@given(st.lists(st.integers(0, 1), max_size=20))
def test_spans_paint_the_mask(mask):
    painted = np.zeros(len(mask), int)
    for a, b in spans_of(mask):
        painted[a:b] += 1
    assert painted.tolist() == mask and all(b < c for (_, b), (c, _) in zip(spans_of(mask), spans_of(mask)[1:]))


def test_of_equal_words_the_earlier():
    assert (
        top([0.5] * 8).tolist() == [1] * 5 + [0] * 3
        and top([0.1, 0.9, 0.5, 0.5], 2).tolist() == [0, 1, 1, 0]
        and top([0.3], 5).tolist() == [1]
    )


def test_normal_and_unmarked_posts_add_nothing_to_plausibility():
    rng = np.random.default_rng(2)
    t = rationale_posts(rng)
    use = np.array([l > 0 and r.any() for l, r in zip(t['label'], t['rationale_any'])])
    assert 0 < use.sum() < len(t)
    assert values(t) == pytest.approx(values(t[use]))


# ---- tables that are refused


def edit(t, i, column, value):
    t = t.copy()
    t[column] = t[column].astype(object) if not isinstance(value, float) else t[column]
    t.at[i, column] = value
    return t


BAD = [
    ('label', 'label_prob', np.array([0.5, 0.5, 0.5]), 'sum to 1'),
    ('label', 'label_prob', np.array([0.5, np.nan, 0.5]), 'NaN'),
    ('label', 'label_prob', np.array([1.5, -0.5, 0.0]), 'between 0 and 1'),
    ('label', 'label_prob', np.array([0.5, 0.5]), '3 entries'),
    ('label', 'label_prob', None, 'missing'),
    ('label', 'label', -1, 'no gold label'),
    ('target', 'target_prob', np.full(10, 0.5), '11 entries'),
    ('target', 'target_prob', np.array([np.nan] + [0.5] * 10), 'holds NaN'),
    ('target', 'target_prob', np.array([1.01] + [0.5] * 10), 'between 0 and 1'),
    ('target', 'target_prob', np.array([-0.01] + [0.5] * 10), 'between 0 and 1'),
    ('rationale', 'rationale_token_prob', np.array([np.nan, 0.5]), 'holds NaN'),
    ('rationale', 'rationale_token_prob', np.full(99, 0.5), 'does not fit'),
    ('rationale', 'rationale_token_word', np.full(99, 0), 'does not fit'),
    ('rationale', 'rationale_any', [], 'does not fit'),
    ('rationale', 'rationale_token_prob', np.array([2.0, 0.5]), 'between 0 and 1'),
    ('score', 'score_pred', float('nan'), 'finite'),
    ('score', 'score_pred', float('inf'), 'finite'),
    ('score', 'score_pred', float('-inf'), 'finite'),
]


@pytest.mark.parametrize('task,column,value,what', BAD)
def test_a_bad_prediction_names_its_post(task, column, value, what):
    good = MAKERS[task][0](np.random.default_rng(0))
    check_predictions(good)
    bad = edit(good, 7, column, value)
    with pytest.raises(HatenbError, match=what) as e:
        evaluate(bad, 0)
    assert f'{good["corpus"][7]}/{good["id"][7]}' in str(e.value) and f'1 of {len(good)}' in str(e.value)
    with pytest.raises(HatenbError, match=what):
        evaluate(pd.concat([score_table(np.random.default_rng(1), corpus='mhs'), bad]), 0)


def test_a_doubled_post_is_named_and_many_are_shortened():
    t = label_table(np.random.default_rng(0))
    with pytest.raises(HatenbError, match='twice.*hatexplain/l4'):
        evaluate(pd.concat([t, t.loc[[4]]]), 0)
    with pytest.raises(HatenbError, match='90 of 180.*l4, …'):
        evaluate(pd.concat([t, t]), 0)
    two = pd.concat([t, t.assign(corpus='mini')])  # the same id in another corpus is another post
    assert set(evaluate(two, 0)) == {'hatexplain/label', 'mini/label'}


@pytest.mark.parametrize('column', ['corpus', 'id'])
def test_a_table_without_its_keys(column, tmp_path):
    t = label_table(np.random.default_rng(0)).drop(columns=column)
    with pytest.raises(HatenbError, match=f"'{column}' is missing"):
        evaluate(t, 0)
    save_predictions(t, tmp_path / 't.parquet')
    with pytest.raises(HatenbError, match=f"'{column}' is missing"):
        load_predictions(tmp_path / 't.parquet')


# ---- kept and read again


def predicted():
    "Made-up predictions of every task on the mini corpora, with gold, in one table"
    rng = np.random.default_rng(0)
    mini, mhs = load_corpus('mini')['test'], load_corpus('mini_mhs')['test']
    n = len(mini)
    a = pd.DataFrame(
        dict(
            corpus='mini',
            id=mini['id'],
            label_prob=list(rng.dirichlet([1] * 3, n).astype(np.float32)),
            target_prob=list(rng.random((n, 11)).astype(np.float32)),
            rationale_token_prob=[rng.random(len(w)).astype(np.float32) for w in mini['words']],
            rationale_token_word=[np.arange(len(w), dtype=np.int16) for w in mini['words']],
        )
    )
    b = pd.DataFrame(dict(corpus='mini_mhs', id=mhs['id'], score_pred=rng.normal(size=len(mhs)).astype(np.float32)))
    return pd.concat([a, b], ignore_index=True)


def test_a_table_of_several_corpora_comes_back(tmp_path):
    plain = predicted()
    full = with_gold(plain)
    assert len(full) == len(plain) and full[['corpus', 'id']].equals(plain[['corpus', 'id']])
    results = evaluate(full, 20)
    assert set(results) == {'mini/label', 'mini/target', 'mini/rationale', 'mini_mhs/score'}
    save_predictions(full, tmp_path / 'full.parquet')
    save_predictions(plain, tmp_path / 'plain.parquet')
    assert evaluate(load_predictions(tmp_path / 'full.parquet'), 20) == results
    assert evaluate(load_predictions(tmp_path / 'plain.parquet'), 20) == results
    alone = evaluate(with_gold(plain[plain['corpus'] == 'mini']), 20)
    assert all(alone[k] == results[k] for k in alone) and len(alone) == 3


def test_rows_in_any_order_give_the_same_values():
    t = with_gold(predicted())
    a, b = evaluate(t, 0), evaluate(t.sample(frac=1, random_state=0), 0)
    for task in a:
        assert defined(a[task]) == pytest.approx(defined(b[task]), rel=1e-5)


def test_gold_of_posts_that_are_not_there():
    t = predicted()
    with pytest.raises(HatenbError, match='not in the corpus.*mini, nobody'):
        with_gold(edit(t, 0, 'id', 'nobody'))
    with pytest.raises(HatenbError, match='twice'):
        with_gold(pd.concat([t, t.loc[[3]]]))


def test_a_table_that_should_hold_a_split(tmp_path):
    t = predicted()
    check_split(t, 'test')
    assert 'label' in with_gold(t[t.corpus == 'mini'], 'test')
    for bad, what in (
        (t.drop(index=[0, 2]), f'the test split has no prediction: 2 of 58.*mini/{t.id[0]}, mini/{t.id[2]}'),
        (pd.concat([t, t.loc[[3]]]), f'twice.*mini/{t.id[3]}'),
        (edit(t, 1, 'id', load_corpus('mini')['train']['id'][0]), f'has no prediction.*{t.id[1]}'),
        (pd.concat([t, edit(t.loc[[1]], 1, 'id', 'nobody')]), 'not of the test split.*mini/nobody'),
    ):
        save_predictions(bad, tmp_path / 't.parquet')
        with pytest.raises(HatenbError, match=what):
            load_predictions(tmp_path / 't.parquet', 'test')
        with pytest.raises(HatenbError, match=what):
            check_split(bad, 'test')
    with pytest.raises(HatenbError, match='has no prediction'):
        check_split(t, 'validation')


def test_a_file_that_is_no_table(tmp_path):
    (tmp_path / 't.parquet').write_bytes(b'PAR1 nothing')
    for name in ('t.parquet', 'missing.parquet'):
        with pytest.raises(HatenbError, match=name):
            load_predictions(tmp_path / name)


# ---- the real corpus: the yardsticks of the protocol


def iou_f1(rows):
    return 2 * rows.precision.mean() * rows.recall.mean() / (rows.precision.mean() + rows.recall.mean())


def test_the_best_that_five_words_can_do(official):
    golds = [g for g, y in zip(official['rationale_any'], official['label']) if y]
    assert len(official) == 1924 and len(golds) == 1142
    rows = rationale_table(golds, golds)
    assert rows.token_f1.mean() == pytest.approx(0.605, abs=1e-3)
    assert iou_f1(rows) == pytest.approx(0.261, abs=1e-3)  # of equal words the earlier
    broken = [
        iou_f1(rationale_table(golds, [g + 0.5 * rng.random(len(g)) for g in golds]))
        for rng in map(np.random.default_rng, range(2))
    ]
    assert np.mean(broken) == pytest.approx(0.251, abs=4e-3)  # equal words at random


def test_one_annotator_against_two_others_label(official):
    gold, said = [], []
    for votes in official['label_votes']:
        for i in range(3):
            a, b = np.delete(votes, i)
            if a == b:
                gold.append(a)
                said.append(votes[i])
    assert sk.accuracy_score(gold, said) == pytest.approx(0.755, abs=1e-3)
    assert sk.f1_score(gold, said, average='macro') == pytest.approx(0.726, abs=1e-3)


def test_one_annotator_against_the_others_rationale(official):
    # each annotator's words against all that the other one or two marked, mean over the annotators' rationales
    f1 = []
    for marks, y in zip(official['rationale_votes'], official['label']):
        if not y:
            continue
        marks = np.stack(marks)
        for i in range(len(marks)):
            others = np.delete(marks, i, 0).any(0)
            f1.append(2 * (marks[i] * others).sum() / (marks[i].sum() + others.sum()))
    assert np.mean(f1) == pytest.approx(0.640, abs=1e-3)


def test_one_annotator_against_two_others_target(official):
    named = np.array([[[t in v for t in TARGETS] for v in votes] for votes in official['target_votes']])
    said, gold = (
        np.concatenate([named[:, i] for i in range(3)]),
        np.concatenate([np.delete(named, i, 1).all(1) for i in range(3)]),
    )
    for places, macro, micro in ((range(11), 0.565, 0.628), (TEN, 0.607, 0.665)):
        places = list(places)
        assert sk.f1_score(gold[:, places], said[:, places], average='macro') == pytest.approx(macro, abs=1e-3)
        assert sk.f1_score(gold[:, places], said[:, places], average='micro') == pytest.approx(micro, abs=1e-3)
