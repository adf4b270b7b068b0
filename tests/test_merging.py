"Merging: properties over ranks, scalings and shapes, agreement with peft and with the papers' algorithms on dense matrices, and what is refused"
import itertools, math

import numpy as np
import peft, pytest, torch
from hypothesis import given, settings, strategies as st
from peft.utils import merge_utils
from torch import nn
from transformers import (BertConfig, BertModel, BertTokenizerFast, ModernBertConfig, ModernBertModel, MPNetConfig,
                          MPNetModel)

from hatenb.core import HatenbError
from hatenb.encoder import adapter_methods, load_encoder, tensor_digest
from hatenb.merging import (
    Update, add_lora, average, concatenate, core_space_merge, cosine, dare_linear, dare_ties, distance, elected_mean,
    entries, inner, input_grams, interference, iso_c, iso_cts, knots, lora_updates, magnitude_prune, merge_adapters,
    merge_rules, merge_updates, nearest_orthogonal, null_space_coefficients, null_space_ratio, regmean, rule_options,
    merge_rules_table, sign_conflicts, start_orthogonal, start_shared, subspace_overlap, svd_of, ties, trim, truncate,
    truncation_errors, tsvm, updates_added, weighted_mean)

shapes = st.tuples(st.integers(2, 24), st.integers(2, 24))
seeds = st.integers(0, 999)
FREE = [r for r, f in merge_rules.items() if f.cost != 'posts']          # those that need no posts
DRAWN = [r for r in FREE if 'generators' in merge_rules[r].needs]
FLAT = 'iso_c', 'iso_cts'                                               # change the spectrum of one source too
quick = settings(max_examples=60, deadline=None)


def whole(rule):
    "Options under which a rule thins nothing out"
    return dict(density=1.) if 'density' in rule_options(rule) else {}


def update(shape, rank, seed, scale=1.):
    g = torch.Generator().manual_seed(seed)
    return Update(scale*torch.randn(shape[0], rank, generator=g), torch.randn(rank, shape[1], generator=g))


def one(updates, rule='average', *args, **options): return merge_updates([{'x': u} for u in updates], rule, *args, **options)['x']


def close(a, b, tolerance=1e-5):
    a, b = (x.dense() if isinstance(x, Update) else x for x in (a, b))
    a, b = a.double(), b.double()
    assert a.isfinite().all() and b.isfinite().all()
    assert (a-b).norm() <= tolerance*max(1., float(b.norm())), f'relative error {float((a-b).norm()/b.norm()):.2e}'


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "Small products gain nothing from a second thread"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


# ---- updates

@given(shapes, st.lists(st.tuples(st.integers(1, 6), st.floats(.1, 4)), min_size=1, max_size=4), seeds)
@quick
def test_concatenation_is_the_weighted_sum(shape, parts, seed):
    updates, weights = [update(shape, r, seed+i) for i, (r, _) in enumerate(parts)], [w for _, w in parts]
    total = sum(w*u.dense().double() for w, u in zip(weights, updates))
    close(concatenate(updates, weights), total)
    close(one(updates, 'task_arithmetic', weights, scale=.5), total/2)
    close(one(updates, 'average', weights), total/sum(weights))
    assert concatenate(updates).rank == sum(r for r, _ in parts)


@given(shapes, st.integers(1, 8), st.integers(1, 6), seeds)
@quick
def test_truncation_loses_the_tail_of_the_singular_values(shape, rank, kept, seed):
    u = update(shape, rank, seed)
    tail = torch.linalg.svdvals(u.dense().double())[kept:].norm()
    for source in (u, u.dense(), Update(torch.cat([u.B, u.B*0], 1), torch.cat([u.A, u.A]))):
        cut = truncate(source, kept)
        assert cut.rank <= kept
        assert abs(float((cut.dense()-u.dense()).double().norm()-tail)) <= 1e-5*float(u.dense().norm())


@pytest.mark.parametrize('shape', [(40, 60), (60, 40), (50, 50)])
@pytest.mark.parametrize('decay', [1., .5, .1])
def test_truncation_of_a_dense_matrix_is_that_of_an_exact_svd(shape, decay):
    "Also where singular values fall over many orders of magnitude, which a Gram matrix squares"
    g = torch.Generator().manual_seed(0)
    k = min(shape)
    u, v = (torch.linalg.qr(torch.randn(n, k, generator=g).double())[0] for n in shape)
    x = u*decay**torch.arange(k) @ v.T
    for rank in (1, 8, k):
        a, s, b = torch.linalg.svd(x)
        best = a[:, :rank]*s[:rank] @ b[:rank]
        if decay < 1: close(truncate(x.float(), rank), best, 1e-6)
        assert abs(float((truncate(x.float(), rank).dense().double()-x).norm()-(best-x).norm())) < 1e-6*float(x.norm())


@given(shapes, st.integers(1, 8), seeds)
@quick
def test_svd_of_factors_is_the_svd(shape, rank, seed):
    u = update(shape, rank, seed)
    p, s, q = svd_of(Update(torch.cat([u.B, u.B], 1), torch.cat([u.A, -.5*u.A])))          # half of it, stored twice as large
    k = len(s)
    close(p*s @ q, u.dense()/2)
    close(p.T @ p, torch.eye(k)); close(q @ q.T, torch.eye(k))
    assert k <= min(*shape, rank) and (s[:-1] >= s[1:]).all()


def test_the_factors_share_the_singular_values():
    cut = truncate(concatenate([update((30, 20), 4, i) for i in range(3)]), 5)
    torch.testing.assert_close(cut.B.norm(dim=0), cut.A.norm(dim=1))


# ---- what holds for every rule

@given(shapes, st.integers(1, 6), seeds, st.sampled_from([r for r in FREE if r not in FLAT]), st.floats(.2, 5))
@quick
def test_a_merge_of_one_is_that_one(shape, rank, seed, rule, weight):
    u = update(shape, rank, seed)
    close(one([u], rule, None if rule == 'task_arithmetic' else [weight], **whole(rule)), u, 2e-5)


@pytest.mark.parametrize('rule', [r for r in FREE if r != 'iso_cts'])
def test_identical_sources_merge_to_what_one_merges_to(rule):
    u = update((18, 14), 4, 0)
    third = dict(scale=1/3) if rule in ('task_arithmetic', 'iso_c') else {}                  # those that add up
    merged = one([u]*3, rule, **whole(rule), **third)
    close(merged, one([u], rule, **whole(rule)), 1e-4)


@pytest.mark.parametrize('rule', FREE)
def test_the_order_of_sources_does_not_matter(rule):
    "For rules that draw, the masks belong to the sources' names"
    sources = {n: {'x': update((18, 14), r, i)} for i, (n, r) in enumerate((('a', 2), ('b', 4), ('c', 3)))}
    weights = dict(a=1., b=2., c=.5)
    for rank in (None, 6):
        results = [merge_updates({n: sources[n] for n in order}, rule, [weights[n] for n in order], rank)['x'] for order in itertools.permutations('abc')]
        for r in results[1:]: close(r, results[0], 1e-4)


