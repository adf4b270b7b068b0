"""What balancing rules, regularisers and the supervised rationale loss cost: time of training over that of the plain run.

One LoRA for label, target and rationale of real HateXplain posts. All variants are in one process and take turns, round by round; a ratio is the median over the
rounds.
"""
import argparse, statistics

from common import keep
from hatenb.balancing import balancers
from hatenb.batches import Posts, encoded_corpus
from hatenb.core import resolve_dtype
from hatenb.encoder import load_encoder
from hatenb.kinds import count_answers
from hatenb.regularisers import make_regularisers, regularisers
from hatenb.training import TrainConfig, Trainer
from sharing import TASKS, built, seconds


def trainer(posts, counted, rule='equal', regulariser=None):
    "One that is ready to make its steps"
    model = built('shared', counted)
    plain = Trainer(model, {'hatexplain': posts}, TrainConfig(epochs=1, batch_size=32))
    if rule == 'equal' and not regulariser: return plain
    return Trainer(model, {'hatexplain': posts}, plain.config, balancer=balancers[rule](plain.names), regularisers=make_regularisers({regulariser: {}} if regulariser else {}))


def steps(t):
    t.model.train()
    for rows in t.batches(0): t.step(rows)


if __name__ == '__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--posts', type=int, default=128, help='posts of the training split')
    a.add_argument('--rounds', type=int, default=5)
    a = a.parse_args()
    tokenizer = load_encoder('minilm').tokenizer
    train = encoded_corpus('hatexplain', tokenizer)['train']
    posts, counted = Posts(train.shuffle(seed=0).select(range(a.posts)), 'hatexplain', tokenizer.pad_token_id), count_answers(train, 'hatexplain')
    trainers = {'plain': trainer(posts, counted), **{r: trainer(posts, counted, r) for r in balancers if r != 'equal'},
                **{r: trainer(posts, counted, regulariser=r) for r in regularisers}}
    rounds = {k: [] for k in trainers}
    for i in range(a.rounds+1):                       # the first round warms up
        for k, t in trainers.items():
            took = seconds(lambda: steps(t))
            if i: rounds[k].append(took)
    base = rounds['plain']
    keep('learning', dict(posts=a.posts, rounds=a.rounds, tasks=TASKS, dtype=str(resolve_dtype('auto')), plain_posts_per_second=round(a.posts/statistics.median(base), 1),
                          time_over_plain={k: round(statistics.median(t/b for t, b in zip(ts, base)), 2) for k, ts in rounds.items()}))
