"Functional tests and transfer: figures against other implementations, runs asked twice, corpora that are not there"

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from typer.testing import CliRunner

from hatenb.asking import functional as F
from hatenb.cli import app
from hatenb.core import HatenbError
from hatenb.corpora import load_corpus
from hatenb.making import make_run as run
from hatenb.runs import Run, RunConfig

QUICK = dict(limit=32, max_length=40, train=dict(epochs=1, batch_size=16))
CASES = ',functionality,case_id,test_case,label_gold,target_ident\n' + ''.join(
    f'{i},{kind},{i},"the {who} are {"insult1" if i % 2 else "fine"}, case {i}",{gold},{who}\n'
    for i, (kind, gold, who) in enumerate(
        [
            ('threat_h', 'hateful', 'women'),
            ('slur_h', 'hateful', 'Muslims'),
            ('quote_nh', 'non-hateful', 'women'),
            ('praise_nh', 'non-hateful', ''),
        ]
        * 4
    )
)


@pytest.fixture
def data(tmp_path, monkeypatch):
    "A data folder with two small corpora, and nothing in the cache"
    for name, file, text in (
        ('hatecheck', 'test_suite_cases.csv', CASES),
        ('kaggle_tweets', 'train.csv', 'id,label,tweet\n' + ''.join(f'{i},{i % 2},a day {i}\n' for i in range(60))),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    monkeypatch.setenv('HATENB_DATA', str(tmp_path))
    monkeypatch.setenv('HATENB_CACHE', str(tmp_path / 'cache'))
    return tmp_path


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp('runs')


def made(runs, *tasks):
    return runs / run(RunConfig.from_dict(dict(tasks=tasks, **QUICK)), runs)['name']


@pytest.fixture(scope='module')
def folder(runs):
    return made(runs, 'mini/label')


def answered(n=200, seed=0):
    "Random answers to random cases"
    g = np.random.default_rng(seed)
    p = g.dirichlet([1, 1, 1], n)
    kind = g.choice(['threat_h', 'slur_h', 'quote_nh', 'praise_nh'], n)
    return pd.DataFrame(
        dict(
            toxic=[int(k.endswith('_h')) for k in kind],
            kind=kind,
            community=g.choice(['women', 'Muslims', ''], n),
            toxic_score=p[:, 1] + p[:, 2],
            says_hate=p.argmax(1) == 2,
        )
    ), p


# ---- figures


def test_transfer_agrees_with_scikit_learn():
    t, _ = answered()
    t['toxic_score'] = t['toxic_score'].round(1)  # ties, also at the threshold
    found, y, given = F.transfer_metrics(t, 200), t['toxic'], t['toxic_score'] >= 0.5
    assert found['auroc']['value'] == pytest.approx(roc_auc_score(y, t['toxic_score']))
    assert found['accuracy']['value'] == pytest.approx(accuracy_score(y, given))
    assert found['f1']['value'] == pytest.approx(f1_score(y, given)) and found['macro_f1']['value'] == pytest.approx(
        f1_score(y, given, average='macro')
    )
    assert found['toxic_share'] == y.mean()
    for m in ('auroc', 'accuracy', 'f1', 'macro_f1'):
        assert found[m]['low'] < found[m]['value'] < found[m]['high'] and found[m]['n'] == 200


def test_functional_figures_are_means_over_the_cases_they_name():
    t, p = answered()
    found, y = F.functional_metrics(t, 200), t['toxic'] == 1
    for decision, given in (('toxic', t['toxic_score'] >= 0.5), ('hate', p.argmax(1) == 2)):
        right = pd.Series(np.asarray(given) == y)
        parts = {
            'all': y == y,
            'hateful': y,
            'other': ~y,
            **{f'functionality.{k}': t['kind'] == k for k in t['kind'].unique()},
            **{
                f'target.{c}.{s}': (t['community'] == c) & side
                for c in ('women', 'Muslims')
                for s, side in (('hateful', y), ('other', ~y))
            },
        }
        assert set(found[decision]) == {*parts, 'macro_f1'}
        for k, rows in parts.items():
            assert (
                found[decision][k]['value'] == pytest.approx(right[rows].mean())
                and found[decision][k]['n'] == rows.sum()
            ), k
            assert found[decision][k]['low'] <= found[decision][k]['value'] <= found[decision][k]['high']
        assert found[decision]['macro_f1']['value'] == pytest.approx(f1_score(y, given, average='macro'))


def test_everything_hateful_passes_the_hateful_cases_only():
    t, _ = answered()
    found = F.functional_metrics(t.assign(toxic_score=1.0, says_hate=True), 20)
    table = F.hatecheck_table(found, 'hate')
    assert table['functionality'].tolist() == ['slur', 'threat', 'praise', 'quote'] and table['accuracy'].tolist() == [
        1,
        1,
        0,
        0,
    ]
    assert table['n'].sum() == len(t) and table['hateful'].tolist() == [True, True, False, False]
    assert F.transfer_metrics(t.assign(toxic_score=1.0), 20)['auroc']['value'] == 0.5


def test_a_model_without_classes_is_asked_for_its_score_only():
    t, _ = answered()
    assert set(F.functional_metrics(t.drop(columns='says_hate'), 20)) == {'toxic'}


# ---- gold


def test_gold_of_corpora_with_answers_of_their_own(corpora_folder):
    posts, test = F.toxic_posts('hatexplain'), load_corpus('hatexplain')['test']
    assert posts['toxic'].tolist() == [int(y != 0) for y in test['label'][:]] and posts['text'].tolist() == [
        ' '.join(w) for w in test['words'][:]
    ]
    share = load_corpus('mhs_share')['test']
    assert F.toxic_posts('mhs_share')['toxic'].tolist() == [int(s >= 0.5) for s in share['score'][:]]
    cases = F.toxic_posts('hatecheck')
    assert cases['kind'].nunique() == 29 and set(cases['community']) == {
        '',
        *load_corpus('hatecheck')['test'].to_pandas()['community'],
    }
    with pytest.raises(HatenbError, match="no split 'train'"):
        F.toxic_posts('hatecheck', 'train')


# ---- runs


def test_a_run_asked_twice_says_the_same_and_keeps_no_texts(data, folder):
    first = F.functional_run(folder, n_boot=50)
    table = pd.read_parquet(folder / 'functional.parquet')
    second = F.functional_run(folder, n_boot=50)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / 'functional.parquet'), table)
    assert {k: first[k] for k in ('id', 'functional', 'transfer')} == {
        k: second[k] for k in ('id', 'functional', 'transfer')
    }
    assert json.loads((folder / 'functional.json').read_text())['functional'] == json.loads(
        json.dumps(second['functional'])
    )
    assert (
        set(first['transfer']) == {'kaggle_tweets'}
        and first['functional']['toxic']['all']['n'] == 16
        and first['name'] == folder.name
        and first['provenance']
    )
    assert 'text' not in table and 'case 3' not in (folder / 'functional.json').read_text()
    assert table.groupby('corpus').size()['hatecheck'] == 16 and table['toxic_score'].between(0, 1).all()


