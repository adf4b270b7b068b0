"Kinds: losses and heads: sums over any partition, torch's own functions, extreme logits, what is refused"

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings as hsettings, strategies as st

from hatenb.core import HatenbError
from hatenb.corpora import corpora
from hatenb.kinds import HeadConfig, kinds, loss_vector, loss_weights, losses, make_head, make_loss
from hatenb.tasks import Task, partition, question_of

COUNTED = dict(
    label=dict(share=[0.4, 0.25, 0.35]),
    target=dict(share=[0.2, 0.05, 0.02, 0.01, 0.01, 0.1, 0.15, 0.12, 0.03, 0.02, 0.08]),
    rationale={},
    text={},
    score=dict(mean=-0.6, sd=2.4),
)
TASKS = dict(multiclass='mini/label', multilabel='mini/target', tokens='mini/rationale', regression='mini_mhs/score')
WIDTH, LENGTH = 6, 7
quick = hsettings(max_examples=8, deadline=None)

# every registered loss, with options that change what it does
CASES = [
    ('cross_entropy', {}),
    ('cross_entropy', dict(balance=1.0, smoothing=0.1)),
    ('cross_entropy', dict(votes=True, balance=0.5)),
    ('binary', {}),
    ('binary', dict(balance=0.5, apart=True)),
    ('binary', dict(votes=True)),
    ('focal', {}),
    ('focal', dict(gamma=0.0, alpha=None)),
    ('focal', dict(gamma=0.5, gold='rationale_mean')),
    ('focal', dict(gamma=1.0, gold='rationale_majority')),
    ('token_binary', {}),
    ('squared', {}),
    ('huber', dict(delta=0.5)),
]
ids = [f'{n}-{"-".join(map(str, o))}' for n, o in CASES]


def loss_of(name, options, part=''):
    kind = losses[name].kinds[0]
    config = HeadConfig(loss=name, loss_options=options, dropout=0.0)
    return make_loss(make_head(Task.parse(TASKS[kind] + part), WIDTH, COUNTED, config))


def gold_batch(n, seed=0):
    "n posts with every gold column; labels of all sorts, undecided ones too"
    g = torch.Generator().manual_seed(seed)
    r = lambda *shape: torch.rand(*shape, generator=g)
    words = torch.randint(1, LENGTH - 1, (n,), generator=g)
    token_word = torch.arange(LENGTH)[None].repeat(n, 1) - 1
    token_word[token_word >= words[:, None]] = -1
    inside = (token_word >= 0).float()
    any_ = (r(n, LENGTH) < 0.5).float() * inside
    return dict(
        input_ids=torch.ones(n, LENGTH, dtype=torch.long),
        token_word=token_word,
        label=torch.randint(-1, 3, (n,), generator=g),
        label_dist=r(n, 3).softmax(-1),
        target=(r(n, 11) < 0.3).float(),
        target_dist=r(n, 11),
        rationale_any=any_,
        rationale_majority=any_ * (r(n, LENGTH) < 0.5),
        rationale_mean=any_ * r(n, LENGTH),
        score=r(n) * 6 - 3,
    )


def logits_for(loss, n, seed=0, scale=3.0):
    shape = dict(multiclass=(n, 3), multilabel=(n, len(loss.task.outputs)), tokens=(n, LENGTH), regression=(n, 1))[
        loss.task.kind
    ]
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def rows(batch, which):
    return {k: v[which] for k, v in batch.items()}


def test_every_loss_is_tested():
    assert {n for n, _ in CASES} == set(losses) - {
        'masked_cross_entropy'
    }  # whose logits are not one a post: test_language.py


