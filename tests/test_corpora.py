"Corpora: hostile files, broken transfers, the order of places, and what HateXplain and Measuring Hate Speech hold"
import dataclasses
import hashlib
import http.server
import json
import random
import threading

import httpx
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from hatenb import corpora as C
from hatenb.core import HatenbError
from hatenb.corpora import LABELS, TARGETS, Corpus, RemoteFile, load_corpus

# how long an example takes says nothing on a busy machine
hypothesis_settings.register_profile('untimed', deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile('untimed')


# --- bad input: HateXplain's format ---

@pytest.fixture
def folder(tmp_path):
    "A small corpus in HateXplain's format, to be spoilt"
    C.make_mini(tmp_path, posts=40, comments=5)
    return tmp_path/'hatexplain'


def spoil(folder, change, file='dataset.json'):
    "Apply `change` to the JSON and read the corpus: the error"
    path = folder/file
    obj = json.loads(path.read_text())
    changed = change(obj)
    path.write_text(changed if isinstance(changed, str) else json.dumps(obj))
    with pytest.raises(HatenbError) as e: C.read_hatexplain(folder)
    return e.value


def in_post(key, value): return lambda d: d['0003_mini'].__setitem__(key, value)
def in_annotator(key, value): return lambda d: d['0003_mini']['annotators'][1].__setitem__(key, value)
def marks(value):
    def _add(d):
        words = d['0003_mini']['post_tokens']
        d['0003_mini']['rationales'] = [[0]*len(words), value(words)]
    return _add


BAD_POSTS = {
    'no tokens': (in_post('post_tokens', []), 'no tokens'),
    'tokens null': (in_post('post_tokens', None), "no list 'post_tokens'"),
    'tokens as one text': (in_post('post_tokens', 'a b'), "no list 'post_tokens'"),
    'token is a number': (in_post('post_tokens', ['a', 3]), 'a token is not a text'),
    'half a character': (in_post('post_tokens', ['a', '\ud800']), 'half a character'),
    'no annotators key': (lambda d: d['0003_mini'].pop('annotators') and None, "no list 'annotators'"),
    'no annotators': (in_post('annotators', []), 'no annotators'),
    'nine thousand annotators': (in_post('annotators', [dict(label='normal', target=[])]*9000), '9000 annotators'),
    'nine thousand rationales': (in_post('rationales', [[0]]*9000), '9000 rationales'),
    'annotator is null': (in_post('annotators', [None]), 'no list of targets'),
    'post is a list': (lambda d: d.__setitem__('0003_mini', []), "no list 'post_tokens'"),
    'unknown label': (in_annotator('label', 'hateful'), "unknown label 'hateful'"),
    'label null': (in_annotator('label', None), 'unknown label None'),
    'label a list': (in_annotator('label', ['normal']), 'unknown label'),
    'unknown target': (in_annotator('target', ['Women', 'Martians']), "unknown target 'Martians'"),
    'target a list': (in_annotator('target', [['Women']]), 'unknown target'),
    'target a text': (in_annotator('target', 'Women'), 'no list of targets'),
    'rationale too short': (marks(lambda w: [0]*(len(w)-1)), 'marks for'),
    'rationale too long': (marks(lambda w: [0]*(len(w)+1)), 'marks for'),
    'mark of 2': (marks(lambda w: [2]+[0]*(len(w)-1)), 'rationale 2 holds 2'),
    'mark of one half': (marks(lambda w: [.5]+[0]*(len(w)-1)), 'rationale 2 holds 0.5'),
    'mark a text': (marks(lambda w: ['1']+[0]*(len(w)-1)), "rationale 2 holds '1'"),
    'mark a list': (marks(lambda w: [[1]]+[0]*(len(w)-1)), 'rationale 2 holds [1]'),
    'rationale null': (marks(lambda w: None), 'rationale 2 is not a list'),
}


@pytest.mark.parametrize('name', BAD_POSTS)
def test_bad_post(folder, name):
    change, what = BAD_POSTS[name]
    e = spoil(folder, change)
    assert what in e.what
    assert str(folder/'dataset.json') in e.place and '0003_mini' in e.place and e.remedy


def test_a_train_split_without_posts(folder, tmp_path, monkeypatch):
    path = folder/'post_id_divisions.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(train=[])))
    monkeypatch.setenv('HATENB_DATA', str(tmp_path))
    what = "the split 'train' of the corpus hatexplain has no posts"
    with pytest.raises(HatenbError, match=what) as e: load_corpus('hatexplain')
    assert e.value.place == str(folder) and e.value.remedy


def test_empty_target_list_is_allowed(folder):
    data = json.loads((folder/'dataset.json').read_text())
    for a in data['0003_mini']['annotators']: a['target'] = []
    (folder/'dataset.json').write_text(json.dumps(data))
    post = {p['id']: p for d in C.read_hatexplain(folder).values() for p in d}['0003_mini']
    assert post['target_votes'] == [[], [], []] and not any(post['target'])


def test_truth_values_are_marks(folder):
    data = json.loads((folder/'dataset.json').read_text())
    n = len(data['0003_mini']['post_tokens'])
    data['0003_mini']['rationales'] = [[True]+[0.]*(n-1)]
    (folder/'dataset.json').write_text(json.dumps(data))
    post = {p['id']: p for d in C.read_hatexplain(folder).values() for p in d}['0003_mini']
    assert post['rationale_any'] == [1]+[0]*(n-1)


@pytest.mark.parametrize('file', ['dataset.json', 'post_id_divisions.json'])
def test_truncated_json(folder, file):
    e = spoil(folder, lambda d: json.dumps(d)[:200], file)
    assert str(folder/file) in e.place and 'broken' in e.what and e.remedy


@pytest.mark.parametrize('file', ['dataset.json', 'post_id_divisions.json'])
def test_not_an_object(folder, file):
    e = spoil(folder, lambda d: '[]', file)
    assert str(folder/file) in e.place and e.remedy


@pytest.mark.parametrize('file', ['dataset.json', 'post_id_divisions.json'])
def test_not_utf8(folder, file):
    path = folder/file
    path.write_bytes(path.read_bytes().replace(b'mini', b'm\xe4ni', 1))
    with pytest.raises(HatenbError, match='not UTF-8') as e: C.read_hatexplain(folder)
    assert str(path) in e.value.place and e.value.remedy


def test_duplicate_id(folder):
    e = spoil(folder, lambda d: '{"0003_mini": 1, ' + json.dumps(d)[1:])
    assert 'twice' in e.what and 'dataset.json, post 0003_mini' in e.place and e.remedy


@pytest.mark.parametrize('change,what', [
    (lambda d: d['val'].append('nobody'), 'does not have'),
    (lambda d: d['val'].append(None), 'does not have'),
    (lambda d: d['val'].append(d['train'][0]), 'two splits'),
    (lambda d: d['test'].append(d['test'][0]), 'two splits'),
    (lambda d: d.pop('val') and None, "split 'val' is missing")])
def test_bad_split(folder, change, what):
    e = spoil(folder, change, 'post_id_divisions.json')
    assert what in e.what and 'post_id_divisions.json' in e.place and e.remedy


def test_missing_id_is_named(folder):
    ids = json.loads((folder/'post_id_divisions.json').read_text())
    e = spoil(folder, lambda d: d.pop(ids['test'][2]) and None)
    assert f'post {ids["test"][2]}' in e.place


def test_undecided_post_in_an_official_split(folder):
    def _differ(d):
        for a, l in zip(d[post]['annotators'], LABELS): a['label'] = l
    post = json.loads((folder/'post_id_divisions.json').read_text())['train'][0]
    e = spoil(folder, _differ)
    assert 'differ' in e.what and post in e.place


def test_missing_file(folder):
    (folder/'dataset.json').unlink()
    with pytest.raises(HatenbError, match='missing') as e: C.read_hatexplain(folder)
    assert 'dataset.json' in e.value.place


# --- bad input: scores ---

COMMENTS = pd.DataFrame(dict(comment_id=['1','2','3'], text=['one two','three','four'], n_annotators=['3','4','3'],
                             hatespeech_frac=['0.5','0','1.0'], score_gt_0=['1','','0']))
ROWS = pd.DataFrame(dict(comment_id=[7,7,8], text=['a b','a b','c'], hatespeech=[0.,2.,1.],
                         hate_speech_score=[.5,.5,-1.]))


def share_error(folder, table):
    table.to_csv(folder/'comments.csv', index=False)
    with pytest.raises(HatenbError) as e: C.read_mhs_share(folder)
    assert str(folder/'comments.csv') in e.value.place and e.value.remedy
    return e.value


def mhs_error(folder, table):
    table.to_parquet(folder/'measuring-hate-speech.parquet')
    with pytest.raises(HatenbError) as e: C.read_mhs(folder)
    assert str(folder/'measuring-hate-speech.parquet') in e.value.place and e.value.remedy
    return e.value


def every(ds): return {p['id']: p for d in ds.values() for p in d}


def test_share_reads(tmp_path):
    COMMENTS.to_csv(tmp_path/'comments.csv', index=False)
    posts = every(C.read_mhs_share(tmp_path))
    read = {i: (p['score'], p['score_gt_0'], p['n_annotators']) for i,p in posts.items()}
    assert read == {'1': (.5,1,3), '2': (0,-1,4), '3': (1,0,3)}


@pytest.mark.parametrize('column', ['hatespeech_frac', 'score_gt_0', 'n_annotators'])
@pytest.mark.parametrize('value', ['high', 'nan', 'inf'])
def test_share_not_a_number(tmp_path, column, value):
    e = share_error(tmp_path, COMMENTS.assign(**{column: ['1', value, '1']}))
    assert column in e.what and value in e.what and 'comment 2' in e.place


@pytest.mark.parametrize('column', COMMENTS.columns)
def test_share_missing_column(tmp_path, column):
    assert repr(column) in share_error(tmp_path, COMMENTS.drop(columns=column)).what


def test_share_without_words(tmp_path):
    e = share_error(tmp_path, COMMENTS.assign(text=['one', ' \t', 'x']))
    assert 'no tokens' in e.what and 'comment 2' in e.place


def test_share_twice(tmp_path):
    e = share_error(tmp_path, COMMENTS.assign(comment_id=['1','2','2']))
    assert 'twice' in e.what and 'comment 2' in e.place


BROKEN = [(COMMENTS.to_csv(index=False).encode().replace(b'three', b'thr\xe9e'), 'UTF-8'), (b'', 'cannot be read'),
          (b'comment_id,text\n1,"cut o', 'cannot be read')]


@pytest.mark.parametrize('content,what', BROKEN)
def test_share_broken_file(tmp_path, content, what):
    (tmp_path/'comments.csv').write_bytes(content)
    with pytest.raises(HatenbError, match=what) as e: C.read_mhs_share(tmp_path)
    assert str(tmp_path/'comments.csv') in e.value.place and e.value.remedy


def test_mhs_reads(tmp_path):
    ROWS.to_parquet(tmp_path/'measuring-hate-speech.parquet')
    posts = every(C.read_mhs(tmp_path))
    read = {i: (p['words'], p['score'], p['hatespeech_votes']) for i,p in posts.items()}
    assert read == {'7': (['a','b'], .5, [0,2]), '8': (['c'], -1, [1])}


@pytest.mark.parametrize('column', ['hatespeech', 'hate_speech_score'])
@pytest.mark.parametrize('value', ['high', None, float('inf')])
def test_mhs_not_a_number(tmp_path, column, value):
    values = ['0', '0', value] if isinstance(value, str) else [0., 0., value]
    e = mhs_error(tmp_path, ROWS.assign(**{column: values}))
    assert column in e.what and 'comment 8' in e.place


@pytest.mark.parametrize('column', ROWS.columns)
def test_mhs_missing_column(tmp_path, column):
    assert repr(column) in mhs_error(tmp_path, ROWS.drop(columns=column)).what


@pytest.mark.parametrize('change', [
    dict(text=['a b','other','c']), dict(text=['a b',None,'c']), dict(hate_speech_score=[.5,.6,1.])])
def test_mhs_rows_that_differ(tmp_path, change):
    assert 'comment 7' in mhs_error(tmp_path, ROWS.assign(**change)).place


def test_mhs_without_text_or_id(tmp_path):
    assert 'comment 8' in mhs_error(tmp_path, ROWS.assign(text=['a b','a b',None])).place
    assert 'no comment_id' in mhs_error(tmp_path, ROWS.assign(comment_id=[7,None,8])).what


@pytest.mark.parametrize('keep', [0, 100, -20])
def test_mhs_cut_off(tmp_path, keep):
    path = tmp_path/'measuring-hate-speech.parquet'
    ROWS.to_parquet(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(HatenbError, match='cannot be read') as e: C.read_mhs(tmp_path)
    assert str(path) in e.value.place and e.value.remedy


# --- gold rules ---

names = st.sampled_from((*TARGETS, 'None', 'Men', 'Indian'))

@st.composite
def annotated(draw):
    n = draw(st.integers(1, 12))
    rows = draw(st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), max_size=3))
    labels = draw(st.lists(st.integers(0, 2), min_size=3, max_size=3))
    targets = draw(st.lists(st.lists(names, max_size=4), min_size=3, max_size=3))
    return n, labels, targets, rows


