"Every adapter method on every quantization, on a tiny ELECTRA and a tiny BERT; hostile folders; agreement with the libraries"
import hashlib, shutil
import adapters, bitsandbytes as bnb, peft, pytest, torch
from adapters.composition import Parallel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast, ElectraConfig, ElectraForPreTraining, ElectraTokenizerFast,
                          ModernBertConfig, ModernBertModel)
from hatenb.core import HatenbError, read_json, write_json
from hatenb.encoder import ByteDropout, StochasticDepth, adapter_methods, count_parameters, load_encoder, quantizations, tensor_digest

bf16,f32 = torch.bfloat16,torch.float32
METHODS = [m for m in adapter_methods if m not in ('mtl_lora','fusion')]   # those are made of others: test_composing.py
words = 'the kettle stove morning good on is of and to in'.split()


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "Tiny products gain nothing from a second thread, and lose much where another process wants the core"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    "Folders with a tiny ELECTRA and a tiny BERT of random weights, as a hub would hold them (heads included)"
    root = tmp_path_factory.mktemp('encoders')
    vocab = root/'vocab.txt'
    vocab.write_text('\n'.join(['[PAD]','[UNK]','[CLS]','[SEP]','[MASK]', *words, *'abcdefghijklmnopqrstuvwxyz', *('##'+c for c in 'abcdefghijklmnopqrstuvwxyz')]))
    size = dict(vocab_size=len(vocab.read_text().split()), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
                max_position_embeddings=64)
    special = dict(pad_token_id=0, cls_token_id=2, bos_token_id=2, sep_token_id=3, eos_token_id=3, reference_compile=False)
    torch.manual_seed(0)
    for name,model,tokenizer in (('electra', ElectraForPreTraining(ElectraConfig(embedding_size=32, **size)), ElectraTokenizerFast),
                                 ('modernbert', ModernBertModel(ModernBertConfig(**size, **special)), BertTokenizerFast),
                                 ('bert', BertForMaskedLM(BertConfig(**size)), BertTokenizerFast)):
        model.save_pretrained(root/name)
        tokenizer(vocab_file=str(vocab)).save_pretrained(root/name)
    return root

