"""Architectures: MPNet through its interface, one of one's own, ModernBERT's joined product, ELECTRA as the notes use it;
runs of several architectures from training to the detector"""
import os
from pathlib import Path
import pytest, torch
from adapters.composition import BatchSplit
from transformers import ElectraConfig, ElectraModel, ElectraTokenizerFast
from hatenb.core import HatenbError, encoder_path, settings
from hatenb.corpora import load_corpus
from hatenb.detector import Detector, Runtime
from hatenb.encoder import encoder_digest, interfaces, load_encoder
from hatenb.making import make_run
from hatenb.runs import RunConfig, run_folder
from parts import assert_near
from tiny import batch, bf16, check, check_saved, f32, fit, outputs, save_encoder, tiny


# MPNet

CASES = [('lora', 'nf4', bf16), ('lora', 'none', f32), ('ia3', 'int8', f32), ('vera', 'nf4-double', f32),
         ('seq_bn', 'nf4', f32), ('double_seq_bn', 'none', bf16), ('par_bn', 'int8', bf16), ('compacter', 'nf4', f32),
         ('compacter++', 'none', f32), ('reft', 'nf4', bf16), ('peft_lora', 'nf4', f32), ('peft_lora', 'int8', bf16),
         ('full', 'none', bf16), ('frozen', 'nf4-double', bf16)]

@pytest.mark.parametrize('method,quantization,dtype', CASES)
def test_mpnet(tiny, tmp_path, method, quantization, dtype):
    check(tiny/'mpnet', tmp_path, quantization, method, dtype)

@pytest.mark.parametrize('method', ['prefix','unipelt','mam','adapterplus'])
def test_what_the_interface_of_mpnet_does_not_allow(tiny, method):
    encoder = load_encoder(str(tiny/'mpnet'))
    with pytest.raises(HatenbError, match=f'cannot add {method}'): encoder.add('a', method)
    encoder.add('a', 'seq_bn')

@pytest.mark.parametrize('method', ['lora','seq_bn'])
def test_posts_of_one_batch_go_through_adapters_of_their_own(tiny, method):
    encoder = load_encoder(str(tiny/'mpnet'))
    one = {}
    for name in 'ab':
        encoder.add(name, method)
        with torch.no_grad():
            for v in encoder.adapter_parameters(name).values(): v.normal_(std=.1)
        encoder.activate(name)
        one[name] = outputs(encoder)
    encoder.activate(None)
    with torch.no_grad(): both = encoder(*batch(), setup=BatchSplit('a', 'b', batch_sizes=[2, 4]))
    torch.testing.assert_close(both, torch.cat([one['a'][:2], one['b'][2:]]))

def mpnet_folder():
    "The real one, wherever it is on this machine"
    for folder in (os.environ.get('HATENB_MPNET'), settings().cache_path/'encoders'/'all-mpnet-base-v2',
                   Path('~/.cache/hatenb/encoders/all-mpnet-base-v2').expanduser()):
        if folder and (Path(folder)/'config.json').is_file(): return folder

needs_mpnet = pytest.mark.skipif(mpnet_folder() is None, reason='MPNet is not here: HATENB_MPNET names no folder')

@pytest.fixture
def mpnet(monkeypatch):
    monkeypatch.setenv('HATENB_MPNET', str(mpnet_folder()))
    return 'mpnet'

@needs_mpnet
@pytest.mark.parametrize('method,quantization,dtype', [('lora', 'nf4', bf16), ('seq_bn', 'int8', f32)])
def test_the_real_mpnet(mpnet, tmp_path, method, quantization, dtype):
    torch.manual_seed(0)
    encoder = load_encoder(mpnet, quantization, dtype)
    assert encoder.width == 768
    encoder.add('mine', method)
    encoder.activate('mine')
    encoder.train_only('mine')
    first,last = fit(encoder, steps=2, lr=1e-3)
    assert last < first
    check_saved(encoder, mpnet, tmp_path, outputs(encoder))

