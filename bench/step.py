"""How long does one unfrozen training step take, ours and fastai's?

    python bench/step.py [--rounds 9] [--threads 2] [--write]

Both arms are fastai's own `fit` on lite0 with the same weights and the same batch, everything trained. `fastai`: as `vision_learner`
makes it. `ours`: the pictures and weights in channels-last order, bfloat16 where `mixed_precision` finds units for it, batch-norm of
the body held (`frozen_batchnorm`). Each of the three is also measured alone. A step is timed from `before_batch` to `after_batch`,
loading not counted; arms take turns in every round, so that other programs disturb all of them; the figure is the median over the
rounds of fastai's time over the arm's, and its range. Goal, fixed before measuring: 1.5 times as fast on any CPU.

Prints a table. With `--write` also bench/results/step.json and step.md: only on a quiet machine (it refuses above a load of half a
core a core).
"""
import argparse
import json
import os
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ch5clf.callbacks import NoValidation, frozen_batchnorm  # noqa: E402
from ch5clf.places import quiet_imports, versions, write_atomic  # noqa: E402
from ch5clf.precision import cpu_units, mixed_precision  # noqa: E402
from ch5clf.pretrained import lite0  # noqa: E402

with quiet_imports():
    from fastai.data.core import DataLoaders
    from fastai.vision.all import Callback, CrossEntropyLossFlat, set_seed, vision_learner

RESULTS, GOAL, STEPS = ROOT/'bench'/'results', 1.5, 3
CASES = [(128, 16), (224, 8)]  # pixels, pictures in a batch
ARMS = {'fastai': (), 'channels-last': ('last',), 'mixed_precision': ('half',), 'frozen_batchnorm': ('held',), 'ours': ('last', 'half', 'held')}


class ChannelsLast(Callback):
    "The batch in the order in which the weights lie."
    def before_batch(self): self.learn.xb = tuple(x.to(memory_format=torch.channels_last) for x in self.xb)


class Stopwatch(Callback):
    "Seconds of each training step."
    order = 10**6
    def before_fit(self): self.seconds = []
    def before_batch(self): self.start = time.perf_counter()
    def after_batch(self): self.seconds.append(time.perf_counter() - self.start)


class OneBatch:
    "A loader that gives the same batch a few times."
    def __init__(self, batch, n): self.batch, self.n, self.device, self.bs = batch, n, torch.device('cpu'), len(batch[0])
    def __iter__(self): return iter([self.batch]*self.n)
    def __len__(self): return self.n


class Batches(DataLoaders):
    "Loaders of one batch; `c` classes."
    c, n_inp = 12, 1


def learner(kinds, size, bs):
    "A learner whose `fit(1)` does STEPS unfrozen steps, and its stopwatch."
    set_seed(0)
    batch = torch.randn(bs, 3, size, size), torch.arange(bs) % 12
    dls = Batches(OneBatch(batch, STEPS), OneBatch(batch, 1))
    watch = Stopwatch()
    cbs = [watch, NoValidation()] + [frozen_batchnorm()]*('held' in kinds) + [ChannelsLast()]*('last' in kinds)
    learn = vision_learner(dls, lite0, n_out=12, normalize=False, loss_func=CrossEntropyLossFlat(), cbs=cbs)
    learn.unfreeze()
    if 'last' in kinds: learn.model.to(memory_format=torch.channels_last)
    if 'half' in kinds: mixed_precision(learn)
    return learn, watch


def times(size, bs, rounds):
    "Median seconds of a step by arm, a number for each round; the first round warms up and is not kept."
    learners = {arm: learner(kinds, size, bs) for arm, kinds in ARMS.items()}
    kept = {arm: [] for arm in ARMS}
    for i in range(rounds + 1):
        for arm, (learn, watch) in learners.items():
            with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
            if i: kept[arm].append(median(watch.seconds))
    return kept


def rows(size, bs, kept):
    found = []
    for arm, seconds in kept.items():
        ratios = [a/b for a, b in zip(kept['fastai'], seconds)]
        found.append(dict(size=size, bs=bs, arm=arm, threads=torch.get_num_threads(), seconds=median(seconds), speedup=median(ratios), low=min(ratios), high=max(ratios)))
    return found


def table(found):
    units = ', '.join(cpu_units()) or 'none'
    lines = ['# One unfrozen training step', '',
             f'{date.today().isoformat()}, {os.cpu_count()} cores, torch {torch.__version__}, bfloat16 units: {units}. lite0, `fit` of fastai in both arms; '
             'speed-up is the median over rounds of fastai\'s time over the arm\'s, with its range.', '',
             '| pixels | pictures | threads | arm | seconds | speed-up |', '| --- | --- | --- | --- | --- | --- |']
    for r in found: lines.append(f"| {r['size']} | {r['bs']} | {r['threads']} | {r['arm']} | {r['seconds']:.3f} | {r['speedup']:.2f} ({r['low']:.2f} to {r['high']:.2f}) |")
    ours = [r['speedup'] for r in found if r['arm'] == 'ours']
    lines += ['', f'Goal of {GOAL} times as fast: {"met" if min(ours) >= GOAL else "not met"} ({min(ours):.2f} to {max(ours):.2f}).']
    return '\n'.join(lines) + '\n'


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--rounds', type=int, default=9)
    p.add_argument('--threads', type=int)
    p.add_argument('--write', action='store_true')
    args = p.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    if args.write and hasattr(os, 'getloadavg') and os.getloadavg()[0] > .5*os.cpu_count():
        p.error(f'load {os.getloadavg()[0]:.1f}: this machine is not quiet; results are written only from a quiet one')
    found = [r for size, bs in CASES for r in rows(size, bs, times(size, bs, args.rounds))]
    print(table(found))
    if not args.write: return
    write_atomic(RESULTS/'step.json', json.dumps(dict(about=__doc__, made=dict(date=date.today().isoformat(), versions=versions()), rows=found), indent=1) + '\n')
    write_atomic(RESULTS/'step.md', table(found))


if __name__ == '__main__': main()
