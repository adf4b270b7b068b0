"Seconds to merge four rank-16 adapters of an encoder with 12 layers of width 768, by each rule; and what cutting dense results costs against a full SVD"
import argparse, time

import torch

from common import keep
from hatenb.merging import Update, interference, merge_rules, merge_updates, truncate

LAYERS, WIDTH, RANK, SOURCES = 12, 768, 16, 4
MATRICES = dict(query=(1, 1), key=(1, 1), value=(1, 1), attention_output=(1, 1), intermediate=(4, 1), output=(1, 4))  # out, in, in widths
ON_FACTORS = 'average', 'task_arithmetic', 'knots', 'tsvm', 'iso_c'


def source(seed: int) -> dict[str, Update]:
    "Random updates for all layers, which share some directions with those of other seeds"
    g, common = (torch.Generator().manual_seed(s) for s in (seed, 1000))
    def factor(*shape): return torch.randn(shape, generator=g)*.02 + torch.randn(shape, generator=common)*.01
    return {f'{i}.{k}': Update(factor(m*WIDTH, RANK), factor(RANK, n*WIDTH)) for i in range(LAYERS) for k, (m, n) in MATRICES.items()}


def timed(f) -> tuple[dict, object]:
    "Seconds that passed, and seconds of the processor (what a quiet machine would take, with one thread)"
    wall, cpu = time.perf_counter(), time.process_time()
    out = f()
    return dict(seconds=round(time.perf_counter()-wall, 3), cpu_seconds=round(time.process_time()-cpu, 3)), out


if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    sources = [source(s) for s in range(SOURCES)]
    cost = {}
    for rule in (*ON_FACTORS, *(r for r in merge_rules if r not in ON_FACTORS)):
        cost[rule] = {'default rank': timed(lambda: merge_updates(sources, rule))[0]}
        if rule in ON_FACTORS: cost[rule][f'rank {RANK}'] = timed(lambda: merge_updates(sources, rule, rank=RANK))[0]
    cuts = {}
    for k in ('0.query', '0.intermediate'):
        dense = merge_rules['ties']([s[k] for s in sources], [1.]*SOURCES)
        full, svd = timed(lambda: torch.linalg.svd(dense.double(), full_matrices=False))
        ours, cut = timed(lambda: truncate(dense, RANK))
        left = dense.double() - cut.dense().double()
        cuts[k] = dict(shape=list(dense.shape), full_svd=full, ours=ours, error_over_the_smallest_possible=float(left.norm()/svd[1][RANK:].norm()-1))
    pairs = timed(lambda: interference(dict(enumerate(sources[:2]))))[0]
    keep('merging', dict(sources=SOURCES, rank=RANK, layers=LAYERS, width=WIDTH, matrices=len(sources[0]), threads=1, cost=cost, on_factors=list(ON_FACTORS),
                         slowest_on_factors_cpu_seconds=max(t['cpu_seconds'] for r in ON_FACTORS for t in cost[r].values()),
                         cutting_a_dense_matrix=cuts, interference_of_two_sources=pairs))