def batch(n=6, length=9):
    "Ids and mask, the second half of the posts padded"
    g = torch.Generator().manual_seed(0)
    ids,mask = torch.randint(5, 40, (n, length), generator=g),torch.ones(n, length, dtype=torch.long)
    mask[n//2:,length-3:] = 0
    return ids*mask, mask

def fit(encoder, steps=12, lr=1e-2):
    "Let what is trainable fit a fixed read-out of the states; the loss in evaluation before and after"
    g = torch.Generator().manual_seed(1)
    (ids,mask),readout,wanted = batch(),torch.randn(64, 3, generator=g)/8,torch.randn(6, 3, generator=g)
    def loss():
        states = encoder(ids, mask)
        assert states.dtype == f32 and states.shape == (6, 9, 64)
        return (states.mean(1)@readout - wanted).pow(2).mean()
    opt = torch.optim.Adam(encoder.trainable().values(), lr=lr)
    before = loss_of(encoder.eval(), loss)
    encoder.train()
    for _ in range(steps): loss().backward(); opt.step(); opt.zero_grad()
    return before, loss_of(encoder.eval(), loss)

def loss_of(encoder, loss):
    with torch.no_grad(): return loss().item()

def outputs(encoder):
    "The states of `batch` in evaluation"
    with torch.no_grad(): return encoder.eval()(*batch())

def digests(encoder):
    "A digest for each tensor of the encoder, quantization states included"
    return {k: tensor_digest({k: v}) for k,v in encoder.tensors().items()}

def check(folder, tmp_path, quantization, method, dtype=f32, **options):
    "Forward, backward, the loss falls, only the meant parameters change, saved and loaded the outputs are the same bits"
    torch.manual_seed(0)
    encoder = load_encoder(str(folder), quantization, dtype)
    plain = outputs(encoder)
    if method != 'full': encoder.add('neighbour', method, **options)
    encoder.add('mine', method, **options)
    encoder.activate(None)
    untouched = outputs(encoder)   # a wrapped layer may sum in another order
    torch.testing.assert_close(untouched, plain, atol=1e-5 if dtype == f32 else .1, rtol=0)
    encoder.activate('mine'); encoder.train_only('mine'); encoder.train()
    if method == 'frozen':
        assert not encoder.trainable()
        assert torch.equal(outputs(encoder), untouched)
    else:
        meant = set(encoder.trainable())
        assert meant and meant <= set(encoder.adapter_parameters('mine'))
        assert {p.dtype for p in encoder.trainable().values()} == {f32}
        before = digests(encoder)
        first,last = fit(encoder)
        assert last < first, (first, last)
        after = digests(encoder)
        changed = {k for k in after if after[k] != before[k]}
        assert changed <= meant, sorted(changed-meant)
        assert not (still := meant-changed) or method == 'full', sorted(still)
    mine = outputs(encoder)
    assert method == 'frozen' or not torch.allclose(mine, untouched, atol=1e-3)
    if method != 'full':
        encoder.activate(None)
        assert torch.equal(outputs(encoder), untouched)
    torch.manual_seed(7)   # so that a fresh adapter starts elsewhere
    other = load_encoder(str(folder), quantization, dtype)
    drawn = torch.random.get_rng_state()
    assert other.load(encoder.save('mine', tmp_path/'saved'), 'yours') == 'yours'
    assert torch.equal(torch.random.get_rng_state(), drawn)
    other.activate('yours')
    assert torch.equal(outputs(other), mine)
    assert not other.trainable()

@pytest.mark.parametrize('architecture', ['electra','bert'])
@pytest.mark.parametrize('quantization', quantizations)
@pytest.mark.parametrize('method', METHODS)
def test_every_method_on_every_quantization(tiny, tmp_path, architecture, quantization, method):
    if method == 'full' and quantization != 'none':
        with pytest.raises(HatenbError, match='quantized weights cannot be trained'):
            load_encoder(str(tiny/architecture), quantization).add('mine', method)
    else: check(tiny/architecture, tmp_path, quantization, method)

@pytest.mark.parametrize('method,quantization', [(m,q) for m in METHODS for q in ('none','nf4','int8') if m != 'full' or q == 'none'])
def test_every_method_in_bfloat16(tiny, tmp_path, quantization, method):
    check(tiny/'electra', tmp_path, quantization, method, bf16)


@pytest.mark.parametrize('method', ['lora','seq_bn','ia3','reft','peft_lora'])
def test_joined_query_key_value(tiny, tmp_path, method): check(tiny/'modernbert', tmp_path, 'none', method)

def test_what_adapters_cannot_do_where_query_key_and_value_are_one_product(tiny):
    for quantization,method in (('nf4','lora'),('int8','seq_bn'),('none','vera')):
        with pytest.raises(HatenbError, match='are one product'): load_encoder(str(tiny/'modernbert'), quantization).add('a', method)

def test_what_adapters_does_not_support(tiny):
    encoder = load_encoder(str(tiny/'modernbert'))
    with pytest.raises(HatenbError, match='cannot add prefix'): encoder.add('a', 'prefix')
    encoder.add('a', 'seq_bn')


# what belongs to options, not to the defaults

@pytest.mark.parametrize('method,quantization,dtype,options', [
    ('lora', 'none', f32, dict(dora=True)), ('lora', 'nf4', f32, dict(rslora=True, attention='q', intermediate=False)),
    ('peft_lora', 'nf4', f32, dict(dora=True)), ('peft_lora', 'none', bf16, dict(target=['query','dense'], rslora=True, alpha=8)),
    ('adapterplus', 'none', f32, dict(stochastic_depth=.3, reduction_factor=8)), ('reft', 'nf4', f32, dict(kind='direft')),
    ('reft', 'none', bf16, dict(kind='noreft', suffix_positions=1, tied=False)), ('prefix', 'int8', f32, dict(flat=True)),
    ('seq_bn', 'nf4', bf16, dict(dropout=.2, non_linearity='gelu')), ('compacter', 'none', f32, dict(phm_dim=8, reduction_factor=3))])
def test_options(tiny, tmp_path, method, quantization, dtype, options): check(tiny/'bert', tmp_path, quantization, method, dtype, **options)

def test_rank_stabilised_lora_scales_by_the_root_of_the_rank(tiny):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('rs', 'lora', r=16, alpha=8, rslora=True); encoder.add('plain', 'lora', r=16, alpha=8)
    loras = encoder.model.encoder.layer[0].attention.self.query.loras
    assert loras['rs'].scaling == 2 and loras['plain'].scaling == .5

def test_stochastic_depth_skips_whole_posts():
    torch.manual_seed(0)
    depth = StochasticDepth(.25)
    y = depth(torch.ones(20_000, 2, 3))
    assert set(y[:,0,0].tolist()) == {0., torch.tensor(1/.75).item()} and (y == y[:,:1,:1]).all()
    assert abs((y[:,0,0] == 0).float().mean() - .25) < .01
    assert torch.equal(depth.eval()(y), y)

@pytest.mark.parametrize('dtype', [f32,bf16])
@pytest.mark.parametrize('shape', [(), (1,), (3,5,7), (0,4), (257,)])
def test_byte_dropout_of_any_shape(dtype, shape):
    x = torch.full(shape, 2., dtype=dtype)
    y = ByteDropout(.5)(x)
    assert y.shape == x.shape and y.dtype == dtype and set(y.flatten().tolist()) <= {0., 4.}
    assert torch.equal(ByteDropout(0)(x), x) and not ByteDropout(1)(x).any()

def test_byte_dropout_of_a_transposed_tensor():
    torch.manual_seed(0)
    x = torch.randn(64, 33).t().requires_grad_()
    y = ByteDropout(.25)(x)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept]/.75)
    y.sum().backward()
    torch.testing.assert_close(x.grad, kept/.75)


