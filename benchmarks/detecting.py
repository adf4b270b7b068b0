"""Posts a second of the detector, beside `transformers.pipeline` on the same encoder and `detoxify` on its small
model's architecture, on the same raw posts.

The detector answers by torch, and as bundles (int8, float32) by ONNX Runtime and by OpenVINO. All are in one process
and take turns, round by round, first one post at a time, then 64; a ratio is the median over the rounds. The pipeline is a text-classification pipeline with HateXplain's three classes, which answers one of the
detector's questions; its weights and those of detoxify (ALBERT, 6 classes) are random: time does not depend on them.
With a real run the agreement with its stored test predictions is noted too.
"""
import argparse, os, statistics, tempfile, time, warnings
from dataclasses import replace
from pathlib import Path

import numpy as np, torch
from common import keep
from hatenb.core import encoder_path
from hatenb.corpora import LABELS, TARGETS, load_corpus
from hatenb.detector import Detector, Runtime
from hatenb.pretokenize import hatexplain_words
from hatenb.runs import Run
from hatenb.undisguise import undisguised_words
from sklearn.metrics import f1_score
from transformers import (AlbertConfig, AlbertForSequenceClassification, AutoModelForSequenceClassification,
                          AutoTokenizer, logging, pipeline)

logging.set_verbosity_error()
warnings.simplefilter('ignore')


def classifier():
    "The pipeline as its documentation shows it"
    place = encoder_path('minilm')
    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(place)
    return pipeline('text-classification', model=model, tokenizer=tokenizer, top_k=None, device='cpu')


def detoxify():
    """detoxify's own `predict`, on `original-small`'s architecture (albert-base-v2) with random weights; the
    vocabulary is the encoder's, since its own would have to be fetched"""
    from detoxify import Detoxify
    d = Detoxify.__new__(Detoxify)
    config = AlbertConfig(vocab_size=30_522, embedding_size=128, hidden_size=768, num_hidden_layers=12,
                          num_attention_heads=12, intermediate_size=3072, num_labels=6)
    d.model = AlbertForSequenceClassification(config).eval()
    d.tokenizer = AutoTokenizer.from_pretrained(encoder_path('minilm'))
    d.device, d.class_names = 'cpu', ['toxicity', 'severe_toxicity', 'obscene', 'threat', 'insult', 'identity_attack']
    return d


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter()-start


def uncalibrated(detector, texts):
    "The answers without temperatures"
    manifest = detector.manifest
    detector.manifest = replace(manifest, temperatures={})
    try: return detector(texts)
    finally: detector.manifest = manifest


def macro(gold, found): return f1_score(gold, found, average='macro', zero_division=0)


def agreement(detector, folder):
    "How the detector's answers to the test posts stand to the run's stored predictions, and to the gold"
    stored = Run(folder).predictions('test').query("corpus == 'hatexplain'").reset_index(drop=True)
    words = load_corpus('hatexplain')['test'].to_pandas().set_index('id').loc[stored.id, 'words']
    texts = [' '.join(w) for w in words]
    same = np.array([undisguised_words(t, hatexplain_words).words == list(w) for t, w in zip(texts, words)])
    raw, answers = uncalibrated(detector, texts), detector(texts)
    mine = np.array([[a['label_prob'][l] for l in LABELS] + [a['target_prob'][t] for t in TARGETS] for a in raw])
    theirs = np.concatenate([np.stack(stored.label_prob), np.stack(stored.target_prob)], 1)
    apart, gold = np.abs(mine-theirs)[same], np.stack(stored.target)
    return dict(
        posts=len(texts), read_as_in_training=int(same.sum()), largest_difference=float(apart.max()),
        mean_difference=float(apart.mean()),
        same_class=float((mine[:, :3].argmax(1) == theirs[:, :3].argmax(1)).mean()),
        label_macro_f1=macro(stored.label, [LABELS.index(a['label']) for a in answers]),
        target_macro_f1=macro(gold, [[t in a['targets'] for t in TARGETS] for a in answers]),
        target_macro_f1_at_half=macro(gold, mine[:, 3:] >= .5))


def severity(detector, folder):
    """Pearson r of the severity of the Measuring Hate Speech test posts with their gold, and how far it is from the
    run's stored prediction on average; nothing if the run learned no score"""
    stored = Run(folder).predictions('test').query("corpus == 'mhs_share'")
    if stored.empty: return {}
    texts = load_corpus('mhs_share')['test'].to_pandas().set_index('id').loc[stored.id, 'text']
    mine = [a['severity'] for a in detector(list(texts))]
    return dict(posts=len(mine), pearson=float(np.corrcoef(mine, stored.score)[0, 1]),
                mean_difference=float(np.abs(mine-stored.score_pred).mean()))


