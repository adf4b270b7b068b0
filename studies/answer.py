"""The front page's comparison: of each way to share the encoder the run that did best on validation, against the best adapters apart, in pairs over the same test posts.

Run it when the studies named below have been run and published (`hatenb study studies/NAME.toml --publish results/NAME --records-only`). It joins the chosen adapters apart to one run, for which
it needs them in the folder of runs, and writes to results/answer what `nbs/19_answer.ipynb` is drawn from: that run's record, a table of differences for each way, and the studies' names. Where the
predictions of a way's run are gone, its table of an earlier time is kept as long as the records say the same.
"""
import shutil

import pandas as pd

from hatenb.evaluation import compare
from hatenb.core import HatenbError, settings, write_json
from hatenb.evaluation import load_predictions
from hatenb.reports import best_by_way
from hatenb.studies import RunConfig, publish, read_records, results_folder, run
from pairs import predictions, still_true

STUDIES = 'first', 'merging', 'composing', 'balancing', 'training', 'quantization', 'combined'
TASKS = 'hatexplain/label', 'hatexplain/target', 'hatexplain/rationale'


def table(record, apart, base, path, folders):
    "The differences of a run to the adapters apart"
    t = predictions(record['id'], folders)
    if t is not None: return compare(base, t)
    if path.exists() and still_true(old := pd.read_csv(path), apart, record): return old
    raise HatenbError('the predictions of the chosen run are gone', record['id'], 'Run its study again.')


if __name__ == '__main__':
    results, runs = results_folder(), settings().runs_path
    names = [s for s in STUDIES if (results/s).exists()]
    chosen = {way: rs for way, (rs, _) in best_by_way([r for s in names for r in read_records(results/s)], TASKS).items()}
    apart = run(RunConfig(tasks=TASKS, method='join', sources=tuple(sorted(r['id'] for r in chosen['one adapter a task']))), runs_path=runs)
    base = load_predictions(runs/apart['id']/'predictions'/'test.parquet')
    paths = {way: results/'answer'/f'{way.replace(" ", "_")}.csv' for way in chosen if way not in ('one adapter a task', 'majority')}
    tables = {way: table(chosen[way][0], apart, base, path, [runs, *results.glob('*')]) for way, path in paths.items()}
    shutil.rmtree(results/'answer', ignore_errors=True)
    publish([{**apart, 'folder': str(runs/apart['id'])}], results/'answer', predictions=False)
    for way, t in tables.items(): t.to_csv(paths[way], index=False, float_format='%.6g')
    write_json(results/'answer'/'studies.json', names)
    for way, rs in chosen.items(): print(f'{way}: {", ".join(r["id"] for r in rs)}')
