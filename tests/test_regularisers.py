"Regularisers: the nudges are where and as large as they say, terms add up over parts of a batch, attention is drawn to the marked words"
import numpy as np
import pytest
import torch

from hatenb.balancing import balancers
from hatenb.batches import Posts, collate, shard
from hatenb.core import HatenbError
from hatenb.corpora import frequencies
from hatenb.losses import loss_weights, make_loss
from hatenb.regularisers import divergence, embedding_sizes, make_regularisers, perturb, real_tokens, regularisers, sized
from hatenb.making import make_run as run, run_corpora, run_encoder
from hatenb.runs import RunConfig, run_model
from hatenb.training import TrainConfig, Trainer

TASKS = 'mini/label', 'mini/target', 'mini/rationale', 'mini_mhs/score'


def parts_of(tasks=TASKS, adapter='lora', options=None, seed=0):
    config = RunConfig(tasks, adapter, options if options is not None else dict(r=2), limit=32)
    encoder = run_encoder(config)
    corpora = run_corpora(config, encoder.tokenizer)
    model = run_model(config, encoder, {c: frequencies(d['train']) for c, d in corpora.items()})
    g = torch.Generator().manual_seed(seed)
    for p in model.trainable().values(): p.data += .03*torch.randn(p.shape, generator=g)
    return model, {c: Posts(d['train'], c) for c, d in corpora.items()}


@pytest.fixture(scope='module')
def multi(): return parts_of()


def test_a_nudge_is_as_large_as_it_says_and_only_at_real_sub_tokens(multi):
    model, posts = multi
    batch = collate(posts, {'mini': np.arange(6)})
    t = batch['mini']
    shift = sized(torch.randn(*t['input_ids'].shape, 384)*real_tokens(t), .1*embedding_sizes(model, t))
    torch.testing.assert_close(shift.flatten(1).norm(dim=1), .1*embedding_sizes(model, t))
    b = perturb(batch, {'mini': torch.ones_like(shift)})
    assert (b['mini']['shift'][t['token_word'] < 0] == 0).all() and (b['mini']['shift'][t['token_word'] >= 0] == 1).all()
    model.eval()
    with torch.no_grad():
        a = model(perturb(batch, {'mini': torch.zeros_like(shift)}))
        c = model(batch)
        d = model(perturb(batch, {'mini': shift}))
    for k in a: torch.testing.assert_close(a[k], c[k]); assert (d[k]-c[k]).abs().max() > 1e-3


@pytest.mark.parametrize('kind', ['multiclass', 'multilabel', 'tokens', 'regression'])
def test_divergences_are_those_of_torch(kind):
    g = torch.Generator().manual_seed(0)
    p, q = (torch.randn(4, 5, generator=g)*2 for _ in range(2))
    batch = dict(token_word=torch.tensor([[-1, 0, 0, 1, -1]]*4))
    if kind == 'regression': p, q = p[:, :1], q[:, :1]
    ours = divergence(kind, p, q, batch)
    D = torch.distributions
    if kind == 'multiclass': theirs = D.kl_divergence(D.Categorical(logits=p), D.Categorical(logits=q))
    if kind == 'multilabel': theirs = D.kl_divergence(D.Bernoulli(logits=p), D.Bernoulli(logits=q)).sum(1)
    if kind == 'tokens': theirs = D.kl_divergence(D.Bernoulli(logits=p), D.Bernoulli(logits=q))[:, 1:4].mean(1)
    if kind == 'regression': theirs = D.kl_divergence(D.Normal(p, 1.), D.Normal(q, 1.)).squeeze(1)
    torch.testing.assert_close(ours, theirs)
    assert divergence(kind, p, p, batch).abs().max() < 1e-6


@pytest.mark.parametrize('name', list(regularisers))
def test_terms_of_parts_add_up_to_that_of_the_batch(multi, name):
    model, posts = multi
    model.eval()
    model.encoder.attends = regularisers[name].attends
    try:
        losses = [make_loss(h) for h in model.heads.values()]
        rows = {'mini': np.arange(9), 'mini_mhs': np.arange(4)}
        batch, count = collate(posts, rows), {c: len(r) for c, r in rows.items()}
        totals, r = loss_weights(losses, batch), regularisers[name]()
        def term(b):
            torch.manual_seed(0)
            if r.attends: model(b)
            return r.term(model, b, count, losses, totals)
        whole, split = term(batch), [term(shard(batch, i, 2)) for i in range(2)]
        assert torch.isfinite(whole) and whole > 0
        tolerance = .5 if name == 'vat' else 1e-3           # one iteration from another random start finds another direction
        assert float(sum(split)) == pytest.approx(float(whole), rel=tolerance)
        (sum(split)).backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.trainable().values())
    finally:
        model.encoder.attends = False
        model.zero_grad()


