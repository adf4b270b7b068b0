"Runs and studies: what decides a result, what is skipped, set aside, published, and how damage is told"

import dataclasses, json, os, shutil, subprocess, sys, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings as hsettings, strategies as st

from hatenb import core, making, reports
from hatenb.baselines import baselines
from hatenb.batches import Posts
from hatenb.core import HatenbError
from hatenb.evaluation import as_stored, evaluate, load_predictions
from hatenb.kinds import gold_columns
from hatenb.making import finished, make_run, run_corpora
from hatenb.runs import Run, RunConfig, read_record, read_records, run_folder
from hatenb.studies import Study, _why_no_worker, _with_sources, chosen_run, expand, publish, run_study
from hatenb.training import TrainConfig, predict
from on_ray import begun_ray, tasks
from parts import scalars
from shell import command
from tiny import bf16, f32

pytestmark = pytest.mark.usefixtures('stand_in')
MAJORITY = RunConfig(('mini/label', 'mini/target'), baseline='majority')
NEURAL = RunConfig(
    ('mini/label', 'mini/target', 'mini/rationale', 'mini_mhs/score'),
    adapter_options=dict(r=2),
    limit=32,
    heads=dict(label=dict(hidden=[4])),
    train=TrainConfig(epochs=1, batch_size=16),
)


@pytest.fixture(scope='module')
def neural(tmp_path_factory):
    "A folder of runs with one tiny neural run, and its record"
    path = tmp_path_factory.mktemp('runs')
    return path, make_run(NEURAL, path)


@pytest.fixture
def copied(neural, tmp_path):
    "A copy of the neural run that may be damaged"
    return shutil.copytree(neural[0] / NEURAL.name, tmp_path / NEURAL.name)


@pytest.mark.parametrize('native', [True, False])
def test_bfloat16_is_computed_in_float32_where_it_is_not_native(tmp_path, monkeypatch, native):
    "Emulated products are many times slower: the run keeps its id, and its record says what it was computed in"
    monkeypatch.setattr(core, 'native_bfloat16', lambda device: native)
    config = dataclasses.replace(NEURAL, tasks=('mini/label',), dtype='bfloat16')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        record = make_run(config, tmp_path)
    assert any('computed in float32' in str(w.message) for w in said) != native
    assert record['id'] == config.id and record['provenance']['bfloat16'] == native
    assert ('in float32' in reports._made_by(record)) != native
    with warnings.catch_warnings():
        warnings.simplefilter('error')                 # who opens it asked for nothing
        opened = Run(run_folder(config, tmp_path).folder).model()
    assert opened.encoder.dtype == (bf16 if native else f32)


def without_times(record):
    return {k: record[k] for k in ('id', 'name', 'config', 'metrics', 'corpora')}


# ---- configurations

OTHER = dict(
    tasks=('mini/label', 'mini/rationale'),
    adapter='vera',
    adapter_options=dict(r=3),
    strategy='branch',
    strategy_options=dict(layer=2),
    baseline='tfidf',
    encoder='other',
    quantization='nf4',
    dtype='bfloat16',
    max_length=64,
    heads=dict(label=dict(hidden=[8])),
    balancing='fixed',
    balancing_options=dict(normalise_steps=3),
    regularisers=dict(vat={}),
    augment=dict(drop=0.2),
    lexicon='terms.csv',
    limit=10,
    seed=1,
    pools=dict(other_pool=dict(toxic=dict(corpora=['mini']))),
    lower_once=True,
)
OTHER_TRAIN = dict(
    epochs=5,
    batch_size=7,
    max_positions=99,
    lr=0.1,
    head_lr=0.2,
    weight_decay=0.3,
    schedule='cosine',
    head_schedule='constant',
    warmup=0.5,
    head_warmup=3,
    head_warmup_epochs=1.0,
    layer_decay=0.9,
    class_balanced=True,
    reference={'mini/label.macro_f1': 0.5},
    clip=2.0,
    temperature=3.0,
    optimizer='sgd',
    optimizer_options=dict(momentum=0.9),
    steps=4,
    checkpoint_steps=9,
    patience=2,
    smallest_step={'mini/label.macro_f1': 0.1},
    compile=True,
)
BASE = RunConfig(('mini/label', 'mini/target'))