@needs_mpnet
def test_the_real_mpnet_is_known_by_its_weights(mpnet):
    "The SHA-256 that its publisher's file has"
    assert encoder_digest(mpnet) == '78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658'

def test_a_missing_mpnet_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv('HATENB_MPNET', str(tmp_path/'nowhere'))
    with pytest.raises(HatenbError, match='hf download sentence-transformers/all-mpnet-base-v2 --local-dir .*nowhere'):
        load_encoder('mpnet')
    monkeypatch.delenv('HATENB_MPNET')
    monkeypatch.setenv('HATENB_CACHE', str(tmp_path))
    with pytest.raises(HatenbError, match='all-mpnet-base-v2'): encoder_path('mpnet')


# an architecture with an interface of one's own

def test_an_unknown_architecture_says_how_it_is_described(tiny, monkeypatch):
    monkeypatch.delitem(interfaces, 'mpnet')
    encoder = load_encoder(str(tiny/'mpnet'))
    with pytest.raises(HatenbError, match=r"interfaces\['mpnet'\] = .*peft_lora"): encoder.add('a', 'lora')
    assert not encoder.methods and encoder.backend is None
    encoder.add('a', 'peft_lora')

def test_an_interface_of_ones_own(tiny, tmp_path, monkeypatch):
    "Only what it allows; and what it names wrongly is said"
    given = dict(interfaces['mpnet'], adapter_methods=['lora'])
    monkeypatch.setitem(interfaces, 'mpnet', given)
    check(tiny/'mpnet', tmp_path, 'none', 'lora')
    with pytest.raises(HatenbError, match='cannot add seq_bn'): load_encoder(str(tiny/'mpnet')).add('a', 'seq_bn')
    monkeypatch.setitem(interfaces, 'mpnet', dict(given, attn_q_proj='attn.query'))
    with pytest.raises(HatenbError, match="'attn.query'"): load_encoder(str(tiny/'mpnet')).add('a', 'lora')


# query, key and value in one product

@pytest.mark.parametrize('method', ['lora','seq_bn','ia3','reft','peft_lora'])
def test_joined_query_key_value(tiny, tmp_path, method): check(tiny/'modernbert', tmp_path, 'none', method)

def test_what_adapters_cannot_do_where_query_key_and_value_are_one_product(tiny):
    for quantization,method in (('nf4','lora'),('int8','seq_bn'),('none','vera')):
        with pytest.raises(HatenbError, match='are one product'):
            load_encoder(str(tiny/'modernbert'), quantization).add('a', method)

def test_what_adapters_does_not_support(tiny):
    encoder = load_encoder(str(tiny/'modernbert'))
    with pytest.raises(HatenbError, match='cannot add prefix'): encoder.add('a', 'prefix')
    encoder.add('a', 'seq_bn')


# ELECTRA with the configurations of google/electra-small- and -base-discriminator, and random weights

SMALL = dict(embedding_size=128, hidden_size=256, num_hidden_layers=12, num_attention_heads=4, intermediate_size=1024)
BASE = dict(embedding_size=768, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)

@pytest.mark.parametrize('size,quantization', [
    (SMALL, 'nf4'), (dict(BASE, num_hidden_layers=2), 'none'), pytest.param(BASE, 'nf4', marks=pytest.mark.full)],
    ids=['small','base of two layers','base'])
