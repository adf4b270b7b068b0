"What a study compares with what: hand-made records, hand-made predictions, and what is noticed when a record changes"

import dataclasses, json, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control
from sklearn.metrics import f1_score

from hatenb.comparisons import (
    base_of,
    compare_study,
    comparisons_table,
    find_predictions,
    has_settings,
    recompute,
    sides_of,
    write_gold,
)
from hatenb.core import HatenbError, write_json
from hatenb.evaluation import compare, evaluate, load_predictions, save_predictions
from hatenb.corpora import load_corpus
from hatenb.runs import Run, RunConfig, RunFolder, decided_values
from hatenb.studies import Study, publish, read_study, results_folder, study_path, study_records, study_split
from hatenb.training import TrainConfig

TASKS = 'mini/label', 'mini/target'
PLAIN = dict(name='plain', same=['train.lr', 'train.epochs', 'adapter'])
TUNED = dict(name='plain, tuned', same=['train.epochs', 'adapter'], free=['train.lr'])
SINGLE = dict(name='single task', same=['train.epochs', 'adapter'], free=['train.lr'], apart=True)


def record(score, tasks=TASKS, **config):
    "A record with the same score for everything"
    c = RunConfig(tasks, **config)
    values = {
        t: {m: dict(value=score, low=None, high=None) for m in ('macro_f1', 'auroc', 'average_precision')}
        for t in tasks
    }
    return dict(id=c.id, name=c.name, config=c.to_dict(), metrics=dict(validation=values, test=values))


def lr(x, **more):
    return dict(train=TrainConfig(lr=x, **more))


SLOW, FAST, BEST = record(0.5, **lr(1e-4)), record(0.6, **lr(1e-2)), record(0.7, **lr(1e-3))
RULE = record(0.8, balancing='famo', **lr(1e-2))
LONGER = record(0.9, **lr(1e-3, epochs=9))
ALONE = [record(s, tasks=(t,), **lr(x)) for t in TASKS for s, x in ((0.6, 1e-3), (0.5, 1e-2))]
BOTTLENECK = record(0.95, adapter='seq_bn', **lr(1e-2))
RECORDS = [SLOW, FAST, BEST, RULE, LONGER, *ALONE, BOTTLENECK]


def pairs(comparison, records=RECORDS):
    return [([r['name'] for r in a], [r['name'] for r in b]) for a, b, _ in sides_of(comparison, records)]


def test_the_plain_run_is_like_it_in_what_is_named_and_else_at_its_defaults():
    assert pairs(PLAIN) == [([RULE['name']], [FAST['name']])]  # others would be compared with themselves


def test_of_several_the_best_on_validation_unless_it_is_the_run_itself():
    found = dict((a[0], b[0]) for a, b in pairs(TUNED))
    best = ALONE[0]['name'], ALONE[2]['name']
    assert found == {
        SLOW['name']: BEST['name'],
        FAST['name']: BEST['name'],
        RULE['name']: BEST['name'],
        ALONE[1]['name']: best[0],
        ALONE[3]['name']: best[1],
    }


def test_apart_there_is_a_base_for_each_task():
    found = [(a[0], b[0]) for a, b in pairs(dict(SINGLE, runs=dict(balancing='famo')))]
    assert found == [(RULE['name'], ALONE[0]['name']), (RULE['name'], ALONE[2]['name'])]


def test_merged_runs_are_compared_with_a_base_for_each_task():
    merged = [
        record(s, strategy='merge', strategy_options=dict(rule=r), sources=[dict(tasks=[t]) for t in TASKS])
        for s, r in ((0.4, 'ties'), (0.6, 'knots'))
    ]
    c = dict(name='merge', runs=dict(strategy='merge'), base=dict(strategy='single'), free=['all'], apart=True)
    assert [a[0] for a, _ in pairs(c, [*RECORDS, *merged])] == [r['name'] for r in merged for _ in TASKS]
    assert has_settings(
        merged[0], dict(strategy=['merge', 'fuse'], strategy_options=dict(rule='ties'))
    ) and not has_settings(BEST, dict(strategy='single'))


def test_seeds_stand_together_and_need_the_same_seeds():
    runs = [record(0.5, balancing='famo', seed=s) for s in (0, 1)]
    bases = [record(0.5, seed=s) for s in (1, 0, 2)]
    assert pairs(dict(name='plain'), [*runs, *bases]) == [
        ([r['name'] for r in runs], [bases[1]['name'], bases[0]['name']])
    ]
    assert pairs(dict(name='plain'), [*runs, bases[0]]) == []
    assert base_of(runs, list(TASKS), dict(name='plain'), [*runs, *bases])[0]['config']['seed'] == 0


# ---- from predictions that are made by hand


