"Perspective's API as its clients see it: Google's for Python, and npm's `perspective-api-client`"
import json, os, shutil, subprocess
from pathlib import Path

import pytest

from conftest import missing
from hatenb.detector.serving import make_app
from served import Stub, running


@pytest.fixture(scope='module')
def address():
    with running(make_app(Stub(), token='secret')) as where: yield where


@pytest.fixture(scope='module')
def analyze(address):
    "Asks by Google's client, as the documentation of Perspective shows it"
    from googleapiclient import discovery
    client = discovery.build('commentanalyzer', 'v1alpha1', developerKey='secret', static_discovery=False, cache_discovery=False,
                             discoveryServiceUrl=f'{address}/$discovery/rest?version=v1alpha1')
    return lambda **body: client.comments().analyze(body=body).execute()


def refusal(f, **body):
    "Status and error that Google's client raises"
    from googleapiclient.errors import HttpError
    with pytest.raises(HttpError) as e: f(**body)
    return e.value.status_code, json.loads(e.value.content)['error'], str(e.value)


every = 'TOXICITY', 'SEVERE_TOXICITY', 'IDENTITY_ATTACK', 'INSULT', 'PROFANITY', 'THREAT'


def test_every_attribute_comes_from_its_head(analyze):
    found = analyze(comment=dict(text='you are bad1'), requestedAttributes={a: {} for a in every}, languages=['en'],
                    doNotStore=True, sessionId='s', clientToken='c7')
    scores = {k: v['summaryScore'] for k, v in found['attributeScores'].items()}
    assert [scores[a]['value'] for a in every] == [.9, .7, .02, .8, .02, .02]
    assert {s['type'] for s in scores.values()} == {'PROBABILITY'}
    assert (found['clientToken'], found['languages'], found['detectedLanguages']) == ('c7', ['en'], ['en'])


def test_spans_are_sentences_and_low_scores_are_left_out(analyze):
    text = 'Good soup. 😀 You are bad1!'
    found = analyze(comment=dict(text=text, type='PLAIN_TEXT'), spanAnnotations=True,
                    requestedAttributes=dict(TOXICITY={}, INSULT=dict(scoreType='PROBABILITY', scoreThreshold=.5), THREAT=dict(scoreThreshold=.5)))
    found = found['attributeScores']
    assert [(text[s['begin']:s['end']], s['score']['value']) for s in found['TOXICITY']['spanScores']] == [('Good soup.', .1), ('😀 You are bad1!', .9)]
    assert [s['begin'] for s in found['INSULT']['spanScores']] == [11]
    assert found['THREAT'] == {}
    whole = analyze(comment=dict(text=text), requestedAttributes=dict(TOXICITY={}))['attributeScores']['TOXICITY']
    assert [(s['begin'], s['end']) for s in whole['spanScores']] == [(0, len(text))]


a_post = dict(comment=dict(text='a'), requestedAttributes=dict(INSULT={}))
REFUSED = [
    (dict(requestedAttributes=dict(FLIRTATION={})), 'Unknown requested attribute: FLIRTATION', 'INVALID_REQUEST'),
    (dict(requestedAttributes={}), 'Missing requested_attributes', 'NO_REQUESTED_ATTRIBUTES'),
    (dict(comment=dict(text='')), 'Comment must be non-empty.', 'COMMENT_EMPTY'),
    (dict(comment=dict(text='a'*20_481)), 'Comment text too long.', 'COMMENT_TOO_LONG'),
    (dict(languages=['en', 'fr']), 'Attribute INSULT does not support request languages: en, fr', 'LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE'),
    (dict(comment=dict(text='добрый день')), 'Unable to detect language', 'LANGUAGE_DETECTION_FAILED'),
    (dict(nonesuch=1), 'Unknown name "nonesuch"', 'INVALID_REQUEST')]


@pytest.mark.parametrize('change,message,kind', REFUSED, ids=[r[2] for r in REFUSED])
def test_what_is_refused_comes_as_the_error_that_is_documented(analyze, change, message, kind):
    status, error, shown = refusal(analyze, **a_post | change)
    assert (status, error['code'], error['status'], error['details'][0]['errorType']) == (400, 400, 'INVALID_ARGUMENT', kind)
    assert message in error['message'] and kind in shown