@pytest.mark.parametrize('rule', FREE)
@given(scale=st.floats(.1, 10), seed=seeds)
@settings(max_examples=10, deadline=None)
def test_scaled_sources_give_a_scaled_merge(rule, scale, seed):
    updates = [update((12, 15), r, seed+i) for i, r in enumerate((2, 5))]
    options = dict(seed=seed) if rule in DRAWN else {}
    close(one([u*scale for u in updates], rule, **options), one(updates, rule, **options).dense()*scale, 1e-4)


@pytest.mark.parametrize('rule', FREE)
@given(ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4), shape=shapes, rank=st.integers(1, 6), seed=seeds)
@settings(max_examples=15, deadline=None)
def test_the_rank_is_kept_to(rule, ranks, shape, rank, seed):
    updates = [update(shape, r, seed+i) for i, r in enumerate(ranks)]
    cut, full = one(updates, rule, rank=rank), one(updates, rule)
    assert cut.rank <= rank and full.rank <= sum(ranks) and cut.shape == full.shape == shape
    assert cut.dense().isfinite().all()


@pytest.mark.parametrize('rule', FREE)
def test_a_source_that_does_nothing_is_zero(rule):
    "LoRA begins with B = 0, and a layer may be in one source only: neither brings a NaN, nor directions of its own"
    u = update((10, 8), 3, 0)
    idle = Update(torch.zeros(10, 3), torch.ones(3, 8))
    assert one([idle, idle], rule).dense().norm() == 0
    options = dict(whole(rule), **dict(seed=1) if rule in DRAWN else {})
    merged = merge_updates([{'x': u}, {}], rule, **options)['x'], merge_updates([{'x': u}, {'x': idle}], rule, **options)['x']
    close(*merged, 1e-4)
    direction = svd_of(merged[0])[0]
    close(direction @ (direction.T @ u.dense().double()), u, 1e-4)                          # it writes where the one source does


@pytest.mark.parametrize('rule', DRAWN)
def test_masks_belong_to_layer_source_and_seed(rule):
    options = dict(density=.5, **dict(inner='dare_linear') if 'inner' in rule_options(rule) else {})
    a, b = ({k: update((9, 7), 2, 10*s+i) for i, k in enumerate('xyz')} for s in (1, 2))
    first = merge_updates(dict(a=a, b=b), rule, seed=3, **options)
    turned = merge_updates(dict(b=dict(reversed(b.items())), a=dict(reversed(a.items()))), rule, seed=3, **options)
    alone = merge_updates(dict(a={'y': a['y']}, b={'y': b['y']}), rule, seed=3, **options)
    other = merge_updates(dict(a=a, b=b), rule, seed=4, **options)
    state = torch.get_rng_state()
    merge_updates([a, b], rule, seed=3, **options)
    assert torch.equal(state, torch.get_rng_state())
    close(first['y'], alone['y'], 1e-4)
    for k in 'xyz':
        close(first[k], turned[k], 1e-4)
        assert (first[k].dense()-other[k].dense()).norm() > .1


@pytest.mark.parametrize('density', [.003, 1/3, .5, .7, 1.])
def test_as_many_entries_stay_as_shall(density):
    "Of single bytes there are 256 densities; the draws after them make all others"
    kept = entries.drop(torch.ones(1000, 1000), density, torch.Generator().manual_seed(0)) > 0
    assert abs(float(kept.double().mean())-density) < 5*math.sqrt(density*(1-density)/kept.numel()) + 1e-12
    other = entries.drop(torch.ones(1000, 1000), density, torch.Generator().manual_seed(1)) > 0
    assert density == 1 or not torch.equal(kept, other)


def test_dare_keeps_the_expectation():
    u = update((12, 10), 3, 0)
    mean = torch.stack([one([u], 'dare_linear', rank=10, density=.5, seed=s).dense() for s in range(400)]).mean(0)
    assert (mean-u.dense()).norm() < .1*u.dense().norm()


# ---- agreement with the papers' algorithms, written out on dense matrices

@given(st.lists(st.lists(st.integers(-9, 9), min_size=6, max_size=6), min_size=1, max_size=4), st.sampled_from([1/3, .5, 1.]))
@quick
def test_ties_is_the_papers_algorithm(rows, density):
    "Trim, elect, disjoint mean, entry by entry (2306.01708, algorithm 1)"
    rows = [[v+.001*j*(-1)**i for j, v in enumerate(r)] for i, r in enumerate(rows)]        # no two magnitudes alike
    trimmed = [[v if sum(abs(o) > abs(v) for o in r) < round(density*6) else 0. for v in r] for r in rows]
    wanted = []
    for column in zip(*trimmed):
        elected = np.sign(np.float32(sum(map(np.float32, column))))
        agree = [v for v in column if elected and np.sign(v) == elected]
        wanted.append(sum(agree)/len(agree) if agree else 0.)
    mine = ties([Update(torch.ones(1, 1), torch.tensor([r])) for r in rows], [1.]*len(rows), density=density)
    np.testing.assert_allclose(mine[0], wanted, atol=1e-4)


def test_tsvm_is_the_papers_algorithm():
    "2412.00081, algorithm 1, on updates of full rank: of each task the first 1/T of its singular vectors"
    updates = [update((15, 12), 12, i) for i in range(3)]
    k = 12//3
    parts = [torch.linalg.svd(u.dense().double(), full_matrices=False) for u in updates]
    u, s, v = torch.cat([p[0][:, :k] for p in parts], 1), torch.cat([p[1][:k] for p in parts]), torch.cat([p[2][:k] for p in parts])
    (pu, _, qu), (pv, _, qv) = torch.linalg.svd(u, full_matrices=False), torch.linalg.svd(v, full_matrices=False)
    close(tsvm(updates, [1.]*3), pu @ qu @ torch.diag(s) @ pv @ qv)
    close(one(updates, 'tsvm', rank=12), pu @ qu @ torch.diag(s) @ pv @ qv)


def test_iso_c_is_the_papers_algorithm():
    "2502.04959, algorithm 1, on updates whose sum has full rank; else the mean is over the directions there are"
    updates = [update((15, 12), 6, i) for i in range(3)]
    u, s, v = torch.linalg.svd(sum(x.dense().double() for x in updates), full_matrices=False)
    close(iso_c(updates, [1.]*3, scale=.7), .7*s.mean()*(u @ v))
    few = svd_of(iso_c(updates[:1], [1.]))[1]
    close(few, svd_of(updates[0])[1].mean().expand(6))
    cut = one(updates, 'iso_c', rank=5)
    close(cut, s[:5].mean()*(u[:, :5] @ v[:5]), 1e-4)


