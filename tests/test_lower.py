"Lower layers computed once: the same losses and gradients, who computes, what is kept, what is refused"
import contextlib, dataclasses, json, os, shutil, signal, subprocess, sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from hatenb import lower, making
from hatenb.batches import Posts, collate
from hatenb.core import HatenbError
from hatenb.encoder import load_encoder
from hatenb.lower import layers_below, lower_once, stored_states
from hatenb.making import make_run, run_corpora
from hatenb.runs import Run, RunConfig, run_folder
from hatenb.training import TrainConfig, Trainer, predict
from parts import ALL, small
from tiny import batch, bf16, f32, tiny

OLD_ID = 'f0c0e1d98a67'   # before there was the option
UPPER = dict(r=2, layers=[4, 5])
here = Path(__file__).parent


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "A cache of its own for states; encoded posts stay where they are"
    monkeypatch.setattr(lower, 'settings', lambda: namedtuple('S', 'cache_path')(tmp_path/'cache'))
    return tmp_path/'cache'/'lower'


def layer_calls(encoder):
    "A list of calls a layer, counted from now on, by what a layer does rather than by who asks it"
    layers = [m for _, m in encoder.model.iter_layers()]
    calls = [0]*len(layers)
    def _count(i): calls[i] += 1
    for i, l in enumerate(layers): l.attention.register_forward_hook(lambda *a, i=i: _count(i))
    return calls


# ---- the same

class Exact:
    "States as they are, not rounded: what the store would give if it held float32"
    def __init__(self, encoder, posts): self.encoder, self.posts = encoder, posts
    def padded(self, rows, width):
        ids, mask = np.zeros((2, len(rows), width), np.int64)
        for i, r in enumerate(rows):
            n = self.posts.lengths[r]
            ids[i, :n], mask[i, :n] = self.posts.lists['input_ids'][r], 1
        mask = torch.tensor(mask)
        return self.encoder.lower_states(torch.tensor(ids), mask, self.encoder.begins)*mask[..., None]


def gradients(made, once, config, exact=False):
    "Losses and gradients of a step with dropout above and none below, and those of the posts' states"
    model, posts = made
    rows = {c: np.arange(min(12, len(p))) for c, p in posts.items()}
    with lower_once(model, [*posts.values()]) if once else contextlib.nullcontext():
        if exact:
            for p in posts.values(): p.lower = Exact(model.encoder, p)
        trainer = Trainer(model.train(), posts, config)
        trainer.optimizer.step = trainer.optimizer.zero_grad = lambda: None
        if not exact:           # with `Exact`, a pass below is made in the middle of a step, and turns dropout on again
            for m in [model.encoder.model.embeddings, *[l for _, l in model.encoder.model.iter_layers()][:4]]: m.eval()
        losses = trainer.step(rows)
    return losses, {k: p.grad for k, p in trainer.params.items() if p.grad is not None}


def near(a, b, share):
    "Whether the difference is a small share of the whole"
    return float((a-b).norm()) <= share*float(b.norm())


METHODS = [('lora', {}, 64), ('lora', {}, 4096), ('seq_bn', {}, 4096), ('adapterplus', dict(stochastic_depth=.1), 4096), ('ia3', {}, 4096)]

@pytest.mark.parametrize('method,options,max_positions', METHODS)
def test_losses_and_gradients_are_those_of_a_whole_pass(method, options, max_positions):
    config = TrainConfig(batch_size=24, max_positions=max_positions, clip=1e9)
    def made(): return small(ALL, method, noise=.02, layers=[4, 5], **options)
    losses, whole = gradients(made(), False, config)
    rounded_losses, rounded = gradients(made(), True, config)
    exact_losses, exact = gradients(made(), True, config, exact=True)
    assert whole.keys() == rounded.keys() == exact.keys() and any(k.startswith('encoder.') for k in whole)
    for k, v in losses.items():
        assert exact_losses[k] == pytest.approx(v, rel=1e-5), k
        assert rounded_losses[k] == pytest.approx(v, rel=2e-2), k
    for k, v in whole.items():
        assert near(exact[k], v, 1e-4), k
        assert near(rounded[k], v, 5e-2), k


