"Run by test_training.py, alone or under accelerate launch: one step's gradients and losses, written to a file"
import os, sys

os.environ.setdefault('HATENB_QUIET', '1')
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from hatenb.balancing import balancers
from hatenb.batches import Posts
from hatenb.corpora import frequencies
from hatenb.making import run_corpora, run_encoder
from hatenb.runs import RunConfig, run_model
from hatenb.training import TrainConfig, Trainer

out, max_positions = sys.argv[1], int(sys.argv[2])
accelerator = Accelerator(cpu=True)
config = RunConfig(('mini/label', 'mini/target', 'mini/rationale', 'mini_mhs/score'), adapter_options=dict(r=4),
                   heads={'label': {'loss_options': {'balance': 1.}}, 'target': {'loss_options': {'balance': .5}}})
encoder = run_encoder(config)
corpora = run_corpora(config, encoder.tokenizer)
model = run_model(config, encoder, {c: frequencies(d['train']) for c, d in corpora.items()})
posts = {c: Posts(d['train'], c) for c, d in corpora.items()}
model.eval()                               # no dropout: its masks differ between processes, as they should
g = torch.Generator().manual_seed(0)
for k, p in model.trainable().items(): p.data += .02*torch.randn(p.shape, generator=g)     # so that every loss has a gradient everywhere

# one post of the second corpus: with two processes only the first has one, and the second must still agree
rows, found = {'mini': list(range(12)), 'mini_mhs': [0]}, {}
for rule in balancers:
    trainer = Trainer(model, posts, TrainConfig(batch_size=13, max_positions=max_positions, clip=1e9), balancer=None if rule == 'equal' else balancers[rule](NAMES), accelerator=accelerator)
    NAMES = trainer.names
    trainer.optimizer.step = trainer.optimizer.zero_grad = lambda: None      # the gradients shall stay as they are
    losses = trainer.step(rows)
    found |= {f'{rule} {k}': p.grad.clone() for k, p in trainer.params.items() if p.grad is not None}
    found |= {f'{rule} loss.{k}': torch.tensor(v) for k, v in losses.items()} | {f'{rule} {k}': b.clone() for k, b in trainer.balancer.named_buffers()}
    for p in trainer.params.values(): p.grad = None
if accelerator.is_main_process: save_file({k: v.contiguous() for k, v in found.items()}, out)
accelerator.wait_for_everyone()