# quantized weights

@pytest.mark.parametrize('quantization', ['nf4','nf4-double','int8'])
@pytest.mark.parametrize('dtype', [f32,bf16])
@pytest.mark.parametrize('wrapped', [False,True])
def test_quantized_weights_stay_put(tiny, quantization, dtype, wrapped):
    "The same bits after evaluation as before, and the same function in training as in evaluation"
    encoder = load_encoder(str(tiny/'electra'), quantization, dtype)
    if wrapped: encoder.add('a', 'lora', dropout=0.); encoder.activate('a'); encoder.train_only('a')
    for m in encoder.modules():
        if isinstance(m, ByteDropout): m.cut = 0
    before,ids_mask = digests(encoder),batch()
    evaluated = outputs(encoder)
    trained = encoder.train()(*ids_mask).detach()
    assert torch.equal(trained, evaluated)
    assert digests(encoder) == before

@pytest.mark.parametrize('quantization', ['nf4','nf4-double','int8'])
def test_a_quantized_encoder_is_the_encoder_with_rounded_weights(tiny, quantization):
    quantized,plain = load_encoder(str(tiny/'bert'), quantization),load_encoder(str(tiny/'bert'))
    rounded = dict(quantized.model.named_modules())
    n = 0
    for k,m in plain.model.named_modules():
        if not isinstance(m, nn.Linear): continue
        w = rounded[k].weight
        got = (bnb.functional.dequantize_4bit(w.data, w.quant_state) if quantization != 'int8' else
               (w.CB if w.CB is not None else w.data).float()*((w.SCB if w.SCB is not None else rounded[k].state.SCB).unsqueeze(1)/127))
        assert 0 < (got-m.weight).norm()/m.weight.norm() < (.02 if quantization == 'int8' else .12)
        m.weight.data = got.float(); n += 1
    assert n == 12
    torch.testing.assert_close(outputs(quantized), outputs(plain), atol=1e-4, rtol=1e-4)