@pytest.mark.parametrize('inner_rule', ['ties', 'magnitude_prune', 'average'])
def test_knots_is_the_authors_algorithm(inner_rule):
    "Joint SVD of the dense updates side by side, S on the V, trim and merge (2410.19735, and its authors' runs)"
    updates = [update((16, 20), r, i) for i, r in enumerate((3, 4, 2))]
    u, s, vt = torch.linalg.svd(torch.cat([x.dense() for x in updates], 1).double(), full_matrices=False)
    u, s, vt = u[:, :9], s[:9], vt[:9]
    rules = dict(ties=elected_mean, magnitude_prune=weighted_mean, average=weighted_mean)
    parts = [trim(p, 1. if inner_rule == 'average' else .4) for p in (s.unsqueeze(1)*vt).split(20, 1)]
    close(knots(updates, [1., 2., 1.], inner=inner_rule, density=.4), u @ rules[inner_rule](parts, [1., 2., 1.]), 1e-4)


@given(shapes, st.integers(1, 5), st.lists(st.floats(.1, 3), min_size=1, max_size=4), seeds)
@quick
def test_knots_with_a_linear_rule_is_that_rule(shape, rank, weights, seed):
    updates = [update(shape, rank, seed+i) for i in range(len(weights))]
    close(knots(updates, weights, inner='average'), average(updates, weights), 1e-4)


def test_core_space_is_the_authors_algorithm():
    "2509.17786: singular vectors of the stacked factors, cores between them, merged, and back; also with unlike ranks"
    updates = [update((16, 20), r, i) for i, r in enumerate((3, 4, 2))]
    u = torch.linalg.svd(torch.cat([x.B for x in updates], 1).double(), full_matrices=False)[0]
    v = torch.linalg.svd(torch.cat([x.A for x in updates]).double(), full_matrices=False)[2]
    cores = [u.T @ x.dense().double() @ v.T for x in updates]
    for x, c in zip(updates, cores): close(u @ c @ v, x)
    wanted = dict(ties=elected_mean([trim(c, .4) for c in cores], [1, 2, 1]), average=weighted_mean(cores, [1, 2, 1]))
    for rule, core in wanted.items(): close(core_space_merge(updates, [1, 2, 1], inner=rule, density=.4), u @ core @ v, 1e-4)


@pytest.mark.parametrize('inner_rule', ['tsvm', 'iso_c'])
def test_directions_are_the_same_in_core_space(inner_rule):
    "Rules on singular vectors see no change of basis, where there is room for all directions"
    updates = [update((30, 24), 3, i) for i in range(3)]
    close(core_space_merge(updates, [1.]*3, inner=inner_rule), merge_rules[inner_rule](updates, [1.]*3), 1e-4)


@pytest.mark.parametrize('common', [0., .5, .8])
def test_iso_cts_is_the_authors_algorithm(common):
    "2502.04959, on updates of full rank, written out as its authors do"
    xs = [update((15, 12), 12, i) for i in range(3)]
    dense, r, n = [x.dense().double() for x in xs], 12, 3
    k = r - round((r-int(r*common))/n)*n
    u, s, v = torch.linalg.svd(sum(dense), full_matrices=False)
    own = (r-k)//n
    left = [torch.linalg.svd(x - u[:, :k] @ u[:, :k].T @ x, full_matrices=False) for x in dense]
    us, ss, vs = (torch.cat(p, d) for p, d in (([*(x[0][:, :own] for x in left), u[:, :k]], 1), ([*(x[1][:own] for x in left), s[:k]], 0),
                                               ([*(x[2][:own] for x in left), v[:k]], 0)))
    (a, _, b), (c, _, d) = torch.linalg.svd(us, full_matrices=False), torch.linalg.svd(vs, full_matrices=False)
    close(iso_cts(xs, [1.]*3, scale=.7, common=common), .7*ss.mean()*(a @ b @ c @ d), 1e-4)


def test_regmean_is_least_squares_on_the_posts():
    "The merged weights are those of one regression on all sources' inputs and answers (2212.09849), frozen weights included"
    g = torch.Generator().manual_seed(0)
    frozen, updates = torch.randn(7, 9, generator=g).double(), [update((7, 9), r, i) for i, r in enumerate((2, 3))]
    inputs = [torch.randn(40, 9, generator=g).double() for _ in updates]
    answers = torch.cat([x @ (frozen+u.dense().double()).T for x, u in zip(inputs, updates)])
    wanted = np.linalg.lstsq(torch.cat(inputs).numpy(), answers.numpy(), rcond=None)[0].T
    grams = [x.T @ x/len(x) for x in inputs]
    merged = regmean(updates, [1., 1.], alpha=1., grams=grams)
    close(frozen+merged.dense(), torch.tensor(wanted), 1e-4)
    assert merged.rank == 5
    close(regmean(updates, [1., 3.], alpha=0., grams=grams), sum(                          # alpha 0: entry by entry
        w*u.dense().double()*x.diagonal() for w, u, x in zip((1, 3), updates, grams))/(grams[0].diagonal()+3*grams[1].diagonal()), 1e-4)
    close(regmean(updates[:1], [2.], grams=grams[:1]), updates[0], 1e-5)


def test_regmean_where_inputs_are_always_zero():
    u = update((5, 6), 2, 0)
    gram = torch.diag(torch.tensor([1., 2., 0., 3., 0., 1.]))
    merged = regmean([u, u*2.], [1., 1.], grams=[gram, gram]).dense()
    seen = [0, 1, 3, 5]
    close(merged[:, seen], 1.5*u.dense()[:, seen], 1e-5)
    assert merged[:, [2, 4]].abs().max() == 0


@given(st.integers(1, 4), st.integers(5, 12), seeds)
@quick
def test_null_space_ratio_is_the_projection(r, n, seed):
    u = update((3, n), r, seed)
    x = torch.randn(6, n, generator=torch.Generator().manual_seed(seed)).double()
    null = torch.linalg.svd(u.A.double())[2][r:]                                           # a basis of what A does not see
    close(null_space_ratio(x, u.A.double()), (x @ null.T).norm(dim=1)/x.norm(dim=1), 1e-6)


# ---- fast ways against plain ones

