"Fixtures that several tests share"
import os
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
