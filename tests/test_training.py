"What a notebook can't show: processes that are killed and go on, processes that train together"
import json, os, re, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hatenb.core import HatenbError
from hatenb.making import make_run as run
from hatenb.runs import RunConfig
from hatenb.training import TrainConfig

here = Path(__file__).parent
CONFIG = RunConfig(('mini/label', 'mini/rationale', 'mini_mhs/score'), adapter_options=dict(r=4), limit=96,
                   train=TrainConfig(epochs=2, batch_size=16, checkpoint_steps=3, lr=1e-3))


def start(runs_path):
    "A process that makes the run"
    code = ('import json,sys; from hatenb.making import make_run as run; from hatenb.runs import RunConfig; '
            'run(RunConfig.from_dict(json.loads(sys.argv[1])), runs_path=sys.argv[2])')
    return subprocess.Popen([sys.executable, '-c', code, json.dumps(CONFIG.to_dict()), str(runs_path)],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out


def weights(folder):
    return {**load_file(folder/'heads.safetensors'), **load_file(next((folder/'adapters'/'shared').glob('*.safetensors')))}


def same(a, b):
    assert a.keys() == b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k


@pytest.fixture(scope='module')
def never_killed(tmp_path_factory):
    path = tmp_path_factory.mktemp('whole')
    finish(start(path))
    return path/CONFIG.name


def without_times(record):
    "A record without what two runs cannot share: times, memory"
    r = json.loads(json.dumps(record))
    for k in ('train_seconds', 'posts_per_second', 'predict_posts_per_second', 'peak_memory_bytes'): r['cost'].pop(k)
    return r


def test_killed_three_times_ends_the_same(tmp_path, never_killed):
    folder = tmp_path/CONFIG.name
    checkpoint, seen = folder/'checkpoint.safetensors', 0
    for _ in range(3):
        p = start(tmp_path)
        deadline = time.time()+240
        while time.time() < deadline and p.poll() is None:       # until a newer checkpoint than the last one lies there
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > seen: break
            time.sleep(.01)
        if p.poll() is not None: break                           # it was done before it could be killed
        seen = checkpoint.stat().st_mtime_ns
        p.send_signal(signal.SIGKILL)
        p.wait()
        assert not (folder/'record.json').exists()
    assert seen, 'the run was never killed after a checkpoint'
    finish(start(tmp_path))
    same(weights(folder), weights(never_killed))
    mine, theirs = (without_times(json.loads((f/'record.json').read_text())) for f in (folder, never_killed))
    assert mine == theirs
    assert not checkpoint.exists()


def test_same_seed_same_record_other_seed_other_weights(tmp_path, never_killed):
    finish(start(tmp_path))
    same(weights(tmp_path/CONFIG.name), weights(never_killed))


def test_two_runs_at_once_are_refused(tmp_path):
    from filelock import FileLock
    (tmp_path/CONFIG.name).mkdir()
    with FileLock(tmp_path/CONFIG.name/'.lock'):
        with pytest.raises(HatenbError, match='another process'): run(CONFIG, runs_path=tmp_path)


def test_broken_checkpoint_says_what_to_do(tmp_path):
    (tmp_path/CONFIG.name).mkdir()
    broken = tmp_path/CONFIG.name/'checkpoint.safetensors'
    broken.write_bytes(b'not a checkpoint')
    with pytest.raises(HatenbError, match='Delete it'): run(CONFIG, runs_path=tmp_path)
    assert broken.read_bytes() == b'not a checkpoint'


@pytest.mark.parametrize('processes,max_positions', [(2, 2048), (2, 64), (1, 64)])
def test_gradients_do_not_depend_on_how_the_batch_is_cut(tmp_path, processes, max_positions):
    def gradients(n, max_positions):
        out = tmp_path/f'{n}-{max_positions}.safetensors'
        launch = ['-m', 'accelerate.commands.launch', '--cpu', '--num_processes', str(n), '--num_machines', '1', '--mixed_precision', 'no',
                  '--dynamo_backend', 'no', '--main_process_port', '0'] if n > 1 else []
        r = subprocess.run([sys.executable, *launch, str(here/'gradients.py'), str(out), str(max_positions)], capture_output=True, text=True,
                           timeout=400, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        assert r.returncode == 0, r.stderr[-3000:]
        return load_file(out)
    one, cut = gradients(1, 2048), gradients(processes, max_positions)
    assert one.keys() == cut.keys()
    for k in one: torch.testing.assert_close(cut[k], one[k], rtol=1e-4, atol=2e-6, equal_nan=True, msg=k)


@pytest.fixture(scope='module')
def small():
    "A trainer's parts on a few posts of the mini corpus"
    from hatenb.batches import Posts
    from hatenb.corpora import frequencies
    from hatenb.making import run_corpora, run_encoder
    from hatenb.runs import run_model
    config = RunConfig(('mini/label', 'mini/rationale'), adapter_options=dict(r=2), limit=32)
    encoder = run_encoder(config)
    corpora = run_corpora(config, encoder.tokenizer)
    model = run_model(config, encoder, {c: frequencies(d['train']) for c, d in corpora.items()})
    return model, {c: Posts(d['train'], c) for c, d in corpora.items()}


def test_stops_when_no_metric_makes_its_own_smallest_step(small):
    from hatenb.training import Trainer
    model, posts = small
    looks = iter([dict(a=.5, b=.5), dict(a=.5, b=.52), dict(a=.505, b=.52), dict(a=.509, b=.525), dict(a=.9, b=.9)])
    config = TrainConfig(epochs=5, steps=1, batch_size=4, patience=2, smallest_step=dict(a=.02, b=.01))
    trainer = Trainer(model, posts, config, validate=lambda: next(looks))
    history = trainer.fit()
    assert len(history) == 4                          # b rose by .02 at the second look; after that two looks without a step that counts
    assert trainer.progress.stopped and trainer.progress.best_step == 4      # but the best mean is kept, however small the step


def test_the_best_weights_are_what_is_left(small):
    from hatenb.training import Trainer
    model, posts = small
    seen, values = [], iter([.2, .9, .3])
    trainer = None
    def validate():
        seen.append(torch.cat([p.detach().flatten().clone() for p in trainer.params.values()]))
        return dict(a=next(values))
    trainer = Trainer(model, posts, TrainConfig(epochs=3, steps=1, batch_size=4), validate=validate)
    trainer.fit()
    assert torch.equal(torch.cat([p.detach().flatten() for p in trainer.params.values()]), seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_adapters_wait_for_the_heads(small):
    from hatenb.training import Trainer
    model, posts = small
    trainer = Trainer(model, posts, TrainConfig(epochs=1, steps=4, batch_size=4, head_warmup=3, warmup=0., weight_decay=0.))
    start = {k: p.detach().clone() for k, p in trainer.params.items()}
    moved = []
    for rows in trainer.batches(0):
        trainer.step(rows)
        trainer.progress.step += 1
        moved.append({k.split('.')[0] for k, p in trainer.params.items() if not torch.equal(p, start[k])})
    assert moved[:3] == [{'heads'}]*3 and moved[3] == {'heads', 'encoder'}


def test_each_layer_has_its_own_rate():
    from hatenb.making import run_corpora, run_encoder
    from hatenb.runs import run_model
    from hatenb.corpora import frequencies
    from hatenb.training import Trainer
    from hatenb.batches import Posts
    config = RunConfig(('mini/label',), 'full', limit=16)
    encoder = run_encoder(config)
    corpora = run_corpora(config, encoder.tokenizer)
    model = run_model(config, encoder, {c: frequencies(d['train']) for c, d in corpora.items()})
    trainer = Trainer(model, {c: Posts(d['train'], c) for c, d in corpora.items()}, TrainConfig(epochs=1, batch_size=8, lr=1e-3, head_lr=5e-3, layer_decay=.5, warmup=0., schedule='constant'))
    rates = {id(p): g['lr'] for g in trainer.optimizer.param_groups for p in g['params']}
    for k, p in trainer.params.items():
        layer = re.search(r'layer\.(\d)\.', k)
        expected = 5e-3 if k.startswith('heads.') else 1e-3*.5**(6-(int(layer[1])+1 if layer else 0))
        assert rates[id(p)] == pytest.approx(expected), k
    trainer.fit()


def test_heads_have_their_own_schedule(small):
    from hatenb.training import Trainer
    trainer = Trainer(*small, TrainConfig(epochs=2, steps=5, batch_size=8, lr=1e-3, head_lr=5e-3, schedule='cosine', head_schedule='constant', warmup=0.))
    seen = []
    inner = trainer.optimizer.step
    trainer.optimizer.step = lambda *a, **k: (seen.append({'heads' if any(p is q for p in g['params'] for q in trainer.model.heads.parameters()) else 'encoder': g['lr'] for g in trainer.optimizer.param_groups}), inner(*a, **k))[1]
    trainer.fit()
    assert [s['heads'] for s in seen] == [5e-3]*10
    np.testing.assert_allclose([s['encoder'] for s in seen], 1e-3*(1+np.cos(np.pi*np.arange(10)/10))/2)


@pytest.mark.parametrize('given', [dict(head_warmup=4), dict(head_warmup_epochs=2), dict(head_warmup=2, head_warmup_epochs=1)])
def test_adapters_wait_for_the_heads_by_steps_or_epochs(small, given):
    from hatenb.training import Trainer
    model, posts = small
    trainer = Trainer(model, posts, TrainConfig(epochs=3, steps=2, batch_size=4, **given))
    factors = []
    for step in range(6): factors.append([g['lr'] for g in trainer.optimizer.param_groups]); trainer.optimizer.step(); trainer.scheduler.step()
    assert [f[1] > 0 for f in factors] == [False]*4 + [True]*2 and factors[0][0] > 0


def test_weights_are_kept_by_the_mean_over_references(small):
    from hatenb.training import Trainer
    model, posts = small
    def best(reference):
        looks = iter([dict(a=.8, b=.20), dict(a=.7, b=.28), dict(a=.6, b=.30)])
        trainer = Trainer(model, posts, TrainConfig(epochs=3, steps=1, batch_size=4, reference=reference), validate=lambda: next(looks))
        trainer.fit()
        return trainer.progress.best_step
    assert best({}) == 1 and best(dict(a=.8, b=.2)) == 2