@pytest.mark.parametrize('shape', [(70, 50), (200, 333)])
@pytest.mark.parametrize('density', [.01, .2, .77])
def test_thinned_merges_are_those_of_the_plain_way(shape, density):
    "With a sort, a stack of all sources, and masks drawn at once"
    updates, c = [update(shape, 3+i, i) for i in range(4)], [1., 2., -.5, 1.]
    dense = [u.dense() for u in updates]
    def sorted_trim(x): return x*(x.abs() >= x.abs().flatten().sort(descending=True)[0][round(density*x.numel())-1])
    def masks():                                            # what `drop` draws, block by block
        return [torch.cat([entries.drop(torch.ones_like(x), density, g) > 0 for x in entries._blocks(torch.empty(shape))])
                for g in (torch.Generator().manual_seed(s) for s in range(4))]
    def mean(parts): return sum(w*x for w, x in zip(c, parts))/sum(c)
    def elected(parts):
        stack = torch.stack([math.copysign(1, w)*x for w, x in zip(c, parts)]).double()
        w = torch.tensor(c).abs().view(-1, 1, 1)
        agree = (stack*(w*stack).sum(0) > 0)*w
        return (agree*stack).sum(0)/agree.sum(0).clamp(min=1e-30)
    largest, random = [sorted_trim(x) for x in dense], [x*m/density for x, m in zip(dense, masks())]
    def drawing(): return dict(generators=[torch.Generator().manual_seed(s) for s in range(4)])
    close(magnitude_prune(updates, c, density=density), mean(largest), 1e-6)
    close(ties(updates, c, density=density), elected(largest), 1e-6)
    close(dare_linear(updates, c, density=density, **drawing()), mean(random), 1e-6)
    close(dare_ties(updates, c, density=density, **drawing()), elected(random), 1e-6)


@pytest.mark.parametrize('shape', [(400, 300), (300, 400)])
@pytest.mark.parametrize('density', [.05, .5])
@pytest.mark.parametrize('near', ['theirs', 'unrelated'])
def test_a_search_from_the_sources_loses_no_more(shape, density, near):
    "Whether it converges or gives way to all eigenvectors"
    updates = [update(shape, 4, i) for i in range(4)]
    x = ties(updates, [1.]*4, density=density)
    start = updates if near == 'theirs' else [update(shape, 4, 100+i) for i in range(4)]
    for rank in (3, 16):
        best = torch.linalg.svdvals(x.double())[rank:].norm()
        cut = truncate(x, rank, start)
        assert cut.rank == rank and float((cut.dense()-x).double().norm()-best) <= 2e-6*float(x.norm())


def test_a_sort_is_not_needed_for_equal_entries():
    for x in (torch.zeros(50, 60), torch.ones(50, 60), torch.arange(3000.).remainder(7).view(50, 60)):
        for k in (1, 700, 3000): assert entries.kth_largest(x, k) == float(x.flatten().sort(descending=True)[0][k-1])


def test_every_rule_says_what_a_page_needs():
    t = merge_rules_table()
    assert set(t.index) == set(merge_rules) and t.rule.is_unique and (t.formula != '').all()
    assert set(t.cost) == {'factors', 'entries', 'posts'}


@given(st.integers(1, 12), st.integers(1, 12), seeds)
@quick
def test_nearest_orthogonal_is_orthogonal(m, k, seed):
    q = nearest_orthogonal(torch.randn(m, k, generator=torch.Generator().manual_seed(seed)).double())
    close(q.T @ q if k <= m else q @ q.T, torch.eye(min(m, k)))


# ---- agreement with peft, where it is right

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(24, 32)


def peft_model(ranks=(4, 6), alphas=(8, 3), rslora=(False, True)):
    "A linear layer with two LoRA adapters of peft, and their updates as peft computes them"
    torch.manual_seed(0)
    configs = [peft.LoraConfig(r=r, lora_alpha=a, target_modules=['linear'], use_rslora=s) for r, a, s in zip(ranks, alphas, rslora)]
    model = peft.get_peft_model(Layer(), configs[0], 'a')
    model.add_adapter('b', configs[1])
    layer = model.base_model.model.linear
    for n in 'ab': nn.init.normal_(layer.lora_A[n].weight); nn.init.normal_(layer.lora_B[n].weight)
    updates = [Update((layer.scaling[n]*layer.lora_B[n].weight).detach(), layer.lora_A[n].weight.detach()) for n in 'ab']
    for n, u in zip('ab', updates): close(u, layer.get_delta_weight(n).detach())
    return model, layer, updates


@pytest.mark.parametrize('ours,theirs,weights,options', [
    ('task_arithmetic', 'svd', [1., 1.], {}),
    ('task_arithmetic', 'svd', [2., -.5], {}),
    ('task_arithmetic', 'cat', [2., .5], {}),
    ('average', 'svd', [.75, .25], {}),
    ('average', 'cat', [.75, .25], {}),
    ('ties', 'ties_svd', [1., 1.], dict(density=.3)),
    ('ties', 'ties_svd', [1., 1.], dict(density=1.)),
    ('magnitude_prune', 'magnitude_prune_svd', [.75, .25], dict(density=.3)),
])
@pytest.mark.parametrize('ranks', [(4, 4), (4, 6)])
@pytest.mark.parametrize('rank', [5, 24])
@pytest.mark.filterwarnings('ignore:The density')
def test_agrees_with_peft(ours, theirs, weights, options, ranks, rank):
    model, layer, updates = peft_model(ranks)
    cut = {} if theirs == 'cat' else dict(svd_rank=rank)
    model.add_weighted_adapter(['a', 'b'], weights, 'c', combination_type=theirs, **cut, **options)
    close(one(updates, ours, weights, rank if cut else None, **options), layer.get_delta_weight('c').detach(), 1e-4)


@pytest.mark.parametrize('ours,theirs,weights', [('dare_linear', 'dare_linear_svd', [.75, .25]), ('dare_ties', 'dare_ties_svd', [1., 1.])])
@pytest.mark.parametrize('rank', [5, 24])
def test_agrees_with_peft_on_the_same_mask(ours, theirs, weights, rank, monkeypatch):
    model, layer, updates = peft_model()
    masks = [torch.rand(32, 24) < .5 for _ in range(2)]
    def in_turn():
        turn = iter(masks)
        return lambda x, density, *_, **__: x*next(turn)/density
    monkeypatch.setattr(merge_utils, 'random_pruning', in_turn())
    model.add_weighted_adapter(['a', 'b'], weights, 'c', combination_type=theirs, density=.5, svd_rank=rank)
    monkeypatch.setattr(entries, 'drop', in_turn())
    close(one(updates, ours, weights, rank, density=.5), layer.get_delta_weight('c').detach(), 1e-4)


def test_where_we_differ_from_peft():
    "Weights that add up to one halve peft's TIES, and its rules on A and B apart have cross terms"
    model, layer, updates = peft_model((4, 4), (8, 8), (False, False))
    model.add_weighted_adapter(['a', 'b'], [.5, .5], 'c', combination_type='ties_svd', density=.3, svd_rank=24)
    close(one(updates, 'ties', [.5, .5], 24, density=.3).dense()/2, layer.get_delta_weight('c').detach(), 1e-4)
    model.add_weighted_adapter(['a', 'b'], [.5, .5], 'd', combination_type='linear')
    mean = one(updates)
    assert (layer.get_delta_weight('d').detach()-mean.dense()).norm() > .5*mean.dense().norm()