def test_electra(tmp_path, size, quantization):
    torch.manual_seed(0)
    model = ElectraModel(ElectraConfig(vocab_size=30522, **size))
    save_encoder(tmp_path/'electra', model, ElectraTokenizerFast)
    encoder = load_encoder(str(tmp_path/'electra'), quantization, bf16)
    assert (encoder.width,encoder.width_in) == (size['hidden_size'],size['embedding_size'])
    n = dict(lora=16*size['num_hidden_layers']*(8*size['hidden_size'] + 2*size['intermediate_size']),
             seq_bn=size['num_hidden_layers']*(2*size['hidden_size']**2//16 + size['hidden_size']*17//16))
    for method in 'lora','seq_bn': learns(encoder, method, n[method])
    check_saved(encoder, tmp_path/'electra', tmp_path/'saved', outputs(encoder))

def learns(encoder, method, parameters):
    "One step of an adapter called mine (the one that was there before is taken out)"
    if 'mine' in encoder.methods: encoder.remove('mine')
    encoder.add('mine', method)
    encoder.activate('mine')
    encoder.train_only('mine')
    assert encoder.memory()['trainable'] == parameters
    first,last = fit(encoder, steps=1, lr=1e-3)
    assert last != first


# from two runs to one detector

TASKS = ['mini/label', 'mini/target']
QUICK = dict(limit=16, max_length=40, train=dict(epochs=1, batch_size=8, lr=.05))
WAYS = dict(merged=dict(strategy='merge'), fused=dict(strategy='fuse'),
            dynamic=dict(strategy='fuse', strategy_options=dict(variant='dynamic')))

@pytest.fixture(scope='module')
def runs(tmp_path_factory): return tmp_path_factory.mktemp('runs')

@pytest.fixture
def name_of(tiny, monkeypatch):
    "Architecture → what its tiny encoder is called"
    monkeypatch.setenv('HATENB_MPNET', str(tiny/'mpnet'))
    return lambda kind: 'mpnet' if kind == 'mpnet' else str(tiny/kind)

def made_of_two(way, runs, **base):
    "The folder of a run that is made of two"
    base = dict(QUICK, **base)
    sources = [dict(base, tasks=[t]) for t in TASKS]
    base.pop('adapter')
    config = RunConfig.from_dict(dict(base, tasks=TASKS, sources=sources, **WAYS[way]))
    make_run(config, runs)
    return run_folder(config, runs).folder

@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('kind,adapter,quantization', [
    ('mpnet', 'lora', 'none'), ('mpnet', 'seq_bn', 'none'), ('mpnet', 'lora', 'nf4'), ('mpnet', 'lora', 'int8'),
    ('mpnet', 'seq_bn', 'int8'), ('electra', 'lora', 'none')])
def test_two_runs_become_one_detector(name_of, runs, tmp_path, kind, adapter, quantization, way):
    "What torch answers as trained, with the adapter in the weights, from a bundle, and ONNX Runtime where that can be"
    folder = made_of_two(way, runs, encoder=name_of(kind), adapter=adapter, quantization=quantization)
    texts = [' '.join(w) for w in load_corpus('mini')['test']['words'][:6]]
    detector = Detector.from_run(folder, dtype='float32')
    answers = detector(texts)
    assert_near(answers, Detector.from_run(folder, dtype='float32', merge=False)(texts), 1e-4)
    assert Detector.from_pretrained(detector.save(tmp_path/'torch'), dtype='float32')(texts) == answers
    if (way, adapter, quantization) == ('merged', 'lora', 'none'):
        assert_near(Runtime(detector.save(tmp_path/'float32', onnx='float32'))(texts), answers, 1e-4)
        assert_near(Runtime(detector.save(tmp_path/'int8', onnx='int8'))(texts), answers, .1)
        return
    with pytest.raises(HatenbError, match='cannot be added to the weights'): detector.save(tmp_path/'no', onnx='int8')
    assert not (tmp_path/'no').exists()

def test_what_peft_adds_is_not_fused(name_of, runs):
    with pytest.raises(HatenbError, match='fusion comes from adapters.*take another'):
        made_of_two('fused', runs, encoder=name_of('mpnet'), adapter='peft_lora')

def test_mpnet_has_fewer_places_than_its_configuration_says(name_of, tmp_path):
    config = RunConfig.from_dict(dict(QUICK, tasks=TASKS[:1], encoder=name_of('mpnet'), max_length=63))
    with pytest.raises(HatenbError, match='the encoder has 62 places'): make_run(config, tmp_path)