def predictions(right):
    "Answers to the label of mini's test posts, of which so many are right"
    posts = load_corpus('mini')['test']
    y = np.array(posts['label'])
    said = np.where(np.arange(len(y)) < right * len(y), y, (y + 1) % 3)
    return pd.DataFrame(
        dict(
            corpus='mini',
            id=posts['id'],
            label=y,
            label_dist=posts['label_dist'],
            target=posts['target'],
            label_prob=list((np.eye(3)[said] * 0.7 + 0.1).astype(np.float32)),
        )
    )


def made_by_hand(folder, config, right):
    "A run's folder with hand-made predictions, and its record"
    place = RunFolder(folder / config.name)
    table = predictions(right)
    for split in ('validation', 'test'):
        save_predictions(table, place.predictions_file(split))
    made_by = dict(commit=None, dirty=False, packages={}, python='', system='', device='cpu', hardware='', threads=1)
    write_json(
        place.record_file,
        dict(
            id=config.id,
            name=config.name,
            config=config.to_dict(),
            metrics={s: evaluate(table, 20) for s in ('validation', 'test')},
            corpora={'mini': dict(checksum='', posts={})},
            cost={},
            history=[],
            files=place.digests(),
            provenance=made_by,
        ),
    )
    return {**Run(place.folder).record, 'folder': str(place.folder)}


STUDY = Study.from_dict(
    dict(
        name='hand',
        runs=[dict(tasks=['mini/label'], baseline=['majority', 'tfidf'])],
        comparisons=[dict(name='majority', runs=dict(baseline='tfidf'), base=dict(baseline='majority'))],
    )
)


@pytest.fixture
def hand(tmp_path):
    records = [made_by_hand(tmp_path / 'runs', c, right) for c, right in zip(STUDY.runs, (0.4, 0.8))]
    publish(records, tmp_path / 'results', predictions=False, study=STUDY)
    return tmp_path, records


def test_differences_are_those_of_compare_on_the_predictions(hand):
    path, records = hand
    (found,) = compare_study(STUDY, path / 'results', path / 'runs')
    (row,) = found['rows']
    assert (row['runs'], row['base']) == ([records[1]['name']], [records[0]['name']])
    by_hand = compare(*(load_predictions(path / 'runs' / r['name'] / 'predictions' / 'test.parquet') for r in records))
    table = comparisons_table('hand', path / 'results').set_index('metric')
    r = by_hand.set_index('metric').loc['macro_f1']
    for k in ('a', 'b', 'difference', 'low', 'high', 'p'):
        assert table.loc['macro_f1', k] == pytest.approx(r[k], abs=1e-9), k
    f1 = [f1_score(t.label, np.stack(t.label_prob).argmax(1), average='macro') for t in map(predictions, (0.4, 0.8))]
    assert table.loc['macro_f1', 'difference'] == pytest.approx(f1[1] - f1[0])
    assert list(table.index) == ['macro_f1'] and table.loc['macro_f1', 'finding'] == 'better'


def test_what_was_compared_is_kept_when_predictions_go_and_dropped_when_a_record_changes(hand):
    path, records = hand
    before = compare_study(STUDY, path / 'results', path / 'runs')
    for r in records:
        (path / 'runs' / r['name'] / 'predictions' / 'test.parquet').unlink()
    assert json.loads(json.dumps(compare_study(STUDY, path / 'results', path / 'runs'))) == json.loads(
        json.dumps(before)
    )
    file = path / 'results' / 'runs' / records[1]['name'] / 'record.json'
    other = Run(file.parent).record
    other['metrics']['test']['mini/label']['macro_f1']['value'] -= 0.1
    write_json(file, other)
    with pytest.warns(UserWarning, match='stale'):
        assert not len(comparisons_table('hand', path / 'results'))
    with pytest.warns(UserWarning, match='for want of predictions'):
        (found,) = compare_study(STUDY, path / 'results', path / 'runs')
    assert found['rows'] == []


def test_publishing_again_keeps_comparisons_and_each_run_is_there_once(hand):
    path, records = hand
    compare_study(STUDY, path / 'results', path / 'runs')
    publish(records, path / 'results', predictions=False, study=STUDY)
    publish(
        records[:1], path / 'results', predictions=False, study=dataclasses.replace(STUDY, name='other', comparisons=[])
    )
    assert read_study('hand', path / 'results')['comparisons'] and len(list((path / 'results' / 'runs').iterdir())) == 2
    assert [r['name'] for r in study_records('hand', 'other', results=path / 'results')] == [r['name'] for r in records]
    with pytest.raises(HatenbError, match='missing'):
        study_records('nowhere', results=path / 'results')


@pytest.mark.parametrize(
    'c,words',
    [
        (dict(runs={}), "'name' is missing"),
        (dict(name='x', like=['train']), "'like'"),
        (dict(name='x', same='train'), 'is not a list'),
        (dict(name=5), 'is not text'),
    ],
)
def test_a_comparison_that_cannot_be_is_told(c, words):
    with pytest.raises(HatenbError, match=words):
        Study.from_dict(dict(name='s', runs=[dict(tasks=['mini/label'])], comparisons=[c]))


