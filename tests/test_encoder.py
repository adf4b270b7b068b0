"Encoders: dropout, quantized weights that stay put, memory, and all the ways in which an encoder cannot be had"
import hashlib, shutil
import bitsandbytes as bnb, pytest, torch
from safetensors.torch import load_file, save_file
from torch import nn
from hatenb.core import HatenbError
from hatenb.encoder import ByteDropout, count_parameters, encoder_digest, load_encoder
from tiny import batch, bf16, digests, f32, outputs, tiny


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
    if wrapped:
        encoder.add('a', 'lora', dropout=0.)
        encoder.activate('a')
        encoder.train_only('a')
    for m in encoder.modules():
        if isinstance(m, ByteDropout): m.cut = 0
    before,ids_mask = digests(encoder),batch()
    evaluated = outputs(encoder)
    trained = encoder.train()(*ids_mask).detach()
    assert torch.equal(trained, evaluated)
    assert digests(encoder) == before

def dequantized(layer):
    "The weights [m,n] of a quantized layer of bitsandbytes, in float32"
    w = layer.weight
    if isinstance(layer, bnb.nn.Linear4bit): return bnb.functional.dequantize_4bit(w.data, w.quant_state).float()
    codes,scales = w.data if w.CB is None else w.CB, layer.state.SCB if w.SCB is None else w.SCB
    return codes.float()*(scales.unsqueeze(1)/127)

@pytest.mark.parametrize('quantization', ['nf4','nf4-double','int8'])
def test_a_quantized_encoder_is_the_encoder_with_rounded_weights(tiny, quantization):
    quantized,plain = load_encoder(str(tiny/'bert'), quantization),load_encoder(str(tiny/'bert'))
    rounded = dict(quantized.model.named_modules())
    layers = {k: m for k,m in plain.model.named_modules() if isinstance(m, nn.Linear)}
    assert len(layers) == 12
    for k,m in layers.items():
        got = dequantized(rounded[k])
        assert 0 < (got-m.weight).norm()/m.weight.norm() < (.02 if quantization == 'int8' else .12)
        m.weight.data = got
    torch.testing.assert_close(outputs(quantized), outputs(plain), atol=1e-4, rtol=1e-4)

def test_memory_counts_what_is_stored(tiny):
    linear = 2*(4*64*64 + 2*64*128)   # weights of the linear layers of the tiny BERT
    plain = load_encoder(str(tiny/'bert'))
    everything = 4*sum(p.numel() for p in plain.parameters())
    assert plain.memory() == dict(encoder_bytes=everything, adapter_bytes=0, trainable=0)
    rest = everything - 4*linear
    rows = 2*(4*64+128+64)
    assert load_encoder(str(tiny/'bert'), 'int8').memory()['encoder_bytes'] - rest - linear - 4*rows in (0, 12)
    nf4 = load_encoder(str(tiny/'bert'), 'nf4').memory()['encoder_bytes']
    packed,scales,levels = linear//2, 4*linear//64, 12*16*4   # a scale for 64 weights, a table of levels a layer
    assert nf4 - rest == packed+scales+levels

def test_memory_of_an_adapter(tiny):
    encoder = load_encoder(str(tiny/'bert'), 'nf4', bf16)
    encoder.add('a', 'lora', r=2)
    params = 2*2*(3*(64+64) + 2*(64+128))
    assert encoder.memory()['adapter_bytes'] == 4*params and encoder.memory()['trainable'] == 0
    encoder.train_only('a')
    assert encoder.memory()['trainable'] == params
    assert count_parameters(encoder, 'lora', r=4) == 2*params and encoder.memory()['trainable'] == params

def test_no_gradient_checkpointing(tiny): assert not load_encoder(str(tiny/'bert')).model.is_gradient_checkpointing


# encoders that cannot be had

@pytest.fixture
def copied(tiny, tmp_path): return shutil.copytree(tiny/'bert', tmp_path/'encoder')

