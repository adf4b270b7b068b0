"Balancing rules: agreement with TorchJD and LibMTL's formulas, losses that are absent, runs that are cut off and go on"
import builtins

import numpy as np
import pytest
import torch
import torchjd.aggregation as jd_aggregation
import torchjd.scalarization as jd

from hatenb.balancing import (add_gradients, balancers, importance_tries, make_balancer, new_matrix, project,
                              put_combined, balancing_table)
from hatenb.core import HatenbError
from hatenb.training import TrainConfig, Trainer
from parts import flat, small, undecided

pytestmark = [pytest.mark.filterwarnings('ignore:You are solving a parameterized problem'),
              pytest.mark.usefixtures('stand_in')]
NAMES = ['a', 'b', 'c']
THREE = 'mini/label', 'mini/target', 'mini_mhs/score'


def problem(seed=0, k=3):
    "Shared weights, and losses of them that differ in size"
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(6, generator=g).requires_grad_()
    M, y = torch.randn(k, 4, 6, generator=g), torch.randn(k, 4, generator=g)
    return w, lambda: {n: (10.**i)*(M[i] @ w-y[i]).square().mean() for i, n in enumerate(NAMES[:k])}


def vector(rule, losses): return torch.tensor([float(losses.get(n, torch.nan)) for n in rule.names])


def step(rule, losses, w, n=0):
    "Gradients as a training step leaves them; returns the losses and the matrix"
    shared, rule.step, w.grad = {'layer.0.w': w}, n, None
    now = losses()
    values, matrix = vector(rule, {k: v.detach() for k, v in now.items()}), new_matrix(rule, shared)
    add_gradients(rule, now, rule.coefficients(values), shared, [], matrix)
    if 'gradients' in rule.asks: put_combined(rule, matrix, ~values.isnan(), shared)
    return values, matrix


def rows_of(losses, w): return torch.stack([torch.autograd.grad(v, w, retain_graph=True)[0] for v in losses.values()])


def stacked(losses): return torch.stack(list(losses.values()))


# ---- agreement with others

@pytest.mark.parametrize('name,theirs', [('uncertainty', jd.UW), ('imtl_l', jd.IMTLL)])
def test_learned_scales_are_torchjds(name, theirs):
    w, losses = problem()
    ours, theirs = balancers[name](NAMES), theirs(3)
    ours.value.copy_(torch.tensor([.3, -.5, 1.]))
    with torch.no_grad(): next(theirs.parameters()).copy_(ours.value)
    values, _ = step(ours, losses, w)
    mine, w.grad = w.grad.clone(), None
    theirs(stacked(losses())).backward()
    torch.testing.assert_close(mine, w.grad)
    torch.testing.assert_close(ours.gradient(values, None, None), next(theirs.parameters()).grad)


def test_learned_numbers_move_as_by_torchs_adam():
    rule, p = balancers['uncertainty'](NAMES, lr=.1), torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([p], lr=.1)
    for losses in torch.rand(20, 3)*3:
        p.grad = rule.gradient(losses, None, None)
        adam.step()
        rule.learn(losses)
        torch.testing.assert_close(rule.value, p.detach())


def test_dynamic_weights_are_torchjds():
    ours, theirs = balancers['dwa'](NAMES), jd.DWA(temperature=2.)
    ours.epoch_steps = 4
    values = torch.tensor(np.random.default_rng(0).uniform(.1, 3, (20, 3)), dtype=torch.float32)
    for ours.step, v in enumerate(values):
        x = v.clone().requires_grad_()
        theirs(x).backward()
        torch.testing.assert_close(ours.coefficients(None), x.grad)
        ours.learn(v)
        if ours.step % 4 == 3: theirs.step()


