"Comparing two runs: against a plain loop and scipy, what the null gives, what is refused, and the command"

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from hatenb.bootstrap import mean_of, resamples
from hatenb.core import HatenbError
from hatenb.corpora import load_corpus
from hatenb.evaluation import (
    compare,
    evaluate,
    mcnemar,
    mean_relative_gain,
    planned_family,
    seed_groups,
    task_statistics,
)
from hatenb.evaluation.comparison import draws_row, drawn_seeds, paired_draws
from hatenb.making import make_run as run
from hatenb.runs import RunConfig
from shell import command


def row_of(first, second, *how):
    "What the paired bootstrap says of one statistic a side"
    return draws_row(paired_draws([{'m': first}], [{'m': second}], *how)['m'])


def predicted(seed, right=0.7, corpus='mini', posts=None):
    "Predictions of the label and the targets of real rows of the mini corpus, right in a share of the posts"
    rng = np.random.default_rng(seed)
    ds = load_corpus(corpus)['test'] if posts is None else posts
    y, n = np.array(ds['label']), len(ds)
    said = np.where(rng.random(n) < right, y, (y + rng.integers(1, 3, n)) % 3)
    target = np.array(ds['target'])
    p = np.clip(
        np.abs(target - (rng.random(target.shape) < 1 - right)) * 0.6 + 0.2 + rng.normal(0, 0.05, target.shape), 0, 1
    ).astype(np.float32)
    return pd.DataFrame(
        dict(
            corpus=corpus,
            id=ds['id'],
            label=y,
            label_dist=ds['label_dist'],
            target=list(target),
            label_prob=list(np.eye(3)[said] * 0.7 + 0.1),
            target_prob=list(p),
        )
    )


def test_intervals_are_those_of_a_plain_loop():
    a, b = predicted(0), predicted(1, 0.85)
    W, n = resamples(len(a), 200, 0), len(a)
    ya, yb = (np.stack(t.label_prob).argmax(1) for t in (a, b))
    drawn = []
    for w in W.astype(int):
        i = np.repeat(np.arange(n), w)
        drawn.append(f1_score(a.label[i], yb[i], average='macro') - f1_score(a.label[i], ya[i], average='macro'))
    row = compare(a, b, count=200).query("metric == 'macro_f1' and task == 'mini/label'").iloc[0]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert row.low == pytest.approx(low, abs=1e-6) and row.high == pytest.approx(high, abs=1e-6)
    p = min(1, 2 * (1 + min(sum(d <= 0 for d in drawn), sum(d >= 0 for d in drawn))) / 201)
    assert row.p == pytest.approx(p, abs=0.02)  # a draw may be a rounding away from zero


def test_accuracy_agrees_with_scipys_bootstrap():
    a, b = predicted(0), predicted(1, 0.8)
    right = [(np.stack(t.label_prob).argmax(1) == t.label).to_numpy(float) for t in (a, b)]
    theirs = bootstrap(
        (right[1] - right[0],), np.mean, method='percentile', n_resamples=4000, random_state=0
    ).confidence_interval
    row = compare(a, b, count=4000).query("metric == 'accuracy'").iloc[0]
    assert row.low == pytest.approx(theirs.low, abs=0.02) and row.high == pytest.approx(theirs.high, abs=0.02)


def test_a_run_against_itself():
    a = predicted(0)
    t = compare(a, a.sample(frac=1, random_state=0), count=200)  # in any order
    assert (t.difference == 0).all() and (t.p == 1).all() and (t.better == '').all()


def test_by_chance_few_differences_look_sure():
    "Two runs of the same quality: p below .05 in about one of twenty cases"
    rng, ps = np.random.default_rng(0), []
    for _ in range(120):
        a, b = (rng.random(150) < 0.7 for _ in range(2))
        ps.append(row_of(mean_of(a), mean_of(b), 150, 400, int(rng.integers(1e6)))['p'])
    assert 0.0 <= np.mean(np.array(ps) < 0.05) < 0.13


