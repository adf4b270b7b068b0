"""From a cold start to the first answer: `hatenb detect "a post"` beside `python -c "import numpy, onnxruntime,
tokenizers"`, and the memory of the process that answers.

Processor time (of user and system), so that other work on the machine does not count; the two take turns, a ratio is
the median over the rounds. Without BUNDLE the default detector answers, whose ONNX file is made before anything is
timed. (Linux)
"""
import argparse, os, resource, statistics, subprocess, sys

from common import keep
from hatenb.detector.runtime import Runtime

BARE = 'import numpy, onnxruntime, tokenizers'
DETECT = '''
import sys
from hatenb.cli import main
sys.argv = ["hatenb", "detect", "a post", *sys.argv[1:]]
main()
'''
MANY = '''
import sys
from hatenb.detector.runtime import Runtime
list(Runtime(*sys.argv[1:]).stream(f"a post, and {i} more words of it" for i in range(2000)))
print(next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")))
'''


def said(code, *args):
    return subprocess.run([sys.executable, '-c', code, *args], check=True, capture_output=True, text=True).stdout


def seconds(code, *args):
    "Processor time of a process of its own"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said(code, *args)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime+after.ru_stime-before.ru_utime-before.ru_stime


if __name__ == '__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('bundle', nargs='?', help='a bundle with ONNX files (default: the default detector)')
    a.add_argument('--rounds', type=int, default=7)
    a = a.parse_args()
    place = [a.bundle] if a.bundle else []
    Runtime(*place)
    asked = [x for b in place for x in ('--model', b)]
    rounds = [(seconds(BARE), seconds(DETECT, *asked), seconds('pass')) for _ in range(a.rounds)]
    bare, detect, python = (statistics.median(t) for t in zip(*rounds))
    keep('starting', dict(
        rounds=a.rounds, seconds=dict(python=round(python, 3), imports=round(bare, 3), detect=round(detect, 3)),
        detect_over_imports=round(statistics.median(d/b for b, d, _ in rounds), 2),
        peak_megabytes_of_2000_posts=round(int(said(MANY, *place))*1024/1e6),
        clock='processor time', threads=int(os.environ.get('OMP_NUM_THREADS', 0)) or os.cpu_count()))
