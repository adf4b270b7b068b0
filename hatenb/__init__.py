"""Hate speech detected in several ways at once: which class, against whom, because of which words, how severe.

The names below are the public face; each is imported from its module when it is first used, so `import hatenb` is quick.
"""
import importlib

__version__ = '0.1.0'

_face = {
    'load_corpus': 'corpora', 'show': 'corpora',
    'Task': 'tasks',
    'RunConfig': 'runs', 'Run': 'runs', 'make_run': 'making', 'Study': 'studies', 'run_study': 'studies',
    'load_encoder': 'encoder', 'merge_adapters': 'merging',
    'evaluate': 'evaluation', 'compare': 'evaluation',
    'Detector': 'detector', 'Scorer': 'detector',
}
__all__ = [*_face]


def __getattr__(name):
    if name not in _face: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module = importlib.import_module(f'{__name__}.{_face[name]}')
    return getattr(module, name)


def __dir__(): return sorted({*globals(), *_face})