def test_every_field_is_tried():
    assert set(OTHER) == {f.name for f in dataclasses.fields(RunConfig)} - {'train', 'sources'} and set(
        OTHER_TRAIN
    ) == {f.name for f in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize('field', [*OTHER, *(f'train.{k}' for k in OTHER_TRAIN)])
def test_the_id_changes_with_every_field_and_comes_back_through_json(field):
    outer, _, inner = field.partition('.')
    needed = dict(
        strategy_options=dict(strategy='branch'),
        balancing_options=dict(balancing='fixed'),
        lower_once=dict(adapter_options=dict(layers=[4, 5])),
    )
    base = dataclasses.replace(BASE, **needed.get(field, {}))
    value = {'label': {'hidden': [8]}} if field == 'heads' else OTHER.get(field)
    changed = {'train': TrainConfig(**{inner: OTHER_TRAIN[inner]})} if inner else {field: value}
    config = dataclasses.replace(base, **changed)
    assert config.id != base.id
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.id == config.id


def test_sources_change_the_id_and_come_back():
    source = dict(tasks=['mini/label'], train=dict(epochs=2))
    config = RunConfig(('mini/label', 'mini/target'), strategy='join', sources=(source, 'runs/other'))
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.id == config.id
    assert config.sources[0] == source  # the shortest form: defaults spelled out change nothing
    assert dataclasses.replace(config, sources=({**source, 'seed': 0}, 'runs/other')).id == config.id
    assert dataclasses.replace(config, sources=({**source, 'seed': 1}, 'runs/other')).id != config.id


def test_sources_in_a_list_take_the_base_of_the_study():
    base = dict(encoder='minilm', dtype='bfloat16', train=dict(epochs=2))
    both = [dict(tasks=['mini/label'], adapter='seq_bn'), dict(tasks=['mini/target'], train=dict(lr=1e-3))]
    (run,) = Study.from_dict(
        dict(
            name='s',
            base=base,
            runs=[dict(tasks=['mini/label', 'mini/target'], strategy='fuse', sources=[*both, 'runs/other'])],
        )
    ).runs
    assert run.sources == (
        dict(tasks=['mini/label'], adapter='seq_bn', dtype='bfloat16', train=dict(epochs=2)),
        dict(tasks=['mini/target'], dtype='bfloat16', train=dict(epochs=2, lr=1e-3)),
        'runs/other',
    )


@pytest.mark.parametrize('sources', ({}, [dict(tasks=['mini/label']), dict(tasks=['mini/target'])]))
def test_sources_have_the_seed_of_their_run(sources):
    joined = dict(tasks=['mini/label', 'mini/target'], strategy='merge', sources=sources, seed=[0, 3])
    runs = Study.from_dict(dict(name='s', base=dict(dtype='bfloat16'), runs=[joined])).runs
    assert [[s.get('seed', 0) for s in r.sources] for r in runs] == [[0, 0], [3, 3]]
    (own,) = Study.from_dict(
        dict(name='s', runs=[joined | dict(seed=3, sources=[dict(tasks=['mini/label'], seed=7)])])
    ).runs
    assert [s['seed'] for s in own.sources] == [7]
    (stored,) = Study.from_dict(dict(name='s', runs=[joined | dict(seed=0, quantization='nf4')])).runs
    assert [s['quantization'] for s in stored.sources] == ['nf4'] * len(stored.sources)


def test_all_fields_at_once_come_back():
    # a baseline trains nothing, and regularisers and torch.compile need the lower layers at every step
    config = RunConfig(**{**OTHER, 'baseline': '', 'lower_once': False}, train=TrainConfig(**OTHER_TRAIN))
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_equal_shares_of_the_corpora_come_back_and_can_be_run(tmp_path):
    "An infinite temperature, which JSON has no number for"
    config = RunConfig(
        ('mini/label', 'mini_mhs/score'),
        'frozen',
        limit=12,
        train=TrainConfig(epochs=1, steps=2, batch_size=8, temperature=float('inf')),
    )
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config
    record = make_run(config, tmp_path)
    assert (
        RunConfig.from_dict(read_record(tmp_path / config.name / 'record.json')['config']) == config
        and record['cost']['train_posts'] == 16
    )
    (tmp_path / 's.toml').write_text(
        'name = "s"\n[[runs]]\ntasks = ["mini/label", "mini_mhs/score"]\ntrain = {temperature = inf}\n'
    )
    assert Study.load(tmp_path / 's.toml').runs[0].train.temperature == float('inf')
    with pytest.raises(HatenbError, match='here, train'):
        RunConfig.from_dict(dict(tasks=['label'], train=dict(temperature='hot')), 'here')


def test_defaults_written_out_are_the_same_run():
    written = dict(
        tasks=['mini/label', 'mini/target'],
        adapter='lora',
        seed=0,
        train=dict(epochs=TrainConfig().epochs),
        heads={},
        adapter_options={},
    )
    assert RunConfig.from_dict(written).id == BASE.id
    assert RunConfig(('label',)).id == RunConfig(('hatexplain/label',)).id


@pytest.mark.parametrize(
    'd,place,what',
    [
        (dict(tasks=['label'], train=dict(learning_rate=1)), 'here, train', 'learning_rate'),
        (dict(tasks=['label'], method='lora'), 'here', 'method'),
        (dict(adapter='lora'), 'here', 'tasks'),
        (dict(tasks=['lable']), '', 'label'),
        (dict(tasks=['label'], adapter='lorra'), '', 'lora'),
        (dict(tasks=['label'], strategy='mergee'), '', 'merge'),
        (dict(tasks=['label'], baseline='tfid'), '', 'tfidf'),
        (dict(tasks=['label'], balancing='equall'), '', 'equal'),
        (dict(tasks=[]), 'tasks', 'needs a task'),
        (dict(tasks=['label', 'hatexplain/label']), 'label', 'twice'),
        (dict(tasks=['label'], heads=dict(target={})), 'heads', 'target'),
        (dict(tasks=['label'], train=dict(epochs=0)), 'train', 'epochs = 0'),
        (dict(tasks=['label'], train=dict(lr=-1)), 'train', 'lr = -1'),
        (dict(tasks=['label'], train=dict(warmup=2)), 'train', '0 to 1'),
        (dict(tasks=['label'], train=dict(steps=0)), 'train', 'steps'),
        (dict(tasks=['label'], train=dict(lr='x')), 'here, train', 'lr'),
        (dict(tasks=['label'], train=dict(schedule='cosin')), '', 'cosine'),
        (dict(tasks=['label'], train=dict(head_schedule='linea')), '', 'linear'),
        (
            dict(tasks=['label'], train=dict(smallest_step={'hatexplain/label.f1': 0.1})),
            'train',
            'hatexplain/label.macro_f1',
        ),
        (dict(tasks=['label'], train=dict(reference={'hatexplain/target.macro_f1': 0.1})), 'train', 'not watched'),
        (dict(tasks=['label'], adapter_options=dict(rank=3)), 'adapter', "lora has no option 'rank'"),
        (dict(tasks=['label'], adapter='seq_bn', adapter_options=dict(r=3)), 'adapter', "seq_bn has no option 'r'"),
        (dict(tasks=['label'], strategy='mtl_lora', strategy_options=dict(rank=3)), 'adapter', "no option 'rank'"),
        (dict(tasks=['label'], heads=dict(label=dict(loss_options=dict(smoothin=0.1)))), 'hatexplain/label', 'smoothin'),
        (dict(tasks=['label'], heads=dict(label=dict(loss='focal'))), 'hatexplain/label', 'for: tokens'),
        (dict(tasks=['label'], heads=dict(label=dict(loss='focall'))), '', 'cross_entropy'),
        (dict(tasks=['label'], heads=dict(label=dict(pooling='cls'))), '', 'first'),
        (dict(tasks=['label'], balancing='dwa', balancing_options=dict(temprature=3)), 'balancing_options', 'temprature'),
        (dict(tasks=['label'], balancing='random', balancing_options=dict(sed=3)), 'balancing_options', 'sed'),
        (
            dict(tasks=['label'], balancing='fixed', balancing_options=dict(importances={'labl': 3})),
            'importances',
            "no loss 'labl'",
        ),
        (dict(tasks=['label'], balancing='fixed', balancing_options=dict(importances=[1])), 'importances', 'a table'),
    ],
)
def test_a_configuration_that_is_wrong_says_where(d, place, what):
    with pytest.raises(HatenbError) as e:
        RunConfig.from_dict(d, 'here')
    assert place in str(e.value) and what in str(e.value)


@pytest.mark.parametrize(
    'd,words',
    [
        (dict(balancing='gradnorm', balancing_options=dict(alfa=1.0)), 'alfa'),
        (dict(balancing_options=dict(importances={})), 'equal does not take'),
        (dict(balancing='fixed', balancing_options=dict(importances={'mini/target': 1})), 'mini/target'),
        (dict(balancing='dwa', balancing_options=dict(steps=0)), '0 steps'),
        (dict(augment=dict(drop=2.0)), 'drop = 2'),
        (dict(strategy='merge', strategy_options=dict(rule='ties', rule_options=dict(densty=0.5)),
              sources=[dict(tasks=['mini/label'])]), "no option 'densty'"),
        (dict(strategy='branch', adapter_options=dict(layers=[0])), 'have their own layers'),
    ],
)
def test_options_that_are_wrong_are_told_before_anything_is_trained(tmp_path, d, words):
    with pytest.raises(HatenbError, match=words):
        make_run(RunConfig.from_dict(dict(tasks=['mini/label'], limit=8, **d)), tmp_path)


def test_what_a_configuration_may_leave_to_its_losses_and_packages(monkeypatch):
    "Importances of one loss of a task; options of TorchJD, which need not be there to read a record"
    part = dict(balancing='fixed', balancing_options=dict(importances={'hatexplain/target.Arab': 3}))
    assert RunConfig(('target',), heads=dict(target=dict(loss_options=dict(apart=True))), **part).id
    dotted = dict(balancing='fixed', balancing_options=dict(importances={'hatexplain/target.U.S.': 3}))
    assert RunConfig(('target',), **dotted).id                      # a name with dots, as tables of one's own have
    monkeypatch.setitem(sys.modules, 'torchjd', None)
    assert RunConfig(('label', 'target'), balancing='upgrad', balancing_options=dict(reg_eps=0.1)).id


def test_an_unknown_setting_of_a_head(tmp_path):
    with pytest.raises(HatenbError, match="'hiden'.*heads, label"):
        make_run(dataclasses.replace(NEURAL, heads=dict(label=dict(hiden=[4]))), tmp_path)


# ---- studies


def test_expand_is_the_product_of_its_lists():
    d = dict(
        tasks=['a', 'b'],
        seed=[0, 1, 2],
        train=dict(lr=[0.1, 0.2], epochs=3),
        adapter='lora',
        heads=dict(label=dict(hidden=[8, 4])),
    )
    found = expand(d)
    assert len(found) == 3 * 2 and [(c['seed'], c['train']['lr']) for c in found] == [
        (s, l) for s in (0, 1, 2) for l in (0.1, 0.2)
    ]
    for c in found:
        assert c['tasks'] == ['a', 'b'] and c['heads'] == dict(label=dict(hidden=[8, 4])) and c['train']['epochs'] == 3
    assert [c['tasks'] for c in expand(dict(tasks=[['a'], ['a', 'b']]))] == [['a'], ['a', 'b']]
    assert expand({}) == [{}]


@hsettings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from('uvwxyz'),
        st.one_of(
            st.integers(),
            st.lists(st.integers(), min_size=1, max_size=3),
            st.dictionaries(st.sampled_from('kl'), st.lists(st.integers(), min_size=1, max_size=2)),
        ),
        max_size=4,
    )
)
def test_expand_counts(d):
    size = 1
    for v in d.values():
        size *= (
            len(v) if isinstance(v, list) else int(np.prod([len(x) for x in v.values()])) if isinstance(v, dict) else 1
        )
    found = expand(d)
    assert len(found) == size and all(c.keys() == d.keys() for c in found)


