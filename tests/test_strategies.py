"Strategies without runs: what each adds and lets learn, that a loaded encoder is used the same way, and what is refused"
import numpy as np
import pytest
import torch

from hatenb.batches import Posts, collate, encoded_corpus
from hatenb.composing import adapter_name, make_strategy, strategies, strategy_model
from hatenb.core import HatenbError, seed_everything
from hatenb.encoder import adapter_methods, load_encoder, tensor_digest
from hatenb.kinds import count_answers, make_head
from hatenb.merging import lora_updates, merge_adapters, sample_batches
from hatenb.tasks import Task
from hatenb.training import TrainConfig, Trainer

pytestmark = pytest.mark.usefixtures('stand_in')
TASKS = 'mini/label', 'mini_mhs/score'
LORA = dict(r=2)
CASES = {
    'shared': dict(adapter_options=LORA),
    'shared, one A': dict(adapter_options=LORA, options=dict(start='shared')),
    'shared, orthogonal': dict(adapter_options=LORA, options=dict(start='orthogonal', others=['mini_mhs'], sample=16)),
    'merge': dict(options=dict(learn='all')),
    'merge, regmean': dict(options=dict(rule='regmean', learn='all', sample=16)),
    'fuse': dict(options=dict(variant='dynamic', width=4)),
    'parallel': dict(adapter='seq_bn', adapter_options=dict(reduction_factor=48)),
    'branch': dict(adapter_options=LORA, options=dict(layer=4)),
    'mtl_lora': dict(options=dict(r=2, up_projections=2)),
}


@pytest.fixture(scope='module')
def posts():
    encoder = load_encoder('minilm')
    corpora = {c: encoded_corpus(c, encoder.tokenizer)['train'] for c in ('mini', 'mini_mhs')}
    counted = {c: count_answers(d, c) for c, d in corpora.items()}
    return {c: Posts(d.select(range(24)), c, encoder.tokenizer.pad_token_id) for c, d in corpora.items()}, counted


def with_sources(encoder):
    "Two LoRA adapters of random values, and the tasks they are for"
    for i, t in enumerate(TASKS):
        encoder.add(adapter_name(t), 'lora', r=2)
        g = torch.Generator().manual_seed(i)
        for v in encoder.adapter_parameters(adapter_name(t)).values(): v.data = .05*torch.randn(v.shape, generator=g)
    return {adapter_name(t): [t] for t in TASKS}


def built(case, posts, quantization='none'):
    "A strategy and an encoder that it was built in"
    seed_everything(0, 'test')
    encoder, strategy = load_encoder('minilm', quantization), make_strategy(case.split(',')[0], TASKS, **CASES[case])
    strategy.build(encoder, with_sources(encoder) if strategy.sources == 'needed' else {}, posts[0])
    return strategy, encoder


def model_of(strategy, encoder, counted):
    seed_everything(0, 'heads')
    return strategy_model(strategy, encoder, [make_head(t, encoder.width, counted[t.corpus]) for t in map(Task.parse, TASKS)])


def states(model, posts):
    batch = collate(posts, {c: np.arange(4) for c in posts})
    with torch.no_grad(): return model.eval().states(batch)


@pytest.mark.parametrize('case,quantization', [*((c, 'none') for c in CASES), ('merge, regmean', 'nf4'), ('fuse', 'nf4')])
def test_only_what_shall_learn_changes_and_a_loaded_encoder_is_used_alike(case, quantization, posts, tmp_path):
    strategy, encoder = built(case, posts, quantization)
    model = model_of(strategy, encoder, posts[1])
    learning = set(encoder.trainable())
    before = {k: tensor_digest({k: v}) for k, v in encoder.tensors().items()}
    Trainer(model, posts[0], TrainConfig(epochs=1, batch_size=24, lr=1e-2)).fit()
    changed = {k for k, v in encoder.tensors().items() if tensor_digest({k: v}) != before[k]}
    assert changed and changed <= learning
    if case == 'fuse': assert all('fusions' in k for k in learning)
    if case == 'shared, one A': assert all('lora_B' in k for k in learning)
    other = load_encoder('minilm', quantization)
    for name in encoder.methods: other.load(encoder.save(name, tmp_path/name))
    again = model_of(make_strategy(case.split(',')[0], TASKS, **CASES[case]), other, posts[1])
    assert set(other.trainable()) == learning
    for t, x in states(model, posts[0]).items(): assert torch.equal(x, states(again, posts[0])[t])


def test_a_merge_sees_the_posts_of_each_source(posts):
    strategy, encoder = built('merge, regmean', posts)
    direct = load_encoder('minilm')
    sources = with_sources(direct)
    batches = {s: sample_batches({ts[0].split('/')[0]: posts[0][ts[0].split('/')[0]]}, 16) for s, ts in sources.items()}
    merge_adapters(direct, list(sources), 'shared', 'regmean', batches=batches)
    assert list(encoder.methods) == ['shared'] and strategy.reads == ('mini', 'mini_mhs')
    theirs = lora_updates(direct, 'shared')
    for k, u in lora_updates(encoder, 'shared').items(): torch.testing.assert_close(u.dense(), theirs[k].dense())
    assert {r['layer'] for r in encoder.notes['interference']} == set(theirs)


def test_searched_coefficients_are_those_of_the_best_try(posts):
    strategy = make_strategy('merge', TASKS, options=dict(coefficients='search', tries=5))
    encoder = load_encoder('minilm')
    strategy.build(encoder, with_sources(encoder))
    model = model_of(strategy, encoder, posts[1])
    norms = []
    def score():
        norms.append(-sum(float(u.dense().norm()) for u in lora_updates(encoder, 'shared').values()))
        return norms[-1]
    strategy.choose(model, score)
    search = encoder.notes['search']
    assert len(search['tries']) == 5 and search['tries'][0]['coefficients'] == [1, 1]
    assert search['best']['score'] == max(norms) and list(encoder.methods) == ['shared']
    assert -sum(float(u.dense().norm()) for u in lora_updates(encoder, 'shared').values()) == pytest.approx(max(norms))


