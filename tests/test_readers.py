"Readers of other publishers than HateXplain's: what the real corpora hold, quirks of formats, hostile files"
import ast
import collections
import csv
import functools
import hashlib
import io
import re
import warnings

import pandas as pd
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from hatenb.core import HatenbError
from hatenb.corpora import corpora, load_corpus
from hatenb.corpora.tables import is_quoted, read_table

hypothesis_settings.register_profile('untimed', deadline=None)
hypothesis_settings.load_profile('untimed')


# ---- the real ones

@functools.cache
def real(name): return load_corpus(name)


@functools.cache
def posts_of(name): return [p for d in real(name).values() for p in d]


def sizes(name): return {s: len(d) for s, d in real(name).items()}
def counts(name, column): return collections.Counter(p[column] for p in posts_of(name))
def table(folder, name, sep=','): return pd.read_csv(folder/name, sep=sep, dtype=str, keep_default_na=False)


def named(name, posts=None):
    "How many posts have each community (or other output) of a multilabel question"
    corpus, _, question = name.partition('/')
    q = corpora[corpus].question(question)
    each = collections.Counter()
    for p in posts or posts_of(corpus): each.update(o for o, y in zip(q.outputs, p[q.column]) if y)
    return each


def no_words_on_two_sides(name):
    sides = {s: {' '.join(p['text'].lower().split()) for p in d} for s, d in real(name).items()}
    return not any(sides[a] & sides[b] for a, b in (('train', 'test'), ('train', 'validation'), ('validation', 'test')))


def test_davidson(corpora_folder):
    assert counts('davidson', 'kind') == dict(hate=1430, offensive=19190, neither=4163)
    assert counts('davidson', 'class') == {0: 4163, 1: 19190, 2: 1430}
    assert all(p['toxic'] == (p['class'] > 0) for p in posts_of('davidson'))
    again = pd.read_csv(corpora_folder/'davidson'/'labeled_data.csv')
    assert {p['id']: p['text'] for p in posts_of('davidson')} == dict(zip(again.iloc[:, 0].astype(str), again['tweet']))
    columns = again['neither'], again['offensive_language'], again['hate_speech']
    votes = dict(zip(again.iloc[:, 0].astype(str), zip(*columns)))
    for p in posts_of('davidson'):
        n = len(p['class_votes'])
        assert tuple(p['class_votes'].count(i) for i in range(3)) == votes[p['id']]
        assert p['class_dist'] == pytest.approx([v/n for v in votes[p['id']]])
    assert no_words_on_two_sides('davidson')


def test_ethos(corpora_folder):
    posts = posts_of('ethos')
    assert len(posts) == 998 and sum(p['toxic'] for p in posts) == 433
    said = pd.read_csv(corpora_folder/'ethos'/'Ethos_Dataset_Multi_Label.csv', sep=';').set_index('comment')
    assert len(said) == 433
    communities = {tuple(p['text'].split()): p['community'].split(', ') if p['community'] else [] for p in posts}
    for comment, row in said.iterrows():
        assert communities[tuple(comment.split())] == [c for c in said.columns[2:] if row[c] >= .5]
    assert not any(p['community'] for p in posts if not p['toxic'])


def test_hatecheck(corpora_folder):
    rows = table(corpora_folder/'hatecheck', 'test_suite_cases.csv')
    posts = real('hatecheck')['test']
    assert posts['id'][:] == list(rows['case_id']) and posts['text'][:] == list(rows['test_case'])
    assert len(set(posts['kind'][:])) == 29 and len(set(posts['community'][:])-{''}) == 7
    assert all(k.endswith('_h' if y else '_nh') for k, y in zip(posts['kind'][:], posts['toxic'][:]))


