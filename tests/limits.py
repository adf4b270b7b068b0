"A bound on how long a piece of a test may take"
import contextlib, signal


@contextlib.contextmanager
def within(seconds):
    "What keeps its caller busy for ever is a fault; a bound so wide that a slow machine does not meet it"
    def late(*_): raise TimeoutError(f'still busy after {seconds} s')
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
