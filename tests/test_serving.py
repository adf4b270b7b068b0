"The local page: its limits, and what a person sees in a browser"
import json, socket, threading, time

import pytest

from hatenb.core import HatenbError
from hatenb.corpora.hatexplain import TARGETS
from hatenb.detector.runtime import Detection
from hatenb.detector.serving import RateLimit, make_app


class Stub:
    "Answers as a detector does, at once"
    id = 'a-stub <b>'
    def __call__(self, text):
        if text == 'broken': raise HatenbError('the answer to label is no number', 'a bundle')
        bad = [w for w in text.split() if w.startswith('bad')]
        words = [dict(word=w, start=text.index(w), end=text.index(w)+len(w), weight=.9) for w in bad]
        label = dict(normal=.1, offensive=.2, hatespeech=.7) if bad else dict(normal=.9, offensive=.1, hatespeech=0.)
        target = {t: .9 if t == 'Women' and bad else .01 for t in TARGETS}
        return Detection(text=text, label=max(label, key=label.get), label_prob=label, targets=['Women'] if bad else [],
                         target_prob=target, rationale=words, severity=1.25, windows=1)


@pytest.fixture
def served():
    "The page on a port of its own; yields its address"
    import uvicorn
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    app = make_app(Stub(), most=500, per_minute=6)
    server = uvicorn.Server(uvicorn.Config(app, host='127.0.0.1', port=port, log_level='error'))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started: time.sleep(.02)
    yield f'http://127.0.0.1:{port}'
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def client():
    from starlette.testclient import TestClient
    return TestClient(make_app(Stub(), most=100, per_minute=50), base_url='http://127.0.0.1')


BODIES = [(b'', 400), (b'\xff', 400), (b'[1]', 422), (b'{}', 422), (b'{"text": null}', 422),
          (b'{"text": "'+b'a'*101+b'"}', 413), (b'x'*5000, 413), (b'['*2000, 400), (b'{"text": "broken"}', 500),
          *((json.dumps(dict(text=t)).encode(), 200) for t in ('\ud83d\0', '', '😂'*100))]


@pytest.mark.parametrize('body,status', BODIES)
def test_any_body_is_answered(client, body, status):
    r = client.post('/detect', content=body)
    assert r.status_code == status and r.json()
    if status != 200: assert isinstance(r.json()['detail'], str)


def test_only_its_own_names_and_ways(client):
    assert client.get('/', headers={'Host': 'evil.example'}).status_code == 400
    assert client.post('/detect', json=dict(text='a'), headers={'Host': 'evil.example'}).status_code == 400
    assert client.get('/detect').status_code == 405 and client.get('/docs').status_code == 404
    page = client.get('/')
    assert "default-src 'none'" in page.headers['Content-Security-Policy']
    assert 'http://' not in page.text and 'https://' not in page.text and 'a-stub &lt;b&gt;' in page.text


def test_the_rate_is_limited_for_each_address():
    now = [0.]
    limit = RateLimit(3, lambda: now[0], most=2)
    assert [limit.wait('a') for _ in range(4)] == [0, 0, 0, 20]
    assert limit.wait('b') == 0 == limit.wait('c')
    assert len(limit.levels) == 2                      # memory does not grow with visitors
    now[0] = 1000
    assert [limit.wait('b') for _ in range(4)] == [0, 0, 0, 20]


def scheme(browser, name):
    features = [dict(name='prefers-color-scheme', value=name)]
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=features))


def brightness(browser, what):
    "Of the page's colour `what`, from 0 to 765"
    colour = browser.find_element('tag name', 'body').value_of_css_property(what)
    return sum(map(int, colour.strip('rgba()').split(',')[:3]))


def ask(browser, text):
    from selenium.webdriver.support.ui import WebDriverWait
    box = browser.find_element('id', 'post')
    box.clear()
    box.send_keys(text)
    browser.find_element('tag name', 'button').click()
    def answered(b):
        said = b.find_element('id', 'said').text
        return said != 'reading …' and (said or b.find_elements('css selector', '#answer .hatenb'))
    WebDriverWait(browser, 10).until(answered)
    return browser.find_element('id', 'answer')


def test_a_person_types_a_post_and_sees_four_answers(browser, served):
    browser.get(served)
    said = ask(browser, 'they are bad1 people <img src=x onerror=alert(1)>')
    assert [m.text for m in said.find_elements('tag name', 'mark')] == ['bad1']
    shown = ('Label', 'hatespeech', '0.70', 'Targets', 'Women', '0.90', 'Severity', '+1.25',
             '<img src=x onerror=alert(1)>')
    for seen in shown: assert seen in said.text, seen
    assert not said.find_elements('tag name', 'img')
    underline = said.find_element('tag name', 'mark').value_of_css_property('text-decoration-line')
    assert 'underline' in underline                                                  # seen without colour
    severe = [e['message'] for e in browser.get_log('browser') if e['level'] == 'SEVERE']
    assert not [m for m in severe if 'favicon' not in m]
    for name, light in (('light', True), ('dark', False)):
        scheme(browser, name)
        ground, ink = brightness(browser, 'background-color'), brightness(browser, 'color')
        assert (ground > ink) is light and abs(ground-ink) > 400
    browser.set_window_size(360, 740)
    assert browser.execute_script('return document.documentElement.scrollWidth <= document.documentElement.clientWidth')
    browser.set_window_size(1280, 900)
    scheme(browser, '')
    for _ in range(6): ask(browser, 'again')
    assert 'too many posts' in browser.find_element('id', 'said').text
