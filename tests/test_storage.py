"Saved adapters: ours read by the libraries and theirs by us, pickled ones, and harmed folders"
import hashlib, pickle, shutil
import adapters, peft, pytest, torch
from adapters import AutoAdapterModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification
from hatenb.core import HatenbError, read_json, write_json
from hatenb.encoder import convert_adapter, interface_of, load_encoder
from tiny import fit, model_outputs, outputs, tiny, trained


CONFIG,WEIGHTS = 'adapter_config.json','adapter.safetensors'


def plain_model(folder, wrap=True):
    "The model of `transformers`, as somebody without hatenb loads it"
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation='eager')
    if wrap: adapters.init(model, interface=interface_of(model.config.model_type))
    return model

def shake(model, name):
    "Give an adapter of a library weights that change the outputs"
    torch.manual_seed(3)
    with torch.no_grad():
        for k,p in model.named_parameters():
            if f'.{name}.' in k and p.is_floating_point(): p.add_(torch.randn_like(p)*.05)

def loaded(encoder_folder, folder, name=None):
    "A fresh encoder that uses the adapter of a folder"
    encoder = load_encoder(str(encoder_folder))
    encoder.activate(encoder.load(folder, name))
    return encoder


# ours, read by the libraries

@pytest.mark.parametrize('options', [{}, dict(use_safetensors=True)])
@pytest.mark.parametrize('method', ['lora','compacter','vera','prefix','reft','unipelt'])
def test_adapters_reads_what_we_save(tiny, tmp_path, method, options):
    encoder = trained(tiny/'bert', method)
    folder = encoder.save('a', tmp_path/'a')
    model = plain_model(tiny/'bert')
    model.load_adapter(str(folder), set_active=True, **options)
    torch.testing.assert_close(model_outputs(model), outputs(encoder))

def test_adapters_reads_what_we_save_of_an_architecture_with_an_interface(tiny, tmp_path):
    encoder = trained(tiny/'mpnet', 'seq_bn')
    model = plain_model(tiny/'mpnet')
    model.load_adapter(str(encoder.save('a', tmp_path/'a')), set_active=True)
    torch.testing.assert_close(model_outputs(model), outputs(encoder))

def test_peft_reads_what_we_save(tiny, tmp_path):
    encoder = trained(tiny/'bert', 'peft_lora')
    folder = encoder.save('a', tmp_path/'a')
    model = peft.PeftModel.from_pretrained(plain_model(tiny/'bert', wrap=False), folder)
    torch.testing.assert_close(model_outputs(model), outputs(encoder))

def test_without_the_pickle(tiny, tmp_path):
    encoder = trained(tiny/'bert', 'lora')
    folder = encoder.save('a', tmp_path/'a', pickled=False)
    assert {f.name for f in folder.iterdir()} == {'adapter.safetensors','adapter_config.json'}
    assert {f.name for f in encoder.save('a', folder).iterdir()} >= {'pytorch_adapter.bin'}

def test_our_pickle_is_never_read(tiny, tmp_path):
    encoder = trained(tiny/'bert', 'lora')
    folder = encoder.save('a', tmp_path/'a')
    (folder/'pytorch_adapter.bin').write_bytes(pickle.dumps(Evil(tmp_path/'evil')))
    assert torch.equal(outputs(loaded(tiny/'bert', folder)), outputs(encoder))
    assert not (tmp_path/'evil').exists()

def test_the_same_lora_through_either_library(tiny):
    a,b = load_encoder(str(tiny/'bert')),load_encoder(str(tiny/'bert'))
    a.add('x', 'lora', r=4)
    b.add('x', 'peft_lora', r=4, target=['query','key','value','intermediate.dense','output.dense'])
    for e in (a,b): e.activate('x')
    with torch.no_grad():
        for v in a.adapter_parameters('x').values(): v.normal_(std=.1)
        for v in b.adapter_parameters('x').values(): v.zero_()       # attention.output has one by peft only
        theirs = b.factors('x')
        for path,(B,A,_) in a.factors('x').items():
            theirs[path][0].copy_(B)
            theirs[path][1].copy_(A)
    torch.testing.assert_close(outputs(a), outputs(b))


# theirs, read by us