def test_memory_counts_what_is_stored(tiny):
    linear = 2*(4*64*64 + 2*64*128)   # weights of the linear layers of the tiny BERT
    none = load_encoder(str(tiny/'bert')).memory()
    assert none == dict(encoder_bytes=4*sum(p.numel() for p in load_encoder(str(tiny/'bert')).parameters()), adapter_bytes=0, trainable=0)
    rest = none['encoder_bytes'] - 4*linear
    rows = 2*(4*64+128+64)
    assert load_encoder(str(tiny/'bert'), 'int8').memory()['encoder_bytes'] - rest - linear - 4*rows in (0, 12)
    nf4 = load_encoder(str(tiny/'bert'), 'nf4').memory()['encoder_bytes']
    assert nf4 - rest == linear//2 + 4*linear//64 + 12*16*4   # packed weights, a scale for 64, the table of levels a layer
    encoder = load_encoder(str(tiny/'bert'), 'nf4', bf16)
    encoder.add('a', 'lora', r=2)
    params = 2*2*(3*(64+64) + 2*(64+128))
    assert encoder.memory()['adapter_bytes'] == 4*params and encoder.memory()['trainable'] == 0
    encoder.train_only('a')
    assert encoder.memory()['trainable'] == params
    assert count_parameters(encoder, 'lora', r=4) == 2*params and encoder.memory()['trainable'] == params


# agreement with the libraries

@pytest.mark.parametrize('method', ['lora','compacter','vera','prefix','reft','unipelt'])
def test_adapters_reads_what_we_save(tiny, tmp_path, method):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', method); encoder.activate('a'); encoder.train_only('a'); fit(encoder, steps=2)
    folder = encoder.save('a', tmp_path/'a')
    model = BertModel.from_pretrained(tiny/'bert', add_pooling_layer=False, attn_implementation='eager')
    adapters.init(model)
    name = model.load_adapter(str(folder), use_safetensors=True, set_active=True)
    ids,mask = batch()
    with torch.no_grad(): theirs = model.eval()(input_ids=ids, attention_mask=mask)[0]
    torch.testing.assert_close(theirs, outputs(encoder))

def test_peft_reads_what_we_save(tiny, tmp_path):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', 'peft_lora'); encoder.activate('a'); encoder.train_only('a'); fit(encoder, steps=2)
    folder = encoder.save('a', tmp_path/'a')
    model = peft.PeftModel.from_pretrained(BertModel.from_pretrained(tiny/'bert', add_pooling_layer=False, attn_implementation='eager'), folder)
    ids,mask = batch()
    with torch.no_grad(): theirs = model.eval()(input_ids=ids, attention_mask=mask)[0]
    torch.testing.assert_close(theirs, outputs(encoder))

def test_the_same_lora_through_either_library(tiny):
    a,b = load_encoder(str(tiny/'bert')),load_encoder(str(tiny/'bert'))
    a.add('x', 'lora', r=4); b.add('x', 'peft_lora', r=4, target=['query','key','value','intermediate.dense','output.dense'])
    for e in (a,b): e.activate('x')
    mine = {k.replace('loras.x.', ''): v for k,v in a.adapter_parameters('x').items()}
    with torch.no_grad():
        for v in mine.values(): v.normal_(std=.1)
        for k,v in b.adapter_parameters('x').items(): v.copy_(mine.get(k.replace('.x.weight', ''), torch.zeros_like(v)))  # attention.output: peft only
    torch.testing.assert_close(outputs(a), outputs(b))


# several adapters

def test_stack_parallel_and_none(tiny):
    encoder = load_encoder(str(tiny/'electra'))
    for name in 'ab': encoder.add(name, 'seq_bn')
    with torch.no_grad():
        for v in [*encoder.adapter_parameters('a').values(), *encoder.adapter_parameters('b').values()]: v.normal_(std=.1)
    one = {}
    for name in 'ab': encoder.activate(name); one[name] = outputs(encoder)
    encoder.activate(Parallel('a', 'b'))
    torch.testing.assert_close(outputs(encoder), torch.cat([one['a'], one['b']]))
    encoder.activate(['a','b'])
    stacked = outputs(encoder)
    assert not torch.allclose(stacked, one['a']) and not torch.allclose(stacked, one['b'])
    encoder.train_only(['a','b'])
    assert set(encoder.trainable()) == {*encoder.adapter_parameters('a'), *encoder.adapter_parameters('b')}
    encoder.remove('b')
    assert list(encoder.methods) == ['a'] and not any('.b.' in k for k in encoder.tensors())