def study_file(tmp_path, text):
    (tmp_path / 's.toml').write_text(text)
    return tmp_path / 's.toml'


def test_a_study_file(tmp_path):
    s = Study.load(
        study_file(
            tmp_path,
            'name="s"\ntitle="T"\n[base]\ntasks=["mini/label"]\n[base.train]\nepochs=2\n[[runs]]\nseed=[0,1]\n[runs.train]\nlr=0.1\n[[runs]]\nbaseline="majority"\n[[runs]]\nseed=1\ntrain={lr=0.1}\n',
        )
    )
    assert (
        (s.name, s.title) == ('s', 'T')
        and [r.seed for r in s.runs] == [0, 1, 0]
        and s.runs[1].train == TrainConfig(epochs=2, lr=0.1)
    )  # the last was there already


@pytest.mark.parametrize(
    'text,what',
    [
        ('name="s"\n[[runs]]\ntasks=["mini/label"]\n[[runs]]\ntasks=["mini/label"]\nlr=1', 's.toml, run 2'),
        ('name="s"\nrnus=1', 'rnus'),
        ('name="s"', 'needs a name and runs'),
        ('name="s"\n[[runs]]\ntasks=["mini/label"]\n[runs.train]\nlrr=1', 's.toml, run 1, train'),
        ('name=', 's.toml'),
        ('runs=[{tasks=["mini/label"]}]', 'needs a name'),
    ],
)
def test_a_study_that_is_wrong_says_where(tmp_path, text, what):
    with pytest.raises(HatenbError) as e:
        Study.load(study_file(tmp_path, text))
    assert what in str(e.value) and 's.toml' in str(e.value)