def test_hatecheck_groups_are_communities_of_other_corpora(corpora_folder):
    hateful = [p for p in posts_of('hatecheck') if p['targeted']]
    assert all(p['toxic'] and sum(p['target']) == 1 for p in hateful)
    groups = collections.Counter(p['community'] for p in posts_of('hatecheck') if p['toxic'] and p['community'])
    assert sorted(named('hatecheck/target').values()) == sorted(groups.values())
    known = set(corpora['hatexplain'].question('target').outputs) | set(corpora['hatemoji'].question('target').outputs)
    assert set(corpora['hatecheck'].question('target').outputs) <= known


def test_dynahate(corpora_folder):
    rows = table(corpora_folder/'dynahate', 'text_label_split.csv')
    assert sizes('dynahate') == dict(train=32897, validation=4098, test=4116) and len(rows) == 41111
    assert counts('dynahate', 'toxic') == {1: 22154, 0: 18957}
    assert {p['text']: str(p['toxic']) for p in posts_of('dynahate')} == dict(zip(rows['text'], rows['label']))


@pytest.mark.parametrize('question', ['type', 'target'])
def test_dynahate_at_hand_answers_toxic_alone(corpora_folder, question):
    load_corpus('dynahate', 'toxic')
    with pytest.raises(HatenbError, match=f'do not answer {question!r}') as e: load_corpus('dynahate', question)
    assert e.value.place.endswith('dynahate') and 'v0.2.3.csv' in e.value.remedy and 'bvidgen' in e.value.remedy


def test_hatemoji(corpora_folder):
    assert sizes('hatemoji') == dict(train=4728, validation=591, test=593)
    assert counts('hatemoji', 'toxic') == {1: 2965, 0: 2947}
    types = corpora['hatemoji'].question('type').outputs
    assert {types[k] if k >= 0 else 'none': n for k, n in counts('hatemoji', 'type').items()} == dict(
        none=2947, derogation=1961, animosity=568, dehumanizinglanguage=233, threateninglanguage=203)
    assert all((p['type'] >= 0) == bool(p['typed']) == bool(p['toxic']) and p['targeted'] for p in posts_of('hatemoji'))
    by_id = {p['id']: p for p in posts_of('hatemoji')}
    assert all(by_id[p['partner']]['partner'] == p['id'] for p in by_id.values() if p['partner'] in by_id)


def test_hatemoji_targets_are_the_codes_of_the_file(corpora_folder):
    folder = corpora_folder/'hatemoji'
    cells = [ast.literal_eval(x) for s in ('train', 'validation', 'test')
             for x in table(folder, f'HatemojiBuild_{s}.csv')['target']]
    def posts_with(*codes): return sum(any(c in codes for c in cell) for cell in cells)
    n = named('hatemoji/target')
    assert n['African'] == posts_with('bla', 'african', 'blawom', 'blaman')
    assert n['Islam'] == posts_with('mus', 'muswom')
    assert n['Disability'] == posts_with('dis') == 178 and n['Jewish'] == posts_with('jew') == 153
    women = 'wom', 'blawom', 'muswom', 'asiwom', 'indwom', 'indigwom', 'mexwom', 'sikhwom'
    assert n['Women'] == posts_with(*women)
    assert all(sum(p['target']) > 0 for p in posts_of('hatemoji') if p['toxic'])
    assert not any(sum(p['target']) for p in posts_of('hatemoji') if not p['toxic'])


def test_toxic_spans(corpora_folder):
    posts = posts_of('toxic_spans')
    assert len(posts) == 16100-1 and sizes('toxic_spans') == dict(train=13363, validation=723, test=2013)
    assert named('toxic_spans/attribute') == {
        'insult': 9409, 'profanity': 614, 'identity attack': 476, 'other': 163, 'threat': 156}
    annotators = collections.Counter(len(p['rationale_votes']) for p in posts)
    assert annotators == {3: 13200, 7: 2503, 4: 258, 5: 123, 6: 15}
    assert sum(k*n for k, n in annotators.items()) == 59215-357
    assert no_words_on_two_sides('toxic_spans')


