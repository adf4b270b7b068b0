"The command line as a shell sees it, without the imports of a fresh process: it runs in a copy of this one"
import multiprocessing, os, sys, tempfile
from types import SimpleNamespace

import hatenb.cli, hatenb.detector.detector, hatenb.pages   # what the commands would import

fork = multiprocessing.get_context('fork')


def _child(args, cwd, env, out, err):
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = (open(n, 'w', encoding='utf-8', buffering=1, closefd=False) for n in (1, 2))
    if cwd: os.chdir(cwd)
    sys.path.insert(0, '')
    os.environ.update(env)
    sys.argv = ['hatenb', *map(str, args)]
    hatenb.cli.main()


def command(*args, cwd=None, **env):
    "What `hatenb args` says, and its exit status"
    with tempfile.TemporaryFile('w+', encoding='utf-8') as out, tempfile.TemporaryFile('w+', encoding='utf-8') as err:
        p = fork.Process(target=_child, args=(args, cwd, {'COLUMNS': '200', **env}, out, err))
        p.start()
        p.join(560)
        if p.is_alive(): p.kill()
        p.join()
        for f in (out, err): f.seek(0)
        return SimpleNamespace(returncode=p.exitcode, stdout=out.read(), stderr=err.read())