# ---- in an encoder

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "Folders with a tiny BERT, a tiny ModernBERT and a tiny MPNet of random weights"
    root = tmp_path_factory.mktemp('encoders')
    (root/'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'abcdefghijklmnopqrstuvwxyz']))
    size = dict(vocab_size=31, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, max_position_embeddings=64)
    special = dict(pad_token_id=0, cls_token_id=2, bos_token_id=2, sep_token_id=3, eos_token_id=3, reference_compile=False)
    torch.manual_seed(0)
    for name, model in (('bert', BertModel(BertConfig(**size))), ('modernbert', ModernBertModel(ModernBertConfig(**size, **special))),
                        ('mpnet', MPNetModel(MPNetConfig(**size)))):
        model.save_pretrained(root/name)
        BertTokenizerFast(vocab_file=str(root/'vocab.txt')).save_pretrained(root/name)
    return root


def with_adapters(folder, method='lora', quantization='none', a={}, b={}, size=.2):
    "An encoder with two LoRA adapters of random values, ranks and scalings unlike"
    encoder = load_encoder(str(folder), quantization).eval()
    for i, (n, options) in enumerate((('a', dict(r=4, alpha=8) | a), ('b', dict(r=6, alpha=5, rslora=True) | b))):
        encoder.add(n, method, **options)
        fill(encoder, n, i, size)
    return encoder


def fill(encoder, name, seed, size=.2):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for v in encoder.adapter_parameters(name).values(): v.copy_(size*torch.randn(v.shape, generator=g))


def states(encoder, setup=None):
    if setup is not None: encoder.activate(setup)
    ids = torch.randint(5, 31, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): return encoder.eval()(ids, torch.ones_like(ids))


def states_with(encoder, updates):
    "The states of an encoder without adapters to whose layers' outputs x ΔWᵀ is added"
    def adding(u): return lambda module, args, out: out + args[0] @ u.T
    hooks = [encoder.model.get_submodule(k).register_forward_hook(adding(u)) for k, u in updates.items()]
    encoder.activate(None)
    out = states(encoder)
    for h in hooks: h.remove()
    return out


@pytest.mark.parametrize('kind', ['bert', 'mpnet'])
@pytest.mark.parametrize('quantization', ['none', 'nf4'])
@pytest.mark.parametrize('method', ['lora', 'peft_lora'])
@pytest.mark.parametrize('rule,weights', [('task_arithmetic', None), ('average', [1., 3.]), ('tsvm', None), ('ties', None)])
def test_a_merged_adapter_computes_what_its_updates_say(tiny, kind, method, quantization, rule, weights):
    encoder = with_adapters(tiny/kind, method, quantization)
    sources = {n: lora_updates(encoder, n) for n in 'ab'}
    for n in 'ab': torch.testing.assert_close(states_with(encoder, {k: u.dense() for k, u in sources[n].items()}), states(encoder, n), atol=1e-5, rtol=1e-4)
    before = {k: tensor_digest({k: v}) for k, v in encoder.tensors().items()}
    merge_adapters(encoder, ['a', 'b'], 'm', rule, weights)
    after = {k: tensor_digest({k: v}) for k, v in encoder.tensors().items()}
    assert {k: after[k] for k in before} == before and set(after)-set(before) == set(encoder.adapter_parameters('m'))
    wanted = {k: u.dense() for k, u in merge_updates(sources, rule, weights).items()}
    if rule != 'ties' and rule != 'tsvm':
        w = dict(task_arithmetic=[1, 1], average=[.25, .75])[rule]
        for k in wanted: close(wanted[k], w[0]*sources['a'][k].dense() + w[1]*sources['b'][k].dense())
    for k, u in lora_updates(encoder, 'm').items(): close(u, wanted[k])
    torch.testing.assert_close(states(encoder, 'm'), states_with(encoder, wanted), atol=3e-5, rtol=1e-4)     # processors round differently
    assert (states(encoder, 'm')-states(encoder, 'a')).abs().max() > 1e-2


@pytest.mark.parametrize('kind', ['bert', 'mpnet'])
@pytest.mark.parametrize('method', ['lora', 'peft_lora'])
def test_a_merged_adapter_is_the_encoder_with_the_sum_in_its_weights(tiny, kind, method):
    encoder = with_adapters(tiny/kind, method)
    sources = [lora_updates(encoder, n) for n in 'ab']
    merge_adapters(encoder, ['a', 'b'], 'm', 'task_arithmetic')
    plain = load_encoder(str(tiny/kind)).eval()
    with torch.no_grad():
        for k in sources[0]: plain.model.get_submodule(k).weight += sources[0][k].dense()+sources[1][k].dense()
    torch.testing.assert_close(states(encoder, 'm'), states(plain), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('method', ['lora', 'peft_lora'])
def test_merging_leaves_everything_else_as_it_was(tiny, method):
    encoder = with_adapters(tiny/'bert', method)
    encoder.add('bystander', method, r=2); fill(encoder, 'bystander', 7)
    encoder.activate('bystander'); encoder.train_only('a')
    before, learning, out, rng = tensor_digest(encoder.tensors()), set(encoder.trainable()), states(encoder), torch.get_rng_state()
    for i, rule in enumerate(FREE): merge_adapters(encoder, ['a', 'b'], f'm{i}', rule, rank=3)
    assert set(encoder.trainable()) == learning and torch.equal(states(encoder), out) and torch.equal(torch.get_rng_state(), rng)
    for i, _ in enumerate(FREE): encoder.remove(f'm{i}')
    assert tensor_digest(encoder.tensors()) == before and torch.equal(states(encoder), out)


@pytest.mark.parametrize('method', ['lora', 'peft_lora'])
def test_a_merge_of_one_adapter_is_that_adapter(tiny, method):
    encoder = with_adapters(tiny/'bert', method)
    for n in 'ab':
        out = states(encoder, n)
        for rule in (r for r in FREE if r not in FLAT):
            merge_adapters(encoder, [n], 'm', rule, **whole(rule))
            torch.testing.assert_close(states(encoder, 'm'), out, atol=1e-5, rtol=1e-4, msg=lambda m: f'{rule}: {m}')
            encoder.remove('m')


@pytest.mark.parametrize('method', ['lora', 'peft_lora'])
def test_a_merged_adapter_is_saved_and_loaded_like_any_other(tiny, method, tmp_path):
    encoder = with_adapters(tiny/'bert', method)
    merge_adapters(encoder, ['a', 'b'], 'm', 'ties', rank=5)
    out = states(encoder, 'm')
    other = load_encoder(str(tiny/'bert'))
    other.load(encoder.save('m', tmp_path))
    assert torch.equal(states(other, 'm'), out)
    again = with_adapters(tiny/'bert', method)
    merge_adapters(again, ['a', 'b'], 'm', 'ties', rank=5)
    assert tensor_digest(again.adapter_parameters('m')) == tensor_digest(encoder.adapter_parameters('m'))


def test_sources_may_change_different_layers(tiny):
    "The merged adapter has all places; where a source has none it counts as zero, and the rest of the rank can learn"
    encoder = with_adapters(tiny/'bert', a=dict(attention='q', intermediate=False, output=False), b=dict(attention='v', layers=[1]))
    sources = {n: lora_updates(encoder, n) for n in 'ab'}
    merge_adapters(encoder, ['a', 'b'], 'm')
    merged = lora_updates(encoder, 'm')
    assert set(merged) >= set(sources['a']) | set(sources['b'])
    for k, u in merged.items():
        parts = [s[k].dense() for s in sources.values() if k in s]
        close(u, sum(parts)/2 if parts else torch.zeros(u.shape))
    encoder.activate('m'); encoder.train_only('m')
    ids = torch.randint(5, 31, (3, 9))
    encoder(ids, torch.ones_like(ids)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for k, p in encoder.trainable().items() if 'lora_B' in k)

    other = with_adapters(tiny/'bert', 'peft_lora', a=dict(target=['query']), b=dict(target=['value', 'output.dense']))
    merge_adapters(other, ['a', 'b'], 'm')
    assert set(lora_updates(other, 'm')) == set(lora_updates(other, 'a')) | set(lora_updates(other, 'b'))
    assert other.methods['m']['options']['target'] == ['output.dense', 'query', 'value']


def test_the_pitfalls_of_averaging(tiny):
    "A and B averaged apart gain cross terms; `adapters`' SVD average shrinks by r over the new rank. Ours does neither"
    encoder = with_adapters(tiny/'bert', a=dict(r=8, alpha=16), b=dict(r=8, alpha=16, rslora=False), size=1.)
    layer = 'encoder.layer.0.attention.self.query'
    mean = sum(lora_updates(encoder, n)[layer].dense() for n in 'ab')/2
    merge_adapters(encoder, ['a', 'b'], 'ours', rank=16)
    close(lora_updates(encoder, 'ours')[layer], mean)
    for strategy, options in (('linear', {}), ('lora_delta_w_svd', dict(svd_rank=16))):
        encoder.model.average_adapter('theirs', ['a', 'b'], weights=[.5, .5], combine_strategy=strategy, **options)
        lora = encoder.model.get_submodule(layer).loras['theirs']
        theirs = (lora.scaling*lora.lora_B @ lora.lora_A).detach()
        assert (theirs-mean).norm() > .3*mean.norm(), f'{strategy} is right now: say so in the chapter'
        if options: close(theirs*16/8, mean)
        encoder.model.delete_adapter('theirs')


@pytest.mark.parametrize('options', [dict(alpha=1.), dict(alpha=64.), dict(alpha=5., rslora=True), dict(r=1, alpha=3.), dict(r=13, alpha=2.)])
@pytest.mark.parametrize('method', ['lora', 'peft_lora'])
def test_scalings_are_in_the_updates(tiny, method, options):
    encoder = with_adapters(tiny/'bert', method, a=options)
    r, alpha = options.get('r', 4), options['alpha']
    u = lora_updates(encoder, 'a')['encoder.layer.1.output.dense']
    stored = {k.split('lora_')[1][0]: v for k, v in encoder.adapter_parameters('a').items() if 'layer.1.output.dense' in k}
    close(u, alpha/(r**.5 if options.get('rslora') else r)*(stored['B'] @ stored['A']).detach(), 1e-5)
    assert u.rank == r and u.shape == (64, 128)


# ---- rules that need posts, and starts

def batches_of(seed, n=2):
    "Batches of random posts with padding"
    g = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(n):
        ids, mask = torch.randint(5, 31, (4, 9), generator=g), torch.ones(4, 9, dtype=torch.int64)
        mask[1, 5:] = 0
        out.append(dict(input_ids=ids*mask, attention_mask=mask))
    return out


def inputs_of(encoder, layer, batches):
    "The inputs of a layer at real sub-tokens, with what is active"
    seen = []
    handle = encoder.model.get_submodule(layer).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        for b in batches: encoder.eval()(**b)
    handle.remove()
    return torch.cat([x[b['attention_mask'].bool()] for x, b in zip(seen, batches)])


@pytest.mark.parametrize('method', ['lora', 'peft_lora'])
def test_grams_are_of_real_sub_tokens_with_the_sources_update(tiny, method):
    encoder = with_adapters(tiny/'bert', method)
    encoder.activate('b')
    updates, batches, before = lora_updates(encoder, 'a'), batches_of(0), states(encoder)
    grams = input_grams(encoder, updates, batches)
    assert torch.equal(states(encoder), before)                                            # what was active is active
    encoder.activate('a')
    for k in updates:
        x = inputs_of(encoder, k, batches)
        close(grams[k], x.T @ x/len(x), 1e-4)


def test_regmean_plus_plus_sees_the_merged_lower_blocks(tiny):
    encoder = with_adapters(tiny/'bert')
    sources, batches = {n: lora_updates(encoder, n) for n in 'ab'}, dict(a=batches_of(0), b=batches_of(1))
    merge_adapters(encoder, ['a', 'b'], 'm', 'regmean_pp', batches=batches)
    merge_adapters(encoder, ['a', 'b'], 'plain', 'regmean', batches=batches)
    merged, plain = lora_updates(encoder, 'm'), lora_updates(encoder, 'plain')
    upper = [k for k in merged if '.1.' in k]
    lower = {k: u for k, u in merged.items() if '.0.' in k}
    for k in lower: close(merged[k], plain[k], 1e-4)                                       # nothing is below them
    for k in upper:
        grams = []
        for n, s in sources.items():
            with updates_added(encoder, lower | {j: s[j] for j in upper}): x = inputs_of(encoder, k, batches[n])
            grams.append(x.T @ x/len(x))
        close(merged[k], regmean([s[k] for s in sources.values()], [1., 1.], grams=grams), 1e-3)
    assert (merged[upper[-1]].dense()-plain[upper[-1]].dense()).norm() > 1e-3


def test_nsc_steps_are_those_of_adamw_on_the_ratio(tiny):
    "One step from .4: against the sign of the gradient by differences, and the decay of AdamW; layers behind the last look stay"
    encoder = with_adapters(tiny/'bert', size=.5)
    sources, batches = {n: lora_updates(encoder, n) for n in 'ab'}, dict(a=batches_of(0, 1), b=batches_of(1, 1))
    def objective(moved=None, by=0.):
        c = {k: [.4+by*((k, i) == moved) for i in range(2)] for k in sources['a']}
        merged = {k: concatenate([s[k] for s in sources.values()], c[k]) for k in c}
        ratios = []
        for n, s in sources.items():
            with updates_added(encoder, merged):
                looks = [k for k in s if '.1.' in k]                                       # the last of two blocks
                ratios.append(np.mean([float(null_space_ratio(inputs_of(encoder, k, batches[n]), s[k].A).mean()) for k in looks]))
        return np.mean(ratios)
    learned = null_space_coefficients(encoder, sources, batches, steps=1, lr=1e-2)
    assert learned['encoder.layer.1.output.dense'] == [pytest.approx(.4)]*2
    for layer in ('encoder.layer.0.attention.self.value', 'encoder.layer.0.output.dense', 'encoder.layer.1.intermediate.dense'):
        for i in range(2):
            slope = (objective((layer, i), .05)-objective((layer, i), -.05))/.1
            if abs(slope) > 1e-5: assert np.sign(.4*(1-1e-4)-learned[layer][i]) == np.sign(slope)
    many = null_space_coefficients(encoder, sources, batches, steps=15, lr=2e-2)
    merge_adapters(encoder, ['a', 'b'], 'm', 'nsc', batches=batches, collecting=dict(steps=15, lr=2e-2))
    k = 'encoder.layer.0.output.dense'
    close(lora_updates(encoder, 'm')[k], concatenate([s[k] for s in sources.values()], many[k]), 1e-4)


@pytest.mark.parametrize('layers,share', [(None, 1.), ([1], .5)])
def test_nsc_learns_though_what_the_first_layer_gets_depends_on_no_coefficient(tiny, layers, share):
    encoder = with_adapters(tiny/'bert', a=dict(layers=layers), b=dict(layers=layers), size=.5)
    sources, batches = {n: lora_updates(encoder, n) for n in 'ab'}, dict(a=batches_of(0, 1), b=batches_of(1, 1))
    learned = null_space_coefficients(encoder, sources, batches, steps=1, share=share)
    assert [k for k, v in learned.items() if v == [pytest.approx(.4, abs=1e-5)]*2] == ['encoder.layer.1.output.dense']


@pytest.mark.parametrize('rule', ['regmean', 'regmean_pp'])
@pytest.mark.parametrize('method,quantization', [('lora', 'none'), ('peft_lora', 'none'), ('lora', 'nf4')])
def test_a_regression_on_one_source_is_that_source(tiny, rule, method, quantization):
    encoder = with_adapters(tiny/'bert', method, quantization)
    merge_adapters(encoder, ['a'], 'm', rule, batches=dict(a=batches_of(0)))
    torch.testing.assert_close(states(encoder, 'm'), states(encoder, 'a'), atol=1e-4, rtol=1e-3)


def test_sources_with_one_A_merge_without_loss_at_their_rank(tiny):
    encoder = load_encoder(str(tiny/'bert'))
    for i, n in enumerate('ab'):
        encoder.add(n, 'lora', r=4, alpha=8)
        start_shared(encoder, n, seed=3)
        encoder.train_only(n)
        learning = encoder.trainable()
        assert learning and all('lora_B' in k for k in learning)
        g = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for p in learning.values(): p.copy_(torch.randn(p.shape, generator=g))
    sources = {n: lora_updates(encoder, n) for n in 'ab'}
    exact, cut = merge_updates(sources), merge_updates(sources, rank=4)
    for k in exact: close(cut[k], exact[k], 1e-5)
    merge_adapters(encoder, ['a', 'b'], 'm')
    assert encoder.methods['m']['options']['r'] == 4


def test_an_orthogonal_start_lets_as_little_through_as_any(tiny):
    "The trace of A G Aᵀ under A Aᵀ = I is smallest for the last eigenvectors (Ky Fan)"
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', 'lora', r=4)
    start_orthogonal(encoder, 'a', batches_of(0))
    grams = input_grams(encoder, {}, batches_of(0), list(encoder.factors('a')))
    for k, (B, A, _) in encoder.factors('a').items():
        close(A @ A.T, torch.eye(4), 1e-5)
        assert B.abs().max() == 0
        least = torch.linalg.eigvalsh(grams[k].double())[:4].sum()
        assert float(torch.trace(A @ grams[k] @ A.T)) == pytest.approx(float(least), abs=1e-4)


# ---- bottlenecks

BOTTLENECKS = [m for m, f in adapter_methods.items() if f.merges == 'weights']
OF_MPNET = [m for m in BOTTLENECKS if m != 'adapterplus']                  # which its interface does not allow

@pytest.mark.parametrize('kind,method', [*(('bert', m) for m in BOTTLENECKS), *(('mpnet', m) for m in OF_MPNET)])
@pytest.mark.parametrize('quantization', ['none', 'nf4'])
def test_bottlenecks_are_averaged(tiny, kind, method, quantization):
    encoder = load_encoder(str(tiny/kind), quantization).eval()
    for i, n in enumerate('ab'): encoder.add(n, method, reduction_factor=8, dropout=.1*i); fill(encoder, n, i)
    before = tensor_digest(encoder.tensors())
    merge_adapters(encoder, ['a', 'b'], 'm', coefficients=[3, 1])
    merge_adapters(encoder, ['b'], 'same')
    new = set(encoder.adapter_parameters('m')) | set(encoder.adapter_parameters('same'))
    assert tensor_digest({k: v for k, v in encoder.tensors().items() if k not in new}) == before
    a, b, m = (list(encoder.adapter_parameters(n).values()) for n in 'abm')
    assert len(m) == len(a) > 0
    for x, y, z in zip(a, b, m): torch.testing.assert_close(z, .75*x+.25*y)
    assert torch.equal(states(encoder, 'same'), states(encoder, 'b'))
    for n, options in (('wide', dict(reduction_factor=4)), ('other', dict(reduction_factor=8, non_linearity='tanh'))): encoder.add(n, method, **options)
    for wrong in ('wide', 'other'):
        with pytest.raises(HatenbError, match='different forms'): merge_adapters(encoder, ['a', wrong], 'x')
    for how in (dict(rule='ties'), dict(rule='knots'), dict(rank=4), dict(rule='task_arithmetic', scale=2.)):
        with pytest.raises(HatenbError, match='only be averaged'): merge_adapters(encoder, ['a', 'b'], 'x', **how)
    assert 'x' not in encoder.methods


# ---- what is refused

def test_what_has_no_update_is_refused(tiny):
    encoder = load_encoder(str(tiny/'bert'))
    others = [m for m in ('ia3', 'vera', 'prefix', 'compacter', 'reft', 'unipelt', 'mam')]
    for m in others: encoder.add(m, m, **dict(phm_dim=4) if m == 'compacter' else {})
    encoder.add('frozen', 'frozen')
    encoder.add('dora', 'lora', dora=True); encoder.add('a', 'lora'); encoder.add('bn', 'seq_bn')
    before = tensor_digest(encoder.tensors())
    for n in (*others, 'frozen', 'dora'):
        for rule in ('average', 'ties'):
            with pytest.raises(HatenbError, match='no ΔW'): merge_adapters(encoder, [n], 'm', rule)
    with pytest.raises(HatenbError, match='no ΔW'): lora_updates(encoder, 'bn')
    with pytest.raises(HatenbError, match='different methods'): merge_adapters(encoder, ['a', 'bn'], 'm')
    assert 'm' not in encoder.methods and tensor_digest(encoder.tensors()) == before


def test_peft_lora_that_is_no_matrix_is_refused(tiny):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('dora', 'peft_lora', dora=True); encoder.add('words', 'peft_lora', target=['word_embeddings'])
    for n in ('dora', 'words'):
        with pytest.raises(HatenbError, match='no ΔW'): merge_adapters(encoder, [n], 'm')


def test_joined_query_key_value(tiny):
    encoder = load_encoder(str(tiny/'modernbert'))
    encoder.add('a', 'lora')
    with pytest.raises(HatenbError, match='peft|plain LoRA'): merge_adapters(encoder, ['a'], 'm')
    other = with_adapters(tiny/'modernbert', 'peft_lora')
    merge_adapters(other, ['a', 'b'], 'm')
    torch.testing.assert_close(states(other, 'm'), states_with(other, {k: u.dense() for k, u in lora_updates(other, 'm').items()}), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('names,options,why', [
    (['nobody'], {}, "no adapter 'nobody'"), ([], {}, 'nothing to merge'), (['a', 'a'], {}, 'named twice'),
    (['a', 'b'], dict(rule='tiess'), "did you mean 'ties'"), (['a', 'b'], dict(rule='ties', densty=.1), "no option 'densty'"),
    (['a', 'b'], dict(seed=1), "no option 'seed'"), (['a', 'b'], dict(rule='ties', density=0), 'density is 0'),
    (['a', 'b'], dict(rule='ties', density=20), 'density is 20'), (['a', 'b'], dict(rule='dare_ties', density='half'), 'density is half'),
    (['a', 'b'], dict(rule='dare_linear', generators=[]), "no option 'generators'"), (['a', 'b'], dict(rule='knots', inner='knots'), "cannot merge with 'knots'"),
    (['a', 'b'], dict(coefficients=[1.]), '1 coefficients for 2'), (['a', 'b'], dict(coefficients=[1., math.nan]), 'not a number'),
    (['a', 'b'], dict(coefficients=[1., -1.]), 'add up to zero'),
    (['a', 'b'], dict(rule='task_arithmetic', coefficients=[0., 0.]), 'add up to zero'),
    (['a', 'b'], dict(rule='regmean'), 'needs posts of the source a'), (['a', 'b'], dict(rule='iso_cts', common=2), 'common is 2'),
    (['a', 'b'], dict(rule='nsc', collecting=dict(step=1)), "no option 'step' .*It has: steps, lr"),
    (['a', 'b'], dict(rule='ties', collecting=dict(steps=1)), "no option 'steps' .*It has: none"),
    (['a', 'b'], dict(rank=0), 'rank is 0'), (['a', 'b'], dict(rank=2.5), 'rank is 2.5'), (['a', 'b'], dict(into='b'), "'b' already"),
])
def test_what_is_refused(tiny, names, options, why):
    encoder = with_adapters(tiny/'bert')
    before = tensor_digest(encoder.tensors())
    with pytest.raises(HatenbError, match=why): merge_adapters(encoder, names, **{'into': 'm', **options})
    assert set(encoder.methods) == {'a', 'b'} and tensor_digest(encoder.tensors()) == before


def test_broken_sources_are_refused(tiny):
    encoder = with_adapters(tiny/'bert')
    updates = lora_updates(encoder, 'a')
    broken = dict(updates, **{'encoder.layer.1.output.dense': update((64, 128), 2, 0)*math.nan})
    with pytest.raises(HatenbError, match='not finite.*layer.1.output.dense'): merge_updates([updates, broken])
    with pytest.raises(HatenbError, match='different shapes'): merge_updates([{'x': update((3, 4), 1, 0)}, {'x': update((4, 3), 1, 0)}])
    for wrong in ({'encoder.layer.7.output.dense': update((64, 128), 2, 0)}, {'encoder.layer.1.output.dense': update((64, 64), 2, 0)}):
        with pytest.raises(HatenbError, match='do not fit'): add_lora(encoder, 'm', {**updates, **wrong})
        assert 'm' not in encoder.methods


# ---- distances and interference

@given(shapes, st.integers(1, 5), st.integers(1, 5), seeds)
@quick
def test_measures_from_factors_are_those_of_the_matrices(shape, r, k, seed):
    a, b = update(shape, r, seed), update(shape, k, seed+1000)
    x, y = a.dense().double(), b.dense().double()
    assert math.isclose(inner(a, b), float((x*y).sum()), abs_tol=1e-4*float(x.norm()*y.norm()))
    assert math.isclose(cosine(a, b), float((x*y).sum()/(x.norm()*y.norm())), abs_tol=1e-4)
    assert math.isclose(distance(a, b), float((x-y).norm()/y.norm()), rel_tol=1e-4)
    p, q = (torch.linalg.svd(m)[0][:, :torch.linalg.matrix_rank(m, rtol=1e-6)] for m in (x, y))
    assert math.isclose(subspace_overlap(a, b), float((p.T @ q).square().sum())/min(p.shape[1], q.shape[1]), abs_tol=1e-3)
    assert math.isclose(subspace_overlap(a, b), subspace_overlap(b, a), abs_tol=1e-9) and sign_conflicts(a, b) == sign_conflicts(b, a)
    assert 0 <= sign_conflicts(a, b) <= 1 and sign_conflicts(a, b) == pytest.approx(1-sign_conflicts(a, b*-1.), abs=1e-6)
    assert distance(a, a) < 1e-6 and math.isclose(subspace_overlap(a, a), 1, abs_tol=1e-9)


@given(shapes, st.lists(st.integers(1, 4), min_size=1, max_size=3), seeds)
@quick
def test_truncation_errors_are_the_distances(shape, ranks, seed):
    exact = concatenate([update(shape, r, seed+i) for i, r in enumerate(ranks)])
    errors = truncation_errors({'x': exact}).loc['x']
    assert errors[0] == 1 and errors.iloc[-1] == 0 and errors.is_monotonic_decreasing
    for r in errors.index[1:]: assert math.isclose(errors[r], distance(truncate(exact, r), exact), abs_tol=1e-5)


def test_interference_of_sources_with_different_layers():
    s = dict(a={'x': update((9, 8), 2, 0), 'y': update((9, 8), 2, 1)}, b={'x': update((9, 8), 3, 2)}, c={'y': update((9, 8), 2, 3)*0.})
    t = interference(s, merge_updates(s))
    assert sorted(zip(t.layer, t.pair)) == [('x', 'a, b'), ('x', 'merge, a'), ('x', 'merge, b'), ('y', 'a, c'), ('y', 'merge, a'), ('y', 'merge, c')]
    idle = t[t.pair == 'a, c'].iloc[0]
    assert all(math.isnan(idle[k]) for k in ('sign_conflicts', 'overlap', 'cosine'))        # a source that does nothing is in nobody's way
    assert t[t.pair == 'a, b'].distance.isna().all() and (t[t.pair == 'merge, a'].distance > 0).all()
