"""Measure everything anew: `python bench/again.py [--full] [--photos DIR]`, or `python3 start.py bench`.

Short, meant to stay under an hour on two quiet cores: new runs of the recorded experiments (fresh.py), the tables of time and memory, and the page of
claims. What it writes are the results that are committed: a new version of them leaves no difference but numbers. `--full` also goes on
with the recorded runs and the comparisons until nothing is missing, which takes days; what is recorded is not repeated (delete a file of
ch5clf/runs to record it anew). DIR holds pets_dev/ and clothing_dev/ (real photos, not in this repository); without it, what needs them
is left out, with a word. A measurement that fails is named, and the others go on.
"""
import argparse
import subprocess
import sys
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parent
PHOTOS = '{photos}' # stands for DIR
# step first: it wants a machine that has been quiet
SHORT = [('step', '--write'), ('processes', '--write'), ('start', '--write'), ('loss',), ('costs', '--write'), ('pipeline',), ('precision',), ('fresh',), ('goals',), ('claims',)]
FULL = [SHORT[0], ('baseline', PHOTOS), ('data_runs', 'all', PHOTOS), ('deeper_runs', 'capacity', 'grow'),
        ('deeper_runs', 'photos', '--photos', PHOTOS), ('finetune_runs', '--photos', PHOTOS),
        ('lr_finder', '--photos', PHOTOS, '--seconds', '1e9'), *[('finetune', kind, '1-5', '--photos', PHOTOS) for kind in ('paper', 'pets', 'clothing')],
        ('finetune', 'report'), ('headline', '--train', PHOTOS + '/pets_dev/images', '--cv', '5', '--splits', '5', '--seed', '11', '--record'),
        ('threads', '--write'), ('course', '--write'), *SHORT[1:]]


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--full', action='store_true')
    ask.add_argument('--photos', type=Path)
    a = ask.parse_args()
    if a.photos and not a.photos.is_dir(): ask.error(f'--photos {a.photos}: no such folder')
    failed, begun = [], time.monotonic()
    for name, *rest in FULL if a.full else SHORT:
        if not a.photos and any(PHOTOS in w for w in rest):
            print(f'{name}: left out, it wants real photos: --photos DIR', flush=True)
            continue
        words = [w.replace(PHOTOS, str(a.photos and a.photos.resolve())) for w in rest]
        print(f'--- {" ".join([name, *words])}', flush=True)
        since = time.monotonic()
        if subprocess.run([sys.executable, BENCH/f'{name}.py', *words], cwd=BENCH.parent).returncode: failed.append(name)
        print(f'--- {name}: {(time.monotonic() - since)/60:.1f} min', flush=True)
    print(f'{(time.monotonic() - begun)/60:.0f} min in all; ' + (f'failed: {", ".join(failed)}' if failed else 'nothing failed'))
    return bool(failed)


if __name__ == '__main__': sys.exit(main())
