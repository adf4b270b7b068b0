"""Posts a second of `hatenb score`, and the memory it takes: in one process, and with 1 and 2 workers of Ray.

The posts are HateXplain's, repeated with small changes (words change places, numbers are added) so that no two are
alike, in one JSON-lines file. Each way is a command of its own that scores them into a new folder, first a tenth of
them, then all: the most memory that each process has held is the kernel's (VmHWM), and is to be the same for both.
The rate counts from the first part written to the last, so that neither starting nor the first reading is in it; on a
machine that does other things the seconds of a core say more: those of all posts, less those of the tenth.
"""
import argparse, json, os, random, re, subprocess, sys, tempfile, threading, time
from pathlib import Path

from common import keep
from hatenb.corpora import load_corpus
from hatenb.detector import open_detector
from hatenb.detector.scoring import JsonLines


def write_posts(file, count, seed=0):
    "So many posts, none like another"
    real = [' '.join(w) for split in load_corpus('hatexplain').values() for w in split['words']]
    draw = random.Random(seed)
    with open(file, 'w', encoding='utf-8') as f:
        for i in range(count):
            words = real[i % len(real)].split()
            if len(words) > 1 and i >= len(real):
                a, b = draw.sample(range(len(words)), 2)
                words[a], words[b] = words[b], words[a]
                words.append(str(i))
            print(json.dumps(dict(id=i, text=' '.join(words))), file=f)
    return file


def watch(marked, seen):
    "Of the command and of Ray's workers: the most MB that each has held, and its seconds of a core"
    for p in Path('/proc').glob('[0-9]*'):
        try:
            if marked not in (p/'environ').read_bytes(): continue
            title = (p/'cmdline').read_text().replace('\0', ' ')
            name = 'worker' if 'Map' in title and title.startswith('ray::') else 'command' if ' score ' in title else ''
            peak = int(re.search(r'VmHWM:\s+(\d+)', (p/'status').read_text())[1])/1024
            used = sum(map(int, (p/'stat').read_text().rsplit(')', 1)[1].split()[11:13]))/os.sysconf('SC_CLK_TCK')
        except (OSError, TypeError): continue
        if name: seen[name, p.name] = peak, used


def score(model, posts, out, rows, *options, tries=3):
    """Seconds, posts a second between the first and the last part, and the memory, of one command; again if it fails
    before its first part, since Ray gives up where it starts slowly"""
    mark, seen = f'HATENB_BENCHMARK={out.name}', {}
    code = 'import sys; from hatenb.cli import main; sys.argv[0] = "hatenb"; main()'
    said_to = ['--out', str(out), '--model', model, '--rows', str(rows), *options]
    start = time.time()
    p = subprocess.Popen([sys.executable, '-c', code, 'score', str(posts), *said_to], stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE, env=os.environ | dict([mark.split('=')]))
    said = []
    reader = threading.Thread(target=lambda: said.append(p.stderr.read()))
    reader.start()
    while p.poll() is None:
        watch(mark.encode(), seen)
        time.sleep(.5)
    reader.join()
    if p.returncode and tries > 1 and not list(out.rglob('*.parquet')):
        return score(model, posts, out, rows, *options, tries=tries-1)
    if p.returncode: sys.exit(said[0].decode()[-2000:])
    ends = sorted(f.stat().st_mtime for f in out.rglob('*.parquet'))
    size = sum(f.stat().st_size for f in out.rglob('*.parquet'))
    rate = rows*(len(ends)-1)/(ends[-1]-ends[0])
    memory = {}
    for (name, _), (peak, _) in seen.items(): memory[name] = max(memory.get(name, 0), round(peak))
    used = sum(used for _, used in seen.values())
    return dict(seconds=round(time.time()-start, 1), core_seconds=round(used, 1), to_first_part=round(ends[0]-start, 1),
                posts_per_second=round(rate, 1), megabytes=memory, output_bytes=size)


def reading_rate(posts):
    "Rows a second of the first reading"
    start = time.perf_counter()
    parts = JsonLines.plan(posts, 'text', 20_000)[1]
    return round(sum(p.rows for p in parts)/(time.perf_counter()-start))


ways = {'one process': ('--threads', '1'), 'Ray, 1 worker': ('--engine', 'ray', '--workers', '1'),
        'Ray, 2 workers': ('--engine', 'ray', '--workers', '2')}

if __name__ == '__main__':
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('model', help="a run's folder or name, or a bundle's folder")
    a.add_argument('--posts', type=int, default=200_000)
    a.add_argument('--ways', nargs='*', choices=list(ways), default=list(ways))
    a.add_argument('--note', default='', help='what else the machine was doing')
    a = a.parse_args()
    rows = max(a.posts//100, 50)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        few, many = write_posts(tmp/'few.jsonl', a.posts//10), write_posts(tmp/'many.jsonl', a.posts)
        m,measured,first = open_detector(a.model).manifest, {}, reading_rate(many)
        for i, way in enumerate(a.ways):
            some = {k: score(a.model, f, tmp/f'{k}{i}', rows, *ways[way]) for k, f in (('tenth', few), ('all', many))}
            a_post = (some['all']['core_seconds']-some['tenth']['core_seconds'])/(a.posts-a.posts//10)
            measured[way] = some['all'] | dict(megabytes_at_a_tenth=some['tenth']['megabytes'],
                                               core_seconds_per_1000_posts=round(1000*a_post, 2))
            keep('scoring', dict(
                model=m.id, onnx=m.onnx or 'none', posts=a.posts, rows_of_a_part=rows, cores=os.cpu_count(),
                note=a.note, bytes_per_post=round(many.stat().st_size/a.posts, 1),
                first_reading_rows_per_second=first, ways=measured))
