"Scoring files: every format, hostile rows, processes that are killed, Ray with an actor that dies, Spark"
import csv, json, os, pickle, shutil, signal, subprocess, sys, threading, time
from pathlib import Path

import pyarrow as pa, pyarrow.parquet as pq, pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from hatenb.core import HatenbError
from hatenb.detector import Detector, open_detector, scoring
from hatenb.detector.scoring import Csv, JsonLines, FilePart, Scorer, PostFile, Text, Tsv, score_files
from on_ray import begun_ray, tasks
from toy import save_toy

POSTS = ['the melquins are slur1', 'a fine day', 'insult1 ixarics', '', 'two\nlines, "quoted"', 'caf\u00e9 \U0001F602']


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return str(save_toy(tmp_path_factory.mktemp('toy')/'bundle'))


def write_posts(file, posts):
    "Posts with their numbers, in the format of the file's ending"
    rows = [dict(id=i, text=p) for i, p in enumerate(posts)]
    if file.suffix == '.parquet': pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=4)
    elif file.suffix == '.jsonl': file.write_text(''.join(json.dumps(r)+'\n' for r in rows))
    elif file.suffix == '.txt': file.write_text('\n'.join(p.replace('\n', ' ') for p in posts))
    elif file.suffix == '.tsv': file.write_text('id\ttext\n' + ''.join(f'{i}\t{p.replace(chr(10), " ")}\n' for i, p in enumerate(posts)))
    else:
        with open(file, 'w', newline='', encoding='utf-8') as f:
            out = csv.DictWriter(f, ['id', 'text'])
            out.writeheader()
            out.writerows(rows)


def said(out): return pq.read_table(out).to_pylist()


# ---------------------------------------------------------------- formats

@pytest.mark.parametrize('ending', ['.jsonl', '.csv', '.tsv', '.parquet', '.txt'])
def test_each_format_is_answered_as_the_detector_answers(toy, tmp_path, ending):
    posts = POSTS*2
    write_posts(tmp_path/f'posts{ending}', posts)
    assert score_files([tmp_path], tmp_path/'out', Scorer(toy), most=5)['rows'] == len(posts)
    rows = said(tmp_path/'out')
    assert len(list((tmp_path/'out').rglob('*.parquet'))) == 3
    if ending in ('.txt', '.tsv'): posts = [p.replace('\n', ' ') for p in posts]
    if ending != '.txt': assert [r['id'] for r in rows] == [i if ending in ('.jsonl', '.parquet') else str(i) for i in range(len(posts))]
    for r, p, d in zip(rows, posts, open_detector(toy)(posts), strict=True):
        assert (r['text'], r['label'], r['targets'], r['severity']) == (p, d['label'], d['targets'], d['severity'])
        assert {k: round(v, 6) for k, v in r['label_prob'].items()} == d['label_prob']
        assert [(w['word'], w['start'], w['end']) for w in r['rationale']] == [(w['word'], w['start'], w['end']) for w in d['rationale']]
        assert r['empty'] is d.get('empty', False)


def read_all(format, file, most=3, text='text'):
    "(rows, what is broken) of a file, read part by part in an order of chance"
    schema, parts = format.plan(file, text, most)
    source = PostFile(str(file), file.name, 0, 0, schema, tuple(parts))
    read = {p.number: format.read(source, p, text) for p in reversed(parts)}
    assert [p.rows for p in parts[:-1]] == [most]*(len(parts)-1)
    return [r for n in sorted(read) for r in read[n][0].to_pylist()], [b for n in sorted(read) for b in read[n][1]]


BROKEN = [b'{"text": "a", ', b'[1]', b'{"text": null}', b'{"id": 1}', b'{"text": 1}', b'{"text": "\\ud83d"}', b'{"text": "a", "b": "\\udc00"}',
          b'{"text": "\xff"}', b'['*100_000, b'{"text": "a", "n": '+b'1'*5000+b'}', b'3', b'null', b'\0']


def test_hostile_json_is_left_out_with_its_line_and_the_rest_is_kept(tmp_path):
    file, lines = tmp_path/'a.jsonl', []
    for i, b in enumerate(BROKEN): lines += [b, b'', b'{"text": "good", "n": %d}' % i]
    file.write_bytes(b'\xef\xbb\xbf"also a post"\r\n' + b'\r\n'.join(lines))
    rows, broken = read_all(JsonLines, file)
    assert [r['text'] for r in rows] == ['also a post'] + ['good']*len(BROKEN)
    assert [r['n'] for r in rows] == [None, *range(len(BROKEN))]
    assert [b['line'] for b in broken] == [2+3*i for i in range(len(BROKEN))] and all(b['why'] for b in broken)


