"Corpora that are asked whether a post is toxic: what the real ones hold, hostile files, quirks of formats, and that none to test with is learned from"
import collections, csv, hashlib, io

import pandas as pd
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from hatenb.core import HatenbError
from hatenb.corpora import corpora, load_corpus
from hatenb.studies import RunConfig, Study, run

hypothesis_settings.register_profile('untimed', deadline=None)
hypothesis_settings.load_profile('untimed')


def read(name, folder, **files):
    "Write files (`__` stands for the dot) and read the folder as a corpus"
    for f, text in files.items(): (folder/f.replace('__', '.')).write_bytes(text if isinstance(text, bytes) else text.encode())
    return corpora[name].read(folder)


def every(ds): return [p for d in ds.values() for p in d]
def kaggle(folder, rows): return read('kaggle_tweets', folder, train__csv=rows if isinstance(rows, bytes) else 'id,label,tweet\n' + rows)
def founta(folder, rows): return read('founta', folder, hatespeech_text_label_vote__csv=rows)
def hateval(folder, row, header='id,text,HS,TR,AG\n'):
    return read('hateval', folder, **{f'hateval2019_en_{s}__csv': header + row.replace('ID', str(i)) for i, s in enumerate(('train', 'dev', 'test'))})
def hatecheck(folder, row): return read('hatecheck', folder, test_suite_cases__csv=',functionality,case_id,test_case,label_gold,target_ident\n' + row)
def ethos(folder, binary, labels='a b;.2;0;1;0;0;0;0;.6\n'):
    return read('ethos', folder, Ethos_Dataset_Binary__csv='comment;isHate\n' + binary,
                Ethos_Dataset_Multi_Label__csv='comment;violence;directed_vs_generalized;gender;race;national_origin;disability;religion;sexual_orientation\n' + labels)


# ---- the real ones

def test_davidson(corpora_folder):
    ds = load_corpus('davidson')
    assert collections.Counter(p['kind'] for p in every(ds)) == dict(hate=1430, offensive=19190, neither=4163)
    assert all(p['toxic'] == (p['kind'] != 'neither') for p in every(ds))
    again = pd.read_csv(corpora_folder/'davidson'/'labeled_data.csv')
    assert {p['id']: p['text'] for p in every(ds)} == dict(zip(again.iloc[:, 0].astype(str), again['tweet']))
    sides = {s: {' '.join(p['text'].lower().split()) for p in d} for s, d in ds.items()}
    assert not sides['train'] & sides['test'] and not sides['train'] & sides['validation'] and not sides['validation'] & sides['test']


def test_ethos(corpora_folder):
    posts = every(load_corpus('ethos'))
    assert len(posts) == 998 and sum(p['toxic'] for p in posts) == 433
    said = pd.read_csv(corpora_folder/'ethos'/'Ethos_Dataset_Multi_Label.csv', sep=';').set_index('comment')
    assert len(said) == 433
    communities = {tuple(p['text'].split()): p['community'].split(', ') if p['community'] else [] for p in posts}
    for comment, row in said.iterrows():
        assert communities[tuple(comment.split())] == [c for c in said.columns[2:] if row[c] >= .5]
    assert not any(p['community'] for p in posts if not p['toxic'])


def test_hatecheck(corpora_folder):
    with open(corpora_folder/'hatecheck'/'test_suite_cases.csv', encoding='utf-8', newline='') as f: rows = list(csv.DictReader(f))
    posts = load_corpus('hatecheck')['test']
    assert posts['id'][:] == [r['case_id'] for r in rows] and posts['text'][:] == [r['test_case'] for r in rows]
    assert len(set(posts['kind'][:])) == 29 and len(set(posts['community'][:])-{''}) == 7
    assert all(k.endswith('_h' if y else '_nh') for k, y in zip(posts['kind'][:], posts['toxic'][:]))


@pytest.mark.parametrize('name', ['davidson', 'ethos'])
def test_the_pinned_content_is_that_of_the_files_at_hand(corpora_folder, name):
    for f in corpora[name].files:
        data = (corpora_folder/name/f.name).read_bytes()
        assert f.checksum == 'git:' + hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


# ---- quirks of formats