def test_failures_have_the_shape_of_errors_too(address, analyze):
    status, error, _ = refusal(analyze, **a_post | dict(comment=dict(text='broken')))
    assert (status, error['status']) == (500, 'INTERNAL')
    from starlette.testclient import TestClient
    client = TestClient(make_app(Stub(), per_minute=3, token='secret'), base_url='http://127.0.0.1')
    def said(body, path='analyze', key='secret'):
        r = client.post(f'/v1alpha1/comments:{path}', params=dict(key=key), content=body)
        return r.status_code, r.json()['error']['status'], r.json()['error']['message']
    assert said(b'{', key='x') == (400, 'INVALID_ARGUMENT', 'API key not valid. Please pass a valid API key.')
    assert said(b'{')[:2] == said(b'[]')[:2] == said(b'null')[:2] == (400, 'INVALID_ARGUMENT')
    assert said(b'{}')[:2] == (429, 'RESOURCE_EXHAUSTED')
    assert said(b'{}', 'suggestscore')[:2] == (501, 'UNIMPLEMENTED')
    assert said(b'{}', 'nonesuch')[:2] == (404, 'NOT_FOUND')


def test_half_a_character_in_a_name_is_refused_as_any_other_name():
    from starlette.testclient import TestClient
    client = TestClient(make_app(Stub()), base_url='http://127.0.0.1', raise_server_exceptions=False)
    for body in (rb'{"comment": {"text": "a"}, "requestedAttributes": {"\udc00": {}}}', rb'{"\udc00": 1}'):
        r = client.post('/v1alpha1/comments:analyze', content=body)
        assert (r.status_code, r.json()['error']['status']) == (400, 'INVALID_ARGUMENT')


def test_a_detector_with_fewer_heads_serves_fewer_attributes():
    from starlette.testclient import TestClient
    class Fewer(Stub):
        def __call__(self, texts): return [{k: v for k, v in d.items() if not k.startswith(('attribute', 'label', 'toxic'))} for d in super().__call__(texts)]
    client = TestClient(make_app(Fewer()), base_url='http://127.0.0.1')
    asked = dict(comment=dict(text='a'), requestedAttributes=dict(SEVERE_TOXICITY={}, INSULT={}))
    error = client.post('/v1alpha1/comments:analyze', json=asked).json()['error']
    assert error['message'] == 'Unknown requested attribute: INSULT (served here: SEVERE_TOXICITY)'
    found = client.post('/v1alpha1/comments:analyze', json=asked | dict(dropUnsupportedAttributes=True)).json()
    assert list(found['attributeScores']) == ['SEVERE_TOXICITY']


# npm

@pytest.fixture(scope='session')
def npm_folder(tmp_path_factory):
    "A folder with `perspective-api-client`, fetched from npm; nothing fails where there is no node, or no network on purpose"
    if not (shutil.which('node') and shutil.which('npm')): pytest.skip('node missing: install the packages nodejs and npm')
    if os.environ.get('HATENB_BARE'): pytest.skip('network missing: npm is asked where HATENB_BARE is not set')
    folder = tmp_path_factory.mktemp('npm')
    said = subprocess.run(['npm', 'install', '--no-audit', '--no-fund', '--ignore-scripts', 'perspective-api-client@3.1.0'], cwd=folder, capture_output=True, text=True)
    if said.returncode: missing('npm', f'the package cannot be fetched: {said.stderr[-300:]}')
    return folder


def test_npms_client_reads_scores_and_errors(address, npm_folder):
    script = Path(__file__).with_name('perspective_client.js')
    said = subprocess.run(['node', script, npm_folder, address, 'secret'], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    plain, spans, two, unknown, wrong = json.loads(said.stdout)
    assert plain['attributeScores']['TOXICITY']['summaryScore'] == dict(value=.9, type='PROBABILITY')
    assert spans['clientToken'] == '7' and len(spans['attributeScores']['INSULT']['spanScores']) == 2
    assert list(two['attributeScores']) == ['TOXICITY', 'IDENTITY_ATTACK']
    assert (unknown['name'], unknown['status']) == ('ResponseError', 400) and 'Unknown requested attribute: FLIRTATION' in unknown['message']
    assert (wrong['status'], wrong['message']) == (400, 'API key not valid. Please pass a valid API key.')
