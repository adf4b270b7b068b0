"Tiny encoders of random weights as a hub would hold them, and what tests do with an encoder"
import string
import pytest, torch
from transformers import (BertConfig, BertForMaskedLM, BertTokenizerFast, ElectraConfig, ElectraForPreTraining,
                          ElectraTokenizerFast, ModernBertConfig, ModernBertModel, MPNetConfig, MPNetForMaskedLM,
                          MPNetTokenizerFast)
from hatenb.encoder import load_encoder, tensor_digest

bf16,f32 = torch.bfloat16,torch.float32
words = 'the kettle stove morning good on is of and to in'.split()
SIZE = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=64)


def vocabulary(*special): return [*special, *words, *string.ascii_lowercase, *('##'+c for c in string.ascii_lowercase)]

def save_encoder(folder, model, tokenizer, special=('[PAD]','[UNK]','[CLS]','[SEP]','[MASK]')):
    "Write a model (heads included) and a tokenizer with the words of the tests into a folder"
    model.save_pretrained(folder)
    (folder/'vocab.txt').write_text('\n'.join(vocabulary(*special)))
    tokenizer(vocab_file=str(folder/'vocab.txt')).save_pretrained(folder)

@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    "A folder with a tiny ELECTRA, BERT, ModernBERT and MPNet"
    root = tmp_path_factory.mktemp('encoders')
    size = dict(SIZE, vocab_size=len(vocabulary(*'12345')))
    special = dict(pad_token_id=0, cls_token_id=2, bos_token_id=2, sep_token_id=3, eos_token_id=3)
    torch.manual_seed(0)
    save_encoder(root/'electra', ElectraForPreTraining(ElectraConfig(embedding_size=32, **size)), ElectraTokenizerFast)
    modern = ModernBertModel(ModernBertConfig(**size, **special, reference_compile=False))
    save_encoder(root/'modernbert', modern, BertTokenizerFast)
    save_encoder(root/'bert', BertForMaskedLM(BertConfig(**size)), BertTokenizerFast)
    save_encoder(root/'mpnet', MPNetForMaskedLM(MPNetConfig(**size)), MPNetTokenizerFast,
                 ('<s>','<pad>','</s>','[UNK]','<mask>'))
    return root

def batch(n=6, length=9):
    "Ids and mask, the second half of the posts padded"
    g = torch.Generator().manual_seed(0)
    ids,mask = torch.randint(5, 40, (n, length), generator=g),torch.ones(n, length, dtype=torch.long)
    mask[n//2:,length-3:] = 0
    return ids*mask, mask

def outputs(encoder):
    "The states of `batch` in evaluation"
    with torch.no_grad(): return encoder.eval()(*batch())

def model_outputs(model):
    "The states of `batch` from a model of `transformers`"
    ids,mask = batch()
    with torch.no_grad(): return model.eval()(input_ids=ids, attention_mask=mask)[0]

def fit(encoder, steps=12, lr=1e-2):
    "Let what is trainable fit a fixed read-out of the states; the loss in evaluation before and after"
    g = torch.Generator().manual_seed(1)
    readout,wanted = torch.randn(encoder.width, 3, generator=g)/8,torch.randn(6, 3, generator=g)
    ids,mask = batch()
    def loss():
        states = encoder(ids, mask)
        assert states.dtype == f32 and states.shape == (6, 9, encoder.width)
        return (states.mean(1)@readout - wanted).pow(2).mean()
    opt = torch.optim.Adam(encoder.trainable().values(), lr=lr)
    with torch.no_grad(): before = (encoder.eval(), loss().item())[1]
    encoder.train()
    for _ in range(steps):
        loss().backward()
        opt.step()
        opt.zero_grad()
    with torch.no_grad(): return before, (encoder.eval(), loss().item())[1]

def digests(encoder):
    "A digest for each tensor of the encoder, quantization states included"
    return {k: tensor_digest({k: v}) for k,v in encoder.tensors().items()}

def trained(folder, method, steps=2, name='a', **options):
    "An encoder with one adapter, in use, that has learned a little"
    torch.manual_seed(0)
    encoder = load_encoder(str(folder))
    encoder.add(name, method, **options)
    encoder.activate(name)
    encoder.train_only(name)
    if encoder.trainable(): fit(encoder, steps)
    return encoder


def check_training(encoder, method, untouched):
    "The loss falls and only what is meant changes"
    meant = set(encoder.trainable())
    assert meant and meant <= set(encoder.adapter_parameters('mine'))
    assert {p.dtype for p in encoder.trainable().values()} == {f32}
    before = digests(encoder)
    first,last = fit(encoder)
    assert last < first, (first, last)
    after = digests(encoder)
    changed = {k for k in after if after[k] != before[k]}
    assert changed <= meant, sorted(changed-meant)
    assert not (still := meant-changed) or encoder.trait('mine', 'whole'), sorted(still)
    assert not torch.allclose(outputs(encoder), untouched, atol=1e-3)

def check(folder, tmp_path, quantization, method, dtype=f32, **options):
    "Forward, backward, the loss falls, only what is meant changes, saved and loaded the outputs are the same bits"
    torch.manual_seed(0)
    encoder = load_encoder(str(folder), quantization, dtype)
    plain = outputs(encoder)
    if method != 'full': encoder.add('neighbour', method, **options)
    encoder.add('mine', method, **options)
    encoder.activate(None)
    untouched = outputs(encoder)   # a wrapped layer may sum in another order
    torch.testing.assert_close(untouched, plain, atol=1e-5 if dtype == f32 else .1, rtol=0)
    encoder.activate('mine')
    encoder.train_only('mine')
    if method == 'frozen': assert not encoder.train().trainable()
    else: check_training(encoder.train(), method, untouched)
    mine = outputs(encoder)
    if method != 'full':
        encoder.activate(None)
        assert torch.equal(outputs(encoder), untouched)
    check_saved(encoder, folder, tmp_path/'saved', mine)

def check_saved(encoder, folder, saved, mine):
    "Loaded into a fresh encoder, the adapter computes the same bits, and the generator is where it was"
    torch.manual_seed(7)   # so that a fresh adapter starts elsewhere
    other = load_encoder(str(folder), encoder.quantization, encoder.dtype)
    drawn = torch.random.get_rng_state()
    assert other.load(encoder.save('mine', saved), 'yours') == 'yours'
    assert torch.equal(torch.random.get_rng_state(), drawn)
    other.activate('yours')
    assert torch.equal(outputs(other), mine)
    assert not other.trainable()
