"Balancing rules: agreement with TorchJD on the same losses and gradients, losses that are absent, and runs that are cut off and go on"
import numpy as np
import pytest
import torch
import torchjd.aggregation as jd_aggregation
import torchjd.scalarization as jd

from hatenb.balancing import balancers, last_layer, project
from hatenb.batches import Posts
from hatenb.corpora import frequencies
from hatenb.making import run_corpora, run_encoder
from hatenb.runs import RunConfig, run_model
from hatenb.training import TrainConfig, Trainer

NAMES = ['a', 'b', 'c']


def problem(seed=0, k=3):
    "Shared weights, and losses of them that differ in size"
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(6, generator=g).requires_grad_()
    M, y = torch.randn(k, 4, 6, generator=g), torch.randn(k, 4, generator=g)
    return w, lambda: {n: (10.**i)*(M[i] @ w-y[i]).square().mean() for i, n in enumerate(NAMES[:k])}


def step(rule, losses, w, n=0):
    "Gradients as a training step leaves them"
    shared = {'layer.0.w': w}
    w.grad = None
    rule.before_step(n, shared)
    now = losses()
    rule.backward(now, shared)
    now = {k: float(v.detach()) for k, v in now.items()}
    rule.combine(now, shared)
    return now


def stacked(losses): return torch.stack(list(losses.values()))


# ---- agreement with TorchJD

def test_uncertainty_is_torchjds():
    w, losses = problem()
    ours, theirs = balancers['uncertainty'](NAMES), jd.UW(3)
    with torch.no_grad(): ours.log_variance.copy_(torch.tensor([.3, -.5, 1.])); next(theirs.parameters()).copy_(ours.log_variance)
    step(ours, losses, w)
    mine, s = w.grad.clone(), ours.log_variance.grad.clone()
    w.grad = None
    theirs(stacked(losses())).backward()
    torch.testing.assert_close(mine, w.grad)
    torch.testing.assert_close(s, next(theirs.parameters()).grad)


def test_dynamic_weights_are_torchjds():
    ours, theirs = balancers['dwa'](NAMES), jd.DWA(temperature=2.)
    rng = np.random.default_rng(0)
    for epoch in range(5):
        values = torch.tensor(rng.uniform(.1, 3, (4, 3)), dtype=torch.float32)
        for v in values:
            x = v.clone().requires_grad_()
            theirs(x).backward()
            torch.testing.assert_close(ours.weights(), x.grad)
        theirs.step()
        ours.after_epoch(dict(zip(NAMES, values.mean(0).tolist())), epoch)


def test_famo_is_torchjds_over_many_steps():
    (w, losses), (v, others) = problem(), problem()
    ours, theirs = balancers['famo'](NAMES), jd.FAMO(3)
    for n in range(40):
        now = step(ours, losses, w, n)
        v.grad = None
        theirs(stacked(others())).backward()
        torch.testing.assert_close(w.grad, v.grad, rtol=1e-3, atol=1e-5)
        with torch.no_grad(): w -= .01*w.grad; v.copy_(w)
        with torch.no_grad(): ours.after_step(now, n, {k: float(x) for k, x in losses().items()}); theirs.update(stacked(others()))
        torch.testing.assert_close(ours.logits, next(theirs.parameters()).detach(), rtol=1e-3, atol=1e-5)
    assert ours.logits.abs().max() > .1


@pytest.mark.parametrize('k', [2, 3])
def test_pcgrad_is_torchjds(k):
    for seed in range(5):
        w, losses = problem(seed, k)
        grads = torch.stack([torch.autograd.grad(l, w)[0] for l in losses().values()])
        torch.manual_seed(seed); theirs = jd_aggregation.PCGrad()(grads)
        torch.manual_seed(seed); ours = project(grads)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    w, losses = problem(1, 2)                             # with two losses the order does not matter
    rule = balancers['pcgrad'](NAMES[:2])
    step(rule, losses, w)
    grads = torch.stack([torch.autograd.grad(l, w)[0] for l in losses().values()])
    torch.testing.assert_close(w.grad, jd_aggregation.PCGrad()(grads), rtol=1e-4, atol=1e-4)


