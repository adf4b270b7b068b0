"Regularisers: the nudges are where and as large as they say, terms add up over parts, order is no matter"
import numpy as np
import pytest
import torch

from hatenb.balancing import balancers
from hatenb.batches import collate, shard
from hatenb.core import HatenbError
from hatenb.kinds import kind_of, loss_weights, make_loss
from hatenb.model import Part
from hatenb.regularisers import embedding_sizes, make_regularisers, noise_like, perturb, regularisers, rescale
from hatenb.training import TrainConfig, Trainer
from parts import ALL, small, undecided

SCORED = 'mini/label', 'mini_mhs/score'


@pytest.fixture(scope='module')
def multi(): return small(ALL, noise=.03)


def one_step(model, posts, rows, max_positions=2048, **given):
    "The gradients that a step leaves, without dropout"
    trainer = Trainer(model, posts, TrainConfig(batch_size=8, clip=1e9, max_positions=max_positions), **given)
    model.eval()
    trainer.optimizer.step = trainer.optimizer.zero_grad = lambda: None
    found = trainer.step(rows)
    grads = {k: p.grad.clone() for k, p in trainer.params.items() if p.grad is not None}
    for p in trainer.params.values(): p.grad = None
    model.encoder.attends = False
    return found, grads


def test_a_nudge_is_as_large_as_it_says_and_only_at_real_sub_tokens(multi):
    model, posts = multi
    batch = collate(posts, {'mini': np.arange(6)})
    t = batch['mini']
    shift = rescale(noise_like(model, t), .1*embedding_sizes(model, t))
    torch.testing.assert_close(shift.flatten(1).norm(dim=1), .1*embedding_sizes(model, t))
    shifted = perturb(batch, {'mini': torch.ones_like(shift)})['mini']['shift']
    assert (shifted[t['token_word'] < 0] == 0).all() and (shifted[t['token_word'] >= 0] == 1).all()
    model.eval()
    with torch.no_grad(): same, plain, nudged = (model(b) for b in (perturb(batch, {'mini': 0*shift}), batch,
                                                                    perturb(batch, {'mini': shift})))
    for k in plain:
        torch.testing.assert_close(same[k], plain[k])
        assert (nudged[k]-plain[k]).abs().max() > 1e-3


@pytest.mark.parametrize('kind', ['multiclass', 'multilabel', 'tokens', 'regression'])
def test_divergences_are_those_of_torch(kind):
    g, D, divergence = torch.Generator().manual_seed(0), torch.distributions, kind_of(kind).divergence
    p, q = (torch.randn(4, 5, generator=g)*2 for _ in range(2))
    batch = dict(token_word=torch.tensor([[-1, 0, 0, 1, -1]]*4))
    if kind == 'regression': p, q = p[:, :1], q[:, :1]
    if kind == 'multiclass': theirs = D.kl_divergence(D.Categorical(logits=p), D.Categorical(logits=q))
    if kind == 'multilabel': theirs = D.kl_divergence(D.Bernoulli(logits=p), D.Bernoulli(logits=q)).sum(1)
    if kind == 'tokens': theirs = D.kl_divergence(D.Bernoulli(logits=p), D.Bernoulli(logits=q))[:, 1:4].mean(1)
    if kind == 'regression': theirs = D.kl_divergence(D.Normal(p, 1.), D.Normal(q, 1.)).squeeze(1)
    torch.testing.assert_close(divergence(p, q, batch), theirs)
    assert divergence(p, p, batch).abs().max() < 1e-6


@pytest.mark.parametrize('name', list(regularisers))
def test_terms_of_parts_add_up_to_that_of_the_batch(multi, name):
    model, posts = multi
    model.eval()
    r, losses = regularisers[name](), [make_loss(h) for h in model.heads.values()]
    rows = {'mini': np.arange(9), 'mini_mhs': np.arange(4)}
    batch, sizes = collate(posts, rows), {c: len(x) for c, x in rows.items()}
    model.encoder.attends, totals = r.attends, loss_weights(losses, batch)
    def term(b):
        part = Part(b, sizes, totals)
        torch.manual_seed(0)
        model.pass_through(part)
        return r.term(model, part, losses)
    whole, split = term(batch), sum(term(shard(batch, i, 2)) for i in range(2))
    model.encoder.attends = False
    assert torch.isfinite(whole) and whole > 0
    tolerance = .5 if name == 'vat' else 1e-3     # one iteration from another random start finds another direction
    assert float(split) == pytest.approx(float(whole), rel=tolerance)