@pytest.mark.parametrize('backend', ['lora','peft_lora'])
def test_adding_activating_and_removing_leave_what_learns_alone(tiny, backend):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', backend); encoder.train_only('a'); learning = set(encoder.trainable())
    encoder.add('b', backend); assert set(encoder.trainable()) == learning
    encoder.activate('b'); assert set(encoder.trainable()) == learning
    encoder.activate(None); assert set(encoder.trainable()) == learning
    encoder.remove('b'); assert set(encoder.trainable()) == learning
    encoder.add('b', backend); encoder.activate('b'); encoder.train_only('b'); fit(encoder, steps=1)

def test_the_warning_of_adapters_comes_only_where_it_is_right(tiny, caplog):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', 'lora')
    encoder.activate('a'); outputs(encoder); encoder.activate(None); outputs(encoder)
    assert 'none are activated' not in caplog.text
    forgotten = load_encoder(str(tiny/'bert'))
    forgotten.add('a', 'lora'); outputs(forgotten)
    assert 'none are activated' in caplog.text

def test_no_gradient_checkpointing(tiny): assert not load_encoder(str(tiny/'bert')).model.is_gradient_checkpointing


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
    (lambda e: e.add('b', 'compacter', phm_dim=5), 'phm_dim 5 does not divide'),
    (lambda e: e.add('b', 'vera', attention='qkvx', dropout='much'), 'cannot add vera'),
    (lambda e: e.add('b', 'adapterplus', stochastic_depth=1.), 'stochastic_depth'),
    (lambda e: e.add('b', 'reft', kind='softreft'), 'no kind of ReFT'),
    (lambda e: e.activate('b'), "no adapter 'b'"), (lambda e: e.train_only(['a','b']), "no adapter 'b'"),
    (lambda e: e.save('b', '/nowhere'), "no adapter 'b'"), (lambda e: e.remove('b'), "no adapter 'b'")])
def test_mistakes_say_what_and_leave_nothing(tiny, do, says):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', 'lora'); encoder.activate('a'); encoder.train_only('a')
    before,learning = digests(encoder),set(encoder.trainable())
    with pytest.raises(HatenbError, match='(?i)'+says): do(encoder)
    assert list(encoder.methods) == ['a'] and digests(encoder) == before and set(encoder.trainable()) == learning

def test_dora_of_adapters_on_quantized_weights_is_refused(tiny):
    with pytest.raises(HatenbError, match='DoRA of `adapters` needs unquantized'): load_encoder(str(tiny/'bert'), 'nf4').add('a', 'lora', dora=True)

def test_full_stands_alone(tiny):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('all', 'full')
    with pytest.raises(HatenbError, match='full fine-tuning changes'): encoder.add('a', 'lora')
    with pytest.raises(HatenbError, match='cannot be taken out'): encoder.remove('all')

def truncate(f): f.write_bytes(f.read_bytes()[:-100])
def edit(**change):
    def _edit(d):
        config = read_json(d/'adapter_config.json')
        config['hatenb'].update(change)
        write_json(d/'adapter_config.json', config)
    return _edit
def reseal(d):
    "Weights of another adapter, with their own right checksum"
    w = d/'adapter.safetensors'
    tensors = load_file(w); tensors.popitem(); save_file(tensors, w)
    edit(sha256=hashlib.sha256(w.read_bytes()).hexdigest())(d)

