"""What it costs that tasks have adapters of their own, and what quantized weights cost: time of training and prediction over that of one LoRA for all tasks.

Label, target and rationale of real HateXplain posts. All models are in one process and take turns, round by round; a ratio is the median over the rounds. Time
with `apart` is that of one pass a task, each with its single-task adapter: what `parallel` saves is the difference to it.
"""
import argparse, statistics, time

from common import keep
from hatenb.batches import Posts, encoded_corpus
from hatenb.composing import adapter_name, make_strategy, strategy_model
from hatenb.core import resolve_dtype, seed_everything
from hatenb.encoder import load_encoder
from hatenb.kinds import count_answers, make_head
from hatenb.tasks import Task
from hatenb.training import TrainConfig, Trainer, predict

TASKS = [f'hatexplain/{t}' for t in ('label', 'target', 'rationale')]


def built(strategy, counted, tasks=TASKS, adapter='lora', quantization='none', **options):
    "A model of a strategy; a fusion gets fresh sources"
    seed_everything(0, 'benchmark')
    encoder = load_encoder('minilm', quantization, resolve_dtype('auto'))
    sources = {adapter_name(t): [t] for t in tasks} if strategy == 'fuse' else {}
    for name in sources: encoder.add(name, adapter)
    strategy = make_strategy(strategy, tasks, adapter, options=options)
    strategy.build(encoder, sources)
    return strategy_model(strategy, encoder, [make_head(Task.parse(t), encoder.width, counted) for t in tasks])


def measured(models, posts):
    "Seconds to train on and to predict all posts, and to predict one post, for a list of models that each do it in turn"
    def train():
        for m in models:
            trainer = Trainer(m, {'hatexplain': posts}, TrainConfig(epochs=1, batch_size=32))
            m.train()
            for rows in trainer.batches(0): trainer.step(rows)
    one = Posts(posts.ds.select(range(16)), 'hatexplain', posts.pad_id)
    return {name: seconds(f) for name, f in dict(training=train, predicting=lambda: [predict(m, {'hatexplain': posts}) for m in models],
                                                 one_post=lambda: [predict(m, {'hatexplain': one}, batch_size=1) for m in models]).items()}


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter()-start


if __name__ == '__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--posts', type=int, default=128, help='posts of the training split')
    a.add_argument('--rounds', type=int, default=3)
    a = a.parse_args()
    tokenizer = load_encoder('minilm').tokenizer
    train = encoded_corpus('hatexplain', tokenizer)['train']
    posts, counted = Posts(train.shuffle(seed=0).select(range(a.posts)), 'hatexplain', tokenizer.pad_token_id), count_answers(train, 'hatexplain')
    models = {'lora': [built('shared', counted)], 'apart': [built('shared', counted, [t]) for t in TASKS], 'parallel': [built('parallel', counted)],
              'branch at layer 3 of 6': [built('branch', counted)], 'mtl_lora': [built('mtl_lora', counted)], 'fuse, static': [built('fuse', counted)],
              'fuse, dynamic': [built('fuse', counted, variant='dynamic')], 'seq_bn': [built('shared', counted, adapter='seq_bn')],
              **{f'lora, {q}': [built('shared', counted, quantization=q)] for q in ('nf4', 'nf4-double', 'int8')}}
    rounds = {k: [] for k in models}
    for i in range(a.rounds+1):                       # the first round warms up
        for k, m in models.items():
            times = measured(m, posts)
            if i: rounds[k].append(times)
    base = rounds['lora']
    ratios = {k: {w: round(statistics.median(t[w]/b[w] for t, b in zip(ts, base)), 2) for w in ts[0]} for k, ts in rounds.items()}
    keep('sharing', dict(posts=a.posts, rounds=a.rounds, tasks=TASKS, dtype=str(resolve_dtype('auto')), time_over_lora=ratios,
                         lora_posts_per_second={w: round((a.posts if w != 'one_post' else 16)/statistics.median(t[w] for t in base), 1) for w in base[0]}))