@pytest.mark.parametrize('max_positions', [2048, 64])
def test_order_and_company_change_nothing(multi, max_positions):
    "Each term is the same alone, with others, and in any order; and gradients add up"
    model, posts = multi
    rows = {'mini': np.arange(6), 'mini_mhs': np.arange(2)}
    def made(*names):
        chosen = make_regularisers(dict.fromkeys(names, {}))
        return one_step(model, posts, rows, max_positions, regularisers=chosen)
    (there, a), (back, b) = made('attention', 'vat', 'adversarial'), made('adversarial', 'vat', 'attention')
    assert there == back
    for k in a: assert torch.equal(a[k], b[k]), k
    _, plain = made()
    alone = [made(name) for name in ('attention', 'vat', 'adversarial')]
    for found, _ in alone: assert found.items() <= there.items()
    for k in a:
        expected = plain[k]+sum(grads[k]-plain[k] for _, grads in alone)
        torch.testing.assert_close(a[k], expected, rtol=1e-3, atol=1e-5, msg=k)


def test_terms_survive_rules_that_combine_gradients(multi):
    "PCGrad changes the losses' gradients and leaves the regulariser's alone"
    model, posts = multi
    rows, rule = {'mini': np.arange(6), 'mini_mhs': np.arange(2)}, balancers['pcgrad']
    term = make_regularisers({'adversarial': {}})
    _, both = one_step(model, posts, rows, balancer=rule(list(ALL)), regularisers=term)
    _, plain = one_step(model, posts, rows, balancer=rule(list(ALL)))
    _, summed = one_step(model, posts, rows)
    _, with_term = one_step(model, posts, rows, regularisers=term)
    for k in both: torch.testing.assert_close(both[k]-plain[k], with_term[k]-summed[k], rtol=1e-2, atol=1e-5, msg=k)


@pytest.mark.parametrize('name', ['vat', 'adversarial'])
def test_nudges_reach_every_route(name):
    model, posts = small(SCORED, routes={'mini/label': 'a', 'mini_mhs/score': 'b'})
    config = TrainConfig(epochs=1, batch_size=8, steps=2)
    trainer = Trainer(model, posts, config, regularisers=make_regularisers({name: {}}))
    history = trainer.fit()
    assert history[0]['losses'][trainer.regularisers[0].name] > 0


def test_attention_is_drawn_to_the_marked_words():
    def share(model, posts):
        "Mean attention of [CLS] to marked words, over the attention of evenly spread eyes"
        model.eval()
        model.encoder.attends = True
        t = collate(posts, {'mini': np.arange(32)})['mini']
        with torch.no_grad(): model({'mini': t})
        marked, real = (t['rationale_any'] > 0) & (t['label'] != 0)[:, None], t['token_word'] >= 0
        a, use = model.encoder.attention[:, :6, 0].mean(1), marked.any(1)
        even = marked.sum(1)/real.sum(1)
        return float(((a*marked).sum(1)/(a*real).sum(1)/even.clamp(min=1e-6))[use].mean())
    model, posts = small(('mini/label',), r=8)
    before = share(model, posts)
    config = TrainConfig(epochs=15, batch_size=16, lr=3e-3)
    Trainer(model, posts, config, regularisers=make_regularisers({'attention': dict(weight=10.)})).fit()
    assert share(model, posts) > before+.1


def test_attention_is_taught_where_there_are_rationales_and_elsewhere_left_alone(multi):
    "A batch, or a part of one, may hold no post of the corpus that has them"
    model, posts = multi
    made, config = make_regularisers({'attention': {}}), TrainConfig(batch_size=8, max_positions=64)
    trainer = Trainer(model, posts, config, regularisers=made)
    try:
        _, marked = undecided(posts['mini'], 1)
        assert trainer.step({'mini': marked, 'mini_mhs': np.arange(9)})['SupervisedAttention'] > 0
        assert trainer.step({'mini_mhs': np.arange(4)})['SupervisedAttention'] == 0
        with pytest.raises(HatenbError, match='rationales'):
            Trainer(model, {'mini_mhs': posts['mini_mhs']}, config, regularisers=made)
    finally: model.encoder.attends = False


@pytest.mark.parametrize('name', list(regularisers))
def test_a_batch_in_which_no_answer_counts(name):
    "Normal posts have no rationale: a step on them alone has no loss"
    model, posts = small(('mini/rationale',))
    trainer = Trainer(model, posts, TrainConfig(batch_size=4), regularisers=make_regularisers({name: {}}))
    out = trainer.step({'mini': undecided(posts['mini'], 3)[0]})
    assert 'mini/rationale' not in out and np.isfinite(out[trainer.regularisers[0].name])


@pytest.mark.parametrize('given,words', [(dict(vatt={}), 'vatt'), (dict(vat=dict(epsilo=1)), 'does not take')])
def test_what_is_misspelt_is_told(given, words):
    with pytest.raises(HatenbError, match=words): make_regularisers(given)
