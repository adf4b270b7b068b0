"""Latency and throughput of `hatenb serve`: 1, 8 and 64 clients, posts of 20 and 200 words, batching on and off.

Two servers of one bundle run side by side, answer by the runtime (ONNX), one with batching and one without, and are asked
in turn, round by round; clients send their next post when the last is answered. Clients and servers share the cores that
this process may use (`taskset -c 1 python benchmarks/serving.py BUNDLE` for one core), so what the clients cost is in the
figures. The bundle: `hatenb bundle RUN --out BUNDLE --onnx int8`.
"""
import argparse, asyncio, contextlib, itertools, json, os, random, re, socket, subprocess, sys, time
from pathlib import Path

import httpx
import numpy as np
import psutil
from common import keep
from hatenb.core import settings
from hatenb.detector.runtime import read_manifest


def posts_of(words, n):
    "Posts of so many words each, cut out of HateXplain's posts laid end to end"
    posts = json.loads((settings().data_path/'hatexplain'/'dataset.json').read_text(encoding='utf-8')).values()
    some = random.Random(0).sample([p['post_tokens'] for p in posts], 4000)
    stream = [w for p in some for w in p]
    return [' '.join(stream[i*words:(i+1)*words]) for i in range(min(n, len(stream)//words))]


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


start = """import os, sys
from hatenb.detector.runtime import Runtime
from hatenb.detector.serving import serve
bundle, port, together = sys.argv[1:]
serve(Runtime(bundle, threads=len(os.sched_getaffinity(0))), port=int(port), together=int(together), per_minute=10**9)"""


@contextlib.contextmanager
def served(bundle, together):
    "A server in a process of its own; gives its port and the process"
    port = free_port()
    process = subprocess.Popen([sys.executable, '-c', start, bundle, str(port), str(together)])
    try:
        while True:
            try:
                httpx.get(f'http://127.0.0.1:{port}/health').raise_for_status()
                break
            except httpx.TransportError:
                if process.poll() is not None: sys.exit('the server did not start')
                time.sleep(.2)
        yield port, psutil.Process(process.pid)
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


async def load(server, bodies, clients, seconds):
    "Seconds of each request, how long all took, and the server's processor time"
    port, process = server
    before = process.cpu_times()
    connections = [await asyncio.open_connection('127.0.0.1', port) for _ in range(clients)]
    start = time.perf_counter()
    found = await asyncio.gather(*(client(c, bodies, start+seconds) for c in connections))
    spent, after = time.perf_counter()-start, process.cpu_times()
    for _, writer in connections: writer.close()
    return [t for each in found for t in each], spent, after.user+after.system-before.user-before.system


def summary(rounds):
    "What some rounds say together"
    took = np.concatenate([t for t, _, _ in rounds])
    seconds, processor = (sum(r[i] for r in rounds) for i in (1, 2))
    p50, p95, p99 = (round(1000*float(np.quantile(took, q)), 1) for q in (.5, .95, .99))
    return dict(requests=len(took), posts_per_second=round(len(took)/seconds, 1), processor_ms=round(1000*processor/len(took), 2),
                rounds=[dict(posts_per_second=round(len(t)/s, 1), processor_ms=round(1000*c/len(t), 2)) for t, s, c in rounds],
                p50_ms=p50, p95_ms=p95, p99_ms=p99)


def cells(servers, seconds, rounds, counts, lengths):
    "All combinations, the two servers in turn"
    for s in servers.values(): asyncio.run(load(s, itertools.cycle([b'{"text": "warm"}']), 1, 1))
    for words in lengths:
        bodies = itertools.cycle([json.dumps(dict(text=p)).encode() for p in posts_of(words, 200)])
        for clients in counts:
            found = {k: [] for k in servers}
            for _ in range(rounds):
                for k, s in servers.items(): found[k].append(asyncio.run(load(s, bodies, clients, seconds)))
            for k, rs in found.items():
                yield dict(words=words, clients=clients, batching=k, **summary(rs))
                print(words, clients, k, summary(rs), file=sys.stderr)


if __name__ == '__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('bundle', type=Path, help='folder of a bundle with ONNX files')
    a.add_argument('--seconds', type=float, default=8, help='of a round')
    a.add_argument('--rounds', type=int, default=3)
    a.add_argument('--together', type=int, default=8, help='posts of a call where batching is on')
    a = a.parse_args()
    before, m = os.getloadavg()[0], read_manifest(a.bundle)
    with served(a.bundle, a.together) as on, served(a.bundle, 1) as off:
        found = list(cells({True: on, False: off}, a.seconds, a.rounds, (1, 8, 64), (20, 200)))
    keep('serving', dict(
        run=m.id, answers=list(m.questions), onnx=m.onnx, together=a.together, seconds=a.seconds, rounds=a.rounds,
        cores=len(os.sched_getaffinity(0)), cells=found,
        load_before=round(before, 1), load_after=round(os.getloadavg()[0], 1),
        note='clients and servers share the cores; the load is that of the whole machine, where 0 is idle'))
