"The server: its limits, many texts, overload, the token, and what a person sees in a browser"
import asyncio, json, socket

import httpx, pytest

from hatenb.core import HatenbError
from hatenb.detector import serving
from hatenb.detector.serving import RateLimit, make_app, read_token, serve
from served import Stub, running


@pytest.fixture
def served():
    "The page on a port of its own; yields its address"
    with running(make_app(Stub(), most=500, per_minute=6)) as address: yield address


@pytest.fixture
def client(): return client_of(most=100, per_minute=50)


def client_of(detector=None, **how):
    from starlette.testclient import TestClient
    return TestClient(make_app(detector or Stub(), **how), base_url='http://127.0.0.1')


BODIES = [(b'', 400), (b'\xff', 400), (b'[1]', 422), (b'{}', 422), (b'{"text": null}', 422),
          (b'{"text": "a", "texts": ["b"]}', 422), (b'{"texts": "a"}', 422), (b'{"texts": ["a", 1]}', 422),
          (b'{"texts": ["a", "broken"]}', 500), (b'{"texts": ["'+b'a'*101+b'"]}', 413), (b'{"texts": []}', 200),
          (b'{"text": "'+b'a'*101+b'"}', 413), (b'x'*101_201, 413), (b'['*2000, 400), (b'{"text": "broken"}', 500),
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


def test_many_texts_count_as_many_and_are_answered_in_order():
    client = client_of(per_minute=10, many=4)
    texts = ['a bad1', 'good', 'bad2']
    answers = client.post('/detect', json=dict(texts=texts)).json()['answers']
    assert [a['text'] for a in answers] == texts and [a['label'] for a in answers] == ['hatespeech', 'normal', 'hatespeech']
    assert client.post('/detect', json=dict(texts=['a']*5)).status_code == 413
    told = [client.post('/detect', json=dict(texts=['a']*4)) for _ in range(2)]
    assert [r.status_code for r in told] == [200, 429] and int(told[1].headers['Retry-After']) > 1


# many at once

def ask_together(address, bodies, path='/detect', **how):
    "The responses to requests that are sent at the same time"
    async def _ask():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=30, **how) as client:
            return await asyncio.gather(*(client.post(path, json=b) for b in bodies))
    return asyncio.run(_ask())


def test_requests_that_come_together_share_calls_and_get_their_own_answers():
    stub = Stub(seconds=.02)
    with running(make_app(stub)) as address:
        bodies = [dict(texts=[f'post {i}', f'bad{i}']) for i in range(30)] + [dict(text='broken')]
        said = ask_together(address, bodies)
    assert [r.status_code for r in said] == [200]*30 + [500]
    for b, r in zip(bodies, said[:30]): assert [a['text'] for a in r.json()['answers']] == b['texts']
    assert max(stub.calls) > 2                      # more than one request in a call


def test_overload_is_said_at_once_and_nothing_is_answered_by_half():
    stub = Stub(seconds=.1)
    with running(make_app(stub, waiting=8, together=4)) as address:
        said = ask_together(address, [dict(texts=[f'{i} a', f'{i} b']) for i in range(20)])
        refused = [r for r in said if r.status_code == 503]
        answered = [(i, r) for i, r in enumerate(said) if r.status_code == 200]
        assert len(refused)+len(answered) == 20 and len(answered) >= 4 and refused
        for r in refused: assert int(r.headers['Retry-After']) >= 1 and set(r.json()) == {'detail'}
        for i, r in answered: assert [a['text'] for a in r.json()['answers']] == [f'{i} a', f'{i} b']
        assert sum(stub.calls) == 1+2*len(answered)             # what is refused costs no call
        assert ask_together(address, [dict(text='again')])[0].status_code == 200


def test_more_requests_than_are_answered_at_once_are_told_to_come_again():
    with running(make_app(Stub(seconds=.3), at_once=2)) as address:
        said = ask_together(address, [dict(text='a')]*6)
        assert sorted(r.status_code for r in said) == [200]*2 + [503]*4
        assert all(r.headers['Retry-After'] == '1' for r in said if r.status_code == 503)
        assert httpx.get(f'{address}/health').json()['status'] == 'ok'


def test_who_hangs_up_takes_nobody_along():
    with running(make_app(Stub(seconds=.2))) as address:
        host, port = address.removeprefix('http://').split(':')
        with socket.create_connection((host, int(port))) as s:
            s.sendall(b'POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 13\r\n\r\n{"text": "a"}')
        assert [r.status_code for r in ask_together(address, [dict(text='b')]*3)] == [200]*3


def served_with(monkeypatch, detector, **how):
    "The application that `serve` runs, and the settings that it gives uvicorn"
    import uvicorn
    found = []
    monkeypatch.setattr(uvicorn, 'run', lambda app, **settings: found.append((app, settings)))
    serve(detector, **how)
    return found[0]


