"Guessing hidden sub-tokens: the head of a checkpoint is taken and agrees with transformers, runs resume the same, and tasks are stacked on what was learned"
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

from hatenb.batches import Posts, collate, encoded_corpus
from hatenb.core import HatenbError, encoder_path
from hatenb.encoder import load_encoder, tensor_digest
from hatenb.evaluation import as_stored, load_predictions
from hatenb.kinds import make_head
from hatenb.making import make_run as run
from hatenb.model import Model
from hatenb.runs import Run, RunConfig
from hatenb.tasks import Task
from hatenb.training import TrainConfig, Trainer, predict

TEXT = dict(tasks=['mini/text', 'mini_mhs/text'], adapter='seq_bn', adapter_options=dict(reduction_factor=48), limit=48, train=dict(epochs=2, batch_size=16, head_warmup=2))
STACK = dict(tasks=['mini/label', 'mini/rationale'], strategy='stack', adapter='seq_bn', adapter_options=dict(reduction_factor=48), sources=[TEXT], limit=48, train=dict(epochs=1, batch_size=16))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A small BERT with its masked-language head, and one without"
    path = tmp_path_factory.mktemp('encoder')
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    for name, cls in (('with', BertForMaskedLM), ('without', BertModel)):
        model = cls(config)
        with torch.no_grad():
            for p in model.parameters(): p.normal_(std=.1)
        model.save_pretrained(path/name)
        AutoTokenizer.from_pretrained(encoder_path('minilm')).save_pretrained(path/name)
    return path


def text_model(encoder): return Model(encoder, [make_head(Task.parse('mini/text'), encoder.width, {'text': {}})])


def mini_posts(encoder, n=24): return {'mini': Posts(encoded_corpus('mini', encoder.tokenizer)['train'].select(range(n)), 'mini', encoder.tokenizer.pad_token_id)}


def test_the_head_of_the_checkpoint_agrees_with_transformers(folder):
    encoder = load_encoder(str(folder/'with')).eval()
    model = text_model(encoder).eval()
    batch = model.prepare(collate(mini_posts(encoder), {'mini': np.arange(6)}), 0)
    theirs = BertForMaskedLM.from_pretrained(folder/'with', attn_implementation='eager').eval()
    b = batch['mini']
    with torch.no_grad():
        ours = model(batch)['mini/text']
        whole = theirs(b['input_ids'], attention_mask=b['attention_mask']).logits
        loss = theirs(b['input_ids'], attention_mask=b['attention_mask'], labels=b['masked']).loss
    torch.testing.assert_close(ours, whole[b['masked'] >= 0], atol=1e-4, rtol=1e-4)
    t = predict(model, mini_posts(encoder))
    assert t.text_hidden.sum() > 0 and (t.text_right <= t.text_hidden).all()
    gold = b['masked'][b['masked'] >= 0]
    assert torch.nn.functional.cross_entropy(ours, gold).item() == pytest.approx(loss.item(), rel=1e-4)


def test_a_checkpoint_without_a_head_gets_a_fresh_one(folder):
    assert load_encoder(str(folder/'without')).language_head() is None
    assert load_encoder('minilm').language_head() is None
    assert set(load_encoder(str(folder/'with')).language_head()) == set(text_model(load_encoder(str(folder/'with'))).heads['mini/text'].state_dict())


def test_the_embeddings_are_neither_trained_nor_saved_with_the_head():
    encoder = load_encoder('minilm')
    encoder.add('a', 'seq_bn', reduction_factor=48); encoder.activate('a'); encoder.train_only('a')
    model, table = text_model(encoder), encoder.model.get_input_embeddings().weight
    before = tensor_digest({'w': table})
    h = Trainer(model, mini_posts(encoder), TrainConfig(epochs=2, batch_size=8, lr=1e-3)).fit()
    assert h[1]['losses']['mini/text'] < h[0]['losses']['mini/text']
    assert tensor_digest({'w': table}) == before
    assert not any(v.numel() == table.numel() for v in model.heads.state_dict().values())


