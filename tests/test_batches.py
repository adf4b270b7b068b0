"Batches: words and sub-tokens with several tokenizers, the laws of sampling, the cache under two processes"
import subprocess, sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st
from tokenizers import SentencePieceUnigramTokenizer, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hatenb import batches as B
from hatenb.batches import Posts, Sampling
from hatenb.core import HatenbError, encoder_path
from hatenb.corpora import load_corpus
from hatenb.kinds import gold_columns, tokens_to_words, words_to_tokens

# how long an example takes says nothing on a busy machine
hypothesis_settings.register_profile('untimed', deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile('untimed')


# --- tokenizers of every sort ---

@pytest.fixture(scope='session')
def wordpiece(): return AutoTokenizer.from_pretrained(encoder_path('minilm'))


@pytest.fixture(scope='session')
def lines(): return [' '.join(w) for w in load_corpus('mini')['train']['words'][:]]


def wrapped(tokenizer, **kwargs):
    "A trained tokenizer as transformers has it, with special tokens around each post"
    tokenizer.post_processor = processors.TemplateProcessing(single='<s> $A </s>', special_tokens=[(t, tokenizer.token_to_id(t)) for t in ('<s>','</s>')])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token='<unk>', pad_token='<pad>', bos_token='<s>', eos_token='</s>', **kwargs)


@pytest.fixture(scope='session')
def byte_level_bpe(lines):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=400, special_tokens=['<s>','</s>','<unk>','<pad>'],
                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return wrapped(t)


@pytest.fixture(scope='session')
def unigram(lines):
    t = SentencePieceUnigramTokenizer()
    t.train_from_iterator(lines, vocab_size=200, special_tokens=['<s>','</s>','<unk>','<pad>'], unk_token='<unk>', show_progress=False)
    return wrapped(t._tokenizer)


@pytest.fixture(scope='session', params=['wordpiece', 'byte_level_bpe', 'unigram'])
def tokenizer(request): return request.getfixturevalue(request.param)


def joins_back(posts, marks, tokenizer, max_length):
    "Marks go down to sub-tokens and come back exactly; special tokens get none; what was cut is counted"
    ids, token_words, cut = B.align(posts, tokenizer, max_length)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for words, m, i, t, c in zip(posts, marks, ids, token_words, cut):
        t = np.array(t)
        kept = len(words)-c
        assert len(i) == len(t) <= max_length and t.max() == kept-1
        assert set(t[t >= 0]) == set(range(kept)) and (np.diff(t[t >= 0]) >= 0).all()      # every kept word, in order
        assert not c or len(i) == max_length                                               # cut only where it is full
        assert all(x in special for x in np.array(i)[t < 0])
        down = words_to_tokens(m, t)
        assert not down[t < 0].any() and (down[t >= 0] == np.asarray(m)[t[t >= 0]]).all()
        back = tokens_to_words(down, t, len(words), default=9)
        assert (back[:kept] == np.asarray(m)[:kept]).all() and (back[kept:] == 9).all()


ODD = ['\u200d', '\u200b', '\ufeff', '\xad', '\u2060', '\x00', '\ufe0f', 'e\u0301', '😀', '👩\u200d👩', '中文', '<unk', '##ing', "don't", '▁', 'Ġ', 'x'*150, 'slur1', '@user', '...']
odd_words = st.one_of(st.sampled_from(ODD), st.text(min_size=1, max_size=8).filter(lambda w: not w.isspace()))


@hypothesis_settings(max_examples=60)
@given(st.data())
def test_marks_join_back_whatever_the_words(tokenizer, data):
    posts = data.draw(st.lists(st.lists(odd_words, min_size=1, max_size=12), min_size=1, max_size=3))
    marks = [data.draw(st.lists(st.integers(0, 1), min_size=len(p), max_size=len(p))) for p in posts]
    joins_back(posts, marks, tokenizer, data.draw(st.sampled_from([8, 24, 512])))


def test_zero_width_words_are_kept(tokenizer):
    _, words, cut = B.align([['so', '\u200d', '\u200b', 'what'], ['\u200d'], ['fine']], tokenizer)
    assert cut == [0, 0, 0] and [set(w) for w in words] == [{-1,0,1,2,3}, {-1,0}, {-1,0}]


def test_truncation_is_counted(tokenizer):
    _, words, cut = B.align([['a']*50, ['a']*3, ['\u200d']*50], tokenizer, max_length=12)
    assert cut[1] == 0 and all(c == 50-1-max(w) for c,w in zip(cut, words) if c) and cut[0] >= 40 and cut[2] >= 40
    corpus = B.encode(load_corpus('mini'), tokenizer, max_length=6)
    lost = B.truncation(corpus)['train']
    kept = [len({*w}-{-1}) for w in corpus['train']['token_word'][:]]
    missing = [len(w)-k for w,k in zip(corpus['train']['words'][:], kept)]
    assert lost == dict(posts=sum(m > 0 for m in missing), words=sum(missing)) and lost['posts'] > 0


