"""Two processes against one: torch's own distributed engine (gloo on the CPU, DistributedDataParallel, torchrun).

Each of two processes computes the gradient of half a batch, DDP averages them. With batch-norm in eval mode the result is that of
one process with the whole batch; in training mode it is not, because each process normalises by its own half.

`python tests/test_two_processes.py` prints the numbers: the aside two_processes.ipynb shows what it does.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

MODES = 'eval', 'train'


def network():
    torch.manual_seed(0)
    conv = lambda i, o: [nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]  # noqa: E731
    return nn.Sequential(*conv(3, 8), *conv(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12))


def pictures(n=16):
    "A batch in a fixed order; the first half differs from the second, as pictures by chance do."
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 32, 32, generator=g) + torch.linspace(-.5, .5, n)[:, None, None, None], torch.arange(n) % 12


def train(model, mode, x, y, steps=3):
    "The first gradient and the weights after some steps of SGD."
    model.train(mode == 'train')
    opt, first = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9), None
    for _ in range(steps):
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if first is None: first = torch.cat([p.grad.flatten() for p in model.parameters()])
        opt.step()
    return first, torch.cat([p.detach().flatten() for p in model.parameters()])


def worker(folder):
    "What each of the two processes runs."
    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    rank, world = dist.get_rank(), dist.get_world_size()
    x, y = pictures()
    mine = slice(rank*len(x)//world, (rank + 1)*len(x)//world)
    for mode in MODES:
        first, weights = train(nn.parallel.DistributedDataParallel(network(), broadcast_buffers=False), mode, x[mine], y[mine])
        torch.save((first, weights), Path(folder)/f'{mode}-{rank}.pt')
    dist.barrier() # who leaves first takes threads of the other with it
    dist.destroy_process_group()


def launch(folder):
    "Start the two processes with torchrun and wait for them; raises with their output where they fail."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MASTER_ADDR': '127.0.0.1'}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(Path(__file__).resolve()), '--worker', str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, encoding='utf-8', errors='replace', timeout=180)
    if done.returncode: raise RuntimeError(f'torchrun ended with code {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}')


def differences(folder):
    "Relative differences of two processes to one, by mode: first gradient, and weights after the steps; and between the two processes."
    def relative(a, b): return ((a - b).norm()/b.norm()).item()
    found = {}
    for mode in MODES:
        both = [torch.load(Path(folder)/f'{mode}-{rank}.pt') for rank in range(2)]
        first, weights = train(network(), mode, *pictures())
        found[mode] = dict(gradient=relative(both[0][0], first), weights=relative(both[0][1], weights), between=relative(both[0][1], both[1][1]))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason='this torch has no gloo')
def test_two_processes_agree_with_one(tmp_path):
    launch(tmp_path)
    found = differences(tmp_path)
    assert found['eval']['gradient'] < 1e-4 and found['eval']['weights'] < 1e-4
    assert found['train']['gradient'] > 1e-2, 'each process normalises by its own half, so this must differ'
    assert all(f['between'] == 0 for f in found.values()), 'the two processes hold the same weights, whatever the mode'


if __name__ == '__main__':
    if '--worker' in sys.argv: worker(sys.argv[-1])
    else:
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            launch(folder)
            print(json.dumps(differences(folder)))