def test_what_is_published_holds():
    "The project's own comparisons: none is stale, all are declared"
    for file in (Path(__file__).parent.parent / 'studies').glob('*.toml'):
        if not study_path(file.stem).exists(): continue     # a plan that is not carried out yet
        study, kept = Study.load(file), read_study(file.stem)
        assert {c['name'] for c in kept['comparisons']} <= {c['name'] for c in study.comparisons}
        table = comparisons_table(file.stem)
        assert len(table) == sum(len(r['table']) for c in kept['comparisons'] for r in c['rows'])


def values(results):
    "Every number of the records and comparisons below a folder"
    runs = {f.parent.name: json.loads(f.read_text()) for f in results.glob('runs/*/record.json')}
    figures = {n: {k: r[k] for k in ('id', 'config', 'metrics', 'decided')} for n, r in runs.items()}
    return figures, read_study('hand', results)


def test_all_figures_come_again_from_predictions_alone(hand, monkeypatch):
    path, records = hand
    results = path / 'results'
    publish(records, results, study=STUDY)
    write_gold('mini', results)
    recompute(STUDY, results, 20)
    before = values(results)
    shutil.rmtree(results / 'studies')
    for f in results.glob('runs/*/record.json'):
        f.unlink()
    monkeypatch.setenv('HATENB_DATA', str(path / 'nowhere'))
    recompute(STUDY, results, 20)
    assert values(results) == before
    table = comparisons_table('hand', results).set_index('metric')
    assert table.loc['macro_f1', 'finding'] == 'better'
    known = {s: ms['mini/label'] for s, ms in records[0]['metrics'].items()}
    (found,) = (r['metrics'] for r in before[0].values() if r['id'] == records[0]['id'])
    for s in known:
        assert found[s]['mini/label']['accuracy'] == known[s]['accuracy']


def test_a_run_without_predictions_keeps_its_record_and_one_without_both_is_left_out(hand):
    path, records = hand
    results = path / 'results'
    publish(records, results, study=STUDY)
    write_gold('mini', results)
    shutil.rmtree(results / 'runs' / records[0]['name'] / 'predictions')
    shutil.rmtree(results / 'runs' / records[1]['name'])
    (found,) = recompute(STUDY, results, 20)
    assert found['rows'] == [] and read_study('hand', results)['runs'] == [records[0]['name']]


def test_all_comparisons_of_a_study_are_corrected_together(hand):
    path, records = hand
    near = dataclasses.replace(STUDY.runs[1], limit=99)
    records = [*records, made_by_hand(path / 'runs', near, 0.43)]
    again = dict(STUDY.comparisons[0], name='once more')
    twice = dataclasses.replace(STUDY, runs=[*STUDY.runs, near], comparisons=[*STUDY.comparisons, again])
    publish(records, path / 'results', predictions=False, study=twice)
    rows = [x for c in compare_study(twice, path / 'results', path / 'runs') for r in c['rows'] for x in r['table']]
    found, p = [x['corrected'] for x in rows], [x['p'] for x in rows]
    assert len(rows) == 4 and found == pytest.approx(list(false_discovery_control(p))) and found != pytest.approx(p)


def test_predictions_of_a_baseline_that_was_made_again_are_not_its_own(hand):
    "Without weights the metrics tell: the published predictions go when the record of another making comes"
    path, records = hand
    results = path / 'results'
    publish(records, results, study=STUDY)
    write_gold('mini', results)
    assert find_predictions(records[1], [results / 'runs'], results) is not None
    again = made_by_hand(path / 'later', STUDY.runs[1], 0.6)
    assert find_predictions(again, [results / 'runs'], results) is None
    publish([records[0], again], results, predictions=False, study=STUDY)
    assert find_predictions(again, [results / 'runs'], results) is None
    assert find_predictions(again, [path / 'later'], results) is not None


def test_what_cannot_be_compared_again_stays(hand):
    path, records = hand
    results = path / 'results'
    publish(records, results, study=STUDY)
    write_gold('mini', results)
    recompute(STUDY, results, 20)
    before = read_study('hand', results)
    shutil.rmtree(results / 'runs' / records[0]['name'] / 'predictions')
    recompute(STUDY, results, 20)
    assert before['comparisons'][0]['rows'] and read_study('hand', results) == before


def made_again(record):
    "The record of a run's folder, as if it had been made again: of other weights"
    file = Path(record['folder']) / 'record.json'
    other = json.loads(file.read_text())
    other['files']['heads.safetensors'] = 64 * '0'
    write_json(file, other)
    return {**other, 'folder': record['folder']}