def test_there_is_no_such_study_or_it_is_not_text(tmp_path):
    with pytest.raises(HatenbError, match='no such study'):
        Study.load(tmp_path / 'none.toml')
    (tmp_path / 's.toml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(HatenbError, match='cannot be read'):
        Study.load(tmp_path / 's.toml')


def counting(monkeypatch, failing=()):
    "Count the runs that are really made; those of the seeds in `failing` fail"
    made, real = [], making._baseline

    def counted(job):
        made.append(job.config.seed)
        if job.config.seed in failing:
            raise HatenbError('it broke', 'somewhere', 'Try again.')
        return real(job)

    monkeypatch.setattr(making, '_baseline', counted)
    return made


def majorities(*seeds):
    return Study('s', [dataclasses.replace(MAJORITY, seed=s) for s in seeds])


def test_finished_runs_are_skipped(tmp_path, monkeypatch):
    made = counting(monkeypatch)
    first = run_study(majorities(0, 1), tmp_path)
    again = run_study(majorities(0, 1, 2), tmp_path)
    assert made == [0, 1, 2] and json.loads(json.dumps(first)) == json.loads(json.dumps(again[:2]))
    assert [r['config']['seed'] for r in again] == [0, 1, 2] and all(
        (tmp_path / r['name'] / 'record.json').exists() for r in again
    )


def test_a_failing_run_is_reported_after_the_others(tmp_path, monkeypatch):
    made = counting(monkeypatch, failing=(1,))
    with pytest.raises(HatenbError, match='1 of 3 runs failed') as e:
        run_study(majorities(0, 1, 2), tmp_path)
    assert dataclasses.replace(MAJORITY, seed=1).name in str(e.value) and 'it broke' in str(e.value)
    assert made == [0, 1, 2] and len(read_records(tmp_path)) == 2
    monkeypatch.undo()
    assert len(run_study(majorities(0, 1, 2), tmp_path)) == 3  # the lock was given back


@pytest.mark.parametrize('damage', [b'{"id": "x"', b'', b'[]', b'{"id": "x"}', b'\xff\xfe'])
def test_an_unreadable_record_is_set_aside_and_never_overwritten(tmp_path, damage):
    folder = tmp_path / MAJORITY.name
    whole = make_run(MAJORITY, tmp_path)
    for i in (1, 2):
        (folder / 'record.json').write_bytes(damage + b' ' * i)
        with pytest.warns(UserWarning, match=f'record.unreadable-{i}.json'):
            again = make_run(MAJORITY, tmp_path)
        assert again['metrics'] == whole['metrics'] and read_record(folder / 'record.json')['id'] == MAJORITY.id
    for i in (1, 2):
        assert (folder / f'record.unreadable-{i}.json').read_bytes() == damage + b' ' * i
    assert len(read_records(tmp_path)) == 1  # what was set aside is no record


def test_a_folder_with_a_broken_record_shows_the_others(tmp_path):
    run_study(majorities(0, 1), tmp_path)
    (tmp_path / MAJORITY.name / 'record.json').write_text('{')
    with pytest.warns(UserWarning, match='left out.*record.json'):
        found = read_records(tmp_path)
    assert [r['config']['seed'] for r in found] == [1]
    with pytest.raises(HatenbError, match='no record'):
        read_records(tmp_path / 'nothing')
    with pytest.warns(UserWarning):
        assert finished(tmp_path / MAJORITY.name) is None
    assert finished(tmp_path / 'nothing') is None


def test_a_run_that_another_process_makes_is_refused(tmp_path):
    from filelock import FileLock

    (tmp_path / MAJORITY.name).mkdir()
    with FileLock(tmp_path / MAJORITY.name / '.lock'), pytest.raises(HatenbError, match='another process'):
        make_run(MAJORITY, tmp_path)
    assert make_run(MAJORITY, tmp_path)['id'] == MAJORITY.id


@pytest.mark.parametrize('method', list(baselines))
def test_baselines_of_every_task_and_of_parts(tmp_path, method):
    r = make_run(
        RunConfig(('mini/label', 'mini/rationale', 'mini/target:1/4', 'mini_mhs/score'), baseline=method, limit=120),
        tmp_path,
    )
    found = r['metrics']['test']
    assert set(found) == {'mini/label', 'mini/target', 'mini/rationale', 'mini_mhs/score'}
    assert (
        found['mini/target']['macro_f1']['value'] is None and found['mini/target']['macro_f1_part']['value'] is not None
    )
    if method == 'majority':
        assert found['mini_mhs/score']['pearson']['value'] is None
    assert json.loads(
        (tmp_path / r['name'] / 'record.json').read_text(), parse_constant=lambda c: pytest.fail(c)
    ) == json.loads(json.dumps(r))


# ---- a neural run


def test_the_record_can_be_computed_from_the_predictions(neural):
    path, record = neural
    for split in ('validation', 'test'):
        table = load_predictions(path / NEURAL.name / 'predictions' / f'{split}.parquet')
        assert json.loads(json.dumps(evaluate(table))) == json.loads(json.dumps(record['metrics'][split]))
    assert set(record['metrics']['test']) == set(NEURAL.tasks) and record['corpora']['mini']['posts'] == dict(
        validation=32, test=32
    )
    assert (
        not list((path / NEURAL.name).glob('*.tmp*')) and not (path / NEURAL.name / 'checkpoint.safetensors').exists()
    )


def test_a_run_logs_to_the_trackers_of_the_settings_and_is_the_same(neural, tmp_path, monkeypatch):
    monkeypatch.setenv('HATENB_TRACKERS', 'tensorboard')
    record = make_run(NEURAL, tmp_path)
    assert without_times(record) == without_times(neural[1])
    logged = scalars(tmp_path / NEURAL.name / 'hatenb')
    for look in record['history']:
        for group in ('validation', 'losses', 'weights'):
            for k, v in look[group].items():
                assert (look['step'], pytest.approx(v, rel=1e-5)) in logged[f'{group}/{k}']


def test_a_loaded_run_predicts_what_it_predicted(neural):
    from hatenb.batches import Posts

    path, record = neural
    model = Run(path / NEURAL.name).model()
    corpora = run_corpora(NEURAL, model.encoder.tokenizer)
    again = predict(model, {c: Posts(d['test'], c, model.encoder.tokenizer.pad_token_id) for c, d in corpora.items()})
    stored = load_predictions(path / NEURAL.name / 'predictions' / 'test.parquet')
    assert again['id'].tolist() == stored['id'].tolist()
    for c in ('label_prob', 'target_prob', 'rationale_token_prob', 'score_pred'):
        rounding = 2**-11 if c.endswith('_prob') else 0  # of half precision, relative
        for a, b in zip(again[c].dropna(), stored[c].dropna()):
            np.testing.assert_allclose(a, b, atol=1e-6, rtol=rounding)


def test_published_records_leave_the_gold_to_the_corpora(neural, tmp_path):
    path, record = neural
    runs = [{**record, 'folder': str(path / NEURAL.name)}, *run_study(Study('s', [MAJORITY]), tmp_path / 'runs')]
    for r, to in zip(runs, publish(runs, tmp_path / 'results')):
        for split in ('validation', 'test'):
            plain = pd.read_parquet(to / 'predictions' / f'{split}.parquet')
            assert (
                not {*gold_columns('mini'), *gold_columns('mini_mhs')} & set(plain)
                and 'words' not in plain
                and 'text' not in plain
            )
            assert json.loads(
                json.dumps(evaluate(load_predictions(to / 'predictions' / f'{split}.parquet')))
            ) == json.loads(json.dumps(r['metrics'][split]))
        published = read_record(to / 'record.json')
        assert (
            'folder' not in published
            and published['metrics'] == json.loads(json.dumps(r['metrics']))
            and published['name'] == to.name
        )
    assert len(read_records(tmp_path / 'results')) == 2
    publish(runs, tmp_path / 'results')  # again: the same
    assert len(read_records(tmp_path / 'results')) == 2
    publish(runs, tmp_path / 'records', predictions=False)
    assert len(read_records(tmp_path / 'records')) == 2 and not list((tmp_path / 'records').rglob('*.parquet'))


@pytest.mark.parametrize('file', ['heads.safetensors', 'adapters', 'record.json'])
def test_a_run_with_a_part_missing(copied, file):
    path = copied / file
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(HatenbError) as e:
        Run(copied).model()
    assert str(path) in str(e.value)


@pytest.mark.parametrize('pattern', ['heads.safetensors', 'adapters/**/*.safetensors'])
@pytest.mark.parametrize('keep', [0, 5, 200, -7])
def test_a_run_with_a_truncated_file(copied, pattern, keep):
    (path,) = copied.glob(pattern)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(HatenbError) as e:
        Run(copied).model()
    assert str(path.parent) in str(e.value)


def test_a_run_with_another_runs_heads(copied, neural):
    record = json.loads((copied / 'record.json').read_text())
    record['config']['heads'] = {}
    (copied / 'record.json').write_text(json.dumps(record))
    with pytest.raises(HatenbError, match='heads cannot be loaded'):
        Run(copied).model()


def test_a_baseline_has_no_model(tmp_path):
    make_run(MAJORITY, tmp_path)
    with pytest.raises(HatenbError, match='baseline'):
        Run(tmp_path / MAJORITY.name).model()


def test_copies_are_of_training_posts_only(tmp_path):
    from hatenb.encoder import load_encoder

    tokenizer = load_encoder('minilm').tokenizer
    plain, more = (
        run_corpora(RunConfig(('mini/label', 'mini_mhs/score'), limit=20, augment=a), tokenizer)
        for a in ({}, dict(copies=2))
    )
    for c in plain:
        assert (
            len(more[c]['train']) == 3 * len(plain[c]['train'])
            and more[c]['train'].features == plain[c]['train'].features
        )
        for split in ('validation', 'test'):
            assert more[c][split]['id'][:] == plain[c][split]['id'][:]
    record = make_run(
        RunConfig.from_dict(
            dict(
                tasks=['mini/label'],
                adapter_options=dict(r=2),
                limit=20,
                augment=dict(drop=0.3),
                train=dict(epochs=1, batch_size=8),
            )
        ),
        tmp_path,
    )
    assert record['cost']['train_posts'] == 40
    with pytest.raises(HatenbError, match='copies cannot be made'):
        run_corpora(RunConfig(('mini/label',), limit=4, augment=dict(dorp=0.1)), tokenizer)


def test_a_study_of_random_draws_names_the_best_on_validation(tmp_path):
    file = tmp_path / 'search.toml'
    file.write_text("""name = "search"
[base]
tasks = ["mini/label"]
limit = 16
adapter_options = {r = 2}
[[runs]]
draws = 3
train = {epochs = 1, batch_size = 8, lr = {low = 1e-4, high = 1e-2, log = true}}
""")
    study = Study.load(file)
    rates = [r.train.lr for r in study.runs]
    assert (
        len(set(rates)) == 3
        and all(1e-4 <= x <= 1e-2 for x in rates)
        and [r.id for r in Study.load(file).runs] == [r.id for r in study.runs]
    )
    out = command('study', file, cwd=tmp_path, HATENB_RUNS=str(tmp_path / 'runs'))
    assert out.returncode == 0, out.stderr[-2000:]
    records = read_records(tmp_path / 'runs')
    best = chosen_run(records)
    assert (
        best['chosen']['validation'] == max(r['chosen']['validation'] for r in records)
        and f"best on validation for mini/label: {best['name']}" in out.stdout
    )
    with pytest.raises(HatenbError, match='scored on validation'):
        chosen_run([])


def test_a_lexicon_is_counted_and_learned_from(tmp_path):
    (tmp_path / 'terms.csv').write_text(
        'term,category\n' + '\n'.join(f'slur{i},slur' for i in range(1, 9)) + '\nkind words,kind\n'
    )
    base = dict(
        tasks=['mini/label', 'mini/rationale'],
        adapter='frozen',
        limit=96,
        train=dict(epochs=6, batch_size=16, head_lr=2e-2),
    )
    with_terms, without = (
        RunConfig.from_dict({**base, **more}) for more in (dict(lexicon=str(tmp_path / 'terms.csv')), {})
    )
    a, b = (make_run(c, tmp_path / 'runs') for c in (with_terms, without))
    assert a['lexicon']['categories'] == ['kind', 'slur']
    assert a['cost']['head_parameters'] == b['cost']['head_parameters'] + 2 * 3  # the label's head only
    model = Run(tmp_path / 'runs' / with_terms.name).model()
    slur = model.heads['mini/label'].net[-1].weight[:, -1]  # what a slur says for each class
    assert slur.argmax() == 2 and slur[2] > slur[0] + 0.05
    corpora = run_corpora(with_terms, model.encoder.tokenizer)
    t = predict(model, {'mini': Posts(corpora['mini']['test'], 'mini', model.encoder.tokenizer.pad_token_id)})
    stored = load_predictions(tmp_path / 'runs' / with_terms.name / 'predictions' / 'test.parquet')
    for x, y in zip(as_stored(t).label_prob, stored.label_prob):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    'text,words',
    [
        (None, 'no such lexicon'),
        ('word,kind\na,b\n', 'no column `term`'),
        ('term\na\n \n', 'line 3'),
        ('', 'no column'),
    ],
)
def test_a_lexicon_that_cannot_be_used(tmp_path, text, words):
    from hatenb.pretokenize import read_lexicon

    if text is not None:
        (tmp_path / 't.csv').write_text(text)
    with pytest.raises(HatenbError, match=words):
        read_lexicon(tmp_path / 't.csv')


