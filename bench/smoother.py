"""Record the trainings of the aside on smoother training: `python bench/smoother.py [--seeds 20]`.

Writes ch5clf/runs/smoother.json. The functions are the aside's own cells, run with more seeds (nbs/asides/smoother_training.ipynb): three
losses, three rates, 200 steps each; a seed draws first weights and batches, which the losses share. `change` is the median over a training of
how much the log of the gradient's norm changes from one step to the next.

Claim of the notes, as the aside fixes it before its runs: cross-entropy has the smallest change. Lost, at a rate, where the 95 % interval of
its paired difference to either squared error lies above zero; not decided where one reaches zero.
"""
import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ch5clf.lesson import record  # noqa: E402

ASIDE, OUT = ROOT/'nbs'/'asides'/'smoother_training.ipynb', ROOT/'ch5clf'/'runs'/'smoother.json'


def aside(seeds):
    "Names of the aside after its trainings with these seeds; what bets, settles, draws or teaches is passed over."
    cells = [''.join(c['source']) for c in json.loads(ASIDE.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    names = {}
    for source in cells:
        if source.startswith(('bet(', '#| settles')): continue
        if 'range(5)' in source: source = source.replace('range(5)', repr(seeds))
        exec(compile(source, str(ASIDE), 'exec'), names)
        if 'runs' in names: return names
    raise ValueError(f'{ASIDE.name}: no cell makes `runs`')


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--seeds', type=int, default=20)
    seeds = range(ask.parse_args().seeds)
    names = aside(seeds)
    rows = [dict(arm=loss, rate=rate, seed=s, change=round(names['change'](norms), 5), error=error, dead=dead)
            for (loss, rate), told in names['runs'].items() for s, (norms, error, dead) in zip(seeds, told, strict=True)]
    record(OUT, rows, ' '.join(__doc__.split('\n\n')[1].split()))
    for r in rows: print(r)


if __name__ == '__main__': main()