@given(annotated())
def test_gold_is_the_naive_gold(post):
    n, labels, targets, rows = post
    g = C.gold(n, labels, targets, rows)
    agreed = [l for l in range(3) if sum(v == l for v in labels) >= 2]
    assert g['label'] == (agreed[0] if agreed else -1)
    np.testing.assert_allclose(g['label_dist'], [sum(v == l for v in labels)/3 for l in range(3)])
    for t, is_gold, share in zip(TARGETS, g['target'], g['target_dist']):
        named = sum(t in v for v in targets)
        assert is_gold == (named >= 2) and share == pytest.approx(named/3)
    for w in range(n):
        column = [r[w] for r in rows]
        assert g['rationale_any'][w] == any(column)
        assert g['rationale_majority'][w] == (sum(column) >= 2)
        assert g['rationale_mean'][w] == pytest.approx(np.mean(column) if rows else 0)


def test_fleiss_kappa_of_a_worked_example():
    # table of Fleiss (1971) as it is reprinted everywhere: 10 subjects, 14 raters, kappa .210
    counts = np.array([[0,0,0,0,14],[0,2,6,4,2],[0,0,3,5,6],[0,3,9,2,0],[2,2,8,1,1],
                       [7,7,0,0,0],[3,2,6,3,0],[2,5,3,2,2],[6,5,2,1,0],[0,2,2,3,7]])
    assert C.fleiss_kappa(counts) == pytest.approx(.210, abs=5e-4)


