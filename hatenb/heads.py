"A bridge for chapters that are not yet moved to tasks and kinds; goes when the last is"
from types import SimpleNamespace
from hatenb.corpora import corpora
from hatenb.kinds import Head, HeadConfig, make_head as _make_head, mlp, poolings, kinds  # noqa: F401
from hatenb.tasks import Task, partition, partitions, task_keys  # noqa: F401

heads = kinds
questions = {q.name: SimpleNamespace(kind=q.kind, gold=q.column, outputs=q.outputs, corpus=c)
             for c in ('mhs', 'hatexplain') for q in corpora[c].questions}

def make_head(task, width, frequencies, config=None):
    counted = {k: dict(share=v) if isinstance(v, list) else v for k,v in frequencies.items()}
    for name in ('rationale', 'text'): counted.setdefault(name, {})
    return _make_head(task, width, counted, config)