def test_they_differ_if_the_states_do():
    "The comparison above can fail"
    made = small(ALL, noise=.02, **UPPER)
    config = TrainConfig(batch_size=24, clip=1e9)
    _, whole = gradients(made, False, config)
    for p in made[0].trainable().values(): p.grad = None
    was = lower._states_of
    try:
        lower._states_of = lambda e, p, layer, rows: was(e, p, layer-1, rows)      # those of the layer below
        _, wrong = gradients(made, True, config)
    finally: lower._states_of = was
    assert not all(near(wrong[k], whole[k], 5e-2) for k in whole)


@pytest.mark.parametrize('routes', [None, {t: t.replace('/', '-') for t in ALL}])
def test_posts_of_several_corpora_and_routes_get_their_own_states(routes):
    model, posts = small(ALL, noise=.02, routes=routes, **UPPER)
    rows = {'mini': np.array([5, 1, 30]), 'mini_mhs': np.array([2, 7])}
    model.eval()
    with torch.no_grad():
        whole = model(collate(posts, rows))
        with lower_once(model, [*posts.values()]):
            assert {'lower'} <= collate(posts, rows)['mini'].keys()
            above = model(collate(posts, rows))
    real = collate(posts, rows)
    for k, v in whole.items():
        a, b = above[k], v
        if k.endswith('rationale'):
            words = real['mini']['token_word'] >= 0
            a, b = a.reshape(*words.shape, -1)[words], b.reshape(*words.shape, -1)[words]
        assert near(a, b, 2e-2), k
    assert 'lower' not in collate(posts, rows)['mini']


# ---- architectures and quantizations

@pytest.mark.parametrize('quantization,dtype', [('none', f32), ('none', bf16), ('nf4', f32), ('nf4-double', bf16), ('int8', f32)])
@pytest.mark.parametrize('kind', ['bert', 'electra', 'mpnet', 'modernbert'])
def test_a_pass_begins_above(tiny, kind, quantization, dtype):
    if kind == 'modernbert' and quantization != 'none': pytest.skip('adapters cannot: query, key and value are one product')
    torch.manual_seed(0)
    encoder = load_encoder(str(tiny/kind), quantization, dtype)
    encoder.add('a', 'lora', layers=[1])
    with torch.no_grad():
        for v in encoder.adapter_parameters('a').values(): v.normal_(std=.2)
    encoder.activate('a')
    encoder.eval()
    ids, mask = batch()
    keys, calls = list(encoder.tensors()), []
    with torch.no_grad(): whole = encoder(ids, mask)
    encoder.begins = layers_below(encoder)
    states = encoder.lower_states(ids, mask, encoder.begins)
    assert encoder.begins == 1 and states.dtype == dtype
    lowest = dict(encoder.model.iter_layers())[0]
    lowest.register_forward_hook(lambda *a: calls.append(1))
    encoder.model.embeddings.register_forward_hook(lambda *a: calls.append(1))
    with torch.no_grad(): above = encoder(ids, mask, lower=states)
    assert not calls and torch.equal(whole, above)
    assert list(encoder.tensors()) == keys                      # and it is whole again
    with torch.no_grad(): assert torch.equal(encoder(ids, mask), whole) and len(calls) == 2


def test_whole_again_after_an_error(tiny):
    encoder = load_encoder(str(tiny/'bert'))
    encoder.add('a', 'lora', layers=[1])
    encoder.activate('a')
    encoder.begins = 1
    ids, mask = batch()
    keys = list(encoder.tensors())
    with pytest.raises(Exception): encoder(ids, mask[:2, :3], lower=torch.zeros(6, 9, 64))
    assert list(encoder.tensors()) == keys and len(encoder._layer_list()) == 2
    assert encoder(ids, mask).shape == (6, 9, 64)


# ---- who computes