# --- the split by comment ---

@hypothesis_settings(max_examples=20)
@given(st.randoms(use_true_random=False), st.integers(0, 3))
def test_split_is_independent_of_the_order_of_rows(tmp_path_factory, rng, seed):
    folder = tmp_path_factory.mktemp('mhs')
    rows = [dict(comment_id=i, text=f'text {i}', hatespeech=float(j), hate_speech_score=i/10)
            for i in range(40) for j in range(2)]
    def _read(rows):
        pd.DataFrame(rows).to_parquet(folder/'measuring-hate-speech.parquet')
        return {s: [(p['id'], p['score']) for p in d] for s,d in C.read_mhs(folder, seed).items()}
    expected = _read(rows)
    rng.shuffle(rows)
    assert _read(rows) == expected


@given(st.text(), st.integers(0, 5))
def test_split_sees_words_only(text, seed):
    split = C.split_of(text, seed)
    assert split in ('train','validation','test')
    assert C.split_of(f' {text}\n', seed) == C.split_of('  '.join(text.split()), seed) == split


# --- downloads ---

class Publisher(http.server.BaseHTTPRequestHandler):
    "Serves `content`; what goes wrong is set on the server"
    def do_GET(self):
        s, start = self.server, 0
        s.requests.append(dict(self.headers))
        if s.status != 200: return self.send_error(s.status)
        if s.ranges and (asked := self.headers.get('Range')):
            start = int(asked.removeprefix('bytes=').removesuffix('-'))
            if start >= len(s.content): return self.send_error(416)
        body = s.content[start:]
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body[:s.cut] if s.cut is not None else body)

    def log_message(self, *args): pass