CONFIGS = {
    'lora': adapters.LoRAConfig(r=4, alpha=16, attn_matrices=['q','v'], output_lora=True, leave_out=[0]),
    'peft_like': adapters.LoRAConfig(r=4, alpha=16, intermediate_lora=True, selfattn_lora=False, dropout=.1),
    'ia3': adapters.IA3Config(), 'seq_bn': adapters.SeqBnConfig(reduction_factor=8),
    'double_seq_bn': adapters.DoubleSeqBnConfig(), 'par_bn': adapters.ParBnConfig(),
    'adapterplus': adapters.AdapterPlusConfig(stochastic_depth=0.),
    'compacter': adapters.CompacterConfig(reduction_factor=8),
    'vera': adapters.VeraConfig(), 'prefix': adapters.PrefixTuningConfig(bottleneck_size=16),
    'unipelt': adapters.UniPELTConfig(), 'mam': adapters.MAMConfig(), 'reft': adapters.LoReftConfig(),
    'library': adapters.SeqBnInvConfig(reduction_factor=8), 'gated': adapters.LoRAConfig(use_gating=True)}
METHOD = dict(peft_like='lora', gated='library')

@pytest.mark.parametrize('name', CONFIGS)
def test_what_adapters_saves_of_a_model_with_heads(tiny, tmp_path, name):
    model = AutoAdapterModel.from_pretrained(tiny/'electra', attn_implementation='eager')
    model.add_adapter('theirs', config=CONFIGS[name])
    model.add_classification_head('theirs', num_labels=3)
    shake(model, 'theirs')
    shares = name in ('prefix','unipelt','mam')    # layers share tensors, which the library cannot write as safetensors
    model.save_adapter(tmp_path/'a', 'theirs', use_safetensors=not shares)
    if shares: convert_adapter(tmp_path/'a', trusted=True)
    encoder = loaded(tiny/'electra', tmp_path/'a')
    assert list(encoder.methods) == ['theirs'] and encoder.method_of('theirs') == METHOD.get(name, name)
    model.set_active_adapters('theirs')
    torch.testing.assert_close(outputs(encoder), model_outputs(model.electra))

@pytest.mark.parametrize('name', ['lora','seq_bn','gated'])
def test_what_adapters_saves_of_a_base_model(tiny, tmp_path, name):
    model = plain_model(tiny/'mpnet')
    model.add_adapter('theirs', config=CONFIGS[name], set_active=True)
    shake(model, 'theirs')
    model.save_adapter(tmp_path/'a', 'theirs', use_safetensors=True)
    encoder = loaded(tiny/'mpnet', tmp_path/'a', 'ours')
    torch.testing.assert_close(outputs(encoder), model_outputs(model))
    again = loaded(tiny/'mpnet', encoder.save('ours', tmp_path/'again'))
    assert torch.equal(outputs(again), outputs(encoder))

def test_a_loaded_lora_of_theirs_can_be_merged(tiny, tmp_path):
    model = plain_model(tiny/'bert')
    model.add_adapter('theirs', config=CONFIGS['lora'])
    model.save_adapter(tmp_path/'a', 'theirs', use_safetensors=True)
    encoder = loaded(tiny/'bert', tmp_path/'a')
    options = encoder.methods['theirs']['options']
    assert options['layers'] == [1] and options['r'] == 4 and options['attention'] == 'qv'
    assert {s for B,A,s in encoder.factors('theirs').values()} == {4.} and len(encoder.factors('theirs')) == 3

def test_lora_before_version_1_1_was_scaled_otherwise(tiny, tmp_path):
    model = plain_model(tiny/'bert')
    model.add_adapter('theirs', config=CONFIGS['lora'])
    model.save_adapter(tmp_path/'a', 'theirs', use_safetensors=True)
    write_json(tmp_path/'a'/CONFIG, dict(read_json(tmp_path/'a'/CONFIG), version='adapters.0.2.1'))
    assert loaded(tiny/'bert', tmp_path/'a').methods['theirs']['options']['alpha'] == 4

@pytest.mark.parametrize('options', [
    dict(r=4, target_modules='all-linear'), dict(r=4, lora_alpha=3, target_modules=['query','value'], use_dora=True),
    dict(r=2, target_modules=r'.*\.(key|intermediate\.dense)', use_rslora=True, lora_dropout=.3)])
def test_what_peft_saves_of_a_base_model(tiny, tmp_path, options):
    model = peft.get_peft_model(plain_model(tiny/'bert', wrap=False), peft.LoraConfig(**options))
    shake(model, 'default')
    model.save_pretrained(tmp_path/'stranger.v1')
    encoder = loaded(tiny/'bert', tmp_path/'stranger.v1')
    assert list(encoder.methods) == ['stranger-v1']
    torch.testing.assert_close(outputs(encoder), model_outputs(model))

@pytest.mark.parametrize('target', [['query','value'], 'all-linear', ['bert.encoder.layer.1.output.dense']])
def test_what_peft_saves_of_a_classifier(tiny, tmp_path, target):
    "The head that it saves besides is left"
    model = AutoModelForSequenceClassification.from_pretrained(tiny/'bert', num_labels=3, attn_implementation='eager')
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=target, task_type='SEQ_CLS'))
    shake(model, 'default')
    model.save_pretrained(tmp_path/'a')
    encoder = loaded(tiny/'bert', tmp_path/'a')
    torch.testing.assert_close(outputs(encoder), model_outputs(model.base_model.model.bert))

