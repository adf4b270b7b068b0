"A server of a test's own, and a stand-in for the detector behind it"
import contextlib, socket, threading, time

from hatenb.core import HatenbError
from hatenb.corpora.hatexplain import TARGETS
from hatenb.corpora.toxic_spans import attributes
from hatenb.detector.runtime import Detection


class Stub:
    "Answers as a detector does, at once: words that begin with `bad` are"
    id, answers = 'a-stub <b>', ['label', 'target', 'rationale', 'score', 'attribute']

    def __init__(self, seconds=0): self.seconds, self.calls = seconds, []

    def count_windows(self, texts): return [1+len(t)//2000 for t in texts]

    def __call__(self, texts):
        self.calls.append(len(texts))
        time.sleep(self.seconds)
        return list(map(self.one, texts))

    def one(self, text):
        if text == 'broken': raise HatenbError('the answer to label is no number', 'a bundle')
        bad = [w for w in text.split() if w.startswith('bad')]
        words = [dict(word=w, start=text.index(w), end=text.index(w)+len(w), weight=.9) for w in bad]
        label = dict(normal=.1, offensive=.2, hatespeech=.7) if bad else dict(normal=.9, offensive=.1, hatespeech=0.)
        target = {t: .9 if t == 'Women' and bad else .01 for t in TARGETS}
        return Detection(text=text, toxic=.9 if bad else .1, is_toxic=bool(bad), label=max(label, key=label.get), label_prob=label, targets=['Women'] if bad else [],
                         target_prob=target, rationale=words, severity=1.25, attributes=['insult'] if bad else [],
                         attribute_prob={a: .8 if a == 'insult' and bad else .02 for a in attributes}, windows=1)


@contextlib.contextmanager
def running(app, **settings):
    "An application on a port of its own, with settings of uvicorn; gives its address"
    import uvicorn
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, **settings | dict(host='127.0.0.1', port=port, log_level='critical' if settings else 'error')))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started: time.sleep(.02)
    try: yield f'http://127.0.0.1:{port}'
    finally:
        server.should_exit = True
        thread.join(10)
