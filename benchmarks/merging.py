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


def timed(f):
    start = time.perf_counter()
    out = f()
    return time.perf_counter()-start, out


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--repeats', type=int, default=2)
    parser.add_argument('--threads', type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    sources = [source(s) for s in range(SOURCES)]
    def best(f): return min(timed(f)[0] for _ in range(a.repeats))
    seconds = {r: dict(exact_or_rank_64=best(lambda: merge_updates(sources, r)), rank_16=best(lambda: merge_updates(sources, r, rank=RANK))) for r in merge_rules}
    dense = {k: merge_updates([{k: s[k]} for s in sources], 'ties', rank=2*WIDTH)[k].dense() for k in ('0.query', '0.intermediate')}
    cuts = {}
    for k, x in dense.items():
        full, svd = timed(lambda: torch.linalg.svd(x.double(), full_matrices=False))
        ours, cut = timed(lambda: truncate(x, RANK))
        left = x.double() - cut.dense().double()
        cuts[k] = dict(shape=list(x.shape), full_svd_seconds=full, seconds=ours, error_over_smallest_possible=float(left.norm()/svd[1][RANK:].norm()-1))
    keep('merging', dict(sources=SOURCES, rank=RANK, layers=LAYERS, width=WIDTH, matrices=len(sources[0]), seconds=seconds, on_factors=list(ON_FACTORS),
                         slowest_on_factors=max(max(seconds[r].values()) for r in ON_FACTORS), cutting_a_dense_matrix=cuts,
                         interference_seconds=best(lambda: interference(dict(enumerate(sources[:2]))))))
