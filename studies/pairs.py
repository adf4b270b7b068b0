"""Each run of a study against others, in pairs over the same test posts: against the plain run with its learning rate and steps, against the
plain run of as many steps whose learning rate was chosen on validation (which may be the same), and against single-task runs chosen alike.

Run it when a study has been run and published (`hatenb study studies/NAME.toml --publish results/NAME --records-only`). It writes results/NAME/pairs.csv, from which the study's page takes the
differences: the main metric of each task, `a` of `base`, `b` of `run`, b − a with its interval, p, and p corrected over the differences of a kind (`against`) in that study. Predictions are
those in the folder of runs, or published ones; where they are gone, the rows of an earlier time are kept as long as the records say the same.
"""
import sys

import pandas as pd
from scipy.stats import false_discovery_control

from hatenb.evaluation import compare
from hatenb.core import settings
from hatenb.evaluation import load_predictions, main_metrics
from hatenb.studies import RunConfig, chosen_run, read_records, results_folder
from hatenb.training import TrainConfig

COLUMNS = 'run', 'against', 'base', 'task', 'metric', 'a', 'b', 'difference', 'low', 'high', 'p'


def plain(record, tasks):
    "The config of these tasks that shares a record's learning rate and budget and is else at its defaults"
    c = record['config']
    return RunConfig(tasks, encoder=c['encoder'], dtype=c['dtype'], method=c['method'], train=TrainConfig(**{k: c['train'][k] for k in ('epochs', 'steps', 'lr')}))


def budget(record): return [record['config']['train'][k] for k in ('epochs', 'steps')]


def bases(record, records):
    "What a run is compared with: (kind, record)"
    def like(tasks): return [r for r in records.values() if r['config']['tasks'] == tasks and r['config']['method'] == record['config']['method'] and budget(r) == budget(record) and r['id'] == plain(r, tasks).id]
    tasks, same = record['config']['tasks'], records.get(plain(record, record['config']['tasks']).id)
    if same and same['id'] != record['id']: yield 'plain', same
    alike = like(tasks)
    if alike and (best := chosen_run(alike))['id'] != record['id']: yield 'plain, tuned', best
    for t in tasks if len(tasks) > 1 else ():
        if alone := like([t]): yield 'single task', chosen_run(alone)


def predictions(run, folders):
    "A run's predictions of the test posts, or None"
    found = [f for folder in folders if (f := folder/run/'predictions'/'test.parquet').exists()]
    return load_predictions(found[0]) if found else None


def difference(first, second, base):
    "A row a task that both answer: its main metric in pairs"
    shared = set(first['corpus']) & set(second['corpus'])                     # a single-task run has posts of one corpus only
    t = compare(*(x[x['corpus'].isin(shared)] for x in (first, second)))
    mains = {tuple(k.rsplit('.', 1)) for k in main_metrics(base['metrics']['test'])}
    return t[[k in mains for k in zip(t['task'], t['metric'])]]


def still_true(rows, first, second):
    "Whether the values of both runs are those of their records, which may have been made again since"
    values = lambda r, p: r['metrics']['test'].get(p.task, {}).get(p.metric, {}).get('value')
    return all(values(r, p) is not None and abs(getattr(p, k)-values(r, p)) < 1e-5 for p in rows.itertuples() for k, r in (('a', first), ('b', second)))


def pairs(study, results, runs):
    "All rows of a study"
    records = {r['id']: r for s in {'first', 'training', 'balancing', study} for r in read_records(results/s)}
    path, rows, tables = results/study/'pairs.csv', [], {}
    nothing = pd.DataFrame(columns=COLUMNS)
    before = {k: g for k, g in pd.read_csv(path).groupby(['run', 'base'])} if path.exists() else {}
    for r in read_records(results/study):
        for against, base in bases(r, records):
            for i in (r['id'], base['id']):
                if i not in tables: tables[i] = predictions(i, [runs, *results.glob('*')])
            first, second = tables[base['id']], tables[r['id']]
            if first is not None and second is not None: t = difference(first, second, base)
            elif still_true(t := before.get((r['id'], base['id']), nothing).drop_duplicates(['task', 'metric']), base, r) and len(t): pass
            else: print(f'left out, for want of predictions: {r["id"]} against {base["id"]}'); continue
            rows.append(t.assign(run=r['id'], against=against, base=base['id']))
    out = pd.concat(rows, ignore_index=True)[[*COLUMNS]]
    out['corrected'] = out.groupby('against')['p'].transform(false_discovery_control)
    return out


if __name__ == '__main__':
    for study in sys.argv[1:]:
        t = pairs(study, results_folder(), settings().runs_path)
        t.to_csv(results_folder()/study/'pairs.csv', index=False, float_format='%.6g')
        print(t.to_string())
