"Run by test_training.py, alone or under torchrun: one step's gradients and losses by each rule, and answers, in a file"
import os, sys, warnings

os.environ.setdefault('HATENB_QUIET', '1')
warnings.simplefilter('ignore')
import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from hatenb.balancing import balancers
from hatenb.regularisers import make_regularisers
from hatenb.training import TrainConfig, Trainer, predict
from hatenb.watching import watch
from parts import ALL, small

out, max_positions, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == processes, accelerator.num_processes
model, posts = small(ALL, noise=.02, r=4, configs={'label': {'loss_options': {'balance': 1.}}})
model.eval()                               # no dropout: its masks differ between processes, as they should

# one post of the second corpus: with two processes only the first has one, and the second must still agree
rows, found = {'mini': list(range(12)), 'mini_mhs': [0]}, {}
made = {rule: dict(balancer=balancers[rule](list(ALL))) for rule in balancers}
made['attention'] = dict(regularisers=make_regularisers({'attention': {}}))
for key, given in made.items():
    trainer = Trainer(model, posts, TrainConfig(batch_size=13, max_positions=max_positions, clip=1e9),
                      accelerator=accelerator, **given)
    trainer.optimizer.step = trainer.optimizer.zero_grad = lambda: None      # the gradients shall stay as they are
    losses = trainer.step(rows)
    found |= {f'{key} {k}': p.grad.clone() for k, p in trainer.params.items() if p.grad is not None}
    found |= {f'{key} loss.{k}': torch.tensor(v) for k, v in losses.items()}
    found |= {f'{key} rule.{k}': b.clone() for k, b in trainer.balancer.named_buffers() if b is not None}
    for p in trainer.params.values(): p.grad = None
table = predict(model, posts, accelerator=accelerator)
found['answers'] = torch.tensor(np.stack(table.label_prob[table.corpus == 'mini']))
watched = watch(model, posts, accelerator=accelerator)
found |= {f'watched {k}': torch.tensor(v) for k, v in watched.items()}
if accelerator.is_main_process: save_file({k: v.contiguous() for k, v in found.items()}, out)
accelerator.wait_for_everyone()