def test_toxic_spans_marks_are_the_characters_of_the_file(corpora_folder):
    folder = corpora_folder/'toxic_spans'
    annotations = table(folder, 'annotations.csv').set_index('annotation')['comment_id']
    spans = table(folder, 'spans.csv')
    characters = collections.defaultdict(set)
    for i, b, e in zip(spans['annotation'], spans['start'], spans['end']):
        characters[annotations[i]] |= {*range(int(b), int(e))}
    for p in posts_of('toxic_spans')[::23]:
        words = list(re.finditer(r'\S+', p['text']))
        marked = characters[p['id']]
        assert p['words'] == [m[0] for m in words]
        assert p['rationale_any'] == [int(any(k in marked for k in range(*m.span()))) for m in words]
        rows = p['rationale_votes']
        assert p['rationale_majority'] == [int(sum(c) >= 2) for c in zip(*rows)] and p['marked'] == any(map(any, rows))
        assert p['rationale_mean'] == pytest.approx([sum(c)/len(rows) for c in zip(*rows)])


def test_toxic_spans_keeps_the_official_split(corpora_folder):
    for split, file, n in (('validation', 'tsd_trial.csv', 690), ('test', 'tsd_test.csv', 2000)):
        texts = set(table(corpora_folder/'toxic_spans', file)['text'])
        assert len(texts) == n and len(texts - {p['text'] for p in real('toxic_spans')[split]}) <= 1


def test_implicit_hate(corpora_folder):
    assert counts('implicit_hate', 'class') == {0: 13291, 1: 7100, 2: 1089} and len(posts_of('implicit_hate')) == 21480
    categories = corpora['implicit_hate'].question('category').outputs
    assert {categories[k]: n for k, n in counts('implicit_hate', 'category').items() if k >= 0} == dict(
        grievance=1506, incitement=1239, stereotypes=1105, inferiority=859, irony=796, threats=666, other=79)
    assert all(p['class'] == 1 for p in posts_of('implicit_hate') if p['categorised'] or p['targeted'])
    assert sum(p['targeted'] for p in posts_of('implicit_hate')) == 6223
    assert all(sum(p['target']) > 0 and p['statements'] for p in posts_of('implicit_hate') if p['targeted'])
    assert named('implicit_hate/target')['Caucasian'] == 1762
    assert not any('\t' in p['text'] for p in posts_of('implicit_hate'))
    assert no_words_on_two_sides('implicit_hate')


def test_edos(corpora_folder):
    assert sizes('edos') == dict(train=14000, validation=2000, test=4000)
    assert counts('edos', 'sexist') == {0: 15146, 1: 4854}
    assert counts('edos', 'category') == {-1: 15146, 0: 443, 1: 2271, 2: 1665, 3: 475}
    assert len(counts('edos', 'kind')) == 12 and all((p['category'] >= 0) == p['sexist'] for p in posts_of('edos'))


@pytest.mark.parametrize('name', ['davidson', 'ethos'])
def test_the_pinned_content_is_that_of_the_files_at_hand(corpora_folder, name):
    for f in corpora[name].files:
        data = (corpora_folder/name/f.name).read_bytes()
        assert f.checksum == 'git:' + hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


# ---- quirks of formats

def read(name, folder, **files):
    "Write files (`__` stands for the dot) and read the folder as a corpus"
    for f, text in files.items():
        (folder/f.replace('__', '.')).write_bytes(text if isinstance(text, bytes) else text.encode())
    return corpora[name].read(folder)


def every(ds): return [p for d in ds.values() for p in d]


def kaggle(folder, rows):
    return read('kaggle_tweets', folder, train__csv=rows if isinstance(rows, bytes) else 'id,label,tweet\n' + rows)


def founta(folder, rows, name='hatespeech_text_label_vote_RESTRICTED_100K.csv'):
    return read('founta', folder, **{name: rows})


