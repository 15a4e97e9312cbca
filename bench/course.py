"""How long the course takes, and how much memory: `python bench/course.py [NOTEBOOK ...] [--rounds 1] [--write]`.

Each notebook runs in a fresh kernel, from its first cell to its last, with as many threads as torch takes; what was drawn and presized
before stays in the cache. Wall seconds, the kernel's start included, and the largest memory of the kernel. Budgets were fixed before measuring
(two quiet cores): 00 240 s, 01 40 s, 02 180 s, 03 360 s, 04 180 s, all others together 300 s; none over 3 GB; all of them under 22 minutes.
A notebook that fails is named, with the round. Run it again with another Python to see another lane; `--write` keeps
bench/results/course.json and course.md, a column for each lane (fastai's version).
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


def ran(notebook, tmp):
    "Seconds, MB, and did it pass?"
    env = os.environ | dict(CH5CLF_PROGRESS=str(tmp/'progress'), IN_TEST='1', PYTHONUTF8='1', PYTHONPATH=str(ROOT))
    command = [Path(sys.executable).with_name('jupyter'), 'execute', notebook, '--output', tmp/'out.ipynb']
    start = time.perf_counter()
    job = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = job.stderr.read()
    _, status, used = os.wait4(job.pid, 0)
    if status: print(errors[-1500:], file=sys.stderr)
    return dict(seconds=time.perf_counter() - start, megabytes=used.ru_maxrss/1024, passed=not status)


def lane():
    from importlib.metadata import version
    return f'fastai {version("fastai")}, torch {version("torch")}'


def table(lanes):
    "A row for each notebook, two columns for each lane."
    heads = [f'{name}: s | MB' for name in lanes]
    names = list(dict.fromkeys(n for rows in lanes.values() for n in rows))
    lines = ['# How long the course takes', '', f'{date.today()}, {os.cpu_count()} cores; median seconds of the rounds, and the largest memory. Made by bench/course.py.', '',
             f'| notebook | budget, s | {" | ".join(heads)} |', '| --- | --- |' + ' --- | --- |'*len(lanes)]
    def cells(name): return [f'{median(r["seconds"]):.0f} | {max(r["megabytes"]):.0f}' if (r := rows.get(name)) else ' | ' for rows in lanes.values()]
    lines += [f'| {n} | {BUDGETS.get(n, "")} | {" | ".join(cells(n))} |' for n in names]
    total = [sum(median(r['seconds']) for r in rows.values()) for rows in lanes.values()]
    lines.append('| all | 1320 | ' + ' | '.join(f'{t:.0f} | ' for t in total) + ' |')
    rest = [sum(median(r['seconds']) for n, r in rows.items() if n not in BUDGETS) for rows in lanes.values()]
    lines.append('| all but 00 to 04 | 300 | ' + ' | '.join(f'{t:.0f} | ' for t in rest) + ' |')
    counts = ', '.join(f'{name}: {min(len(r["seconds"]) for r in rows.values())} rounds, {sum(r["failed"] for r in rows.values())} failures' for name, rows in lanes.items())
    return '\n'.join([*lines, '', counts + '.']) + '\n'


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('names', nargs='*')
    ask.add_argument('--rounds', type=int, default=1)
    ask.add_argument('--write', action='store_true')
    a = ask.parse_args()
    file = RESULTS/'course.json'
    lanes = json.loads(file.read_text(encoding='utf-8'))['lanes'] if file.exists() else {}
    here = lanes[lane()] = {}
    with tempfile.TemporaryDirectory() as tmp:
        for i in range(a.rounds):
            for nb in notebooks(a.names):
                one = ran(nb, Path(tmp))
                row = here.setdefault(nb.stem, dict(seconds=[], megabytes=[], failed=0))
                for k in ('seconds', 'megabytes'): row[k].append(round(one[k], 1))
                row['failed'] += not one['passed']
                print(f'round {i+1}: {nb.stem} {one["seconds"]:.0f} s, {one["megabytes"]:.0f} MB{"" if one["passed"] else ": FAILED"}', flush=True)
                if a.write:
                    from ch5clf.places import write_atomic
                    write_atomic(file, json.dumps(dict(about=__doc__, made=f'{date.today()}', lanes=lanes), indent=1) + '\n')
                    write_atomic(RESULTS/'course.md', table(lanes))
    print(table({lane(): here}))
    return any(r['failed'] for r in here.values())


if __name__ == '__main__': sys.exit(main())
