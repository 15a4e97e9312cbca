"""How long the course takes, how much memory, and does every notebook pass every time?

    python bench/course.py [NOTEBOOK ...] [--rounds 1] [--threads N] [--write]

Each notebook runs in a fresh kernel, from its first cell to its last; what was drawn and presized before stays in the cache. Wall seconds,
the kernel's start included, and the largest memory of the kernel. Budgets were fixed before measuring (two quiet cores): 00 240 s, 01 40 s,
02 180 s, 03 360 s, 04 180 s, all others together 300 s; none over 3 GB; all of them under 22 minutes. A notebook that fails is named.
A kernel that dies before its first answer says nothing about
the notebook (kernels that start at once can take each other's ports): it is started once more, and that is printed. `--threads 1` is for rounds beside other work: whether all pass counts, their times do not. `--write` adds the rounds to those of
bench/results/course.json and makes course.md; run it again with another Python to see another lane (fastai's version). The goal is ten
rounds in a row without a failure in each lane.
"""
import argparse
import json
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
BUDGETS = {'00_data': 240, '01_loss': 40, '02_lr_finder': 180, '03_finetune': 360, '04_deeper': 180}


def notebooks(names):
    found = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if not any(part.startswith(('.', '_')) for part in p.relative_to(ROOT).parts)]
    return [p for p in found if not names or p.stem in names]


def ran(notebook, tmp, threads, again=True):
    "Seconds, MB, and did it pass?"
    env = os.environ | ({'OMP_NUM_THREADS': str(threads)} if threads else {}) | dict(CH5CLF_PROGRESS=str(tmp/'progress'), IN_TEST='1', PYTHONUTF8='1', PYTHONPATH=str(ROOT))
    command = [Path(sys.executable).with_name('jupyter'), 'execute', notebook, '--output', tmp/'out.ipynb']
    start = time.perf_counter()
    job = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = job.stderr.read()
    _, status, used = os.wait4(job.pid, 0)
    if status and again and 'Kernel died before replying' in errors:
        print(f'{notebook.stem}: its kernel did not start; once more', flush=True)
        return ran(notebook, tmp, threads, again=False)
    if status: print(errors[-1500:], file=sys.stderr)
    return dict(seconds=round(time.perf_counter() - start, 1), megabytes=round(used.ru_maxrss/1024), passed=not status)


def lane():
    from importlib.metadata import version
    return f'fastai {version("fastai")}, torch {version("torch")}'


def failures(r):
    "Names of the notebooks of a round that did not pass."
    return [name for name, one in r['notebooks'].items() if not one['passed']]


def in_a_row(mine):
    "How many of these rounds, counted back from the last, had no failure."
    return next((i for i, r in enumerate(reversed(mine)) if failures(r)), len(mine))


def counts(rounds):
    "A line for each lane: how many rounds, how many in a row without a failure up to the last."
    for name in dict.fromkeys(r['lane'] for r in rounds):
        mine = [r for r in rounds if r['lane'] == name]
        yield f'{name}: {len(mine)} round{"s"*(len(mine) > 1)} of {len(mine[-1]["notebooks"])} notebooks, the last {in_a_row(mine)} in a row without a failure.'
        yield from (f'- {r["date"]}, {r["commit"]}: {", ".join(failures(r))} failed.' for r in mine if failures(r))


def table(rounds):
    "A row for each notebook, two columns for each lane: only rounds that had the machine to themselves."
    alone = [r for r in rounds if not r['threads']]
    lanes = {name: [r['notebooks'] for r in alone if r['lane'] == name] for name in dict.fromkeys(r['lane'] for r in alone)}
    heads = [f'{name}: s | MB' for name in lanes]
    names = list(dict.fromkeys(n for mine in lanes.values() for n in mine[-1]))
    lines = ['# How long the course takes', '', f'{date.today()}, {os.cpu_count()} cores. Median seconds and the largest memory over the rounds with all threads; made by bench/course.py.', '',
             f'| notebook | budget, s | {" | ".join(heads)} |', '| --- | --- |' + ' --- | --- |'*len(lanes)]
    def seconds(mine, of): return sum(median(r[n]['seconds'] for r in mine if n in r) for n in of if any(n in r for r in mine))
    def cells(n): return [f'{seconds(mine, [n]):.0f} | {max(r[n]["megabytes"] for r in mine if n in r):.0f}' if any(n in r for r in mine) else ' | ' for mine in lanes.values()]
    lines += [f'| {n} | {BUDGETS.get(n, "")} | {" | ".join(cells(n))} |' for n in names]
    for of, budget, some in (('all', 1320, names), ('all but 00 to 04', 300, [n for n in names if n not in BUDGETS])):
        lines.append(f'| {of} | {budget} | ' + ' | '.join(f'{seconds(mine, some):.0f} | ' for mine in lanes.values()) + ' |')
    return '\n'.join([*lines, '', '## Rounds', '', 'Rounds of one thread ran beside other work: they count here, their times do not.', '', *counts(rounds)]) + '\n'


def one_round(names, threads):
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    done = {}
    with tempfile.TemporaryDirectory() as tmp:
        for nb in notebooks(names):
            one = done[nb.stem] = ran(nb, Path(tmp), threads)
            print(f'{nb.stem} {one["seconds"]:.0f} s, {one["megabytes"]:.0f} MB{"" if one["passed"] else ": FAILED"}', flush=True)
    return dict(date=f'{date.today()}', commit=commit, lane=lane(), threads=threads, notebooks=done)


def keep(done):
    "Put a round to those that are there, whoever else writes meanwhile."
    from filelock import FileLock

    from ch5clf.places import write_atomic
    file = RESULTS/'course.json'
    with FileLock(f'{file}.lock'):
        rounds = json.loads(file.read_text(encoding='utf-8'))['rounds'] if file.exists() else []
        rounds.append(done)
        rows = ',\n  '.join(json.dumps(r) for r in rounds)
        write_atomic(file, f'{{"about": {json.dumps(" ".join(__doc__.split()))},\n "rounds": [\n  {rows}]}}\n')
        write_atomic(RESULTS/'course.md', table(rounds))


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('names', nargs='*')
    ask.add_argument('--rounds', type=int, default=1)
    ask.add_argument('--threads', type=int)
    ask.add_argument('--write', action='store_true')
    a = ask.parse_args()
    if a.write and a.names: ask.error('--write keeps rounds of the whole course: name no notebook')
    rounds = []
    for i in range(a.rounds):
        rounds.append(one_round(a.names, a.threads))
        if a.write: keep(rounds[-1])
        print(f'round {i+1} of {a.rounds}: ' + (', '.join(failures(rounds[-1])) + ' failed' if failures(rounds[-1]) else 'all passed'), flush=True)
    return any(failures(r) for r in rounds)


if __name__ == '__main__': sys.exit(main())
