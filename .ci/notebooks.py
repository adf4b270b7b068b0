"""Run every notebook; where the real corpora are missing, leave out the cells marked `#| corpus` and say which.

In CI missing corpora are an error, unless HATENB_BARE says that this machine is not meant to have them.
"""
import json, multiprocessing, os, re, sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.test import test_nb
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


def run(name, flags):
    "Whether a notebook runs, and its seconds"
    cfg = get_config()
    os.chdir(cfg.nbs_path)
    skipped = [f for f in cfg.tst_flags.split() if f not in flags]
    return name, *test_nb(root/'nbs'/name, skip_flags=skipped, force_flags=flags, basepath=cfg.config_path, cell_timeout=600)


def run_all(flags, n_workers):
    """Run each notebook in a process of its own: a chapter patches the classes of its module, and the next notebook of the
    same process would meet them. The children are copies of this process, so the libraries are imported once."""
    import hatenb.cli, hatenb.pages, hatenb.asking, hatenb.detector.detector   # noqa: F401
    names = [str(p.relative_to(root/'nbs')) for p in sorted((root/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]
    with multiprocessing.get_context('fork').Pool(n_workers, maxtasksperchild=1) as pool:
        results = pool.starmap(run, [(n, flags) for n in names], chunksize=1)
    for name, _, seconds in sorted(results, key=lambda r: -r[2])[:10]: print(f'{name}: {seconds:.0f} s')
    failed = [name for name, passed, _ in results if not passed]
    if failed: sys.exit('these notebooks failed: ' + ', '.join(failed))
    print(f'{len(results)} notebooks ran')


def main(n_workers=2):
    real = has_corpora()
    if not real and os.environ.get('CI') and not os.environ.get('HATENB_BARE'):
        sys.exit(f'error: the real corpora are missing ({settings().data_path}). Set HATENB_DATA, or HATENB_BARE=1 to do without.')
    run_all(['corpus'] if real else [], n_workers)
    if not real:
        print(f'skipped, because the real corpora are not here: {sum(marked().values())} cells of {len(marked())} notebooks')
        for p, n in marked().items(): print(f'  {p}: {n}')
        print(f'run them with: {how}')


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
