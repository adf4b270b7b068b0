"Runs made of runs, and tasks with adapters of their own: what they leave alone, that they load again, and what is refused"
import dataclasses, json, shutil, subprocess, sys

import adapters
import numpy as np
import pytest
import torch
from adapters.composition import Parallel

from hatenb.batches import Posts, collate, encoded_corpus
from hatenb.composing import adapter_name, make_strategy, strategy_model
from hatenb.core import HatenbError
from hatenb.kinds import count_answers, make_head
from hatenb.encoder import load_encoder, tensor_digest
from hatenb.evaluation import as_stored, evaluate, join_predictions, load_predictions, watched_metrics
from hatenb.tasks import Task, partitions
from hatenb.making import make_run as run, make_sources, run_corpora, run_encoder
from hatenb.runs import Run, RunConfig, run_model, run_strategy, source_folders
from hatenb.studies import Study, run_study
from hatenb.training import TrainConfig, Trainer, predict

pytestmark = pytest.mark.usefixtures('stand_in')
TASKS = 'mini/label', 'mini/target', 'mini/rationale'
BASE = dict(limit=32, train=dict(epochs=1, batch_size=16))
OF = dict(lora=dict(adapter='lora', adapter_options=dict(r=2)), seq_bn=dict(adapter='seq_bn', adapter_options=dict(reduction_factor=48)))


def sources(kind, tasks=TASKS): return [{**BASE, **OF[kind], 'tasks': [t]} for t in tasks]


def config(strategy, of=None, tasks=TASKS, **more):
    return RunConfig.from_dict({**BASE, 'tasks': list(tasks), 'strategy': strategy, **({'sources': sources(of, tasks)} if of else {}), **more})


