"Fixtures that several tests share"
import os, shutil

import pytest

from hatenb.core import settings

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('HATENB_QUIET', '1')


def missing(what, how):
    "Skip a test for want of something, in CI fail; HATENB_BARE says that a machine is not meant to have the corpora"
    why = f'{what} missing: {how}'
    if os.environ.get('CI') and not (what == 'corpora' and os.environ.get('HATENB_BARE')): pytest.fail(why)
    pytest.skip(why)


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
