"""The recipe's features, computed by one process and by two: `python bench/processes.py [--rounds 5] [--write]`.

720 paper pets, lite0, 128 px, not augmented: what the recipe's first step computes. Arms: one process with one thread, one with two
threads, and two processes with one thread each, started by torch's own launcher (`shared_features` of ch5clf.team). They take turns in
every round. Seconds are of the pass alone, on the wall; imports and the launcher's start are told apart. Goals, fixed before measuring:
two processes at least 1.6 times as fast as one thread on two cores, and the same features to 1e-5 of the largest.
Prints a table; with `--write` also bench/results/processes.json and processes.md.
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
ARMS = {'1 process, 1 thread': (1, 1), '1 process, 2 threads': (1, 2), '2 processes, 1 thread each': (2, 1)} # processes, threads of each


def work(out):
    "The pass, in one process of the team; the first one writes the features and the seconds."
    import torch
    from ch5clf.data import pet_dls
    from ch5clf.pretrained import lite0
    from ch5clf.sample import paper_pets
    from ch5clf.team import Team, shared_features
    from fastai.vision.all import set_seed, vision_learner
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    with Team().joined('cpu') as team:
        set_seed(1)
        learn = vision_learner(pet_dls(paper_pets()), lite0)
        pictures = learn.dls.test_dl(learn.dls.train_ds.items + learn.dls.valid_ds.items, with_labels=True)
        pictures.one_batch()
        team.total(torch.ones(1)) # all begin together
        began = time.perf_counter()
        x, *_ = shared_features(team, learn, pictures)
        if team.first: torch.save((x, time.perf_counter() - began), out)


def run(processes, threads, tmp):
    "Features, seconds of the pass, seconds in all."
    import torch
    out, started = Path(tmp)/'features.pt', time.perf_counter()
    launcher = ['-m', 'torch.distributed.run', '--nproc_per_node', str(processes)] if processes > 1 else []
    env = os.environ | dict(OMP_NUM_THREADS=str(threads), PYTHONPATH=str(ROOT), PYTHONUTF8='1')
    r = subprocess.run([sys.executable, *launcher, __file__, '--work', out], env=env, capture_output=True, text=True)
    if r.returncode: sys.exit(r.stderr[-2000:])
    return *torch.load(out), time.perf_counter() - started


def table(rows):
    one = rows['1 process, 1 thread']
    lines = ['# Features by one process and by two', '', f'{date.today()}, {os.cpu_count()} cores; medians over {len(one["pass"])} rounds. Made by bench/processes.py.', '',
             '| arm | the pass, s | speed-up | with start and imports, s | largest difference, as a share of the largest feature |', '| --- | --- | --- | --- | --- |']
    for arm, r in rows.items():
        speed = median(a/b for a, b in zip(one['pass'], r['pass']))
        lines.append(f'| {arm} | {median(r["pass"]):.1f} | {speed:.2f} | {median(r["all"]):.1f} | {max(r["off"]):.1e} |')
    return '\n'.join(lines) + '\n'


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--rounds', type=int, default=5)
    ask.add_argument('--write', action='store_true')
    ask.add_argument('--work', help=argparse.SUPPRESS)
    a = ask.parse_args()
    if a.work: return work(a.work)
    rows = {arm: {'pass': [], 'all': [], 'off': []} for arm in ARMS}
    with tempfile.TemporaryDirectory() as tmp:
        first, *_ = run(1, 1, tmp) # fills the cache; not counted
        for _ in range(a.rounds):
            for arm, how in ARMS.items():
                x, seconds, everything = run(*how, tmp)
                for k, v in (('pass', seconds), ('all', everything), ('off', float((x - first).abs().max()/first.abs().max()))): rows[arm][k].append(v)
    print(table(rows))
    if not a.write: return
    from ch5clf.lesson import record
    from ch5clf.places import write_atomic
    record(RESULTS/'processes.json', [dict(arm=arm, **r) for arm, r in rows.items()], __doc__)
    write_atomic(RESULTS/'processes.md', table(rows))


if __name__ == '__main__': main()