def test_famo_is_torchjds_over_many_steps():
    (w, losses), (v, others) = problem(), problem()
    ours, theirs = balancers['famo'](NAMES), jd.FAMO(3)
    for n in range(40):
        now, _ = step(ours, losses, w, n)
        v.grad = None
        theirs(stacked(others())).backward()
        torch.testing.assert_close(w.grad, v.grad, rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            w -= .01*w.grad
            v.copy_(w)
            ours.learn(now, stacked(losses()))
            theirs.update(stacked(others()))
        torch.testing.assert_close(ours.value, next(theirs.parameters()).detach(), rtol=1e-3, atol=1e-5)
    assert ours.value.abs().max() > .1


def test_smooth_tchebycheff_is_torchjds_on_the_logarithms():
    "The form of LibMTL and the authors' code: TorchJD's, of log(L / size), times K; before that, the sum of logarithms"
    w, losses = problem()
    rule = balancers['stch'](NAMES, mu=.3, steps=2)
    for n in range(2):
        values, _ = step(rule, losses, w, n)
        expected = torch.autograd.grad(stacked(losses()).log().sum(), w)[0]
        torch.testing.assert_close(w.grad, expected, rtol=1e-4, atol=1e-5)
        rule.learn(values*(1+n))
    size = values*1.5                                       # the mean of once and twice the losses
    with torch.no_grad(): w += .1*torch.randn(6)
    step(rule, losses, w, 2)
    theirs = 3*jd.STCH(.3, weights=torch.ones(3))(torch.log(stacked(losses())/size))
    torch.testing.assert_close(w.grad, torch.autograd.grad(theirs, w)[0], rtol=1e-4, atol=1e-5)


def test_dual_balancing_is_libmtls():
    "LibMTL.weighting.DB_MTL, written out: its buffer of gradients of the logarithms, brought to the longest"
    w, losses = problem()
    rule, buffer = balancers['db_mtl'](NAMES, beta=.9, sigma=.5), torch.zeros(3, 6)
    for n in range(4):
        grads = rows_of({k: torch.log(v+1e-8) for k, v in losses().items()}, w)
        buffer = grads + .9/(n+1)**.5*(buffer-grads)
        norm = buffer.norm(dim=-1)
        expected = sum(norm.max()/(norm[i]+1e-8)*buffer[i] for i in range(3))
        step(rule, losses, w, n)
        torch.testing.assert_close(w.grad, expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad(): w -= .05*w.grad


@pytest.mark.parametrize('k', [2, 3])
def test_pcgrad_is_torchjds(k):
    for seed in range(5):
        w, losses = problem(seed, k)
        grads = rows_of(losses(), w)
        torch.manual_seed(seed)
        theirs = jd_aggregation.PCGrad()(grads)
        torch.manual_seed(seed)
        torch.testing.assert_close(project(grads), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name,theirs,factor', [
    ('upgrad', jd_aggregation.UPGrad(), 3), ('aligned_mtl', jd_aggregation.AlignedMTL(), 3),
    ('cagrad', jd_aggregation.CAGrad(.4), 3), ('nash_mtl', jd_aggregation.NashMTL(3), 1)])
def test_aggregators_are_torchjds(name, theirs, factor):
    w, losses = problem()
    grads = rows_of(losses(), w)
    step(balancers[name](NAMES), losses, w)
    torch.testing.assert_close(w.grad, theirs(grads)*factor, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('name', ['pcgrad', 'upgrad', 'cagrad', 'aligned_mtl'])
def test_gradients_without_a_conflict_are_added_up(name):
    "Equal lengths, at right angles: there is nothing to settle"
    grads = 2*torch.eye(3, 5)
    rule = make_balancer(name, NAMES, **(dict(c=0.) if name == 'cagrad' else {}))
    torch.testing.assert_close(rule.combine(grads, torch.ones(3, dtype=bool)), grads.sum(0), rtol=1e-3, atol=1e-3)


def test_gradnorm_follows_its_paper():
    "Against the derivative of the paper's loss, taken by autograd"
    w, losses = problem()
    rule = balancers['gradnorm'](NAMES)
    first, matrix = step(rule, losses, w)
    rule.learn(first, grads=matrix)
    with torch.no_grad(): w -= .001*w.grad
    rule.value.copy_(torch.tensor([1.7, .9, .4]))
    now, matrix = step(rule, losses, w, 1)
    scale = rule.value.clone().requires_grad_()
    G, r = scale*rows_of(losses(), w).norm(dim=1), now/first
    target = (G.mean()*(r/r.mean())**1.5).detach()
    (G-target).abs().sum().backward()
    torch.testing.assert_close(rule.gradient(now, None, matrix), scale.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(w.grad, scale.detach() @ rows_of(losses(), w), rtol=1e-4, atol=1e-4)
    rule.learn(now, grads=matrix)
    assert float(rule.value.sum()) == pytest.approx(3)


def test_random_coefficients_are_a_function_of_the_step():
    a, b = (balancers['random'](NAMES) for _ in range(2))
    drawn = [a.coefficients(None) for a.step in range(20)]
    b.step = 7
    assert torch.equal(b.coefficients(None), drawn[7]) and len({tuple(x.tolist()) for x in drawn}) == 20
    for d in drawn: assert float(d.sum()) == pytest.approx(1)


def test_importances_go_to_a_task_or_one_of_its_losses():
    rule = balancers['fixed'](['a', 'b.x', 'b.y'], importances={'b': 3, 'b.y': .5})
    assert rule.coefficients(None).tolist() == [1, 3, .5]
    dotted = balancers['fixed'](['own/x.Women', 'own/x.U.S.', 'own/xy.a'], importances={'own/x': 3, 'own/x.U.S.': 2})
    assert dotted.coefficients(None).tolist() == [3, 2, 1]
    dotted = balancers['fixed'](['own/x.Women', 'own/x.U.S.'], importances={'own/x': 3})
    assert dotted.coefficients(None).tolist() == [3, 3]
    for wrong in ('c', 'b.z'):
        with pytest.raises(HatenbError, match=wrong): balancers['fixed'](['a', 'b.x'], importances={wrong: 1.})


def test_tries_of_importances_spread_over_the_simplex():
    tries = importance_tries(NAMES, 200, seed=1)
    values = np.array([list(t.values()) for t in tries[1:]])
    assert tries[0] == dict.fromkeys(NAMES, 1.) and (values > 0).all()
    np.testing.assert_allclose(values.mean(1), 1, atol=1e-3)
    np.testing.assert_allclose(values.mean(0), 1, atol=.15)       # no loss is preferred
    assert importance_tries(NAMES, 200, seed=2)[1] != tries[1]


# ---- what is missing or misspelt

@pytest.mark.parametrize('name,missing', [('upgrad', 'torchjd'), ('nash_mtl', 'torchjd')])
def test_a_missing_package_is_named_with_its_remedy(name, missing, monkeypatch):
    inner = builtins.__import__
    def without(module, *args, **kw):
        if module.startswith(missing): raise ImportError(f'No module named {module!r}')
        return inner(module, *args, **kw)
    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(HatenbError, match=r'hatenb\[balancing\]'): balancers[name](NAMES)


@pytest.mark.parametrize('name,options', [('stch', dict(mu=0.)), ('dwa', dict(steps=0)), ('cagrad', dict(c=-1.)),
                                          ('fixed', dict(importance={})), ('upgrad', dict(c=1)),
                                          ('nash_mtl', dict(update_weights_every=5))])
def test_wrong_options_are_refused(name, options):
    with pytest.raises(HatenbError, match='balancing_options'): make_balancer(name, NAMES, **options)


def test_the_table_tells_of_every_rule():
    table = balancing_table().set_index('rule')
    assert list(table.index) == list(balancers)
    for n in ('label', 'formula', 'costs', 'source'): assert (table[n] != '').all()
    assert table.costs['equal'] == 'nothing' and 'backward pass for each loss' in table.costs['upgrad']


# ---- losses that are absent

@pytest.mark.parametrize('name', list(balancers))
def test_an_absent_loss_keeps_its_number_and_leaves_no_trace(name):
    w, losses = problem()
    rule = balancers[name](NAMES)
    def without_c(): return {k: v for k, v in losses().items() if k != 'c'}
    def whole_step(n, of, rule=rule):
        now, matrix = step(rule, of, w, n)
        rule.learn(now, now*.9 if 'after' in rule.asks else None, matrix)
    for n in range(3): whole_step(n, losses)              # a momentum that would go on moving it
    before = {k: v.clone() for k, v in rule.state_dict().items()}
    for n in range(3, 6): whole_step(n, without_c)
    assert torch.isfinite(w.grad).all()
    for k, v in rule.state_dict().items():
        if name == 'gradnorm' and k == 'value': continue  # scaled to a sum
        assert torch.equal(torch.nan_to_num(before[k][2]), torch.nan_to_num(v[2])), k
    if name in ('equal', 'fixed', 'pcgrad', 'upgrad', 'aligned_mtl', 'cagrad', 'nash_mtl'):   # those without a memory
        mine = w.grad.clone()
        step(balancers[name](NAMES[:2]), without_c, w, 5)
        torch.testing.assert_close(mine, w.grad, rtol=1e-4, atol=1e-4)


# ---- in a run

@pytest.mark.parametrize('name,options', [
    ('fixed', dict(normalise_steps=5)), ('random', {}), ('dwa', dict(steps=2)), ('stch', dict(steps=4)), ('famo', {}),
    ('gradnorm', {}), ('db_mtl', {}), ('nash_mtl', {})])     # one of each sort of memory
def test_a_run_that_is_cut_off_goes_on_with_the_rules_state(tmp_path, name, options):
    config = TrainConfig(epochs=3, batch_size=16, checkpoint_steps=2)
    def trainer(folder):
        return Trainer(*small(THREE, limit=24), config, balancer=balancers[name](list(THREE), **options),
                       folder=tmp_path/folder)
    whole = trainer('whole')
    history = whole.fit()
    cut = trainer('cut')
    inner = cut.step
    def step(rows):
        if cut.progress.step == 5: raise KeyboardInterrupt
        return inner(rows)
    cut.step = step
    with pytest.raises(KeyboardInterrupt): cut.fit()
    again = trainer('cut')
    assert again.fit()[-1]['step'] == history[-1]['step'] and again.progress.step == whole.progress.step
    for k, p in whole.params.items(): torch.testing.assert_close(again.params[k], p, rtol=1e-4, atol=1e-5, msg=k)
    buffers = dict(again.balancer.named_buffers())
    for k, b in whole.balancer.named_buffers(): torch.testing.assert_close(buffers[k], b, rtol=1e-4, atol=1e-5,
                                                                          equal_nan=True, msg=k)
    used = [list(h['weights'].values()) for h in history]
    assert len(used) == 3 and all(np.isfinite(w).all() for w in used)
    assert [list(h['weights'].values()) for h in again.progress.history] == [pytest.approx(w, rel=1e-4) for w in used]


@pytest.fixture(scope='module')
def rationales(): return small(('mini/rationale',))


@pytest.mark.parametrize('name', list(balancers))
def test_a_step_without_any_loss_spoils_nothing(name, rationales):
    "Normal posts have no rationale, so a batch of them alone has nothing to learn from"
    model, posts = rationales
    trainer = Trainer(model, posts, TrainConfig(epochs=1, batch_size=4), balancer=balancers[name](['mini/rationale']))
    normal, others = undecided(posts['mini'], 4)
    assert not trainer.step({'mini': normal}) and torch.isfinite(flat(trainer.params.values())).all()
    assert trainer.step({'mini': others})['mini/rationale'] > 0
    assert torch.isfinite(flat(trainer.params.values())).all()


@pytest.mark.parametrize('name', ['uncertainty', 'gradnorm', 'imtl_l'])
def test_a_rule_learns_at_its_own_rate(name):
    "At a head's rate, with a head's rate of 1e-9, the coefficients would stand still"
    rule = balancers[name](['mini/label', 'mini/target'], lr=.5)
    config = TrainConfig(epochs=1, steps=3, batch_size=8, head_lr=1e-9, schedule='constant', warmup=0)
    trainer = Trainer(*small(('mini/label', 'mini/target')), config, balancer=rule)
    start = rule.coefficients(None)
    trainer.fit()
    assert (rule.coefficients(None)-start).abs().max() > .05


def test_the_history_holds_the_mean_of_the_coefficients_that_were_used():
    tasks = ['mini/label', 'mini/target', 'mini/rationale']
    rule = balancers['famo'](tasks)
    trainer = Trainer(*small(tasks), TrainConfig(epochs=2, steps=3, batch_size=8, max_positions=64), balancer=rule)
    used, inner = {}, rule.coefficients
    def coefficients(losses):
        used.setdefault(rule.step, inner(losses))         # what the gradients of the step are made with comes first
        return inner(losses)
    rule.coefficients = coefficients
    for i, h in enumerate(trainer.fit()):
        mean = torch.stack([used[s] for s in range(3*i, 3*i+3)]).mean(0)
        assert h['weights'] == pytest.approx(dict(zip(tasks, mean.tolist())), rel=1e-4)
        assert sum(h['weights'].values()) == pytest.approx(1, rel=1e-4)
