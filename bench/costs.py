"""What grows how: time and memory of each job at 1, 4 and 16 times the size. `python bench/costs.py [--small 1000] [--job NAME ...] [--write]`.

Pictures are made up (96 x 96 JPEG of coloured noise, all different), 10 classes, in one folder with a table of labels. Each job runs in
a process of its own: CPU seconds of the job alone (imports and the making of pictures are left out), and how much the process's largest
memory grew meanwhile. `power` is the slope of log time over log size, from the smallest to the largest: 1 is linear. Goal, written before
measuring (issue 20): no power above 1.1; jobs under a tenth of a second at the largest size are not judged.
Prints a table; with `--write` also bench/results/costs.json and costs.md.
"""
import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULTS, GROWTH = ROOT/'bench'/'results', (1, 4, 16)


def pictures(folder, n):
    "A folder of n different pictures with labels.csv."
    from PIL import Image
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(n), ['name,label']
    for i in range(n):
        noise = rng.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(noise).resize((96, 96), Image.BICUBIC).save(folder/f'{i:06}.jpg', quality=85)
        rows.append(f'{i:06}.jpg,class {i % 10}')
    (folder/'labels.csv').write_text('\n'.join(rows), encoding='utf-8')


def files_of(folder): return sorted(folder.glob('*.jpg'))


# ------------------------------------------------------------------ the jobs: each prepares, and returns what is timed
def check_images(folder, n):
    from ch5clf.labels import check_images
    return lambda: check_images(folder)


def labels_by_table(folder, n):
    from ch5clf.labels import read_folder
    files = files_of(folder)
    return lambda: read_folder(folder, files=files).splitter()(files)


def near_twins(folder, n):
    from ch5clf.pictures import open_picture
    from ch5clf.twins import sketch, twin_groups
    sketches = [sketch(open_picture(f)) for f in files_of(folder)]
    return lambda: twin_groups(sketches)


def store_building(folder, n):
    from ch5clf.presize import presize_store
    return lambda: presize_store(files_of(folder), 64, progress=False)


def store_opening(folder, n):
    store_building(folder, n)()
    return store_building(folder, n)


def suspicious_labels(folder, n):
    "The ranking; the features before it are those of any training."
    import torch
    from ch5clf.suspects import out_of_fold_logits
    torch.manual_seed(0)
    x, y = torch.randn(n, 256), torch.arange(n) % 10
    x[torch.arange(n), y] += 3
    return lambda: out_of_fold_logits(x, y, 10)


def find_lr(folder, n):
    import torch
    from ch5clf.lr_finder import find_lr
    from torch import nn
    x = torch.randn(n, 20)
    data = torch.utils.data.TensorDataset(x, x[:, :3].argmax(1))
    model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3))
    batches = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
    return lambda: find_lr(model, torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss(), batches, progress=False)


def answers_kept(folder, n):
    "A hundred answers written to a file that holds n/10 already."
    from ch5clf.places import Section
    section = Section('bets')
    for i in range(0, n//10): section.write(f'old{i}', dict(guess=.5, at='2026-01-01'))
    return lambda: [section.write(f'new{i}', dict(guess=.5, at='2026-01-01')) for i in range(100)]


JOBS = dict(check_images=check_images, labels_by_table=labels_by_table, near_twins=near_twins, store_building=store_building,
            store_opening=store_opening, suspicious_labels=suspicious_labels, find_lr=find_lr, answers_kept=answers_kept)


def work(job, folder, n):
    "Print the seconds and the MB that one job takes."
    import torch
    torch.set_num_threads(1)
    run = JOBS[job](folder, n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = time.process_time()
    with redirect_stdout(sys.stderr): run()
    print(json.dumps(dict(seconds=time.process_time() - clock, megabytes=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1024)))


def measured(job, folder, n, tmp):
    env = os.environ | dict(OMP_NUM_THREADS='1', CH5CLF_CACHE=str(tmp/f'cache-{job}-{n}'), CH5CLF_PROGRESS=str(tmp/f'progress-{job}-{n}'), PYTHONUTF8='1')
    r = subprocess.run([sys.executable, __file__, '--work', job, str(folder), str(n)], env=env, capture_output=True, text=True)
    if r.returncode: sys.exit(r.stderr)
    return json.loads(r.stdout.splitlines()[-1])


def table(rows, sizes):
    lines = ['# What grows how', '', f'{date.today()}, CPU seconds and MB of memory at {", ".join(f"{n:,}" for n in sizes)} pictures (rows, updates). Made by bench/costs.py.', '',
             '| job | seconds | MB | power |', '| --- | --- | --- | --- |']
    for r in rows:
        seconds, space = (' / '.join(f'{v:.{d}f}' for v in r[k]) for k, d in (('seconds', 2), ('megabytes', 0)))
        lines.append(f'| {r["job"]} | {seconds} | {space} | {r["power"]:.2f} |' if r['seconds'][-1] > .1 else f'| {r["job"]} | {seconds} | {space} | - |')
    return '\n'.join(lines) + '\n'


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--small', type=int, default=1000, help='the smallest size')
    ask.add_argument('--job', nargs='*', default=list(JOBS), choices=list(JOBS))
    ask.add_argument('--write', action='store_true')
    ask.add_argument('--work', nargs=3, help=argparse.SUPPRESS)
    a = ask.parse_args()
    if a.work: return work(a.work[0], Path(a.work[1]), int(a.work[2]))
    sizes, rows = [a.small*k for k in GROWTH], []
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        for n in sizes: pictures(tmp/f'{n}', n)
        for job in a.job:
            found = [measured(job, tmp/f'{n}', n, tmp) for n in sizes]
            row = dict(job=job, **{k: [r[k] for r in found] for k in ('seconds', 'megabytes')})
            row['power'] = math.log(max(row['seconds'][-1], 1e-3)/max(row['seconds'][0], 1e-3))/math.log(GROWTH[-1])
            rows.append(row)
            print(row, flush=True)
    print(table(rows, sizes))
    if not a.write: return
    from ch5clf.lesson import record
    from ch5clf.places import write_atomic
    record(RESULTS/'costs.json', rows, __doc__)
    write_atomic(RESULTS/'costs.md', table(rows, sizes))


if __name__ == '__main__': main()
