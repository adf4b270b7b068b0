"""What it saves to compute lower layers once: posts/s of training with an adapter on the upper two of six layers.

Both train LoRA for three epochs on the same real HateXplain posts: label, target and rationale. They take turns every
ten steps, in one process; dropout is on, but for the layers that are computed once. The time with `lower_once` includes
computing and writing the states, once a round into an empty cache. A ratio is the median over the rounds; that of later
epochs leaves the computing of states out, as for a second run that finds them.
"""
import argparse, contextlib, os, statistics, tempfile, time

import numpy as np

from common import keep
from hatenb.batches import Posts, encoded_corpus
from hatenb.core import resolve_dtype, seed_everything
from hatenb.encoder import load_encoder
from hatenb.kinds import count_answers, make_head
from hatenb.lower import lower_once
from hatenb.model import Model
from hatenb.tasks import Task
from hatenb.training import TrainConfig, Trainer

TASKS = ['label', 'target', 'rationale']
PIECE = 10                        # steps between two changes of turn


def trainer(posts, counted, dtype, epochs):
    seed_everything(0, 'weights')
    encoder = load_encoder('minilm', dtype=dtype)
    encoder.add('shared', 'lora', layers=[4, 5])
    encoder.activate('shared')
    encoder.train_only('shared')
    model = Model(encoder, [make_head(Task.parse(t), encoder.width, counted) for t in TASKS])
    return Trainer(model.train(), {'hatexplain': posts}, TrainConfig(epochs=epochs, batch_size=32))


def timed(work):
    "Seconds by the clock, and of processor time, which a busy machine disturbs less"
    clocks = time.perf_counter,time.process_time
    start = [c() for c in clocks]
    work()
    return np.array([c()-s for c,s in zip(clocks, start)])


def one_round(posts, counted, dtype, epochs):
    "Seconds [2] of both ways, and of making the states, which counts for the second"
    plain, once = (trainer(p, counted, dtype, epochs) for p in posts)
    took = dict(whole=0., once=0.)
    with contextlib.ExitStack() as stack:
        took['making'] = timed(lambda: stack.enter_context(lower_once(once.model, [posts[1]])))
        took['once'] += took['making']
        for epoch in range(epochs):
            steps = plain.batches(epoch)
            for i in range(0, len(steps), PIECE):
                for k, t in (('whole', plain), ('once', once)):
                    took[k] += timed(lambda: [t.step(rows) for rows in steps[i:i+PIECE]])
    return took


if __name__ == '__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--posts', type=int, default=2000, help='of the training split')
    a.add_argument('--epochs', type=int, default=3)
    a.add_argument('--rounds', type=int, default=3)
    a.add_argument('--dtype', default='auto')
    a = a.parse_args()
    dtype = resolve_dtype(a.dtype)
    tokenizer = load_encoder('minilm').tokenizer
    train = encoded_corpus('hatexplain', tokenizer)['train']
    some, counted = train.shuffle(seed=0).select(range(a.posts)), count_answers(train, 'hatexplain')
    rounds = []
    for _ in range(a.rounds):
        with tempfile.TemporaryDirectory() as cache:
            os.environ['HATENB_CACHE'] = cache
            posts = [Posts(some, 'hatexplain', tokenizer.pad_token_id) for _ in range(2)]    # the second gets states
            rounds.append(one_round(posts, counted, dtype, a.epochs))
    seen, size = a.posts*a.epochs, int(posts[0].lengths.sum())*384*2
    def median(of, digits=2): return round(statistics.median(of(r) for r in rounds), digits)
    keep('lower', dict(posts=a.posts, epochs=a.epochs, rounds=a.rounds, layers=[4, 5], tasks=TASKS, dtype=str(dtype),
                       bytes_stored=size,
                       posts_per_second={k: median(lambda r: seen/r[k][0], 1) for k in ('whole', 'once')},
                       ratio=median(lambda r: r['whole'][0]/r['once'][0]),
                       ratio_each=[round(r['whole'][0]/r['once'][0], 2) for r in rounds],
                       processor_time_ratio=median(lambda r: r['whole'][1]/r['once'][1]),
                       making_share=median(lambda r: r['making'][1]/r['once'][1], 3),
                       later_epochs_ratio=median(lambda r: r['whole'][1]/(r['once']-r['making'])[1])))