def test_byte_order_mark_line_ends_and_no_last_one(tmp_path):
    posts = every(kaggle(tmp_path, '\ufeffid,label,tweet\r\n1,0,"a, ""b""\r\nc"\r\n\r\n2,1, nan '.encode()))
    assert sorted((p['id'], p['toxic'], p['text'], p['words']) for p in posts) == [('1', 0, 'a, "b"\r\nc', ['a,', '"b"', 'c']), ('2', 1, ' nan ', ['nan'])]


def test_quotes_mean_nothing_between_tabs(tmp_path):
    assert hateval(tmp_path, 'ID\t"so they said\t1\t0\t1\n', 'id\ttext\tHS\tTR\tAG\n')['train'][0]['text'] == '"so they said'
    assert [p['text'] for p in every(founta(tmp_path, '"a" b\tabusive\t3\n'))] == ['"a" b']


@pytest.mark.parametrize('answers,toxic,kind', [('1,1,1', 1, 'individual, aggressive'), ('1,0,0', 1, 'generic'), ('0,0,0', 0, '')])
def test_hateval_answers(tmp_path, answers, toxic, kind):
    ds = hateval(tmp_path, f'ID,a day,{answers}\n')
    assert {s: [(p['toxic'], p['kind']) for p in d] for s, d in ds.items()} == dict.fromkeys(('train', 'validation', 'test'), [(toxic, kind)])


@pytest.mark.parametrize('text', ['a b\tabusive\t3\na b\tabusive\t5\nx\tspam\t3\n\tspam\t2\nc\tnormal\t3\nd\thateful\t4\n',
                                  '7\ta b\tabusive\t3\n7\ta b\tabusive\t5\n8\tx\tspam\t3\n9\tc\tnormal\t3\n10\td\thateful\t4\n',
                                  'tweet_id,text,label,votes\n7,a b,abusive,3\n7,a b,abusive,5\n8,x,spam,3\n9,c,normal,3\n10,d,hateful,4\n'])
def test_founta_with_and_without_numbers_and_header(tmp_path, text):
    posts = every(founta(tmp_path, text))
    assert sorted((p['text'], p['kind'], p['toxic']) for p in posts) == [('a b', 'abusive', 1)]*2 + [('c', 'normal', 0), ('d', 'hateful', 1)]
    assert len({p['id'] for p in posts}) == 4


def test_ethos_matches_comments_by_their_words(tmp_path):
    posts = ethos(tmp_path, 'c;0.2\na\u00a0 b ;0.6\n')['test']
    assert [(p['toxic'], p['community']) for p in posts] == [(0, ''), (1, 'gender, sexual_orientation')]


