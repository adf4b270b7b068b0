"From the raw JSON to encoded posts, and from the cache: posts/s and seconds, best of several"
import shutil, subprocess, sys, tempfile, time, os
from pathlib import Path

from common import keep
from hatenb.batches import Posts, encode, encoded_corpus
from hatenb.core import encoder_path
from hatenb.corpora import load_corpus
from transformers import AutoTokenizer

REPEATS = 3


def timed(f):
    start = time.perf_counter()
    out = f()
    return time.perf_counter()-start, out


if __name__ == '__main__':
    tokenizer = AutoTokenizer.from_pretrained(encoder_path('minilm'))
    cold = []
    for _ in range(REPEATS):
        seconds, corpus = timed(lambda: encode(load_corpus('hatexplain'), tokenizer))
        cold.append(seconds)
    n = sum(map(len, corpus.values()))
    reading = min(timed(lambda: load_corpus('hatexplain'))[0] for _ in range(REPEATS))
    with tempfile.TemporaryDirectory() as cache:
        os.environ['HATENB_CACHE'] = cache
        first, _ = timed(lambda: encoded_corpus('hatexplain', tokenizer))
        second = min(timed(lambda: [Posts(d, 'hatexplain') for d in encoded_corpus('hatexplain', tokenizer).values()])[0] for _ in range(REPEATS))
        code = ('from transformers import AutoTokenizer; from hatenb.core import encoder_path; from hatenb.batches import encoded_corpus; '
                'encoded_corpus("hatexplain", AutoTokenizer.from_pretrained(encoder_path("minilm")))')
        process, _ = timed(lambda: subprocess.run([sys.executable, '-c', code], check=True))
    keep('reading', dict(posts=n, reading_seconds=reading, reading_and_encoding_seconds=min(cold), posts_per_second=n/min(cold),
                         first_start_with_cache_written_seconds=first, second_start_seconds=second, whole_new_process_seconds=process))
