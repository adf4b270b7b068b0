"""What it saves to compute lower layers once: posts/s of training with an adapter on the upper two of six layers, with and without.

Both train LoRA for three epochs on the same real HateXplain posts, label, target and rationale. They take turns, step by step in short pieces, in one process, and
dropout above is on in both. The time of the way with `lower_once` includes computing and writing the states, which it does once a round into an empty cache.
A ratio is the median over the rounds.
"""
import argparse, contextlib, os, statistics, tempfile, time

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
    start = time.perf_counter()
    work()
    return time.perf_counter()-start


def one_round(posts, counted, dtype, epochs):
    "Seconds of both ways, and of making the states"
    plain, once = (trainer(p, counted, dtype, epochs) for p in posts)
    took = dict(whole=0., once=0., making=0.)
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
            posts = [Posts(some, 'hatexplain', tokenizer.pad_token_id) for _ in range(2)]   # one has its states, one has not
            rounds.append(one_round(posts, counted, dtype, a.epochs))
    seen, size = a.posts*a.epochs, int(posts[0].lengths.sum())*384*2
    keep('lower', dict(posts=a.posts, epochs=a.epochs, rounds=a.rounds, layers=[4, 5], tasks=TASKS, dtype=str(dtype), bytes_stored=size,
                       posts_per_second={k: round(statistics.median(seen/r[k] for r in rounds), 1) for k in ('whole', 'once')},
                       ratio=round(statistics.median(r['whole']/r['once'] for r in rounds), 2),
                       ratio_each=[round(r['whole']/r['once'], 2) for r in rounds],
                       making_share=round(statistics.median(r['making']/r['once'] for r in rounds), 3),
                       ratio_without_making=round(statistics.median(r['whole']/(r['once']-r['making']) for r in rounds), 2)))
