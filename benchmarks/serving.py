"""Latency and throughput of `hatenb serve`: 1, 8 and 64 clients, posts of 20 and 200 words, batching on and off.

Two servers of one bundle (int8 ONNX) run side by side, one with batching and one without, and are asked in turn, round by
round; clients send their next post when the last is answered. Clients and servers share the cores that this process
may use (`taskset -c 1 python benchmarks/serving.py RUN` for one core), so what the clients cost is in the figures.
"""
import argparse, asyncio, contextlib, itertools, json, os, re, socket, subprocess, sys, tempfile, time
from pathlib import Path

import httpx
import numpy as np
from common import keep
from hatenb.corpora import load_corpus
from hatenb.detector import Detector


def posts_of(words, n):
    "Posts of so many words each, cut out of HateXplain's test posts laid end to end"
    stream = [w for p in load_corpus('hatexplain')['test'].shuffle(seed=0)['words'] for w in p]
    return [' '.join(stream[i*words:(i+1)*words]) for i in range(min(n, len(stream)//words))]


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def served(bundle, *options):
    "`hatenb serve` in a process of its own; gives its port"
    port = free_port()
    options = 'serve', '--model', bundle, '--onnx', '--port', port, '--per-minute', 10**9, *options
    start = 'from hatenb.cli import main; main()'
    process = subprocess.Popen([sys.executable, '-c', start, *map(str, options)], stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                httpx.get(f'http://127.0.0.1:{port}/health').raise_for_status()
                break
            except httpx.TransportError:
                if process.poll() is not None: sys.exit('the server did not start')
                time.sleep(.2)
        yield port
    finally:
        process.terminate()
        process.wait()


async def ask(reader, writer, body):
    "The seconds of one request"
    start = time.perf_counter()
    writer.write(b'POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s' % (len(body), body))
    head = await reader.readuntil(b'\r\n\r\n')
    if not head.startswith(b'HTTP/1.1 200'): sys.exit(head.decode())
    await reader.readexactly(int(re.search(rb'(?i)content-length: *(\d+)', head)[1]))
    return time.perf_counter()-start


async def client(connection, bodies, until):
    "Ask on one connection, one request after the other, at least once; the seconds that each took"
    took = [await ask(*connection, next(bodies))]
    while time.perf_counter() < until: took.append(await ask(*connection, next(bodies)))
    return took


async def load(port, bodies, clients, seconds):
    "Seconds of each request, and how long all took"
    connections = [await asyncio.open_connection('127.0.0.1', port) for _ in range(clients)]
    start = time.perf_counter()
    found = await asyncio.gather(*(client(c, bodies, start+seconds) for c in connections))
    spent = time.perf_counter()-start
    for _, writer in connections: writer.close()
    return [t for each in found for t in each], spent


def summary(rounds):
    "What some rounds say together"
    took = np.concatenate([t for t, _ in rounds])
    each = [len(t)/s for t, s in rounds]
    p50, p95, p99 = (round(1000*float(np.quantile(took, q)), 1) for q in (.5, .95, .99))
    return dict(requests=len(took), posts_per_second=round(len(took)/sum(s for _, s in rounds), 1), rounds=[round(e, 1) for e in each],
                p50_ms=p50, p95_ms=p95, p99_ms=p99)


def cells(ports, seconds, rounds, counts, lengths):
    "All combinations, the two servers in turn"
    for words in lengths:
        bodies = itertools.cycle([json.dumps(dict(text=p)).encode() for p in posts_of(words, 200)])
        for clients in counts:
            found = {k: [] for k in ports}
            for i in range(rounds+1):
                for k, port in ports.items():
                    r = asyncio.run(load(port, bodies, clients, seconds if i else 1))
                    if i: found[k].append(r)           # the first one warms up
            for k, rs in found.items(): yield dict(words=words, clients=clients, batching=k, **summary(rs))


if __name__ == '__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('run', type=Path, help='folder of a finished run')
    a.add_argument('--seconds', type=float, default=8, help='of a round')
    a.add_argument('--rounds', type=int, default=3)
    a = a.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as tmp:
        detector = Detector.from_run(a.run)
        bundle = detector.save(Path(tmp)/'bundle', onnx='int8')
        with served(bundle) as on, served(bundle, '--no-batching') as off:
            found = list(cells({True: on, False: off}, a.seconds, a.rounds, (1, 8, 64), (20, 200)))
    keep('serving', dict(
        run=detector.record['name'], answers=list(detector.answers), onnx='int8', seconds=a.seconds, rounds=a.rounds,
        cores=len(os.sched_getaffinity(0)), threads=os.environ.get('OMP_NUM_THREADS'), cells=found,
        load_before=round(before, 1), load_after=round(os.getloadavg()[0], 1),
        note='clients and servers share the cores; the load is that of the whole machine, where 0 is idle'))