@pytest.mark.parametrize('options,says', [
    (dict(rank_pattern={'query': 2}), 'rank_pattern'), (dict(bias='all'), "bias = 'all'"),
    (dict(layers_to_transform=[0], layers_pattern='layer'), 'layers_to_transform'),
    (dict(init_lora_weights='olora'), 'init_lora_weights')])
def test_what_has_no_option_here_is_named(tiny, tmp_path, options, says):
    model = plain_model(tiny/'bert', wrap=False)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=['query'], **options))
    model.save_pretrained(tmp_path/'a')
    refuses(tiny, tmp_path/'a', says)

def test_other_kinds_of_peft_are_named(tiny, tmp_path):
    model = plain_model(tiny/'bert', wrap=False)
    model = peft.get_peft_model(model, peft.IA3Config(target_modules=['key'], feedforward_modules=[]))
    model.save_pretrained(tmp_path/'a')
    refuses(tiny, tmp_path/'a', "peft's type IA3 are not read")

def test_a_reft_that_its_library_does_not_tell_apart(tiny, tmp_path):
    model = plain_model(tiny/'bert')
    model.add_adapter('theirs', config=adapters.DiReftConfig())
    model.save_adapter(tmp_path/'a', 'theirs', use_safetensors=True)
    refuses(tiny, tmp_path/'a', 'NoReFT or DiReFT')

def refuses(tiny, folder, says):
    "Loading says why not, and leaves nothing"
    other = load_encoder(str(tiny/'bert'))
    with pytest.raises(HatenbError, match=says): other.load(folder)
    assert not other.methods and not any('.loras.' in k or '.lora_' in k for k in other.tensors())


# pickled ones

class Evil:
    "Makes a file when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')

@pytest.fixture
def pickled(tiny, tmp_path):
    "A folder that `adapters` saved its way, and the outputs of the model"
    model = plain_model(tiny/'bert')
    model.add_adapter('theirs', config=CONFIGS['lora'], set_active=True)
    shake(model, 'theirs')
    model.save_adapter(tmp_path/'pickled', 'theirs')
    return tmp_path/'pickled', model_outputs(model)

def test_pickled_adapters_are_converted_where_they_are_trusted(tiny, tmp_path, pickled):
    folder,wanted = pickled
    refuses(tiny, folder, 'hatenb convert-adapter FOLDER --trusted')
    with pytest.raises(HatenbError, match='say so: --trusted'): convert_adapter(folder, tmp_path/'out')
    assert not (tmp_path/'out').exists()
    assert convert_adapter(folder, tmp_path/'out', trusted=True) == tmp_path/'out'
    assert {f.name for f in (tmp_path/'out').iterdir()} == {'adapter.safetensors','adapter_config.json'}
    torch.testing.assert_close(outputs(loaded(tiny/'bert', tmp_path/'out')), wanted)

def test_pickled_adapters_of_peft(tiny, tmp_path):
    model = peft.get_peft_model(plain_model(tiny/'bert', wrap=False), peft.LoraConfig(r=4, target_modules=['query']))
    shake(model, 'default')
    model.save_pretrained(tmp_path/'a')
    tensors = load_file(tmp_path/'a'/'adapter_model.safetensors')
    torch.save(tensors, tmp_path/'a'/'adapter_model.bin')
    (tmp_path/'a'/'adapter_model.safetensors').unlink()
    refuses(tiny, tmp_path/'a', 'convert-adapter')
    encoder = loaded(tiny/'bert', convert_adapter(tmp_path/'a', trusted=True))
    torch.testing.assert_close(outputs(encoder), model_outputs(model))

def test_an_evil_pickle_is_not_run(tmp_path, pickled):
    folder,_ = pickled
    for harm in (lambda f: f.write_bytes(pickle.dumps(Evil(tmp_path/'evil'))),
                 lambda f: torch.save({'a': Evil(tmp_path/'evil')}, f), lambda f: torch.save(['text'], f),
                 lambda f: f.write_bytes(b''), lambda f: f.write_bytes(b'\x80\x02}q\x00.' * 9),
                 lambda f: torch.save({'a': torch.tensor([torch.nan])}, f)):
        harm(folder/'pytorch_adapter.bin')
        with pytest.raises(HatenbError): convert_adapter(folder, tmp_path/'out', trusted=True)
    assert not (tmp_path/'evil').exists() and not (tmp_path/'out').exists()