@pytest.fixture
def publisher():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Publisher)
    server.content, server.requests = random.Random(0).randbytes(200_000), []
    server.status, server.ranges, server.cut = 200, True, None
    server.url = f'http://127.0.0.1:{server.server_port}/file.bin'
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def sha(content): return 'sha256:' + hashlib.sha256(content).hexdigest()
def remote(p, **kwargs):
    return RemoteFile('file.bin', p.url, **{'checksum': sha(p.content), 'size': len(p.content)} | kwargs)



def names_in(folder): return sorted(p.name for p in folder.iterdir())


def git_blob(content): return 'git:' + hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


@pytest.mark.parametrize('checksum', [sha, git_blob, lambda c: ''])
def test_download(publisher, tmp_path, checksum):
    path = C.download(remote(publisher, checksum=checksum(publisher.content)), tmp_path/'new')
    assert path.read_bytes() == publisher.content and names_in(tmp_path/'new') == ['file.bin']


@pytest.mark.parametrize('ranges', [True, False])
def test_broken_transfer_leaves_nothing_and_goes_on(publisher, tmp_path, ranges):
    publisher.ranges, publisher.cut = ranges, 70_000
    with pytest.raises(httpx.HTTPError): C.download(remote(publisher), tmp_path)
    assert not (tmp_path/'file.bin').exists()
    have = (tmp_path/'.file.bin.part').stat().st_size
    assert 0 < have <= 70_000
    publisher.cut = None
    assert C.download(remote(publisher), tmp_path).read_bytes() == publisher.content
    assert publisher.requests[-1]['Range'] == f'bytes={have}-' and names_in(tmp_path) == ['file.bin']