@pytest.mark.parametrize('name,options', CASES, ids=ids)
@quick
@given(data=st.data(), n=st.integers(1, 12), seed=st.integers(0, 999))
def test_parts_add_up(name, options, data, n, seed):
    "However a batch is cut, sums and weights of the parts are those of the whole, and so are the gradients"
    loss, batch = loss_of(name, options), gold_batch(n, seed)
    of = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))
    x = logits_for(loss, n, seed).requires_grad_()
    whole, weight = loss.sums(x, batch), loss.weights(batch)
    assert whole.shape == weight.shape == (len(loss.names),)
    (grad,) = torch.autograd.grad(whole.sum(), x)
    parts = [(x[of == i], rows(batch, of == i)) for i in of.unique()]
    assert torch.allclose(sum(loss.weights(b) for _, b in parts), weight, rtol=1e-5)
    together = sum(loss.sums(l, b) for l, b in parts)
    assert torch.allclose(together, whole, rtol=1e-4, atol=1e-4)
    assert torch.allclose(torch.autograd.grad(together.sum(), x)[0], grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name,options', CASES, ids=ids)
@pytest.mark.parametrize('size', [0.0, 20.0, 40.0, 100.0, 1e4])
def test_extreme_logits_have_finite_losses_and_gradients(name, options, size):
    loss, batch = loss_of(name, options), gold_batch(16)
    x = (logits_for(loss, 16).sign() * size).requires_grad_()
    total = loss.sums(x, batch).sum()
    (grad,) = torch.autograd.grad(total, x)
    assert total.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize('name,options', CASES, ids=ids)
def test_gradients_agree_with_differences(name, options):
    loss, batch = (
        loss_of(name, options),
        {k: v.double() if v.is_floating_point() else v for k, v in gold_batch(5, 1).items()},
    )
    loss.head.double()
    loss.setup(**options)
    assert torch.autograd.gradcheck(
        lambda x: loss.sums(x, batch), logits_for(loss, 5, scale=1.0).double().requires_grad_()
    )


# ---- agreement with torch


@quick
@given(n=st.integers(1, 12), seed=st.integers(0, 999), smoothing=st.sampled_from([0.0, 0.1, 0.5]))
def test_cross_entropy_is_torchs(n, seed, smoothing):
    loss, batch = loss_of('cross_entropy', dict(smoothing=smoothing)), gold_batch(n, seed)
    x, y = logits_for(loss, n, seed), batch['label']
    assert loss.weights(batch).item() == pytest.approx((y >= 0).sum().item(), rel=1e-5)
    assert loss.sums(x, batch).item() == pytest.approx(
        F.cross_entropy(x, y, ignore_index=-1, label_smoothing=smoothing, reduction='sum').item(), rel=1e-4, abs=1e-5
    )


def test_weighted_cross_entropy_is_torchs_mean():
    loss, batch = loss_of('cross_entropy', dict(balance=1.0)), gold_batch(12)
    x = logits_for(loss, 12)
    ours = loss.sums(x, batch) / loss.weights(batch)
    share = torch.tensor(COUNTED['label']['share'])
    assert torch.allclose(ours, F.cross_entropy(x, batch['label'], weight=1 / share, ignore_index=-1))
    assert (loss.class_weight * share).sum().item() == pytest.approx(1)


@pytest.mark.parametrize('name', ['cross_entropy', 'binary'])
def test_an_output_without_a_training_post_does_not_take_the_whole_loss(name, monkeypatch):
    "With smoothing or votes it has some of the gold all the same"
    question = TASKS[losses[name].kinds[0]].partition('/')[2]
    share = [0.5, 0.5, 0.0] if question == 'label' else [0.5, 0.0] + [0.1] * 9
    monkeypatch.setitem(COUNTED, question, dict(share=share))
    loss = loss_of(name, dict(balance=1.0))
    weights = loss.class_weight if name == 'cross_entropy' else loss.pos_weight
    assert torch.allclose(weights, torch.tensor([1.0, 1.0, 1.0] if question == 'label' else [1.0, 1.0] + [9.0] * 9))


def test_votes_are_soft_labels():
    loss, batch = loss_of('cross_entropy', dict(votes=True)), gold_batch(12)
    x, known = logits_for(loss, 12), batch['label'] >= 0
    assert torch.allclose(
        loss.sums(x, batch)[0], F.cross_entropy(x[known], batch['label_dist'][known], reduction='sum')
    )


def test_undecided_posts_carry_no_weight():
    batch = gold_batch(12)
    undecided = dict(batch, label=torch.full((12,), -1))
    for name, options in CASES[:3]:
        loss = loss_of(name, options)
        x = logits_for(loss, 12).requires_grad_()
        total = loss.sums(x, undecided)
        assert (
            loss.weights(undecided).item() == 0
            and total.item() == 0
            and torch.autograd.grad(total, x)[0].abs().max() == 0
        )
        known = batch['label'] >= 0
        assert torch.allclose(loss.sums(x, batch), loss.sums(x[known], rows(batch, known)))
        # a batch without a decided post adds no entry, instead of 0/0
        assert (
            loss_vector([loss], {loss.task.key: x}, {'mini': undecided}, loss_weights([loss], {'mini': undecided}))
            == {}
        )


@pytest.mark.parametrize('balance', [0.0, 0.5, 1.0])
def test_binary_is_torchs(balance):
    apart, one, batch = (
        loss_of('binary', dict(balance=balance, apart=True)),
        loss_of('binary', dict(balance=balance)),
        gold_batch(9),
    )
    x, f = logits_for(one, 9), torch.tensor(COUNTED['target']['share'])
    each = F.binary_cross_entropy_with_logits(x, batch['target'], pos_weight=((1 - f) / f) ** balance, reduction='none')
    assert torch.allclose(apart.sums(x, batch), each.sum(0), rtol=1e-5) and torch.allclose(
        one.sums(x, batch), each.sum().reshape(1), rtol=1e-5
    )
    assert torch.allclose(one.sums(x, batch) / one.weights(batch), each.mean())
    assert torch.allclose(apart.sums(x, batch) / apart.weights(batch), each.mean(0))
    assert apart.names == [f'mini/target.{t}' for t in question_of('mini/target').outputs] and one.names == [
        'mini/target'
    ]


def test_a_part_of_the_targets_has_its_columns_only():
    batch, x = gold_batch(9), torch.randn(9, 11)
    whole = loss_of('binary', dict(apart=True, balance=0.5))
    parts = [loss_of('binary', dict(apart=True, balance=0.5), f':{i}/4') for i in (1, 2, 3, 4)]
    got = torch.cat([l.sums(x[:, l.task.places], batch) for l in parts])
    assert torch.allclose(got, whole.sums(x, batch))
    assert [n.rpartition('.')[2] for l in parts for n in l.names] == list(question_of('mini/target').outputs)


def plain_focal(x, y, alpha, gamma):
    "Lin et al. 2017, equation 5, one number at a time"
    p = 1 / (1 + np.exp(-x))
    pt, at = (p, alpha) if y else (1 - p, 1 - alpha)
    return -at * (1 - pt) ** gamma * np.log(pt)


@pytest.mark.parametrize('alpha,gamma', [(0.8, 2.0), (0.5, 1.0), (0.25, 0.5), (0.9, 0.0)])
def test_focal_is_the_papers(alpha, gamma):
    loss, batch = loss_of('focal', dict(alpha=alpha, gamma=gamma)), gold_batch(9)
    x = logits_for(loss, 9, scale=2.0)
    want = [
        plain_focal(x[i, j].item(), batch['rationale_any'][i, j].item(), alpha, gamma)
        for i in range(9)
        for j in range(LENGTH)
        if batch['label'][i] != 0 and batch['token_word'][i, j] >= 0
    ]
    assert loss.sums(x, batch).item() == pytest.approx(sum(want), rel=1e-4)
    assert loss.weights(batch).item() == len(want)


def test_token_binary_is_focal_without_focus_and_ignores_padding_and_normal_posts():
    loss, batch = loss_of('token_binary', {}), gold_batch(12)
    x = logits_for(loss, 12)
    use = (batch['token_word'] >= 0) & (batch['label'] != 0)[:, None]
    assert torch.allclose(
        loss.sums(x, batch)[0], F.binary_cross_entropy_with_logits(x[use], batch['rationale_any'][use], reduction='sum')
    )
    assert torch.equal(loss.sums(torch.where(use, x, 77.0), batch), loss.sums(x, batch))


def test_regression_losses_are_torchs_in_standard_deviations():
    batch = gold_batch(9)
    z = (batch['score'] + 0.6) / 2.4
    x = torch.randn(9, 1)
    assert torch.allclose(loss_of('squared', {}).sums(x, batch)[0], ((x[:, 0] - z) ** 2).sum())
    assert torch.allclose(
        loss_of('huber', dict(delta=0.7)).sums(x, batch)[0], F.huber_loss(x[:, 0], z, delta=0.7, reduction='sum')
    )


# ---- what is refused


def refused(name, task, options={}):
    with pytest.raises(HatenbError) as e:
        make_loss(make_head(Task.parse(task), WIDTH, COUNTED, HeadConfig(loss=name, loss_options=options)))
    return str(e.value)


@pytest.mark.parametrize('name', list(losses))
@pytest.mark.parametrize('kind', list(TASKS))
def test_a_loss_of_another_kind(name, kind):
    if kind in losses[name].kinds:
        make_loss(make_head(Task.parse(TASKS[kind]), WIDTH, COUNTED, HeadConfig(loss=name)))
    else:
        assert all(s in refused(name, TASKS[kind]) for s in (name, kind, TASKS[kind], losses[name].kinds[0]))


@pytest.mark.parametrize('name', list(losses))
def test_an_unknown_option(name):
    task = {**TASKS, 'language': 'mini/text'}[losses[name].kinds[0]]
    said = refused(name, task, dict(nonsense=1))
    assert 'nonsense' in said and task in said


def test_an_unknown_loss_and_a_gold_that_is_none():
    assert 'cross_entropy' in refused('cross_entrop', 'mini/label')
    for name in ('focal', 'token_binary'):
        assert 'rationale_some' in refused(name, 'mini/rationale', dict(gold='rationale_some'))


# ---- the loss vector and balancing


def test_losses_of_a_batch_cut_anywhere_are_those_of_the_whole():
    ls = [
        loss_of(n, o) for n, o in (('cross_entropy', {}), ('binary', dict(apart=True)), ('focal', {}), ('squared', {}))
    ]
    a, b = gold_batch(10), gold_batch(4, 1)
    logits = {l.task.key: logits_for(l, 4 if l.task.corpus == 'mini_mhs' else 10) for l in ls}
    whole = dict(mini=a, mini_mhs=b)
    totals = loss_weights(ls, whole)
    want, got = loss_vector(ls, logits, whole, totals), {}
    # the second corpus lies in the first part alone
    for which, other in ((slice(0, 3), slice(0, 4)), (slice(3, 4), None), (slice(4, 10), None)):
        part = dict(mini=rows(a, which)) | ({'mini_mhs': rows(b, other)} if other else {})
        here = {k: x[which] if k.startswith('mini/') else x for k, x in logits.items() if k.rpartition('/')[0] in part}
        for k, v in loss_vector(ls, here, part, totals).items():
            got[k] = got.get(k, 0) + v
    assert got.keys() == want.keys() and len(want) == 1 + 11 + 1 + 1
    for k in want:
        assert torch.allclose(got[k], want[k], rtol=1e-5), k


# ---- heads


@pytest.mark.parametrize('kind', [k for k in kinds if k != 'language'])  # which is of one shape: test_language.py
@pytest.mark.parametrize('hidden', [(), (5,), (8, 4, 3)])
@pytest.mark.parametrize('pooling', ['mean', 'first'])
def test_heads_of_every_shape(kind, hidden, pooling):
    task = Task.parse(TASKS[kind])
    head = make_head(task, WIDTH, COUNTED, HeadConfig(hidden=hidden, pooling=pooling)).eval()
    widths = [m.in_features for m in head.net if isinstance(m, torch.nn.Linear)] + [head.net[-1].out_features]
    assert widths == [WIDTH, *hidden, len(task.outputs)]
    batch, states = gold_batch(4), torch.randn(4, LENGTH, WIDTH, requires_grad=True)
    logits = head(states, batch)
    assert logits.shape == ((4, LENGTH) if kind == 'tokens' else (4, len(task.outputs)))
    loss = make_loss(head)
    loss.sums(logits, batch).sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters()) and states.grad.abs().sum() > 0
    for column, values in head.predict(logits.detach(), batch).items():
        assert len(values) == 4 and column.startswith(task.name), column


