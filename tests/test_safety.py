"""What must not change while the house is rearranged: metrics from stored predictions, a small study, a bundle's answers, the commands.

The data in `safety/` was written by the code before the rearrangement. A change that is meant to alter one of these numbers
writes it anew and says why in its commit.
"""
import json, subprocess, sys
from pathlib import Path

import pytest, torch
from hatenb.evaluation import decisions
from hatenb.detector import Detector
from hatenb.evaluation import evaluate, load_predictions
from hatenb.studies import Study, run_study

here = Path(__file__).resolve().parent/'safety'
commands = {'corpora', 'run', 'study', 'report', 'compare', 'evaluate', 'explain', 'functional', 'demo', 'detect', 'bundle', 'serve'}


def stored(name): return json.loads((here/name).read_text(encoding='utf-8'))


def same(found, known, tolerance, place=''):
    "Everything that is in `known` is in `found`, numbers within `tolerance`"
    if isinstance(known, dict):
        assert set(known) <= set(found), f'{place}: {sorted(set(known)-set(found))} are missing'
        for k, v in known.items(): same(found[k], v, tolerance, f'{place}.{k}')
    elif isinstance(known, list):
        assert len(found) == len(known), place
        for i, (a, b) in enumerate(zip(found, known)): same(a, b, tolerance, f'{place}[{i}]')
    elif isinstance(known, float): assert found == pytest.approx(known, abs=tolerance), place
    else: assert found == known, place


@pytest.mark.parametrize('name', ['hatexplain', 'score', 'part', 'text'])
def test_metrics_from_stored_predictions(name):
    same(evaluate(load_predictions(here/'predictions'/f'{name}.parquet'), 50), stored(f'metrics/{name}.json'), 1e-6)


def test_temperatures_and_thresholds():
    same(decisions(load_predictions(here/'predictions'/'hatexplain.parquet')), stored('decisions.json'), 1e-6)


def test_a_small_study_gives_the_same_metrics(tmp_path):
    "One epoch on the made-up corpus: single tasks, all tasks, merged, fused, baselines, hidden words"
    base = dict(dtype='float32', limit=120, train=dict(epochs=1, batch_size=16, lr=2e-3, head_lr=5e-3))
    lora = dict(adapter_options=dict(r=2))
    four = ['mini/label', 'mini/target', 'mini/rationale', 'mini_mhs/score']
    runs = [dict(tasks=four, **lora), dict(tasks=[[x] for x in four[:3]], **lora), dict(tasks=['mini/target:1/2'], **lora),
            dict(tasks=four[:3], strategy='merge', strategy_options=dict(rule='knots', learn='heads'), sources=lora),
            dict(tasks=four[:3], strategy='fuse', strategy_options=dict(variant='static', width=16), sources=lora),
            dict(tasks=four, baseline=['majority', 'tfidf'], train={}),
            dict(tasks=['mini/text'], **lora, train=dict(epochs=1, batch_size=16, lr=2e-3))]
    records = run_study(Study.from_dict(dict(name='safety', base=base, runs=runs)), tmp_path)
    known = stored('study.json')
    assert len(records) == len(known)
    for r, k in zip(records, known):
        found = {task: {m: v['value'] for m, v in ms.items() if isinstance(v, dict) and 'value' in v} for task, ms in r['metrics']['test'].items()}
        same(found, k['metrics'], .01, f'{k["method"]} {" ".join(k["tasks"])}')      # kernels of another processor may turn a post over


def test_the_bundle_answers_the_same():
    detector = Detector.from_pretrained(here/'bundle', device='cpu', dtype='float32')
    known = stored('answers.json')
    same([dict(d) for d in detector([k['text'] for k in known])], known, 1e-4)


def test_the_commands_are_there():
    said = subprocess.run([sys.executable, '-c', 'from hatenb.cli import main; main()', '--help'], capture_output=True, text=True, check=True).stdout
    assert commands <= {l.split()[0] for l in said.splitlines() if l.strip()}
