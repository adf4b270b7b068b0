"Seconds of one core that each notebook of the tour takes (time of the processor, so that other work on the machine does not count)"
import json, re, resource, subprocess, sys
from pathlib import Path

from common import keep

nbs = Path(__file__).resolve().parent.parent/'nbs'


def steps():
    "The notebooks that the page of the tour names"
    cells = json.loads((nbs/'tour.ipynb').read_text(encoding='utf-8'))['cells']
    return [n for c in cells for n in re.findall(r"^    '([\w/]+)':", ''.join(c['source']), re.M)]


def used():
    of = resource.getrusage(resource.RUSAGE_CHILDREN)
    return of.ru_utime+of.ru_stime


def seconds(name):
    before = used()
    subprocess.run([Path(sys.executable).parent/'nbdev-test', nbs/f'{name}.ipynb', '--n-workers', '1'], check=True)
    return used()-before


if __name__ == '__main__': keep('tour', dict(seconds={n: round(seconds(n), 1) for n in steps()}))