def test_without_a_checksum_a_transfer_starts_again(publisher, tmp_path):
    publisher.cut = 1000
    with pytest.raises(httpx.HTTPError): C.download(remote(publisher, checksum=''), tmp_path)
    publisher.cut, publisher.content = None, b'another version'*1000
    assert C.download(remote(publisher, checksum=''), tmp_path).read_bytes() == publisher.content
    assert 'Range' not in publisher.requests[-1]


def test_a_part_of_another_version_is_thrown_away(publisher, tmp_path):
    (tmp_path/'.file.bin.part').write_bytes(b'of another version')
    assert C.download(remote(publisher), tmp_path).read_bytes() == publisher.content
    assert ['Range' in r for r in publisher.requests] == [True, False]


def test_a_whole_part_only_gets_its_name(publisher, tmp_path):
    (tmp_path/'.file.bin.part').write_bytes(publisher.content)
    assert C.download(remote(publisher), tmp_path).read_bytes() == publisher.content


@pytest.mark.parametrize('claim,what', [
    (dict(checksum=sha(b'')), 'checksum'), (dict(checksum=git_blob(b'')), 'checksum'),
    (dict(size=7), 'bytes instead of 7')])
def test_another_file_than_expected(publisher, tmp_path, claim, what):
    with pytest.raises(HatenbError, match=what) as e: C.download(remote(publisher, **claim), tmp_path)
    assert publisher.url in e.value.place and e.value.remedy and names_in(tmp_path) == []