def test_nothing_to_convert(tmp_path, pickled):
    folder,_ = pickled
    (folder/'pytorch_adapter.bin').unlink()
    with pytest.raises(HatenbError, match='no pickled weights'): convert_adapter(folder, trusted=True)
    with pytest.raises(HatenbError, match='file is missing'): convert_adapter(tmp_path/'nowhere', trusted=True)


# harmed folders

def edit(**change):
    "A function that changes our part of a configuration"
    def _edit(d):
        config = read_json(d/CONFIG)
        config['hatenb'].update(change)
        write_json(d/CONFIG, config)
    return _edit

def reseal(change):
    "A function that changes the tensors, and gives them their own right checksum"
    def _reseal(d):
        tensors = load_file(d/WEIGHTS)
        change(tensors)
        save_file(tensors, d/WEIGHTS)
        edit(sha256=hashlib.sha256((d/WEIGHTS).read_bytes()).hexdigest())(d)
    return _reseal

def garbage(d):
    "No safetensors at all, with the right checksum"
    (d/WEIGHTS).write_bytes(b'\xff'*64)
    edit(sha256=hashlib.sha256(b'\xff'*64).hexdigest())(d)

def a_folder(name):
    def _a_folder(d):
        (d/name).unlink()
        (d/name).mkdir()
    return _a_folder

def put_nan(tensors): next(iter(tensors.values()))[0] = torch.nan
def cut_off(d): (d/WEIGHTS).write_bytes((d/WEIGHTS).read_bytes()[:-100])

HARMS = [
    (shutil.rmtree, 'file is missing'),
    (lambda d: (d/CONFIG).unlink(), 'file is missing'),
    (lambda d: (d/CONFIG).write_text('{"hatenb": '), 'JSON is broken'),
    (lambda d: (d/CONFIG).write_text('[]'), 'not of an adapter'),
    (lambda d: (d/CONFIG).write_text('{}'), 'of no adapter that is known'),
    (lambda d: (d/CONFIG).write_text('{"hatenb": {"method": 3}}'), 'not written by hatenb'),
    (lambda d: (d/CONFIG).write_text('{"hatenb": 3}'), 'not written by hatenb'),
    (lambda d: (d/CONFIG).write_text('{"config": 3}'), 'cannot be understood'),
    (lambda d: (d/CONFIG).write_text('{"config": {"architecture": "nonesuch"}}'), 'cannot be understood'),
    (lambda d: (d/CONFIG).write_text('{"peft_type": "LORA"}'), 'cannot be understood'),
    (lambda d: (d/CONFIG).write_text('{"peft_type": ["LORA"]}'), 'are not read'),
    (a_folder(CONFIG), 'configuration is a folder'),
    (lambda d: (d/WEIGHTS).unlink(), 'weights of the adapter are pickled'),
    (a_folder(WEIGHTS), 'weights of the adapter are pickled'),
    (cut_off, 'not those the configuration was written for'), (garbage, 'cannot be read'),
    (edit(weights='../../evil.bin'), 'are pickled'), (edit(weights='..'), 'are pickled'),
    (edit(method='lorra'), 'did you mean'), (edit(options={'rank': 1}), 'no option'),
    (edit(options={'r': 'x'}), 'cannot add lora'), (edit(options={'layers': {}}), 'does not fit'),
    (edit(options={'r': 4}), 'does not fit'), (edit(width=65), 'of width 65'),
    (edit(model_type='electra'), 'made for a electra'), (edit(name=''), 'cannot be called'),
    (reseal(dict.popitem), 'does not fit'), (reseal(put_nan), 'no finite number')]

@pytest.fixture(scope='module')
def saved(tiny, tmp_path_factory):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', 'lora')
    return encoder.save('a', tmp_path_factory.mktemp('saved')/'a')

@pytest.mark.parametrize('harm,says', HARMS)
def test_harmed_folders(tiny, saved, tmp_path, harm, says):
    folder = shutil.copytree(saved, tmp_path/'a')
    harm(folder)
    refuses(tiny, folder, says)

def test_missing_weights_without_a_pickle(tiny, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path/'a')
    for f in (WEIGHTS,'pytorch_adapter.bin'): (folder/f).unlink()
    refuses(tiny, folder, f'weights {WEIGHTS} are missing')

def test_a_failed_save_leaves_nothing(tiny, tmp_path, monkeypatch):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', 'lora')
    def full_disk(*args, **kwargs): raise OSError('no space left')
    monkeypatch.setattr('hatenb.encoder.storage.save_file', full_disk)
    with pytest.raises(OSError): encoder.save('a', tmp_path/'a')
    assert not list((tmp_path/'a').iterdir())

def test_a_loaded_adapter_goes_on_learning(tiny, saved):
    encoder = loaded(tiny/'bert', saved)
    encoder.train_only('a')
    first,last = fit(encoder)
    assert last < first
