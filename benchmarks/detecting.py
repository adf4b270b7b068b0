"""Posts a second of the detector, beside `transformers.pipeline` on the same encoder and `detoxify` on its small model's architecture, on the same raw posts.

All are in one process and take turns, round by round, first one post at a time, then 64; a ratio is the median over the rounds. The pipeline is a text-classification pipeline with
HateXplain's three classes, which answers one of the detector's questions; its weights and those of detoxify (ALBERT, 6 classes) are random: time does not depend on them. With a real run the
agreement with its stored test predictions is noted too.
"""
import argparse, statistics, tempfile, time, warnings
from pathlib import Path

import numpy as np
from common import keep
from hatenb.core import encoder_path
from hatenb.corpora import LABELS, TARGETS, load_corpus
from hatenb.detector import Detector, hatexplain_words
from hatenb.evaluation import load_predictions
from sklearn.metrics import f1_score
from transformers import AlbertConfig, AlbertForSequenceClassification, AutoModelForSequenceClassification, AutoTokenizer, logging, pipeline

logging.set_verbosity_error()
warnings.simplefilter('ignore')


def classifier():
    "The pipeline as its documentation shows it"
    model = AutoModelForSequenceClassification.from_pretrained(encoder_path('minilm'), num_labels=3)
    return pipeline('text-classification', model=model, tokenizer=AutoTokenizer.from_pretrained(encoder_path('minilm')), top_k=None, device='cpu')


def detoxify():
    "detoxify's own `predict`, on `original-small`'s architecture (albert-base-v2) with random weights; the vocabulary is the encoder's, since its own would have to be fetched"
    from detoxify import Detoxify
    tokenizer = AutoTokenizer.from_pretrained(encoder_path('minilm'))
    d = Detoxify.__new__(Detoxify)
    config = AlbertConfig(vocab_size=30_522, embedding_size=128, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, num_labels=6)
    d.model, d.tokenizer, d.device = AlbertForSequenceClassification(config).eval(), tokenizer, 'cpu'
    d.class_names = ['toxicity', 'severe_toxicity', 'obscene', 'threat', 'insult', 'identity_attack']
    return d


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter()-start


def agreement(detector, folder):
    "How the detector's answers to the test posts stand to the run's stored predictions, and to the gold"
    stored = load_predictions(folder/'predictions'/'test.parquet').query("corpus == 'hatexplain'").reset_index(drop=True)
    words = load_corpus('hatexplain')['test'].to_pandas().set_index('id').loc[stored.id, 'words']
    texts = [' '.join(w) for w in words]
    same = np.array([hatexplain_words(t).words == list(w) for t, w in zip(texts, words)])
    temperatures, detector.temperatures = detector.temperatures, {}
    raw = detector(texts)
    detector.temperatures = temperatures
    answers = detector(texts)
    mine = np.array([[a['label_prob'][l] for l in LABELS] + [a['target_prob'][t] for t in TARGETS] for a in raw])
    theirs = np.concatenate([np.stack(stored.label_prob), np.stack(stored.target_prob)], 1)
    gold = np.stack(stored.target)
    return dict(posts=len(texts), read_as_in_training=int(same.sum()), largest_difference=float(np.abs(mine-theirs)[same].max()), mean_difference=float(np.abs(mine-theirs)[same].mean()),
                same_class=float((mine[:, :3].argmax(1) == theirs[:, :3].argmax(1)).mean()), label_macro_f1=f1_score(stored.label, [LABELS.index(a['label']) for a in answers], average='macro'),
                target_macro_f1=f1_score(gold, [[t in a['targets'] for t in TARGETS] for a in answers], average='macro', zero_division=0),
                target_macro_f1_at_half=f1_score(gold, mine[:, 3:] >= .5, average='macro', zero_division=0))


def severity(detector, folder):
    "Pearson r of the severity of the Measuring Hate Speech test posts with their gold, and how far it is from the run's stored prediction on average; nothing if the run learned no score"
    stored = load_predictions(folder/'predictions'/'test.parquet').query("corpus == 'mhs_share'")
    if stored.empty: return {}
    texts = load_corpus('mhs_share')['test'].to_pandas().set_index('id').loc[stored.id, 'text']
    mine = [a['severity'] for a in detector(list(texts))]
    return dict(posts=len(mine), pearson=float(np.corrcoef(mine, stored.score)[0, 1]), mean_difference=float(np.abs(mine-stored.score_pred).mean()))


if __name__ == '__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('run', type=Path, help='folder of a finished run on HateXplain')
    a.add_argument('--posts', type=int, default=256)
    a.add_argument('--one', type=int, default=24, help='posts that are given one by one')
    a.add_argument('--rounds', type=int, default=5)
    a = a.parse_args()
    posts = [' '.join(w) for w in load_corpus('hatexplain')['test'].shuffle(seed=0).select(range(a.posts))['words']]
    with tempfile.TemporaryDirectory() as tmp:
        detector = Detector.from_run(a.run)
        bundle = detector.save(Path(tmp)/'bundle', onnx='int8')
        size = {f.suffix: sum(g.stat().st_size for g in bundle.rglob(f'*{f.suffix}')) for f in bundle.rglob('*.onnx')}
        size = dict(onnx_int8_megabytes=round(size['.onnx']/1e6, 2), bundle_megabytes=round((sum(f.stat().st_size for f in bundle.rglob('*') if f.is_file())-size['.onnx'])/1e6, 2))
        quantized = Detector.from_pretrained(bundle, backend='onnx')
        ways = {'detector': lambda texts, n: detector(texts, batch_size=n), 'detector, exact': lambda texts, n, d=Detector.from_run(a.run, exact=True): d(texts, batch_size=n), 'detector, float32': lambda texts, n, d=Detector.from_run(a.run, dtype='float32'): d(texts, batch_size=n),
                'detector, ONNX int8': lambda texts, n: quantized(texts, batch_size=n), 'pipeline': lambda texts, n, p=classifier(): p(texts, batch_size=n, truncation=True, max_length=128)}
        toxic = detoxify()
        ways['detoxify'] = lambda texts, n: [toxic.predict(texts[i:i+n]) for i in range(0, len(texts), n)]
        rounds = {k: [] for k in ways}
        for i in range(a.rounds+1):                      # the first warms up
            for k, f in ways.items():
                times = dict(one=seconds(lambda: [f([t], 1) for t in posts[:a.one]])/a.one, many=seconds(lambda: f(posts, 64))/len(posts))
                if i: rounds[k].append(times)
        speed = {k: {f'batch_{n}': round(1/statistics.median(t[w] for t in ts), 1) for w, n in (('one', 1), ('many', 64))} for k, ts in rounds.items()}
        ratios = {k: {f'batch_{n}': {other: round(statistics.median(o[w]/t[w] for t, o in zip(ts, rounds[other])), 2) for other in ('pipeline', 'detoxify')} for w, n in (('one', 1), ('many', 64))}
                  for k, ts in rounds.items() if k.startswith('detector')}
        keep('detecting', dict(run=detector.record['id'], posts=a.posts, rounds=a.rounds, dtype=str(next(detector.passes[0].dense.parameters()).dtype), posts_per_second=speed, times_as_fast_as=ratios, **size,
                               severity={k: severity(Detector.from_run(a.run, exact=e), a.run) for k, e in (('one reading', False), ('each corpus its own', True))},
                               agreement={k: agreement(d, a.run) for k, d in (('as trained', Detector.from_run(a.run, merge=False)), ('detector', detector), ('detector, ONNX int8', quantized))}))