def hateval(folder, row, header='id,text,HS,TR,AG\n'):
    splits = enumerate(('train', 'dev', 'test'))
    files = {f'hateval2019_en_{s}__csv': header + row.replace('ID', str(i)) for i, s in splits}
    return read('hateval', folder, **files)


def hatecheck(folder, row):
    header = ',functionality,case_id,test_case,label_gold,target_ident\n'
    return read('hatecheck', folder, test_suite_cases__csv=header + row)


def ethos(folder, binary, labels='a b;.2;0;1;0;0;0;0;.6\n'):
    header = ('comment;violence;directed_vs_generalized;gender;race;national_origin;disability;religion;'
              'sexual_orientation\n')
    return read('ethos', folder, Ethos_Dataset_Binary__csv='comment;isHate\n' + binary,
                Ethos_Dataset_Multi_Label__csv=header + labels)


def davidson(folder, row):
    header = ',count,hate_speech,offensive_language,neither,class,tweet\n'
    return read('davidson', folder, labeled_data__csv=header + row)


def dynahate(folder, rows, header='acl.id,text,label,type,target,level,split\n'):
    return read('dynahate', folder, **{'Dynamically Generated Hate Dataset v0.2.3.csv': header + rows})


def edos(folder, row):
    header = 'rewire_id,text,label_sexist,label_category,label_vector,split\n'
    return read('edos', folder, edos_labelled_aggregated__csv=header + row)


def toxic_spans(folder, spans, comments='7,you slur1\n', annotations='0,7,1,USA,False,False\n1,7,2,USA,False,False\n'):
    files = {f'tsd_{s}__csv': 'spans,text\n"[0]",elsewhere\n' for s in ('train', 'trial', 'test')}
    return read('toxic_spans', folder, comments__csv='comment_id,comment_text\n' + comments,
                spans__csv='annotation,type,start,end\n' + spans, **files,
                annotations__csv='annotation,comment_id,worker,country,all toxic,not toxic\n' + annotations)


def implicit_hate(folder, first, second='x\tirony\t\n', third='x\twomen\ty\n'):
    return read('implicit_hate', folder, implicit_hate_v1_stg1_posts__tsv='post\tclass\n' + first,
                implicit_hate_v1_stg2_posts__tsv='post\timplicit_class\textra_implicit_class\n' + second,
                implicit_hate_v1_stg3_posts__tsv='post\ttarget\timplied_statement\n' + third)


def tweeteval(folder, labels, texts='a\nb\n'):
    files = [(f'{s}_text__txt', f'{s}_labels__txt') for s in ('train', 'val', 'test')]
    return read('tweeteval', folder, **{f: x for pair in files for f, x in zip(pair, (texts, labels))})


def test_byte_order_mark_line_ends_and_no_last_one(tmp_path):
    posts = every(kaggle(tmp_path, '\ufeffid,label,tweet\r\n1,0,"a, ""b""\r\nc"\r\n\r\n2,1, nan '.encode()))
    assert sorted((p['id'], p['toxic'], p['text'], p['words']) for p in posts) == [
        ('1', 0, 'a, "b"\r\nc', ['a,', '"b"', 'c']), ('2', 1, ' nan ', ['nan'])]


def test_quotes_mean_nothing_between_tabs(tmp_path):
    tabs = hateval(tmp_path, 'ID\t"so they said\t1\t0\t1\n', 'id\ttext\tHS\tTR\tAG\n')
    assert tabs['train'][0]['text'] == '"so they said'
    assert [p['text'] for p in every(founta(tmp_path, '"a" b\tabusive\t3\n'))] == ['"a" b']


def test_unless_the_whole_file_is_quoted(tmp_path):
    rows = '"Here\'s a ""cure"" &#128591;"\tabusive\t3\n"two\nlines"\tnormal\t3\nplain\tnormal\t5\n'
    posts = every(founta(tmp_path, rows, 'hatespeech_text_label_vote.csv'))
    assert {p['text'] for p in posts} == {'Here\'s a "cure" 🙏', 'two\nlines', 'plain'}


