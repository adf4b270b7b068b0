"Seconds of the processor to evaluate a run and to compare two: 10,000 paired resamples of the test posts of HateXplain, all metrics of the label, the targets and the rationales"
import argparse, os, time

from common import keep
from hatenb.evaluation import compare
from hatenb.evaluation import evaluate, load_predictions
from hatenb.studies import results_folder

RUNS = 'minilm-label+target+rationale-bf16-s0', 'minilm-label+target+rationale-seq_bn-bf16-lr0.001-s0'


def timed(f, times: int = 3) -> tuple[dict, object]:
    "The least seconds that passed, and the least of all threads of the processor (what they sum to on a quiet machine, however busy this one is)"
    rows = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        out = f()
        rows.append((time.perf_counter()-wall, time.process_time()-cpu))
    return dict(zip(('seconds', 'cpu_seconds'), (round(min(x), 2) for x in zip(*rows)))), out


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--resamples', type=int, default=10_000)
    args = p.parse_args()
    folders = [results_folder()/'runs'/r/'predictions'/'test.parquet' for r in RUNS]
    reading, tables = timed(lambda: [load_predictions(f, 'test') for f in folders], 1)
    figures = dict(posts=len(tables[0]), runs=list(RUNS), threads=os.environ.get('OMP_NUM_THREADS', 'all'), reading_two_tables_with_their_gold=reading)
    for n in (0, 1000): figures[f'evaluate, {n} resamples'] = timed(lambda: evaluate(tables[0], n))[0]
    figures[f'compare, {args.resamples} resamples'], table = timed(lambda: compare(*tables, count=args.resamples))
    keep('comparison', figures | dict(metrics=len(table), metrics_by_task=table['task'].value_counts().to_dict()))
