"""How long things take to begin: `python bench/start.py [--rounds 9] [--write]`.

Each line is a fresh process, all of them in turns: median seconds on the wall, the first round (cold files) left out. Goals, fixed
before measuring (issues 18 and 20): `ch5clf --help` under 0.3 s; `from ch5clf.data import *` at most 1.2 times fastai's own import; the
first card of the questionnaire under 2 s; `predict` of one photo without fastai.
Prints a table; with `--write` also bench/results/start.json and start.md.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULTS = ROOT/'bench'/'results'
SAVE = '''
import sys
from ch5clf.data import pet_dls
from ch5clf.recipe import fit_recipe
from ch5clf.sample import paper_pets
from ch5clf.saved import save_model
save_model(fit_recipe(pet_dls(paper_pets()), epochs=0), sys.argv[1])
'''


def commands(model, photo):
    "Name -> what is run."
    py = [sys.executable, '-c']
    return {'python': [*py, 'pass'], 'import ch5clf': [*py, 'import ch5clf'],
            'ch5clf --help': [sys.executable, '-m', 'ch5clf.cli', '--help'],
            'ch5clf check, 1 photo': [sys.executable, '-m', 'ch5clf.cli', 'check', photo.parent],
            'ch5clf predict, 1 photo': [sys.executable, '-m', 'ch5clf.cli', 'predict', model, photo],
            'the first card of 05': [*py, 'from ch5clf.questions import questions; questions["q07"]._repr_mimebundle_()'],
            'import torch': [*py, 'import torch'],
            'from fastai.vision.all import *': [*py, 'from fastai.vision.all import *'],
            'from ch5clf.data import *': [*py, 'from ch5clf.data import *']}


def table(times):
    fastai = median(times['from fastai.vision.all import *'][1:])
    lines = ['# How long things take to begin', '', f'{date.today()}, {os.cpu_count()} cores. Made by bench/start.py.', '', '| what | seconds | to fastai\'s import |', '| --- | --- | --- |']
    return '\n'.join([*lines, *(f'| `{n}` | {median(t[1:]):.2f} | {median(t[1:])/fastai:.2f} |' for n, t in times.items())]) + '\n'


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--rounds', type=int, default=9)
    ask.add_argument('--write', action='store_true')
    a = ask.parse_args()
    from ch5clf.sample import paper_pets
    env = os.environ | dict(PYTHONPATH=str(ROOT), PYTHONUTF8='1', MPLBACKEND='agg')
    with tempfile.TemporaryDirectory() as tmp:
        model, photo = Path(tmp)/'pets.safetensors', Path(tmp)/'photos'/'Moon_point_1.jpg'
        photo.parent.mkdir()
        photo.write_bytes(min((paper_pets()/'images').glob('*.jpg')).read_bytes())
        subprocess.run([sys.executable, '-c', SAVE, model], env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        jobs = commands(model, photo)
        times = {name: [] for name in jobs}
        for _ in range(a.rounds + 1):
            for name, command in jobs.items():
                begun = time.perf_counter()
                r = subprocess.run(command, env=env, capture_output=True, text=True)
                times[name].append(time.perf_counter() - begun)
                if r.returncode not in (0, 1 if 'check' in name else 0): sys.exit(f'{name}: {r.stderr}')
    print(table(times))
    if not a.write: return
    from ch5clf.lesson import record
    from ch5clf.places import write_atomic
    record(RESULTS/'start.json', [dict(what=name, seconds=t) for name, t in times.items()], __doc__)
    write_atomic(RESULTS/'start.md', table(times))


if __name__ == '__main__': main()
