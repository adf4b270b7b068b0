"Error browsing: the losses by hand, filters, escaping, masking, and what is refused"

import html
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from hatenb.core import HatenbError
from hatenb.corpora import load_corpus
from hatenb.evaluation import browse, evaluate, post_losses, save_predictions, worst_posts
from hatenb.pretokenize import masked_word
from hatenb.tasks import question_of

TARGETS = question_of('mini/target').outputs


def predicted(seed, n=50):
    "Made-up predictions of posts of the mini corpus"
    rng = np.random.default_rng(seed)
    ds = load_corpus('mini')['validation'].select(range(n))
    words = [len(w) for w in ds['words']]
    return pd.DataFrame(
        dict(
            corpus='mini',
            id=ds['id'],
            label=ds['label'],
            target=list(np.array(ds['target'])),
            rationale_any=ds['rationale_any'],
            label_prob=list(rng.dirichlet([1] * 3, n)),
            target_prob=list(rng.random((n, 11))),
            rationale_token_prob=[rng.random(w) for w in words],
            rationale_token_word=[np.arange(w) for w in words],
        )
    )


def test_losses_by_scikit_learn_and_by_the_metrics():
    t = predicted(0)
    assert post_losses(t, 'label').mean() == pytest.approx(log_loss(t.label, np.stack(t.label_prob), labels=range(3)))
    assert post_losses(t, 'target').mean() == pytest.approx(
        log_loss(np.stack(t.target).ravel(), np.stack(t.target_prob).ravel())
    )
    i = TARGETS.index('Women')
    assert post_losses(t, 'target', 'Women').mean() == pytest.approx(
        log_loss(np.stack(t.target)[:, i], np.stack(t.target_prob)[:, i], labels=[0, 1])
    )
    rationale = post_losses(t, 'rationale')
    assert 1 - rationale.mean() == pytest.approx(evaluate(t, 0)['mini/rationale']['token_f1']['value'])
    assert len(rationale) == ((t.label > 0) & (t.rationale_any.map(sum) > 0)).sum() < len(t)
    scores = pd.DataFrame(dict(corpus='mini_mhs', id=['a', 'b'], score=[0.0, 1.0], score_pred=[2.0, 1.0]))
    assert post_losses(scores, 'score').tolist() == [4, 0]


def test_posts_that_were_not_asked_are_left_out():
    q = question_of('edos/category')
    asked = pd.DataFrame({'corpus': 'edos', 'id': ['a', 'b'], q.asked: [1, 0], q.column: [0, -1],
                          'category_prob': [np.full(len(q.outputs), 1 / len(q.outputs), np.float32)] * 2})
    assert [i for _, i in post_losses(asked, 'category').index] == ['a']


def test_order_and_filters():
    a, b = predicted(0), predicted(1)
    found = worst_posts(a, b.sample(frac=1, random_state=0))  # in any order
    x, y = post_losses(a, 'label'), post_losses(b, 'label')
    for r in found.itertuples():
        assert r.difference == pytest.approx(y['mini', r.id] - x['mini', r.id])
    assert found.difference.abs().is_monotonic_decreasing and len(found) == len(a)
    better = worst_posts(a, b, better='first')
    assert (better['first'] < better['second']).all() and 0 < len(better) < len(a)
    none = next(c for c in TARGETS if not np.stack(a.target)[:, TARGETS.index(c)].any())
    assert len(worst_posts(a, b, output=none)) == 0 and '0 of 0 posts' in browse(a, b, output=none).data
    arab = worst_posts(a, b, output='Arab')
    assert set(arab.id) == {r.id for r in a.itertuples() if r.target[TARGETS.index('Arab')]} and len(arab)
    assert worst_posts(a, task='target', output='Women')['first'].is_monotonic_decreasing


def test_a_file_is_read(tmp_path):
    save_predictions(predicted(0), tmp_path / 'validation.parquet')
    pd.testing.assert_frame_equal(worst_posts(tmp_path / 'validation.parquet'), worst_posts(predicted(0)))