@pytest.mark.parametrize('harm,says', [
    (shutil.rmtree, 'file is missing'),
    (lambda d: (d/'adapter_config.json').unlink(), 'file is missing'),
    (lambda d: (d/'adapter_config.json').write_text('{"hatenb": '), 'JSON is broken'),
    (lambda d: (d/'adapter_config.json').write_text('[]'), 'not written by hatenb'),
    (lambda d: (d/'adapter_config.json').write_text('{"hatenb": {"method": 3}}'), 'not written by hatenb'),
    (lambda d: (d/'adapter.safetensors').unlink(), 'weights adapter.safetensors are missing'),
    (lambda d: (d/'adapter.safetensors').rename(d/'pytorch_adapter.bin'), 'are missing'),
    (lambda d: truncate(d/'adapter.safetensors'), 'not those the configuration was written for'),
    (edit(weights='../../evil.bin'), 'are missing'),
    (edit(method='lorra'), 'did you mean'), (edit(options={'rank': 1}), 'no option'),
    (edit(options={'r': 4}), 'does not fit'), (edit(width=65), 'of width 65'), (edit(model_type='electra'), 'made for a electra'),
    (reseal, 'does not fit')])
def test_harmed_folders(tiny, tmp_path, harm, says):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', 'lora')
    folder = encoder.save('a', tmp_path/'a')
    harm(folder)
    other = load_encoder(str(tiny/'bert'))
    with pytest.raises(HatenbError, match=says): other.load(folder)
    assert not other.methods and not any('.loras.' in k for k in other.tensors())

def test_a_failed_save_leaves_nothing(tiny, tmp_path, monkeypatch):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', 'lora')
    def full_disk(*args, **kwargs): raise OSError('no space left')
    monkeypatch.setattr('hatenb.encoder.storage.save_file', full_disk)
    with pytest.raises(OSError): encoder.save('a', tmp_path/'a')
    assert not list((tmp_path/'a').iterdir())


# encoders that cannot be had

def spoilt(tiny, tmp_path, spoil):
    folder = tmp_path/'encoder'
    shutil.copytree(tiny/'bert', folder)
    spoil(folder)
    return str(folder)

def drop_a_tensor(d):
    tensors = load_file(d/'model.safetensors'); del tensors['bert.encoder.layer.1.output.dense.weight']
    save_file(tensors, d/'model.safetensors', metadata={'format': 'pt'})

@pytest.mark.parametrize('spoil,says', [
    (lambda d: (d/'config.json').unlink(), 'no config.json'),
    (lambda d: (d/'config.json').write_text('{'), 'cannot be loaded'),
    (lambda d: (d/'config.json').write_text('{"model_type": "nonesuch"}'), 'cannot be loaded'),
    (lambda d: (d/'model.safetensors').unlink(), 'no model.safetensors'),
    (lambda d: (d/'model.safetensors').rename(d/'pytorch_model.bin'), 'pickle is never read'),
    (lambda d: truncate(d/'model.safetensors'), 'cannot be read'),
    (drop_a_tensor, 'lack .*layer.1.output.dense.weight')])
def test_spoilt_encoders(tiny, tmp_path, spoil, says):
    with pytest.raises(HatenbError, match=says): load_encoder(spoilt(tiny, tmp_path, spoil))

def test_a_local_encoder_never_touches_the_network(tiny, monkeypatch):
    def no_network(*args): raise AssertionError('the network was touched')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr('socket.socket.connect', no_network)
    monkeypatch.setattr('socket.getaddrinfo', no_network)
    load_encoder(str(tiny/'electra')); load_encoder('minilm')

def test_without_a_network_the_setting_is_named(monkeypatch):
    with pytest.raises(HatenbError, match='HF_HUB_OFFLINE forbids .* HATENB_ENCODER'): load_encoder('somebody/never-fetched')
    def no_network(*args, **kwargs): raise OSError('no network')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr('socket.getaddrinfo', no_network)
    with pytest.raises(HatenbError, match='neither a folder, nor in the cache'): load_encoder('somebody/never-fetched')

@pytest.mark.parametrize('options,says', [(dict(quantization='nf5'), "no quantization 'nf5'"), (dict(dtype=torch.float16), 'cannot be loaded in torch.float16')])
def test_unknown_choices(options, says):
    with pytest.raises(HatenbError, match=says): load_encoder('minilm', **options)
