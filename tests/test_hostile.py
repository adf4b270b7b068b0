"""Files of strangers, changed at random: they are answered as before, answered whole, or refused with one
`HatenbError`. Nothing is written, trained, started, or read from elsewhere.
HATENB_MUTATIONS says how many changes of each kind of file are tried."""
import contextlib, copy, hashlib, json, math, os, random, shutil, sys, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, processors
from transformers import BertConfig, BertModel, BertTokenizerFast

import hatenb
from hatenb.core import HatenbError, encoder_path
from hatenb.corpora import corpora
from hatenb.detector import Detector, json_line
from hatenb.evaluation import evaluate, load_predictions
from hatenb.making import make_run
from hatenb.pretokenize import check_tokenizer
from hatenb.reports import metrics_html, results_html, results_text
from hatenb.runs import Run, RunConfig, read_records, run_folder
from hatenb.studies import Study
from limits import within
from tiny import SIZE, save_encoder, vocabulary

MUTATIONS = int(os.environ.get('HATENB_MUTATIONS', 30))
SOME = max(1, MUTATIONS//4)      # where a model has to be loaded, which takes a tenth of a second or more
REPOSITORY = Path(__file__).resolve().parent.parent
POSTS = ['they are insult1 people', 'good morning to the town', '', 'x '*100]


# ---------------------------------------------------------------- what a file may not do

class Watch:
    "Notes what is opened for writing, read from elsewhere, started, or connected to, while it is on"
    barred = ('subprocess.', 'os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.fork', 'os.rename', 'os.remove',
              'os.mkdir', 'os.rmdir', 'os.link', 'os.symlink', 'os.truncate', 'os.chmod', 'socket.connect',
              'socket.bind', 'pickle.find_class')

    def __init__(self):
        self.on,self.seen,self.roots = False,[],()
        sys.addaudithook(self.hear)

    def hear(self, event, args):
        if not self.on: return
        if event == 'open' and not isinstance(args[0], int): self.opened(*args)
        elif event.startswith(self.barred): self.seen.append(f'{event} {args}'[:200])

    def opened(self, path, mode, flags):
        path = os.path.realpath(os.fsdecode(path))
        writes = set(mode or '') & set('wax+') or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and path != os.devnull: self.seen.append(f'written: {path}')
        elif not path.startswith(self.roots): self.seen.append(f'read from elsewhere: {path}')

    @contextlib.contextmanager
    def over(self, folder):
        "Only files of `folder`, the system's libraries, hatenb and the encoder it ships with may be read"
        own = [folder.resolve(), sys.prefix, sys.base_prefix, Path(hatenb.__file__).parent, REPOSITORY/'tests',
               encoder_path('minilm')]
        self.roots = (*map(str, own), '/proc/', '/sys/', '/dev/', '/usr/', '/etc/localtime', '/etc/ld.so')
        self.on,self.seen = True,[]
        try: yield self.seen
        finally: self.on = False


@pytest.fixture(scope='session')
def watch(): return Watch()


@pytest.fixture(autouse=True)
def no_training(monkeypatch, request):
    "Whoever trains is caught, whatever becomes of the error"
    if 'good' in request.fixturenames: request.getfixturevalue('good')
    trained = []
    for name in ('hatenb.making._make', 'hatenb.training.Trainer.__init__'):
        monkeypatch.setattr(name, lambda *a, name=name, **k: trained.append(name) or 1/0)
    yield
    assert trained == []


def files_of(folder): return {f.relative_to(folder).as_posix(): f for f in folder.rglob('*') if f.is_file()}
def bytes_of(folder): return {name: f.read_bytes() for name,f in files_of(folder).items()}
def tree(folder): return {name: f.stat().st_size for name,f in files_of(folder).items()}


def tried(watch, folder, change, use):
    "What comes of one changed file: refused, answered, or a fault in words"
    said = change()
    before = tree(folder.parent)
    with watch.over(folder) as seen, within(30), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            use()
            came = 'answered'
        except HatenbError as e: came = 'refused' if e.what and e.place else f'no place: {e}'
        except Exception as e: came = f'{type(e).__name__}: {str(e)[:200]}'
    if seen: came = f'{seen[0]} ({came})'
    elif tree(folder.parent) != before: came = f'files were changed ({came})'
    return came, f'{said}: {came}'


def hostile(watch, folder, kind, change, use, restore, least=0., n=MUTATIONS):
    "Try `n` changes; every one is answered or refused"
    counts,faults = dict(refused=0, answered=0),[]
    for i in range(n):
        came,said = tried(watch, folder, lambda: change(random.Random(f'{kind} {i}')), use)
        if came in counts: counts[came] += 1
        else: faults.append(f'{kind} {i}: {said}')
        restore()
    print(f'\n{kind:24} {counts["refused"]:5} refused {counts["answered"]:5} answered {len(faults):4} faults')
    assert not faults, '\n'.join([f'{len(faults)} of {n}', *faults[:40]])
    assert counts['refused'] >= least*n


# ---------------------------------------------------------------- changes

def odd_values(outside):
    "What nobody writes who means well"
    numbers = [None, True, False, 0, -1, 1, 3, 2.5, -5, 10**9, 10**30, 1e308, math.nan, math.inf]
    texts = ['', 'x', ' ', '\0', '\ud800', 'a'*5000, '{0.__class__}', 'nf4', 'bfloat16', 'full', 'frozen', 'join',
             'merge']
    elsewhere = ['..', '../..', '/etc/passwd', '../outside', str(outside), str(outside/'*'), 'file:///etc/passwd',
                 'minilm', 'owner/name', ['../..']]
    return [*numbers, *texts, *elsewhere, [], {}, [5], [[]], [None], ['x', 'x'], {'x': 1}, {'': {}}, [{}]]


def some_place(d, rng):
    "A container inside of JSON, and a key of it"
    at = d
    while True:
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        if not (isinstance(at[key], (dict, list)) and at[key]) or rng.random() < .2: return at, key
        at = at[key]


NEW_KEYS = ['', 'x', '../x', 'method', 'sources', 'auto_map', '__class__']


def json_change(d, rng, outside):
    "The same JSON with one or a few places changed, and what was done"
    d,done = copy.deepcopy(d),[]
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at,key = some_place(d, rng)
        how,odd = rng.choice(['set']*5+['drop', 'add', 'swap', 'number']),rng.choice(odd_values(outside))
        if how == 'set': at[key] = odd
        elif how == 'drop': del at[key]
        elif how == 'add' and isinstance(at, dict): at[rng.choice(NEW_KEYS)] = odd
        elif how == 'add': at.insert(key, odd)
        elif how == 'swap': at[key] = copy.deepcopy((lambda a, k: a[k])(*some_place(d, rng)))
        elif isinstance(at[key], (int, float)): at[key] = rng.choice([-1, 0, .5, 2, 1e6])*at[key]
        done.append(f'{how} {key!r} {str(odd)[:40]!r}')
        if not d: break
    return d, ', '.join(done)


def text_change(data, rng):
    "The same bytes with something odd somewhere"
    at,to = sorted(rng.randrange(len(data)+1) for _ in range(2))
    to = min(to, at+200)
    odd = [b'', b'\0', b'\xff\xfe', b'NaN', b'['*3000, b'{"a":'*3000, b'9'*6000, b'-1', b'1e999', b'"', b'\\', b'\n',
           b'\r', b',', b';', b'\t', b'\xef\xbb\xbf']
    flipped = bytes(b ^ (1 << rng.randrange(8)) for b in data[at:at+1])
    made = dict(
        cut=lambda: data[:at], insert=lambda: data[:at]+rng.choice(odd)+data[at:],
        replace=lambda: data[:at]+rng.choice(odd)+data[to:], twice=lambda: data[:to]+data[at:],
        flip=lambda: data[:at]+flipped+data[at+1:], whole=lambda: rng.choice(odd), shuffle=lambda: data[to:]+data[:at])
    how = rng.choice(list(made))
    return made[how](), f'{how} at {at}'


def tensors_change(data, rng, outside):
    "A safetensors file with an odd header or odd numbers"
    n = int.from_bytes(data[:8], 'little')
    how = rng.choice(['bytes', 'header', 'length', 'numbers', 'nan'])
    if how == 'bytes': return text_change(data, rng)
    if how == 'length': return rng.choice([0, 1, n-1, n+1, 2**31, 2**63, 2**64-1]).to_bytes(8, 'little')+data[8:], how
    if how == 'header':
        header,said = json_change(json.loads(data[8:8+n]), rng, outside)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, 'little')+text+data[8+n:], said
    at = 8+n+4*rng.randrange((len(data)-8-n)//4)
    odd = rng.choice([np.nan, np.inf]) if how == 'nan' else rng.choice([1e38, -1., 0., 1e-40])
    return data[:at]+np.float32(odd).tobytes()+data[at+4:], f'{how} at {at}'


# ---------------------------------------------------------------- what is changed

@pytest.fixture(scope='module')
def good(tmp_path_factory):
    "A small run, its bundle with an encoder of its own, and a copy outside that nothing may look at"
    root = tmp_path_factory.mktemp('hostile')
    save_encoder(root/'tiny', BertModel(BertConfig(**SIZE, vocab_size=len(vocabulary(*'12345')))), BertTokenizerFast)
    config = RunConfig.from_dict(dict(
        tasks=['mini/label', 'mini/target', 'mini/rationale', 'mini_mhs/score'], encoder=str(root/'tiny'), limit=24,
        max_length=32, adapter_options=dict(r=2), train=dict(epochs=1, batch_size=16)))
    make_run(config, root/'runs')
    run = run_folder(config, root/'runs').folder
    (root/'inside').mkdir()
    shutil.copytree(run, root/'inside'/'run')
    bundle = Detector.from_run(run, dtype='float32').save(root/'inside'/'bundle', whole=True)
    shutil.copytree(bundle, root/'outside')
    shutil.copytree(bundle/'encoder', root/'inside'/'outside')
    return root


def sealed(bundle, d):
    "Write a manifest as its author would"
    d = {k: v for k,v in d.items() if k != 'sha256'} if isinstance(d, dict) else d
    if isinstance(d, dict): d['sha256'] = hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()
    (bundle/'detector.json').write_text(json.dumps(d), encoding='utf-8')


def named_again(bundle, *names):
    "The manifest with the checksums of changed files, as whoever makes such a bundle would have it"
    d = json.loads((bundle/'detector.json').read_text())
    sealed(bundle, dict(d, files=d['files'] | {n: hashlib.sha256((bundle/n).read_bytes()).hexdigest() for n in names}))


def encoded(d): return json.dumps(d).encode()


def change_of_file(bundle, name, outside, known):
    "A change to a file of a bundle, which its manifest names"
    def change(rng):
        data = known[name]
        if name.endswith('.safetensors'): new,said = tensors_change(data, rng, outside)
        elif rng.random() < .3: new,said = text_change(data, rng)
        else:
            new,said = json_change(json.loads(data), rng, outside)
            new = encoded(new)
        (bundle/name).write_bytes(new)
        if name == 'detector.json': return said
        names = [name]
        if name.endswith('adapter.safetensors'):
            config = name.replace('.safetensors', '_config.json')
            d = json.loads(known[config])
            d['hatenb']['sha256'] = hashlib.sha256(new).hexdigest()
            (bundle/config).write_bytes(encoded(d))
            names.append(config)
        if rng.random() < .95: named_again(bundle, *names)
        return said
    return change


def whole(answers):
    "Answers that may leave: JSON without NaN, a class among the classes, probabilities between 0 and 1"
    for a in answers:
        json_line(a)
        assert a.summary() and a.to_html()
        assert all(0 <= v <= 1 for k,values in a.items() if k.endswith('_prob') for v in values.values())


def put_back(folder, known):
    "The folder as it was"
    for f in folder.rglob('*'):
        if f.is_file() and f.relative_to(folder).as_posix() not in known: f.unlink()
    for name,data in known.items():
        if not (folder/name).is_file() or (folder/name).read_bytes() != data: (folder/name).write_bytes(data)


BUNDLE = ['record.json', 'heads.safetensors', 'adapters/shared/adapter.safetensors',
          'adapters/shared/adapter_config.json', 'encoder/tokenizer.json', 'encoder/config.json', 'encoder/model.safetensors']


def opened(bundle):
    d = Detector.from_pretrained(bundle, device='cpu', dtype='float32')
    whole(d(POSTS))
    return d


@pytest.mark.parametrize('name', BUNDLE)
def test_files_of_a_bundle(good, watch, name):
    bundle = good/'inside'/'bundle'
    opened(bundle)                                          # so that libraries have loaded what they load once
    known = bytes_of(bundle)
    change = change_of_file(bundle, name, good/'outside', known)
    restore = lambda: put_back(bundle, known)               # noqa: E731
    hostile(watch, bundle, f'bundle {name}', change, lambda: opened(bundle), restore, n=SOME)


def test_a_tokenizer_that_panics_is_refused():
    "A template whose ends are not in it: Rust panics, and that is no `Exception`"
    t = Tokenizer(models.WordLevel({'[UNK]': 0, 'a': 1}, unk_token='[UNK]'))
    t.post_processor = processors.TemplateProcessing('[CLS] $A', special_tokens=[('[CLS]', 0)])
    d = json.loads(t.to_str())
    d['post_processor']['special_tokens'] = {}
    with pytest.raises(HatenbError, match='the tokenizer is broken.*some file'): check_tokenizer(Tokenizer.from_str(json.dumps(d)), 'some file')


def test_the_manifest_of_a_bundle(good, watch):
    "As a stranger writes it, sealed; or damaged on its way, and then it says what it said or is refused"
    bundle = good/'inside'/'bundle'
    expected = opened(bundle)(POSTS)
    known = bytes_of(bundle)
    plain = change_of_file(bundle, 'detector.json', good/'outside', known)
    damaged = []

    def change(rng):
        damaged[:] = [rng.random() < .3]
        if damaged[0]: return plain(rng)
        d,said = json_change(json.loads(known['detector.json']), rng, good/'outside')
        sealed(bundle, d)
        return said

    def use():
        found = opened(bundle)(POSTS)
        assert found == expected or not damaged[0]
    hostile(watch, bundle, 'bundle detector.json', change, use, lambda: put_back(bundle, known), least=.5)


def test_the_record_of_a_run(good, watch):
    folder = good/'inside'/'run'
    known = bytes_of(folder)

    def change(rng):
        data = known['record.json']
        if rng.random() < .3: new,said = text_change(data, rng)
        else:
            d,said = json_change(json.loads(data), rng, good/'outside')
            new = encoded(d)
        (folder/'record.json').write_bytes(new)
        return said

    def use():
        run = Run(folder)
        for split in ('validation', 'test'): run.predictions(split)
        run.parts()
        run.adapters()
        run.heads()
        records = read_records(folder)
        assert results_text(records) and results_html(records) and metrics_html(records)
    use()
    hostile(watch, folder, 'run record.json', change, use, lambda: put_back(folder, known), least=.3)


STUDY = '''
name = "small"
plan = "Two ways, five seeds."
[base]
tasks = ["mini/label", "mini/target"]
limit = 40
[base.train]
epochs = 1
lr = 2e-3
[[runs]]
seed = [0, 1]
title = "plain, {seed}"
[[runs]]
strategy = "merge"
strategy_options = {rule = "knots"}
sources = [{tasks = ["mini/label"]}, {tasks = ["mini/target"]}]
[[runs]]
adapter = ["seq_bn", "lora"]
balancing = "gradnorm"
draws = 3
train = {lr = {low = 1e-4, high = 1e-2, log = true}}
[[comparisons]]
name = "merged"
runs = {strategy = "merge"}
base = {}
free = ["sources"]
'''


def toml_value(v):
    "An odd value as TOML"
    if v is None: return 'none'
    if isinstance(v, float) and not math.isfinite(v): return 'nan' if math.isnan(v) else 'inf'
    if isinstance(v, dict): return '{' + ', '.join(f'{json.dumps(k)} = {toml_value(x)}' for k,x in v.items()) + '}'
    if isinstance(v, list): return '[' + ', '.join(map(toml_value, v)) + ']'
    return json.dumps(v)


def test_study_files(good, watch):
    folder = good/'inside'/'study'
    folder.mkdir(exist_ok=True)
    files = sorted((REPOSITORY/'studies').glob('*.toml'))
    sources = [STUDY, *(f.read_text() for f in files if f.stat().st_size < 4000)]

    def change(rng):
        lines = rng.choice(sources).splitlines()
        for _ in range(rng.choice([1, 1, 2])):
            at = rng.randrange(len(lines))
            key,sign,_ = lines[at].partition('=')
            odd = rng.choice(odd_values(good/'outside'))
            said = f'{key.strip()} = {str(odd)[:40]!r}'
            new = rng.choice(['draws', 'seed', 'x', 'sources'])
            if sign and rng.random() < .8: lines[at] = f'{key}= {toml_value(odd)}'
            elif rng.random() < .5: lines.insert(at, f'{new} = {toml_value(odd)}')
        data = '\n'.join(lines).encode('utf-8', 'replace')
        if rng.random() < .2: data,said = text_change(data, rng)
        (folder/'s.toml').write_bytes(data)
        return said

    def use():
        s = Study.load(folder/'s.toml')
        assert all(c.name and c.id and json.dumps(c.to_dict()) for c in s.runs)
    hostile(watch, folder, 'study', change, use, lambda: None, least=.3)


def odd_cell(t, rng):
    "A table with one cell, column or row that is off"
    t,column = t.copy(),rng.choice(list(t.columns))
    odd = [None, np.nan, np.inf, -1., 2., 'x', [], [.5], [np.nan]*3, 10**12, '', [[.1]], [2]*3, ['x']*3]
    how = rng.choice(['cell', 'cell', 'drop', 'row', 'empty', 'all', 'rename'])
    if how == 'drop': return t.drop(columns=column), f'drop {column}'
    if how == 'row': return pd.concat([t, t.iloc[[rng.randrange(len(t))]]], ignore_index=True), how
    if how == 'empty': return t.iloc[:0], how
    new = rng.choice(['label', 'score', 'x', 'target_prob'])
    if how == 'rename': return t.rename(columns={column: new}), f'rename {column} {new}'
    value = rng.choice(odd)
    if how == 'all': return t.assign(**{column: [value]*len(t)}), f'all {column} {value!r}'
    values = list(t[column])
    values[rng.randrange(len(t))] = value
    return t.assign(**{column: pd.Series(values, dtype=object)}), f'{column} {value!r}'


def test_predictions(good, watch):
    folder = good/'inside'/'predictions'
    folder.mkdir(exist_ok=True)
    source = next((good/'inside'/'run'/'predictions').glob('test*'))
    table,data = pd.read_parquet(source),source.read_bytes()

    def change(rng):
        if rng.random() < .5:
            new,said = text_change(data, rng)
            (folder/'t.parquet').write_bytes(new)
            return said
        while True:
            odd,said = odd_cell(table, rng)
            try: odd.to_parquet(folder/'t.parquet')
            except Exception: continue                      # a table that parquet cannot hold
            return said

    def use():
        found = evaluate(load_predictions(folder/'t.parquet'), n_boot=0)
        json.dumps(found, allow_nan=False)
    shutil.copy(source, folder/'t.parquet')
    use()
    hostile(watch, folder, 'predictions', change, use, lambda: None, least=.3)


def davidson(n=30):
    votes = ['1,0,0,0', '0,1,0,1', '0,0,1,2']
    rows = [f'{i},3,{votes[i % 3]},"post {i}, it said ""so"" &#128591;"' for i in range(n)]
    return '\n'.join([',count,hate_speech,offensive_language,neither,class,tweet', *rows])


def hatecheck(n=20):
    header = ('functionality,case_id,test_case,label_gold,target_ident,direction,focus_words,focus_lemma,ref_case_id,'
              'ref_templ_id,templ_id')
    rows = [f'derog_neg_emote_h,{i},I hate women {i}.,hateful,women,general,,,,,{i}' for i in range(n)]
    return '\n'.join([header, *rows])


def kaggle(n=30): return '\n'.join(['id,label,tweet', *(f'{i},{i % 2},post {i} here' for i in range(n))])


def hatexplain():
    "The first posts of the made-up corpus, and their split"
    folder = Path(hatenb.__file__).parent/'mini'/'hatexplain'
    posts,splits = (json.loads((folder/n).read_text()) for n in ('dataset.json', 'post_id_divisions.json'))
    splits = {s: ids[:10] for s,ids in splits.items()}
    posts = {i: posts[i] for ids in splits.values() for i in ids}
    return {'dataset.json': json.dumps(posts), 'post_id_divisions.json': json.dumps(splits)}


def hateval(s):
    return '\n'.join(['id,text,HS,TR,AG', *(f'{s}{i},post {s} {i},{i % 2},{i % 2},0' for i in range(12))])


def founta(n=40):
    labels = 'normal', 'hateful', 'abusive', 'spam'
    return '\n'.join(f'post {i} &#128591;\t{labels[i % 4]}\t{1+i % 5}' for i in range(n))


CORPORA = dict(
    hatexplain=hatexplain(), davidson={'labeled_data.csv': davidson()}, hatecheck={'test_suite_cases.csv': hatecheck()},
    kaggle_tweets={'train.csv': kaggle()},
    hateval={f'hateval2019_en_{s}.csv': hateval(s) for s in ('train', 'dev', 'test')},
    founta={'hatespeech_text_label_vote.csv': founta()})


@pytest.mark.parametrize('name', CORPORA)
def test_files_of_corpora(good, watch, name):
    folder = good/'inside'/f'corpus_{name}'
    folder.mkdir(exist_ok=True)
    known = {k: v.encode() for k,v in CORPORA[name].items()}

    def change(rng):
        file = rng.choice(list(known))
        if file.endswith('.json') and rng.random() < .6:
            d,said = json_change(json.loads(known[file]), rng, good/'outside')
            new = encoded(d)
        else: new,said = text_change(known[file], rng)
        (folder/file).write_bytes(new)
        return f'{file} {said}'

    def use():
        for ds in corpora[name].read(folder).values():
            rows = ds[:]
            assert all(isinstance(i, str) for i in rows.get('id', ())) and all(all(w) for w in rows.get('words', ()))
    put_back(folder, known)
    use()
    hostile(watch, folder, f'corpus {name}', change, use, lambda: put_back(folder, known))