# ---- names


def test_a_name_says_what_differs_and_is_the_same_whatever_the_order():
    sources = [dict(tasks=[t], dtype='bfloat16') for t in ('label', 'target')]
    a = RunConfig(
        ('label', 'target'),
        strategy='merge',
        strategy_options=dict(rule='knots', learn='heads', rank=16),
        dtype='bfloat16',
        sources=sources,
    )
    b = dataclasses.replace(a, strategy_options=dict(rank=16, learn='heads', rule='knots'))
    assert a.name == b.name == 'minilm-label+target-merge-knots-heads-rank16-bf16-s0' and a.id == b.id
    assert RunConfig(('mini/label',), train=TrainConfig(lr=1e-3), seed=3).name == 'minilm-mini.label-lr0.001-s3'
    other = dataclasses.replace(a, sources=('runs/a', 'runs/b'))
    assert other.id[:6] in other.name  # what cannot be said in words


def test_all_studies_have_names_of_their_own():
    runs = {r.id: r for f in (Path(__file__).parent.parent / 'studies').glob('*.toml') for r in Study.load(f).runs}
    names = [r.name for r in runs.values()]
    assert len(set(names)) == len(names) and max(map(len, names)) <= 130


def test_two_runs_of_one_name_have_two_folders(tmp_path):
    a, b = (RunConfig(('mini/label',), baseline='majority', encoder=f'{place}/mine') for place in ('here', 'there'))
    assert a.name == b.name and a.id != b.id
    first, second = make_run(a, tmp_path), make_run(b, tmp_path)
    assert first['name'] == a.name and second['name'] == f'{b.name}-{b.id[:6]}'
    assert make_run(b, tmp_path) == second and make_run(a, tmp_path) == first