def test_real_posts_join_back(tokenizer, corpora_folder):
    for d in load_corpus('hatexplain').values(): joins_back(d['words'][:], d['rationale_any'][:], tokenizer, 128)


def test_other_words_keep_their_ids(wordpiece):
    "Looking closer at the posts that lack a word changes nothing else"
    with_gap, without = B.align([['so', '\u200d', 'what']], wordpiece)[0][0], B.align([['so', 'what']], wordpiece)[0][0]
    assert [i for i in with_gap if i != wordpiece.unk_token_id] == without


def test_a_vanishing_word_without_an_unknown_token():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train_from_iterator(['a b'], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    with pytest.raises(HatenbError, match='no unknown token'): B.align([['a', '', 'b']], PreTrainedTokenizerFast(tokenizer_object=t))


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast, name_or_path = False, 'slow'
    with pytest.raises(HatenbError, match='word indexes'): B.align([['a']], Slow())


# --- rows and batches ---

@given(st.lists(st.lists(st.integers(-5, 5), max_size=6), min_size=1, max_size=8), st.data())
def test_ragged_pads_as_a_loop_would(rows, data):
    r = B.Ragged(B.pa.array(rows, B.pa.list_(B.pa.int32())))
    take, width = np.array(data.draw(st.lists(st.integers(0, len(rows)-1), min_size=1))), data.draw(st.integers(1, 8))
    assert r.padded(take, width, -9).tolist() == [(rows[i]+[-9]*width)[:width] for i in take]
    assert r.lengths.tolist() == [len(x) for x in rows]


@pytest.fixture(scope='session')
def mini(wordpiece): return {k: Posts(d, 'mini') for k,d in B.encode(load_corpus('mini'), wordpiece).items()}


def test_a_selected_split_takes_the_selected_rows(wordpiece):
    ds = B.encode(load_corpus('mini'), wordpiece)['train']
    chosen = Posts(ds.select([7, 3, 11]), 'mini')
    whole = Posts(ds, 'mini')
    assert chosen.ids == [whole.ids[i] for i in (7, 3, 11)]
    a, b = B.take(chosen, [0, 1, 2]), B.take(whole, [7, 3, 11])
    assert all(torch.equal(a[k], b[k]) for k in a)


@given(st.integers(1, 6), st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_parts_are_a_partition_of_the_batch(mini, n, rows):
    rows = np.array(rows)
    batch = {'mini': B.take(mini['train'], rows), 'other': B.take(mini['train'], rows[:2])}
    parts = [B.shard(batch, i, n) for i in range(n)]
    for c, whole in batch.items():
        for k, v in whole.items():
            got = torch.empty_like(v)
            for i, p in enumerate(parts):
                if c in p: got[i::n] = p[c][k]
                else: assert i >= len(v)
            assert torch.equal(got, v)
    sizes = [len(p['mini']['label']) for p in parts if 'mini' in p]
    assert sum(sizes) == len(rows) and max(sizes)-min(sizes) <= 1


# --- sampling ---

corpus_lengths = st.dictionaries(st.sampled_from('abcd'), st.lists(st.integers(2, 60), min_size=1, max_size=80).map(np.array), min_size=1)


@given(corpus_lengths, st.integers(1, 20), st.integers(1, 7), st.integers(0, 9), st.integers(0, 3))
def test_proportional_draws_each_post_once_an_epoch(lengths, batch_size, bucket, seed, epoch):
    batches = B.epoch_batches(lengths, Sampling(batch_size=batch_size, bucket=bucket, seed=seed), epoch)
    for c, l in lengths.items():
        assert sorted(np.concatenate([b[c] for b in batches if c in b])) == list(range(len(l)))
    total = sum(map(len, lengths.values()))
    assert len(batches) == -(-total//batch_size)
    assert max(sum(map(len, b.values())) for b in batches) <= batch_size+len(lengths)      # each corpus rounds on its own


@given(corpus_lengths, st.integers(4, 20), st.integers(1, 40), st.integers(0, 3))
def test_equal_shares_with_fixed_steps(lengths, per_batch, steps, epoch):
    sampling = Sampling(batch_size=per_batch*len(lengths), temperature=float('inf'), steps=steps)
    batches = B.epoch_batches(lengths, sampling, epoch)
    assert len(batches) == steps
    assert all({c: len(rows) for c,rows in b.items()} == dict.fromkeys(lengths, per_batch) for b in batches)


@given(corpus_lengths, st.integers(1, 5), st.integers(1, 30))
def test_no_post_twice_before_all_were_once(lengths, batch_size, steps):
    sampling = Sampling(batch_size=batch_size*len(lengths), temperature=float('inf'), steps=steps)
    seen = {c: np.zeros(len(l), int) for c,l in lengths.items()}
    for epoch in range(3):
        for b in B.epoch_batches(lengths, sampling, epoch):
            for c,rows in b.items(): np.add.at(seen[c], rows, 1)
        for n in seen.values(): assert n.max()-n.min() <= 1


@given(corpus_lengths, st.sampled_from([1., 1.5, 4., float('inf')]), st.integers(0, 99), st.integers(0, 5))
def test_batches_are_a_pure_function(lengths, temperature, seed, epoch):
    sampling = Sampling(batch_size=6, temperature=temperature, seed=seed)
    a, b = (B.epoch_batches(lengths, sampling, epoch) for _ in range(2))
    assert [{c: r.tolist() for c,r in x.items()} for x in a] == [{c: r.tolist() for c,r in x.items()} for x in b]


@given(st.dictionaries(st.text(), st.integers(1, 10**6), min_size=1), st.floats(1, 100))
def test_shares(sizes, temperature):
    s = B.shares(sizes, temperature)
    assert sum(s.values()) == pytest.approx(1)
    proportional = B.shares(sizes)
    for a in sizes:
        for b in sizes:
            if sizes[a] > sizes[b]: assert 1-1e-9 <= s[a]/s[b] <= proportional[a]/proportional[b]*(1+1e-9)


def test_epochs_differ(mini):
    lengths = {'mini': mini['train'].lengths}
    orders = [np.concatenate([b['mini'] for b in B.epoch_batches(lengths, Sampling(seed=s), e)]).tolist() for s,e in ((0,0),(0,1),(1,0))]
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_sampling_errors():
    with pytest.raises(HatenbError, match='no posts'): B.epoch_batches({'a': np.array([])}, Sampling())
    for t in (0, -1.):
        with pytest.raises(HatenbError, match='temperature'): B.shares({'a': 3}, t)


@given(st.integers(1, 30), st.integers(0, 100), st.integers(1, 100), st.integers(0, 100))
def test_draws_go_on_where_they_stopped(n, start, count, more):
    joined = np.concatenate([B.draws(n, start, count, 1), B.draws(n, start+count, more, 1)]) if more else B.draws(n, start, count, 1)
    assert joined.tolist() == B.draws(n, start, count+more, 1).tolist()


def test_buckets_save_padding_on_real_posts(corpora_folder, wordpiece):
    lengths = {'hatexplain': np.array([len(w)+2 for w in load_corpus('hatexplain')['train']['words'][:]])}
    shares = [B.padding_share(lengths, B.epoch_batches(lengths, Sampling(bucket=k))) for k in (50, 1)]
    assert shares[0] < .1 < .3 < shares[1]


# --- the cache ---

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('HATENB_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'/'encoded'


def test_second_time_from_the_cache(cache, wordpiece, monkeypatch):
    first = B.encoded_corpus('mini', wordpiece)
    monkeypatch.setattr(B, 'load_corpus', lambda name: pytest.fail('the corpus was read again'))
    again = B.encoded_corpus('mini', wordpiece)
    assert all(again[s].data.table.equals(d.data.table) for s,d in first.items()) and len(list(cache.iterdir())) == 1


def test_what_decides_the_key(cache, wordpiece, byte_level_bpe, monkeypatch):
    B.encoded_corpus('mini', wordpiece)
    B.encoded_corpus('mini', wordpiece, 64)
    B.encoded_corpus('mini', byte_level_bpe)
    monkeypatch.setattr(B, 'corpus_checksum', lambda name: 'other content')
    B.encoded_corpus('mini', wordpiece)
    assert len(list(cache.iterdir())) == 4


def test_the_key_does_not_depend_on_earlier_use(cache):
    "Tokenizing with a maximal length leaves it behind in the tokenizer"
    t = AutoTokenizer.from_pretrained(encoder_path('minilm'))
    for length in (128, 64, 128): B.encoded_corpus('mini', t, length)
    t(['a', 'b c'], padding=True, truncation=True, max_length=5)
    B.encoded_corpus('mini', t, 128)
    assert len(list(cache.iterdir())) == 2


def test_a_failed_encoding_leaves_nothing(cache, wordpiece, monkeypatch):
    def _fail(*args): raise HatenbError('something')
    monkeypatch.setattr(B, 'encode', _fail)
    with pytest.raises(HatenbError): B.encoded_corpus('mini', wordpiece)
    assert not cache.exists() or not list(cache.iterdir())


def test_another_process_was_faster(cache, wordpiece, monkeypatch):
    real = B.encode
    def _late(*args):
        monkeypatch.setattr(B, 'encode', real)
        B.encoded_corpus('mini', wordpiece)
        return real(*args)
    monkeypatch.setattr(B, 'encode', _late)
    assert len(B.encoded_corpus('mini', wordpiece)['train']) == len(load_corpus('mini')['train'])
    assert len(list(cache.iterdir())) == 1


def test_two_processes_at_once(cache):
    code = ('from transformers import AutoTokenizer; from hatenb.batches import encoded_corpus; from hatenb.core import encoder_path; '
            't = AutoTokenizer.from_pretrained(encoder_path("minilm")); print("ready", flush=True); input(); print(len(encoded_corpus("mini", t)["train"]))')
    both = [subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for p in both: assert p.stdout.readline() == 'ready\n'
    for p in both: print(file=p.stdin, flush=True)
    out = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], out
    assert len({o for o,_ in out}) == 1 and len(list(cache.iterdir())) == 1


@hypothesis_settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4), epoch=st.integers(0, 3), seed=st.integers(0, 99))
def test_balanced_classes_are_drawn_equally_often_and_each_in_passes(sizes, epoch, seed):
    classes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    lengths, sampling = {'c': np.random.default_rng(seed).integers(3, 40, len(classes))}, B.Sampling(batch_size=5, seed=seed)
    rows = [np.concatenate([b['c'] for b in B.epoch_batches(lengths, sampling, e, {'c': classes})]) for e in range(epoch+1)]
    drawn = np.bincount(classes[rows[-1]], minlength=len(sizes))
    assert len(rows[-1]) == len(classes) and drawn.max()-drawn.min() <= 1
    times = np.bincount(np.concatenate(rows), minlength=len(classes))
    for k in range(len(sizes)): assert times[classes == k].max()-times[classes == k].min() <= 1


@hypothesis_settings(max_examples=20)
@given(drop=st.floats(0, 1), swap=st.floats(0, 1), noise=st.floats(0, 1), seed=st.integers(0, 99))
def test_changed_copies_keep_every_marked_word_and_its_marks(drop, swap, noise, seed):
    few = load_corpus('mini')['train'].select(range(40))
    more = B.augmented(few, 'mini', copies=2, drop=drop, swap=swap, noise=noise, seed=seed)
    assert len(more) == 80 and len(set(more['id'])) == 80
    assert set(more.column_names) == {'id', 'words', *gold_columns('mini')} and all(more.features[k] == few.features[k] for k in more.features)
    for a, b in zip([*few, *few], more):
        assert b['words'] and len(b['words']) == len(b['rationale_any']) == len(b['rationale_mean']) == len(b['rationale_majority'])
        marked = [[(w, m) for w, m in zip(p['words'], p['rationale_mean']) if m] for p in (a, b)]
        assert marked[0] == marked[1]
        for k in ('label', 'target', 'label_dist'): assert a[k] == b[k]
        if drop == noise == 0: assert sorted(a['words']) == sorted(b['words'])
        if drop == noise == swap == 0: assert a['words'] == b['words']


def test_copies_of_real_posts(corpora_folder):
    few = load_corpus('hatexplain')['train'].select(range(2000))
    more = B.augmented(few, 'hatexplain')
    changed = sum(a != b for a, b in zip(few['words'], more['words']))
    assert changed > 1500
    marks = lambda ds: [[w for w, m in zip(ws, ms) if m] for ws, ms in zip(ds['words'], ds['rationale_any'])]
    assert marks(few) == marks(more)


def test_a_corpus_without_a_draw_and_posts_without_a_class():
    assert not len(B.draws(5, 0, 0, 1))
    few = B.epoch_batches({'a': np.full(20_000, 5), 'b': np.full(100, 5)}, Sampling(16, steps=5))
    assert len(few) == 5 and sum(len(b['a']) for b in few) == 80
    classes = np.array([-1]*50 + [0]*30 + [1]*20)
    drawn = np.concatenate([b['a'] for b in B.epoch_batches({'a': np.full(100, 5)}, Sampling(10), classes={'a': classes})])
    assert np.bincount(classes[drawn]).tolist() == [50, 50]


def test_a_batch_too_small_for_its_corpora_is_refused():
    lengths = dict(a=np.full(5, 9), b=np.full(5, 9))
    with pytest.raises(HatenbError, match='Take 2 or more'): B.epoch_batches(lengths, Sampling(batch_size=1))
    assert all(B.epoch_batches(lengths, Sampling(batch_size=2)))