@pytest.mark.parametrize('method,options', [('parallel', {}), ('branch', {}), ('seq_bn', {})])
@pytest.mark.parametrize('name', ['vat', 'adversarial'])
def test_nudges_reach_every_way_of_sharing(method, options, name):
    model, posts = parts_of(('mini/label', 'mini_mhs/score'), method, options)
    trainer = Trainer(model, posts, TrainConfig(epochs=1, batch_size=8, steps=2), regularisers=make_regularisers({name: {}}))
    history = trainer.fit()
    assert history[0]['losses'][type(trainer.regularisers[0]).__name__] > 0


def test_attention_is_drawn_to_the_marked_words():
    def share(model, posts):
        "Mean attention of [CLS] to marked words, over the attention of evenly spread eyes"
        model.eval(); model.encoder.attends = True
        t = collate(posts, {'mini': np.arange(32)})['mini']
        with torch.no_grad(): model({'mini': t})
        marked, real = (t['rationale_any'] > 0) & (t['label'] != 0)[:, None], t['token_word'] >= 0
        use = marked.any(1)
        a = model.encoder.attention[:, :6, 0].mean(1)
        return float(((a*marked).sum(1)/(a*real).sum(1)/(marked.sum(1)/real.sum(1)).clamp(min=1e-6))[use].mean())
    model, posts = parts_of(('mini/label',), options=dict(r=8))
    before = share(model, posts)
    trainer = Trainer(model, posts, TrainConfig(epochs=15, batch_size=16, lr=3e-3), regularisers=make_regularisers({'attention': dict(weight=10.)}))
    trainer.fit()
    assert share(model, posts) > before+.1


def test_attention_is_taught_where_there_are_rationales_and_elsewhere_left_alone(multi):
    "A batch, or a part of one, may hold no post of the corpus that has them"
    model, posts = multi
    trainer = Trainer(model, posts, TrainConfig(batch_size=8, max_positions=64), regularisers=make_regularisers({'attention': {}}))
    try:
        marked = np.flatnonzero(posts['mini'].flat['label'] != 0)[:1]
        assert trainer.step({'mini': marked, 'mini_mhs': np.arange(9)})['SupervisedAttention'] > 0
        assert trainer.step({'mini_mhs': np.arange(4)})['SupervisedAttention'] == 0
        with pytest.raises(HatenbError, match='rationales'): Trainer(model, {'mini_mhs': posts['mini_mhs']}, TrainConfig(), regularisers=make_regularisers({'attention': {}}))
    finally: model.encoder.attends = False


@pytest.mark.parametrize('name', list(regularisers))
def test_a_batch_in_which_no_answer_counts(name):
    "Normal posts have no rationale: a step on them alone has no loss"
    model, posts = parts_of(('mini/rationale',))
    trainer = Trainer(model, posts, TrainConfig(batch_size=4), regularisers=make_regularisers({name: {}}))
    normal = np.flatnonzero(posts['mini'].flat['label'] == 0)[:3]
    out = trainer.step({'mini': normal})
    assert 'mini/rationale' not in out and np.isfinite(out[type(trainer.regularisers[0]).__name__])


def test_a_run_records_the_terms(tmp_path):
    config = RunConfig.from_dict(dict(tasks=['mini/label'], adapter_options=dict(r=2), limit=16, regularisers=dict(vat=dict(weight=.5)), train=dict(epochs=1, batch_size=8)))
    assert run(config, tmp_path)['history'][0]['losses']['VirtualAdversarial'] >= 0
    assert config.id != RunConfig.from_dict(dict(tasks=['mini/label'], adapter_options=dict(r=2), limit=16, train=dict(epochs=1, batch_size=8))).id


@pytest.mark.parametrize('given,words', [(dict(vatt={}), 'vatt'), (dict(vat=dict(epsilo=1)), 'does not take')])
def test_what_is_misspelt_is_told(given, words):
    with pytest.raises(HatenbError, match=words): RunConfig(('label',), regularisers=given)


def test_a_regulariser_survives_projected_gradients(multi):
    "PCGrad changes the losses' gradients and leaves the regulariser's alone"
    model, posts = multi
    grads = {}
    for name, regs in (('both', {'adversarial': {}}), ('plain', {})):
        trainer = Trainer(model, posts, TrainConfig(batch_size=8, clip=1e9), balancer=balancers['pcgrad']([n for l in [make_loss(h) for h in model.heads.values()] for n in l.names]), regularisers=make_regularisers(regs))
        model.eval()
        trainer.optimizer.step = trainer.optimizer.zero_grad = lambda: None
        rows = {'mini': np.arange(6), 'mini_mhs': np.arange(2)}
        trainer.step(rows)
        grads[name] = {k: p.grad.clone() for k, p in trainer.params.items() if p.grad is not None}
        for p in trainer.params.values(): p.grad = None
    batch = collate(posts, rows)
    losses = [make_loss(h) for h in model.heads.values()]
    regularisers['adversarial']().term(model, batch, {c: len(r) for c, r in rows.items()}, losses, loss_weights(losses, batch)).backward()
    own = {k: p.grad.clone() for k, p in model.trainable().items() if p.grad is not None}
    for k in own: torch.testing.assert_close(grads['both'][k]-grads['plain'][k], own[k], rtol=1e-2, atol=1e-5, msg=k)
    model.zero_grad()
