"The corpora of other publishers as they are published, hostile files, and functional tests as a command"
import json
import pytest
from typer.testing import CliRunner

import hatenb.toxicity
from hatenb.cli import app
from hatenb.core import HatenbError
from hatenb.corpora import corpora, load_corpus
from hatenb.functional import functional_metrics, functional_run, hatecheck_table, toxic_posts
from hatenb.studies import RunConfig, run


@pytest.mark.parametrize('name, splits, toxic', [('hatecheck', {'test': 944}, 624), ('ethos', {'test': 998}, 433), ('davidson', {'train': 19837, 'validation': 2524, 'test': 2422}, 20620)])
def test_real_corpora_are_read_whole(corpora_folder, name, splits, toxic):
    ds = load_corpus(name)
    assert {k: len(v) for k, v in ds.items()} == splits
    assert sum(sum(d['toxic']) for d in ds.values()) == toxic
    ids = [i for d in ds.values() for i in d['id']]
    assert len(set(ids)) == len(ids)


def test_hatecheck_has_all_functionalities_and_groups(corpora_folder):
    t = toxic_posts('hatecheck')
    assert t['kind'].nunique() == 29 and t.loc[t['target'] != '', 'target'].nunique() == 7
    assert (t['kind'].str.endswith('_h') == (t['toxic'] == 1)).all()


def test_no_text_is_in_two_splits_of_davidson(corpora_folder):
    ds = load_corpus('davidson')
    texts = [set(' '.join(x.lower().split()) for x in d['text']) for d in ds.values()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


@pytest.mark.parametrize('name', ['hatecheck', 'ethos'])
def test_what_is_there_to_test_with_is_not_trained_on(corpora_folder, tmp_path, name):
    with pytest.raises(HatenbError, match='there to test with'): run(RunConfig(tasks=(f'{name}/label',), method='tfidf'), runs_path=tmp_path)


@pytest.mark.parametrize('name, files, message', [
    ('hatecheck', {'test_suite_cases.csv': b'functionality,case_id,test_case,label_gold,target_ident\nslur_h,1,x,maybe,women\n'}, "'maybe' is none of hateful"),
    ('hatecheck', {'test_suite_cases.csv': b''}, 'cannot be read'),
    ('hatecheck', {'test_suite_cases.csv': b'functionality,case_id,test_case,label_gold,target_ident\nslur_h,1,x\xff,hateful,women\n'}, 'not UTF-8'),
    ('davidson', {'labeled_data.csv': b',count,class,tweet\n0,3,7,x\n'}, "'7' is none of 0, 1, 2"),
    ('davidson', {'labeled_data.csv': b',count,class,tweet\n0,3,1,x\n0,3,1,y\n'}, 'twice'),
    ('founta', {'hatespeech_text_label_vote.csv': b'one column\n'}, '1 columns'),
    ('founta', {'hatespeech_text_label_vote.csv': b'text\thate\t3\n'}, "'hate' is none of abusive"),
    ('ethos', {'Ethos_Dataset_Binary.csv': b'comment;isHate\nx;\n', 'Ethos_Dataset_Multi_Label.csv': b'comment;gender;race;national_origin;disability;religion;sexual_orientation\nx;0;0;0;0;0;0\n'}, 'no share')])
def test_broken_files_are_named(tmp_path, name, files, message):
    for f, content in files.items(): (tmp_path/f).write_bytes(content)
    with pytest.raises(HatenbError, match=message) as e: corpora[name].read(tmp_path)
    assert str(tmp_path) in str(e.value)


def test_a_run_is_asked_by_the_command_and_gives_the_same_twice(corpora_folder, tmp_path, monkeypatch):
    import hatenb.functional as functional
    few = toxic_posts('hatecheck').groupby('kind').head(2).reset_index(drop=True)
    monkeypatch.setattr(functional, '_at_hand', lambda names: {'hatecheck': few, 'mini': toxic_posts('mini').head(20)})
    record = run(RunConfig(tasks=('mini/label',), limit=40, options={'r': 4}), runs_path=tmp_path)
    result = CliRunner().invoke(app, ['functional', str(tmp_path/record['id']), '--out', str(tmp_path/'out')])
    assert result.exit_code == 0, result.output
    assert 'HateCheck, 58 cases' in result.output
    kept = json.loads((tmp_path/'out'/f'{record["id"]}.json').read_text())
    again = functional_run(tmp_path/record['id'])
    assert kept['functional'] == again['functional'] and kept['transfer'] == again['transfer']
    assert len(hatecheck_table(kept['functional'])) == 29
    import pandas as pd
    scores = pd.read_parquet(tmp_path/record['id']/'functional.parquet')
    assert 'text' not in scores and functional_metrics(scores[scores['corpus'] == 'hatecheck'], 0)['toxic']['all']['value'] == kept['functional']['toxic']['all']['value']


def test_a_run_without_class_or_score_is_refused(tmp_path):
    record = run(RunConfig(tasks=('mini/rationale',), limit=40, options={'r': 4}), runs_path=tmp_path)
    with pytest.raises(HatenbError, match='neither classes nor a score'): functional_run(tmp_path/record['id'])
