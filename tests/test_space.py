"The Space: what the hub reads of it, and its page in a browser, in an environment of its own with gradio and the package of a detector"
import json, os, re, shutil, socket, subprocess, sys, time, tomllib, urllib.error, urllib.request, venv, zipfile
from pathlib import Path

import pytest, yaml

from hatenb.detector.runtime import Runtime, default_bundle, with_graphs

from shell import command

root = Path(__file__).resolve().parent.parent
space = root/'spaces'


def front_matter(): return yaml.safe_load((space/'README.md').read_text(encoding='utf-8').split('---\n')[1])


def test_the_hub_finds_what_it_needs():
    front = front_matter()
    assert front['sdk'] == 'gradio' and (space/front['app_file']).is_file() and re.fullmatch(r'\d+\.\d+\.\d+', front['sdk_version'])
    assert {'title', 'emoji', 'colorFrom', 'colorTo', 'license'} <= set(front) and len(front['short_description']) <= 60
    assert f'gradio=={front["sdk_version"]} ' in (space/'README.md').read_text(encoding='utf-8')


def test_it_needs_what_the_package_of_a_detector_needs():
    ours = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['project']['dependencies']
    lines = [l for l in (space/'requirements.txt').read_text().splitlines() if not l.startswith('#')]
    assert lines == sorted(d for d in ours if re.match('(numpy|onnxruntime|regex|tokenizers)>', d))


@pytest.fixture(scope='module')
def app(tmp_path_factory):
    "The page, put together as its README says, with the detector in the package; yields its address"
    made = tmp_path_factory.mktemp('space')
    out = command('bundle', with_graphs(default_bundle()), '--wheel', '--out', made/'dist')
    assert out.returncode == 0, out.stderr
    shutil.copytree(space, made/'space')
    zipfile.ZipFile(next((made/'dist').glob('*.whl'))).extractall(made/'space')
    venv.create(made/'env', with_pip=False)
    python = made/'env'/'bin'/'python'
    wanted = [f'gradio=={front_matter()["sdk_version"]}', '-r', space/'requirements.txt']
    subprocess.run([sys.executable, '-m', 'pip', '--python', python, 'install', '-q', *wanted], check=True)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(GRADIO_SERVER_PORT=str(port), HOME=str(made))
    assert subprocess.run([python, '-c', 'import torch'], env=env, capture_output=True).returncode
    process = subprocess.Popen([python, 'app.py'], cwd=made/'space', env=env)
    try: yield f'http://127.0.0.1:{port}', process
    finally:
        process.terminate()
        process.wait(30)


def opened(browser, address, process):
    "The page, as soon as it is there and has drawn itself"
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.ui import WebDriverWait
    def _answers(b):
        assert process.poll() is None, 'the page has stopped'
        b.get(address)
        return True
    WebDriverWait(browser, 300, ignored_exceptions=[WebDriverException]).until(_answers)
    WebDriverWait(browser, 120).until(lambda b: b.find_elements('css selector', 'textarea'))


def asked(address, name, *values):
    "What the page gives to a program: a question is left there, then its answer is fetched (gradio.app/guides/querying-gradio-apps-with-curl)"
    body = json.dumps({'data': values}).encode()
    call = urllib.request.Request(f'{address}/gradio_api/call/{name}', body, {'Content-Type': 'application/json'})
    event = json.load(urllib.request.urlopen(call, timeout=60))['event_id']
    said = urllib.request.urlopen(f'{address}/gradio_api/call/{name}/{event}', timeout=60).read().decode()
    kind, data = re.search(r'event: (\w+)\ndata: (.*)', said).groups()
    return kind, json.loads(data)


@pytest.mark.full
def test_a_program_asks_and_gets_the_answer(app):
    address, process = app
    for _ in range(600):
        assert process.poll() is None, 'the page has stopped'
        try: urllib.request.urlopen(address, timeout=10)
        except urllib.error.URLError: time.sleep(.5)
        else: break
    post = 'what a day. Muslims should all be thrown out of our country'
    kind, (shown,) = asked(address, 'answer', post, 'macro-f1', False, False)
    assert kind == 'complete' and all(w in shown for w in ('Islam', 'Severity', '<mark')) and 'By sentence' not in shown
    assert 'By sentence' in asked(address, 'answer', post, 'false-alarms-5', True, False)[1][0]
    assert asked(address, 'answer', 'a'*20_481, 'macro-f1', False, False)[0] == 'error'


@pytest.mark.full
def test_a_person_types_a_post_and_sees_what_the_detector_says(browser, app, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait
    opened(browser, *app)

    def wait(script, *given): return WebDriverWait(browser, 60).until(lambda b: b.execute_script(script, *given))
    def press(label):
        "A button or a box, as soon as it is drawn"
        find = "[...document.querySelectorAll('button, label')].find(e => e.innerText.trim().startsWith(arguments[0]))"
        wait(f'const e = {find}; e?.click(); return !!e', label)
    def said(*words):
        "What is shown, as soon as all of these words are in it"
        return wait("const t = document.querySelector('.hatenb')?.innerText ?? ''; return arguments[0].every(w => t.includes(w)) && t", words)

    post = 'what a day. Muslims should all be thrown out of our country'
    browser.find_element('css selector', 'textarea').send_keys(post)
    press('Ask')
    text = said('Toxic', '▸ yes', 'Label', 'Targets', '▸ Islam', 'Attributes', 'Severity')
    assert 'By sentence' not in text
    marked = [m.text for m in browser.find_elements('css selector', '.hatenb mark')]
    assert marked == [w['word'] for w in Runtime()(post)['rationale']] and 'Muslims' in marked
    press('Also sentence by sentence')
    press('false-alarms-5')
    press('Ask')
    assert 'what a day.' in said('By sentence').partition('By sentence')[2]
    browser.save_screenshot(str(tmp_path/'space.png'))
    print(tmp_path/'space.png')
    severe = [e['message'] for e in browser.get_log('browser') if e['level'] == 'SEVERE']
    assert not severe
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=360, height=740, deviceScaleFactor=1, mobile=True))
    try: assert browser.execute_script('return document.documentElement.scrollWidth') <= 360
    finally: browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