@given(st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\0')).filter(lambda x: len(x.split())), min_size=1, max_size=8))
@hypothesis_settings(max_examples=50)
def test_whatever_a_csv_writer_writes_is_read(tmp_path_factory, texts):
    f = io.StringIO(newline='')
    csv.writer(f).writerows([('id', 'label', 'tweet'), *((i, i % 2, x) for i, x in enumerate(texts))])
    posts = every(kaggle(tmp_path_factory.mktemp('k'), f.getvalue().encode()))
    assert sorted((int(p['id']), p['toxic'], p['text']) for p in posts) == [(i, i % 2, x) for i, x in enumerate(texts)]


# ---- bad input: what, and where

BAD = {
    'short row': (kaggle, '1,0,"a\nb"\n2,1\n', '2 cells instead of 3', 'train.csv, line 4'),
    'long row': (kaggle, '1,0,a\n2,1,b,c\n', '4 cells instead of 3', 'train.csv, line 3'),
    'open quote': (kaggle, '1,0,a\n2,1,"b\n3,0,c\n', 'cannot be read', 'train.csv, line 3'),
    'unknown label': (kaggle, '1,0,a\n2,1.0,b\n', "'1.0' is none of 1, 0", 'train.csv, line 3'),
    'twice': (kaggle, '1,0,a\n2,0,b\n1,1,c\n', 'twice', 'train.csv, line 4'),
    'no id': (kaggle, '1,0,a\n,1,b\n', 'no id', 'train.csv, line 3'),
    'no words': (kaggle, '1,0,a\n2,1, \t \n', 'no words', 'train.csv, line 3'),
    'header only': (kaggle, '', 'no posts', 'train.csv'),
    'empty': (kaggle, b'', 'no posts', 'train.csv'),
    'not UTF-8': (kaggle, b'id,label,tweet\n1,0,caf\xe9\n', 'not UTF-8 (byte 22)', 'train.csv'),
    'no column': (kaggle, b'id,tweet\n1,a\n', "'label' is missing", 'train.csv'),
    'HatEval without HS': (lambda d, row: hateval(d, row, 'id,text,HATE,TR,AG\n'), 'ID,a,1,0,0\n', "'HS' is missing", 'hateval2019_en_train.csv'),
    'HatEval, HS': (hateval, 'ID,a,2,0,0\n', "'2' is none of 0, 1", 'hateval2019_en_train.csv, line 2'),
    'HatEval, AG': (hateval, 'ID,a,1,0,x\n', "'x' is none of 0, 1", 'hateval2019_en_train.csv, line 2'),
    'HatEval, two splits': (hateval, '5,a,1,0,0\n', 'is in hateval2019_en_train.csv, too', 'hateval2019_en_dev.csv, line 2'),
    'Founta, label': (founta, 'a\tnormal\t3\nb\trude\t3\n', "'rude' is none of", 'vote.csv, line 2'),
    'Founta, two columns': (founta, 'a\tnormal\n', '2 columns', 'vote.csv'),
    'HateCheck, label': (hatecheck, '0,slur_h,1,you,Hateful,women\n', "'Hateful' is none of hateful, non-hateful", 'test_suite_cases.csv, line 2'),
    'HateCheck, cut off': (hatecheck, '0,slur_h,1,you,hateful\n', '5 cells instead of 6', 'test_suite_cases.csv, line 2'),
    'ETHOS, share': (ethos, 'a b;1\nc;1.5\n', "'1.5' is no share", 'Binary.csv, line 3'),
    'ETHOS, not a number': (ethos, 'a b;1\nc;yes\n', "'yes' is no share", 'Binary.csv, line 3'),
    'ETHOS, unknown comment': (ethos, 'c;1\n', 'not in Ethos_Dataset_Binary.csv', 'Multi_Label.csv, line 2'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_file(tmp_path, name):
    write, text, what, place = BAD[name]
    with pytest.raises(HatenbError) as e: write(tmp_path, text)
    assert what in e.value.what and e.value.place.endswith(place) and e.value.remedy


@pytest.mark.parametrize('name', ['hateval', 'founta', 'kaggle_tweets'])
def test_what_may_not_be_passed_on_says_where_to_put_it(tmp_path, monkeypatch, name):
    for k in ('HATENB_DATA', 'HATENB_CACHE'): monkeypatch.setenv(k, str(tmp_path))
    with pytest.raises(HatenbError) as e: load_corpus(name)
    assert 'cannot be downloaded' in e.value.what
    assert all(f.name in e.value.remedy for f in corpora[name].files) and f'{name}/' in e.value.remedy and corpora[name].homepage in e.value.remedy


# ---- what is there to test with is not learned from

@pytest.mark.parametrize('corpus', ['hatecheck', 'ethos'])
@pytest.mark.parametrize('options', [dict(), dict(method='tfidf'), dict(method='frozen'), dict(method='merge', sources=['runs/x'])])
@pytest.mark.parametrize('task', ['label', 'text', 'score', 'target:1/4'])
def test_no_run_learns_from_it(corpus, options, task):
    with pytest.raises(HatenbError, match='no run may learn or choose from it'): RunConfig(('mini/label', f'{corpus}/{task}'), **options)


def test_no_study_and_no_sources_either():
    with pytest.raises(HatenbError, match='no run may learn'): Study.from_dict(dict(name='s', runs=[dict(tasks=['hatecheck/text'], method='seq_bn')]))
    with pytest.raises(HatenbError, match='no run may learn'): RunConfig(('mini/label',), 'stack', sources=[dict(tasks=['hatecheck/text'], method='seq_bn')])


@pytest.mark.parametrize('method', ['lora', 'tfidf'])
@pytest.mark.parametrize('task', ['label', 'rationale'])
def test_a_question_that_a_corpus_has_no_answers_to(tmp_path, corpora_folder, method, task):
    config = RunConfig((f'davidson/{task}',), method, limit=8)
    with pytest.raises(HatenbError, match='no gold column') as e: run(config, tmp_path)
    assert e.value.place == f'davidson/{task}' and not (tmp_path/config.id/'record.json').exists()
