"An encoder by its name on a hub: fetched from a server that answers as the hub does, then found in the cache without one"
import hashlib, json, os, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest, yaml
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

COMMIT = '0123456789abcdef0123456789abcdef01234567'
REPO = 'somebody/tiny-bert'


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "What the repository holds: file name → bytes"
    root = tmp_path_factory.mktemp('repository')
    (root/'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'kettle', 'on', 'the', 'stove']))
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=10, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32)).save_pretrained(root)
    BertTokenizerFast(vocab_file=str(root/'vocab.txt')).save_pretrained(root)
    return {p.name: p.read_bytes() for p in root.iterdir()}


@pytest.fixture
def hub(files):
    "A server with that one repository; yields its address and the paths it was asked for"
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def answer(self, body=b'', status=200, **headers):
            self.send_response(status)
            for k, v in {'Content-Length': len(body), **headers}.items(): self.send_header(k.replace('_', '-'), str(v))
            self.end_headers()
            if self.command != 'HEAD': self.wfile.write(body)

        def do_GET(self):
            path = self.path.partition('?')[0]
            asked.append(path)
            if path.startswith(f'/api/models/{REPO}'):
                siblings = [dict(rfilename=f, path=f, type='file', size=len(b), oid=hashlib.sha1(b).hexdigest()) for f, b in files.items()]
                body = siblings if '/tree/' in path else dict(id=REPO, modelId=REPO, sha=COMMIT, siblings=siblings, private=False, tags=[])
                return self.answer(json.dumps(body).encode(), Content_Type='application/json')
            name = path.rpartition('/')[2]
            if not path.startswith(f'/{REPO}/resolve/') : return self.answer(status=404, X_Error_Code='RepoNotFound')
            if name not in files: return self.answer(status=404, X_Error_Code='EntryNotFound', X_Repo_Commit=COMMIT)
            self.answer(files[name], ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET
        def log_message(self, *_): pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}', asked
    server.shutdown()


def load(home, endpoint, name=REPO, offline=False):
    "Load the encoder in a process of its own, which prints its width and a digest of its weights"
    code = ('import sys; from hatenb.core import HatenbError; from hatenb.encoder import load_encoder, tensor_digest\n'
            'try: e = load_encoder(sys.argv[1]); print(e.width, tensor_digest(e.tensors()))\n'
            'except HatenbError as e: print("refused:", e)')
    env = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING'))} | dict(HF_HOME=str(home), HF_ENDPOINT=endpoint, NO_PROXY='127.0.0.1', no_proxy='127.0.0.1')
    if offline: env['HF_HUB_OFFLINE'] = '1'
    p = subprocess.run([sys.executable, '-c', code, name], env=env, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, p.stderr
    return p.stdout.strip().splitlines()[-1]


def test_fetched_once_then_found_without_the_hub(hub, tmp_path):
    endpoint, asked = hub
    first = load(tmp_path, endpoint)
    assert first.startswith('16 ') and any(p.endswith('model.safetensors') for p in asked)
    asked.clear()
    assert load(tmp_path, endpoint, offline=True) == first
    assert not asked


def test_a_name_that_the_hub_does_not_have(hub, tmp_path):
    said = load(tmp_path, hub[0], 'somebody/else')
    assert said.startswith('refused:') and 'somebody/else' in said and 'HATENB_ENCODER' in said


def test_the_folder_of_results_is_a_data_set(tmp_path):
    "Its card names files that are there, and the hub's library reads them by the run's name"
    from datasets import get_dataset_config_names, load_dataset
    results = Path(__file__).resolve().parent.parent/'results'
    names = get_dataset_config_names(str(results))
    assert names[0] == 'gold' and len(names) > 1
    run = load_dataset(str(results), names[1], cache_dir=tmp_path)
    assert set(run) == {'validation', 'test'} and {'corpus', 'id'} <= set(run['test'].column_names) and 'text' not in run['test'].column_names
    front = yaml.safe_load((results/'README.md').read_text(encoding='utf-8').split('---\n')[1])
    files = [s['path'] for c in front['configs'][1:] for s in c['data_files']]
    assert not [f for f in files if not (results/f).is_file()]
