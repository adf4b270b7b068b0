"What is watched during training is what the record says"
import numpy as np
import pytest

from hatenb.evaluation import evaluate, watched_metrics
from hatenb.kinds import make_head
from hatenb.tasks import Task
from hatenb.training import predict
from hatenb.watching import meters, watch
from parts import ALL, small


pytestmark = pytest.mark.filterwarnings('ignore:No positive samples')


@pytest.mark.parametrize('noise,max_length', [(0., 128), (.3, 128), (.3, 12)])
def test_meters_say_what_the_record_says(noise, max_length):
    "Also where words were cut off"
    model, posts = small(ALL, limit=64, noise=noise, max_length=max_length)
    assert (sum(posts['mini'].ds['words_cut']) > 0) == (max_length == 12)
    mine, theirs = watch(model, posts), watched_metrics(evaluate(predict(model, posts), n_boot=0))
    assert mine == pytest.approx(theirs, abs=1e-4) and len(mine) == 5


def test_a_batch_in_which_nobody_is_asked_adds_nothing():
    model, posts = small(('mini/label',), limit=24)
    posts['mini'].flat['label'] = np.where(np.arange(24) % 3, posts['mini'].flat['label'], -1)
    assert watch(model, posts, batch_size=1) == pytest.approx(watch(model, posts), abs=1e-6)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('task', ['dynahate/type', 'dynahate/target', 'mini_mhs/score', 'mini/rationale'])
def test_a_task_that_no_post_is_asked_about_has_zeros(task):
    task = Task.parse(task)
    counted = dict(share=[.1]*len(task.outputs), mean=0., sd=1.)
    found = meters[task.kind](make_head(task, 8, {task.name: counted})).compute()
    assert found and set(found.values()) == {0.}