def test_hostile_csv_is_left_out_with_its_line_and_the_rest_is_kept(tmp_path):
    file = tmp_path/'a.csv'
    file.write_bytes(b'\xef\xbb\xbftext,id\r\n"a ""quoted""\r\nline",007\r\n\r\nonly one\r\ntoo,many,fields\r\n\xff,2\r\nnul\0,3\r\n"'
                     + b'x'*140_000 + b'",4\r\nlast,5\r\n"never closed,6\r\n')
    rows, broken = read_all(Csv, file)
    assert [(r['text'], r['id']) for r in rows] == [('a "quoted"\r\nline', '007'), ('nul\0', '3'), ('last', '5')]
    assert [b['line'] for b in broken] == [5, 6, 7, 9, 11]


def test_a_quote_that_stays_open_swallows_no_post_in_silence(tmp_path):
    (tmp_path/'a.csv').write_text('id,text\n1,"a\n2,b\n3,c\n')
    assert [(len(rows), [b['line'] for b in broken]) for rows, broken in [read_all(Csv, tmp_path/'a.csv')]] == [(0, [2])]
    (tmp_path/'a.tsv').write_text('id\ttext\n1\ta\n2\t"b\n3\tc"d"\n4\t"e"\n')
    rows, broken = read_all(Tsv, tmp_path/'a.tsv', most=2)
    assert [r['text'] for r in rows] == ['a', '"b', 'c"d"', '"e"'] and not broken


def test_a_line_without_end_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, '_longest', 100)
    (tmp_path/'a.txt').write_text('short\n' + 'x'*1000 + '\n' + 'y'*99 + '\n\nlast')
    rows, broken = read_all(Text, tmp_path/'a.txt', most=2)
    assert [r['text'] for r in rows] == ['short', '', 'last'] and [b['line'] for b in broken] == [2, 3]


def test_parts_are_small_where_posts_are_long(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, '_part_bytes', 1000)
    (tmp_path/'a.txt').write_text('\n'.join(['x'*300]*10))
    assert [p.rows for p in Text.plan(tmp_path/'a.txt', 'text', 100)[1]] == [4, 4, 2]
    pq.write_table(pa.table(dict(text=[str(i)*300 for i in range(10)])), tmp_path/'a.parquet')
    assert max(p.rows for p in scoring.Parquet.plan(tmp_path/'a.parquet', 'text', 100)[1]) < 5


values = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats(allow_nan=False, width=32) | st.text(max_size=3),
                      lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from('ab'), v, max_size=2), max_leaves=4)
objects = st.lists(st.fixed_dictionaries(dict(text=st.text(max_size=3)), optional=dict(a=values, b=values)), min_size=1, max_size=8)


def without_nothing(v):
    "A value without what a column cannot tell from nothing: fields that are null"
    if isinstance(v, dict): return {k: w for k, x in v.items() if (w := without_nothing(x)) is not None}
    return [without_nothing(x) for x in v] if isinstance(v, list) else v


