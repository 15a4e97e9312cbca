"""Do the recorded runs still come out? `python bench/fresh.py [EXPERIMENT ...]` runs one new seed of each, and compares.

A run is inside its cloud where it lies in the range of the recorded runs of the same arm, widened by half of that range on either
side. A run with another preprocessing, rate or measure falls outside: that is what this is for. Seed 101, which no recorded run
has. Nothing is written. Exits with 1 where a run falls outside. tests/test_claims.py runs the quickest.
"""
import argparse
import math
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT/'bench')]
from ch5clf.lesson import recorded  # noqa: E402

SEED = 101


def baseline():
    from baseline import one_run
    from ch5clf.sample import paper_pets
    return one_run(paper_pets(), SEED)['error']


def presize():
    from data_runs import presize_run
    return presize_run('paper pets', 'one interpolation', None, SEED)['error']


def cleaning():
    from data_runs import cleaning_run
    return cleaning_run('paper pets', 'uniform', .2, 'logistic', 'as found', None, SEED)['error']


def riddle():
    from data_runs import riddle_run
    return riddle_run('as found', SEED)['error']


def of_arc(arm, others=('head on features', 'features, then unfrozen', 'fine_tune', 'fine_tune, batch-norm held')):
    "An arm of the probe's branch; the others are passed over as if they were recorded."
    from finetune_runs import Arms, arc
    return next(r for r in arc(Arms('paper', SEED, None, 48), {*others}) if r['arm'] == arm)['error']


def capacity():
    from deeper_runs import capacity_arms
    return capacity_arms()['small, many'](SEED)['test_error']


def grown():
    from deeper_runs import grow_arms
    return grow_arms()['lite0, 96 px, 8 s'](SEED)['error']


def swept():
    from lr_finder import trained
    from lr_tasks import task
    return trained(task('digits CNN'), .1, SEED)['loss']


def found():
    from lr_finder import ours
    from lr_tasks import task
    return math.log10(ours(task('digits CNN'), SEED)['best']['rate'])


# name -> what makes a run, the recorded file, which of its rows, and their column
EXPERIMENTS = {
    'swept': (swept, 'lr_sweep', dict(arm='digits CNN', rate=.1), 'loss'),
    'found': (found, 'lr_finder', dict(arm='ours: best', task='digits CNN'), 'log10 rate'),
    'cleaning': (cleaning, 'cleaning', dict(arm='paper pets: uniform 20%: logistic: as found'), 'error'),
    'probe': (partial(of_arc, 'linear probe'), 'finetune_arc', dict(set='paper pets', arm='linear probe', per_class=48), 'error'),
    'recipe': (partial(of_arc, 'recipe'), 'finetune_arc', dict(set='paper pets', arm='recipe', per_class=48), 'error'),
    'baseline': (baseline, 'baseline', dict(arm='paper pets'), 'error'),
    'riddle': (riddle, 'riddle', dict(arm='as found'), 'error'),
    'presize': (presize, 'presize', dict(arm='paper pets: one interpolation'), 'error'),
    'capacity': (capacity, 'deeper', dict(arm='small, many'), 'test_error'),
    'grown': (grown, 'deeper_grow', dict(arm='lite0, 96 px, 8 s'), 'error')}


def cloud(file, rows, column):
    "The recorded values of one arm."
    runs = recorded(file)
    for name, value in rows.items(): runs = runs[abs(runs[name] - value) < 1e-9 if isinstance(value, float) else runs[name] == value]
    return runs.rate.map(math.log10) if column == 'log10 rate' else runs[column]


def inside(value, values):
    "Is it in the range of the values, widened by half of it on either side?"
    half = (values.max() - values.min())/2
    return bool(values.min() - half <= value <= values.max() + half)


def compared(name):
    "A row: the new run beside its cloud."
    run, file, rows, column = EXPERIMENTS[name]
    values, began = cloud(file, rows, column), time.perf_counter()
    value = run()
    return dict(experiment=name, arm=rows['arm'], what=column, new=value, lowest=float(values.min()), highest=float(values.max()), runs=len(values),
                inside=inside(value, values), seconds=round(time.perf_counter() - began))


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('names', nargs='*', metavar='EXPERIMENT', help=f'of {", ".join(EXPERIMENTS)}; by default all')
    names = ask.parse_args().names or [*EXPERIMENTS]
    if unknown := {*names} - {*EXPERIMENTS}: ask.error(f'{", ".join(unknown)}: no such experiment; there are {", ".join(EXPERIMENTS)}')
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1) # as the recorded runs
    rows = []
    for name in names:
        rows.append(compared(name))
        print(rows[-1], flush=True)
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    return not all(r['inside'] for r in rows)


if __name__ == '__main__': sys.exit(main())
