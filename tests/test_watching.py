"What is watched during training is what the record says"
import pytest

from hatenb.evaluation import evaluate, watched_metrics
from hatenb.training import predict
from hatenb.watching import meters, watch
from parts import ALL, small


pytestmark = pytest.mark.filterwarnings('ignore:No positive samples')


@pytest.mark.parametrize('noise', [0., .3])
def test_meters_say_what_the_record_says(noise):
    model, posts = small(ALL, limit=64, noise=noise)
    mine, theirs = watch(model, posts), watched_metrics(evaluate(predict(model, posts), n_boot=0))
    kept = {k: v for k, v in theirs.items() if model.heads[k.rpartition('.')[0]].task.kind in meters}
    assert mine == pytest.approx(kept, abs=1e-4) and len(kept) == 4