def change_tensors(change):
    "A function that rewrites the weights of a folder"
    def _change(d):
        tensors = load_file(d/'model.safetensors')
        change(tensors)
        save_file(tensors, d/'model.safetensors', metadata={'format': 'pt'})
    return _change

def cut_off(d): (d/'model.safetensors').write_bytes((d/'model.safetensors').read_bytes()[:-100])
def put_nan(tensors): tensors['bert.encoder.layer.1.output.dense.bias'][3] = torch.nan
def put_infinity(tensors): tensors['bert.encoder.layer.0.intermediate.dense.weight'][0,0] = torch.inf

@pytest.mark.parametrize('spoil,says', [
    (lambda d: (d/'config.json').unlink(), 'no config.json'),
    (lambda d: (d/'config.json').write_text('{'), 'cannot be loaded'),
    (lambda d: (d/'config.json').write_text('{"model_type": "nonesuch"}'), 'cannot be loaded'),
    (lambda d: (d/'model.safetensors').unlink(), 'no model.safetensors'),
    (lambda d: (d/'model.safetensors').rename(d/'pytorch_model.bin'), 'pickle is never read'),
    (cut_off, 'cannot be read'),
    (change_tensors(put_nan), "no finite number, first in 'encoder.layer.1.output.dense.bias'"),
    (change_tensors(put_infinity), "no finite number, first in 'encoder.layer.0.intermediate.dense.weight'"),
    (change_tensors(lambda t: t.pop('bert.encoder.layer.1.output.dense.weight')), 'lack .*1.output.dense.weight')])
def test_spoilt_encoders(copied, spoil, says):
    spoil(copied)
    with pytest.raises(HatenbError, match=says): load_encoder(str(copied))

@pytest.mark.parametrize('quantization', ['nf4','int8'])
def test_infinite_weights_are_seen_through_quantization(copied, quantization):
    change_tensors(put_infinity)(copied)
    with pytest.raises(HatenbError, match='no finite number'): load_encoder(str(copied), quantization)

def test_a_local_encoder_never_touches_the_network(tiny, monkeypatch):
    def no_network(*args): raise AssertionError('the network was touched')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr('socket.socket.connect', no_network)
    monkeypatch.setattr('socket.getaddrinfo', no_network)
    load_encoder(str(tiny/'electra'))
    load_encoder('minilm')

def test_without_a_network_the_setting_is_named(monkeypatch):
    with pytest.raises(HatenbError, match='HF_HUB_OFFLINE forbids .* HATENB_ENCODER'):
        load_encoder('somebody/never-fetched')
    def no_network(*args, **kwargs): raise OSError('no network')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr('socket.getaddrinfo', no_network)
    with pytest.raises(HatenbError, match='neither a folder, nor in the cache'): load_encoder('somebody/never-fetched')

@pytest.mark.parametrize('options,says', [
    (dict(quantization='nf5'), "no quantization 'nf5'"),
    (dict(dtype=torch.float16), 'cannot be loaded in torch.float16')])
def test_unknown_choices(options, says):
    with pytest.raises(HatenbError, match=says): load_encoder('minilm', **options)


# which encoder it is

def test_an_encoder_is_known_by_its_weights(tiny, copied, tmp_path):
    "Wherever it lies; changed weights are another encoder"
    assert encoder_digest(str(copied)) == encoder_digest(str(tiny/'bert')) != encoder_digest(str(tiny/'electra'))
    (copied/'vocab.txt').touch()
    before = encoder_digest(str(copied))
    change_tensors(put_nan)(copied)
    assert encoder_digest(str(copied)) != before

def test_the_digest_is_that_of_the_file(copied):
    assert encoder_digest(str(copied)) == hashlib.sha256((copied/'model.safetensors').read_bytes()).hexdigest()

def test_no_digest_without_weights(copied):
    (copied/'model.safetensors').unlink()
    with pytest.raises(HatenbError, match='no safetensors weights'): encoder_digest(str(copied))
    with pytest.raises(HatenbError, match='not in the cache'): encoder_digest('somebody/never-fetched')