def test_gradients_do_not_depend_on_how_the_batch_is_cut():
    encoder = load_encoder('minilm')
    encoder.add('a', 'seq_bn', reduction_factor=48); encoder.activate('a'); encoder.train_only('a')
    model, grads = text_model(encoder), []
    for positions in (4096, 100):
        trainer = Trainer(model, mini_posts(encoder), TrainConfig(batch_size=16, max_positions=positions, clip=1e9))
        model.eval()
        trainer.optimizer.step = trainer.optimizer.zero_grad = lambda: None
        trainer.step({'mini': np.arange(16)})
        grads.append({k: p.grad.clone() for k, p in trainer.params.items()})
        for p in trainer.params.values(): p.grad = None
    for k, g in grads[0].items(): torch.testing.assert_close(grads[1][k], g, rtol=1e-3, atol=1e-6, msg=k)


def test_words_are_hidden_the_same_in_a_resumed_run(tmp_path):
    def trainer(folder, epochs):
        torch.manual_seed(0)
        encoder = load_encoder('minilm')
        encoder.add('a', 'seq_bn', reduction_factor=48); encoder.activate('a'); encoder.train_only('a')
        return Trainer(text_model(encoder), mini_posts(encoder), TrainConfig(epochs=2, batch_size=8, checkpoint_steps=2), folder=folder)
    whole = trainer(tmp_path/'whole', 2)
    whole.fit()
    cut = trainer(tmp_path/'cut', 2)
    batches = cut.batches(0)
    for rows in batches[:2]: cut.step(rows); cut.progress.step += 1
    cut.save()
    again = trainer(tmp_path/'cut', 2)
    again.fit()
    for k, p in whole.params.items(): torch.testing.assert_close(p, again.params[k], atol=1e-5, rtol=1e-4)


def test_tasks_stacked_on_what_was_learned_from_texts(tmp_path):
    c = RunConfig.from_dict(STACK)
    record = run(c, tmp_path)
    text = run(RunConfig.from_dict(TEXT), tmp_path)
    for corpus in ('mini', 'mini_mhs'):
        m = text['metrics']['test'][f'{corpus}/text']
        assert 0 <= m['hidden_accuracy']['value'] <= 1 and m['perplexity']['value'] > 1
    assert record['adapters'] == ['mini-text-mini_mhs-text', 'shared'] and record['sources'] == [text['name']]
    model, source = Run(tmp_path/c.name).model(), Run(tmp_path/text["name"]).model()
    mine, theirs = (tensor_digest({k.replace(n, '*'): v for k, v in e.adapter_parameters(n).items()})
                    for e, n in ((model.encoder, 'mini-text-mini_mhs-text'), (source.encoder, 'shared')))
    assert mine == theirs                                                  # the lower adapter is the source's, bit by bit
    posts = {'mini': Posts(encoded_corpus('mini', model.encoder.tokenizer)['test'].shuffle(seed=0).select(range(48)), 'mini', model.encoder.tokenizer.pad_token_id)}
    stored = load_predictions(tmp_path/c.name/'predictions'/'test.parquet')
    t = predict(model, posts)
    for a, b in zip(as_stored(t).label_prob, stored.label_prob): np.testing.assert_array_equal(a, b)
    model.encoder.activate('shared')                                       # without the lower one it says something else
    assert any(not np.array_equal(a, b) for a, b in zip(as_stored(predict(model, posts)).label_prob, stored.label_prob))


def test_what_cannot_be_asked_of_texts(tmp_path):
    with pytest.raises(HatenbError, match='cannot share its posts'): RunConfig.from_dict(dict(tasks=['mini/text', 'mini/label']))
    with pytest.raises(HatenbError, match='lora cannot be stacked'): run(RunConfig.from_dict({**STACK, 'adapter': 'lora', 'adapter_options': {}, 'limit': 8}), tmp_path)
    with pytest.raises(HatenbError, match='do not answer this kind'): run(RunConfig.from_dict(dict(tasks=['mini/text'], baseline='majority')), tmp_path)