def test_no_epoch_runs_a_lower_layer_and_the_next_run_reads(cache):
    model, posts = small(('mini/label',), **UPPER)
    calls = layer_calls(model.encoder)
    with lower_once(model, [posts['mini']]):
        assert calls == [1, 1, 1, 1, 0, 0]                      # 32 posts are one batch
        Trainer(model, posts, TrainConfig(epochs=3, batch_size=16)).fit()
    assert calls == [1, 1, 1, 1, 6, 6]
    again, same = small(('mini/label',), 'seq_bn', layers=[4, 5])
    calls = layer_calls(again.encoder)
    with lower_once(again, [same['mini']]): Trainer(again, same, TrainConfig(epochs=1, batch_size=16)).fit()
    assert calls == [0, 0, 0, 0, 2, 2] and len([*cache.glob('*.bf16')]) == 1


def test_dropout_is_off_below():
    model, posts = small(('mini/label',), **UPPER)
    model.train()
    rows, n = np.arange(6), int(posts['mini'].lengths[:6].max())
    kept = stored_states(model.encoder, posts['mini']).padded(rows, n)
    t = collate(posts, {'mini': rows})['mini']
    real = t['attention_mask'][:, :n].bool()
    assert model.training and all(m.training for m in model.encoder.modules())
    states = model.encoder.lower_states(t['input_ids'], t['attention_mask'], 4)[:, :n]
    torch.testing.assert_close(kept[real].float(), states[real], rtol=2**-8, atol=1e-4)
    assert not kept[~real].any()


# ---- what is kept

def test_its_size_is_two_bytes_a_number_without_padding(cache):
    model, posts = small(('mini/label',), **UPPER)
    stored_states(model.encoder, posts['mini'])
    file, = cache.glob('*.bf16')
    assert file.stat().st_size == posts['mini'].lengths.sum()*384*2


def test_the_name_of_the_file_says_what_decides_its_content():
    model, posts = small(('mini/label',), **UPPER)
    def path(encoder=model.encoder, p=posts['mini']): return lower._states_file(lower._below(encoder, layers_below(encoder)), p)
    def other(*args, **options): return path(small(('mini/label',), *args, **options)[0].encoder)
    base = path()
    # what does not decide: adapter, rank, their values, posts' order of being asked
    assert other('seq_bn', layers=[4, 5]) == other(r=8, layers=[4, 5]) == other(r=2, layers=[4]) == base
    with torch.no_grad():
        for v in model.encoder.adapter_parameters('shared').values(): v.normal_()
    assert path() == base
    # what does: the layer, the posts, weights below
    assert other(r=2, layers=[5]) != base
    p = posts['mini']
    assert path(p=Posts(p.ds.select(range(31)), 'mini', p.pad_id)) != base
    assert path(p=Posts(p.ds.select([1, 0, *range(2, 32)]), 'mini', p.pad_id)) != base
    with torch.no_grad(): model.encoder.model.encoder.layer[5].output.dense.weight.mul_(2)
    assert path() == base
    with torch.no_grad(): model.encoder.model.encoder.layer[3].output.dense.bias.add_(1)
    assert path() != base


@pytest.mark.parametrize('what', [dict(quantization='nf4'), dict(dtype=bf16)])
def test_quantization_and_dtype_decide_too(what):
    def below(**how):
        encoder = load_encoder('minilm', **how)
        encoder.add('a', 'lora', layers=[5])
        return lower._below(encoder, 5)
    assert below() == below() != below(**what)


def test_killed_while_writing_it_is_made_again(tmp_path, cache):
    env = {**os.environ, 'HATENB_CACHE': str(tmp_path/'cache'), 'OMP_NUM_THREADS': '1'}
    p = subprocess.Popen([sys.executable, str(here/'writing_states.py')], stdout=subprocess.PIPE, text=True, env=env)
    try: assert p.stdout.readline() == 'in the middle\n'
    finally:
        p.send_signal(signal.SIGKILL)
        p.wait()
    assert not [*cache.glob('*.bf16')] and len([*cache.glob('.*.tmp')]) == 1     # what was half written has another name
    model, posts = small(('mini/label',), limit=96, **UPPER)
    kept = stored_states(model.encoder, posts['mini'])
    assert kept.path.exists() and not [*cache.glob('.*.tmp')]
    whole = kept.path.read_bytes()
    kept.path.unlink()
    stored_states(model.encoder, posts['mini'])
    assert kept.path.read_bytes() == whole


