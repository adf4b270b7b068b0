"Characters and words, communities that meet, pools, and corpora in numbers"
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from hatenb import corpora as C
from hatenb.core import HatenbError, read_json
from hatenb.corpora import Corpus, Question, RemoteFile, load_corpus, text_question
from hatenb.corpora.communities import COMMUNITIES, communities_in, community_names, community_of, community_row
from hatenb.corpora.pools import declared_pools, make_pool, normalised, without_duplicates
from hatenb.corpora.spans import spans_of_words, words_in_spans
from hatenb.corpora.statistics import class_agreement, mark_agreement, overlap
from hatenb.corpora.tables import dataset_of, post_features, toxic_question
from hatenb.making import make_run
from hatenb.pretokenize import pretokenizers
from hatenb.runs import RunConfig

hypothesis_settings.register_profile('untimed', deadline=None)
hypothesis_settings.load_profile('untimed')
results_folder = Path(__file__).parents[1]/'results'/'corpora'


# --- characters and words ---

some_texts = st.text(st.sampled_from('ab é👩 \n\t,.'), max_size=30)

@st.composite
def marked_text(draw):
    text = draw(some_texts)
    words = pretokenizers[draw(st.sampled_from(['plain','hatexplain']))](text)
    characters = draw(st.lists(st.integers(0, max(len(text)-1, 0)), max_size=12)) if text else []
    marks = draw(st.lists(st.integers(0, 1), min_size=len(words.spans), max_size=len(words.spans)))
    return words.spans, marks, characters


@given(marked_text())
def test_marked_words_are_the_same_there_and_back(post):
    places, marks, _ = post
    assert words_in_spans(places, spans_of_words(places, marks)) == marks


@given(marked_text())
def test_a_word_is_marked_if_one_of_its_characters_is(post):
    places, _, characters = post
    marks = words_in_spans(places, [(c, c+1) for c in characters])
    assert marks == [int(any(c in characters for c in range(b, e))) for b,e in places]
    grown = {c for b,e in spans_of_words(places, marks) for c in range(b, e)}
    inside = {c for b,e in places for c in range(b, e)}
    assert set(characters) & inside <= grown


@given(marked_text())
def test_spans_of_words_are_apart_and_as_few_as_can_be(post):
    places, marks, _ = post
    spans = spans_of_words(places, marks)
    assert len(spans) == sum(m and not before for before,m in zip([0, *marks], marks))
    assert all(a[1] <= b[0] for a,b in zip(spans, spans[1:]))


# --- communities ---

def test_every_name_stands_for_a_common_community_and_has_a_source():
    for corpus,known in community_names.items():
        assert known.source and {c for cs in known.names.values() for c in cs} <= set(COMMUNITIES)
        assert set(C.corpora[corpus].question('target').outputs) <= set(COMMUNITIES)


NAMES = [('hatexplain','African'), ('hatemoji','bla'), ('dynahate','african'), ('hatecheck','black people'),
         ('implicit_hate','blacks')]


@pytest.mark.parametrize('corpus,name', NAMES)
def test_one_community_by_the_names_of_five_corpora(corpus, name): assert community_of(corpus, name) == ('African',)


@pytest.mark.parametrize('text,names', [
    ('non-white people', ['Minority']), ('anti-white people', ['Other']),
    ('white women and jews.', ['Caucasian','Jewish','Women']),
    ('Native Americans', ['Indigenous']), ('blackmailers', ['Other']), ('', ['Other']),
    ('illegal immigrants, muslims', ['Islam','Refugee'])])
def test_communities_in_free_text(text, names): assert communities_in('implicit_hate', text) == names


def test_what_is_not_among_the_outputs_is_some_other_if_that_is():
    assert community_row(('Women','Other'), ['Trans','Women']) == [1,1] and community_row(('Women',), ['Trans']) == [0]


# --- pools ---

@pytest.fixture
def make(monkeypatch, tmp_path):
    "Corpora and pools that are forgotten after the test"
    for k in ('HATENB_DATA','HATENB_CACHE'): monkeypatch.setenv(k, str(tmp_path))
    before, pools = dict(C.corpora), dict(declared_pools)
    def _corpus(name, questions=(toxic_question,), features=post_features, trains=True, **splits):
        features = C.hatexplain_features.__class__(**features, toxic=datasets.Value('int8'))
        def _rows(posts):
            rows = [dict(id=str(i), text=x, words=x.split(), toxic=y) for i,(x,y) in enumerate(posts)]
            return dataset_of(rows, features)
        ds = datasets.DatasetDict({s: _rows(posts) for s,posts in splits.items()})
        (tmp_path/name).mkdir()
        (tmp_path/name/'f').write_text(name)
        return C.add_corpus(Corpus(name, name, name, (RemoteFile('f'),), lambda folder: ds, trains=trains,
                                   questions=(*questions, text_question)))
    yield _corpus
    for registry,was in ((C.corpora, before), (declared_pools, pools)):
        registry.clear()
        registry.update(was)


