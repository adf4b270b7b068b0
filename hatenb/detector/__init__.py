"""The detector: what answers for any post, from a run or from a bundle.

Its parts are imported when they are asked for, so that `hatenb.detector.runtime` stands without torch.
"""
_homes = dict(
    runtime=('Answerer', 'Detection', 'Detections', 'Manifest', 'Runtime', 'json_line', 'page_style', 'read_manifest'),
    detector=('Detector', 'dense_encoder'),
    bundle=('agreement_table', 'export_graph', 'push_bundle', 'save_bundle'),
    card=('markdown_table', 'model_card'),
    deciding=('fit_decisions', 'points_table'),
    false_alarms=('false_alarm_table',),
    package=('save_wheel',),
    serving=('make_app', 'serve'),
    opening=('open_detector',),
    scoring=('Scorer', 'score_files'),
    dropin=('as_classifier', 'as_pipeline'))
_home_of = {name: home for home,names in _homes.items() for name in names}
__all__ = list(_home_of)


def __getattr__(name):
    if name not in _home_of: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_home_of[name]}'), name)


def __dir__(): return [*globals(), *__all__]
