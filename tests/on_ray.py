"Ray on this machine, for tests"
import os
from pathlib import Path

import pytest

from hatenb.core import begin_ray


def tasks(word):
    "Processes below this one that are at a task of Ray whose name has this word"
    return [p for p, title in descendants(os.getpid()).items() if title.startswith('ray::') and word in title]


def descendants(pid):
    "Processes below a process, with their titles"
    parents, titles = {}, {}
    for p in Path('/proc').glob('[0-9]*'):
        try: parents[int(p.name)], titles[int(p.name)] = int((p/'stat').read_text().rsplit(')', 1)[1].split()[1]), (p/'cmdline').read_text()
        except OSError: pass
    below = {pid}
    for _ in parents:
        more = {c for c, of in parents.items() if of in below} - below
        if not more: break
        below |= more
    return {p: titles[p] for p in below if p in titles}


def begun_ray(cores=2):
    "Ray; where a machine is so busy that it gives up on starting, there is nothing to test"
    try: return begin_ray(cores)
    except Exception as e:
        if 'timed out during startup' not in str(e): raise
        pytest.skip('Ray did not start in time')
