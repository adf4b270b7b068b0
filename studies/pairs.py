"""Each run of a study against others, in pairs over the same test posts: against the plain run with its learning rate and steps, against the
plain run of as many steps whose learning rate was chosen on validation (which may be the same), and against single-task runs chosen alike.

Run it when a study has been run and published (`hatenb study studies/NAME.toml --publish results/NAME --records-only`): it needs the predictions in the folder of runs. It writes
results/NAME/pairs.csv, from which the study's page takes the differences: the main metric of each task, `a` of `base`, `b` of `run`, b − a with its interval, p, and p corrected over the
differences of a kind (`against`) in that study.
"""
import sys

import pandas as pd
from scipy.stats import false_discovery_control

from hatenb.comparison import compare
from hatenb.core import settings
from hatenb.evaluation import load_predictions, main_metrics
from hatenb.studies import RunConfig, chosen_run, read_records, results_folder
from hatenb.training import TrainConfig


def plain(record, tasks):
    "The config of these tasks that shares a record's learning rate and budget and is else at its defaults"
    c = record['config']
    return RunConfig(tasks, encoder=c['encoder'], dtype=c['dtype'], method=c['method'], train=TrainConfig(**{k: c['train'][k] for k in ('epochs', 'steps', 'lr')}))


def bases(record, records):
    "What a run is compared with: (kind, record)"
    def like(tasks): return [r for r in records.values() if r['config']['tasks'] == tasks and r['config']['method'] == record['config']['method'] and budget(r) == budget(record) and r['id'] == plain(r, tasks).id]
    tasks, same = record['config']['tasks'], records.get(plain(record, record['config']['tasks']).id)
    if same and same['id'] != record['id']: yield 'plain', same
    alike = like(tasks)
    if alike and (best := chosen_run(alike))['id'] != record['id']: yield 'plain, tuned', best
    for t in tasks if len(tasks) > 1 else ():
        if alone := like([t]): yield 'single task', chosen_run(alone)


def budget(record): return [record['config']['train'][k] for k in ('epochs', 'steps')]


def pairs(study, results, runs):
    "A row a run, a base and a task that both answer"
    records, rows, tables = {r['id']: r for s in {'first', 'training', 'balancing', study} for r in read_records(results/s)}, [], {}
    def table(r):
        if r['id'] not in tables: tables[r['id']] = load_predictions(runs/r['id']/'predictions'/'test.parquet')
        return tables[r['id']]
    for r in read_records(results/study):
        for against, base in bases(r, records):
            first, second = table(base), table(r)
            shared = set(first['corpus']) & set(second['corpus'])                 # a single-task run has posts of one corpus only
            t = compare(*(x[x['corpus'].isin(shared)] for x in (first, second)))
            mains = {tuple(k.rsplit('.', 1)) for k in main_metrics(base['metrics']['test'])}
            rows.append(t[[k in mains for k in zip(t['task'], t['metric'])]].assign(run=r['id'], against=against, base=base['id']))
    out = pd.concat(rows, ignore_index=True)
    out['corrected'] = out.groupby('against')['p'].transform(false_discovery_control)
    return out[['run', 'against', 'base', 'task', 'metric', 'a', 'b', 'difference', 'low', 'high', 'p', 'corrected']]


if __name__ == '__main__':
    for study in sys.argv[1:]:
        t = pairs(study, results_folder(), settings().runs_path)
        t.to_csv(results_folder()/study/'pairs.csv', index=False, float_format='%.6g')
        print(t.to_string())