def test_too_small_a_disk_is_said_before_anything_is_computed(monkeypatch, cache):
    model, posts = small(('mini/label',), **UPPER)
    calls = layer_calls(model.encoder)
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: namedtuple('U', 'free')(2**30))
    with pytest.raises(HatenbError, match=r'need 0.00 GiB, and 1.00 are free.*Make room'): stored_states(model.encoder, posts['mini'])
    assert calls == [0]*6 and not [p for p in cache.iterdir() if p.suffix != '.lock']


def test_a_disk_that_fills_up_leaves_nothing(monkeypatch, cache):
    model, posts = small(('mini/label',), limit=96, **UPPER)
    inner, calls = lower._states_of, []
    def full(*args):
        calls.append(1)
        if len(calls) == 2: raise OSError(28, 'No space left on device')
        return inner(*args)
    monkeypatch.setattr(lower, '_states_of', full)
    with pytest.raises(HatenbError, match='cannot be written: No space left'): stored_states(model.encoder, posts['mini'])
    assert not [p for p in cache.iterdir() if p.suffix != '.lock']


# ---- what does not fit

@pytest.mark.parametrize('method,options,words', [
    ('lora', {}, 'no layer below'), ('lora', dict(layers=[0, 5]), 'no layer below'), ('full', {}, 'no adapter sits on upper'),
    ('frozen', {}, 'no adapter sits on upper'), ('peft_lora', {}, 'no adapter sits on upper'), ('reft', {}, 'no layer below'),
    ('prefix', dict(layers=[4, 5]), 'no layer below'), ('compacter', dict(layers=[4, 5]), 'outside the layers'),
    ('vera', dict(layers=[4, 5]), 'outside the layers')])
def test_adapters_that_are_refused(method, options, words):
    encoder = load_encoder('minilm')
    encoder.add('a', method, **options)
    with pytest.raises(HatenbError, match=words): layers_below(encoder)


def test_an_adapter_below_counts_though_it_is_not_in_use():
    encoder = load_encoder('minilm')
    encoder.add('a', 'lora', layers=[4, 5])
    encoder.add('b', 'lora', layers=[2])
    encoder.activate('a')
    assert layers_below(encoder) == 2
    encoder.remove('b')
    assert layers_below(encoder) == 4


FITS = dict(tasks=('mini/label',), adapter_options=dict(layers=[4, 5]), lower_once=True)

@pytest.mark.parametrize('change,words', [
    (dict(adapter_options={}), 'has no `layers`'), (dict(adapter_options=dict(layers=[])), 'has no `layers`'),
    (dict(adapter_options=dict(layers=[0, 5])), 'lowest layer'), (dict(adapter_options=dict(layers=4)), 'has no `layers`'),
    (dict(adapter='full', adapter_options={}), 'has no `layers`'), (dict(baseline='majority'), 'has no `layers`'),
    (dict(regularisers=dict(vat={})), 'regulariser vat'), (dict(regularisers=dict(adversarial={})), 'regulariser adversarial'),
    (dict(train=TrainConfig(compile=True)), 'torch.compile'), (dict(tasks=('mini/text',)), 'whose words are hidden'),
    (dict(strategy='branch', adapter_options={}), 'has no `layers`')])
def test_configurations_that_are_refused(change, words):
    RunConfig(**FITS)
    with pytest.raises(HatenbError, match=words): RunConfig(**{**FITS, **change})