@pytest.mark.parametrize('kind', ['multiclass', 'multilabel', 'regression'])
def test_mean_pooling_ignores_padding_and_special_tokens(kind):
    head, batch = make_head(Task.parse(TASKS[kind]), WIDTH, COUNTED).eval(), gold_batch(4)
    states = torch.randn(4, LENGTH, WIDTH)
    other = torch.where((batch['token_word'] >= 0)[..., None], states, 1e3)
    assert torch.equal(head(states, batch), head(other, batch))


def test_a_post_of_special_tokens_only_gives_numbers():
    batch = dict(token_word=torch.full((2, LENGTH), -1))
    for kind, task in TASKS.items():
        head = make_head(Task.parse(task), WIDTH, COUNTED).eval()
        found = head.predict(head(torch.randn(2, LENGTH, WIDTH), batch).detach(), batch)
        for v in found.values():
            assert np.isfinite(np.concatenate([np.atleast_1d(x) for x in v])).all()


@given(st.integers(1, 30), st.data())
def test_partitions_join_to_all_outputs(n, data):
    k = data.draw(st.integers(1, n))
    parts = [partition(tuple(map(str, range(n))), f'{i}/{k}') for i in range(1, k + 1)]
    assert sum(parts, []) == list(range(n)) and max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize('k', [1, 2, 3, 4, 11])