def test_who_says_nothing_holds_no_place_and_who_waits_for_an_answer_keeps_his(monkeypatch):
    monkeypatch.setattr(serving, 'idle_seconds', .5)
    app, settings = served_with(monkeypatch, Stub(seconds=1.5))
    with running(app, **settings | dict(limit_concurrency=4)) as address:
        where = address.removeprefix('http://').split(':')
        silent = [socket.create_connection(where, timeout=60) for _ in range(4)]
        silent[0].sendall(b'GET /health HTTP/1.1\r\nHost: 127.')
        assert [s.recv(1) for s in silent] == [b'']*4               # closed, where they would stay for ever
        for s in silent: s.close()
        said = httpx.post(f'{address}/detect', json=dict(text='bad1'), timeout=60)
        assert said.status_code == 200 and said.json()['label'] == 'hatespeech'


def test_names_that_are_given_stay_where_the_address_is_not_its_own(monkeypatch):
    from starlette.testclient import TestClient
    def status(**how):
        app, _ = served_with(monkeypatch, Stub(), host='0.0.0.0', token='secret', **how)
        return TestClient(app, base_url='http://elsewhere.example').get('/').status_code
    assert (status(), status(hosts=('mine.example',)), status(hosts=('elsewhere.example',))) == (200, 400, 200)


def test_a_request_with_more_posts_than_a_minute_allows_is_answered_after_a_minute(monkeypatch):
    now = [0.]
    monkeypatch.setattr(serving, 'RateLimit', lambda per_minute: RateLimit(per_minute, lambda: now[0]))
    client = client_of(per_minute=5)
    def status(): return client.post('/detect', json=dict(texts=['a']*8)).status_code
    assert (status(), status()) == (200, 429)
    now[0] = 60.
    assert status() == 200


def test_many_short_posts_are_no_longer_than_one_may_be():
    posts = dict(texts=['a'*900]*50)
    assert [client_of(most=1000, many=n).post('/detect', json=posts).status_code for n in (49, 50)] == [413, 200]


def test_work_is_limited_by_windows_not_by_posts():
    stub = Stub()
    client = client_of(stub, windows=4, per_minute=20)
    def said(*texts): return client.post('/detect', json=dict(texts=texts))
    calls = len(stub.calls)
    assert said('a'*5999).status_code == 200                       # three windows of the stub
    refused = said('a'*5999, 'b'*5999)
    assert refused.status_code == 413 and '2 posts are read in 6 windows, more than 4' in refused.json()['detail']
    assert len(stub.calls) == calls+1                              # what is refused is not read
    asked = dict(comment=dict(text='a'*8000), requestedAttributes=dict(TOXICITY={}))
    error = client.post('/v1alpha1/comments:analyze', json=asked).json()['error']
    assert error['code'] == 400 and error['details'][0]['errorType'] == 'COMMENT_TOO_LONG'
    assert [said('a'*5999).status_code for _ in range(3)] == [200, 200, 429]    # 3+6+5 were taken of twenty, and 3+3 are


# the token

def test_the_token_is_asked_for_wherever_posts_are(monkeypatch, tmp_path):
    client = client_of(token='secret')
    ways = [{}, dict(headers={'Authorization': 'Bearer wrong'}), dict(headers={'X-Goog-Api-Key': ''}), dict(params=dict(key='secre')),
            dict(headers={'Authorization': 'Bearer secret'}), dict(params=dict(key='secret'))]
    assert [client.post('/detect', json=dict(text='a'), **w).status_code for w in ways] == [401]*4 + [200]*2
    assert [client.get('/metrics', **w).status_code for w in ways] == [401]*4 + [200]*2
    assert client.get('/health').status_code == client.head('/health').status_code == client.get('/').status_code == 200
    monkeypatch.setenv('HATENB_TOKEN', 'outside')
    file = tmp_path/'token'
    file.write_text(' inside\n')
    assert (read_token(), read_token(file)) == ('outside', 'inside')
    file.write_text('\n')
    for wrong in (file, tmp_path/'none', tmp_path):
        with pytest.raises(HatenbError): read_token(wrong)
    file.write_text('sécret')
    with pytest.raises(HatenbError, match='header'): read_token(file)


def test_metrics_are_what_prometheus_reads():
    from prometheus_client.parser import text_string_to_metric_families
    client = client_of()
    for text in ('a', 'b', 1): client.post('/detect', json=dict(text=text))
    client.get('/never/heard/of/it')
    found = {(s.name, s.labels.get('path'), s.labels.get('status')): s.value
             for f in text_string_to_metric_families(client.get('/metrics').text) for s in f.samples}
    assert found['hatenb_request_seconds_count', '/detect', '200'] == 2
    assert found['hatenb_request_seconds_count', '/detect', '422'] == 1
    assert found['hatenb_request_seconds_count', 'none', '404'] == 1       # paths that strangers make up are one
    assert found['hatenb_call_posts_sum', None, None] == 2 and found['hatenb_waiting_windows', None, None] == 0


# the page

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
    assert any(ask(browser, 'again') and 'too many posts' in browser.find_element('id', 'said').text for _ in range(20))


def test_the_page_sends_the_token_behind_its_address(browser):
    with running(make_app(Stub(), token='secret')) as address:
        browser.get(address)
        ask(browser, 'bad1')
        assert 'token' in browser.find_element('id', 'said').text
        browser.get('about:blank')
        browser.get(f'{address}/#secret')
        assert 'hatespeech' in ask(browser, 'bad1').text
