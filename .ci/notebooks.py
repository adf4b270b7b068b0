"""Run every notebook; where the real corpora are missing, leave out the cells marked `#| corpus` and say which.

In CI missing corpora are an error, unless HATENB_BARE says that this machine is not meant to have them.
"""
import json, os, re, sys
from pathlib import Path

from nbdev.test import nbdev_test
from hatenb.core import settings

root = Path(__file__).resolve().parent.parent
how = 'HATENB_DATA=/folder/with/corpora make test'


def has_corpora():
    folder = settings().data_path
    return folder is not None and (folder/'hatexplain'/'dataset.json').exists()


def marked():
    "Notebook → number of its cells that need the real corpora"
    out = {}
    for p in sorted((root/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in p.parts: continue
        cells = json.loads(p.read_text(encoding='utf-8'))['cells']
        if n := sum(bool(re.search(r'^#\| *corpus\b', ''.join(c['source']), re.M)) for c in cells): out[p.relative_to(root)] = n
    return out


def main(n_workers=2):
    real = has_corpora()
    if not real and os.environ.get('CI') and not os.environ.get('HATENB_BARE'):
        sys.exit(f'error: the real corpora are missing ({settings().data_path}). Set HATENB_DATA, or HATENB_BARE=1 to do without.')
    nbdev_test(str(root/'nbs'), flags='corpus' if real else '', n_workers=n_workers, timing=True)
    if not real:
        print(f'skipped, because the real corpora are not here: {sum(marked().values())} cells of {len(marked())} notebooks')
        for p, n in marked().items(): print(f'  {p}: {n}')
        print(f'run them with: {how}')


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