def test_corrected_values_are_benjamini_and_hochbergs():
    t = compare(predicted(0), predicted(1, 0.8), count=300)
    p, n = t.p.to_numpy(), len(t)
    order = np.argsort(p)
    by_hand = np.empty(n)
    low = 1.0
    for rank, i in reversed(list(enumerate(order, 1))):
        low = min(low, p[i] * n / rank)
        by_hand[i] = low
    np.testing.assert_allclose(t.corrected, by_hand)


def test_mcnemar_by_hand():
    assert mcnemar([1] * 5, [1] * 5) == (0, 0, 1.0)
    only_a, only_b, p = mcnemar([1] * 8 + [0] * 1 + [1] * 20, [0] * 8 + [1] * 1 + [1] * 20)
    assert (only_a, only_b) == (8, 1) and p == pytest.approx(2 * 10 / 2**9)


def test_what_cannot_be_compared():
    a = predicted(0)
    with pytest.raises(HatenbError, match='same posts') as e:
        compare(a, a.drop(index=3), count=10)
    assert f"mini/{a.id[3]}" in str(e.value)
    with pytest.raises(HatenbError, match='share no task'):
        compare(a.drop(columns=['target_prob']), a.drop(columns=['label_prob']), count=10)
    with pytest.raises(HatenbError, match='there twice'):
        compare(a, pd.concat([a, a.iloc[:1]]), count=10)


def test_all_shared_metrics_of_all_tasks():
    a, b = predicted(0), predicted(1, 0.85)
    t = compare(a, b, count=300)
    shared = {(task, m) for task, found in task_statistics(a).items() for m in found[1]}
    assert {(task, m) for task, m in zip(t.task, t.metric)} <= shared and shared - set(zip(t.task, t.metric)) == {
        (task, m) for task, m in shared if not np.isfinite(task_statistics(a)[task][1][m](np.ones((1, len(a)))))
    }  # only what has no value is left out
    assert {'ece', 'brier', 'vote_jsd', 'accuracy_split', 'macro_f1_ten'} <= set(t.metric)
    assert ((t.low <= t.difference) & (t.difference <= t.high)).all()
    alone = compare(
        a.drop(columns='label_prob'), b.drop(columns='label_prob'), count=300
    )  # the same draws, however many tasks there are
    both = t[t.task == 'mini/target'].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone[['metric', 'low', 'high', 'p']], both[['metric', 'low', 'high', 'p']])


def test_corpora_are_resampled_apart():
    a, b = (
        pd.concat([predicted(s, r), predicted(s + 5, r).assign(corpus='hatexplain')], ignore_index=True)
        for s, r in ((0, 0.7), (1, 0.85))
    )
    t = compare(a, b, count=100)
    assert list(dict.fromkeys(t.task)) == ['hatexplain/label', 'hatexplain/target', 'mini/label', 'mini/target']
    one = compare(a[a.corpus == 'hatexplain'], b[b.corpus == 'hatexplain'], count=100)
    pd.testing.assert_frame_equal(
        one[['metric', 'a', 'b', 'low', 'high']],
        t[t.task.str.startswith('hatexplain')].reset_index(drop=True)[['metric', 'a', 'b', 'low', 'high']],
    )


# ---- several seeds


def test_seeds_and_posts_are_drawn_as_the_exact_distribution_says():
    "Two seeds and two posts: all sixteen pairs of draws are enumerated"
    right = np.array([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 1.0]]])  # side, seed, post
    sides = [[{'accuracy': mean_of(p)} for p in side] for side in right]
    d = right[1] - right[0]
    exact = [d[np.ix_(s, p)].mean() for s in np.ndindex(2, 2) for p in np.ndindex(2, 2)]
    found = paired_draws(*sides, 2, 40_000)['accuracy']
    assert (found.a, found.b) == (right[0].mean(), right[1].mean())
    values, often = np.unique(found.differences().round(6), return_counts=True)
    want, times = np.unique(np.round(exact, 6), return_counts=True)
    assert values.tolist() == want.tolist()
    np.testing.assert_allclose(often / 40_000, times / 16, atol=0.015)


