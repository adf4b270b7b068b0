"""A training step with LoRA: hatenb's forward of a LoRA layer against that of `adapters`, side by side.

Both take the same steps of the same adapter (r = 16 on query, key, value and the feed-forward block) in turn, in one process with one
thread. Reported for each encoder, quantization and dtype: the median processor time of a step with the library's forward, with ours, and
their ratio (above 1: ours is faster); seq_bn beside them, as a share of the library's LoRA.
"""
import argparse, statistics, time

import torch

from common import keep
from hatenb.encoder import load_encoder
from hatenb.encoder.adapters import _FusedLoRA

OURS = _FusedLoRA._one_lora


def use(forward):
    "Let LoRA layers use ours, or leave all to the library"
    _FusedLoRA._one_lora = OURS if forward == 'ours' else lambda layer: None


def stepper(encoder, method, posts, length):
    "A function that takes one training step"
    encoder.add(method, method)
    encoder.activate(method)
    encoder.train_only(method)
    opt = torch.optim.AdamW(encoder.train().trainable().values(), lr=1e-4)
    ids = torch.randint(1000, 20000, (posts, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    def step():
        encoder(ids, mask)[:,0,:8].mean().backward()
        opt.step()
        opt.zero_grad()
    return step


def compare(name, quantization, dtype, rounds, posts=32, length=32):
    "Medians of seconds of processor time a step"
    lora = stepper(load_encoder(name, quantization, dtype), 'lora', posts, length)
    seq_bn = stepper(load_encoder(name, quantization, dtype), 'seq_bn', posts, length)
    seconds = dict(library=[], ours=[], seq_bn=[])
    for _ in range(rounds+2):
        for way, times in seconds.items():
            use(way)
            start = time.process_time()
            (seq_bn if way == 'seq_bn' else lora)()
            times.append(time.process_time()-start)
    median = {k: statistics.median(v[2:]) for k, v in seconds.items()}
    return dict(encoder=name, quantization=quantization, dtype=str(dtype).removeprefix('torch.'), seconds=median,
                ratio=round(median['library']/median['ours'], 3), seq_bn=round(median['library']/median['seq_bn'], 3))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--encoder', default='minilm')
    p.add_argument('--rounds', type=int, default=20)
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [('none', torch.float32), ('none', torch.bfloat16), ('nf4', torch.bfloat16)]
    keep('lora', dict(steps=[compare(args.encoder, q, d, args.rounds) for q, d in cases]))
