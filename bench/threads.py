"""How should torch's threads wait for each other: on an idle laptop, and beside busy programs?

    python bench/threads.py [--rounds 9] [--arms default 3000 ...] [--first] [--write]

The threads of a kernel meet at its end. Who arrives first spins for a while (libgomp: 300,000 turns) and then sleeps. Spinning is
quick where both threads have a core, and waste where another program holds the core of the other. An arm is one way to wait:
`default`; a number, for `GOMP_SPINCOUNT`; `passive`, for `OMP_WAIT_POLICY=PASSIVE`; `one`, for a single thread. Each is a process of
its own, all start alike and take turns in every round, alone and beside 1 and 2 processes that do nothing but count. `step`: an
unfrozen training step of lite0, 128 px, 32 pictures, with Adam. `kernels`: 1,000 small kernels, each just large enough for two threads.

Figures: median seconds; alone, the median over rounds of the arm's time over the default's in the same round; beside others, the
median of the arm's time over the default's alone. Goal, fixed before measuring (issue 19): at most 1.05 alone, at most 2 beside one
busy process. Works where torch uses libgomp (Linux). `--first` gives all arms and their busy processes precedence over everything
else that runs here (for root: real time where they are alone,
a weight of 87 beside the busy processes), so that a machine in use comes close to an idle one.

Prints a table. With `--write` also bench/results/threads.json and threads.md.
"""
import argparse
import ctypes
import json
import os
import platform
import struct
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULTS, ARMS, BUSY, WHAT = ROOT/'bench'/'results', ['default', '1000', '10000', '100000', 'passive', 'one'], (0, 1, 2), ('step', 'kernels')


def workloads(pictures):
    import torch
    from ch5clf.pretrained import lite0
    torch.manual_seed(0)
    model = lite0(False)
    opt = torch.optim.Adam(model.parameters(), 1e-4)
    x, y = torch.randn(pictures, 3, 128, 128), torch.arange(pictures)
    small = torch.randn(2**16)

    def step():
        torch.nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()

    def kernels():
        for _ in range(500): small.add(1).relu_()
    return dict(step=step, kernels=kernels)


def work(pictures):
    "Answer each name of a workload with the seconds that it took."
    jobs = workloads(pictures)
    for name in sys.stdin:
        start = time.perf_counter()
        jobs[name.strip()]()
        print(time.perf_counter() - start, flush=True)


def schedule(task, real_time):
    "Policy of a thread: real time; or a usual one whose turns are a little shorter than others', so that it need not wait for theirs."
    turn, size = 1_300_000, 48 # nanoseconds; bytes of Linux's `struct sched_attr`
    attr = struct.pack('=IIQiIQQQ', size, os.SCHED_RR if real_time else os.SCHED_OTHER, 0, 0 if real_time else -20, int(real_time), 0 if real_time else turn, 0, 0)
    if platform.machine() != 'x86_64' or ctypes.CDLL(None, use_errno=True).syscall(314, task, attr, 0): raise OSError(ctypes.get_errno(), 'sched_setattr')


class Worker:
    def __init__(self, arm, pictures):
        env = {k: v for k, v in os.environ.items() if k not in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY', 'OMP_NUM_THREADS')}
        env |= {'default': {}, 'passive': {'OMP_WAIT_POLICY': 'PASSIVE'}, 'one': {'OMP_NUM_THREADS': '1'}}.get(arm, {'GOMP_SPINCOUNT': arm})
        self.job = subprocess.Popen([sys.executable, __file__, '--work', '--pictures', str(pictures)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env | {'CH5CLF_THREADS': 'as they are'})
    def real_time(self, on):
        "Its threads before all others, at once."
        for task in os.listdir(f'/proc/{self.job.pid}/task'): schedule(int(task), on)
    def time(self, what):
        self.job.stdin.write(what + '\n')
        self.job.stdin.flush()
        return float(self.job.stdout.readline())


def measure(arms, rounds, pictures, first):
    "Seconds by arm, workload and number of busy processes; one number for each round."
    workers = {arm: Worker(arm, pictures) for arm in arms}
    times = {(arm, what, busy): [] for arm in arms for what in WHAT for busy in BUSY}
    try:
        for worker in workers.values():
            for what in WHAT: worker.time(what)
        for i in range(rounds):
            turn = arms[i % len(arms):] + arms[:i % len(arms)]
            for busy in BUSY:
                if first and busy < 2:
                    for worker in workers.values(): worker.real_time(not busy)
                others = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(busy)]
                try:
                    for what in WHAT:
                        for arm in turn: times[arm, what, busy].append(workers[arm].time(what))
                finally:
                    for o in others: o.kill()
    finally:
        for worker in workers.values(): worker.job.kill()
    return times


def rows(arms, times):
    found = []
    for what in WHAT:
        for arm in arms:
            row = dict(what=what, arm=arm)
            for busy in BUSY:
                seconds = times[arm, what, busy]
                row[f'seconds{busy}'] = median(seconds)
                row[f'ratio{busy}'] = median(a/b for a, b in zip(seconds, times['default', what, 0]))
            found.append(row)
    return found


def table(found, rounds):
    import torch
    lines = ['# How threads wait for each other', '',
             f'{date.today().isoformat()}, {os.cpu_count()} cores, torch {torch.__version__}, {rounds} rounds, '
             f'load average {os.getloadavg()[0]:.1f} at the end. Seconds, and in brackets the time over that of the default alone.', '',
             '| what | arm | alone | beside 1 busy process | beside 2 |', '| --- | --- | --- | --- | --- |']
    for r in found:
        cells = ' | '.join(f"{r[f'seconds{b}']:.3f} ({r[f'ratio{b}']:.2f})" for b in BUSY)
        lines.append(f"| {r['what']} | {r['arm']} | {cells} |")
    return '\n'.join(lines) + '\n'


def go_first():
    "Precedence over whatever else runs: for this process, and on Linux for its session, within which alone `nice` counts."
    os.setsid()
    schedule(0, False)
    Path('/proc/self/autogroup').write_text('-20')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--rounds', type=int, default=9)
    p.add_argument('--arms', nargs='+', default=ARMS)
    p.add_argument('--pictures', type=int, default=32, help='in a batch')
    p.add_argument('--first', action='store_true', help='precedence over all other programs')
    p.add_argument('--write', action='store_true')
    p.add_argument('--work', action='store_true', help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.work: return work(args.pictures)
    if args.first: go_first()
    arms = list(dict.fromkeys(['default', *args.arms]))
    times = measure(arms, args.rounds, args.pictures, args.first)
    found = rows(arms, times)
    print(table(found, args.rounds))
    if not args.write: return
    from ch5clf.places import versions, write_atomic
    raw = {' '.join(map(str, k)): v for k, v in times.items()}
    made = dict(date=date.today().isoformat(), versions=versions())
    write_atomic(RESULTS/'threads.json', json.dumps(dict(about=__doc__, made=made, rows=found, seconds=raw), indent=1) + '\n')
    write_atomic(RESULTS/'threads.md', table(found, args.rounds))


if __name__ == '__main__': main()
