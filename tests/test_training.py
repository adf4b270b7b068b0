"What a notebook can't show: processes that are killed and go on, processes that train together, optimisers, trackers"
import json, os, re, signal, subprocess, sys, time, weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hatenb.balancing import balancers
from hatenb.core import HatenbError
from hatenb.model import Model
from hatenb.training import TrainConfig, Trainer, make_accelerator, make_optimizer, optimizers
from parts import flat, scalars, small

pytestmark = pytest.mark.usefixtures('stand_in')
here = Path(__file__).parent
TWO = 'mini/label', 'mini/rationale'


def start(script, *args, processes=1):
    "A process that runs a script of this folder, or several together"
    together = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    command = [sys.executable, *(together if processes > 1 else []), str(here/script), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'})


def finish(process):
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out[-3000:]


def same(a, b):
    assert a.keys() == b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k


# ---- killed

def test_killed_three_times_ends_the_same(tmp_path):
    whole, folder = tmp_path/'whole', tmp_path/'cut'
    for f in (whole, folder): f.mkdir()
    never_killed = start('killed.py', whole)
    checkpoint, seen = folder/'checkpoint.safetensors', 0
    for _ in range(3):
        p = start('killed.py', folder)
        deadline = time.time()+240
        while time.time() < deadline and p.poll() is None:       # until a newer checkpoint than the last one lies there
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > seen: break
            time.sleep(.01)
        if p.poll() is not None: break                           # it was done before it could be killed
        seen = checkpoint.stat().st_mtime_ns
        p.send_signal(signal.SIGKILL)
        p.wait()
        assert not (folder/'end.safetensors').exists()
    assert seen, 'it was never killed after a checkpoint'
    finish(start('killed.py', folder))
    finish(never_killed)
    same(*(load_file(f/'end.safetensors') for f in (folder, whole)))
    histories = [(f/'history.json').read_text() for f in (folder, whole)]
    assert histories[0] == histories[1]
    logged = scalars(folder/'hatenb')
    assert logged == scalars(whole/'hatenb')
    steps = json.loads(histories[0])[-1]['step']
    for loss in ('mini/label', 'mini_mhs/score'): assert [s for s, _ in logged[f'step/{loss}']] == [*range(1, steps+1)]


def test_a_broken_checkpoint_says_what_to_do(tmp_path, parts):
    broken = tmp_path/'checkpoint.safetensors'
    broken.write_bytes(b'not a checkpoint')
    with pytest.raises(HatenbError, match='Delete it'): Trainer(*parts, TrainConfig(), folder=tmp_path).fit()
    assert broken.read_bytes() == b'not a checkpoint'


# ---- together

@pytest.fixture(scope='module')
def in_one_piece(tmp_path_factory):
    out = tmp_path_factory.mktemp('gradients')/'one.safetensors'
    finish(start('gradients.py', out, 2048, 1))
    return load_file(out)


@pytest.mark.parametrize('processes,max_positions', [(2, 64), (1, 64)])
def test_gradients_do_not_depend_on_how_the_batch_is_cut(tmp_path, in_one_piece, processes, max_positions):
    out = tmp_path/'cut.safetensors'
    finish(start('gradients.py', out, max_positions, processes, processes=processes))
    cut = load_file(out)
    assert in_one_piece.keys() == cut.keys()
    for k, whole in in_one_piece.items():
        torch.testing.assert_close(cut[k], whole, rtol=1e-4, atol=2e-6, equal_nan=True, msg=k)


# ---- what is kept, and when it stops

@pytest.fixture(scope='module')
def parts(): return small(TWO)


def test_stops_when_no_metric_makes_its_own_smallest_step(parts):
    scores = iter([dict(a=.5, b=.5), dict(a=.5, b=.52), dict(a=.505, b=.52), dict(a=.509, b=.525), dict(a=.9, b=.9)])
    config = TrainConfig(epochs=5, steps=1, batch_size=4, patience=2, smallest_step=dict(a=.02, b=.01))
    trainer = Trainer(*parts, config, score=lambda: next(scores))
    assert len(trainer.fit()) == 4      # b rose by .02 at the second; after that two without a step that counts
    assert trainer.progress.stopped
    assert trainer.progress.best_step == 4          # but the best mean is kept, however small the step


def test_the_best_weights_are_what_is_left(parts):
    seen, values = [], iter([.2, .9, .3])
    def score():
        seen.append(flat(trainer.params.values()))
        return dict(a=next(values))
    trainer = Trainer(*parts, TrainConfig(epochs=3, steps=1, batch_size=4), score=score)
    trainer.fit()
    assert torch.equal(flat(trainer.params.values()), seen[1]) and not torch.equal(seen[1], seen[2])


def test_weights_are_kept_by_the_mean_over_references(parts):
    def best(reference):
        scores = iter([dict(a=.8, b=.20), dict(a=.7, b=.28), dict(a=.6, b=.30)])
        config = TrainConfig(epochs=3, steps=1, batch_size=4, reference=reference)
        trainer = Trainer(*parts, config, score=lambda: next(scores))
        trainer.fit()
        return trainer.progress.best_step
    assert best({}) == 1 and best(dict(a=.8, b=.2)) == 2


# ---- rates

pytestmark = pytest.mark.filterwarnings('ignore:Seems like `optimizer.step')


def rates_of(trainer):
    "The rates that the optimiser was given at each step, by what they move"
    seen, inner = [], trainer.optimizer.step
    heads = {id(p) for p in trainer.model.heads.parameters()}
    def step(*args, **kw):
        groups = trainer.optimizer.param_groups
        seen.append({'heads' if id(g['params'][0]) in heads else 'encoder': g['lr'] for g in groups})
        return inner(*args, **kw)
    trainer.optimizer.step = step
    trainer.fit()
    return seen


def test_heads_have_their_own_schedule(parts):
    config = TrainConfig(epochs=2, steps=5, batch_size=8, lr=1e-3, head_lr=5e-3, schedule='cosine',
                         head_schedule='constant', warmup=0.)
    seen = rates_of(Trainer(*parts, config))
    assert [s['heads'] for s in seen] == [5e-3]*10
    np.testing.assert_allclose([s['encoder'] for s in seen], 1e-3*(1+np.cos(np.pi*np.arange(10)/10))/2)


@pytest.mark.parametrize('given', [dict(head_warmup=4), dict(head_warmup_epochs=2),
                                   dict(head_warmup=2, head_warmup_epochs=1)])
def test_adapters_wait_for_the_heads_by_steps_or_epochs(parts, given):
    model, posts = parts
    config = TrainConfig(epochs=3, steps=2, batch_size=4, weight_decay=0., **given)
    trainer = Trainer(model, posts, config)
    start = flat(model.encoder.trainable().values())
    moved = []
    trainer._track = lambda values: moved.append(not torch.equal(flat(model.encoder.trainable().values()), start))
    seen = rates_of(trainer)
    assert [s['encoder'] > 0 for s in seen] == [False]*4 + [True]*2 and seen[0]['heads'] > 0


def test_each_layer_has_its_own_rate():
    model, posts = small(('mini/label',), 'full', limit=16)
    config = TrainConfig(epochs=1, batch_size=8, lr=1e-3, head_lr=5e-3, layer_decay=.5, warmup=0., schedule='constant')
    trainer = Trainer(model, posts, config)
    rates = {id(p): g['lr'] for g in trainer.optimizer.param_groups for p in g['params']}
    for k, p in trainer.params.items():
        layer = re.search(r'layer\.(\d)\.', k)
        expected = 5e-3 if k.startswith('heads.') else 1e-3*.5**(6-(int(layer[1])+1 if layer else 0))
        assert rates[id(p)] == pytest.approx(expected), k


# ---- optimisers

@pytest.mark.parametrize('name', list(optimizers))
def test_every_optimiser_goes_on_with_its_moments(tmp_path, parts, name):
    options = dict(momentum=.9) if name in ('sgd', 'rmsprop') else {}
    config = TrainConfig(epochs=1, steps=4, batch_size=4, optimizer=name, optimizer_options=options, clip=.01)
    model, posts = parts
    begin = {k: p.detach().clone() for k, p in model.trainable().items()}
    def trainer(folder=None):
        t = Trainer(model, posts, config, folder=folder)
        t._set(begin, None)
        model.train()
        return t
    def steps(t, rows):
        for r in rows:
            t.step(r)
            t.progress.step += 1
        return flat(t.params.values())
    whole = trainer(tmp_path)
    rows = whole.batches(0)
    half = steps(whole, rows[:2])
    whole.save()
    end = steps(whole, rows[2:])
    again = trainer(tmp_path)
    assert again.resume() and torch.equal(flat(again.params.values()), half)
    assert torch.equal(steps(again, rows[2:]), end) and not torch.equal(end, half)


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(HatenbError, match='there is no optimiser'): TrainConfig(optimizer='adamv')


@pytest.mark.parametrize('options, what', [
    (dict(clip=0), 'at 0 nothing is learned'), (dict(clip=float('inf')), 'clip = inf'), (dict(lr=float('inf')), 'lr = inf')])
def test_numbers_that_would_spoil_a_run_are_refused(options, what):
    with pytest.raises(HatenbError, match=what): TrainConfig(**options)


@pytest.mark.parametrize('name', ['lr', 'weight_decay'])
def test_options_of_the_optimiser_that_the_groups_would_override_are_refused(parts, name):
    config = TrainConfig(optimizer_options={name: .5})
    with pytest.raises(HatenbError, match=f'train.{name}'): make_optimizer(parts[0], config, 10)


@pytest.mark.parametrize('rule', ['equal', 'pcgrad'])
def test_the_graph_of_a_part_goes_when_its_gradients_are_there(parts, monkeypatch, rule):
    "Else rules that look at gradients hold those of the whole batch at once"
    made, alive, through = [], [], Model.pass_through
    def watched(self, part):
        alive.append(sum(r() is not None for r in made))
        logits = through(self, part)
        made.extend(weakref.ref(l) for l in logits.values())
        return logits
    monkeypatch.setattr(Model, 'pass_through', watched)
    config = TrainConfig(epochs=1, steps=1, batch_size=16, max_positions=128)
    Trainer(*parts, config, balancer=balancers[rule](list(TWO))).fit()
    assert len(alive) > 2 and not any(alive)


# ---- trackers

def test_a_tensorboard_file_holds_the_losses_and_metrics(tmp_path, parts):
    accelerator = make_accelerator(['tensorboard'], tmp_path, cpu=True)
    scores = iter([.25, .5])
    def score(): return {'mini/label.macro_f1': next(scores)}
    trainer = Trainer(*parts, TrainConfig(epochs=2, steps=2, batch_size=4), score, accelerator=accelerator)
    history, logged = trainer.fit(), scalars(tmp_path/'hatenb')
    assert logged['validation/mini/label.macro_f1'] == [(2, .25), (4, .5)]
    losses = [(h['step'], pytest.approx(h['losses']['mini/label'], rel=1e-5)) for h in history]
    assert logged['losses/mini/label'] == losses
    assert [s for s, _ in logged['step/mini/label']] == [1, 2, 3, 4]


def test_a_tracker_that_is_not_there_is_named(tmp_path):
    with pytest.raises(HatenbError, match='trackers'): make_accelerator(['no_such_tracker'], tmp_path, cpu=True)