cells = st.text(st.characters(codec='utf-8', exclude_characters='\0\r\t'), min_size=1).filter(lambda x: x.strip())


@given(st.lists(cells, min_size=1, max_size=6))
@hypothesis_settings(max_examples=60)
def test_a_quoted_file_is_told_from_one_that_is_not(tmp_path_factory, texts):
    file = tmp_path_factory.mktemp('q')/'t.tsv'
    f = io.StringIO(newline='')
    csv.writer(f, delimiter='\t', quoting=csv.QUOTE_ALL, lineterminator='\n').writerows([x, '1'] for x in texts)
    file.write_bytes(f.getvalue().encode())
    assert is_quoted(file, '\t') and list(read_table(file, '\t', header=False)[0]) == texts
    plain = [x.replace('\n', ' ') for x in texts]
    file.write_bytes(''.join(f'{x}\t1\n' for x in ['"open', *plain]).encode())
    if not any('"' in x for x in plain): assert not is_quoted(file, '\t')


@pytest.mark.parametrize('answers,toxic,kind', [
    ('1,1,1', 1, 'individual, aggressive'), ('1,0,0', 1, 'generic'), ('0,0,0', 0, ''), ('1.0,1.0,0.0', 1, 'individual'),
    ('0.0,x,0', 0, '')])
def test_hateval_answers(tmp_path, answers, toxic, kind):
    ds = hateval(tmp_path, f'ID,a day,{answers}\n')
    expected = dict.fromkeys(('train', 'validation', 'test'), [(toxic, kind)])
    assert {s: [(p['toxic'], p['kind']) for p in d] for s, d in ds.items()} == expected


def test_hateval_needs_neither_tr_nor_ag_and_says_what_is_left_empty(tmp_path):
    with pytest.warns(UserWarning, match='train.csv: 1 hateful tweets have no TR or AG'):
        ds = hateval(tmp_path, 'ID,a day,1,0,x\nID0,b,1,1,1\n')
    assert [p['kind'] for p in ds['test']] == ['', 'individual, aggressive']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        ds = hateval(tmp_path, 'ID\ta day\t1\n', 'id\ttext\tHS\n')
    assert [(p['toxic'], p['kind']) for p in ds['test']] == [(1, '')]


@pytest.mark.parametrize('text', [
    'a b\tabusive\t3\na b\tabusive\t5\nx\tspam\t3\n\tspam\t2\nc\tnormal\t3\nd\thateful\t4\n',
    '7\ta b\tabusive\t3\n7\ta b\tabusive\t5\n8\tx\tspam\t3\n9\tc\tnormal\t3\n10\td\thateful\t4\n',
    'tweet_id,text,label,votes\n7,a b,abusive,3\n7,a b,abusive,5\n8,x,spam,3\n9,c,normal,3\n10,d,hateful,4\n'])
def test_founta_with_and_without_numbers_and_header(tmp_path, text):
    posts = every(founta(tmp_path, text))
    assert sorted((p['text'], p['kind'], p['toxic']) for p in posts) == [
        ('a b', 'abusive', 1), ('a b', 'abusive', 1), ('c', 'normal', 0), ('d', 'hateful', 1)]
    assert len({p['id'] for p in posts}) == 4


def test_ethos_matches_comments_by_their_words(tmp_path):
    posts = ethos(tmp_path, 'c;0.2\na\u00a0 b ;0.6\n')['test']
    assert [(p['toxic'], p['community']) for p in posts] == [(0, ''), (1, 'gender, sexual_orientation')]