def test_one_seed_is_the_plain_bootstrap_and_equal_seeds_add_nothing():
    a, b = predicted(0), predicted(1, 0.85)
    one = compare(a, b, count=200)
    for n in (1, 3):
        pd.testing.assert_frame_equal(
            compare([a] * n, [b] * n, count=200).drop(columns='mcnemar'), one.drop(columns='mcnemar'), rtol=1e-5
        )
    assert (drawn_seeds(1, 5) == 1).all() and np.allclose(drawn_seeds(4, 50).sum(1), 1)
    with pytest.raises(HatenbError, match='2 runs stand against 1'):
        compare([a, a], [b])


def test_equivalence_is_two_one_sided_tests():
    "By the normal approximation: means of 4,000 differences with a known standard error"
    from scipy.stats import norm

    for shift in (0.0, 0.005, 0.02):
        x = np.random.default_rng(0).normal(0, 0.3, 4000)
        x += shift - x.mean()
        row = row_of(mean_of(np.zeros(4000)), mean_of(x), 4000, 4000)
        se = x.std() / 4000**0.5
        want = max(norm.cdf(-(shift + 0.01) / se), norm.cdf((shift - 0.01) / se))
        assert row['equivalence'] == pytest.approx(want, abs=0.03), shift
    same = row_of(mean_of(x), mean_of(x), 4000, 200)
    assert same['equivalence'] == pytest.approx(1 / 201) and same['p'] == 1


def test_the_mean_relative_gain():
    a, b = predicted(0), predicted(2, 0.85)
    t = compare(a, b, count=50, main=True)
    gain = mean_relative_gain(evaluate(b, 0), evaluate(a, 0))
    assert set(t.metric) == {'macro_f1'} and gain['mean'] == pytest.approx(((t.b - t.a) / t.a).mean())


@pytest.mark.parametrize('reference', [0.0, None])
def test_nothing_is_a_share_of_a_reference_of_zero(reference):
    of = {t: {'macro_f1': dict(value=v)} for t, v in (('mini/label', 0.5), ('mini/target', 0.4))}
    gain = mean_relative_gain(of, of | {'mini/label': {'macro_f1': dict(value=reference)}})
    assert np.isnan(gain['mini/label']) and np.isnan(gain['mean']) and gain['mini/target'] == 0


def test_a_planned_family_is_corrected_together():
    base = pd.DataFrame(dict(task='mini/label', metric='macro_f1', difference=0.1, better='b'), index=range(1))
    found = {n: base.assign(p=p, equivalence=e) for n, p, e in (('x', 0.01, 0.9), ('y', 0.04, 0.01), ('z', 0.9, 0.5))}
    t = planned_family(found)
    assert t.corrected.tolist() == pytest.approx(
        [0.03, 0.06, 0.9]
    ) and t.equivalence_corrected.tolist() == pytest.approx([0.9, 0.03, 0.75])
    assert t.finding.tolist() == ['better', 'equivalent', 'open']


def test_runs_of_several_seeds_are_one_group(tmp_path):
    configs = [RunConfig(('mini/label', 'mini/target'), baseline=m, seed=s) for m in ('tfidf', 'majority') for s in (0, 1, 2)]
    groups = seed_groups([run(c, tmp_path) for c in configs])
    assert [[r['config']['seed'] for r in g] for g in groups] == [[0, 1, 2]] * 2


def test_the_command(tmp_path):
    folders = [
        tmp_path / 'runs' / run(RunConfig(('mini/label', 'mini/target'), baseline=m), tmp_path / 'runs')['name']
        for m in ('majority', 'tfidf')
    ]

    done = command('compare', *folders, '--resamples', 200, '--out', tmp_path / 't.csv')
    assert done.returncode == 0, done.stderr[-2000:]
    t = pd.read_csv(tmp_path / 't.csv')
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert folders[1].name in done.stdout and 'mini/label macro F1 ↑' in done.stdout and '*' in done.stdout
    assert set(t.task) == {'mini/label', 'mini/target'} and (t[t.metric == 'macro_f1'].better == 'b').all()
    failed = command('compare', folders[0], tmp_path / 'nowhere')
    assert failed.returncode == 1 and 'the file is missing' in failed.stderr and 'Traceback' not in failed.stderr