# ---- numbers out of range, told before anything is made


@pytest.mark.parametrize(
    'd,words',
    [
        (dict(max_length=0), 'max_length = 0'),
        (dict(max_length=-5), 'max_length = -5'),
        (dict(max_length='x'), 'max_length'),
        (dict(limit=0), 'limit = 0'),
        (dict(seed=-1), 'seed = -1'),
        (dict(heads=dict(label=dict(dropout=1.5))), 'dropout = 1.5'),
        (dict(heads=dict(label=dict(hidden=[0]))), 'hidden = 0'),
        (dict(heads=5), 'heads'),
        (dict(train=dict(epochs=1.5)), 'epochs'),
        (dict(train=dict(lr=float('nan'))), 'lr'),
        (dict(tasks='label'), 'tasks'),
        (dict(sources=5), 'sources'),
        (dict(strategy='branch', strategy_options=dict(layr=2)), 'layr'),
        (dict(baseline='tfidf', strategy='branch'), 'shares no encoder'),
    ],
)
def test_what_cannot_be_is_told_at_once(d, words):
    with pytest.raises(HatenbError, match=words):
        RunConfig.from_dict({'tasks': ['mini/label'], **d})


def test_posts_longer_than_the_encoder_reads(tmp_path):
    with pytest.raises(HatenbError, match='the encoder has 512 places'):
        make_run(RunConfig(('mini/label',), max_length=600, limit=8), tmp_path)


