"Undoing disguises on any string: places stay within the caller's text, ordinary words stay, time is bounded"
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from hatenb.pretokenize import pretokenizers
from hatenb.undisguise import known_words, masked, undisguised, undisguised_words
from limits import within

odd = '\u200b\u200d\ufe0f\u0336\u00ad\u0301аοｅ𝓱🅾🐷👩🏿🇪ıßİ\ud800\x00 .-_*@#!|+$€13450&;/:\'’<>'
pieces = st.one_of(st.sampled_from(['idiot', 'pig', 'h a t e', 'www.', 'https://', '<user>', 'aaa', 'iiddiioott']),
                   st.text('aeioptuHATE'+odd, max_size=12), st.text(max_size=5))
texts = st.lists(pieces, max_size=12).map(''.join)


@settings(deadline=None, max_examples=150)
@given(texts, st.sampled_from(['plain', 'hatexplain']))
def test_words_point_into_the_text(text, how):
    plain = undisguised(text)
    assert len(plain.text) == len(plain.spans)
    for spans in (plain.spans, undisguised_words(text, pretokenizers[how]).spans):
        assert all(0 <= a < b <= len(text) for a,b in spans)
        assert all(a[0] <= b[0] and a[1] <= b[1] for a,b in zip(spans, spans[1:]))      # in the text's order
    kept = [(c, text[a:b]) for c,(a,b) in zip(plain.text, plain.spans) if c.isalpha() and c == text[a:b]]
    assert all(c == was for c,was in kept)


@settings(deadline=None, max_examples=100)
@given(texts, st.sampled_from(['plain', 'hatexplain']))
def test_words_of_a_post_do_not_overlap(text, how):
    spans = undisguised_words(text, pretokenizers[how]).spans
    assert all(a[1] <= b[0] for a,b in zip(spans, spans[1:]))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(list(known_words())[:5000]).filter(lambda w: len(w) > 1 and w.isalpha()), max_size=12))
def test_known_words_are_read_as_they_are(words):
    text = ' '.join(words)
    assert undisguised(text).text == text


def test_other_scripts_and_emoji_of_several_people_stay():
    for text in ('Это хороший день', 'καλημέρα κόσμε', 'می\u200cروم', 'क्\u200dष', '日本語のテキスト', '👨\u200d👩\u200d👧 🇪🇺 ❤️', 'naïve café'):
        assert undisguised(text).text == text


@pytest.mark.parametrize('part', ['a', 'a ', '1a', 'aa', '\u200b', 'а', 'a.', '@', '!a', 'ab', '🐷', 'i1l'])
def test_a_long_text_does_not_keep_it_busy(part):
    "Linear, this takes some seconds; one pattern whose time grows with the square, such as `[a-z]+[0-9]`, takes minutes"
    with within(40): undisguised(part*200_000)


runs = ['!', '|', '+', '€', '$!', '1', '1,', '.', '-', '- ', ' ', '\u0301', 'a\u0301', '\ufe0f', '*', 'a*', "'", '<a', 'é', '日', '#']


@pytest.mark.parametrize('part', runs)
def test_a_row_of_the_same_is_read(part):
    "Nothing is timed: with a pattern whose time grows with the square, one of these would take minutes"
    text = 'a ' + part*(200_000//len(part)) + ' b'
    for read in pretokenizers.values(): assert undisguised_words(text, read).words[0] == 'a'
    assert len(masked(text)) == len(text)


def test_a_detector_undoes_disguises_where_its_manifest_says_so():
    from dataclasses import replace
    from hatenb.detector import Detector
    detector = Detector.from_pretrained(Path(__file__).parent/'safety'/'bundle')
    plain,text = 'you are idiots, stupid idiots', 'you are 1d10ts, s\u200btupid i d i o t s'
    probabilities = detector(plain)['label_prob']
    said = detector(text)
    assert said['label_prob'] == probabilities and said['text'] == text
    assert all(w['word'] == text[w['start']:w['end']] for w in said['rationale'])
    detector.manifest = replace(detector.manifest, undisguises=False)
    assert detector(plain)['label_prob'] == probabilities
    assert detector(text)['label_prob'] != probabilities
