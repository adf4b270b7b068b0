"""The command line as a shell sees it, without the imports of a fresh process: it runs in a copy of a process that has done
nothing but these imports. A copy of the test process itself would now and then wait for ever for a thread that it lacks."""
import multiprocessing, os, sys, tempfile
from pathlib import Path
from types import SimpleNamespace

clean = multiprocessing.get_context('forkserver')
clean.set_forkserver_preload(['hatenb.cli', 'hatenb.detector.detector', 'hatenb.pages'])   # what the commands would import


def _child(args, cwd, env, out, err):
    import hatenb.cli
    for n, path in ((1, out), (2, err)): os.dup2(os.open(path, os.O_WRONLY), n)
    sys.stdout, sys.stderr = (open(n, 'w', encoding='utf-8', buffering=1, closefd=False) for n in (1, 2))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, '')
    sys.argv = ['hatenb', *map(str, args)]
    hatenb.cli.main()


def command(*args, cwd=None, **env):
    "What `hatenb args` says, and its exit status"
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder)/'out', Path(folder)/'err'
        for f in (out, err): f.touch()
        env = {**os.environ, 'COLUMNS': '200', **env}
        p = clean.Process(target=_child, args=(list(map(str, args)), str(cwd or os.getcwd()), env, str(out), str(err)))
        p.start()
        p.join(560)
        if p.is_alive(): p.kill()
        p.join()
        return SimpleNamespace(returncode=p.exitcode, stdout=out.read_text(encoding='utf-8'), stderr=err.read_text(encoding='utf-8'))