# ---- records that somebody has changed


def spots(x, path=()):
    "Every place in a record"
    yield path
    for k, v in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ():
        yield from spots(v, (*path, k))


def changed(record, path, value):
    record = json.loads(json.dumps(record))
    if not path:
        return value
    *way, last = path
    inner = record
    for k in way:
        inner = inner[k]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return record


def test_changed_records_are_refused_or_drawn(neural, tmp_path):
    "A record with a place changed is as it was, or refused with a clear error, whatever is drawn from it"
    from hatenb.reports import curves_figure, metrics_html, results_html, results_text
    import matplotlib.pyplot as plt

    record, rng = neural[1], np.random.default_rng(0)
    places, refused = list(spots(json.loads(json.dumps(record)))), 0
    odd = [
        ...,
        None,
        5,
        -1.5,
        'x',
        '../../etc',
        [],
        {},
        True,
        float('nan'),
        10**400,
        [[]],
        {'value': 'x'},
        {'a': {'b': 1}},
    ]
    top = [p for p in places if len(p) <= 2]
    for i in range(300):
        path = (top if i % 2 else places)[rng.integers(len(top if i % 2 else places))]
        file = tmp_path / 'record.json'
        file.write_text(json.dumps(changed(record, path, odd[rng.integers(len(odd))])))
        try:
            found = read_record(file)
            for draw in (results_text, results_html, metrics_html):
                draw([found])
            if i % 20 == 0 and found['history']:
                plt.close(curves_figure([found]))
        except HatenbError as e:
            refused += 1
            assert str(e)
    assert refused > 100
    file.write_text('[' * 100_000)
    with pytest.raises(HatenbError):
        read_record(file)
    file.write_text('{"a": ' + '9' * 5000 + '}')
    with pytest.raises(HatenbError):
        read_record(file)
    with pytest.raises(HatenbError):
        read_record(tmp_path)  # a folder


def test_a_run_names_its_files_and_flipped_bytes_are_seen(copied):
    for name, sha in Run(copied).record['files'].items():
        path = copied / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(HatenbError, match='not the one that the record names'):
            if 'predictions' in name:
                Run(copied).predictions(path.stem)
            else:
                Run(copied).model()
        path.write_bytes(whole)
    Run(copied).model()


@pytest.mark.parametrize('names', [['../../elsewhere'], ['/etc'], ['..'], ['a/b']])
def test_nothing_in_a_record_leads_out_of_its_folder(copied, names):
    record = json.loads((copied / 'record.json').read_text())
    (copied / 'record.json').write_text(json.dumps({**record, 'adapters': names}))
    with pytest.raises(HatenbError, match='no name of an adapter'):
        Run(copied).model()
    (copied / 'record.json').write_text(json.dumps({**record, 'files': {**record['files'], 'adapters/../../x': 'y'}}))
    with pytest.raises(HatenbError, match='outside its folder'):
        Run(copied).model()


def test_opening_makes_nothing(tmp_path):
    "A joined run whose source is gone is not made again"
    config = RunConfig(
        ('mini/label', 'mini/target'),
        strategy='join',
        sources=[dict(tasks=[t], baseline='majority') for t in ('mini/label', 'mini/target')],
    )
    joined = make_run(config, tmp_path)
    assert [r.name for r in Run(tmp_path / joined['name']).parts()] == joined['sources']
    shutil.rmtree(tmp_path / joined['sources'][0])
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(HatenbError, match='never finished'):
        Run(tmp_path / joined['name']).parts()
    assert sorted(tmp_path.rglob('*')) == before


# ---- workers