def sizes(bundle):
    "Megabytes of the ONNX files, and of the rest"
    size = {f: f.stat().st_size/1e6 for f in bundle.rglob('*') if f.is_file()}
    onnx = sum(v for f, v in size.items() if f.suffix == '.onnx')
    return dict(onnx_int8_megabytes=round(onnx, 2), bundle_megabytes=round(sum(size.values())-onnx, 2))


def opened(bundle, runner):
    "A bundle, run by that library on as many threads as torch takes"
    os.environ['HATENB_RUNNER'] = runner
    return Runtime(bundle, threads=torch.get_num_threads())


def runtimes(detector, folder):
    "Name → a bundle of the detector without torch"
    bundles = {k: detector.save(folder/k, onnx=k) for k in ('int8', 'float32')}
    known = {'ONNX Runtime': 'onnxruntime', 'OpenVINO': 'openvino'}
    return {f'detector, {title}, {k}': opened(b, runner) for title, runner in known.items() for k, b in bundles.items()}


def readers(run, detector, small):
    "Name → a function of posts and batch size"
    exact, plain = Detector.from_run(run, exact=True), Detector.from_run(run, dtype='float32')
    usual, toxic = classifier(), detoxify()
    return {
        'detector': lambda texts, n: detector(texts, batch_size=n),
        'detector, exact': lambda texts, n: exact(texts, batch_size=n),
        'detector, float32': lambda texts, n: plain(texts, batch_size=n),
        **{k: lambda texts, n, d=d: d(texts, batch_size=n) for k, d in small.items()},
        'pipeline': lambda texts, n: usual(texts, batch_size=n, truncation=True, max_length=128),
        'detoxify': lambda texts, n: [toxic.predict(texts[i:i+n]) for i in range(0, len(texts), n)]}


def rounds_of(readers, posts, one, n):
    "Reader → seconds a post of each round, one at a time (1) and 64 together; a round before the first warms up"
    out = {k: [] for k in readers}
    for i in range(n+1):
        for k, f in readers.items():
            alone = seconds(lambda: [f([t], 1) for t in posts[:one]])/one
            together = seconds(lambda: f(posts, 64))/len(posts)
            if i: out[k].append({1: alone, 64: together})
    return out


def speed(times): return {f'batch_{n}': round(1/statistics.median(t[n] for t in times), 1) for n in (1, 64)}


def ratios(times, others):
    "How many times as fast as each of the others, the median over the rounds"
    def _ratio(n, other): return round(statistics.median(o[n]/t[n] for t, o in zip(times, other)), 2)
    return {f'batch_{n}': {k: _ratio(n, other) for k, other in others.items()} for n in (1, 64)}


if __name__ == '__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('run', type=Path, help='folder of a finished run on HateXplain')
    a.add_argument('--posts', type=int, default=256)
    a.add_argument('--one', type=int, default=24, help='posts that are given one by one')
    a.add_argument('--rounds', type=int, default=5)
    a = a.parse_args()
    some = load_corpus('hatexplain')['test'].shuffle(seed=0).select(range(a.posts))
    with tempfile.TemporaryDirectory() as tmp:
        detector = Detector.from_run(a.run)
        small = runtimes(Detector.from_run(a.run, dtype='float32'), Path(tmp))
        posts = [' '.join(w) for w in some['words']]
        rounds = rounds_of(readers(a.run, detector, small), posts, a.one, a.rounds)
        others = {k: rounds[k] for k in ('pipeline', 'detoxify')}
        trained = Detector.from_run(a.run, merge=False)
        compared = {'as trained': trained, 'detector': detector, **small}
        exact = {'one reading': detector, 'each corpus its own': Detector.from_run(a.run, exact=True)}
        keep('detecting', dict(
            run=detector.record['name'], posts=a.posts, rounds=a.rounds,
            dtype=str(next(detector.passes[0].dense.parameters()).dtype),
            posts_per_second={k: speed(t) for k, t in rounds.items()},
            times_as_fast_as={k: ratios(t, others) for k, t in rounds.items() if k.startswith('detector')},
            **sizes(Path(tmp)/'int8'), severity={k: severity(d, a.run) for k, d in exact.items()},
            agreement={k: agreement(d, a.run) for k, d in compared.items()}))