def ids(ds): return {s: sorted(d['id'][:]) for s,d in ds.items()}


def test_pool_leaves_out_what_another_corpus_or_split_has(make):
    make('one', train=[('a b',0), ('A, b!',1), ('c',1), ('d 🔪',1)], validation=[('e',0)], test=[('f',1)])
    make('two', train=[('a b.',1), ('f',0), ('d 👏',0), ('g',1)], validation=[('c',1)], test=[('E',0)])
    C.make_pool('p', 'toxic', ['one','two'])
    with pytest.warns(UserWarning, match='pool p: 4 posts are left out') as told: ds = load_corpus('p')
    assert ids(ds)['train'] == ['one/0','one/1','one/3','two/2','two/3']
    assert ids(ds)['validation'] == ['two/0'] and ids(ds)['test'] == ['one/0','two/0']
    assert C.pool_duplicates('p') == {'one/train': 1, 'one/validation': 1, 'two/train': 2}
    assert 'one/validation 1' in str(told[0].message)
    assert all(r['origin'] == r['id'].split('/')[0] and r['toxic_asked'] for d in ds.values() for r in d)
    keys = {s: {normalised(w) for w in d['words'][:]} for s,d in ds.items()}
    for a,b in (('train','test'), ('train','validation'), ('validation','test')): assert not keys[a] & keys[b]


some_places = st.tuples(*map(st.sampled_from, (('train','validation','test'), 'xyz', ('a','b','A.','c','d'))))

@given(st.lists(some_places, max_size=30))
def test_no_words_are_left_in_two_places_and_none_are_lost(rows):
    posts = {}
    for split,origin,word in rows: posts.setdefault((split,origin), []).append(dict(words=[word]))
    kept, dropped = without_duplicates(posts)
    owners = {}
    for place,ps in kept.items():
        for p in ps: assert owners.setdefault(normalised(p['words']), place) == place
    assert set(owners) == {normalised(p['words']) for ps in posts.values() for p in ps}
    assert sum(dropped.values()) == len(rows)-sum(map(len, kept.values()))
    for word,(split,_) in owners.items():
        assert not any(word == normalised(p['words']) for (s,_),ps in posts.items() for p in ps
                       if ('test','validation','train').index(s) < ('test','validation','train').index(split))


def test_a_pool_is_what_its_declaration_says(make):
    for n in ('one','two'): make(n, train=[(f'{n} Slur1, x',1)], validation=[(f'{n} v',0)], test=[(f'{n} t',0)])
    c = C.make_pool('p', 'toxic', ['one','two'], pretokenizer='hatexplain')
    assert load_corpus('p')['train']['words'][:] == [['one','slur1','x'], ['two','slur1','x']]
    assert c.pretokenizer == 'hatexplain'
    said, checksum = C.pool_declaration('p'), C.corpus_checksum('p')
    assert json.loads(json.dumps(said)) == said == {'toxic': dict(corpora=['one','two'], pretokenizer='hatexplain')}
    C.declare_pool('p', said)                                    # again: nothing changes
    assert C.corpus_checksum('p') == checksum
    C.declare_pool('q', {'toxic': dict(corpora=['one','two'])})
    assert C.corpus_checksum('q') != checksum
    for question,what in ((dict(corpora=['two','one']), 'something else already'),
                          (dict(corpora=['one'], weights=1), "no 'weights'")):
        with pytest.raises(HatenbError, match=what): C.declare_pool('p', {'toxic': question})


def test_a_run_reads_the_pool_that_it_declares_whatever_else_was_read(make):
    "Else its posts would be those of all questions that the process has met under this name"
    make('one', train=[('a',0)], validation=[('b',1)], test=[('c',0)])
    toxic, target = dict(toxic=dict(corpora=['one'])), dict(target=dict(corpora=['mini']))
    RunConfig(('mixed/toxic',), baseline='majority', pools=dict(mixed=toxic))
    for other in (target, toxic | target):
        with pytest.raises(HatenbError, match='other questions already: toxic'):
            RunConfig(('mixed/toxic',), baseline='majority', pools=dict(mixed=other))
    assert len(load_corpus('mixed')['train']) == 1


def test_pool_of_corpora_that_do_not_fit(make):
    make('one', train=[('a',0)])
    make('held', trains=False, test=[('a',0)])
    make('classes', (Question('toxic', 'multilabel', ('a','b')),), train=[('a',0)])
    for corpora_of,what in ((['one','held'], 'there to test with'), (['one','mhs'], 'does not say what is toxic'),
                            (['one','martians'], 'no corpus')):
        with pytest.raises(HatenbError, match=what): C.make_pool('p', 'toxic', corpora_of)
    with pytest.raises(HatenbError, match='other answers'): C.make_pool('p', 'class', ['davidson','implicit_hate'])
    with pytest.raises(HatenbError, match='marks belong'):
        C.make_pool('p', 'rationale', ['mini','toxic_spans'], pretokenizer='plain')
    for more,what in ((dict(outputs=['fine','nasty']), 'toxic has the outputs normal, toxic'),
                      (dict(normal=['mini']), 'normal posts of mini would be asked')):
        with pytest.raises(HatenbError, match=what): C.make_pool('p', 'toxic', ['davidson'], **more)
    with pytest.raises(HatenbError, match='something else already'): C.make_pool('one', 'toxic', ['one'])
    assert 'p' not in C.corpora