def test_predictions_of_another_making_do_not_stand_for_a_record(hand):
    path, records = hand
    published = study_records('hand', results=path / 'results')[1]
    assert find_predictions(published, [path / 'runs']) is not None
    made_again(records[1])
    assert find_predictions(published, [path / 'runs']) is None


def test_predictions_of_another_making_do_not_stay_beside_a_record(hand):
    path, records = hand
    publish(records, path / 'results', study=STUDY)
    publish([made_again(records[0]), records[1]], path / 'results', predictions=False, study=STUDY)
    assert [(path / 'results' / 'runs' / r['name'] / 'predictions').exists() for r in records] == [False, True]


def test_test_posts_are_held_back_until_all_runs_are_there(tmp_path):
    one = dict(tasks=['mini/label'], baseline=['majority', 'tfidf'])
    parts = dict(name='hand', comparisons=STUDY.comparisons, hold_test=True)
    whole = Study.from_dict(parts | dict(runs=[one, dict(tasks=['mini/label'], seed=7, baseline='majority')]))
    records = [made_by_hand(tmp_path / 'runs', c, right) for c, right in zip(whole.runs, (0.4, 0.8, 0.4))]
    for r in records:
        (tmp_path / 'runs' / r['name'] / 'predictions' / 'test.parquet').rename(tmp_path / r['name'])
    publish(records[:2], tmp_path / 'results', predictions=False, study=whole)
    (found,) = compare_study(whole, tmp_path / 'results', tmp_path / 'runs')
    assert [r['split'] for r in found['rows']] == ['validation']
    assert study_split(read_study('hand', tmp_path / 'results')) == 'validation'
    assert len(comparisons_table('hand', tmp_path / 'results'))
    publish(records, tmp_path / 'results', predictions=False, study=whole)
    for r in records:
        (tmp_path / r['name']).rename(tmp_path / 'runs' / r['name'] / 'predictions' / 'test.parquet')
    (found,) = compare_study(whole, tmp_path / 'results', tmp_path / 'runs')
    assert [r['split'] for r in found['rows']] == ['test']


def test_every_number_of_the_main_study_comes_again_from_its_predictions(tmp_path, monkeypatch):
    "Records gone, no corpora: what the page of the answer says is computed from what is committed"
    study, results = Study.load(Path(__file__).parent.parent / 'studies' / 'main.toml'), results_folder()
    published = read_study('main', results)
    for n in published['runs']:
        shutil.copytree(results / 'runs' / n / 'predictions', tmp_path / 'runs' / n / 'predictions')
    shutil.copytree(results / 'gold', tmp_path / 'gold')
    monkeypatch.setenv('HATENB_DATA', str(tmp_path / 'nowhere'))
    found = recompute(study, tmp_path, n_boot=0)
    split = study_split(published)
    for n in published['runs']:
        old, new = (decided_values(Run(p / 'runs' / n).record, split) for p in (results, tmp_path))
        for task, metrics in old.items():
            for m, v in metrics.items():
                if isinstance(v, dict) and v.get('value') is not None:
                    assert new[task][m]['value'] == pytest.approx(v['value'], abs=1e-6), (n, task, m)   # processors add up in other orders
    assert [(c['name'], len(c['rows'])) for c in found] == [(c['name'], len(c['rows'])) for c in published['comparisons']]
    for c, known in zip(found, published['comparisons']):
        for row, old in zip(c['rows'], known['rows']):
            assert (row['runs'], row['base']) == (old['runs'], old['base'])
            for a, b in zip(row['table'], old['table']):
                for k in ('a', 'b', 'difference', 'low', 'high', 'p', 'corrected', 'equivalence_corrected'):
                    assert a[k] == pytest.approx(b[k], abs=1e-6), (row['runs'][0], a['task'], k)


@pytest.mark.parametrize('spoil,words', [('gold', 'cannot be read'), ('post', '1 posts have no gold'), ('file', 'not the one')])
def test_what_cannot_be_computed_again_is_told(hand, spoil, words):
    path, records = hand
    results = path / 'results'
    publish(records, results, study=STUDY)
    write_gold('mini', results)
    gold = results / 'gold' / 'mini.parquet'
    if spoil == 'gold':
        gold.write_bytes(b'no table')
    if spoil == 'post':
        table = pd.read_parquet(gold)
        table[table['id'] != predictions(0.4)['id'][0]].to_parquet(gold)
    if spoil == 'file':
        other = results / 'runs' / records[0]['name'] / 'predictions' / 'test.parquet'
        save_predictions(predictions(0.5).drop(columns=['label', 'label_dist', 'target']), other)
    before = [(f, f.read_bytes()) for f in results.rglob('*.json')]
    with pytest.raises(HatenbError, match=words):
        recompute(STUDY, results, 20)
    assert [(f, f.read_bytes()) for f in results.rglob('*.json')] == before
