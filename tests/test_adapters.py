"Adapter methods on every quantization, architecture and dtype; their traits; several at once; mistakes"
import itertools
import adapters, pytest, torch
from adapters.composition import Parallel
from hatenb.core import HatenbError
from hatenb.encoder.adapters import _FusedLoRA
from hatenb.encoder import ByteDropout, StochasticDepth, adapter_methods, load_encoder, lora_factors, quantizations
from tiny import batch, bf16, check, digests, f32, fit, outputs, tiny, trained

MADE_OF_OTHERS = 'mtl_lora','fusion'                 # test_composing.py
METHODS = [m for m in adapter_methods if m not in (*MADE_OF_OTHERS, 'library')]
ALL = [c for c in itertools.product(METHODS, quantizations, ('electra','bert'), (f32,bf16))
       if not (c[0] == 'full' and c[1] != 'none')]   # quantized weights cannot be trained: a test of its own


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "Tiny products gain nothing from a second thread, and lose much where another process wants the core"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

def pairwise():
    "Cases of `ALL` in which any two values of two factors meet"
    for (i,m),(j,q) in itertools.product(enumerate(METHODS), enumerate(quantizations)):
        case = m, q, ('electra','bert')[(i+j)%2], (f32,bf16)[(i+j//2)%2]
        if case in ALL: yield case

def ids(case): return '-'.join(str(x).removeprefix('torch.') for x in case)

def test_pairwise_meets_all_pairs():
    cases = list(pairwise())
    for a,b in itertools.combinations(range(4), 2):
        missing = {(c[a],c[b]) for c in ALL} - {(c[a],c[b]) for c in cases}
        assert all('full' in pair for pair in missing), missing    # which has one quantization

@pytest.mark.parametrize('case', list(pairwise()), ids=ids)
def test_methods(tiny, tmp_path, case):
    method,quantization,architecture,dtype = case
    check(tiny/architecture, tmp_path, quantization, method, dtype)

@pytest.mark.full
@pytest.mark.parametrize('case', ALL, ids=ids)
def test_every_method_on_everything(tiny, tmp_path, case):
    method,quantization,architecture,dtype = case
    check(tiny/architecture, tmp_path, quantization, method, dtype)

def test_quantized_weights_cannot_be_trained(tiny):
    with pytest.raises(HatenbError, match='quantized weights cannot be trained'):
        load_encoder(str(tiny/'bert'), 'nf4').add('mine', 'full')

def test_a_configuration_of_the_library_that_has_no_method(tiny, tmp_path):
    config = adapters.SeqBnInvConfig(reduction_factor=8).to_dict()
    check(tiny/'bert', tmp_path, 'none', 'library', config=config)


# what belongs to options, not to the defaults

@pytest.mark.parametrize('method,quantization,dtype,options', [
    ('lora', 'none', f32, dict(dora=True)),
    ('lora', 'nf4', f32, dict(rslora=True, attention='q', intermediate=False)),
    ('lora', 'none', f32, dict(layers=[1])),
    ('peft_lora', 'nf4', f32, dict(dora=True)),
    ('peft_lora', 'none', bf16, dict(target=['query','dense'], rslora=True, alpha=8)),
    ('adapterplus', 'none', f32, dict(stochastic_depth=.3, reduction_factor=8)),
    ('reft', 'nf4', f32, dict(kind='direft')),
    ('reft', 'none', bf16, dict(kind='noreft', suffix_positions=1, tied=False)),
    ('prefix', 'int8', f32, dict(flat=True)),
    ('seq_bn', 'nf4', bf16, dict(dropout=.2, non_linearity='gelu')),
    ('compacter', 'none', f32, dict(phm_dim=8, reduction_factor=3))])
def test_options(tiny, tmp_path, method, quantization, dtype, options):
    check(tiny/'bert', tmp_path, quantization, method, dtype, **options)

def test_rank_stabilised_lora_scales_by_the_root_of_the_rank(tiny):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('rs', 'lora', r=16, alpha=8, rslora=True)
    encoder.add('plain', 'lora', r=16, alpha=8)
    loras = encoder.model.encoder.layer[0].attention.self.query.loras
    assert loras['rs'].scaling == 2 and loras['plain'].scaling == .5

def test_stochastic_depth_skips_whole_posts():
    torch.manual_seed(0)
    depth = StochasticDepth(.25)
    y = depth(torch.ones(20_000, 2, 3))
    assert set(y[:,0,0].tolist()) == {0., torch.tensor(1/.75).item()} and (y == y[:,:1,:1]).all()
    assert abs((y[:,0,0] == 0).float().mean() - .25) < .01
    assert torch.equal(depth.eval()(y), y)


# traits

def test_traits_that_are_wrong_are_refused():
    for traits,says in ((dict(backnd='adapters'), "no trait 'backnd'"), (dict(merges='all'), "merges is 'all'"),
                        (dict(merges='updates'), 'nobody knows where they are')):
        with pytest.raises(HatenbError, match=says): adapter_methods.register('test_wrong', **traits)
    assert 'test_wrong' not in adapter_methods

def test_every_method_has_a_label():
    labels = [f.label for f in adapter_methods.values()]
    assert all(labels) and len(set(labels)) == len(labels)

@pytest.mark.parametrize('method', ['lora','peft_lora'])
def test_factors_are_the_update(tiny, method):
    "Added to the weights they make the encoder that has the adapter"
    encoder = trained(tiny/'bert', method, r=3, alpha=5)
    plain = load_encoder(str(tiny/'bert'))
    factors = encoder.factors('a')
    assert len(factors) == (10 if method == 'lora' else 12)
    with torch.no_grad():
        for path,(B,A,scaling) in factors.items():
            assert B.shape[1] == A.shape[0] == 3 and scaling == 5/3
            plain.model.get_submodule(path).weight += scaling*B@A
    torch.testing.assert_close(outputs(plain), outputs(encoder), atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('method,options,says', [
    ('lora', dict(dora=True), 'DoRA'), ('peft_lora', dict(dora=True), 'DoRA'), ('ia3', {}, r'\(IA\)³ has no ΔW'),
    ('seq_bn', {}, 'bottleneck has no ΔW'), ('full', {}, 'full fine-tuning has no ΔW')])
def test_what_has_no_factors_says_so(tiny, method, options, says):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', method, **options)
    with pytest.raises(HatenbError, match=says): encoder.factors('a')

def test_no_factors_where_query_key_and_value_are_one_product(tiny):
    encoder = load_encoder(str(tiny/'modernbert'))
    encoder.add('a', 'lora')
    with pytest.raises(HatenbError, match='are one product has no ΔW'): encoder.factors('a')

def test_a_method_of_ones_own_has_the_traits_it_says(tiny, tmp_path):
    @adapter_methods.register('thin', backend='adapters', label='thin LoRA', merges='updates', fuses=True,
                              factors=lora_factors)
    def thin(encoder, r=1): return adapters.LoRAConfig(r=r, alpha=r, attn_matrices=['q'])
    try:
        encoder = trained(tiny/'bert', 'thin')
        assert encoder.method_of('a') == 'thin' and encoder.trait('a', 'label') == 'thin LoRA'
        assert encoder.trait('a', 'merges') == 'updates' and encoder.trait('a', 'fuses')
        assert [B.shape for B,A,s in encoder.factors('a').values()] == [(64,1)]*2
        other = load_encoder(str(tiny/'bert'))
        other.activate(other.load(encoder.save('a', tmp_path)))
        assert torch.equal(outputs(other), outputs(encoder))
    finally: del adapter_methods['thin']


# the forward of ours against the library's

def steps(encoder, library, monkeypatch):
    "Outputs and gradients of one pass in training"
    with monkeypatch.context() as m:
        if library: m.setattr(_FusedLoRA, '_one_lora', lambda self: None)
        torch.manual_seed(5)
        encoder.zero_grad()
        out = encoder.train()(*batch())
        readout = torch.randn(out.shape, generator=torch.Generator().manual_seed(6))
        (out*readout).mean().backward()   # (the square would be the same for all: a layer norm ends the encoder)
    return out.detach(), {k: p.grad.clone() for k,p in encoder.trainable().items()}

@pytest.mark.parametrize('quantization', ['none','nf4','int8'])
@pytest.mark.parametrize('dropout', [0.,.1])
def test_our_lora_computes_what_the_librarys_does(tiny, quantization, dropout, monkeypatch):
    encoder = load_encoder(str(tiny/'electra'), quantization)
    encoder.add('a', 'lora', r=4, alpha=12, dropout=dropout)
    encoder.activate('a')
    encoder.train_only('a')
    for m in encoder.modules():
        if isinstance(m, ByteDropout) and not dropout: m.cut = 0
    with torch.no_grad():
        for p in encoder.trainable().values(): p.normal_(std=.05)
    ours,grads = steps(encoder, False, monkeypatch)
    theirs,wanted = steps(encoder, True, monkeypatch)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    for k,g in wanted.items():
        torch.testing.assert_close(grads[k], g, atol=1e-6, rtol=1e-6, msg=k)
        assert g.norm() > 1e-8 and (grads[k]-g).norm() <= 1e-3*g.norm(), k

def test_what_is_no_single_plain_lora_is_the_librarys(tiny, monkeypatch):
    "A stack of two, and LoRA with learned magnitudes"
    encoder = load_encoder(str(tiny/'bert'))
    for name,options in (('a', {}), ('b', {}), ('c', dict(dora=True))): encoder.add(name, 'lora', **options)
    layers = [m for m in encoder.modules() if hasattr(m, '_one_lora')]
    assert len(layers) == 10
    for setup,plain in (('a', True), (['a','b'], False), ('c', False), (None, False)):
        encoder.activate(setup)
        assert {m._one_lora() is not None for m in layers} == {plain}


# several adapters

def test_stack_parallel_and_none(tiny):
    encoder = load_encoder(str(tiny/'electra'))
    for name in 'ab': encoder.add(name, 'seq_bn')
    both = {*encoder.adapter_parameters('a'), *encoder.adapter_parameters('b')}
    with torch.no_grad():
        for k in both: encoder.tensors()[k].normal_(std=.1)
    one = {}
    for name in 'ab':
        encoder.activate(name)
        one[name] = outputs(encoder)
    encoder.activate(Parallel('a', 'b'))
    torch.testing.assert_close(outputs(encoder), torch.cat([one['a'], one['b']]))
    encoder.activate(['a','b'])
    stacked = outputs(encoder)
    assert not torch.allclose(stacked, one['a']) and not torch.allclose(stacked, one['b'])
    encoder.train_only(['a','b'])
    assert set(encoder.trainable()) == both
    encoder.remove('b')
    assert list(encoder.methods) == ['a'] and not any('.b.' in k for k in encoder.tensors())

@pytest.mark.parametrize('method', ['lora','peft_lora'])
def test_adding_activating_and_removing_leave_what_learns_alone(tiny, method):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', method)
    encoder.train_only('a')
    learning = set(encoder.trainable())
    for do in (lambda: encoder.add('b', method), lambda: encoder.activate('b'), lambda: encoder.activate(None),
               lambda: encoder.remove('b')):
        do()
        assert set(encoder.trainable()) == learning
    encoder.add('b', method)
    encoder.activate('b')
    encoder.train_only('b')
    fit(encoder, steps=1)

def test_the_warning_of_adapters_comes_only_where_it_is_right(tiny, caplog):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', 'lora')
    for setup in 'a',None:
        encoder.activate(setup)
        outputs(encoder)
    assert 'none are activated' not in caplog.text
    forgotten = load_encoder(str(tiny/'bert'))
    forgotten.add('a', 'lora')
    outputs(forgotten)
    assert 'none are activated' in caplog.text


# what cannot be

@pytest.mark.parametrize('do,says', [
    (lambda e: e.add('b', 'peft_lora'), 'one encoder takes adapters of one library'),
    (lambda e: e.add('b', 'full'), 'full fine-tuning changes'),
    (lambda e: e.add('a', 'lora'), "an adapter 'a' already"),
    (lambda e: e.add('a.b', 'lora'), 'cannot be called'),
    (lambda e: e.add('b', 'lorra'), "did you mean 'lora'"),
    (lambda e: e.add('train', 'seq_bn'), 'cannot add seq_bn'), # the name of a method of every module
    (lambda e: e.add('b', 'lora', rank=4), "no option 'rank'"),
    (lambda e: e.add('b', 'lora', r=0), 'cannot add lora'),
    (lambda e: e.add('b', 'lora', alpha='x', rslora=True), 'the options of lora cannot be'),
    (lambda e: e.add('b', 'lora', layers=[2]), 'no layer 2'),
    (lambda e: e.add('b', 'lora', layers=3), 'cannot add lora'),
    (lambda e: e.add('b', 'compacter', phm_dim=5), 'phm_dim 5 does not divide'),
    (lambda e: e.add('b', 'vera', attention='qkvx', dropout='much'), 'cannot add vera'),
    (lambda e: e.add('b', 'adapterplus', stochastic_depth=1.), 'stochastic_depth'),
    (lambda e: e.add('b', 'reft', kind='softreft'), 'no kind of ReFT'),
    (lambda e: e.add('b', 'library', config=adapters.PromptTuningConfig().to_dict()), 'cannot be used'),
    (lambda e: e.add('b', 'library'), 'cannot be used'),
    (lambda e: e.trait('a', 'merge'), "no trait 'merge'"),
    (lambda e: e.activate('b'), "no adapter 'b'"), (lambda e: e.train_only(['a','b']), "no adapter 'b'"),
    (lambda e: e.save('b', '/nowhere'), "no adapter 'b'"), (lambda e: e.remove('b'), "no adapter 'b'"),
    (lambda e: e.factors('b'), "no adapter 'b'"), (lambda e: e.method_of('b'), "no adapter 'b'")])
def test_mistakes_say_what_and_leave_nothing(tiny, do, says):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', 'lora')
    encoder.activate('a')
    encoder.train_only('a')
    before,learning = digests(encoder),set(encoder.trainable())
    with pytest.raises(HatenbError, match='(?i)'+says): do(encoder)
    assert list(encoder.methods) == ['a'] and digests(encoder) == before and set(encoder.trainable()) == learning

def test_dora_of_adapters_on_quantized_weights_is_refused(tiny):
    with pytest.raises(HatenbError, match='DoRA of `adapters` needs unquantized'):
        load_encoder(str(tiny/'bert'), 'nf4').add('a', 'lora', dora=True)

def test_full_stands_alone(tiny):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('all', 'full')
    with pytest.raises(HatenbError, match='full fine-tuning changes'): encoder.add('a', 'lora')
    with pytest.raises(HatenbError, match='cannot be taken out'): encoder.remove('all')
