"What is there to test with is not learned from; and what a corpus cannot be asked is said before anything is trained"
import pytest

from hatenb.core import HatenbError
from hatenb.runs import RunConfig
from hatenb.studies import Study

OPTIONS = [dict(), dict(baseline='tfidf'), dict(adapter='frozen'), dict(strategy='merge', sources=['runs/x'])]


@pytest.mark.parametrize('task', ['hatecheck/toxic', 'hatecheck/target', 'hatecheck/target:1/4', 'ethos/toxic'])
@pytest.mark.parametrize('options', OPTIONS)
def test_no_run_learns_from_it(task, options):
    with pytest.raises(HatenbError, match='no run may learn or choose from it'):
        RunConfig(('mini/label', task), **options)


def test_no_study_and_no_sources_either():
    run = dict(tasks=['hatecheck/toxic'], adapter='seq_bn')
    with pytest.raises(HatenbError, match='no run may learn'): Study.from_dict(dict(name='s', runs=[run]))
    with pytest.raises(HatenbError, match='no run may learn'):
        RunConfig(('mini/label',), strategy='stack', sources=[run])


@pytest.mark.parametrize('task', ['davidson/label', 'edos/target', 'hatemoji/rationale', 'mhs/label'])
def test_a_question_that_a_corpus_cannot_be_asked(task):
    with pytest.raises(HatenbError, match='has no question'): RunConfig((task,))