@pytest.fixture
def corpus(publisher, tmp_path, monkeypatch):
    "A corpus that exists only at the publisher; cache and data folder are empty"
    for k,v in dict(HATENB_DATA=tmp_path/'data', HATENB_CACHE=tmp_path/'cache').items(): monkeypatch.setenv(k, str(v))
    monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)
    def _read(folder): return dict(train=(folder/'file.bin').read_bytes())
    c = Corpus('made', 'Made', 'made', (remote(publisher),), _read, homepage='https://example.org/made')
    monkeypatch.setitem(C.corpora, 'made', c)
    return c


def test_folder_then_cache_then_publisher(publisher, corpus, tmp_path):
    assert load_corpus('made')['train'] == publisher.content and len(publisher.requests) == 1
    assert C.locate(corpus) == tmp_path/'cache'/'corpora'/'made'
    assert load_corpus('made')['train'] == publisher.content and len(publisher.requests) == 1     # from the cache
    (tmp_path/'data'/'made').mkdir(parents=True)
    (tmp_path/'data'/'made'/'file.bin').write_bytes(b'mine')
    assert load_corpus('made')['train'] == b'mine' and len(publisher.requests) == 1      # the data folder comes first


def test_checksum_follows_the_content(corpus, tmp_path):
    first = C.corpus_checksum('made')
    assert C.corpus_checksum('made') == first
    (tmp_path/'cache'/'corpora'/'made'/'file.bin').write_bytes(b'other')
    assert C.corpus_checksum('made') != first


def says_everything(e, publisher, tmp_path):
    folders = str(tmp_path/'data'/'made'), str(tmp_path/'cache'/'corpora'/'made')
    for part in (*folders, 'file.bin', publisher.url, 'HATENB_DATA', 'https://example.org/made'): assert part in str(e)
    assert not (tmp_path/'cache'/'corpora'/'made'/'file.bin').exists()


@pytest.mark.parametrize('status', [404, 500])
def test_publisher_refuses(publisher, corpus, tmp_path, status):
    publisher.status = status
    with pytest.raises(HatenbError, match=str(status)) as e: load_corpus('made')
    says_everything(e.value, publisher, tmp_path)


def test_publisher_breaks_off(publisher, corpus, tmp_path):
    publisher.cut = 100
    with pytest.raises(HatenbError) as e: load_corpus('made')
    says_everything(e.value, publisher, tmp_path)
    publisher.cut = None
    assert load_corpus('made')['train'] == publisher.content


def test_no_server(publisher, corpus, tmp_path):
    publisher.shutdown()
    publisher.server_close()
    with pytest.raises(HatenbError) as e: load_corpus('made')
    says_everything(e.value, publisher, tmp_path)


def test_offline_is_said(publisher, corpus, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(HatenbError, match='HF_HUB_OFFLINE'): load_corpus('made')
    assert not publisher.requests


def test_what_cannot_be_downloaded(corpus):
    with pytest.raises(HatenbError, match='comments.csv cannot be downloaded') as e: load_corpus('mhs_share')
    assert 'measuring_hate_speech' in str(e.value)


def test_no_folder_is_set(corpus, publisher, tmp_path, monkeypatch):
    publisher.status = 404
    monkeypatch.delenv('HATENB_DATA')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HatenbError, match='data folder: none is set'): load_corpus('made')


def test_a_copy_by_another_name_is_found(corpus, publisher, tmp_path, monkeypatch):
    monkeypatch.setitem(C.corpora, 'made', dataclasses.replace(corpus, files=(remote(publisher, also=('copy.bin',)),),
                                                                read=lambda folder: dict(train=[folder])))
    (tmp_path/'data'/'made').mkdir(parents=True)
    (tmp_path/'data'/'made'/'copy.bin').write_bytes(b'mine')
    assert load_corpus('made')['train'] == [tmp_path/'data'/'made'] and not publisher.requests
    assert C.corpora['made'].files[0].path(tmp_path/'data'/'made').name == 'copy.bin'
    first = C.corpus_checksum('made')
    (tmp_path/'data'/'made'/'copy.bin').write_bytes(b'other')
    assert C.corpus_checksum('made') != first


