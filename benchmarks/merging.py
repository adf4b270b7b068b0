"""Seconds to merge four rank-16 adapters of an encoder with 12 layers of width 768, by each rule that needs no posts

Rules that look at single entries are also timed the plain way, on the matrices of one layer, in turn with ours: a sort for
what stays, a stack of all sources for the election, and all eigenvectors for the low rank of the result.
"""
import argparse, statistics, time

import torch

from common import keep
from hatenb.merging import Update, interference, merge_rules, merge_updates, truncate

LAYERS, WIDTH, RANK, SOURCES = 12, 768, 16, 4
MATRICES = dict(query=(1, 1), key=(1, 1), value=(1, 1), attention_output=(1, 1), intermediate=(4, 1), output=(1, 4))
DENSITY = dict(magnitude_prune=.2, ties=.2, dare_linear=.5, dare_ties=.5)
ROUNDS = 3


def source(seed: int) -> dict[str, Update]:
    "Random updates for all layers, which share some directions with those of other seeds"
    g, common = (torch.Generator().manual_seed(s) for s in (seed, 1000))
    def factor(*shape): return torch.randn(shape, generator=g)*.02 + torch.randn(shape, generator=common)*.01
    return {f'{i}.{k}': Update(factor(m*WIDTH, RANK), factor(RANK, n*WIDTH))
            for i in range(LAYERS) for k, (m, n) in MATRICES.items()}


def plain_thin(x, density, generator):
    "The largest entries by a sort, or random ones"
    if generator is not None: return x*(torch.rand(x.shape, generator=generator) < density)/density
    out, flat = torch.zeros(x.numel()), x.flatten()
    at = flat.abs().topk(round(density*x.numel()), sorted=False).indices
    out[at] = flat[at]
    return out.view_as(x)


def plain_election(parts):
    stack = torch.stack(parts)
    agree = (stack*stack.sum(0) > 0)*1.
    return (agree*stack).sum(0)/agree.sum(0).clamp(min=1e-30)


def plain_merge(sources: list[dict[str, Update]], rule: str) -> dict[str, Update]:
    "What `merge_updates` does for a rule of `DENSITY` with equal coefficients, the plain way"
    out = {}
    for k in sources[0]:
        drawing = 'generators' in merge_rules[rule].needs
        generators = [torch.Generator().manual_seed(i) if drawing else None for i in range(len(sources))]
        parts = [plain_thin(s[k].dense(), DENSITY[rule], g) for s, g in zip(sources, generators)]
        merged = plain_election(parts) if 'ties' in rule else sum(parts)/len(parts)
        out[k] = truncate(merged, RANK*SOURCES)
    return out


def timed(f) -> tuple[dict, object]:
    "Seconds that passed, and seconds of all cores together"
    wall, cpu = time.perf_counter(), time.process_time()
    out = f()
    return dict(seconds=round(time.perf_counter()-wall, 3), cpu_seconds=round(time.process_time()-cpu, 3)), out


def median(times: list[dict]) -> dict: return {k: statistics.median(t[k] for t in times) for k in times[0]}


if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sources = [source(s) for s in range(SOURCES)]
    factors = [r for r, f in merge_rules.items() if f.cost == 'factors']
    cost = {}
    for rule in (*factors, *DENSITY):
        merge_updates([{k: u for k, u in s.items() if k.startswith('0.')} for s in sources], rule)       # warms up
        cost[rule] = {'default rank': median([timed(lambda: merge_updates(sources, rule))[0] for _ in range(ROUNDS)])}
        if rule in factors: cost[rule][f'rank {RANK}'] = timed(lambda: merge_updates(sources, rule, rank=RANK))[0]
    layer, plain = [{k: u for k, u in s.items() if k.startswith('0.')} for s in sources], {}
    for rule in DENSITY:
        pairs = [(timed(lambda: plain_merge(layer, rule)), timed(lambda: merge_updates(layer, rule))) for _ in range(ROUNDS)]
        ratios = [p[0]['cpu_seconds']/o[0]['cpu_seconds'] for p, o in pairs]
        plain[rule] = dict(plain=median([p[0] for p, _ in pairs]), ours=median([o[0] for _, o in pairs]),
                           times_as_fast=round(statistics.median(ratios), 2))
    cuts = {}
    for k in ('0.query', '0.intermediate'):
        dense = merge_rules['ties']([s[k] for s in sources], [1.]*SOURCES)
        full, svd = timed(lambda: torch.linalg.svd(dense.double(), full_matrices=False))
        ours, cut = timed(lambda: truncate(dense, RANK*SOURCES, [s[k] for s in sources]))
        left = dense.double() - cut.dense().double()
        best = svd[1][RANK*SOURCES:].norm()
        cuts[k] = dict(shape=list(dense.shape), full_svd=full, ours=ours,
                       error_over_the_smallest_possible=float(left.norm()/best-1))
    pairs = timed(lambda: interference(dict(enumerate(sources[:2]))))[0]
    slowest = max(t['cpu_seconds'] for r in factors for t in cost[r].values())
    keep('merging', dict(sources=SOURCES, rank=RANK, layers=LAYERS, width=WIDTH, matrices=len(sources[0]),
                         threads=torch.get_num_threads(), rounds=ROUNDS, cost=cost, on_factors=factors, slowest_on_factors_cpu_seconds=slowest,
                         entry_rules_against_the_plain_way_on_one_layer=plain, cutting_a_dense_matrix=cuts,
                         interference_of_two_sources=pairs))