def test_dynahate_of_the_publisher(tmp_path):
    rows = ('acl1,a b,hate,derogation,"bla, gay.man",original,train\nacl2,c,hate,support,nazis,original,dev\n'
            'acl3,d,hate,notgiven,notgiven,original,test\nacl4,e,nothate,none,none,perturbation,test\n'
            'acl5,f,hate,animosity,NoTargetRecorded,original,test\n'
            'acl6,g,hate,animosity,"muswom, trav",original,train\n')
    posts = {p['id']: p for p in every(dynahate(tmp_path, rows))}
    outputs = corpora['dynahate'].question('target').outputs
    def target(i): return [o for o, y in zip(outputs, posts[i]['target']) if y]
    assert target('acl1') == ['African', 'Homosexual'] and target('acl6') == ['Islam', 'Women', 'Other']
    assert target('acl2') == [] and posts['acl2']['targeted'] and posts['acl2']['typed']
    assert not posts['acl3']['targeted'] and not posts['acl3']['typed'] and posts['acl3']['toxic']
    assert posts['acl4']['targeted'] and not posts['acl4']['typed'] and not posts['acl4']['toxic']
    assert not posts['acl5']['targeted'] and posts['acl5']['typed']


def test_toxic_spans_types_that_are_cut_off_or_missing(tmp_path):
    post = every(toxic_spans(tmp_path, '0,Insu,4,9\n1,Insult,5,6\n1,,0,3\n'))[0]
    assert post['attribute'] == [1, 0, 0, 0, 0] and post['rationale_any'] == [1, 1]
    assert post['rationale_majority'] == [0, 1]


def test_implicit_hate_joins_stages_by_words_and_names_all_communities(tmp_path):
    posts = every(implicit_hate(tmp_path, 'So, they came!\timplicit_hate\na\tnot_hate\nx\tnot_hate\n',
                                second='so they came\tthreatening\t\n',
                                third='so they came\tnon-white people\ta\nso they came\tblack women\tb\n'))
    first = next(p for p in posts if p['class'] == 1)
    outputs = corpora['implicit_hate'].question('target').outputs
    assert [o for o, y in zip(outputs, first['target']) if y] == ['African', 'Minority', 'Women']
    assert first['statements'] == ['a', 'b'] and first['category'] == 5
    assert not any(p['targeted'] or p['categorised'] for p in posts if p['class'] != 1)


def test_tweeteval(tmp_path):
    ds = tweeteval(tmp_path, '1\n0')
    assert [(p['id'], p['text'], p['toxic']) for p in ds['validation']] == [('val-1', 'a', 1), ('val-2', 'b', 0)]


texts_of_any_sort = st.text(st.characters(codec='utf-8', exclude_characters='\0')).filter(lambda x: len(x.split()))


@given(st.lists(texts_of_any_sort, min_size=1, max_size=8))
@hypothesis_settings(max_examples=50)
def test_whatever_a_csv_writer_writes_is_read(tmp_path_factory, texts):
    f = io.StringIO(newline='')
    csv.writer(f).writerows([('id', 'label', 'tweet'), *((i, i % 2, x) for i, x in enumerate(texts))])
    posts = every(kaggle(tmp_path_factory.mktemp('k'), f.getvalue().encode()))
    assert sorted((int(p['id']), p['toxic'], p['text']) for p in posts) == [(i, i % 2, x) for i, x in enumerate(texts)]


# ---- bad input: what, and where