def test_posts_are_counted_once_for_each_version(corpus, publisher, tmp_path, monkeypatch):
    reads = []
    def _read(folder): return reads.append(folder) or dict(train=[1,2])
    monkeypatch.setitem(C.corpora, 'made', dataclasses.replace(corpus, read=_read))
    assert C.posts_of_corpus('made') == C.posts_of_corpus('made') == dict(train=2) and len(reads) == 1
    (tmp_path/'cache'/'corpora'/'made'/'file.bin').write_bytes(b'other')
    assert C.posts_of_corpus('made') == dict(train=2) and len(reads) == 2
    for kept in (tmp_path/'cache'/'counts').iterdir(): kept.write_text('{')
    assert C.posts_of_corpus('made') == dict(train=2) and len(reads) == 3


def test_table_of_corpora_survives_a_broken_one(tmp_path, monkeypatch):
    monkeypatch.setenv('HATENB_DATA', str(tmp_path))
    (tmp_path/'hatexplain').mkdir()
    for f in ('dataset.json','post_id_divisions.json'): (tmp_path/'hatexplain'/f).write_text('{')
    table = C.corpora_table().set_index('corpus')
    assert 'broken' in table.at['hatexplain','where'] and 'train' in table.at['mini','posts']


# --- the real corpora ---

@pytest.fixture(scope='module')
def hatexplain(corpora_folder): return C.read_hatexplain(corpora_folder/'hatexplain')


def test_hatexplain_counts(hatexplain):
    assert {s: len(d) for s,d in hatexplain.items()} == dict(train=15383, validation=1922, test=1924, undecided=919)
    gold = np.concatenate([hatexplain[s]['label'][:] for s in ('train','validation','test')])
    assert np.bincount(gold).tolist() == [7814, 5480, 5935]
    assert set(hatexplain['undecided']['label'][:]) == {-1}


def test_hatexplain_is_in_the_order_of_the_split(hatexplain, corpora_folder):
    ids = json.loads((corpora_folder/'hatexplain'/'post_id_divisions.json').read_text())
    splits = ('train','train'),('validation','val'),('test','test')
    assert all(hatexplain[ours]['id'][:] == ids[theirs] for ours,theirs in splits)


def test_hatexplain_gold_is_the_gold_of_the_file(hatexplain, corpora_folder):
    data = json.loads((corpora_folder/'hatexplain'/'dataset.json').read_text())
    for d in hatexplain.values():
        for p in d.select(range(0, len(d), 7)):
            raw = data[p['id']]
            assert p['words'] == raw['post_tokens'] and len(p['rationale_any']) == len(p['words'])
            assert p['target'] == [int(sum(t in a['target'] for a in raw['annotators']) >= 2) for t in TARGETS]
            marked = [int(any(c)) for c in zip(*raw['rationales'])] or [0]*len(p['words'])
            assert p['rationale_any'] == marked


def test_mhs_share_counts(corpora_folder):
    ds = C.read_mhs_share(corpora_folder/'measuring_hate_speech')
    assert sum(len(d) for d in ds.values()) == 17352
    for s,share in (('train',.8),('validation',.1),('test',.1)):
        assert len(ds[s])/17352 == pytest.approx(share, abs=.01)
    texts = [{' '.join(w).lower() for w in d['words'][:]} for d in ds.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_mhs_reads_the_published_columns(corpora_folder, tmp_path):
    table = pd.read_csv(corpora_folder/'measuring_hate_speech'/'annotation_sample_99_full_columns.csv')
    table.to_parquet(tmp_path/'measuring-hate-speech.parquet')
    posts = every(C.read_mhs(tmp_path))
    assert set(posts) == set(table['comment_id'].astype(str))
    assert sum(len(p['hatespeech_votes']) for p in posts.values()) == len(table) == 99
    for r in table.itertuples():
        p = posts[str(r.comment_id)]
        assert p['text'] == r.text and p['score'] == pytest.approx(r.hate_speech_score)
        assert r.hatespeech in p['hatespeech_votes']