def test_runs_that_were_asked_about_different_communities():
    a, b = predicted(0), predicted(1)
    part = b.assign(target_prob=[np.where(np.arange(11) < 4, p, np.nan) for p in b.target_prob])
    assert worst_posts(part, task='target')['first'].notna().all()
    with pytest.raises(HatenbError, match='not asked about Women'):
        worst_posts(a, part, task='target', output='Women')
    assert len(worst_posts(a, part, task='target', output='African')) == len(a)


def test_the_page_is_whole_and_safe():
    "Names that look like HTML, words that do, and a table that parses"
    a, b = predicted(0), predicted(1)
    page = browse(a, b, n=5, names=('<script>alert(1)</script>', 'b&b')).data
    assert '<script' not in page and 'b&amp;b' in page and page.count('<tr>') == 6
    plain = html.unescape(re.sub('<[^>]+>', '', page))
    found = worst_posts(a, b).id[:5]
    words = {p['id']: p['words'] for p in load_corpus('mini')['validation']}
    for i in found:
        assert ' '.join(words[i]) in plain and f'mini/{i}' in plain
    for kind in ('solid', 'dashed'):
        assert f'{kind} currentColor' in page
    assert 'color:#' not in page and 'background' not in page  # light and dark pages keep their own colours


def test_five_words_a_run_are_in_boxes_and_marked_ones_are_underlined():
    a = predicted(0)
    row = a[(a.label > 0) & (a.rationale_any.map(len) > 6)].iloc[:1]
    page = browse(row, n=1).data
    assert page.count('<span') == 5 and page.count('<u ') == int(np.sum(row.rationale_any.iloc[0]))


def test_slurs_are_masked_unless_revealed(monkeypatch):
    import importlib

    module = importlib.import_module('hatenb.evaluation.errors')
    a = predicted(0).iloc[:1]
    slur = next(w for w in ('bitch', 'retard') if masked_word(w) != w)
    words = [slur] * len(a.rationale_any.iloc[0])
    monkeypatch.setattr(module, '_posts', lambda keys: {k: words for k in keys})
    assert slur not in browse(a, n=1).data and masked_word(slur) in browse(a, n=1).data
    assert slur in browse(a, n=1, reveal=True).data


def test_posts_with_a_class_and_a_question_of_a_named_corpus():
    a = predicted(0)
    assert set(worst_posts(a, output='hatespeech').id) == set(a.id[a.label == 2])
    both = pd.concat([a, a.assign(corpus='hatexplain')], ignore_index=True)
    assert len(worst_posts(both)) == 2 * len(worst_posts(both, task='mini/label')) == 2 * len(a)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(task='text'), 'no predictions of the task text'),
        (dict(task='score'), 'no predictions of the task score'),
        (dict(output='Martians'), "no question has an output 'Martians'"),
        (dict(task='target', output='Martians'), "no question has an output 'Martians'"),
        (dict(better='first'), 'one run only'),
        (dict(better='third'), 'neither run'),
    ],
)
def test_what_is_refused(arguments, words):
    with pytest.raises(HatenbError, match=words):
        worst_posts(predicted(0), **arguments)


def test_predictions_that_do_not_fit():
    a = predicted(0)
    with pytest.raises(HatenbError, match='same posts') as e:
        worst_posts(a, a.drop(index=3))
    assert f'mini/{a.id[3]}' in str(e.value)
    with pytest.raises(HatenbError, match='not in the corpus'):
        browse(a.assign(id=[f'x{i}' for i in range(len(a))]), n=1)
    with pytest.raises(HatenbError, match='no question has an output'):
        worst_posts(a.drop(columns=['target', 'target_prob']), output='Women')
    with pytest.raises(HatenbError, match='does not sum to 1'):
        worst_posts(a.assign(label_prob=[[0.1] * 3] * len(a)))