def test_predictions_of_a_partition_join_to_all_columns(k):
    states, batch = torch.randn(3, LENGTH, WIDTH), gold_batch(3)
    found = []
    for i in range(1, k + 1):
        head = make_head(Task.parse(f'mini/target:{i}/{k}'), WIDTH, COUNTED).eval()
        assert head.share.tolist() == pytest.approx([COUNTED['target']['share'][j] for j in head.task.places])
        found.append(np.stack(head.predict(head(states, batch).detach(), batch)['target_prob']))
    assert (np.isfinite(found).sum(0) == 1).all()


@pytest.mark.parametrize('part', ['0/4', '5/4', '1/12', '1/0', '1', 'a/b', '1/2/3', '-1/4', '1.5/4'])
def test_an_impossible_part(part):
    with pytest.raises(HatenbError, match='is no part of 11 outputs'):
        Task.parse(f'mini/target:{part}')


@pytest.mark.parametrize('kind', ['multiclass', 'multilabel', 'regression'])
def test_frequencies_that_are_missing(kind):
    with pytest.raises(HatenbError, match=f'no gold column.*{TASKS[kind]}'):
        make_head(Task.parse(TASKS[kind]), WIDTH, {})


def test_unknown_tasks_and_poolings():
    with pytest.raises(HatenbError, match='rationale'):
        Task.parse('mini/rational')
    with pytest.raises(HatenbError, match='pooling'):
        make_head(Task.parse('mini/label'), WIDTH, COUNTED, HeadConfig(pooling='max'))