SMALL = dict(limit=48, adapter_options=dict(r=2), train=dict(epochs=2, batch_size=8, checkpoint_steps=1))


def small_study():
    return Study.from_dict(
        dict(
            name='workers',
            base=SMALL,
            runs=[
                dict(tasks=[['mini/label'], ['mini/target']]),
                dict(tasks=['mini/label', 'mini/target'], strategy='merge', sources={}),
            ],
        )
    )


@pytest.fixture(scope='module')
def made_alone(tmp_path_factory):
    "The records of the study, made one after the other"
    records = run_study(small_study(), tmp_path_factory.mktemp('alone'))
    return [without_times(r) for r in json.loads(json.dumps(records))]


def test_sources_by_name_come_first_too():
    one = RunConfig(('mini/label',), baseline='majority')
    by_name, by_glob = (RunConfig(('mini/label',), strategy='join', sources=s) for s in ((one.name,), 'majority-*'))
    needed = {i: of for i, (_, of) in _with_sources([by_name, by_glob, one]).items()}
    assert needed == {one.id: set(), by_name.id: {one.id}, by_glob.id: {one.id}}


def test_a_killed_worker_is_replaced_and_sources_come_first(tmp_path, made_alone):
    import multiprocessing, signal, threading, time

    out, killed = {}, []

    def go():
        out['records'] = run_study(small_study(), tmp_path / 'together', workers=2)

    thread = threading.Thread(target=go)
    thread.start()
    while thread.is_alive() and not killed:
        if list((tmp_path / 'together').glob('*/checkpoint.safetensors')):  # somebody is in the middle of it
            victim = multiprocessing.active_children()[0]
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)
        time.sleep(0.02)
    thread.join(300)
    assert killed and not thread.is_alive()
    assert [without_times(r) for r in out['records']] == made_alone
    assert not [p for p in multiprocessing.active_children() if p.is_alive()]
    assert run_study(small_study(), tmp_path / 'together', workers=2) == out['records']  # there is nothing to do


def test_a_run_whose_task_of_ray_was_killed_goes_on(tmp_path, made_alone):
    import signal, threading, time

    ray, killed, done = begun_ray(), [], threading.Event()

    def kill_one():
        while not killed and not done.is_set():
            if list(tmp_path.glob('*/checkpoint.safetensors')):  # somebody is in the middle of it
                killed.extend(tasks('_make_there')[:1])
                for p in killed:
                    os.kill(p, signal.SIGKILL)
            time.sleep(0.02)

    thread = threading.Thread(target=kill_one)
    thread.start()
    try:
        records = run_study(small_study(), tmp_path, workers=2, engine='ray')
    finally:
        done.set()
        thread.join()
        ray.shutdown()
    assert killed and [without_times(r) for r in records] == made_alone
    assert run_study(small_study(), tmp_path, workers=2, engine='ray') == records and not ray.is_initialized()
    with pytest.raises(HatenbError, match="no engine 'rey'"):
        run_study(small_study(), tmp_path, engine='rey')


def test_a_worker_that_cannot_import_says_so():
    assert _why_no_worker([]) is None
    assert _why_no_worker(['json', 'no_such_rules']) == (
        "a worker cannot import no_such_rules: ModuleNotFoundError: No module named 'no_such_rules'"
    )


def test_what_fails_in_a_worker_is_told_and_what_needs_it_is_not_made(tmp_path):
    bad = dict(tasks=['mini/label'], baseline='tfidf', limit=1)
    study = Study.from_dict(
        dict(
            name='workers',
            runs=[
                dict(tasks=['mini/label'], baseline='majority'),
                bad,
                dict(tasks=['mini/label'], strategy='join', sources=[bad]),
            ],
        )
    )
    with pytest.raises(HatenbError, match='2 of 3 runs failed') as e:
        run_study(study, tmp_path, workers=2)
    assert 'its source' in str(e.value) and len(read_records(tmp_path)) == 1


def test_ctrl_c_leaves_what_can_be_resumed(tmp_path):
    import signal, time

    code = (
        "import json, sys; from hatenb.studies import Study, run_study\n"
        "if __name__ == '__main__': run_study(Study.from_dict(json.loads(sys.argv[1])), sys.argv[2], workers=2)"
    )
    (tmp_path / 'go.py').write_text(code)
    d = dict(
        name='workers',
        base={**SMALL, 'train': {**SMALL['train'], 'epochs': 300}},
        runs=[dict(tasks=[['mini/label'], ['mini/target']])],
    )
    p = subprocess.Popen(
        [sys.executable, str(tmp_path / 'go.py'), json.dumps(d), str(tmp_path / 'runs')],
        stderr=subprocess.PIPE,
        env={**os.environ, 'HATENB_QUIET': '1'},
    )
    while p.poll() is None and not list((tmp_path / 'runs').glob('*/checkpoint.safetensors')):
        time.sleep(0.05)
    p.send_signal(signal.SIGINT)
    assert (
        p.wait(200) != 0
        and list((tmp_path / 'runs').glob('*/checkpoint.safetensors'))
        and not list((tmp_path / 'runs').glob('*/record.json'))
    )
    assert not list((tmp_path / 'runs').rglob('*.tmp'))


@pytest.mark.parametrize(
    'file', sorted((Path(__file__).parent.parent / 'studies').glob('*.toml')), ids=lambda f: f.stem
)
def test_every_study_of_the_project_can_be_read(file):
    study = Study.load(file)
    assert (
        study.name == file.stem
        and study.title
        and len({r.id for r in study.runs}) == len(study.runs) > 0
    )
