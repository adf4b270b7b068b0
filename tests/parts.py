"A small model and posts for tests of what trains them"
import numpy as np
import torch

from hatenb.batches import Posts, encoded_corpus
from hatenb.core import seed_everything
from hatenb.encoder import load_encoder
from hatenb.kinds import HeadConfig, count_answers, make_head
from hatenb.model import Model
from hatenb.tasks import Task

ALL = 'mini/label', 'mini/target', 'mini/rationale', 'mini_mhs/score'


def small(tasks=ALL, method='lora', limit=32, configs=None, noise=0., routes=None,
          max_length=128, **options):
    "A model with one adapter (or one a task), and the first posts of its tasks' corpora"
    seed_everything(0, 'weights')
    tasks = [Task.parse(t) for t in tasks]
    encoder = load_encoder('minilm')
    names = ['shared'] if routes is None else list(routes.values())
    for name in names: encoder.add(name, method, **(options or (dict(r=2) if method == 'lora' else {})))
    encoder.activate('shared' if routes is None else None)
    encoder.train_only(names)
    corpora = {t.corpus: encoded_corpus(t.corpus, encoder.tokenizer, max_length)['train'] for t in tasks}
    counted = {c: count_answers(d, c) for c, d in corpora.items()}
    given = {t: HeadConfig(**(configs or {}).get(t.name, {})) for t in tasks}
    heads = [make_head(t, encoder.width, counted[t.corpus], given[t]) for t in tasks]
    model = Model(encoder, heads, routes)
    g = torch.Generator().manual_seed(0)
    for p in model.trainable().values(): p.data += noise*torch.randn(p.shape, generator=g)
    return model, {c: Posts(d.select(range(min(limit, len(d)))), c, encoder.tokenizer.pad_token_id)
                   for c, d in corpora.items()}


def flat(parameters): return torch.cat([p.detach().flatten().clone() for p in parameters])


def undecided(posts, count):
    "Rows of normal posts, which have no rationale, and of others"
    label = posts.flat['label']
    return np.flatnonzero(label == 0)[:count], np.flatnonzero(label != 0)[:count]


def scalars(folder):
    "What TensorBoard shows of a folder: tag → (step, value)"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()['scalars']}


def assert_near(answers, others, atol):
    "The same questions answered, numbers within `atol`"
    for a, b in zip(answers, others, strict=True):
        assert a.keys() == b.keys()
        for k in ('label_prob', 'target_prob'):
            if k in a: np.testing.assert_allclose(list(a[k].values()), list(b[k].values()), atol=atol)
        if 'toxic' in a: np.testing.assert_allclose(a['toxic'], b['toxic'], atol=atol)
        if 'severity' in a: np.testing.assert_allclose(a['severity'] or 0, b['severity'] or 0, atol=atol*10)