def test_gradnorm_follows_its_paper():
    "Against the derivative of the paper's loss, taken by autograd"
    w, losses = problem()
    rule = balancers['gradnorm'](NAMES)
    first = step(rule, losses, w)
    with torch.no_grad(): w -= .001*w.grad
    rule.after_step(first, 0)
    with torch.no_grad(): rule.scale.copy_(torch.tensor([1.7, .9, .4]))
    now = step(rule, losses, w, 1)
    scale = rule.scale.detach().clone().requires_grad_()
    norms = torch.stack([torch.autograd.grad(l, w)[0].norm() for l in losses().values()])
    G = scale*norms
    r = torch.tensor([now[n]/first[n] for n in NAMES])
    target = (G.mean()*(r/r.mean())**1.5).detach()
    (G-target).abs().sum().backward()
    torch.testing.assert_close(rule.scale.grad, scale.grad, rtol=1e-4, atol=1e-5)
    expected = sum(s*torch.autograd.grad(l, w)[0] for s, l in zip(rule.scale.detach(), losses().values()))
    torch.testing.assert_close(w.grad, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad(): rule.scale -= .01*rule.scale.grad
    rule.after_step(now, 1)
    assert float(rule.scale.sum()) == pytest.approx(3)


def test_random_weights_are_a_function_of_the_step():
    a, b = (balancers['random'](NAMES) for _ in range(2))
    drawn = []
    for n in range(20):
        a.before_step(n, {})
        drawn.append(a.weights().clone())
        assert float(a.weights().sum()) == pytest.approx(1)
    b.before_step(7, {})
    assert torch.equal(b.weights(), drawn[7]) and len({tuple(x.tolist()) for x in drawn}) == 20


# ---- losses that are absent

@pytest.mark.parametrize('name', list(balancers))
def test_an_absent_loss_keeps_its_weight_and_leaves_no_trace(name):
    w, losses = problem()
    rule, only = balancers[name](NAMES), lambda: {k: v for k, v in losses().items() if k != 'c'}
    optimizer = torch.optim.Adam(rule.parameters(), lr=.01) if list(rule.parameters()) else None
    def whole_step(n, of=only):
        now = step(rule, of, w, n)
        if optimizer: optimizer.step(); optimizer.zero_grad()
        rule.after_step(now, n, {k: v*.9 for k, v in now.items()} if rule.looks_after else None)
        return now
    for n in range(3): whole_step(n, losses)              # so that Adam has a momentum that would go on moving the weight
    before = {k: v.clone() for k, v in rule.state_dict().items()}
    for n in range(3, 6): whole_step(n)
    assert torch.isfinite(w.grad).all() and torch.isfinite(rule.weights()).all()
    after = rule.state_dict()
    for k in before:
        if k in ('drawn', 'scale'): continue              # drawn anew; scaled to a sum
        assert torch.equal(torch.nan_to_num(before[k][2]), torch.nan_to_num(after[k][2])), k
    two = balancers[name](NAMES[:2])                      # and the others get what they would get without it
    if name in ('equal', 'fixed', 'pcgrad'):
        mine = w.grad.clone()
        step(two, only, w, 5)
        torch.testing.assert_close(mine, w.grad)


def test_the_last_layer_is_found_by_its_number():
    shared = {f'encoder.layer.{i}.x.lora_{m}': torch.zeros(1)+i for i in (2, 10, 9) for m in 'AB'}
    assert [float(p) for p in last_layer(shared)] == [10, 10]
    assert len(last_layer({'w': torch.zeros(1), 'v': torch.zeros(1)})) == 2


# ---- in a run

@pytest.mark.parametrize('name,options', [*((n, {}) for n in balancers if n != 'equal'), ('fixed', dict(normalise_steps=5)), ('dwa', dict(steps=2))])
def test_a_run_that_is_cut_off_goes_on_with_the_rules_state(tmp_path, name, options):
    config = RunConfig(('mini/label', 'mini/target', 'mini_mhs/score'), adapter_options=dict(r=2), limit=24)
    def trainer(folder):
        encoder = run_encoder(config)
        corpora = run_corpora(config, encoder.tokenizer)
        model = run_model(config, encoder, {c: frequencies(d['train']) for c, d in corpora.items()})
        rule = balancers[name](config.tasks, **options)
        return Trainer(model, {c: Posts(d['train'], c) for c, d in corpora.items()}, TrainConfig(epochs=3, batch_size=16, checkpoint_steps=2), balancer=rule, folder=tmp_path/folder)
    whole = trainer('whole')
    history = whole.fit()
    cut = trainer('cut')
    stop = 5
    inner = cut.step
    def step(rows):
        if cut.progress.step == stop: raise KeyboardInterrupt
        return inner(rows)
    cut.step = step
    with pytest.raises(KeyboardInterrupt): cut.fit()
    again = trainer('cut')
    assert again.fit()[-1]['step'] == history[-1]['step'] and again.progress.step == whole.progress.step
    for k, p in whole.params.items(): torch.testing.assert_close(again.params[k], p, rtol=1e-4, atol=1e-5, msg=k)
    for k, b in whole.balancer.named_buffers(): torch.testing.assert_close(dict(again.balancer.named_buffers())[k], b, rtol=1e-4, atol=1e-5, equal_nan=True, msg=k)
    weights = [list(h['weights'].values()) for h in history]
    assert len(weights) == 3 and all(np.isfinite(w).all() for w in weights)
    assert [list(h['weights'].values()) for h in again.progress.history] == [pytest.approx(w, rel=1e-4) for w in weights]
    if name != 'pcgrad' and (name, options) != ('fixed', {}): assert weights[0] != weights[2]


@pytest.mark.parametrize('name', list(balancers))
def test_a_step_without_any_loss_changes_no_weight(name):
    "Normal posts have no rationale, so a batch of them alone has nothing to learn from"
    config = RunConfig(('mini/rationale',), adapter_options=dict(r=2), limit=32)
    encoder = run_encoder(config)
    corpora = run_corpora(config, encoder.tokenizer)
    model = run_model(config, encoder, {c: frequencies(d['train']) for c, d in corpora.items()})
    posts = Posts(corpora['mini']['train'], 'mini')
    trainer = Trainer(model, {'mini': posts}, TrainConfig(epochs=1, batch_size=4), balancer=balancers[name](config.tasks))
    normal, marked = np.flatnonzero(posts.flat['label'] == 0)[:4], np.flatnonzero(posts.flat['label'] != 0)[:4]
    assert not trainer.step({'mini': normal}) and torch.isfinite(torch.cat([p.flatten() for p in trainer.params.values()])).all()
    assert trainer.step({'mini': marked})['mini/rationale'] > 0 and torch.isfinite(torch.cat([p.flatten() for p in trainer.params.values()])).all()


@pytest.mark.parametrize('name', ['uncertainty', 'gradnorm'])
def test_a_rule_learns_at_its_own_rate(name):
    "At a head's rate, with a head's rate of 1e-9, the weights would stand still"
    config = RunConfig(('mini/label', 'mini/target'), adapter_options=dict(r=2), limit=32)
    encoder = run_encoder(config)
    corpora = run_corpora(config, encoder.tokenizer)
    model = run_model(config, encoder, {c: frequencies(d['train']) for c, d in corpora.items()})
    rule = balancers[name](config.tasks, lr=.5)
    trainer = Trainer(model, {c: Posts(d['train'], c) for c, d in corpora.items()}, TrainConfig(epochs=1, steps=3, batch_size=8, head_lr=1e-9, schedule='constant', warmup=0), balancer=rule)
    start, p = rule.weights().clone(), next(rule.parameters())
    assert [g['lr'] for g in trainer.optimizer.param_groups if any(x is p for x in g['params'])] == [.5]
    trainer.fit()
    assert (rule.weights()-start).abs().max() > .2


def test_the_history_holds_the_mean_of_the_weights_that_were_used():
    config = RunConfig(('mini/label', 'mini/target', 'mini/rationale'), adapter_options=dict(r=2), limit=32)
    encoder = run_encoder(config)
    corpora = run_corpora(config, encoder.tokenizer)
    model = run_model(config, encoder, {c: frequencies(d['train']) for c, d in corpora.items()})
    rule = balancers['famo'](config.tasks)
    trainer = Trainer(model, {c: Posts(d['train'], c) for c, d in corpora.items()}, TrainConfig(epochs=2, steps=3, batch_size=8), balancer=rule)
    used, inner = [], rule.forward
    def forward(losses):
        used.append({k: float(torch.autograd.grad(total := inner(losses), l, retain_graph=True)[0]) for k, l in losses.items()})
        return total
    rule.forward = forward
    history = trainer.fit()
    for i, h in enumerate(history):
        for k, w in h['weights'].items(): assert w == pytest.approx(np.mean([u[k] for u in used[3*i:3*i+3]]), rel=1e-4)
        assert sum(h['weights'].values()) == pytest.approx(1, rel=1e-4)