RUNS = {
    'merge as it is': config('merge', 'lora'),
    'merge, weights searched': config('merge', 'lora', strategy_options=dict(rule='regmean', coefficients='search', tries=4, rank=2)),
    'merge, ties, truncated, trained on': config('merge', 'lora', strategy_options=dict(rule='ties', rank=2, learn='all', rule_options=dict(density=.5))),
    'merge of bottlenecks, heads trained': config('merge', 'seq_bn', strategy_options=dict(learn='heads')),
    'fuse lora': config('fuse', 'lora', strategy_options=dict(width=4)),
    'fuse lora, dynamic': config('fuse', 'lora', strategy_options=dict(variant='dynamic', width=4)),
    'fuse bottlenecks': config('fuse', 'seq_bn'),
    'parallel, finished ones': config('parallel', 'lora', strategy_options=dict(learn='nothing')),
    'parallel, new ones, two corpora': config('parallel', tasks=('mini/label', 'mini_mhs/score'), adapter='seq_bn'),
    'branch': config('branch', strategy_options=dict(layer=4), adapter_options=dict(r=2)),
    'stack': config('stack', 'seq_bn', tasks=('mini/label',), adapter='seq_bn', adapter_options=dict(reduction_factor=48)),
    'mtl_lora': config('mtl_lora', strategy_options=dict(r=2, up_projections=2)),
    'fuse lora on nf4': config('fuse', 'lora', quantization='nf4', strategy_options=dict(width=4)),
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return tmp_path_factory.mktemp('runs')


def posts_of(model, c):
    corpora = run_corpora(c, model.encoder.tokenizer)
    return {split: {k: Posts(d[split], k, model.encoder.tokenizer.pad_token_id) for k, d in corpora.items()} for split in ('train', 'validation', 'test')}


def same_table(a, b):
    assert list(a.id) == list(b.id)
    for c in (c for c in a if c.endswith(('_prob', '_pred'))):
        for x, y in zip(a[c], b[c]):
            if isinstance(x, (np.ndarray, list)): np.testing.assert_array_equal(x, y, err_msg=c)   # else: another corpus' post


@pytest.mark.parametrize('name', RUNS)
def test_a_run_loads_again_with_the_same_predictions(runs, name):
    c = RUNS[name]
    record = run(c, runs)
    folder = runs/c.name
    assert record['adapters'] and all((folder/'adapters'/a).is_dir() for a in record['adapters'])
    if c.sources: assert len(record['sources']) == len(c.sources)
    model = Run(folder).model()
    same_table(as_stored(predict(model, posts_of(model, c)['test'])), load_predictions(folder/'predictions'/'test.parquet'))
    if c.strategy == 'fuse':
        looks = record['attention']['fused']
        by_layer = {}
        for x in looks: by_layer[x['layer']] = by_layer.get(x['layer'], 0)+x['weight']
        assert by_layer and all(abs(v-1) < 1e-3 for v in by_layer.values())


def test_another_process_predicts_the_same(runs):
    c = RUNS['fuse lora']
    run(c, runs)
    code = ("import sys, json; from pathlib import Path; from hatenb.runs import *; from hatenb.making import *; from hatenb.training import predict; from hatenb.batches import Posts; from hatenb.evaluation import as_stored, save_predictions\n"
            "f = Path(sys.argv[1]); m = Run(f).model(); c = RunConfig.from_dict(json.loads((f/'config.json').read_text()))\n"
            "d = run_corpora(c, m.encoder.tokenizer)\n"
            "save_predictions(as_stored(predict(m, {k: Posts(v['test'], k, m.encoder.tokenizer.pad_token_id) for k,v in d.items()})), sys.argv[2])")
    out = runs/'again.parquet'
    subprocess.run([sys.executable, '-c', code, str(runs/c.name), str(out)], check=True, timeout=300)
    same_table(load_predictions(out), load_predictions(runs/c.name/'predictions'/'test.parquet'))


@pytest.mark.parametrize('quantization', ['none', 'nf4', 'int8'])
@pytest.mark.parametrize('name', [n for n, c in RUNS.items() if c.quantization == 'none' and c.strategy_options.get('coefficients') != 'search'])
def test_training_leaves_the_rest_bit_identical(runs, name, quantization):
    c = dataclasses.replace(RUNS[name], quantization=quantization)
    make_sources(c, runs)
    encoder = run_encoder(c, 'cpu', source_folders(c, runs))
    corpora = run_corpora(c, encoder.tokenizer)
    model = run_model(c, encoder, {k: count_answers(d['train'], k) for k, d in corpora.items()}, source_folders(c, runs))
    learning = set(encoder.trainable())
    before = {k: tensor_digest({k: v}) for k, v in encoder.tensors().items()}
    posts = {k: Posts(d['train'], k, encoder.tokenizer.pad_token_id) for k, d in corpora.items()}
    Trainer(model, posts, TrainConfig(epochs=1, batch_size=16, lr=1e-2)).fit()
    changed = {k for k, v in encoder.tensors().items() if tensor_digest({k: v}) != before[k]}
    assert changed <= learning
    if c.strategy == 'fuse': assert learning and all('fusion' in k for k in learning)
    assert bool(changed) == bool(learning) and bool(learning) == (c.strategy_options.get('learn', 'nothing' if c.strategy == 'merge' else 'all') == 'all')


def test_searched_weights_are_the_best_that_were_tried(runs):
    record = run(RUNS['merge, weights searched'], runs)
    search = record['notes']['search']
    assert len(search['tries']) == 4 and search['tries'][0]['coefficients'] == [1, 1, 1]
    assert search['best']['score'] == max(t['score'] for t in search['tries'])
    c = RUNS['merge, weights searched']
    model = Run(runs/c.name).model()
    said = evaluate(predict(model, posts_of(model, c)['validation']), n_boot=0)      # before it is rounded to be stored
    assert search['best']['score'] == pytest.approx(np.mean(list(watched_metrics(said).values())))   # what is kept is what was scored
    given = config('merge', 'lora', strategy_options=dict(rule='regmean', coefficients=search['best']['coefficients'], rank=2))
    for task, values in run(given, runs)['metrics']['test'].items():
        for m, v in values.items():
            if isinstance(v, dict) and 'value' in v: assert v['value'] == record['metrics']['test'][task][m]['value']


def test_a_merge_leaves_sources_and_encoder_bit_identical(runs):
    c = RUNS['merge as it is']
    folders = source_folders(c, runs)
    files = {f: f.read_bytes() for s in folders for f in s.rglob('*.safetensors')}
    encoder = run_encoder(c, 'cpu', folders)
    fresh = load_encoder('minilm')
    fresh.add('x', 'lora')                                      # its layers have the same names then
    ours = set(encoder.adapter_parameters('shared'))
    theirs = {k: v for k, v in fresh.tensors().items() if k not in fresh.adapter_parameters('x')}
    assert tensor_digest({k: v for k, v in encoder.tensors().items() if k not in ours}) == tensor_digest(theirs)
    assert all(f.read_bytes() == b for f, b in files.items())


def test_routes_agree_with_the_librarys_parallel_block(method='seq_bn'):
    torch.manual_seed(0)
    encoder = load_encoder('minilm').eval()
    names = [adapter_name(t) for t in TASKS]
    for n in names:
        encoder.add(n, method)
        for v in encoder.adapter_parameters(n).values(): v.data += .05*torch.randn(v.shape)
    corpus = encoded_corpus('mini', encoder.tokenizer)
    posts, counted = Posts(corpus['train'], 'mini', encoder.tokenizer.pad_token_id), count_answers(corpus['train'], 'mini')
    strategy = make_strategy('parallel', TASKS, options=dict(learn='nothing'))
    model = strategy_model(strategy, encoder, [make_head(Task.parse(t), encoder.width, counted) for t in TASKS]).eval()
    batch = collate({'mini': posts}, {'mini': np.arange(6)})
    with torch.no_grad():
        states = model.states(batch)
        encoder.activate(Parallel(*names))
        blocks = encoder(batch['mini']['input_ids'], batch['mini']['attention_mask']).split(6)
    for t, b in zip(TASKS, blocks): torch.testing.assert_close(states[t], b, atol=1e-5, rtol=1e-4)


def test_the_library_reads_our_fusion(runs, tmp_path):
    c = RUNS['fuse bottlenecks']
    run(c, runs)
    model = Run(runs/c.name).model()
    plain = load_encoder('minilm')
    adapters.init(plain.model)
    for s in model.encoder.composites['fused'].sources:
        folder = shutil.copytree(runs/c.name/'adapters'/s, tmp_path/s)
        plain.model.load_adapter(str(folder), load_as=s, use_safetensors=True) if (folder/'adapter.safetensors').exists() else pytest.fail('no weights')
    plain.model.load_adapter_fusion(str(runs/c.name/'adapters'/'fused'), use_safetensors=True)
    mine, theirs = (dict(m.named_parameters()) for m in (model.encoder.model, plain.model))
    keys = [k for k in mine if 'adapter_fusion_layer' in k]
    assert keys
    for k in keys: assert torch.equal(mine[k], theirs[k]), k


def test_the_penalty_is_the_librarys(runs):
    c = config('fuse', 'seq_bn', strategy_options=dict(variant='dynamic'))
    encoder = run_encoder(c, 'cpu', source_folders(c, runs))
    run_strategy(c).use(encoder)
    for p in encoder.trainable().values(): p.data += .01*torch.randn(p.shape)
    ours = encoder.composites['fused'].penalty(encoder, 'fused')
    torch.testing.assert_close(ours, encoder.model.get_fusion_regularization_loss())


# ---- partitions

def test_joined_predictions_score_as_if_one_model_had_made_them(runs):
    whole = config('shared', tasks=('mini/target',), adapter_options=dict(r=2))
    run(whole, runs)
    t = load_predictions(runs/whole.name/'predictions'/'test.parquet')
    parts = []
    for task in partitions('mini/target', 4):
        places, part = Task.parse(task).places, t.copy()
        part['target_prob'] = [np.where(np.isin(np.arange(11), places), p, np.nan).astype(np.float32) for p in t.target_prob]
        parts.append(part.sample(frac=1, random_state=1))
    joined = join_predictions(parts).set_index('id').loc[t.id].reset_index()
    assert evaluate(joined, n_boot=50) == evaluate(t, n_boot=50)


@pytest.mark.parametrize('parts', [['mini/target:*/2'], pytest.param(['mini/target:*/11'], marks=pytest.mark.full), partitions('mini/target', 3, frequencies=list(range(11)))])
def test_one_study_cuts_merges_fuses_and_joins(tmp_path, parts):
    base = dict(limit=16, train=dict(epochs=1, batch_size=16))
    runs = [dict(tasks=parts, strategy=m, sources=dict(adapter_options=dict(r=2)), strategy_options=o) for m, o in (('join', {}), ('merge', {}), ('fuse', dict(width=2)))]
    records = run_study(Study.from_dict(dict(name='parts', base=base, runs=runs)), tmp_path)
    for r in records:
        of = r['metrics']['test']['mini/target']
        assert len(of['confusion']) == 11 and of['macro_f1']['value'] is not None
        assert of['macro_f1']['value'] == pytest.approx(np.mean([of[k]['value'] for k in of if k.startswith('f1.')]))
    assert len({s for r in records for s in r['sources']}) == len(records[0]['config']['tasks'])


@pytest.mark.parametrize('method,options', [('merge', {}), ('fuse', dict(width=4)), ('parallel', dict(learn='nothing')), ('join', {})])
def test_parts_of_the_targets_give_all_eleven(runs, method, options):
    parts = partitions('mini/target', 2)
    c = config(method, 'lora', tasks=parts, strategy_options=options)
    record = run(c, runs)
    assert record['metrics']['test']['mini/target']['macro_f1']['value'] is not None
    t = load_predictions(runs/c.name/'predictions'/'test.parquet')
    assert not np.isnan(np.stack(t.target_prob)).any()
    if method == 'join':
        source = load_predictions(runs/record['sources'][0]/'predictions'/'test.parquet')
        part = np.stack(source.target_prob)
        known = ~np.isnan(part[0])
        assert known.sum() == 6 and np.array_equal(np.stack(t.target_prob)[:, known], part[:, known])


def test_a_study_makes_its_sources_and_uses_them_again(runs, tmp_path):
    study = Study.from_dict(dict(name='s', base=BASE, runs=[
        dict(tasks=['mini/label', 'mini/target'], strategy='merge', strategy_options=dict(rule=['average', 'ties']), sources=dict(adapter='lora'))]))
    assert len(study.runs) == 2 and all([s['tasks'] for s in c.sources] == [['mini/label'], ['mini/target']] for c in study.runs)
    first = run(study.runs[0], tmp_path)
    made = {f: (f/'record.json').stat().st_mtime_ns for f in tmp_path.iterdir()}
    run(study.runs[1], tmp_path)
    assert all((f/'record.json').stat().st_mtime_ns == t for f, t in made.items())
    by_folder = RunConfig.from_dict({**BASE, 'tasks': ['mini/label', 'mini/target'], 'strategy': 'merge', 'sources': [str(tmp_path/s) for s in first['sources']]})
    again = run(by_folder, tmp_path)
    assert again['metrics'] == first['metrics']


# ---- refused

def test_refused_configurations():
    with pytest.raises(HatenbError, match='made of finished runs'): RunConfig(TASKS, strategy='merge')
    with pytest.raises(HatenbError, match='not made of other runs'): RunConfig(TASKS, 'lora', sources=('runs/x',))
    with pytest.raises(HatenbError, match="no option 'rang'"): make_strategy('merge', TASKS, options=dict(rang=2))
    with pytest.raises(HatenbError, match='nothing is called'): make_strategy('merge', TASKS, options=dict(learn='most'))
    with pytest.raises(HatenbError, match='cannot part at layer 6'): make_strategy('branch', TASKS, options=dict(layer=6)).build(load_encoder('minilm'), {})
    with pytest.raises(HatenbError, match='no layer 9'): load_encoder('minilm').add('a', 'lora', layers=[9])
    with pytest.raises(HatenbError, match='at least two'): load_encoder('minilm').add('a', 'fusion', sources=[])


@pytest.fixture
def finished_sources(runs, tmp_path):
    for s in sources('lora'): shutil.copytree(runs/run(RunConfig.from_dict(s), runs)['name'], tmp_path/run(RunConfig.from_dict(s), runs)['name'])
    return tmp_path


def made_of(folders, **more): return RunConfig.from_dict({**BASE, 'tasks': list(TASKS), 'strategy': 'merge', 'sources': list(map(str, folders)), **more})


def test_a_source_that_is_not_finished(finished_sources):
    folders = sorted(finished_sources.iterdir())
    (folders[0]/'record.json').unlink()
    with pytest.raises(HatenbError, match='never finished'): run(made_of(folders), finished_sources)
    with pytest.raises(HatenbError, match='no such run'): run(made_of(['runs/nowhere']), finished_sources)


def test_a_source_of_another_encoder(finished_sources):
    folders = sorted(finished_sources.iterdir())
    record = json.loads((folders[0]/'record.json').read_text())
    record['config']['encoder'], record['encoder_sha256'] = 'google/electra-small-discriminator', '0'*64
    (folders[0]/'record.json').write_text(json.dumps(record))
    with pytest.raises(HatenbError, match='trained on google'): run(made_of(folders), finished_sources)


def test_sources_that_answer_the_same_or_too_little(finished_sources):
    folders = sorted(finished_sources.iterdir())
    with pytest.raises(HatenbError, match='two sources answer'): run(made_of([folders[0], folders[0]]), finished_sources)
    with pytest.raises(HatenbError, match='no source has a head for'): run(made_of(folders[:2]), finished_sources)


@pytest.mark.parametrize('damage', ['weights', 'pickle', 'climbing', 'no heads', 'shape'])
def test_a_source_that_was_tampered_with(finished_sources, damage):
    folders = sorted(finished_sources.iterdir())
    adapter = folders[0]/'adapters'/'shared'
    weights, description = adapter/'adapter.safetensors', adapter/'adapter_config.json'
    if damage == 'weights': weights.write_bytes(weights.read_bytes()[:-8]+b'\0'*8)
    if damage == 'pickle': weights.rename(adapter/'adapter.bin')
    if damage in ('climbing', 'shape'):
        d = json.loads(description.read_text())
        if damage == 'climbing': d['hatenb']['weights'] = '../../../../etc/passwd.safetensors'
        else: d['hatenb']['options']['r'] = 3
        description.write_text(json.dumps(d))
    if damage == 'no heads': (folders[0]/'heads.safetensors').unlink()
    c = made_of(folders)
    with pytest.raises(HatenbError): run(c, finished_sources)
    assert not (finished_sources/c.name/'record.json').exists()


def test_bottlenecks_and_lora_cannot_be_merged_or_fused_together(runs):
    mixed = [sources('lora')[0], *sources('seq_bn')[1:]]
    for method in ('merge', 'fuse'):
        c = RunConfig.from_dict({**BASE, 'tasks': list(TASKS), 'strategy': method, 'sources': mixed})
        with pytest.raises(HatenbError): run(c, runs)