def test_labels_say_what_a_strategy_is():
    assert all(s.label for s in strategies.values())
    assert make_strategy('shared', ['mini/label']).label == 'single-task adapter' and make_strategy('shared', TASKS).label == 'multi-task adapter'


@pytest.mark.parametrize('name,how,why', [
    ('merge', dict(options=dict(rang=2)), "no option 'rang'"), ('merge', dict(options=dict(learn='most')), 'nothing is called'),
    ('merge', dict(options=dict(coefficients='guess')), 'nothing is called'), ('merge', dict(options=dict(rule='tiess')), "mean 'ties'"),
    ('merge', dict(options=dict(rule='nsc', collecting=dict(step=1))), "no option 'step' .*It has: steps, lr"),
    ('merge', dict(adapter_options=LORA), 'makes no adapters'), ('fuse', dict(adapter_options=LORA), 'makes no adapters'),
    *((name, dict(adapter='ia3'), 'such as ia3') for name in ('merge', 'fuse', 'mtl_lora')),
    ('shared', dict(options=dict(start='orthogonal')), 'needs other corpora'), ('mergee', {}, "mean 'merge'"),
])
def test_what_is_refused(name, how, why):
    with pytest.raises(HatenbError, match=why): make_strategy(name, TASKS, **how)


def test_what_does_not_fit_an_encoder_is_refused(posts):
    encoder = load_encoder('minilm')
    with pytest.raises(HatenbError, match='cannot part at layer 6'): make_strategy('branch', TASKS, options=dict(layer=6)).build(encoder, {})
    with pytest.raises(HatenbError, match='training posts of mini'):
        make_strategy('merge', TASKS, options=dict(rule='regmean')).build(encoder, with_sources(encoder))
    with pytest.raises(HatenbError, match='lora cannot be stacked'): make_strategy('stack', TASKS).build(encoder, {})
    encoder.add('bottleneck', 'seq_bn')
    with pytest.raises(HatenbError, match='different methods|cannot be fused'):
        make_strategy('fuse', TASKS).build(encoder, {'bottleneck': [], adapter_name(TASKS[0]): []})
    assert not any(n in encoder.methods for n in ('shared', 'fused'))


def test_a_method_of_ones_own_is_merged_and_fused(posts):
    "Nothing asks what a method is called: its traits on registration are enough"
    own = adapter_methods['lora']
    def half(encoder, r:int=2, alpha:float=1., dropout:float=0.): return own(encoder, r=r, alpha=alpha, dropout=dropout, output=False)
    adapter_methods.register('half_lora', backend='adapters', label='half LoRA', merges='updates', fuses=True, factors=own.factors)(half)
    try:
        encoder = load_encoder('minilm')
        for n in 'ab': encoder.add(n, 'half_lora')
        merge_adapters(encoder, ['a', 'b'], 'm', 'ties')
        assert encoder.methods['m']['method'] == 'half_lora' and lora_updates(encoder, 'm').keys() == lora_updates(encoder, 'a').keys()
        encoder.add('f', 'fusion', sources=['a', 'b'])
        assert len(encoder.composites['f'].layers(encoder, 'f')) == len(lora_updates(encoder, 'a'))
    finally: del adapter_methods['half_lora']


def test_a_second_mtl_lora_leaves_the_first_as_it_is():
    encoder = load_encoder('minilm')
    encoder.add('one', 'mtl_lora', tasks=['a', 'b'], r=2)
    for v in encoder.adapter_parameters('one').values(): v.data += .1
    before = tensor_digest(encoder.adapter_parameters('one'))
    encoder.add('two', 'mtl_lora', tasks=['c', 'd'], r=2)
    assert tensor_digest(encoder.adapter_parameters('one')) == before


def test_a_fusion_knows_which_sources_a_layer_has():
    encoder = load_encoder('minilm')
    encoder.add('upper', 'lora', r=2, layers=[1])
    encoder.add('both', 'lora', r=2, layers=[0, 1])
    encoder.add('fused', 'fusion', sources=['upper', 'both'])
    fusion = encoder.composites['fused']
    found = {k.split('layer.')[1][0]: fusion.sources_at(k) for k in fusion.layers(encoder, 'fused')}
    assert found == {'0': ['both'], '1': ['upper', 'both']}


def test_many_branches_of_one_corpus_are_what_each_is_alone(posts):
    "Where the rows that go on are more than twice those that came"
    tasks = 'mini/label', 'mini/target', 'mini/rationale', 'mini_mhs/score'
    encoder, strategy = load_encoder('minilm'), make_strategy('branch', tasks, adapter_options=LORA, options=dict(layer=1))
    strategy.build(encoder, {}, posts[0])
    g = torch.Generator().manual_seed(0)
    for name in encoder.methods:
        for v in encoder.adapter_parameters(name).values(): v.data = .05*torch.randn(v.shape, generator=g)
    heads = [make_head(t, encoder.width, posts[1][t.corpus]) for t in map(Task.parse, tasks)]
    model = strategy_model(strategy, encoder, heads).eval()
    batch = collate(posts[0], {'mini': np.arange(9), 'mini_mhs': np.arange(3)})
    with torch.no_grad():
        together = model.states(batch)
        for key, h in model.heads.items():
            alone = model.with_heads(key).states({h.task.corpus: batch[h.task.corpus]})[key]
            torch.testing.assert_close(together[key], alone, rtol=0, atol=1e-5)
    assert not torch.equal(together['mini/label'], together['mini/target'])
