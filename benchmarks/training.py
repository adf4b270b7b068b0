"""LoRA training on real HateXplain batches: hatenb against transformers.Trainer + adapters.

Both train the same LoRA on the same encoder and posts for two epochs with the same learning rates, in turn. The Trainer takes its defaults: random order, padding
to the longest post of the batch, float32. Reported: posts/s of each, their ratio, validation macro F1 of each, and the share of the machine's measured
matrix-product peak that hatenb's training reaches, for MPNet-base too (on fewer posts) where its weights are (HATENB_MPNET).
"""
import argparse, os, time

import numpy as np, torch
import adapters
from sklearn.metrics import f1_score
from torch import nn
from transformers import AutoModel, DataCollatorWithPadding, TrainingArguments

from common import keep
from hatenb.batches import Posts, encoded_corpus
from hatenb.core import encoder_path, resolve_dtype, seed_everything
from hatenb.encoder import load_encoder
from hatenb.kinds import count_answers, make_head
from hatenb.model import Model
from hatenb.tasks import Task
from hatenb.training import TrainConfig, Trainer, predict

LR, HEAD_LR, BATCH = 5e-4, 1e-3, 32


def peak(config, seconds=2.):
    "Measured FLOP/s of a matrix product of the encoder's shapes"
    width, inner = config.hidden_size, config.intermediate_size
    a, b = (torch.randn(*shape).to(resolve_dtype('auto')) for shape in ((2048, width), (width, inner)))
    for _ in range(5): a@b
    start, count = time.perf_counter(), 0
    while time.perf_counter()-start < seconds: a@b; count += 1
    return 2*2048*width*inner*count/(time.perf_counter()-start)


def flops(tokens, config, r=16):
    "FLOPs of training on `tokens` sub-tokens: forward and backward through frozen linear layers, LoRA's own products three times; attention's are not counted"
    width, inner = config.hidden_size, config.intermediate_size
    linear = 4*width*width + 2*width*inner
    lora = r*(3*2*width + 2*(width+inner))
    return 2*tokens*config.num_hidden_layers*(2*linear + 3*lora)


def data(name, limit):
    "Posts by split, shuffled, and the answers in the train split"
    tokenizer = load_encoder(name).tokenizer
    corpus = {k: d.shuffle(seed=0).select(range(min(limit or len(d), len(d)))) for k, d in encoded_corpus('hatexplain', tokenizer).items()}
    return corpus, {k: Posts(d, 'hatexplain', tokenizer.pad_token_id) for k, d in corpus.items()}, count_answers(corpus['train'], 'hatexplain')


def ours(name, posts, counted, epochs):
    seed_everything(0, 'weights')
    encoder = load_encoder(name, dtype=resolve_dtype('auto'))
    encoder.add('shared', 'lora', r=16, alpha=32)
    encoder.activate('shared'); encoder.train_only('shared')
    model = Model(encoder, [make_head(Task.parse('label'), encoder.width, counted)])
    trainer = Trainer(model, {'hatexplain': posts['train']}, TrainConfig(epochs=epochs, batch_size=BATCH, lr=LR, head_lr=HEAD_LR))
    trainer.fit()
    t = predict(model, {'hatexplain': posts['validation']})
    tokens = epochs*int(posts['train'].lengths.sum())
    done, top = flops(tokens, encoder.model.config)/trainer.progress.seconds, peak(encoder.model.config)
    return dict(posts_per_second=trainer.progress.posts/trainer.progress.seconds,
                macro_f1=f1_score(t.label, np.stack(t.label_prob).argmax(1), average='macro'),
                flops_per_second=done, matrix_product_flops_per_second=top, share_of_peak=done/top)


class Plain(nn.Module):
    "The same encoder and head as a plain module"
    def __init__(self):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(encoder_path('minilm'), add_pooling_layer=False)
        adapters.init(self.encoder)
        config = adapters.LoRAConfig(r=16, alpha=32, dropout=.1, intermediate_lora=True, output_lora=True, attn_matrices=['q', 'k', 'v'])
        self.encoder.add_adapter('shared', config=config)
        self.encoder.train_adapter('shared')
        self.head = nn.Sequential(nn.Dropout(.1), nn.Linear(384, 3))

    def forward(self, input_ids, attention_mask, labels=None, **_):
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).float()
        logits = self.head((states*mask).sum(1)/mask.sum(1))
        return dict(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


def theirs(corpus, tokenizer, epochs, folder):
    from transformers import Trainer as HFTrainer
    torch.manual_seed(0)
    model = Plain()
    keep_columns = lambda ds: ds.select_columns(['input_ids', 'label']).rename_column('label', 'labels')
    arguments = TrainingArguments(folder, num_train_epochs=epochs, per_device_train_batch_size=BATCH, per_device_eval_batch_size=64, learning_rate=LR,
                                  warmup_ratio=.06, use_cpu=True, report_to=[], save_strategy='no', logging_strategy='no', remove_unused_columns=False)
    groups = [dict(params=model.head.parameters(), lr=HEAD_LR), dict(params=[p for p in model.encoder.parameters() if p.requires_grad], lr=LR)]
    trainer = HFTrainer(model, arguments, DataCollatorWithPadding(tokenizer), keep_columns(corpus['train']), keep_columns(corpus['validation']),
                        optimizers=(torch.optim.AdamW(groups, weight_decay=.01), None))
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter()-start
    out = trainer.predict(keep_columns(corpus['validation']))
    return dict(posts_per_second=epochs*len(corpus['train'])/seconds, macro_f1=f1_score(out.label_ids, out.predictions.argmax(1), average='macro'))


if __name__ == '__main__':
    import tempfile
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--limit', type=int, help='posts (default: all)')
    parser.add_argument('--mpnet-limit', type=int, default=960, help='posts of the part with MPNet-base')
    a = parser.parse_args()
    corpus, posts, counted = data('minilm', a.limit)
    mine = ours('minilm', posts, counted, a.epochs)
    with tempfile.TemporaryDirectory() as folder: plain = theirs(corpus, load_encoder('minilm').tokenizer, a.epochs, folder)
    base = ours('mpnet', *data('mpnet', a.mpnet_limit)[1:], 1) if os.environ.get('HATENB_MPNET') else None
    keep('training', dict(epochs=a.epochs, posts=len(corpus['train']), batch_size=BATCH, dtype=str(resolve_dtype('auto')), hatenb=mine, trainer=plain,
                          ratio=mine['posts_per_second']/plain['posts_per_second'], macro_f1_difference=mine['macro_f1']-plain['macro_f1'],
                          mpnet=base and dict(base, posts=a.mpnet_limit)))
