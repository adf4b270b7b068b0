"Fixtures that several tests share"
import os, shutil
import pytest
from hatenb.core import settings

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('HATENB_QUIET', '1')


@pytest.fixture(scope='session')
def corpora_folder():
    "The folder with the real corpora; missing it fails in CI, and skips on a machine that never had them"
    folder = settings().data_path
    if folder is not None and (folder/'hatexplain'/'dataset.json').exists(): return folder
    why = 'the real corpora are missing: point HATENB_DATA at a folder with hatexplain/ and measuring_hate_speech/'
    if os.environ.get('CI'): pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope='session')
def browser():
    "Chromium without a window, driven by selenium; missing it fails in CI, and skips on a machine without it"
    chromium, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if not (chromium and driver):
        why = 'the browser is missing: install the packages chromium and chromium-driver'
        if os.environ.get('CI'): pytest.fail(why)
        pytest.skip(why)
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for a in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--window-size=1280,900'): options.add_argument(a)
    b = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield b
    b.quit()