def test_marks_and_words_of_a_post_are_of_one_making(make):
    "Whichever question comes first; corpora that only one of them asks, or words made alike anyway, are no harm"
    attribute, rationale = dict(corpora=['toxic_spans'], pretokenizer='hatexplain'), dict(corpora=['toxic_spans'])
    for said in (dict(attribute=attribute, rationale=rationale), dict(rationale=rationale, attribute=attribute)):
        with pytest.raises(HatenbError, match='pre-tokenizer of attribute gives toxic_spans others .in pool p'):
            RunConfig(('p/rationale',), pools=dict(p=said))
        assert 'p' not in declared_pools and 'p' not in C.corpora      # so that it can be put right
    C.declare_pool('p', dict(attribute=attribute, rationale=dict(corpora=['mini'])))
    C.declare_pool('q', dict(attribute=attribute | dict(pretokenizer='plain'), rationale=rationale))


def test_pool_of_targets_and_classes_over_real_corpora(corpora_folder, make, monkeypatch):
    monkeypatch.setenv('HATENB_DATA', str(corpora_folder))
    C.make_pool('real', 'toxic', ['hatemoji','edos'])
    C.make_pool('real', 'target', ['hatemoji'], outputs=['African','Women','Other'])
    with pytest.warns(UserWarning): ds = load_corpus('real', 'toxic', 'target')
    hatemoji = {f'hatemoji/{p["id"]}': p for d in load_corpus('hatemoji').values() for p in d}
    outputs = C.corpora['hatemoji'].question('target').outputs
    for p in (p for d in ds.values() for p in d.select(range(0, len(d), 11))):
        assert p['target_asked'] == (p['origin'] == 'hatemoji') and p['toxic_asked']
        if p['origin'] == 'edos': assert not any(p['target'])
        else:
            named = [o for o,y in zip(outputs, hatemoji[p['id']]['target']) if y]
            others = set(named)-{'African','Women'}
            assert p['target'] == [int('African' in named), int('Women' in named), int(bool(others))]
            assert p['toxic'] == hatemoji[p['id']]['toxic']
    dropped = C.pool_duplicates('real')
    assert sum(map(len, ds.values())) == 5912+20000-sum(dropped.values()) and sum(dropped.values()) < 100


# --- numbers ---

def test_agreement_looks_at_the_usual_number_of_annotators():
    found = class_agreement([[0,0,2],[1,1,1],[0,1,2],[1],[0,0,0,0]], 3)
    assert found['annotators'] == 3 and found['posts'] == 3 and found['most'] == {'3 of 3': 1, '2 of 3': 1, '1 of 3': 1}
    assert found['kappa'] == pytest.approx(C.fleiss_kappa(np.array([[2,0,1],[0,3,0],[1,1,1]])))
    marks = mark_agreement([[[0,1],[0,1]], [[1],[1]], [[1],[0],[1]]])
    assert marks == dict(annotators=2, posts=2, kappa=pytest.approx(1))


def test_overlap_is_counted_both_ways(make):
    make('one', train=[('a b',0), ('A b',0), ('c',0)], test=[('d',0)])
    make('two', train=[('d!',0)], test=[('a, b',0)])
    found = overlap(['one','two'])
    assert found == dict(one=dict(two=dict(posts=3, in_test=2)), two=dict(one=dict(posts=2, in_test=1)))


def test_hatexplain_in_numbers(corpora_folder):
    record = read_json(results_folder/'statistics.json')['hatexplain']
    assert record == json.loads(json.dumps(C.corpus_statistics('hatexplain')))
    assert record['questions']['label']['agreement']['annotators'] == 3


def test_each_origin_is_measured_by_the_questions_it_answers(corpora_folder, tmp_path):
    pools = dict(apart=dict(toxic=dict(corpora=['hatemoji']), target=dict(corpora=['mini'])))
    record = make_run(RunConfig(('apart/toxic', 'apart/target'), baseline='majority', pools=pools), tmp_path)
    assert {o: list(found) for o, found in record['origins']['test'].items()} == dict(hatemoji=['apart/toxic'], mini=['apart/target'])


def test_a_pool_changes_no_name_of_another_run():
    config = RunConfig(('toxic_spans/attribute',))
    before = config.name
    make_pool('another', 'attribute', ['toxic_spans'])
    assert config.name == before and 'another.attribute' in RunConfig(('another/attribute',)).name