def test_a_nudge_does_not_go_unnoticed():
    from hatenb.regularisers import make_regularisers
    model, posts = small(('mini/label',), **UPPER)
    with lower_once(model, [posts['mini']]):
        trainer = Trainer(model, posts, TrainConfig(batch_size=8), regularisers=make_regularisers({'vat': {}}))
        with pytest.raises(HatenbError, match='cannot shift embeddings'): trainer.step({'mini': np.arange(8)})
    assert posts['mini'].lower is None


def test_attention_may_be_supervised_above():
    from hatenb.regularisers import make_regularisers
    model, posts = small(('mini/label', 'mini/rationale'), **UPPER)
    with lower_once(model, [posts['mini']]):
        trainer = Trainer(model, posts, TrainConfig(batch_size=8), regularisers=make_regularisers({'attention': {}}))
        assert trainer.step({'mini': np.arange(8)})['SupervisedAttention'] > 0


# ---- runs

def test_older_ids_and_names_stay():
    assert RunConfig(('label',)).id == OLD_ID
    assert RunConfig.from_dict(dict(tasks=['label'], lower_once=False)).id == OLD_ID
    assert RunConfig(('label',)).name == 'minilm-label-s0'
    assert 'lower_once' in RunConfig(**FITS).name and RunConfig(**FITS).id != RunConfig(**{**FITS, 'lower_once': False}).id


def test_every_stored_record_keeps_its_id():
    files = sorted((here.parent/'results'/'runs').glob('*/record.json'))
    assert files
    for f in files:
        r = json.loads(f.read_text())
        assert RunConfig.from_dict(r['config']).id == r['id'], f


def test_a_run_answers_as_its_saved_model(tmp_path, cache):
    config = RunConfig(('mini/label', 'mini_mhs/score'), adapter_options=dict(r=2, layers=[4, 5]), lower_once=True, limit=40,
                       train=TrainConfig(epochs=2, batch_size=16, lr=2e-3))
    record = make_run(config, tmp_path/'runs')
    assert len(record['history']) == 2 and record['config']['lower_once']
    assert len([*cache.glob('*.bf16')]) == 4                    # training and validation posts of two corpora
    run = Run(run_folder(config, tmp_path/'runs').folder)
    model = run.model()
    posts = {c: Posts(d['validation'], c, model.encoder.tokenizer.pad_token_id)
             for c, d in run_corpora(config, model.encoder.tokenizer).items()}
    stored, now = run.predictions('validation'), predict(model, posts)
    columns = [c for c in now if c not in ('corpus', 'id') and c in stored and isinstance(now[c].dropna().iloc[0], (float, np.ndarray))]
    assert len(columns) >= 2
    for c in columns:
        for a, b in zip(stored[c].dropna(), now[c].dropna()): np.testing.assert_allclose(a, b, atol=1e-5, rtol=2**-11 if c.endswith('_prob') else 0)    # of half precision
    other = dataclasses.replace(config, seed=1)
    before = {f: f.stat().st_mtime_ns for f in cache.glob('*.bf16')}
    make_run(other, tmp_path/'runs')
    assert {f: f.stat().st_mtime_ns for f in cache.glob('*.bf16')} == before    # another seed reads the same files



def test_a_run_that_was_cut_off_goes_on_with_the_states_that_are_there(tmp_path, cache, monkeypatch):
    config = RunConfig(**{**FITS, 'adapter_options': dict(r=2, layers=[4, 5])}, limit=40,
                       train=TrainConfig(epochs=2, batch_size=16, lr=2e-3))
    whole = make_run(config, tmp_path/'whole')
    inner, calls = making._validate, []
    def cut(*args):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return inner(*args)
    monkeypatch.setattr(making, '_validate', cut)
    with pytest.raises(KeyboardInterrupt): make_run(config, tmp_path/'cut')
    monkeypatch.setattr(lower, '_states_of', None)               # whoever wants to compute states now fails
    again = make_run(config, tmp_path/'cut')
    assert len(calls) == 3                                       # the first epoch was not made again
    assert again['history'] == whole['history'] and again['metrics'] == whole['metrics']