def test_what_a_model_says_of_a_post_does_not_depend_on_the_others(folder):
    ask, texts = F.model_scores(Run(folder).model()), F.toxic_posts('mini')['text'].tolist()
    scores = ask(texts).toxic_score
    np.testing.assert_allclose(ask(texts[::-1]).toxic_score[::-1], scores, atol=1e-5)
    np.testing.assert_allclose(ask(texts[3:4]).toxic_score, scores[3:4], atol=1e-5)


def test_a_model_is_asked_what_its_run_was_asked(folder):
    "Texts that say the words of the corpus get the probabilities of the run's predictions"
    t = Run(folder).predictions('test')
    posts = load_corpus('mini')['test'].to_pandas().set_index('id').loc[t.id]
    assert F.words_of([' '.join(w) for w in posts.words], 'mini') == [[*w] for w in posts.words]
    said = F.model_scores(Run(folder).model(), 40)([' '.join(w) for w in posts.words])
    np.testing.assert_allclose(said.toxic_score, 1 - np.stack(t.label_prob)[:, 0], atol=1e-5 + 2**-12)  # half precision
    assert said.says_hate.tolist() == (np.stack(t.label_prob).argmax(1) == 2).tolist()


def test_runs_with_a_score_and_runs_with_neither(runs):
    scored = F.model_scores(Run(made(runs, 'mini_mhs/score')).model())(['a fine day', 'insult1', ''])
    assert list(scored) == ['toxic_score'] and np.isfinite(scored['toxic_score']).all()
    with pytest.raises(HatenbError, match='neither classes nor a score'):
        F.model_scores(Run(made(runs, 'mini/target')).model())


def test_a_run_that_was_never_finished(data, runs):
    with pytest.raises(HatenbError, match='nothing') as e:
        F.functional_run(runs / 'nothing')
    assert e.value.remedy and not (runs / 'nothing').exists()


def test_no_corpus_at_hand(data, folder):
    for name in ('hatecheck', 'kaggle_tweets'):
        (data / name).rename(data / f'not_{name}')
    with pytest.raises(HatenbError, match='none of the corpora is at hand') as e:
        F.functional_run(folder)
    assert 'HATENB_DATA' in e.value.remedy


def test_a_broken_corpus_is_not_passed_over(data, folder):
    (data / 'kaggle_tweets' / 'train.csv').write_text('id,label,tweet\n1,7,a\n')
    with pytest.raises(HatenbError, match="'7' is none of"):
        F.functional_run(folder)


def test_the_linear_model_learns_its_corpus(data):
    table = F.toxic_posts('mini')
    first, second = (F.linear_scores('mini')(table['text'].tolist()) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert F.transfer_metrics(table.assign(toxic_score=first['toxic_score']), 0)['auroc']['value'] > 0.8
    with pytest.raises(HatenbError, match="no split 'train'"):
        F.linear_scores('hatecheck')


# ---- the command


def test_the_command_prints_and_writes_records(data, folder):
    out = CliRunner().invoke(app, ['functional', str(folder), '--out', str(data / 'out')])
    assert out.exit_code == 0, out.output
    assert 'HateCheck, 16 cases' in out.output and 'kaggle_tweets' in out.output and 'threat' in out.output
    assert json.loads((data / 'out' / f'{folder.name}.json').read_text())['functional']['toxic']['all']['n'] == 16


def test_the_command_asks_linear_models_too(data):
    out = CliRunner().invoke(app, ['functional', '--linear', 'kaggle_tweets', '--out', str(data / 'out')])
    assert out.exit_code == 0, out.output
    assert json.loads((data / 'out' / 'tfidf-kaggle_tweets.json').read_text())['functional'].keys() == {'toxic'}


def test_the_command_wants_something_to_ask():
    assert 'nothing to ask' in str(CliRunner().invoke(app, ['functional']).exception)