def test_the_score_comes_back_in_its_own_unit():
    head = make_head(Task.parse('mini_mhs/score'), WIDTH, COUNTED)
    assert head.predict(torch.tensor([[0.0], [1.0]]), {})['score_pred'] == pytest.approx([-0.6, 1.8])


def test_tasks_are_written_as_they_are_read():
    for text in ('mini/label', 'mini/target:2/4', 'hatexplain/rationale', 'mhs_share/score'):
        assert Task.parse(text).key == text
    for c in (c for c in corpora.values() if c.usual):
        for q in c.questions:
            assert question_of(q.name).kind == q.kind
    assert Task.parse('label').outputs == question_of('hatexplain/label').outputs


def test_a_linear_regression_learns_from_posts_that_were_asked_alone():
    g = np.random.default_rng(0)
    x, asked = g.standard_normal((60, 3)), np.arange(60) % 2
    y = np.where(asked, x @ [1., 2., 3.], 0.)                # a blank of a post that was not asked is 0
    posts = {'score': y, 'asked': asked}
    task = SimpleNamespace(name='score', question=SimpleNamespace(column='score', asked='asked'))
    predict = kinds['regression']().fit_linear(task, posts, posts, x, x, 0)
    assert np.abs(predict(x)['score_pred'] - x @ [1., 2., 3.]).max() < .1