def no_hs(folder, row): return hateval(folder, row, 'id,text,HATE,TR,AG\n')
def semicolons(folder, row): return hateval(folder, row, 'id;text;HS;TR;AG\n')
def lone_spans(folder, comments): return toxic_spans(folder, '0,Insult,4,9\n', comments)


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
    'semicolons': (semicolons, 'ID;a, b;1;0;0\n', "separated by ';', not by ','", 'hateval2019_en_train.csv'),
    'HatEval without HS': (no_hs, 'ID,a,1,0,0\n', "'HS' is missing", 'hateval2019_en_train.csv'),
    'HatEval, HS': (hateval, 'ID,a,2,0,0\n', "'2' is none of 0, 1", 'hateval2019_en_train.csv, line 2'),
    'HatEval, two splits': (hateval, '5,a,1,0,0\n', 'is in hateval2019_en_train.csv, too',
                            'hateval2019_en_dev.csv, line 2'),
    'Founta, label': (founta, 'a\tnormal\t3\nb\trude\t3\n', "'rude' is none of", '100K.csv, line 2'),
    'Founta, two columns': (founta, 'a\tnormal\n', '2 columns', '100K.csv'),
    'HateCheck, label': (hatecheck, '0,slur_h,1,you,Hateful,women\n', "'Hateful' is none of hateful, non-hateful",
                         'test_suite_cases.csv, line 2'),
    'HateCheck, cut off': (hatecheck, '0,slur_h,1,you,hateful\n', '5 cells instead of 6',
                           'test_suite_cases.csv, line 2'),
    'ETHOS, share': (ethos, 'a b;1\nc;1.5\n', "'1.5' is no share", 'Binary.csv, line 3'),
    'ETHOS, not a number': (ethos, 'a b;1\nc;yes\n', "'yes' is no share", 'Binary.csv, line 3'),
    'ETHOS, unknown comment': (ethos, 'c;1\n', 'not in Ethos_Dataset_Binary.csv', 'Multi_Label.csv, line 2'),
    'Davidson, votes': (davidson, '0,3,0,x,3,2,a\n', '3, x, 0 are no votes', 'labeled_data.csv, line 2'),
    'Davidson, no votes': (davidson, '0,3,0,0,0,2,a\n', '0, 0, 0 are no votes', 'labeled_data.csv, line 2'),
    'DynaHate, label': (dynahate, 'a1,a,Hate,none,none,original,train\n', "'Hate' is none of", 'v0.2.3.csv, line 2'),
    'DynaHate, type': (dynahate, 'a1,a,hate,rude,none,original,train\n', "'rude' is none of", 'v0.2.3.csv, line 2'),
    'DynaHate, split': (dynahate, 'a1,a,hate,none,none,original,val\n', "'val' is none of", 'v0.2.3.csv, line 2'),
    'EDOS, category': (edos, 's,a,sexist,5. others,none,train\n', "'5. others' is none of", 'aggregated.csv, line 2'),
    'spans, type': (toxic_spans, '0,Rude,4,9\n', "'Rude' is none of", 'spans.csv, line 2'),
    'spans, place': (toxic_spans, '0,Insult,x,9\n', "'x' is no whole number", 'spans.csv, line 2'),
    'spans, backwards': (toxic_spans, '0,Insult,9,4\n', 'ends at 4, before it begins at 9', 'spans.csv, line 2'),
    'spans, nobody': (lone_spans, '8,a\n', 'has no annotators', 'comments.csv, line 2'),
    'Implicit Hate, class': (implicit_hate, 'a\thate\n', "'hate' is none of", 'stg1_posts.tsv, line 2'),
    'TweetEval, labels': (tweeteval, '1\n', '2 texts and 1 labels', 'train_text.txt'),
    'TweetEval, label': (tweeteval, '1\n2\n', "'2' is none of 0, 1", 'train_labels.txt, line 2'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_file(tmp_path, name):
    write, text, what, place = BAD[name]
    with pytest.raises(HatenbError) as e: write(tmp_path, text)
    assert what in e.value.what and e.value.place.endswith(place) and e.value.remedy


@pytest.mark.parametrize('name', ['hateval', 'founta', 'kaggle_tweets', 'tweeteval'])
def test_what_may_not_be_passed_on_says_where_to_put_it(tmp_path, monkeypatch, name):
    for k in ('HATENB_DATA', 'HATENB_CACHE'): monkeypatch.setenv(k, str(tmp_path))
    with pytest.raises(HatenbError) as e: load_corpus(name)
    assert 'cannot be downloaded' in e.value.what
    assert all(f.name in e.value.remedy for f in corpora[name].files)
    assert f'{name}/' in e.value.remedy and corpora[name].homepage in e.value.remedy