@hypothesis_settings(max_examples=60, deadline=None)
@given(rows=objects)
def test_any_json_comes_back(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp('json')/'a.jsonl'
    file.write_text(''.join(json.dumps(r)+'\n' for r in rows))
    schema, parts = JsonLines.plan(file, 'text', 3)
    source = PostFile(str(file), 'a', 0, 0, schema, tuple(parts))
    tables = [JsonLines.read(source, p, 'text') for p in parts]
    assert not any(b for _, b in tables)
    pq.write_table(pa.concat_tables(t for t, _ in tables), file.with_suffix('.parquet'))
    found = pq.read_table(file.with_suffix('.parquet')).to_pylist()
    as_json = {f.name for f in schema if f.metadata}
    for f, r in zip(found, rows, strict=True):
        f = {k: json.loads(v) if k in as_json and v is not None else v for k, v in f.items()}
        assert without_nothing(f) == without_nothing(r)


# ---------------------------------------------------------------- what is refused

def refused(match, *args, **kwargs):
    with pytest.raises(HatenbError, match=match): score_files(*args, **kwargs)


def test_what_cannot_be_answered_is_said_before_anything_is(toy, tmp_path):
    out = tmp_path/'out'
    (tmp_path/'a.csv').write_text('id,body\n1,a\n')
    refused("no column 'text'.*'id', 'body'", [tmp_path/'a.csv'], out, Scorer(toy))
    (tmp_path/'b.jsonl').write_text('{"body": "a"}\n{"other": 1}\n')
    refused("no column 'text'.*'body'", [tmp_path/'b.jsonl'], out, Scorer(toy))
    pq.write_table(pa.table(dict(text=[1])), tmp_path/'c.parquet')
    refused("'text' is no text but int64", [tmp_path/'c.parquet'], out, Scorer(toy))
    (tmp_path/'d.parquet').write_bytes(b'PAR1 not so')
    refused('not Parquet', [tmp_path/'d.parquet'], out, Scorer(toy))
    (tmp_path/'e.csv').write_text('text,label\na,b\n')
    refused("'label' already.*prefix", [tmp_path/'e.csv'], out, Scorer(toy))
    refused('ends with', [Path(__file__)], out, Scorer(toy))
    refused('there is no engine', [tmp_path/'e.csv'], out, Scorer(toy), engine='nonesuch')
    assert not list(out.rglob('*.parquet'))
    score_files([tmp_path/'e.csv'], out, Scorer(toy, prefix='our_'))
    assert {'label', 'our_label'} <= set(said(out)[0])


def test_files_that_no_format_reads_are_told_of(toy, tmp_path):
    posts = tmp_path/'posts'
    posts.mkdir()
    write_posts(posts/'a.txt', POSTS)
    for name in ('.hidden.md', '_notes.md', *(f'{i}.md' for i in range(7))): (posts/name).touch()
    with pytest.warns(UserWarning, match=r'left out.*: 0\.md, .*4\.md … in '): done = score_files([posts], tmp_path/'out', Scorer(toy))
    assert done['files'] == 1


def test_one_folder_holds_answers_of_one_detector_to_files_as_they_were(toy, tmp_path):
    out, file = tmp_path/'out', tmp_path/'a.txt'
    file.write_text('a fine day\n')
    score_files([file], out, Scorer(toy))
    other = save_toy(tmp_path/'other', 'other')
    refused('another detector', [file], out, Scorer(other))
    (tmp_path/'b.txt').write_text('one more file\n')
    assert score_files([file, tmp_path/'b.txt'], out, Scorer(toy))['now'] == 1
    with scoring._alone(out): refused('another process', [file], out, Scorer(toy))
    file.write_text('changed\n')
    refused('has changed', [file], out, Scorer(toy))


def test_a_scorer_that_is_sent_away_opens_its_detector_as_it_was(toy, tmp_path):
    from dataclasses import replace
    from hatenb.core import write_json
    from hatenb.detector.runtime import OperatingPoint, Runtime, Toxic, read_manifest
    folder = save_toy(tmp_path/'knows', 'knows')
    m = read_manifest(folder)
    knows = m.questions | dict(label=replace(m.questions['label'], evidence='others'))
    points = OperatingPoint('first', .2), OperatingPoint('second', .7)
    write_json(folder/'detector.json', replace(m, questions=knows, toxic=Toxic({'toy/label': 1.}, 0., points)).to_dict())
    sent = pickle.loads(pickle.dumps(Scorer(Runtime(folder, operating_point='second'))))
    assert (sent.model, sent.onnx, sent.operating_point) == (str(folder), True, .7)
    assert isinstance(sent.detector, Runtime) and sent.detector.threshold == .7
    (tmp_path/'a.txt').write_text('a fine day\n')
    score_files([tmp_path/'a.txt'], tmp_path/'out', sent)
    refused('another threshold', [tmp_path/'a.txt'], tmp_path/'out', Scorer(folder))


def test_files_without_posts_are_answered_too(toy, tmp_path):
    for name in ('a.jsonl', 'b.txt', 'd.csv'): (tmp_path/name).touch()
    (tmp_path/'c.csv').write_text('text,id\n')
    pq.write_table(pa.table(dict(text=pa.array([], pa.string()))), tmp_path/'e.parquet')
    (tmp_path/'f.jsonl').write_text('nothing good\n')
    (tmp_path/'d.csv').unlink()
    done = score_files([tmp_path], tmp_path/'out', Scorer(toy))
    assert (done['files'], done['rows'], done['broken']) == (5, 1, 1) and said(tmp_path/'out') == []


def damaged(folder):
    "A Parquet file whose pages are not what its end says"
    file = folder/'damaged.parquet'
    pq.write_table(pa.table(dict(text=['a fine day']*100)), file, use_dictionary=False, compression='none')
    data = bytearray(file.read_bytes())
    data[4:400] = b'\xff'*396
    file.write_bytes(data)
    return file


def test_a_list_of_posts_is_no_json_lines_and_a_file_is_no_folder(toy, tmp_path):
    (tmp_path/'list.json').write_text('[{"text": "hi"}, {"text": "yo"}]')
    p = subprocess.run(command(toy, tmp_path/'list.json', '--out', tmp_path/'out'), capture_output=True, text=True)
    assert p.returncode == 1 and '0 rows' in p.stdout
    assert 'give one post a line' in next((tmp_path/'out'/'_broken').iterdir()).read_text()
    refused('is a file', [tmp_path/'list.json'], tmp_path/'list.json', Scorer(toy))


def test_a_damaged_file_is_named(toy, tmp_path): refused('cannot be read.*damaged', [damaged(tmp_path)], tmp_path/'out', Scorer(toy))


# ---------------------------------------------------------------- killed

def command(toy, *args):
    code = 'import sys; from hatenb.cli import main; sys.argv[0] = "hatenb"; main()'
    return [sys.executable, '-c', code, 'score', '--model', toy, *map(str, args)]


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_process_is_gone_on_with(toy, tmp_path, how):
    posts, out = [f'{POSTS[i % 3]} {i}' for i in range(20_000)], tmp_path/'out'
    write_posts(tmp_path/'a.jsonl', posts)
    with open(tmp_path/'a.jsonl', 'a') as f: f.write('broken\n')
    p = subprocess.Popen(command(toy, tmp_path/'a.jsonl', '--out', out, '--rows', 200), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while len(list(out.glob('*.parquet'))) < 3 and p.poll() is None: time.sleep(.005)
    p.send_signal(how)
    assert p.wait() != 0
    before = {f: f.stat().st_mtime_ns for f in out.glob('*.parquet')}
    assert 3 <= len(before) < 101 and all(pq.read_metadata(f).num_rows == 200 for f in before)
    (out/'.a.jsonl.00029.parquet.1.tmp').touch()               # as a killed process leaves it
    r = subprocess.run(command(toy, tmp_path/'a.jsonl', '--out', out), capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert '20,000 rows' in r.stdout and f'{20_000-200*len(before):,} of them now' in r.stdout and '1 broken' in r.stdout
    assert [(row['id'], row['text']) for row in said(out)] == list(enumerate(posts))
    assert before == {f: f.stat().st_mtime_ns for f in before} and not list(out.rglob('.*.tmp'))
    assert json.loads((out/'_broken'/'a.jsonl.00100.jsonl').read_text())['line'] == 20_001


# ---------------------------------------------------------------- engines

def test_two_workers_of_ray_answer_though_one_is_killed(toy, tmp_path):
    ray = begun_ray()
    posts, out, killed = [f'{POSTS[i % 3]} {i}' for i in range(8000)], tmp_path/'out', []
    for i in range(4): write_posts(tmp_path/f'{i}.jsonl', posts[2000*i:2000*(i+1)])
    def kill_one():
        while not killed and not done.is_set():
            if not list(out.glob('*.parquet')): time.sleep(.02)
            else:
                killed.extend(tasks('Map'))
                for p in killed[:1]: os.kill(p, signal.SIGKILL)
    done = threading.Event()
    thread = threading.Thread(target=kill_one)
    thread.start()
    try:
        found = score_files([tmp_path], out, Scorer(toy), most=200, engine='ray', workers=2)
        done.set()
        with pytest.raises(HatenbError, match='cannot be read.*damaged'): score_files([damaged(tmp_path)], tmp_path/'other', Scorer(toy), engine='ray')
    finally:
        done.set()
        thread.join()
        ray.shutdown()
    assert len(killed) >= 2 and found['rows'] == 8000
    assert [r['text'] for r in sorted(said(out), key=lambda r: (int(r['text'].rsplit(' ', 1)[1])))] == posts
    assert len(list(out.glob('*.parquet'))) == 40 and not list(out.rglob('.*.tmp'))


def test_spark_answers_as_the_detector_does(toy, tmp_path):
    pytest.importorskip('pyspark')
    if not shutil.which('java'): pytest.skip('Spark needs Java')
    from pyspark.sql import SparkSession
    from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
    write_posts(tmp_path/'a.jsonl', POSTS)
    spark = SparkSession.builder.master('local[1]').config('spark.ui.enabled', 'false').getOrCreate()
    try:
        posts, scorer = spark.read.json(str(tmp_path/'a.jsonl')), Scorer(toy, threads=1)
        schema = from_arrow_schema(scorer.schema(to_arrow_schema(posts.schema)))
        pandas, arrow = ([r.asDict(recursive=True) for r in way(scorer, schema).collect()] for way in (posts.mapInPandas, posts.mapInArrow))
    finally: spark.stop()
    assert pandas == arrow == scorer(pa.Table.from_pylist([dict(id=i, text=p) for i, p in enumerate(POSTS)])).to_pylist()


def test_the_embedded_detector_scores():
    "Its `toxic` is a number, heard from several heads, one of which answers a question of the same name"
    detector, texts = Detector.from_pretrained(None, 'cpu', 'float32'), ['you are an idiot', '', 'a fine day']
    rows = Scorer(detector).answers(texts).to_pylist()
    for row, answer in zip(rows, map(detector, texts), strict=True):
        assert row['toxic'] == pytest.approx(answer['toxic'], abs=1e-5) and row['is_toxic'] == answer['is_toxic']
        assert row['label'] == answer['label'] and row['attributes'] == answer['attributes']
        assert set(row)-{'empty'} == set(answer)-{'text', 'empty'}
